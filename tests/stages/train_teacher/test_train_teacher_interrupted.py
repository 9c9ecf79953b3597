"""An interruption of a teacher's training changes nothing, bit for bit."""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.envs.user_tasks.user_pages import PAGE, changed, write
from tests.stages.stage_process import start, wait_for_checkpoint
from tests.stages.tiny_runs import TINY_TEACHER, make_context
from tests.stages.train_teacher.teacher_runs import (
    Killed,
    as_options,
    assert_same_run,
    change,
    checkpoint_of,
    interrupt_after,
)
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.ground.errors import MissingArtifactError, StoppedByUser
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.checkpoint import load_tensors
from thousandfold.pipeline.runtime import StageContext
from thousandfold.stages.networks import NETWORK_FILE
from thousandfold.stages.train_teacher import train_teacher
from thousandfold.stages.train_teacher.settings import TrainTeacherSettings

VARIED = """action: {actuators: "*", kind: delta, max_rate: 3}
action_delay: {low: 0, high: 2}
student_observation: {field: qpos, noise: 0.01, history: 3}
randomize: {mass: {low: 0.7, high: 1.3}, joint_zero: {low: -0.02, high: 0.02, joints: elbow}}
"""


def run_interrupted(
    settings: TrainTeacherSettings, root: Path, interruptions: list[tuple[str, int]]
) -> tuple[Artifact, list[int]]:
    """Train, each time until an interruption `(how, unrolls of this process)`, and then to the end.

    Returns:
        The teacher, and how many unrolls were done when each process began.
    """
    begun: list[int] = []
    for how, unrolls in [*interruptions, ("", 10**6)]:
        context = make_context(root)  # what a fresh process would have
        with pytest.MonkeyPatch.context() as monkeypatch:
            interrupt_after(monkeypatch, context, how, unrolls, begun)
            try:
                if not begun:
                    return train_teacher.run(settings, context), begun
                found, artifact = train_teacher.find_resumable(context.workspace, None)
                assert change(found, task=settings.task) == settings  # a page is trained on from its copy
                return train_teacher.run(found, context, artifact), begun
            except (StoppedByUser, Killed):
                continue
    raise AssertionError("the last process was interrupted")


@pytest.mark.parametrize(
    ("interruptions", "expected"),
    [
        ([("stop", 1)], [0, 1]),
        ([("stop", 3)], [0, 3]),
        pytest.param(
            [("stop", 11)], [0], marks=pytest.mark.slow
        ),  # in the last unroll: only the closing evaluation is left
        ([("kill", 3)], [0, 2]),
        pytest.param([("kill", 9)], [0, 8], marks=pytest.mark.slow),
        ([("stop", 1), ("kill", 4), ("stop", 2), ("kill", 0), ("stop", 1)], [0, 1, 4, 6, 6, 7]),
    ],
    ids=lambda value: "-".join(f"{how}{n}" for how, n in value) if isinstance(value[0], tuple) else "",
)
def test_an_interrupted_run_equals_an_unbroken_one_bit_for_bit(
    unbroken: Callable[..., Artifact],
    tmp_path: Path,
    interruptions: list[tuple[str, int]],
    expected: list[int],
):
    artifact, begun = run_interrupted(TINY_TEACHER, tmp_path, interruptions)
    assert begun == expected
    assert artifact.manifest.status == "completed"
    assert_same_run(artifact, unbroken(TINY_TEACHER))


def often(name: str, **values: Any) -> Any:
    return pytest.param(values, id=name)


