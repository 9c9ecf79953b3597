"""Captured calls do what calls do. On the CPU a recording of operations stands for a CUDA graph."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from tests.stages.tiny_runs import TINY_TEACHER, make_context
from tests.stages.train_teacher.recording import NeverWaits, ReplayRecorder, WouldWait
from thousandfold.envs.registry import compile_task
from thousandfold.envs.simulators.simulator import Simulator
from thousandfold.models import compiled_info_nce, compiled_norm_swish
from thousandfold.models.block_stack import BlockStack
from thousandfold.pipeline.checkpoint import CheckpointFolder
from thousandfold.pipeline.distributed import Ranks
from thousandfold.replay.trajectory_buffer import TrajectoryBuffer
from thousandfold.stages.train_teacher import train_teacher
from thousandfold.stages.train_teacher import training as teacher_training
from thousandfold.stages.train_teacher.cuda_graphs import (
    CapturedCall,
    CapturedUpdate,
    CudaRecorder,
    PlainUpdate,
)
from thousandfold.stages.train_teacher.learner import ContrastiveLearner
from thousandfold.stages.train_teacher.settings import LearnerSettings, TrainTeacherSettings
from thousandfold.stages.train_teacher.training import TeacherTraining

TASK = compile_task("point_u_maze")
WORLDS = 3
SMALL: dict[str, Any] = {"depth": 8, "width": 16, "batch_size": 12}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"actor_goals": "mixed", "max_gradient_norm": 0.5, "warmup_updates": 7, "average_decay": 0.9},
    {"energy": "cosine", "info_nce": "symmetric", "actor_goals": "hindsight"},
    {"energy": "squared", "info_nce": "backward", "residual_scale": "inverse_sqrt_blocks"},
    {"energy": "dot", "residual_scale": "learned_from_zero", "final_norm": True},
    {"checkpoint_activations": True, "precision": "bfloat16"},
    {"critic_goals": "relative", "early_ends": "lost", "actor_goals": "mixed"},
]


@pytest.fixture(autouse=True)
def torch_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all computed as on CUDA, by torch: operations that can be recorded."""
    monkeypatch.setattr(compiled_info_nce, "_compiled", lambda dim: None)
    monkeypatch.setattr(compiled_norm_swish, "_has_compiler", lambda: False)


class Learning:
    """A learner, a memory that grows, and the generator of both.

    Args:
        make_recorder: makes what records the calls; None: they are called as they are.
        device: where all lies; on the CPU too, sampling draws as it does on a device.
    """

    def __init__(self, make_recorder: Any = None, device: str = "cpu", **settings: Any) -> None:
        self.learner = ContrastiveLearner(TASK, LearnerSettings(**(SMALL | settings)), device)
        self.buffer = TrajectoryBuffer(WORLDS, 40, observation_dim=4, goal_dim=2, action_dim=2, device=device)
        self.buffer._reads_are_free = False
        self.generator = torch.Generator(device).manual_seed(1)
        self._rows = torch.Generator().manual_seed(2)
        self.recorder = make_recorder and make_recorder(device, self.generator)
        parts = self.learner, self.buffer, 12, self.generator
        self._operations = CapturedUpdate(*parts, self.recorder) if self.recorder else PlainUpdate(*parts)
        self.act = self._operations.act
        self.collect(30)

    def collect(self, steps: int) -> None:
        """Write rows of made-up episodes."""
        for _ in range(steps):
            observation, action, goal, final = (
                torch.randn(WORLDS, width, generator=self._rows).to(self.buffer.device)
                for width in (4, 2, 2, 4)
            )
            ended = (torch.rand(WORLDS, generator=self._rows) < 0.2).to(self.buffer.device)
            self.buffer.add(observation, action.tanh(), goal)
            self.buffer.end_episodes(ended, final, goal + 1)

    def update(self) -> dict[str, torch.Tensor]:
        """Return copies of an update's metrics."""
        metrics = self._operations.update(self._operations.sample())
        return {name: value.clone() for name, value in metrics.items()}

    def run(self, updates: int) -> list[dict[str, torch.Tensor]]:
        """Return the metrics of updates, with rows written in between."""
        metrics = []
        for index in range(updates):
            if index % 4 == 3:
                self.collect(5)
            metrics.append(self.update())
        return metrics


