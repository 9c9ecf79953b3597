"""A completed teacher is trained on as another one, which says where it comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.stages.tiny_runs import TINY_TEACHER, make_context
from tests.stages.train_teacher.teacher_runs import Killed, assert_same_run, change, interrupt_after, invoke
from thousandfold.envs.registry import compile_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.ground.errors import DamagedFileError, SettingsError, StoppedByUser
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.resume import CONTINUED, checkpoint_of
from thousandfold.stages.report.chain import collect_chain
from thousandfold.stages.train_teacher import train_teacher, training
from thousandfold.stages.train_teacher.settings import TrainTeacherSettings

# A multiple of the unrolls between evaluations, so that the end of the first teacher is none of the second's.
SHORT = change(env_steps=4 * 30 * 6)


def contents(artifact: Artifact) -> dict[str, str]:
    files = [path for path in artifact.path.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def completed(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return train_teacher.run(SHORT, make_context(tmp_path_factory.mktemp("completed")))


def train_on(artifact: Artifact, *, interruption: tuple[str, int] | None = None) -> Artifact:
    """Train a teacher on to the end of `TINY_TEACHER`, completed or unfinished, as a new process does."""
    context = make_context(artifact.path.parents[1])
    settings, found = train_teacher.find_resumable(context.workspace, artifact.name)
    with pytest.MonkeyPatch.context() as monkeypatch:
        if interruption is not None:
            interrupt_after(monkeypatch, context, *interruption, [])
        return train_teacher.run(change(settings, env_steps=TINY_TEACHER.env_steps), context, found)


def test_it_is_what_one_training_of_that_length_gives(
    completed: Artifact, unbroken: Callable[[TrainTeacherSettings], Artifact]
):
    before = contents(completed)
    made = train_on(completed)
    assert_same_run(made, unbroken(TINY_TEACHER))
    assert contents(completed) == before and Artifact.load(completed.path).manifest.status == "completed"
    parent = made.manifest.parents[CONTINUED]
    assert (parent.kind, parent.name, parent.hash) == ("teacher", completed.name, completed.manifest.hash)
    made.verify()
    chain = collect_chain(Workspace(completed.path.parents[1]), made)
    assert [link.name for link in chain.links.values()] == [completed.name, made.name]
    assert chain.main["teacher"].name == made.name


@pytest.mark.parametrize("interruption", [("kill", 1), ("kill", 3), ("stop", 2)], ids=str)
def test_it_goes_on_after_an_interruption_itself(
    completed: Artifact,
    unbroken: Callable[[TrainTeacherSettings], Artifact],
    interruption: tuple[str, int],
):
    with pytest.raises((Killed, StoppedByUser)):
        train_on(completed, interruption=interruption)
    workspace = Workspace(completed.path.parents[1])
    begun = workspace.artifacts("teacher")[0]
    assert begun.name != completed.name and begun.manifest.status != "completed"
    assert train_teacher.find_resumable(workspace, None)[1].name == begun.name
    assert_same_run(train_on(begun), unbroken(TINY_TEACHER))


def test_the_command_asks_for_more_and_changes_nothing_else(completed: Artifact):
    workspace, made = completed.path.parents[1], len(list(completed.path.parent.iterdir()))
    for options, words in (
        ((), "is completed at 720 steps: train it further, as a new teacher, with --set env_steps=MORE"),
        (("--set", "env_steps=700"), "is completed at 720 steps"),
        (("--set", "env_steps=900", "--set", "width=16"), "was started with width 8, not 16"),
        (("--set", "env_steps=900", "--set", "training_distribution=moon"), "moon"),
    ):
        result = invoke(workspace, "train-teacher", "--resume", completed.name, *options)
        assert result.exit_code == 2 and words in result.stderr
    assert len(list(completed.path.parent.iterdir())) == made
    result = invoke(workspace, "train-teacher", "--resume", completed.name, "--set", "env_steps=840")
    assert result.exit_code == 0, result.output
    assert f"Training on from {completed.name} at 720 steps, as teacher-" in result.stdout


def test_it_may_start_and_aim_elsewhere_from_then_on(completed: Artifact):
    """Near goals first, then all: the best of other evaluations is forgotten."""
    context = make_context(completed.path.parents[1])
    settings, found = train_teacher.find_resumable(context.workspace, completed.name)
    elsewhere = change(
        settings,
        training_distribution="training_from_start",
        evaluation_distribution="training",
        env_steps=TINY_TEACHER.env_steps,
    )
    made = train_teacher.run(elsewhere, context, found)
    assert made.manifest.settings["training_distribution"] == "training_from_start"
    assert made.manifest.task_changes == {"evaluation": "training"}
    progress = checkpoint_of(made).progress
    assert progress["env_steps"] == TINY_TEACHER.env_steps
    first = checkpoint_of(completed).progress["unrolls"]
    assert progress["finalists"] and all(int(name.split("-")[1]) > first for name in progress["finalists"])
    rows = [
        {(row["env_steps"], row["success"]) for row in checkpoint_of(each).progress["history"]}
        for each in (completed, made)
    ]
    assert rows[0] < rows[1]


def test_episodes_begin_anew_where_they_start_and_aim_elsewhere(completed: Artifact):
    settings, _ = train_teacher.find_resumable(Workspace(completed.path.parents[1]), completed.name)
    checkpoint, rest = checkpoint_of(completed), {"env_steps": TINY_TEACHER.env_steps}
    elsewhere = change(settings, training_distribution="training_from_start", **rest)
    task = compile_task("point_u_maze")
    went_on, begun = (
        training.TeacherTraining(each, task, "cpu") for each in (change(settings, **rest), elsewhere)
    )
    for each in (went_on, begun):
        each.train_on(checkpoint)
    assert (went_on.simulator.episode_step > 0).all() and not begun.simulator.episode_step.any()
    # Every episode of this distribution starts where those of the evaluation do.
    starts = CpuSimulator(task, len(begun.simulator.achieved_goal), distribution="evaluation").achieved_goal
    assert np.abs(begun.simulator.achieved_goal - starts.mean(0)).max() < 0.5
    assert np.abs(went_on.simulator.achieved_goal - starts.mean(0)).max() > 0.5
    assert begun.buffer.rows_per_world < went_on.buffer.rows_per_world, "rows of broken episodes are dropped"


def test_it_may_learn_otherwise_from_then_on(completed: Artifact):
    settings, _ = train_teacher.find_resumable(Workspace(completed.path.parents[1]), completed.name)
    otherwise = {"batch_size": 16, "discount": 0.9, "actor_learning_rate": 0.01, "updates_per_unroll": 3}
    begun = training.TeacherTraining(change(settings, **otherwise), compile_task("point_u_maze"), "cpu")
    begun.train_on(checkpoint_of(completed))
    before = begun.progress.updates
    begun.collect()
    batches = list(begun.relabel())
    assert [len(batch.goal) for batch in batches] == [16] * 3
    begun.update(batches[0])
    assert begun.progress.updates == before + 1
    with pytest.raises(DamagedFileError, match="other settings"):
        wider = change(settings, width=16)
        training.TeacherTraining(wider, compile_task("point_u_maze"), "cpu").train_on(
            checkpoint_of(completed)
        )


def test_a_target_that_was_met_has_to_be_met_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    context = make_context(tmp_path)
    settings = change(target_success=0.5, target_evaluations=1)
    summary = {"success": 1.0, "time_at_goal": 9.0, "final_distance": 0.1}
    episodes = SimpleNamespace(summary=lambda: summary)
    monkeypatch.setattr(training, "run_episodes", lambda *_, **__: episodes)
    early = train_teacher.run(settings, context)
    assert early.manifest.results["env_steps"] < settings.env_steps
    later = train_teacher.run(settings, context, early)
    assert later.manifest.results["env_steps"] == early.manifest.results["env_steps"] + 4 * 30 * 3


def test_without_its_checkpoint_it_cannot(tmp_path: Path):
    artifact = Workspace(tmp_path).create("teacher", task="point_u_maze", settings={})
    artifact.complete({})
    with pytest.raises(SettingsError, match="is completed and has no checkpoint left to continue from"):
        train_teacher.find_resumable(Workspace(tmp_path), artifact.name)