def seldom(name: str, **values: Any) -> Any:
    return pytest.param(values, id=name, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "values",
    [
        seldom("late start", replay_rows_per_world=260, min_rows_per_world=100, env_steps=4 * 30 * 13),
        seldom(
            "rare checkpoints",
            checkpoint_every=5,
            evaluate_every=2,
            average_decay=0.0,
            max_gradient_norm=0.5,
        ),
        seldom("other maze", task="point_big_maze", num_worlds=3, unroll_steps=47, env_steps=3 * 47 * 9),
        seldom(
            "keep last",
            keep="last",
            residual_scale="inverse_sqrt_blocks",
            final_norm=True,
            seed=5,
            depth=8,
        ),
        often("temporal difference", critic="temporal_difference", critic_goals="relative"),
        often(
            "relative goals, near ones first",
            task="ant",
            episode_steps=100,
            critic_goals="relative",
            early_ends="lost",
            curriculum=("near",),
            patience=1,
        ),
        seldom("compiled kernels", width=16, threads=2),
        seldom("wide", width=128, threads=2, residual_scale="learned_from_zero"),
    ],
)
def test_that_holds_for_other_settings_too(
    unbroken: Callable[..., Artifact], tmp_path: Path, values: dict[str, Any]
):
    settings = change(**values)
    artifact, begun = run_interrupted(settings, tmp_path, [("stop", 2), ("kill", 5)])
    assert len(begun) == 3 and begun[1] == 2 and begun[2] <= 7
    assert_same_run(artifact, unbroken(settings))


@pytest.mark.parametrize("interruption", [("kill", 0), ("stop", 2)])
def test_a_chain_resumes_a_teacher_by_its_own_settings(tmp_path: Path, interruption: tuple[str, int]):
    """They say `auto` of what the teacher has settled, with a checkpoint or without."""
    settings = change(task="ant_u_maze", critic_goals="auto", episode_steps=30, env_steps=4 * 30 * 4)
    context = make_context(tmp_path)
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt_after(monkeypatch, context, *interruption, [])
        with pytest.raises((StoppedByUser, Killed)):
            train_teacher.run(settings, context)
    (unfinished,) = Workspace(tmp_path).artifacts("teacher")
    teacher = train_teacher.run(settings, make_context(tmp_path), unfinished)
    assert teacher.name == unfinished.name and teacher.manifest.settings["critic_goals"] == "relative"


def test_that_holds_where_worlds_vary_and_senses_are_noisy(unbroken: Callable[..., Artifact], tmp_path: Path):
    page = changed(PAGE, "    object: fingertip\n", '    object: fingertip\n  - {factors: "*"}\n')
    page = changed(page, "{field: qpos, unit: rad}", "{field: qpos, noise: 0.01, delay: {low: 0, high: 2}}")
    settings = change(task=str(write(tmp_path, page + VARIED)), env_steps=4 * 30 * 6)
    artifact, begun = run_interrupted(settings, tmp_path / "broken", [("stop", 1), ("kill", 2)])
    assert begun == [0, 1, 2]
    assert_same_run(artifact, unbroken(settings))


def test_it_holds_where_worlds_diverge_after_the_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    advance = CpuSimulator._advance

    def diverge(simulator: CpuSimulator) -> np.ndarray:
        unlucky = (simulator.episode_step == 40) & (simulator.desired_goal.sum(1) > 4.5)
        return advance(simulator) | unlucky

    monkeypatch.setattr(CpuSimulator, "_advance", diverge)
    # Goals stay, since they decide which worlds diverge.
    settings = change(replay_rows_per_world=260, goal_exchange=0.0)
    whole = train_teacher.run(settings, make_context(tmp_path / "whole"))
    assert 0 < whole.manifest.results["unstable"] < 12 and whole.manifest.results["updates"] > 10
    # After every unroll, so that some episodes are dropped of which a checkpoint holds the beginning.
    artifact, begun = run_interrupted(settings, tmp_path / "broken", [("stop", 1)] * 10)
    assert begun == list(range(11))
    assert_same_run(artifact, whole)