def assert_equal(one: Any, other: Any, **tolerance: float) -> None:
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], **({"rtol": 0, "atol": 0} | tolerance), msg=name)


# -- without CUDA -----------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_neither_sampling_nor_updating_waits_for_the_device(settings: dict[str, Any]):
    learning = Learning(**settings)
    learning.update()
    with NeverWaits():
        metrics = learning.run(2)
        action = learning.act(torch.zeros(WORLDS, 4), torch.zeros(WORLDS, 2))
    assert action.shape == (WORLDS, 2)
    assert all(value.isfinite() for update in metrics for value in update.values())


def test_what_waits_is_noticed():
    numbers = torch.arange(3.0)
    for waiting in (
        numbers.sum().item,
        numbers.nonzero,
        lambda: numbers[numbers > 1],
        lambda: bool(numbers[0]),
    ):
        with pytest.raises(WouldWait), NeverWaits():
            waiting()
    learning = Learning()
    learning.buffer._reads_are_free = True
    with pytest.raises(WouldWait), NeverWaits():
        learning.update()


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_replayed_updates_are_the_updates_bit_for_bit(settings: dict[str, Any]):
    captured, eager = Learning(ReplayRecorder, **settings), Learning(**settings)
    for one, other in zip(captured.run(14), eager.run(14), strict=True):
        assert_equal(one, other)
    assert_equal(captured.learner.state_dict(), eager.learner.state_dict())
    assert torch.equal(captured.generator.get_state(), eager.generator.get_state())
    assert captured.recorder.recorded == 2
    blocks = captured.learner.gradient_by_block()
    assert_equal(blocks, eager.learner.gradient_by_block())
    assert len(blocks) == 3 and isinstance(captured.learner.actor.trunk.body, BlockStack)


def test_replayed_actions_follow_the_weights_and_what_is_seen():
    captured, eager = Learning(ReplayRecorder), Learning()
    observation, goal = torch.zeros(WORLDS, 4), torch.zeros(WORLDS, 2)
    for index in range(9):
        observation.fill_(index)
        goal.fill_(-index)
        actions = [learning.act(observation, goal).clone() for learning in (captured, eager)]
        assert torch.equal(*actions)
        for learning in (captured, eager):
            learning.update()


def test_a_state_loaded_after_the_recording_goes_on_as_it_did():
    learning = Learning(ReplayRecorder, warmup_updates=20, average_decay=0.5)
    learning.run(8)
    saved, generator = learning.learner.state_dict(), learning.generator.get_state()
    before = [learning.update() for _ in range(3)]
    ended = learning.learner.state_dict()
    learning.learner.load_state_dict(saved)
    learning.generator.set_state(generator)
    for one, other in zip(before, [learning.update() for _ in range(3)], strict=True):
        assert_equal(one, other)
    assert_equal(ended, learning.learner.state_dict())


def test_a_state_of_before_the_first_update_is_loaded_as_such():
    fresh = Learning().learner.state_dict()
    learning, other = Learning(), Learning()
    learning.run(2)
    learning.learner.load_state_dict(fresh)
    learning.generator.manual_seed(7)
    other.generator.manual_seed(7)
    assert_equal(learning.update(), other.update())
    assert_equal(learning.learner.state_dict(), other.learner.state_dict())


def recorded(function: Any, **settings: Any) -> CapturedCall[Any]:
    return CapturedCall(function, cast(CudaRecorder, ReplayRecorder()), **settings)


def test_a_call_is_recorded_once_after_three_that_are_not():
    calls: list[str] = []
    number = torch.zeros(())

    def add() -> torch.Tensor:
        calls.append("call")
        return number.add_(1)

    call = recorded(add, prepare=lambda: calls.append("prepare"))
    assert [int(call()) for _ in range(7)] == [1, 2, 3, 4, 5, 6, 7]
    assert calls == ["call"] * 3 + ["prepare", "call"]


