"""Captured calls do what calls do. On the CPU a recording of operations stands for a CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from tests.stages.tiny_runs import TINY_TEACHER, make_context
from tests.stages.train_teacher.counting import compute_as_on_cuda, operators
from tests.stages.train_teacher.recording import NeverWaits, ReplayRecorder, WouldWait
from thousandfold.envs.registry import compile_task
from thousandfold.envs.simulators.simulator import Simulator
from thousandfold.models.block_stack import BlockStack
from thousandfold.pipeline.checkpoint import CheckpointFolder
from thousandfold.pipeline.distributed import Ranks
from thousandfold.replay.trajectory_buffer import TrajectoryBuffer, TransitionBatch
from thousandfold.stages.captured_call import CapturedCall, CudaRecorder, captured_by_rows
from thousandfold.stages.train_teacher import train_teacher
from thousandfold.stages.train_teacher import training as teacher_training
from thousandfold.stages.train_teacher.cuda_graphs import CapturedUpdate, PlainUpdate
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
def cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all computed as on CUDA, by torch and Warp: operations that can be recorded."""
    compute_as_on_cuda(monkeypatch)


class Learning:
    """A learner, a memory that grows, and the generator of both.

    Args:
        make_recorder: makes what records the calls; None: they are called as they are.
        device: where all lies; on the CPU too, sampling draws as it does on a device.
        ranks: of the learner.
        batches: how many are drawn at once.
    """

    def __init__(
        self,
        make_recorder: Any = None,
        device: str = "cpu",
        ranks: Ranks | None = None,
        batches: int = 2,
        **settings: Any,
    ) -> None:
        self.learner = ContrastiveLearner(TASK, LearnerSettings(**(SMALL | settings)), device, ranks)
        self.buffer = TrajectoryBuffer(WORLDS, 40, observation_dim=4, goal_dim=2, action_dim=2, device=device)
        self.buffer.reads_are_free = False
        self.generator = torch.Generator(device).manual_seed(1)
        self._rows = torch.Generator().manual_seed(2)
        self.recorder = make_recorder and make_recorder(device, [self.generator])
        parts = self.learner, self.buffer, 12, batches, self.generator
        self.updates = CapturedUpdate(*parts, self.recorder) if self.recorder else PlainUpdate(*parts)
        self._batches: Iterator[TransitionBatch] = iter(())
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
        batch = next(self._batches, None)
        if batch is None:
            self._batches = self.updates.batches()
            batch = next(self._batches)
        metrics = self.updates.update(batch)
        return {name: value.clone() for name, value in metrics.items()}

    def run(self, updates: int) -> list[dict[str, torch.Tensor]]:
        """Return the metrics of updates, with rows written in between."""
        metrics = []
        for index in range(updates):
            if index % 4 == 2:
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
        action = learning.learner.act(torch.zeros(WORLDS, 4), torch.zeros(WORLDS, 2), learning.generator)
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
    learning.buffer.reads_are_free = True
    with pytest.raises(WouldWait), NeverWaits():
        learning.buffer.sample(12, 0.9, learning.generator)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_replayed_updates_are_the_updates_bit_for_bit(settings: dict[str, Any]):
    captured, eager = Learning(ReplayRecorder, **settings), Learning(**settings)
    for one, other in zip(captured.run(14), eager.run(14), strict=True):
        assert_equal(one, other)
    assert_equal(captured.learner.state_dict(), eager.learner.state_dict())
    assert torch.equal(captured.generator.get_state(), eager.generator.get_state())
    assert captured.recorder.launches == [1, 1]
    blocks = captured.learner.gradient_by_block()
    assert_equal(blocks, eager.learner.gradient_by_block())
    assert len(blocks) == 3 and isinstance(captured.learner.actor.trunk.body, BlockStack)


def test_replayed_actions_follow_the_weights_and_what_is_seen():
    captured, eager = Learning(ReplayRecorder), Learning()
    acts: list[Any] = [
        partial(learning.learner.act, generator=learning.generator) for learning in (captured, eager)
    ]
    acts[0] = recorded(acts[0])
    observation, goal = torch.zeros(WORLDS, 4), torch.zeros(WORLDS, 2)
    for index in range(9):
        observation.fill_(index)
        goal.fill_(-index)
        assert torch.equal(*[act(observation, goal).clone() for act in acts])
        for learning in (captured, eager):
            learning.update()


