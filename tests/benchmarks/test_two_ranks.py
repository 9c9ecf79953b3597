"""The benchmark of two ranks measures what it says, and writes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import two_ranks


def test_ratios_are_taken_round_by_round():
    rates = {"one-rank": [100.0, 50.0, 100.0], "two-ranks": [150.0, 90.0, 200.0]}
    rates["two-ranks-weak"] = rates["two-ranks"]
    rounds = {
        name: [{"samples_per_second": rate, "exchange_s": 0.001} for rate in values]
        for name, values in rates.items()
    }
    sides = two_ranks.figures_of(rounds)
    assert sides["two-ranks"]["over_one_rank"] == {"median": 1.8, "min": 1.5, "max": 2.0}
    assert sides["one-rank"]["over_one_rank"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    result = {"depth": 64, "width": 256, "batch": 512, "rounds": 3, "sides": sides}
    assert "| two-ranks-weak | 1024 | 150 |" in two_ranks.show(result)


@pytest.mark.parametrize("wrong", [["--batch=7"], ["--batch=2"]])
def test_options_that_make_no_sense_are_refused(wrong: list[str]):
    with pytest.raises(SystemExit):
        two_ranks.main(wrong)


@pytest.mark.slow
def test_a_tiny_size_is_measured_and_written(tmp_path: Path):
    path = tmp_path / "two.json"
    sizes = ["--depth=4", "--width=8", "--batch=8", "--rounds=5", "--round-s=0.01"]
    two_ranks.main([*sizes, "--output", str(path)])
    result = json.loads(path.read_text())
    assert {name: side["ranks"] for name, side in result["sides"].items()} == {
        "one-rank": 1, "two-ranks": 2, "two-ranks-weak": 2
    }  # fmt: skip
    for side in result["sides"].values():
        assert len(side["rounds"]) == 5 and min(side["rounds"]) > 0
