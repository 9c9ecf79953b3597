"""`pipeline distill --resume` on the command line: a killed process goes on, and what cannot is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from tests.stages.distill.distill_runs import change, make_dataset
from tests.stages.frontier import frontier_runs
from tests.stages.stage_process import start, wait_for_checkpoint
from tests.stages.tiny_runs import make_context
from thousandfold.ground.errors import DamagedFileError, StoppedByUser, UserError
from thousandfold.pipeline import cli, session
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.checkpoint import CheckpointFolder
from thousandfold.pipeline.runtime import StageContext
from thousandfold.pipeline.settings import dump_settings
from thousandfold.pipeline.tracking import NullTracker
from thousandfold.stages.distill import distill
from thousandfold.stages.distill.distill import DistillSettings
from thousandfold.stages.distill.student_training import StudentTraining

SETTINGS = change(
    updates=20,
    evaluate_every=10,
    checkpoint_every=5,
    dagger_rounds=1,
    dagger_episodes=2,
    dagger_updates=10,
    evaluation_episodes=4,
    final_episodes=4,
    max_final_episodes=4,
)
# Long enough that a signal meets them on their way.
PROCESS_SETTINGS = SETTINGS.model_copy(update={"updates": 600, "evaluate_every": 300, "checkpoint_every": 10})


def as_options(settings: DistillSettings) -> list[str]:
    """Return the settings as options of the command line."""
    values = settings.model_dump(exclude_none=True)
    return ["--preset", "smoke", *(f"--set={name}={value}" for name, value in values.items())]


def invoke(workspace: Path, *arguments: str) -> Result:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(session, "open_tracker", lambda *_: NullTracker())
        return CliRunner().invoke(cli.cli, ["--workspace", str(workspace), "distill", *arguments])


# -- a real process ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_kill_9_and_sigterm_of_a_real_process_change_nothing(tmp_path: Path):
    workspace = tmp_path / "workspace"
    parent = frontier_runs.make_teacher(workspace)
    data = frontier_runs.make_dataset(workspace, parent)
    process = start(workspace, "distill", *as_options(PROCESS_SETTINGS))
    killed_at = wait_for_checkpoint(process, workspace, "student", 0)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (killed,) = Workspace(workspace).artifacts("student")
    assert killed.manifest.status == "running"

    process = start(workspace, "distill", "--resume")
    wait_for_checkpoint(process, workspace, "student", killed_at)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    line = err.splitlines()[-1]
    assert line.startswith("Stopped at ") and line.endswith(f"distill --resume {killed.name}")
    assert "Traceback" not in err and not line.startswith("Error")

    settings, student, *parents = distill.find_resumable(Workspace(workspace), None)
    assert student.name == killed.name and settings == PROCESS_SETTINGS
    assert killed_at < CheckpointFolder(student.file("checkpoint")).progress["updates"] < 610
    resumed = distill.run(settings, make_context(workspace), *parents, resumed=student)
    whole = distill.run(settings, make_context(workspace), parent, data)
    assert resumed.manifest.files == whole.manifest.files and resumed.manifest.hash == whole.manifest.hash


# -- refusals ---------------------------------------------------------------------------------------


def stop_after(updates: int, call: Callable[[], Artifact], context: StageContext) -> None:
    """Let the user stop a distillation in this update."""
    update = StudentTraining._update

    def stopping(training: StudentTraining, *arguments: Any) -> Any:
        context.stop.requested = training.updates == updates - 1
        return update(training, *arguments)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(StudentTraining, "_update", stopping)
        with pytest.raises(StoppedByUser, match=f"Stopped at {updates} updates"):
            call()
    context.stop.requested = False


@pytest.fixture(scope="module")
def stopped(context: StageContext, teacher: Artifact, dataset: Artifact) -> Path:
    """Return a workspace with a student that was stopped in its round, after 23 updates."""
    stop_after(23, lambda: distill.run(SETTINGS, context, teacher, dataset), context)
    return context.workspace.root


@pytest.fixture
def broken(stopped: Path, tmp_path: Path) -> Artifact:
    """Return a copy of the stopped student, to be damaged."""
    shutil.copytree(stopped, tmp_path / "copy")
    return Workspace(tmp_path / "copy").artifacts("student")[0]


def refused(student: Artifact, *arguments: str) -> str:
    """Resume on the command line; return the one line that refuses it."""
    result = invoke(student.path.parents[1], *(arguments or ("--resume",)))
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ") and "(unexpected;" not in line
    return line


def resume(student: Artifact) -> Artifact:
    """Resume in this process, as the command does."""
    settings, found, *parents = distill.find_resumable(Workspace(student.path.parents[1]), student.name)
    return distill.run(settings, make_context(student.path.parents[1]), *parents, resumed=found)


def test_the_newest_unfinished_student_is_gone_on_with(broken: Artifact):
    result = invoke(
        broken.path.parents[1], "--resume", "--set=final_episodes=3", "--set=max_final_episodes=3", "--json"
    )
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert made["artifact"] == broken.name and made["results"]["episodes"] == 3
    assert f"Resuming {broken.name} at 23 updates." in result.stderr
    assert "reproduces its recorded success" not in result.stderr  # that was seen to before
    message = refused(broken, "--resume", broken.name)
    assert message.startswith(f"Error: Student {broken.name} is completed after ")
    assert message.endswith("train it further, as a new student, with --set updates=MORE.")
    assert "No unfinished student in" in refused(broken)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--student-depth", "8"), "was started with student_depth 4, not 8"),
        (("--set", "updates=30"), "was started with updates 20, not 30"),
        (("--set", "target_retention=0.5"), "was started with target_retention None, not 0.5"),
        (("--preset", "smoke"), "leave --preset out"),
    ],
)
def test_what_a_student_depends_on_cannot_change(broken: Artifact, arguments: tuple[str, ...], said: str):
    assert said in refused(broken, "--resume", broken.name, *arguments)
    assert resume(broken).manifest.status == "completed"


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [truncate, Path.unlink])
def test_a_damaged_checkpoint_is_refused_by_name(broken: Artifact, damage: Callable[[Path], None]):
    path = broken.file("checkpoint/state-00000023.safetensors")
    damage(path)
    assert path.name in refused(broken)


def test_a_damaged_checkpoint_manifest_is_refused_by_name(broken: Artifact):
    path = broken.file("checkpoint/manifest.json")
    truncate(path)
    assert refused(broken).startswith(
        f"Error: {path} is truncated or no checkpoint manifest: restore it, or "
    )


@pytest.mark.parametrize("damage", [truncate, Path.unlink])
def test_a_damaged_round_that_was_trained_on_is_refused_by_name(
    broken: Artifact, damage: Callable[[Path], None]
):
    (rows,) = broken.file("rounds/round_01").rglob("shard_*/data/main_data.hdf5")
    damage(rows)
    line = refused(broken)
    assert str(broken.file("rounds/round_01")) in line
    assert line.endswith(f"Remove {broken.path} and distil another.")


def test_a_missing_round_that_was_trained_on_is_refused_by_name(broken: Artifact):
    shutil.rmtree(broken.file("rounds"))
    assert str(broken.file("rounds/round_01")) in refused(broken)


@pytest.mark.parametrize("values", [{"seed": 9}, {"student_width": 16}, {"validation_fraction": 0.2}])
def test_a_checkpoint_of_other_settings_is_refused(broken: Artifact, values: dict[str, Any]):
    broken.update(settings=broken.manifest.settings | values)
    (name,) = values
    line = refused(broken)
    assert "other settings" in line and f"{name} {dump_settings(SETTINGS)[name]}" in line


def test_settings_of_another_version_are_refused(broken: Artifact):
    broken.update(settings=broken.manifest.settings | {"gone": 1})
    line = refused(broken)
    assert str(broken.file("manifest.json")) in line and "setting gone" in line


def edited(progress: dict[str, Any], tensors: dict[str, torch.Tensor], what: str) -> tuple[Any, Any]:
    if what == "rows":
        return progress | {"dataset_rows": [10, 10]}, tensors
    if what == "counter":
        return progress | {"unknown": 1}, tensors
    if what == "kept":
        return progress | {"kept": 99}, tensors
    return progress, {name: value for name, value in tensors.items() if what not in name}


@pytest.mark.parametrize("what", ["rows", "counter", "kept", "student.", "generator"])
def test_a_checkpoint_whose_content_does_not_fit_is_refused(broken: Artifact, what: str):
    """As one of an earlier version may be, though all its hashes are right."""
    folder = CheckpointFolder(broken.file("checkpoint"))
    checkpoint = folder.load()
    progress, tensors = edited(checkpoint.progress, checkpoint.tensors, what)
    shutil.rmtree(folder.path)
    folder.save(23, tensors, progress)
    assert f"{folder.path} does not fit this run's settings" in refused(broken)


@pytest.mark.parametrize("role", ["teacher", "dataset"])
def test_other_parents_are_refused(broken: Artifact, role: str):
    context = make_context(broken.path.parents[1])
    settings, student, teacher, dataset = distill.find_resumable(context.workspace, None)
    parents = student.manifest.parents
    changed = type(parents[role])(role, parents[role].name, "0" * 64)
    student.update(parents=parents | {role: changed})
    with pytest.raises(DamagedFileError, match=f"is not the {role} that {student.name} was begun with"):
        distill.run(settings, context, teacher, dataset, student)


def test_parents_that_lie_elsewhere_are_named_again(broken: Artifact, tmp_path: Path):
    runs, elsewhere = broken.path.parent, tmp_path / "elsewhere"
    elsewhere.mkdir()
    parents = {role: parent.name for role, parent in broken.manifest.parents.items()}
    for name in parents.values():
        (runs / name).rename(elsewhere / name)
    line = refused(broken)
    assert f"{broken.name} cannot continue without its teacher {parents['teacher']}" in line
    assert line.endswith("put it back, or give its folder with --teacher.")
    line = refused(broken, "--resume", f"--teacher={elsewhere / parents['teacher']}")
    assert parents["dataset"] in line and line.endswith("with --dataset.")
    given = [f"--{role}={elsewhere / name}" for role, name in parents.items()]
    assert "No teacher 'gone'" in refused(broken, "--resume", "--teacher=gone", given[1])
    assert invoke(runs.parent, "--resume", *given).exit_code == 0
    assert Artifact.load(broken.path).manifest.status == "completed"


def test_another_dataset_than_its_own_is_refused(broken: Artifact):
    context = make_context(broken.path.parents[1])
    other = make_dataset(context, context.workspace.newest("teacher"), seed=4)
    line = refused(broken, "--resume", f"--dataset={other.name}")
    assert line == f"Error: {other.path} is not the dataset that {broken.name} was begun with."


def test_a_student_without_parents_is_refused(broken: Artifact):
    broken.update(parents={"teacher": broken.manifest.parents["teacher"]})
    assert "it names no dataset" in refused(broken)


def test_a_dataset_that_lost_a_shard_meanwhile_is_refused(broken: Artifact):
    """With the shards that are left a student would go on from other rows than it began with."""
    context, begun = make_context(broken.path.parents[1]), list[Artifact]()
    teacher = context.workspace.newest("teacher")
    data = make_dataset(context, teacher, seed=3)
    settings = DistillSettings(**(SETTINGS.model_dump() | {"skip_damaged_shards": True}))
    stop_after(1, lambda: distill.run(settings, context, teacher, data, on_start=begun.append), context)
    next(data.path.rglob("shard_00000*/data/main_data.hdf5")).unlink()
    with pytest.raises(DamagedFileError, match=r"does not fit .*the dataset had \[2700, 300\] rows"):
        resume(begun[0])


def test_a_student_that_is_being_distilled_is_not_resumed_by_another(broken: Artifact):
    with (
        CheckpointFolder(broken.file("checkpoint")).lock(),
        pytest.raises(UserError, match="in use by another process"),
    ):
        resume(broken)
    assert Artifact.load(broken.path).manifest.status == "running"


def test_a_student_without_a_checkpoint_is_no_candidate(broken: Artifact):
    broken.file("checkpoint/manifest.json").unlink()
    assert f"The newest unfinished student, {broken.name}, has saved nothing" in refused(broken)
    line = refused(broken, "--resume", broken.name)
    assert line == f"Error: {broken.name} has saved nothing to continue from: start it again."


def test_refusing_to_resume_loses_nothing(broken: Artifact):
    path = broken.file("checkpoint/state-00000023.safetensors")
    data = path.read_bytes()
    truncate(path)
    refused(broken)
    path.write_bytes(data)
    assert resume(broken).manifest.status == "completed"