def test_a_state_loaded_after_the_recording_goes_on_as_it_did():
    learning = Learning(ReplayRecorder, warmup_updates=20, average_decay=0.5, batches=1)
    learning.run(8)
    saved, generator = learning.learner.state_dict(), learning.generator.get_state()
    before = [learning.update() for _ in range(3)]
    ended = learning.learner.state_dict()
    learning.learner.load_state_dict(saved)
    learning.generator.set_state(generator)
    for one, other in zip(before, [learning.update() for _ in range(3)], strict=True):
        assert_equal(one, other)
    assert_equal(ended, learning.learner.state_dict())


class OfTwo(Ranks):
    """The first of two ranks. The other one, which is made up, has no gradient."""

    def __init__(self) -> None:
        super().__init__(0, 2, 0, 2)
        self.exchanges = 0

    def average_(self, tensors: Sequence[torch.Tensor]) -> None:
        """Halve what there is, outside of all recordings."""
        assert not _get_current_dispatch_mode_stack()
        self.exchanges += 1
        for tensor in tensors:
            tensor.mul_(0.5)


def test_with_several_ranks_the_exchange_stands_between_the_graphs_of_an_update():
    one_of_two, other_of_two = OfTwo(), OfTwo()
    captured, eager = Learning(ReplayRecorder, ranks=one_of_two), Learning(ranks=other_of_two)
    for one, other in zip(captured.run(9), eager.run(9), strict=True):
        assert_equal(one, other)
    assert_equal(captured.learner.state_dict(), eager.learner.state_dict())
    assert captured.recorder.launches == [3, 1]  # the update, with the exchange between two graphs; a draw
    assert one_of_two.exchanges == other_of_two.exchanges == 9


def test_goals_that_ranks_exchange_in_the_midst_of_an_update_keep_it_out_of_graphs():
    alone, together = Learning(global_negatives=True), Learning(ranks=OfTwo(), global_negatives=True)
    assert alone.learner.can_be_captured and not together.learner.can_be_captured
    assert Learning(ranks=OfTwo()).learner.can_be_captured


def test_a_captured_update_takes_no_batch_but_the_last():
    learning = Learning(ReplayRecorder)
    batch = next(learning.updates.batches())
    learning.updates.update(batch)
    with pytest.raises(ValueError, match="handed out last"):
        learning.updates.update(batch.part(slice(0, 12)))


@pytest.mark.parametrize("count", [1, 3, 64, 65, 130])
def test_an_unroll_has_as_many_batches_as_it_takes_updates(count: int):
    """However many are drawn at once; each is of its own rows."""
    for make_recorder in (None, ReplayRecorder):
        batches = [batch.columns() for batch in Learning(make_recorder, batches=count).updates.batches()]
        assert len(batches) == count
        assert all(len(column) == 12 for batch in batches for column in batch.values())


def test_batches_drawn_at_once_are_the_rows_of_one_draw_in_turn():
    learning, other = Learning(batches=3), Learning()
    drawn = other.buffer.sample(36, other.learner.settings.discount, other.generator)
    found = [batch.columns() for batch in learning.updates.batches()]
    for name, column in drawn.columns().items():
        assert torch.equal(torch.cat([batch[name] for batch in found]), column)


@pytest.mark.parametrize("settings", [{}, {"early_ends": "lost", "critic_goals": "relative"}], ids=str)
def test_a_batch_costs_four_operators_at_most(settings: dict[str, Any]):
    """Each counts that runs on the device: those of the draw, shared by the unroll's batches, and the copies.

    Counted in a call that is not recorded yet, which runs what the graph will hold; 48 is the default of
    `updates_per_unroll`.
    """
    learning = Learning(ReplayRecorder, batches=48, **settings)
    assert 48 < operators(lambda: list(learning.updates.batches())).total() <= 4 * 48


def test_a_state_of_before_the_first_update_is_loaded_as_such():
    fresh = Learning().learner.state_dict()
    learning, other = Learning(batches=1), Learning(batches=1)
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

    call = recorded(add)
    assert [int(call()) for _ in range(7)] == [1, 2, 3, 4, 5, 6, 7]
    assert calls == ["call"] * 4