def test_arguments_that_lie_elsewhere_are_refused():
    call, numbers = recorded(lambda x: x + 1), torch.arange(4.0)
    for value in range(6):
        numbers.fill_(value)
        assert call(numbers).tolist() == [value + 1.0] * 4
    assert call(numbers.view(4)).tolist() == [6.0] * 4
    for other in (numbers.clone(), numbers[:2], numbers.view(2, 2)):
        with pytest.raises(ValueError, match="lie elsewhere"):
            call(other)


# -- a whole training -------------------------------------------------------------------------------


@pytest.fixture
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Collect and sample on the CPU as where looking at a number would wait."""
    make_buffer = TeacherTraining._make_buffer

    def make(training: TeacherTraining, num_worlds: int, device: str) -> TrajectoryBuffer:
        buffer = make_buffer(training, num_worlds, device)
        buffer._reads_are_free = False
        return buffer

    monkeypatch.setattr(TeacherTraining, "_make_buffer", make)
    yield monkeypatch


def train(settings: TrainTeacherSettings, unrolls: int, device: str = "cpu") -> TeacherTraining:
    training = TeacherTraining(settings, TASK, device)
    go_on(training, unrolls)
    return training


def go_on(training: TeacherTraining, unrolls: int) -> None:
    for _ in range(unrolls):
        training.collect()
        for batch in training.relabel():
            training.update(batch)
        training.check_finite(None)


def assert_same_training(one: TeacherTraining, other: TeacherTraining, **tolerance: float) -> None:
    assert one.progress == other.progress and one.progress.updates > 20
    for part in ("learner", "simulator"):
        states = (getattr(training, part).state_dict() for training in (one, other))
        first, second = ({name: torch.as_tensor(v) for name, v in state.items()} for state in states)
        assert_equal({n: v for n, v in first.items() if v.dtype != torch.uint64}, second, **tolerance)
    assert_equal(one.buffer.counters(), other.buffer.counters())
    assert_equal(one.buffer.unsaved_segment(), other.buffer.unsaved_segment(), **tolerance)
    means, same = one.take_metrics(), other.take_metrics()
    assert means == pytest.approx(same, rel=tolerance.get("rtol", 0), abs=tolerance.get("atol", 0))


def test_a_training_of_replays_is_the_training_bit_for_bit(as_on_a_device: pytest.MonkeyPatch):
    eager = train(TINY_TEACHER, 9)
    as_on_a_device.setattr(teacher_training, "CudaRecorder", ReplayRecorder)
    as_on_a_device.setattr(TeacherTraining, "captures", True)
    assert_same_training(train(TINY_TEACHER, 9), eager)


@pytest.mark.slow
def test_a_training_on_warp_goes_on_bit_for_bit_from_a_checkpoint(
    as_on_a_device: pytest.MonkeyPatch, tmp_path: Path
):
    warp_simulator = pytest.importorskip(
        "thousandfold.envs.simulators.warp_simulator", reason="needs MuJoCo Warp"
    )

    def make(*arguments: Any, num_threads: int, **settings: Any) -> Simulator:
        return warp_simulator.WarpSimulator(*arguments, **settings)

    as_on_a_device.setattr(teacher_training, "make_simulator", make)
    settings = TINY_TEACHER.model_copy(update={"updates_per_unroll": 6})
    unbroken = train(settings, 4)
    folder = CheckpointFolder(tmp_path / "checkpoint")
    with folder.lock():
        train(settings, 2).save(folder)
    resumed = TeacherTraining(settings, TASK, "cpu")
    resumed.load(folder)
    go_on(resumed, 2)
    unbroken.buffer.mark_unsaved()
    resumed.buffer.mark_unsaved()
    assert_same_training(unbroken, resumed)
    assert np.array_equal(*(one.simulator.state_dict()["generator"] for one in (unbroken, resumed)))


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_simulator_is_told_whether_to_be_deterministic(
    monkeypatch: pytest.MonkeyPatch, deterministic: bool
):
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(teacher_training, "make_simulator", lambda *_, **settings: told.append(settings))
    TeacherTraining(TINY_TEACHER.model_copy(update={"deterministic": deterministic}), TASK, "cpu")
    assert told[0]["deterministic"] is deterministic


@pytest.mark.parametrize(("size", "device", "said"), [(1, "cuda", 0), (2, "cuda:0", 1), (2, "cpu", 0)])
def test_that_ranks_go_without_graphs_is_said_once(tmp_path: Path, size: int, device: str, said: int):
    context = make_context(tmp_path)
    context.ranks = Ranks(0, size, 0, size)
    lines: list[str] = []
    context.console.say = lines.append
    training = TeacherTraining(TINY_TEACHER, TASK, "cpu")
    training.device = device
    train_teacher._announce(context, training)
    assert sum("without CUDA graphs" in line for line in lines) == said


def test_captures_are_for_one_rank_on_cuda():
    training = TeacherTraining(TINY_TEACHER, TASK, "cpu")
    assert not training.captures
    training.device = "cuda"
    assert training.captures
    training.ranks = copy.copy(training.ranks)
    training.ranks.size = 2
    assert not training.captures
    off = TeacherTraining(TINY_TEACHER.model_copy(update={"cuda_graph": False}), TASK, "cpu")
    off.device = "cuda"
    assert not off.captures


# -- with CUDA --------------------------------------------------------------------------------------


@pytest.fixture
def cuda() -> str:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return "cuda:0"


@pytest.fixture
def never_wait(cuda: str) -> Iterator[None]:
    """Give back the mode that a test sets."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_captured_updates_are_the_updates_on_cuda(cuda: str, settings: dict[str, Any]):
    """24 of them, to what sums in another order leave: a graph may take another algorithm.

    Adam moves a weight by up to 3e-4 an update whatever the size of its gradient, be it all rounding.
    """
    eager = Learning(device=cuda, **settings)
    captured = Learning(CudaRecorder, cuda, **settings)
    eager_metrics, captured_metrics = eager.run(24), captured.run(24)
    for one, other in zip(captured_metrics, eager_metrics, strict=True):
        assert_equal(one, other, rtol=1e-2, atol=1e-3)
    assert_equal(captured.learner.state_dict(), eager.learner.state_dict(), rtol=1e-2, atol=3e-3)
    assert torch.equal(captured.generator.get_state(), eager.generator.get_state())