def test_the_seed_and_nothing_else_decides(unbroken: Callable[..., Artifact], context: StageContext):
    torch.manual_seed(1234)
    np.random.seed(1234)
    random.seed(1234)
    assert_same_run(train_teacher.run(TINY_TEACHER, context), unbroken(TINY_TEACHER))
    other = load_tensors(unbroken(change(seed=1)).file(NETWORK_FILE))[0]
    first = load_tensors(unbroken(TINY_TEACHER).file(NETWORK_FILE))[0]
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_tiny_run_learns_from_a_memory_that_has_gone_round(unbroken: Callable[..., Artifact]):
    """Otherwise the comparisons above would compare little."""
    end = checkpoint_of(unbroken(TINY_TEACHER)).load()
    assert int(end.tensors["buffer.oldest"].min()) > 150
    assert int(end.tensors["simulator.episode_step"].min()) > 0  # in the middle of an episode
    assert end.progress["updates"] == 33 and len(end.progress["history"]) == 4
    losses = [entry["critic_loss"] for entry in end.progress["history"]]
    assert len(set(losses)) == 4
    actor, average = (end.tensors[f"learner.{name}.mean_head.weight"] for name in ("actor", "averaged_actor"))
    assert not torch.equal(actor, average)


def test_elapsed_time_counts_all_processes(context: StageContext, monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]

    def tick() -> float:
        clock[0] += 1.0
        return clock[0]

    monkeypatch.setattr("time.perf_counter", tick)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, context, "stop", 4, [])
        with pytest.raises(StoppedByUser):
            train_teacher.run(TINY_TEACHER, context)
    artifact = context.workspace.artifacts("teacher")[0]
    stopped_at = checkpoint_of(artifact).load().progress["elapsed_s"]
    assert stopped_at >= clock[0] - 2.0  # up to the save, not up to the evaluation before
    clock[0] += 1000.0  # while nothing ran
    context.stop.requested = False
    finished = train_teacher.run(TINY_TEACHER, context, artifact)
    assert stopped_at < finished.manifest.results["elapsed_s"] < 1000.0


def test_a_stop_says_how_to_go_on_and_leaves_the_artifact_open(context: StageContext):
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt_after(monkeypatch, context, "stop", 2, [])
        with pytest.raises(StoppedByUser) as raised:
            train_teacher.run(TINY_TEACHER, context)
    assert re.search(r"Stopped at 240 steps, .* train-teacher --resume", str(raised.value))
    assert str(context.workspace.root) in str(raised.value)
    assert context.workspace.artifacts("teacher")[0].manifest.status == "running"
    with pytest.raises(MissingArtifactError):
        context.workspace.newest("teacher")


# -- a real process ---------------------------------------------------------------------------------


PROCESS_SETTINGS = change(
    env_steps=4 * 30 * 80,
    replay_rows_per_world=300,
    evaluate_every=40,
    evaluation_episodes=2,
    final_episodes=2,
    checkpoint_every=1,
)


@pytest.mark.slow
def test_kill_9_and_ctrl_c_of_a_real_process_change_nothing(tmp_path: Path):
    whole = train_teacher.run(PROCESS_SETTINGS, make_context(tmp_path / "whole"))

    seed = time.time_ns() % 2**32
    delay = random.Random(seed).uniform(0.0, 0.5 * whole.manifest.results["elapsed_s"])
    print(f"seed {seed}: kill -9 {delay:.3f} s after the first checkpoint")
    workspace = tmp_path / "broken"
    process = start(workspace, "train-teacher", *as_options(PROCESS_SETTINGS))
    wait_for_checkpoint(process, workspace, "teacher", 0)
    time.sleep(delay)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (killed,) = Workspace(workspace).artifacts("teacher")
    assert killed.manifest.status == "running"
    unrolls = checkpoint_of(killed).load().progress["unrolls"]

    process = start(workspace, "train-teacher", "--resume")
    wait_for_checkpoint(process, workspace, "teacher", unrolls)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    line = err.splitlines()[-1]
    assert line.startswith("Stopped at ")
    assert line.endswith(f"--workspace {workspace} train-teacher --resume {killed.name}")
    assert "Traceback" not in err and not line.startswith("Error")

    settings, artifact = train_teacher.find_resumable(Workspace(workspace), None)
    assert artifact.name == killed.name and settings == PROCESS_SETTINGS
    assert checkpoint_of(artifact).load().progress["unrolls"] < 80
    assert_same_run(train_teacher.run(settings, make_context(workspace), artifact), whole)