def test_arguments_that_lie_elsewhere_are_refused():
    call, numbers = recorded(lambda x: x + 1), torch.arange(4.0)
    for value in range(6):
        numbers.fill_(value)
        assert call(numbers).tolist() == [value + 1.0] * 4
    assert call(numbers.view(4)).tolist() == [6.0] * 4
    for other in (numbers.clone(), numbers[:2], numbers.view(2, 2)):
        with pytest.raises(ValueError, match="lie elsewhere"):
            call(other)


def test_arguments_may_lie_anywhere_where_each_number_of_rows_has_its_own_recording():
    recorder = ReplayRecorder()
    call = captured_by_rows(lambda x, y: x + y, cast(CudaRecorder, recorder))
    for value in range(6):
        for rows in (1, 3):
            assert call(torch.full((rows,), value), torch.ones(rows)).tolist() == [value + 1.0] * rows
    assert recorder.recorded == 2


# -- a whole training -------------------------------------------------------------------------------


@pytest.fixture
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Collect and sample on the CPU as where looking at a number would wait."""
    make_buffer = TeacherTraining._make_buffer

    def make(training: TeacherTraining, num_worlds: int, device: str) -> TrajectoryBuffer:
        buffer = make_buffer(training, num_worlds, device)
        buffer.reads_are_free = False
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


@pytest.fixture
def on_warp(as_on_a_device: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Collect as on a device from MuJoCo Warp's worlds, on its CPU device."""
    warp_simulator = pytest.importorskip(
        "thousandfold.envs.simulators.warp_simulator", reason="needs MuJoCo Warp"
    )

    def make(*arguments: Any, num_threads: int, **settings: Any) -> Simulator:
        return warp_simulator.WarpSimulator(*arguments, **settings)

    as_on_a_device.setattr(teacher_training, "make_simulator", make)
    return as_on_a_device


def test_a_training_of_replays_is_the_training_bit_for_bit(on_warp: pytest.MonkeyPatch):
    """Control steps, batches and updates; the last unrolls are replays alone, and episodes end in them.

    What is counted are the host's launches, acting included: a graph counts as one, of torch's or of MuJoCo
    Warp's, however many kernels it holds.
    """
    eager = train(TINY_TEACHER, 9)
    recorders: list[ReplayRecorder] = []

    def make_recorder(*arguments: Any) -> ReplayRecorder:
        recorders.append(ReplayRecorder(*arguments))
        return recorders[-1]

    on_warp.setattr(teacher_training, "CudaRecorder", make_recorder)
    on_warp.setattr(TeacherTraining, "captures", True)
    assert_same_training(train(TINY_TEACHER, 9), eager)
    control_step, update, draw = recorders[0].launches
    assert control_step == 5 and update == draw == 1


@pytest.mark.slow
def test_a_training_on_warp_goes_on_bit_for_bit_from_a_checkpoint(
    on_warp: pytest.MonkeyPatch, tmp_path: Path
):
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


@pytest.mark.parametrize(
    ("size", "device", "together", "said"),
    [
        (1, "cuda", True, 0),
        (2, "cuda:0", True, 1),
        (2, "cuda:0", False, 0),
        (2, "cpu", True, 0),
    ],
)
def test_that_ranks_go_without_graphs_is_said_once(
    tmp_path: Path, size: int, device: str, together: bool, said: int
):
    context = make_context(tmp_path)
    context.ranks = Ranks(0, size, 0, size)
    lines: list[str] = []
    context.console.say = lines.append
    settings = TINY_TEACHER.model_copy(update={"global_negatives": together})
    training = TeacherTraining(settings, TASK, "cpu", context.ranks)
    training.device = device
    train_teacher._announce(context, training)
    assert sum("without CUDA graphs" in line for line in lines) == said


def test_captures_are_for_cuda():
    training = TeacherTraining(TINY_TEACHER, TASK, "cpu")
    assert not training.captures
    training.device = "cuda"
    assert training.captures
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
    with training.simulator.unroll(250):  # from step 90 of the first episodes: three of a hundred steps end
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(250):
            training.rollout.step()
        torch.cuda.set_sync_debug_mode("default")
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