@pytest.mark.cuda
def test_a_captured_update_goes_on_after_a_state_was_loaded_on_cuda(cuda: str):
    learning = Learning(CudaRecorder, cuda)
    learning.run(8)
    saved, generator = learning.learner.state_dict(), learning.generator.get_state()
    learning.run(3)
    ended = learning.learner.state_dict()
    learning.learner.load_state_dict(saved)
    learning.generator.set_state(generator)
    learning.run(3)
    assert_equal(ended, learning.learner.state_dict(), rtol=1e-3, atol=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize("graphs", [True, False])
def test_no_step_and_no_update_waits_for_the_device_on_cuda(cuda: str, graphs: bool, never_wait: None):
    settings = TINY_TEACHER.model_copy(update={"cuda_graph": graphs})
    training = train(settings, 3, cuda)  # recorded by now, and what is sent to the device once has been
    counts = torch.zeros(3, dtype=torch.int64, device=cuda)
    with training.simulator.unroll(250):  # from step 90 of the first episodes: three of a hundred steps end
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(250):
            teacher_training._step(training.simulator, training.buffer, training.operations.act, counts)
        torch.cuda.set_sync_debug_mode("default")
    assert int(counts[1]) == 3 * settings.num_worlds
    batches = training.relabel()
    training.update(next(batches))
    torch.cuda.set_sync_debug_mode("error")
    for batch in batches:
        training.update(batch)
    torch.cuda.set_sync_debug_mode("default")
    training.check_finite(None)


@pytest.mark.cuda
def test_a_captured_training_is_the_training_on_cuda(cuda: str):
    eager = train(TINY_TEACHER.model_copy(update={"cuda_graph": False}), 9, cuda)
    assert_same_training(train(TINY_TEACHER, 9, cuda), eager, rtol=5e-2, atol=5e-3)
