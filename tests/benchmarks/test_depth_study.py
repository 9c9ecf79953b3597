"""The depth study runs each cell once, goes on with those cut off, and computes what it claims."""

import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks import depth_study, depth_study_figures, depth_study_results
from benchmarks.depth_study import Runner, merge_record, plan, read_cells
from benchmarks.depth_study_results import ArmResults, Cell, Configuration, ConfigurationResults
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.settings import load_preset, resolve_settings
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


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth_study, "POLL_S", 0.02)


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace the trainer; `calls` are its cells, and `behaviour` says what it does."""
    control: dict[str, Any] = {"calls": [], "behaviour": lambda cell: "leaves a checkpoint"}

    def command(cell: Cell, workspace: Path, resumed: Artifact | None) -> list[str]:
        control["calls"].append((cell.key, resumed is not None))
        settings = json.dumps(dict(cell.settings))
        name = resumed.name if resumed else ""
        return [
            sys.executable,
            "-c",
            FAKE_TRAINER,
            str(workspace),
            name,
            settings,
            control["behaviour"](cell),
        ]

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
    assert set(read_cells(output)) == {cells[0].key, cells[2].key}
    state = depth_study.describe_state(cells[1], tmp_path, read_cells(output))
    assert state == "missing, checkpoint at step 500"
    trainer["calls"].clear()
    trainer["behaviour"] = lambda cell: "leaves a checkpoint"
    second = Runner(tmp_path, output, jobs=1)
    second.run(cells)
    assert trainer["calls"] == [(cut_off, True)]
    record = read_cells(output)[cut_off]
    assert record["curve"]["env_steps"] == [500, 1000]
    assert record["curve"]["info_nce"] == [None, None]
    assert (record["parameters"], record["wall_clock_s"], record["seed"]) == (100, 100.0, 0)
    assert "success 0.500 [0.400, 0.600] over 128 episodes" in capsys.readouterr().out
    assert depth_study.describe_state(cells[1], tmp_path, read_cells(output)).startswith("done: success")


def test_a_trained_cell_that_was_not_recorded_is_not_trained_again(tmp_path: Path, trainer: dict[str, Any]):
    cells, output = depth_cells()[:1], tmp_path / "study.json"
    Runner(tmp_path, output, jobs=1).run(cells)
    output.unlink()
    assert depth_study.describe_state(cells[0], tmp_path, {}).startswith("trained")
    Runner(tmp_path, output, jobs=1).run(cells)
    assert len(trainer["calls"]) == 1
    assert set(read_cells(output)) == {cells[0].key}


def test_a_cell_that_failed_does_not_stop_the_others(tmp_path: Path, trainer: dict[str, Any], capsys):
    cells = depth_cells()
    trainer["behaviour"] = lambda cell: "fails" if cell is cells[0] else "leaves a checkpoint"
    runner = Runner(tmp_path, tmp_path / "study.json", jobs=1)
    runner.run(cells)
    assert runner.failed == [cells[0]]
    assert set(read_cells(tmp_path / "study.json")) == {cell.key for cell in cells[1:]}
    assert f"{cells[0].key}: ended with 1: Error: no." in capsys.readouterr().out


def test_a_stop_reaches_the_trainer_and_starts_no_other_cell(tmp_path: Path, trainer: dict[str, Any]):
    cells = depth_cells()
    trainer["behaviour"] = lambda cell: "waits"
    runner = Runner(tmp_path, tmp_path / "study.json", jobs=1)

    def stop_when_started() -> None:
        while not (tmp_path / cells[0].folder / "started").exists():
            time.sleep(0.02)
        runner.forward_signal(signal.SIGTERM, None)

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


def test_records_merged_at_once_are_all_kept(tmp_path: Path):
    output = tmp_path / "study.json"

    def merge(worker: int) -> None:
        for index in range(5):
            merge_record(output, f"cell {worker} {index}", {"worker": worker})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(merge, range(6)))
    assert len(read_cells(output)) == 30


def test_a_cell_recorded_with_other_settings_counts_as_missing():
    cell = depth_cells()[0]
    record = make_record([0.5], 1.0, cell) | {"settings": dict(cell.settings)}
    assert cell.record({cell.key: record}) == record
    other = record | {"settings": cell.settings | {"updates_per_unroll": 1}}
    assert cell.record({cell.key: other}) is None


def test_the_interval_over_seeds_is_students_t():
    # mean 0.5, standard deviation 0.1, half width 4.303 · 0.1 / √3
    assert depth_study_results.seed_interval([0.4, 0.5, 0.6]) == pytest.approx((0.25156, 0.74844), abs=1e-5)
    # 12.706 · 0.1414 / √2 = 1.27 reaches past both ends of a proportion
    assert depth_study_results.seed_interval([0.5, 0.7]) == (0.0, 1.0)
    assert depth_study_results.seed_interval([0.5]) is None


def test_the_end_is_the_mean_of_the_last_five_evaluations():
    records = [make_record([0.0, 0.3, 0.4, 0.5, 0.6, 0.7], 60.0), make_record([0.1] + [0.7] * 5, 60.0)]
    result = depth_study_results.last_evaluations(records)
    assert result.seeds == pytest.approx([0.5, 0.7])
    assert result.mean == pytest.approx(0.6)
    # Wilson's interval of 600 successes in 2 seeds · 5 evaluations · 100 episodes
    assert result.over_episodes == pytest.approx((0.56931, 0.62993), abs=1e-5)
    final = depth_study_results.final_evaluation(records)
    assert final.over_episodes == pytest.approx((0.65336, 0.74283), abs=1e-5)  # 280 of 400


def test_success_lies_on_the_line_between_two_evaluations_and_nowhere_else():
    record = make_record([0.2, 0.4, 0.8], end_s=300.0)
    at = depth_study_results.success_at
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
    assert depth_study_results.equal_times_s(two_depths) == [50.0, 100.0, 200.0, 400.0]
    shallow, deep = (row.records for row in two_depths.rows)
    at_end = depth_study_results.mean_success_at(shallow, "elapsed_s", 100.0)
    # 0.4, and two thirds of the way from 0.3 at 60 s to 0.6 at 120 s
    assert at_end is not None and at_end.mean == pytest.approx((0.4 + 0.5) / 2)
    assert depth_study_results.mean_success_at(shallow, "elapsed_s", 110.0) is None  # one seed had ended
    later = depth_study_results.mean_success_at(deep, "elapsed_s", 250.0)
    assert later is not None and later.mean == pytest.approx(0.3)


def test_an_arm_whose_paces_are_known_is_on_one_clock():
    cells = depth_cells()
    recorded = {cell.key: make_record([0.1, 0.2], 60.0) | {"settings": dict(cell.settings)} for cell in cells}
    paces = {depth_study_results.pace_key(cell): {"seconds_per_step": 0.5} for cell in cells}
    (arm,) = depth_study_results.gather(cells, recorded, paces)
    for row in arm.rows:
        assert [record["curve"]["elapsed_s"] for record in row.records] == [[500.0, 1000.0]]
        assert row.records[0]["wall_clock_s"] == 1000.0
    assert "alone on one CPU thread" in depth_study_figures.markdown_tables([arm])
    # Clocks are not mixed: with a pace missing, the arm's times are those that its cells took.
    paces.popitem()
    (arm,) = depth_study_results.gather(cells, recorded, paces)
    assert {record["wall_clock_s"] for row in arm.rows for record in row.records} == {60.0}
    assert "Wall-clock on a processor" in depth_study_figures.markdown_tables([arm])


def test_the_table_lists_results_and_missing_cells(two_depths: ArmResults):
    text = depth_study_figures.markdown_tables([two_depths])
    assert "### depth: point_big_maze, 3,000,000 environment steps" in text
    assert "| D64 W128 B256 | 12,345 | 480 | 1 | 0.375 |" in text
    assert "| 2.62 | 6.7 |" in text  # InfoNCE and minutes of depth 64
    assert "| 0.8 min | **1.7 min** | 3.3 min | 6.7 min |" in text
    assert "| D64 W128 B256 | – | 0.00 | 0.10 | – | 0.00 | 0.10 | 0.90 |" in text
    assert "Missing, with their seeds: D64 W128 B256 (1)." in text


def test_the_table_of_an_empty_study_lists_every_cell():
    cells = plan(list(depth_study.ARMS), "point_big_maze", [0, 1], scale=1.0)
    text = depth_study_figures.markdown_tables(depth_study_results.gather(cells, {}))
    assert text.count("(0, 1)") == len({(cell.arm, cell.configuration) for cell in cells})


def test_the_figure_is_drawn_for_arms_that_have_cells(tmp_path: Path):
    cells = plan(["depth", "width", "batch"], "point_big_maze", [0, 1], scale=1.0)
    kept = [cell for cell in cells if cell.arm != "batch" and (cell.seed, cell.arm) != (1, "width")]
    recorded = {}
    for index, cell in enumerate(kept):
        record = make_record([0.1, 0.4, 0.6], 60.0 * (index + 1))
        recorded[cell.key] = record | {"settings": dict(cell.settings)}
    path = tmp_path / "study.png"
    depth_study_figures.draw_figure(path, depth_study_results.gather(cells, recorded))
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="nothing is recorded"):
        depth_study_figures.draw_figure(path, depth_study_results.gather(cells, {}))


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
    trainer = subprocess.Popen(command, cwd=depth_study.ROOT, stderr=subprocess.DEVNULL)
    while depth_study.resumable_teacher(workspace) is None and trainer.poll() is None:
        time.sleep(0.02)
    trainer.kill()
    assert trainer.wait() == -signal.SIGKILL
    Runner(tmp_path, tmp_path / "study.json", jobs=1).run([cell])
    assert "Resuming teacher-" in (workspace / "log.txt").read_text()
    record = read_cells(tmp_path / "study.json")[cell.key]
    assert record["env_steps"] == 8_000
    assert record["curve"]["env_steps"] == list(range(800, 8_001, 800))
    assert record["final"]["episodes"] == 8 and record["parameters"] > 1000
