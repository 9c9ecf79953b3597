"""The depth study runs each cell once, goes on with those cut off, and computes what it claims."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import depth_study
from benchmarks.depth_study import ArmResults, Cell, Configuration, ConfigurationResults, Runner, plan
from benchmarks.harness import ROOT, CellBook, resumable_teacher
from tests.stages.tiny_runs import TINY_TEACHER, make_context
from thousandfold.models.goal_actor import GoalActor
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.settings import load_preset, resolve_settings
from thousandfold.stages.networks import torch_policy
from thousandfold.stages.train_teacher import train_teacher
from thousandfold.stages.train_teacher.train_teacher import TrainTeacherSettings

# Stands in for `pipeline train-teacher`: what it does is its last argument.
FAKE_TRAINER = """
import json, os, signal, sys, time
from pathlib import Path
from thousandfold.pipeline.artifacts import Artifact, Workspace

workspace, resumed, settings, behaviour = sys.argv[1:]
if behaviour == "fails":
    sys.exit("Error: no.")
if behaviour == "waits":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    Path(workspace, "started").touch()
    time.sleep(60)
if resumed:
    teacher = Workspace(Path(workspace)).find(resumed, "teacher")
else:
    teacher = Workspace(Path(workspace)).create("teacher", task="t", settings=json.loads(settings))
checkpoint = teacher.file("checkpoint/manifest.json")
before = json.loads(checkpoint.read_text())["progress"] if resumed else {"env_steps": 0, "history": []}
steps = before["env_steps"] + 500
entry = {"env_steps": steps, "updates": 8, "elapsed_s": steps / 10, "success": 0.5, "time_at_goal": 50.0}
progress = {"env_steps": steps, "history": [*before["history"], entry]}
checkpoint.parent.mkdir(exist_ok=True)
checkpoint.write_text(json.dumps({"progress": progress}))
if behaviour == "is cut off":
    sys.exit(130)
if behaviour == "leaves a history":
    teacher.file("history.json").write_text(json.dumps({"history": progress["history"]}))
    checkpoint.unlink()
results = {"success": 0.5, "success_interval": [0.4, 0.6], "episodes": 128, "time_at_goal": 50.0}
results |= {"final_distance": 1.0, "env_steps": steps, "updates": 8, "elapsed_s": steps / 10}
teacher.complete(results | {"actor_parameters": 30, "critic_parameters": 70}, exclude=("checkpoint",))
"""


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace the trainer; `calls` are its cells, and `behaviour` says what it does."""
    control: dict[str, Any] = {"calls": [], "behaviour": lambda cell: "leaves a checkpoint"}

    def command(cell: Cell, workspace: Path, resumed: Artifact | None) -> list[str]:
        control["calls"].append((cell.key, resumed is not None))
        settings = json.dumps(dict(cell.settings))
        name = resumed.name if resumed else ""
        fake = [sys.executable, "-c", FAKE_TRAINER, str(workspace)]
        return [*fake, name, settings, control["behaviour"](cell)]

    monkeypatch.setattr(depth_study, "train_command", command)
    return control


def depth_cells(seeds: int = 1) -> list[Cell]:
    return plan(["depth"], "point_big_maze", range(seeds), scale=1.0)


def make_record(success: list[float], end_s: float, cell: Cell | None = None) -> dict[str, Any]:
    """Return a record whose evaluations lie evenly in time; each had 100 episodes, the final one 200."""
    count = len(success)
    return {
        "settings": dict(cell.settings if cell else {}) | {"evaluation_episodes": 100},
        "final": {"success": success[-1], "success_interval": [0.0, 1.0], "episodes": 200},
        "curve": {
            "env_steps": [1000 * (i + 1) for i in range(count)],
            "elapsed_s": [end_s * (i + 1) / count for i in range(count)],
            "success": success,
            "info_nce": [3.0 - rate for rate in success],
        },
        "updates": 480,
        "wall_clock_s": end_s,
        "cells_at_once": 1,
        "parameters": 12345,
        "host": {"cpu": "a processor"},
    }


def test_an_arm_runs_all_depths_of_a_seed_before_the_next_seed():
    cells = plan(["depth", "width"], "point_u_maze", [0, 1], scale=0.5)
    assert [(c.arm, c.seed, c.configuration.depth) for c in cells] == [
        *(("depth", seed, depth) for seed in (0, 1) for depth in (4, 16, 64)),
        *(("width", seed, depth) for seed in (0, 1) for depth in (8, 4)),
    ]
    assert cells[0].settings["env_steps"] == depth_study.ARMS["depth"].settings["env_steps"] // 2
    assert len({cell.folder for cell in cells}) == len(cells)


