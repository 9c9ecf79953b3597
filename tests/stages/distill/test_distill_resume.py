"""A distillation that was interrupted, anywhere and in any way, becomes the student of one that was not."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.stages.distill.distill_runs import change
from tests.stages.tiny_runs import make_context
from thousandfold.ground.errors import StoppedByUser
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import StageContext
from thousandfold.replay import dataset_writer
from thousandfold.stages.dataset.rollout import Act
from thousandfold.stages.distill import dagger, distill
from thousandfold.stages.distill import distill as results
from thousandfold.stages.distill.dagger import KeptRollout
from thousandfold.stages.distill.distill import DistillSettings
from thousandfold.stages.distill.student_training import StudentTraining

# Descents end after 40, 60 and 80 updates, evaluations and checkpoints lie between.
SETTINGS = change(
    updates=40,
    evaluate_every=15,
    checkpoint_every=10,
    dagger_rounds=2,
    dagger_episodes=4,
    dagger_updates=20,
    dagger_beta=0.3,
    average_decay=0.8,
    batch_size=32,
    evaluation_episodes=8,
    final_episodes=8,
    max_final_episodes=8,
)

ENDS_EARLY = {"patience": 1, "evaluate_every": 3, "learning_rate": 0.05}
TARGET_IN_A_ROUND = {"target_retention": 0.98, "evaluate_every": 5, "dagger_rounds": 3}


class Killed(BaseException):
    """Stands for SIGKILL: the process ends without saving."""


def vary(**values: Any) -> DistillSettings:
    return DistillSettings(**(SETTINGS.model_dump() | values))


def without_time(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "elapsed_s"}


def assert_same_student(one: Artifact, other: Artifact) -> None:
    """Check that weights, history, episodes of the rounds and results are equal bit for bit."""
    for artifact in (one, other):
        artifact.verify()
        assert not [path for path in artifact.path.rglob("*") if path.name.startswith(".tmp")]
        assert not [name for name in artifact.manifest.files if name.startswith("checkpoint")]
    assert one.manifest.files == other.manifest.files
    assert {"network.safetensors", "history.json"} < one.manifest.files.keys()
    assert one.manifest.hash == other.manifest.hash
    assert without_time(one.manifest.results) == without_time(other.manifest.results)


# -- interruptions ----------------------------------------------------------------------------------


Unbroken = Callable[[DistillSettings], Artifact]


@pytest.fixture(scope="module")
def unbroken(context: StageContext, teacher: Artifact, dataset: Artifact) -> Unbroken:
    """Return the student of settings, distilled once without interruption."""
    made: dict[str, Artifact] = {}

    def get(settings: DistillSettings) -> Artifact:
        key = settings.model_dump_json()
        if key not in made:
            made[key] = distill.run(settings, context, teacher, dataset)
        return made[key]

    return get


def interrupt(monkeypatch: pytest.MonkeyPatch, context: StageContext, how: str, count: int) -> None:
    """Stop after `count` updates of this process, be killed after them, or in a rollout or its writing."""
    update, mixed_policy, done = StudentTraining._update, dagger.mixed_policy, [0]

    def counted_update(training: StudentTraining, *arguments: Any) -> Any:
        if how == "kill" and done[0] == count:
            raise Killed
        done[0] += 1
        context.stop.requested = how == "stop" and done[0] == count
        return update(training, *arguments)

    def dying_policy(*arguments: Any) -> Act:
        act, steps = mixed_policy(*arguments), [0]

        def dying(*state: Any) -> np.ndarray:
            steps[0] += 1
            if steps[0] == count:
                raise Killed
            return act(*state)

        return dying

    def die(*_: object, **__: object) -> None:
        raise Killed

    monkeypatch.setattr(StudentTraining, "_update", counted_update)
    if how == "rollout":
        monkeypatch.setattr(dagger, "mixed_policy", dying_policy)
    if how == "writing":  # when the shard is there, and nothing joins it to a dataset yet
        monkeypatch.setattr(dataset_writer, "write_view", die)
        monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    if how == "closing":
        monkeypatch.setattr(results, "run_pairs", die)


def distil_interrupted(
    settings: DistillSettings,
    root: Path,
    teacher: Artifact,
    dataset: Artifact,
    interruptions: list[tuple[str, int]],
) -> tuple[Artifact, list[int]]:
    """Distil, each time until an interruption, and then to the end.

    Returns:
        The student, and after how many updates each process but the first went on.
    """
    loaded: list[int] = []
    load = StudentTraining.load

    def recorded_load(training: StudentTraining, *arguments: Any) -> None:
        load(training, *arguments)
        loaded.append(training.updates)

    started: list[Artifact] = []
    for how, count in [*interruptions, ("", 0)]:
        context = make_context(root)  # what a fresh process would have
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(StudentTraining, "load", recorded_load)
            interrupt(monkeypatch, context, how, count)
            try:
                if not started:
                    return distill.run(settings, context, teacher, dataset, on_start=started.append), loaded
                found, *sources = distill.find_resumable(context.workspace, started[0].name)
                assert found == settings and [each.name for each in sources[1:]] == [
                    teacher.name,
                    dataset.name,
                ]
                student = distill.run(found, context, *sources[1:], resumed=sources[0])
                assert student.name == started[0].name
                return student, loaded
            except (StoppedByUser, Killed):
                continue
    raise AssertionError("the last process was interrupted")


@pytest.mark.parametrize(
    ("interruptions", "expected"),
    [
        ([("stop", 3)], [3]),
        pytest.param([("kill", 25)], [20], marks=pytest.mark.slow),
        pytest.param([("stop", 40)], [40], marks=pytest.mark.slow),  # between the dataset and the first round
        pytest.param([("rollout", 30)], [40], marks=pytest.mark.slow),
        ([("writing", 0)], [40]),
        # the round is whole, and not trained on yet
        pytest.param([("kill", 40)], [40], marks=pytest.mark.slow),
        pytest.param([("kill", 57)], [50], marks=pytest.mark.slow),
        pytest.param([("stop", 60), ("rollout", 30)], [60, 60], marks=pytest.mark.slow),
        pytest.param([("stop", 80)], [80], marks=pytest.mark.slow),
        ([("closing", 0)], [80]),  # only the closing evaluation is left
        (
            [("stop", 7), ("kill", 33), ("kill", 0), ("rollout", 1), ("stop", 3), ("kill", 9)],
            [7, 40, 40, 60, 63, 70],
        ),
    ],
    ids=lambda value: "-".join(f"{how}{n}" for how, n in value) if isinstance(value[0], tuple) else "",
)
def test_an_interrupted_distillation_equals_an_unbroken_one_bit_for_bit(
    context: StageContext,
    teacher: Artifact,
    dataset: Artifact,
    unbroken: Unbroken,
    interruptions: list[tuple[str, int]],
    expected: list[int],
):
    whole = unbroken(SETTINGS)
    student, loaded = distil_interrupted(SETTINGS, context.workspace.root, teacher, dataset, interruptions)
    assert loaded == expected
    assert_same_student(student, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        ENDS_EARLY,
        TARGET_IN_A_ROUND,
        {"objective": "kl", "average_decay": 0.0, "max_labels": 6000, "student_layer_norm": False},
        {"dagger_rounds": 0, "checkpoint_every": 1, "student_depth": 3, "seed": 5},
    ],
    ids=["patience", "target", "labels", "no rounds"],
)
def test_that_holds_for_other_settings_too(
    context: StageContext, teacher: Artifact, dataset: Artifact, unbroken: Unbroken, values: dict[str, Any]
):
    settings = vary(**values)
    interruptions = [("stop", 4), ("kill", 9), ("stop", 13), ("kill", 11)]
    student, loaded = distil_interrupted(settings, context.workspace.root, teacher, dataset, interruptions)
    assert loaded[0] == 4 and len(loaded) > 1
    assert_same_student(student, unbroken(settings))


def test_the_comparisons_compare_something(unbroken: Unbroken):
    student = unbroken(SETTINGS)
    assert student.manifest.results["updates"] == 80 and len(student.manifest.results["rounds"]) == 2
    assert len([name for name in student.manifest.files if name.startswith("rounds/")]) == 8
    early = unbroken(vary(**ENDS_EARLY)).manifest.results
    assert early["updates"] < 80, "no descent ended early"
    met = unbroken(vary(**TARGET_IN_A_ROUND)).manifest.results
    assert 40 < met["updates"] < 60 and len(met["rounds"]) == 1


def test_a_round_that_is_whole_is_not_rolled_out_again(
    context: StageContext, teacher: Artifact, dataset: Artifact, monkeypatch: pytest.MonkeyPatch
):
    roll_out, rolled_out = KeptRollout._roll_out, []

    def recorded(rollout: KeptRollout, root: Path, number: int, act: Act) -> None:
        rolled_out.append(number)
        roll_out(rollout, root, number, act)

    monkeypatch.setattr(KeptRollout, "_roll_out", recorded)
    interruptions = [("kill", 40), ("kill", 12), ("kill", 15)]
    _, loaded = distil_interrupted(SETTINGS, context.workspace.root, teacher, dataset, interruptions)
    assert loaded == [40, 50, 60] and rolled_out == [1, 2]


def test_what_has_begun_without_a_checkpoint_begins_again(
    context: StageContext, teacher: Artifact, dataset: Artifact, unbroken: Unbroken
):
    """As a chain goes on with it; rounds of which no checkpoint knows are not trusted."""
    whole, begun = unbroken(SETTINGS), list[Artifact]()
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt(monkeypatch, context, "kill", 5)
        with pytest.raises(Killed):
            distill.run(SETTINGS, context, teacher, dataset, on_start=begun.append)
    shutil.copytree(whole.file("rounds/round_01"), begun[0].file("rounds/round_02"))
    student = distill.run(SETTINGS, context, teacher, dataset, begun[0])
    assert student.name == begun[0].name
    assert_same_student(student, whole)


def test_elapsed_time_counts_all_processes(
    context: StageContext, teacher: Artifact, dataset: Artifact, monkeypatch: pytest.MonkeyPatch
):
    clock = [0.0]

    def tick() -> float:
        clock[0] += 1.0
        return clock[0]

    monkeypatch.setattr(distill.time, "perf_counter", tick)
    student, loaded = distil_interrupted(
        vary(dagger_rounds=0), context.workspace.root, teacher, dataset, [("stop", 4), ("stop", 7)]
    )
    assert loaded == [4, 11]
    assert student.manifest.results["elapsed_s"] == 40.0  # a tick an update, and none between processes


# -- stops ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        *(pytest.param(other, marks=pytest.mark.slow) for other in (signal.SIGTERM, signal.SIGHUP)),
    ],
)
def test_a_signal_saves_and_says_how_to_go_on(
    context: StageContext, teacher: Artifact, dataset: Artifact, number: int, unbroken: Unbroken
):
    update, begun = StudentTraining._update, list[Artifact]()

    def signalling(training: StudentTraining, *arguments: Any) -> Any:
        if training.updates == 16:
            os.kill(os.getpid(), number)
        return update(training, *arguments)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(StudentTraining, "_update", signalling)
        with pytest.raises(StoppedByUser) as raised:
            distill.run(SETTINGS, context, teacher, dataset, on_start=begun.append)
    context.stop.requested = False
    assert re.search(
        r"^Stopped at 17 updates, state saved in .*checkpoint\. Continue with: ", str(raised.value)
    )
    assert str(raised.value).endswith(
        f"--workspace {context.workspace.root} distill --resume {begun[0].name}"
    )
    settings, student, *parents = distill.find_resumable(context.workspace, None)
    assert student.name == begun[0].name and student.manifest.status == "running"
    assert_same_student(distill.run(settings, context, *parents, resumed=student), unbroken(SETTINGS))


def test_a_stop_in_a_rollout_keeps_the_round(
    context: StageContext, teacher: Artifact, dataset: Artifact, monkeypatch: pytest.MonkeyPatch
):
    roll_out, begun = KeptRollout._roll_out, list[Artifact]()

    def stopping(*arguments: Any) -> None:
        context.stop.requested = True
        roll_out(*arguments)

    monkeypatch.setattr(KeptRollout, "_roll_out", stopping)
    with pytest.raises(StoppedByUser, match="Stopped at 41 updates"):
        distill.run(SETTINGS, context, teacher, dataset, on_start=begun.append)
    context.stop.requested = False
    monkeypatch.setattr(KeptRollout, "_roll_out", lambda *_: pytest.fail("rolled out again"))
    settings = vary(dagger_rounds=2)
    with pytest.raises(pytest.fail.Exception):  # in the second round, not in the first
        distill.run(settings, context, teacher, dataset, begun[0])
    assert begun[0].file("rounds/round_01").exists() and not begun[0].file("rounds/round_02").exists()


def test_ctrl_c_in_the_closing_evaluation_keeps_the_training(
    context: StageContext,
    teacher: Artifact,
    dataset: Artifact,
    monkeypatch: pytest.MonkeyPatch,
    unbroken: Unbroken,
):
    whole, begun = unbroken(SETTINGS), list[Artifact]()
    with monkeypatch.context() as patched:
        patched.setattr(results, "run_pairs", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(
            StoppedByUser, match=r"^Stopped student-.* is kept in .* distill --resume student-"
        ):
            distill.run(SETTINGS, context, teacher, dataset, on_start=begun.append)
    assert Artifact.load(begun[0].path).manifest.status == "running"
    monkeypatch.setattr(StudentTraining, "_update", lambda *_: pytest.fail("updated again"))
    assert_same_student(distill.run(SETTINGS, context, teacher, dataset, begun[0]), whole)


def test_ctrl_c_before_the_first_checkpoint_is_none_to_go_on_from(
    context: StageContext, teacher: Artifact, dataset: Artifact, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(distill, "split_rows", interrupted)
    with pytest.raises(StoppedByUser, match=r"^Stopped student-.*; it had saved nothing yet: start it again"):
        distill.run(SETTINGS, context, teacher, dataset)
