"""The cost of depth is measured with both depths in turn, and written."""

import json
from pathlib import Path

import pytest

from benchmarks import depth_cost
from benchmarks.learner_speed import Sizes


def test_half_a_block_is_no_depth():
    with pytest.raises(SystemExit):
        depth_cost.main(["--depths", "4", "6"])


def test_the_ratio_is_taken_round_by_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    rounds = [[1.0, 2.0, 1.0, 1.0, 4.0], [10.0, 20.0, 12.0, 8.0, 40.0]]
    asked = []

    def measured(cells, count, round_s):
        asked.extend((cell.depth, cell.width, count) for cell in cells)
        return rounds

    monkeypatch.setattr(depth_cost, "measure", measured)
    output = tmp_path / "cost.json"
    depth_cost.main(["--depths", "8", "16", "--rounds=5", f"--output={output}"])
    assert asked == [(8, 64, 5), (16, 64, 5)]
    result = json.loads(output.read_text())
    assert result["ratio"] == {"median": 10.0, "min": 8.0, "max": 12.0}
    assert result["seconds_per_update"]["D16"]["rounds"] == rounds[1]
    assert "D16 takes 10.0 times as long as D8" in capsys.readouterr().out


@pytest.mark.slow
def test_two_depths_are_measured(tmp_path: Path):
    cells = [Sizes(depth, width=16, batch=4, threads=1) for depth in (4, 32)]
    shallow, deep = depth_cost.measure(cells, rounds=5, round_s=0.05)
    assert len(shallow) == len(deep) == 5
    assert min(deep) > min(shallow) > 0