def test_the_trainer_is_told_every_setting_of_every_cell(tmp_path: Path):
    for cell in plan(list(depth_study.ARMS), "point_big_maze", [3], scale=1.0):
        command = depth_study.train_command(cell, tmp_path, None)
        overrides = [command[i + 1] for i, word in enumerate(command) if word == "--set"]
        settings = resolve_settings(
            TrainTeacherSettings, "train_teacher", preset="quickstart", overrides=overrides
        )
        resolved = settings.model_dump(mode="json")
        assert {name: resolved[name] for name in cell.settings} == cell.settings
        assert set(load_preset("quickstart")["train_teacher"]) <= set(cell.settings)


def test_a_cell_that_was_cut_off_goes_on(tmp_path: Path, trainer: dict[str, Any], capsys):
    cells, output = depth_cells(), tmp_path / "results" / "study.json"
    cut_off = cells[1].key
    trainer["behaviour"] = lambda cell: "is cut off" if cell.key == cut_off else "leaves a history"
    first = Runner(tmp_path, output, jobs=2)
    first.run(cells)
    assert [cell.key for cell in first.failed] == [cut_off]
    assert set(CellBook(output).cells) == {cells[0].key, cells[2].key}
    state = depth_study.describe_state(cells[1], tmp_path, CellBook(output).cells)
    assert state == "missing, checkpoint at step 500"
    trainer["calls"].clear()
    trainer["behaviour"] = lambda cell: "leaves a checkpoint"
    second = Runner(tmp_path, output, jobs=1)
    second.run(cells)
    assert trainer["calls"] == [(cut_off, True)]
    record = CellBook(output).cells[cut_off]
    assert record["curve"]["env_steps"] == [500, 1000]
    assert record["curve"]["info_nce"] == [None, None]
    assert (record["parameters"], record["wall_clock_s"], record["seed"]) == (100, 100.0, 0)
    assert "success 0.500 [0.400, 0.600] over 128 episodes" in capsys.readouterr().out
    assert depth_study.describe_state(cells[1], tmp_path, CellBook(output).cells).startswith("done: success")


def test_a_trained_cell_that_was_not_recorded_is_not_trained_again(tmp_path: Path, trainer: dict[str, Any]):
    cells, output = depth_cells()[:1], tmp_path / "study.json"
    Runner(tmp_path, output, jobs=1).run(cells)
    output.unlink()
    assert depth_study.describe_state(cells[0], tmp_path, {}).startswith("trained")
    Runner(tmp_path, output, jobs=1).run(cells)
    assert len(trainer["calls"]) == 1
    assert set(CellBook(output).cells) == {cells[0].key}


def test_a_cell_that_failed_does_not_stop_the_others(tmp_path: Path, trainer: dict[str, Any], capsys):
    cells = depth_cells()
    trainer["behaviour"] = lambda cell: "fails" if cell is cells[0] else "leaves a checkpoint"
    runner = Runner(tmp_path, tmp_path / "study.json", jobs=1)
    runner.run(cells)
    assert runner.failed == [cells[0]]
    assert set(CellBook(tmp_path / "study.json").cells) == {cell.key for cell in cells[1:]}
    assert f"{cells[0].key}: ended with 1: Error: no." in capsys.readouterr().out


def test_a_stop_reaches_the_trainer_and_starts_no_other_cell(tmp_path: Path, trainer: dict[str, Any]):
    cells = depth_cells()
    trainer["behaviour"] = lambda cell: "waits"
    runner = Runner(tmp_path, tmp_path / "study.json", jobs=1)

    def stop_when_started() -> None:
        while not (tmp_path / cells[0].folder / "started").exists():
            time.sleep(0.02)
        runner.stop(signal.SIGTERM, None)

    thread = threading.Thread(target=stop_when_started, daemon=True)
    thread.start()
    runner.run(cells)
    thread.join()
    assert runner.stopped and not runner.failed
    assert len(trainer["calls"]) == 1


