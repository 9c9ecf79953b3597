"""A teacher's training: what it keeps, when it stops, and that an interruption changes nothing."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from envs.cpu_simulator import CpuSimulator
from envs.registry import compile_task
from pipeline import cli, session
from pipeline.core.artifacts import Artifact, Workspace
from pipeline.core.checkpoint import CheckpointFolder, load_tensors
from pipeline.core.errors import (
    DamagedFileError,
    MissingArtifactError,
    NonFiniteError,
    SettingsError,
    StoppedByUser,
    UserError,
)
from pipeline.core.runtime import StageContext, seed_sequence
from pipeline.core.tracking import NullTracker
from stages import teacher_training, train_teacher
from stages.contrastive_learner import ContrastiveLearner
from stages.evaluate import Episodes, run_episodes
from stages.network_file import NETWORK_FILE, load_actor, torch_policy
from stages.rollout import RolloutStatistics
from stages.teacher_training import TeacherTraining, TrainTeacherSettings
from tests.stages.tiny_runs import TINY_TEACHER, make_context

Tensors = dict[str, torch.Tensor]


class Killed(BaseException):
    """Stands for SIGKILL: the process ends without saving."""


DRAW = {
    name: getattr(train_teacher, name)
    for name in ("draw_learning_curve", "draw_gradient_map", "draw_rollouts")
}


@pytest.fixture(autouse=True, scope="module")
def no_pictures() -> Iterator[None]:
    """Leave out the pictures, which take longer than everything else here."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in DRAW:
            monkeypatch.setattr(train_teacher, name, lambda *_, **__: None)
        yield


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    return make_context(tmp_path)


def change(settings: TrainTeacherSettings = TINY_TEACHER, **values: Any) -> TrainTeacherSettings:
    return TrainTeacherSettings(**(settings.model_dump() | values))


def checkpoint_of(artifact: Artifact) -> CheckpointFolder:
    return CheckpointFolder(artifact.file("checkpoint"))


def without_time(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "elapsed_s"}


def assert_same_tensors(one: Tensors, other: Tensors) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def memory(artifact: Artifact) -> list[Tensors]:
    """Return batches that the replay memory of an artifact's checkpoint gives."""
    settings = TrainTeacherSettings(**artifact.manifest.settings)
    training = TeacherTraining(settings, compile_task(settings.task), "cpu")
    training.load(checkpoint_of(artifact))
    batches = [training.buffer.sample(200, 0.9, torch.Generator().manual_seed(seed)) for seed in range(3)]
    return [vars(batch) for batch in batches]


def assert_same_run(one: Artifact, other: Artifact) -> None:
    """Check that two teachers and everything that the next step would depend on are equal bit for bit."""
    networks = [load_tensors(artifact.file(NETWORK_FILE)) for artifact in (one, other)]
    assert_same_tensors(networks[0][0], networks[1][0])
    assert networks[0][1] == networks[1][1]
    ends = [checkpoint_of(artifact).load() for artifact in (one, other)]
    assert_same_tensors(ends[0].tensors, ends[1].tensors)
    histories = [[without_time(entry) for entry in end.progress["history"]] for end in ends]
    assert histories[0] == histories[1] and len(histories[0]) > 1
    counters = [without_time(end.progress | {"history": []}) for end in ends]
    assert counters[0] == counters[1]
    for batch, same in zip(memory(one), memory(other), strict=True):
        assert_same_tensors(batch, same)
    results = [without_time(artifact.manifest.results) for artifact in (one, other)]
    assert results[0] == results[1]


# -- interruptions ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TrainTeacherSettings], Artifact]:
    """Return the teacher of settings, trained once without interruption."""
    made: dict[str, Artifact] = {}

    def get(settings: TrainTeacherSettings) -> Artifact:
        key = settings.model_dump_json()
        if key not in made:
            made[key] = train_teacher.run(settings, make_context(tmp_path_factory.mktemp("unbroken")))
        return made[key]

    return get


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
                assert found == settings
                return train_teacher.run(found, context, artifact), begun
            except (StoppedByUser, Killed):
                continue
    raise AssertionError("the last process was interrupted")


