"""The pace of the study's configurations: from real trainings, by the time between evaluations."""

import json
from pathlib import Path

import pytest

from benchmarks import depth_study, depth_study_pace
from benchmarks.depth_study_results import Configuration, pace_key, read_paces


def test_the_time_before_the_first_evaluation_does_not_count():
    history = [{"env_steps": steps, "elapsed_s": s} for steps, s in ((100, 90.0), (200, 100.0), (400, 140.0))]
    assert depth_study_pace.seconds_a_step(history) == pytest.approx([0.1, 0.2])


def test_a_shortened_cell_is_the_cell_but_for_its_length():
    for cell in depth_study.plan(list(depth_study.ARMS), "point_big_maze", [0], 1.0):
        short = depth_study_pace.shortened(cell)
        assert pace_key(short) == pace_key(cell)
        changed = {name for name, value in cell.settings.items() if short.settings[name] != value}
        assert changed == {"env_steps", "final_episodes"}
        unroll = cell.settings["num_worlds"] * cell.settings["unroll_steps"]
        assert short.settings["env_steps"] == 3 * cell.settings["evaluate_every"] * unroll


@pytest.mark.slow
def test_paces_of_real_trainings_are_written_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tiny = {"num_worlds": 4, "unroll_steps": 100, "evaluation_episodes": 4, "env_steps": 10**6}
    arm = depth_study.Arm(
        "depth", (Configuration(4, 8, 16),), {**tiny, "updates_per_unroll": 1, "evaluate_every": 2}
    )
    monkeypatch.setitem(depth_study.ARMS, "depth", arm)
    output = tmp_path / "paces.json"
    output.write_text(json.dumps({"paces": {"another": {"seconds_per_step": 1.0}}}))
    depth_study_pace.main(["--arms=depth", "--task=point_u_maze", "--rounds=2", f"--output={output}"])
    paces = read_paces(output)
    assert set(paces) == {"another", "point_u_maze depth D4 W8 B16"}
    pace = paces["point_u_maze depth D4 W8 B16"]
    assert len(pace["intervals"]) == 4
    assert 0 < min(pace["intervals"]) <= pace["seconds_per_step"] <= max(pace["intervals"])


def test_a_training_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    arm = depth_study.Arm("depth", (Configuration(6, 8, 16),), depth_study.ARMS["depth"].settings)
    monkeypatch.setitem(depth_study.ARMS, "depth", arm)
    with pytest.raises(SystemExit, match=r"point_u_maze depth D6 W8 B16: .*multiple of 4"):
        depth_study_pace.main(["--arms=depth", "--task=point_u_maze", f"--output={tmp_path / 'paces.json'}"])