def test_a_cell_that_runs_elsewhere_is_left_alone(tmp_path: Path, trainer: dict[str, Any], capsys):
    cells = depth_cells()
    lock = depth_study.try_lock(tmp_path / cells[0].folder)
    assert lock is not None
    assert depth_study.describe_state(cells[0], tmp_path, {}) == "running"
    Runner(tmp_path, tmp_path / "study.json", jobs=1).run(cells)
    assert [key for key, _ in trainer["calls"]] == [cell.key for cell in cells[1:]]
    assert f"running elsewhere: {cells[0].key}" in capsys.readouterr().out
    lock.close()
    assert depth_study.describe_state(cells[0], tmp_path, {}) == "missing"


def test_a_cell_recorded_with_other_settings_counts_as_missing():
    cell = depth_cells()[0]
    record = make_record([0.5], 1.0, cell) | {"settings": dict(cell.settings)}
    assert cell.record({cell.key: record}) == record
    other = record | {"settings": cell.settings | {"updates_per_unroll": 1}}
    assert cell.record({cell.key: other}) is None


def test_the_interval_over_seeds_is_students_t():
    # mean 0.5, standard deviation 0.1, half width 4.303 · 0.1 / √3
    assert depth_study.seed_interval([0.4, 0.5, 0.6]) == pytest.approx((0.25156, 0.74844), abs=1e-5)
    # 12.706 · 0.1414 / √2 = 1.27 reaches past both ends of a proportion
    assert depth_study.seed_interval([0.5, 0.7]) == (0.0, 1.0)
    assert depth_study.seed_interval([0.5]) is None


def test_the_end_is_the_mean_of_the_last_five_evaluations():
    records = [make_record([0.0, 0.3, 0.4, 0.5, 0.6, 0.7], 60.0), make_record([0.1] + [0.7] * 5, 60.0)]
    result = depth_study.last_evaluations(records)
    assert result.seeds == pytest.approx([0.5, 0.7])
    assert result.mean == pytest.approx(0.6)
    # Wilson's interval of 600 successes in 2 seeds · 5 evaluations · 100 episodes
    assert result.over_episodes == pytest.approx((0.56931, 0.62993), abs=1e-5)
    final = depth_study.final_evaluation(records)
    assert final.over_episodes == pytest.approx((0.65336, 0.74283), abs=1e-5)  # 280 of 400


def test_success_lies_on_the_line_between_two_evaluations_and_nowhere_else():
    record = make_record([0.2, 0.4, 0.8], end_s=300.0)
    at = depth_study.success_at
    assert at(record, "elapsed_s", 150.0) == pytest.approx(0.3)
    assert at(record, "env_steps", 2250) == pytest.approx(0.5)
    assert at(record, "elapsed_s", 300.0) == 0.8
    assert at(record, "elapsed_s", 99.0) is None
    assert at(record, "elapsed_s", 301.0) is None


@pytest.fixture
def two_depths() -> ArmResults:
    """Depth 4 ends after 100 s and 120 s; depth 64 after 400 s, and its second seed is missing."""
    shallow = [make_record([0.2, 0.4], 100.0), make_record([0.3, 0.6], 120.0)]
    deep = [make_record([0.0, 0.1, 0.5, 0.9], 400.0)]
    rows = [
        ConfigurationResults(Configuration(4, 128, 256), shallow, []),
        ConfigurationResults(Configuration(64, 128, 256), deep, [1]),
    ]
    return ArmResults("depth", "depth", "point_big_maze", 3_000_000, rows)


def test_depths_are_compared_when_the_fastest_cell_ends(two_depths: ArmResults):
    assert depth_study.equal_times_s(two_depths) == [50.0, 100.0, 200.0, 400.0]
    shallow, deep = (row.records for row in two_depths.rows)
    at_end = depth_study.mean_success_at(shallow, "elapsed_s", 100.0)
    # 0.4, and two thirds of the way from 0.3 at 60 s to 0.6 at 120 s
    assert at_end is not None and at_end.mean == pytest.approx((0.4 + 0.5) / 2)
    assert depth_study.mean_success_at(shallow, "elapsed_s", 110.0) is None  # one seed had ended
    later = depth_study.mean_success_at(deep, "elapsed_s", 250.0)
    assert later is not None and later.mean == pytest.approx(0.3)