def interrupt_after(
    monkeypatch: pytest.MonkeyPatch, context: StageContext, how: str, unrolls: int, begun: list[int]
) -> None:
    collect, done = TeacherTraining.collect, [0]

    def collect_and_interrupt(training: TeacherTraining) -> Any:
        if not done[0]:
            begun.append(training.progress.unrolls)
        if done[0] == unrolls and how == "kill":
            raise Killed
        done[0] += 1
        context.stop.requested = done[0] == unrolls and how == "stop"
        return collect(training)

    monkeypatch.setattr(TeacherTraining, "collect", collect_and_interrupt)


@pytest.mark.parametrize(
    ("interruptions", "expected"),
    [
        ([("stop", 1)], [0, 1]),
        ([("stop", 3)], [0, 3]),
        ([("stop", 11)], [0]),  # in the last unroll: only the closing evaluation is left
        ([("kill", 3)], [0, 2]),
        ([("kill", 9)], [0, 8]),
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


@pytest.mark.parametrize(
    "values",
    [
        {"replay_rows_per_world": 260, "min_rows_per_world": 100, "env_steps": 4 * 30 * 13},
        {"checkpoint_every": 5, "evaluate_every": 2, "average_decay": 0.0, "max_gradient_norm": 0.5},
        {"task": "point_big_maze", "num_worlds": 3, "unroll_steps": 47, "env_steps": 3 * 47 * 9},
        {"keep": "last", "residual_scale": "inverse_sqrt_blocks", "final_norm": True, "seed": 5, "depth": 8},
        {"width": 16, "threads": 2},
        {"width": 128, "threads": 2, "residual_scale": "learned_from_zero"},
    ],
    ids=["late start", "rare checkpoints", "other maze", "keep last", "compiled kernels", "wide"],
)
def test_that_holds_for_other_settings_too(
    unbroken: Callable[..., Artifact], tmp_path: Path, values: dict[str, Any]
):
    settings = change(**values)
    artifact, begun = run_interrupted(settings, tmp_path, [("stop", 2), ("kill", 5)])
    assert len(begun) == 3 and begun[1] == 2 and begun[2] <= 7
    assert_same_run(artifact, unbroken(settings))


def test_it_holds_where_worlds_diverge_after_the_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    advance = CpuSimulator._advance

    def diverge(simulator: CpuSimulator) -> np.ndarray:
        unlucky = (simulator.episode_step == 40) & (simulator.desired_goal.sum(1) > 4.5)
        return advance(simulator) | unlucky

    monkeypatch.setattr(CpuSimulator, "_advance", diverge)
    settings = change(replay_rows_per_world=260)
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

    monkeypatch.setattr(train_teacher.time, "perf_counter", tick)
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


def start(workspace: Path, *arguments: str) -> subprocess.Popen[str]:
    root = Path(train_teacher.__file__).parents[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("THOUSANDFOLD")}
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "--workspace", str(workspace), "train-teacher", *arguments],
        cwd=root,
        env=environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{workspace.parent}/mlflow.db"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_checkpoint(process: subprocess.Popen[str], workspace: Path, after: int) -> int:
    """Wait until a running process has saved a checkpoint later than unroll `after`; return its unroll."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for path in workspace.glob("runs/teacher-*/checkpoint/manifest.json"):
            step = json.loads(path.read_text())["step"]
            if step > after:
                return step
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint after unroll {after}: {process.communicate()}")


def test_kill_9_and_ctrl_c_of_a_real_process_change_nothing(tmp_path: Path):
    whole = train_teacher.run(PROCESS_SETTINGS, make_context(tmp_path / "whole"))

    seed = time.time_ns() % 2**32
    delay = random.Random(seed).uniform(0.0, 0.5 * whole.manifest.results["elapsed_s"])
    print(f"seed {seed}: kill -9 {delay:.3f} s after the first checkpoint")
    workspace = tmp_path / "broken"
    process = start(workspace, *as_options(PROCESS_SETTINGS))
    wait_for_checkpoint(process, workspace, 0)
    time.sleep(delay)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (killed,) = Workspace(workspace).artifacts("teacher")
    assert killed.manifest.status == "running"
    unrolls = checkpoint_of(killed).load().progress["unrolls"]

    process = start(workspace, "--resume")
    wait_for_checkpoint(process, workspace, unrolls)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    line = err.splitlines()[-1]
    assert line.startswith("Stopped at ") and line.endswith(f"--workspace {workspace} train-teacher --resume")
    assert "Traceback" not in err and not line.startswith("Error")

    settings, artifact = train_teacher.find_resumable(Workspace(workspace), None)
    assert artifact.name == killed.name and settings == PROCESS_SETTINGS
    assert checkpoint_of(artifact).load().progress["unrolls"] < 80
    assert_same_run(train_teacher.run(settings, make_context(workspace), artifact), whole)


# -- NaN --------------------------------------------------------------------------------------------


def poison(monkeypatch: pytest.MonkeyPatch, at: int, what: str) -> None:
    """Let the update number `at` go wrong: in its metrics, or in weights while all metrics look good."""
    update, count = ContrastiveLearner.update, [0]

    def poisoned(learner: ContrastiveLearner, *arguments: Any) -> Tensors:
        metrics = update(learner, *arguments)
        count[0] += 1
        if count[0] == at and what == "critic_loss":
            metrics["critic_loss"] = torch.tensor(math.nan)
        elif count[0] == at:
            network = {"actor": learner.actor, "critic": learner.critic}[what]
            with torch.no_grad():
                next(network.parameters())[0, 0] = math.inf
        return metrics

    monkeypatch.setattr(ContrastiveLearner, "update", poisoned)


@pytest.mark.parametrize("what", ["critic_loss", "actor", "critic"])
def test_nan_ends_the_run_before_anything_bad_is_saved(
    context: StageContext, unbroken: Callable[..., Artifact], what: str
):
    settings = change(checkpoint_every=1, evaluate_every=10)  # saved far more often than evaluated
    with pytest.MonkeyPatch.context() as monkeypatch:
        poison(monkeypatch, at=15, what=what)  # the last update of the fifth unroll
        with pytest.raises(NonFiniteError) as raised:
            train_teacher.run(settings, context)
    artifact = context.workspace.artifacts("teacher")[0]
    folder = checkpoint_of(artifact)
    assert f"{what} became " in str(raised.value) and " at step 600." in str(raised.value)
    assert str(raised.value).endswith(f"The last good checkpoint is kept in {folder.path}.")
    assert artifact.manifest.status == "failed" and "600" in artifact.manifest.results["error"]
    checkpoint = folder.load()
    assert checkpoint.progress["unrolls"] == 4
    numbers = [value for value in checkpoint.tensors.values() if value.is_floating_point()]
    assert all(bool(value.isfinite().all()) for value in numbers)
    # Without whatever went wrong, the run goes on from there as if nothing had happened.
    found, again = train_teacher.find_resumable(context.workspace, artifact.name)
    finished = train_teacher.run(found, context, again)
    expected = load_tensors(unbroken(settings).file(NETWORK_FILE))[0]
    assert_same_tensors(load_tensors(finished.file(NETWORK_FILE))[0], expected)
    assert finished.manifest.status == "completed" and "error" not in finished.manifest.results


@pytest.mark.parametrize("name", ["critic", "actor"])
def test_an_absurd_learning_rate_is_one_clear_line(tmp_path: Path, name: str):
    result = invoke(tmp_path, "train-teacher", *as_options(change(), **{f"{name}_learning_rate": 1e30}))
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert re.fullmatch(r"Error: [a-z_ ]+ became -?(nan|inf) at step [\d,]+\.(?: The last good.*)?", line)


# -- early stop and what is kept --------------------------------------------------------------------


class ScriptedEvaluations:
    """Evaluations that end as told; remembers the weights that each one saw."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *outcomes: tuple[int, float]) -> None:
        """Take (successes of 4, time at goal) of each evaluation."""
        self._left = list(outcomes)
        self.weights: list[list[Tensors]] = []
        self.seeds: list[tuple[int, ...]] = []
        evaluate = TeacherTraining.evaluate

        def remember(training: TeacherTraining) -> dict[str, Any]:
            learner = training.learner
            self.weights.append([learner.weights(actor) for actor in learner.candidates])
            return evaluate(training)

        monkeypatch.setattr(TeacherTraining, "evaluate", remember)
        monkeypatch.setattr(teacher_training, "run_episodes", self._run)

    def _run(self, *arguments: Any, episodes: int, seed: np.random.SeedSequence, **rest: Any) -> Episodes:
        successes, time_at_goal = self._left.pop(0)
        self.seeds.append(tuple(seed.generate_state(4).tolist()))
        each = np.full(episodes, time_at_goal)
        points, stable = np.zeros((episodes, 2)), np.zeros(episodes, bool)
        return Episodes(np.arange(episodes) < successes, each, each, each, points, points, stable)


EVALUATED = change(evaluate_every=1, env_steps=4 * 30 * 5, average_decay=0.0)


@pytest.mark.parametrize(
    ("keep", "outcomes", "kept"),
    [
        ("best", [(0, 0), (3, 50), (2, 90), (1, 0), (2, 0)], 1),
        ("best", [(2, 10), (2, 30), (2, 20), (2, 30), (1, 99)], 1),  # the first of two ties
        ("best", [(0, 0), (0, 0), (0, 0), (0, 0), (0, 0)], 0),
        ("last", [(0, 0), (3, 50), (2, 90), (4, 0), (1, 0)], 4),
    ],
)
def test_the_teacher_is_the_evaluated_actor_that_was_asked_for(
    context: StageContext,
    monkeypatch: pytest.MonkeyPatch,
    keep: str,
    outcomes: list[tuple[int, float]],
    kept: int,
):
    evaluations = ScriptedEvaluations(monkeypatch, *outcomes)
    artifact = train_teacher.run(change(EVALUATED, keep=keep), context)
    assert_same_tensors(load_tensors(artifact.file(NETWORK_FILE))[0], evaluations.weights[kept][0])
    last = evaluations.weights[-1][0]["actor.mean_head.weight"]
    assert kept == 4 or not torch.equal(evaluations.weights[kept][0]["actor.mean_head.weight"], last)
    assert len(set(evaluations.seeds)) == 5  # fresh episodes every time


@pytest.mark.parametrize(
    ("outcomes", "kept"), [([(2, 0), (3, 0)], 1), ([(3, 0), (2, 0)], 0), ([(2, 5), (2, 5)], 0)]
)
def test_the_averaged_and_the_current_actor_compete_on_the_same_episodes(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, outcomes: list[tuple[int, float]], kept: int
):
    evaluations = ScriptedEvaluations(monkeypatch, *outcomes)
    artifact = train_teacher.run(change(EVALUATED, average_decay=0.5, env_steps=4 * 30), context)
    assert_same_tensors(load_tensors(artifact.file(NETWORK_FILE))[0], evaluations.weights[0][kept])
    assert evaluations.seeds[0] == evaluations.seeds[1]


def test_the_best_survives_an_interruption(context: StageContext, monkeypatch: pytest.MonkeyPatch):
    evaluations = ScriptedEvaluations(monkeypatch, (1, 0), (3, 0), (2, 0), (0, 0), (2, 9))
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, context, "stop", 3, [])
        with pytest.raises(StoppedByUser):
            train_teacher.run(EVALUATED, context)
    context.stop.requested = False
    artifact = train_teacher.run(EVALUATED, context, context.workspace.artifacts("teacher")[0])
    assert_same_tensors(load_tensors(artifact.file(NETWORK_FILE))[0], evaluations.weights[1][0])


