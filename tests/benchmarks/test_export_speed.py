"""An export is timed phase by phase, and its variants are called in turns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import export_speed


@pytest.mark.parametrize(
    "wrong", [["--seconds=0"], ["--sizes", "4"], ["--sizes", "6x8"], ["--sizes", "4x8x2"]]
)
def test_options_that_make_no_sense_are_refused(wrong: list[str]):
    with pytest.raises(SystemExit):
        export_speed.main(wrong)


def test_the_seconds_of_an_export_are_those_of_its_phases(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "export.json"
    sizes = ["--sizes", "4x8", "16x32"]
    export_speed.main([*sizes, "--rounds=3", "--seconds=0.05", "--states=40", f"--output={output}"])
    result = json.loads(output.read_text())
    assert [(cell["depth"], cell["width"]) for cell in result["networks"]] == [(4, 8), (16, 32)]
    for cell in result["networks"]:
        totals = sorted(run["export_s"] for run in cell["exports"])
        assert cell["export_s"] == totals[1] > 0
        for run in cell["exports"]:
            phases = sum(run[phase] for phase in ("convert", "write", "gate", "finish"))
            assert run["export_s"] == pytest.approx(phases)
        assert 0 < cell["max_action_error"] <= cell["allowed_action_error"] == 1e-5
        single, half, integer = (cell["precisions"][name] for name in ("float32", "float16", "int8"))
        assert single["max_action_error"] < half["max_action_error"] < integer["max_action_error"] < 0.3
        assert min(part["p50_us"] for part in (single, half, integer)) > 0
    wide = result["networks"][1]["precisions"]
    assert wide["float16"]["bytes"] < 0.7 * wide["float32"]["bytes"]
    assert "Seconds of an export" in capsys.readouterr().out