def test_an_arm_whose_paces_are_known_is_on_one_clock():
    cells = depth_cells()
    recorded = {cell.key: make_record([0.1, 0.2], 60.0) | {"settings": dict(cell.settings)} for cell in cells}
    paces = {cell.pace_key: {"seconds_per_step": 0.5} for cell in cells}
    (arm,) = depth_study.gather(cells, recorded, paces)
    for row in arm.rows:
        assert [record["curve"]["elapsed_s"] for record in row.records] == [[500.0, 1000.0]]
        assert row.records[0]["wall_clock_s"] == 1000.0
    assert "alone on one CPU thread" in depth_study.markdown_tables([arm])
    # Clocks are not mixed: with a pace missing, the arm's times are those that its cells took.
    paces.popitem()
    (arm,) = depth_study.gather(cells, recorded, paces)
    assert {record["wall_clock_s"] for row in arm.rows for record in row.records} == {60.0}
    assert "Wall-clock on a processor" in depth_study.markdown_tables([arm])


def test_the_table_lists_results_and_missing_cells(two_depths: ArmResults):
    text = depth_study.markdown_tables([two_depths])
    assert "### depth: point_big_maze, 3,000,000 environment steps" in text
    assert "| D64 W128 B256 | 12,345 | 480 | 1 | 0.375 |" in text
    assert "| 2.62 | 6.7 |" in text  # InfoNCE and minutes of depth 64
    assert "| 0.8 min | **1.7 min** | 3.3 min | 6.7 min |" in text
    assert "| D64 W128 B256 | – | 0.00 | 0.10 | – | 0.00 | 0.10 | 0.90 |" in text
    assert "Missing, with their seeds: D64 W128 B256 (1)." in text


def test_the_table_of_an_empty_study_lists_every_cell():
    cells = plan(list(depth_study.ARMS), "point_big_maze", [0, 1], scale=1.0)
    text = depth_study.markdown_tables(depth_study.gather(cells, {}))
    assert text.count("(0, 1)") == len({(cell.arm, cell.configuration) for cell in cells})


def test_the_figure_is_drawn_for_arms_that_have_cells(tmp_path: Path):
    cells = plan(["depth", "width", "batch"], "point_big_maze", [0, 1], scale=1.0)
    kept = [cell for cell in cells if cell.arm != "batch" and (cell.seed, cell.arm) != (1, "width")]
    recorded = {}
    for index, cell in enumerate(kept):
        record = make_record([0.1, 0.4, 0.6], 60.0 * (index + 1))
        recorded[cell.key] = record | {"settings": dict(cell.settings)}
    path = tmp_path / "study.png"
    depth_study.draw_figure(path, depth_study.gather(cells, recorded))
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="nothing is recorded"):
        depth_study.draw_figure(path, depth_study.gather(cells, {}))