def test_the_target_must_be_met_in_consecutive_evaluations(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
):
    evaluations = ScriptedEvaluations(monkeypatch, (3, 0), (2, 0), (4, 0), (3, 0), (4, 0))
    settings = change(EVALUATED, target_success=0.75, target_evaluations=2)
    artifact = train_teacher.run(settings, context)
    assert artifact.manifest.results["env_steps"] == 4 * 30 * 4 < settings.env_steps
    assert_same_tensors(load_tensors(artifact.file(NETWORK_FILE))[0], evaluations.weights[2][0])


def test_without_a_target_the_budget_is_spent(context: StageContext, monkeypatch: pytest.MonkeyPatch):
    ScriptedEvaluations(monkeypatch, *[(4, 0)] * 5)
    artifact = train_teacher.run(change(EVALUATED, env_steps=4 * 30 * 5 - 1), context)
    assert artifact.manifest.results["env_steps"] == 4 * 30 * 5


def test_a_teacher_can_be_read_back_and_reproduces_its_recorded_success(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
):
    for name, draw in DRAW.items():
        monkeypatch.setattr(train_teacher, name, draw)
    artifact = train_teacher.run(TINY_TEACHER, context)
    artifact.verify()
    assert set(artifact.manifest.files) == {
        NETWORK_FILE, "learning_curve.png", "rollouts.png", "gradients.png", "history.json"
    }  # fmt: skip
    trained, results = load_actor(artifact), artifact.manifest.results
    again = run_episodes(
        trained.task,
        torch_policy(trained.actor),
        episodes=results["episodes"],
        seed=seed_sequence(*results["evaluation_seed"]),
    ).summary()
    assert {name: results[name] for name in again} == again
    assert results["updates"] == 33 and results["env_steps"] == 1320 and results["elapsed_s"] > 0
    assert trained.metadata["evaluation"] == again
    recorded = json.loads(artifact.file("history.json").read_text())
    assert [entry["updates"] for entry in recorded["gradient_by_block"]] == [
        entry["updates"] for entry in recorded["history"]
    ]
    networks = ("actor", "state_action_encoder", "goal_encoder")
    assert all(
        len(entry[name]) == 1 and entry[name][0] > 0  # depth 4 is one block
        for entry in recorded["gradient_by_block"]
        for name in networks
    )