def test_a_trial_stays_out_of_the_published_results(tmp_path: Path, capsys):
    root = f"--workspace-root={tmp_path}"
    options = depth_study.parse_options(["--scale=0.01", root])
    assert options.output == tmp_path / "scale-0.01" / "depth_study.json"
    assert options.picture == tmp_path / "scale-0.01" / "depth_study.png"
    assert depth_study.main(["--dry-run", "--scale=0.01", root, "--arms=depth", "--seeds=7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"point_big_maze depth D{depth} W128 B256 seed 7: missing" for depth in (4, 16, 64)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_real_cell_is_killed_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tiny = {"num_worlds": 4, "final_episodes": 8, "evaluation_episodes": 8, "env_steps": 8_000}
    arm = depth_study.Arm(
        "depth", (Configuration(4, 8, 16),), {**tiny, "updates_per_unroll": 1, "evaluate_every": 2}
    )
    monkeypatch.setitem(depth_study.ARMS, "depth", arm)
    cell = depth_cells()[0]
    workspace = tmp_path / cell.folder
    command = depth_study.train_command(cell, workspace, None)
    trainer = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while resumable_teacher(workspace) is None and trainer.poll() is None:
        time.sleep(0.02)
    trainer.kill()
    assert trainer.wait() == -signal.SIGKILL
    Runner(tmp_path, tmp_path / "study.json", jobs=1).run([cell])
    assert "Resuming teacher-" in (workspace / "log.txt").read_text()
    record = CellBook(tmp_path / "study.json").cells[cell.key]
    assert record["env_steps"] == 8_000
    assert record["curve"]["env_steps"] == list(range(800, 8_001, 800))
    assert record["final"]["episodes"] == 8 and record["parameters"] > 1000


# -- the clock ------------------------------------------------------------------------------------


def test_the_time_before_the_first_evaluation_does_not_count():
    history = [{"env_steps": steps, "elapsed_s": s} for steps, s in ((100, 90.0), (200, 100.0), (400, 140.0))]
    assert depth_study.seconds_a_step(history) == pytest.approx([0.1, 0.2])


def test_a_shortened_cell_is_the_cell_but_for_its_length():
    for cell in plan(list(depth_study.ARMS), "point_big_maze", [0], 1.0):
        short = depth_study.shortened(cell)
        assert short.pace_key == cell.pace_key
        changed = {name for name, value in cell.settings.items() if short.settings[name] != value}
        assert changed == {"env_steps", "final_episodes"}
        unroll = cell.settings["num_worlds"] * cell.settings["unroll_steps"]
        assert short.settings["env_steps"] == 3 * cell.settings["evaluate_every"] * unroll


@pytest.mark.slow
def test_paces_of_real_trainings_are_written_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tiny = {"num_worlds": 4, "unroll_steps": 100, "evaluation_episodes": 4, "env_steps": 10**6}
    settings = {**tiny, "updates_per_unroll": 1, "evaluate_every": 2}
    monkeypatch.setitem(
        depth_study.ARMS, "depth", depth_study.Arm("depth", (Configuration(4, 8, 16),), settings)
    )
    output = tmp_path / "paces.json"
    output.write_text(json.dumps({"paces": {"another": {"seconds_per_step": 1.0}}}))
    depth_study.main(["--pace", "--arms=depth", "--task=point_u_maze", "--rounds=2", f"--output={output}"])
    paces = depth_study.pace_book(output).cells
    assert set(paces) == {"another", "point_u_maze depth D4 W8 B16"}
    pace = paces["point_u_maze depth D4 W8 B16"]
    assert len(pace["intervals"]) == 4
    assert 0 < min(pace["intervals"]) <= pace["seconds_per_step"] <= max(pace["intervals"])


def test_a_training_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    arm = depth_study.Arm("depth", (Configuration(6, 8, 16),), depth_study.ARMS["depth"].settings)
    monkeypatch.setitem(depth_study.ARMS, "depth", arm)
    with pytest.raises(SystemExit, match=r"point_u_maze depth D6 W8 B16: .*multiple of 4"):
        depth_study.main(
            ["--pace", "--arms=depth", "--task=point_u_maze", f"--output={tmp_path / 'paces.json'}"]
        )


# -- sampled actions ------------------------------------------------------------------------------


def test_actions_are_those_of_the_squashed_gaussian():
    torch.manual_seed(0)
    actor = GoalActor(4, 2, 2, NetworkShape(4, 8))
    rows = 4000
    observation, goal = np.zeros((rows, 4), np.float32), np.ones((rows, 2), np.float32)
    actions = depth_study.sampled_policy(actor, torch.Generator().manual_seed(1))(observation, goal)
    gaussian = actor(torch.from_numpy(observation[:1]), torch.from_numpy(goal[:1]))
    raw = np.arctanh(actions.astype(np.float64).clip(-1 + 1e-7, 1 - 1e-7))
    spread = gaussian.log_std.exp().detach().numpy()[0]
    assert np.abs(raw.mean(0) - gaussian.mean.detach().numpy()[0]).max() < 5 * spread.max() / rows**0.5
    assert raw.std(0) == pytest.approx(spread, rel=0.1)


def test_with_the_mean_the_recorded_success_comes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    arm = depth_study.Arm("depth", (Configuration(4, 8, 16),), {"env_steps": 1, "evaluate_every": 1})
    monkeypatch.setattr(depth_study, "ARMS", {"depth": arm, "long": arm})
    first, second = plan(["depth", "long"], "point_u_maze", [0], 1.0)
    teacher = train_teacher.run(TINY_TEACHER, make_context(tmp_path / first.folder))
    monkeypatch.setattr(depth_study, "sampled_policy", lambda actor, _: torch_policy(actor))
    output = tmp_path / "sampled.json"
    options = [f"--workspace-root={tmp_path}", f"--output={output}", "--task=point_u_maze", "--seeds=0"]
    depth_study.main(["--sampled", "--arms", "depth", "long", *options])
    cells = CellBook(output).cells
    assert set(cells) == {first.key} and second.key != first.key
    assert cells[first.key]["sampled"] == cells[first.key]["mean"]
    assert cells[first.key]["mean"]["success"] == teacher.manifest.results["success"]