# -- bad input --------------------------------------------------------------------------------------


def as_options(settings: TrainTeacherSettings, **values: Any) -> list[str]:
    """Return the settings as options of the command line."""
    merged = settings.model_dump(exclude_none=True) | values
    return ["--preset", "smoke", *(f"--set={name}={value}" for name, value in merged.items())]


def invoke(workspace: Path, *arguments: str) -> Result:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(session, "open_tracker", lambda *_: NullTracker())
        return CliRunner().invoke(cli.cli, ["--workspace", str(workspace), *arguments])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace with a teacher that was stopped after three unrolls."""
    context = make_context(tmp_path_factory.mktemp("stopped"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt_after(monkeypatch, context, "stop", 3, [])
        with pytest.raises(StoppedByUser):
            train_teacher.run(TINY_TEACHER, context)
    return context.workspace.root


@pytest.fixture
def broken(stopped: Path, tmp_path: Path) -> Iterator[Artifact]:
    """Return a copy of the stopped teacher, to be damaged."""
    shutil.copytree(stopped, tmp_path / "copy")
    yield Workspace(tmp_path / "copy").artifacts("teacher")[0]


def refused(artifact: Artifact, *arguments: str) -> str:
    """Resume on the command line; return the one line that refuses it."""
    result = invoke(artifact.path.parents[1], "train-teacher", *(arguments or ("--resume",)))
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ") and "(unexpected;" not in line
    return line


def edit_manifest(artifact: Artifact, **settings: Any) -> None:
    artifact.update(settings=artifact.manifest.settings | settings)


@pytest.mark.parametrize("name", ["state-00000003", "replay-00000002", "replay-00000003"])
def test_a_truncated_checkpoint_is_refused_by_name(broken: Artifact, name: str):
    path = broken.file(f"checkpoint/{name}.safetensors")
    os.truncate(path, path.stat().st_size - 10)
    assert path.name in refused(broken)


def test_a_truncated_checkpoint_manifest_is_refused_by_name(broken: Artifact):
    path = broken.file("checkpoint/manifest.json")
    os.truncate(path, 100)
    assert str(path) in refused(broken)


def test_a_checkpoint_of_another_kind_of_device_is_refused_though_both_were_chosen_alike(
    broken: Artifact, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(TeacherTraining, "_settings_to_compare", lambda _: {"device": "cuda"})
    line = refused(broken)
    assert "other settings" in line and "device cpu" in line


@pytest.mark.parametrize(
    "values", [{"task": "point_big_maze"}, {"seed": 9}, {"width": 16}, {"num_worlds": 5}]
)
def test_a_checkpoint_of_another_task_or_other_settings_is_refused(broken: Artifact, values: dict[str, Any]):
    edit_manifest(broken, **values)
    line = refused(broken)
    (name,) = values
    assert "other settings" in line and f"{name} {getattr(TINY_TEACHER, name)}" in line
    assert str(broken.file("checkpoint")) in line


@pytest.mark.parametrize(
    "values", [{"depth": 7}, {"no_such_setting": 1}, {"width": "wide"}, {"task": "chess"}]
)
def test_settings_that_cannot_be_read_are_refused(broken: Artifact, values: dict[str, Any]):
    edit_manifest(broken, **values)
    (name,) = values
    assert f"{name} '{values[name]}'" in (line := refused(broken)) or f"setting {name}" in line


def test_a_checkpoint_whose_content_does_not_fit_is_refused(broken: Artifact):
    """As one of an earlier version may be, though all its hashes are right."""
    folder = checkpoint_of(broken)
    checkpoint = folder.load()
    empty = {"first": torch.zeros(4, dtype=torch.int64), "rows": torch.zeros(4, dtype=torch.int64)}
    for tensors, progress in (
        ({}, checkpoint.progress),
        ({**checkpoint.tensors, "generator": torch.zeros(3, dtype=torch.uint8)}, checkpoint.progress),
        (checkpoint.tensors, {"unrolls": 3}),
        (checkpoint.tensors, checkpoint.progress | {"history": [], "unknown": 1}),
    ):
        shutil.rmtree(folder.path)
        folder.save(3, tensors, progress, segment=empty, oldest_row=0)
        assert "does not fit" in refused(broken)


def test_refusing_to_resume_loses_nothing(broken: Artifact):
    path = broken.file("checkpoint/state-00000003.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[:-10])
    refused(broken)
    path.write_bytes(data)
    settings, artifact = train_teacher.find_resumable(Workspace(broken.path.parents[1]), None)
    finished = train_teacher.run(settings, make_context(broken.path.parents[1]), artifact)
    assert finished.manifest.status == "completed"


def test_there_must_be_something_to_resume(broken: Artifact, tmp_path: Path):
    workspace = Workspace(broken.path.parents[1])
    assert train_teacher.find_resumable(workspace, broken.name)[0] == TINY_TEACHER
    with pytest.raises(MissingArtifactError, match="did you mean"):
        train_teacher.find_resumable(workspace, broken.name + "x")
    broken.complete({})
    with pytest.raises(SettingsError, match="No unfinished teacher"):
        train_teacher.find_resumable(workspace, None)
    with pytest.raises(SettingsError, match="is completed"):
        train_teacher.find_resumable(workspace, broken.name)
    with pytest.raises(SettingsError, match="No unfinished teacher"):
        train_teacher.find_resumable(Workspace(tmp_path / "empty"), None)


def test_an_unfinished_teacher_without_a_checkpoint_is_no_candidate(broken: Artifact):
    shutil.rmtree(broken.file("checkpoint"))
    with pytest.raises(SettingsError, match="No unfinished teacher with a checkpoint"):
        train_teacher.find_resumable(Workspace(broken.path.parents[1]), None)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"task": "point_u_mase"}, "point_u_maze"),
        ({"training_distribution": "nowhere"}, "nowhere"),
    ],
)
def test_unknown_names_are_refused_before_anything_is_made(
    context: StageContext, values: dict[str, Any], named: str
):
    with pytest.raises(ValueError, match=named):
        train_teacher.run(change(**values), context)
    assert context.workspace.artifacts() == []


def test_a_teacher_that_is_being_trained_is_not_resumed_by_another(broken: Artifact, context: StageContext):
    settings, artifact = train_teacher.find_resumable(Workspace(broken.path.parents[1]), None)
    status = artifact.manifest.status
    with (
        CheckpointFolder(artifact.file("checkpoint")).lock(),
        pytest.raises(UserError, match="in use by another process"),
    ):
        train_teacher.run(settings, context, artifact)
    assert Artifact.load(artifact.path).manifest.status == status


def test_physics_that_diverges_everywhere_ends_the_run(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        teacher_training,
        "collect",
        lambda *_: RolloutStatistics(env_steps=120, unstable=TINY_TEACHER.num_worlds),
    )
    with pytest.raises(NonFiniteError, match="diverged"):
        train_teacher.run(TINY_TEACHER, context)
    assert context.workspace.artifacts("teacher")[0].manifest.status == "failed"


def test_a_budget_too_small_for_one_update_is_refused(context: StageContext):
    with pytest.raises(UserError, match="min_rows_per_world"):
        train_teacher.run(change(env_steps=1, unroll_steps=2, min_rows_per_world=20), context)


def test_a_damaged_checkpoint_marks_no_teacher_as_completed(broken: Artifact):
    broken.file("checkpoint/manifest.json").write_text("{}")
    settings, artifact = train_teacher.find_resumable(Workspace(broken.path.parents[1]), None)
    with pytest.raises(DamagedFileError):
        train_teacher.run(settings, make_context(broken.path.parents[1]), artifact)
    assert Artifact.load(broken.path).manifest.status == "failed"
