"""What the simulator on MuJoCo Warp does beyond the contract: starts in advance, replay, lost contacts.

Warp records and replays launches on the CPU too, which is how most of this is tested without a GPU.
"""

from __future__ import annotations

import dataclasses
import operator
from functools import partial
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch comes with the extra `train`")
pytest.importorskip("mujoco_warp", reason="MuJoCo Warp comes with the extra `train`")

from tests.envs.any_simulator import WORLDS, numpy  # noqa: E402
from tests.stages.train_teacher.recording import NeverWaits, ReplayRecorder, WouldWait  # noqa: E402
from thousandfold.envs.compiled_task import CompiledTask  # noqa: E402
from thousandfold.envs.registry import get_task  # noqa: E402
from thousandfold.envs.simulators.warp_simulator import WarpSimulator  # noqa: E402
from thousandfold.envs.task import EarlyEnd, Sensor, Term  # noqa: E402
from thousandfold.envs.tasks.point import build_spec  # noqa: E402
from thousandfold.stages.captured_call import CapturedCall, CudaRecorder  # noqa: E402

OPEN = " ".join("." * 9 for _ in range(9))  # rows of a layout without walls


def make(task: CompiledTask, device: str = "cpu", **settings: Any) -> WarpSimulator:
    if device != "cpu" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return WarpSimulator(task, WORLDS, device=device, **({"seed": 3} | settings))


def changed(**changes: Any) -> CompiledTask:
    return CompiledTask(dataclasses.replace(get_task("point_u_maze"), **changes))


def mask(*worlds: int) -> np.ndarray:
    chosen = np.zeros(WORLDS, bool)
    chosen[list(worlds)] = True
    return chosen


def play(simulator: WarpSimulator, steps: int = 30) -> list[np.ndarray]:
    """Return what is read after each step and each reset of an unroll in which worlds hit walls and end."""
    actions = np.random.default_rng(5).uniform(-1, 1, (steps, WORLDS, 2)).astype(np.float32) * 2
    seen = []
    with simulator.unroll(steps):
        for step, action in enumerate(actions):
            simulator.step(action)
            seen.append(numpy(simulator.observation))
            simulator.reset(mask(*[world for world in range(WORLDS) if step % (7 + world) == 6]))
            seen.append(numpy(simulator.observation))
    return seen


def derived_task() -> CompiledTask:
    """Return a task that reads every kind of field: of the state, of the kinematics, of the forces."""
    terms = (Term("qpos"), Term("qvel"), Term("xpos", "point"), Term("cvel", "point"), Term("qfrc_actuator"))
    return changed(observation=terms, episode_steps=20)


@pytest.mark.parametrize("kinds", ["every kind of field", "state alone"])
def test_replayed_launches_do_what_launches_one_by_one_do(kinds: str, task: CompiledTask) -> None:
    played = task if kinds == "state alone" else derived_task()
    for one, other in zip(play(make(played)), play(make(played, record=False)), strict=True):
        assert np.array_equal(one, other)


def sensed_task() -> CompiledTask:
    """Return a task without contacts, with senses, delays and early ends."""
    sensor = Sensor(noise=0.1, bias=0.2, delay=(0, 2), dropout=0.2, history=2)
    return changed(
        observation=(Term("qpos", sensor=sensor), Term("qvel")),
        action_delay=(0, 2),
        early_end=(EarlyEnd(Term("qvel"), -0.1, 0.1),),
        episode_steps=9,
        build_spec=lambda: build_spec(OPEN),
    )


@pytest.mark.parametrize("make_recorder", [ReplayRecorder, pytest.param("cuda:0", marks=pytest.mark.cuda)])
def test_recorded_control_steps_with_resets_are_the_control_steps(make_recorder: Any) -> None:
    """Recorded by torch, with Warp's launches between; in the second unroll they are replays alone."""
    device = "cpu" if make_recorder is ReplayRecorder else make_recorder
    plain, recorded = (make(sensed_task(), device, deterministic=True) for _ in range(2))
    recorder: Any = ReplayRecorder() if device == "cpu" else CudaRecorder(device, recorded.device_generators)

    def step(simulator: WarpSimulator, action: torch.Tensor) -> None:
        result = simulator.step(action)
        simulator.reset(result.terminated | result.truncated | result.unstable)

    calls = partial(step, plain), CapturedCall(partial(step, recorded), recorder)
    action, ends = torch.zeros(WORLDS, 2, device=device), 0
    for _ in range(2):
        with plain.unroll(12), recorded.unroll(12):
            for _ in range(12):
                action.copy_(torch.rand(WORLDS, 2) * 2 - 1)
                for call in calls:
                    call(action)
                ends += int((plain.episode_step == 0).sum())
                for name in plain.shown:
                    assert torch.equal(getattr(plain, name), getattr(recorded, name)), name
    assert ends > 2 * WORLDS
    generators = recorded.device_generators
    recorded.reset()
    assert len(generators) == 2
    assert all(map(operator.is_, generators, recorded.device_generators))


@pytest.mark.cuda
def test_captured_control_steps_and_resets_equal_eager_ones_on_cuda() -> None:
    """To 1e-3 (1 + |x|): contacts are added up in another order each time."""
    simulators = [make(derived_task(), "cuda:0", record=record) for record in (True, False)]
    for one, other in zip(*map(play, simulators), strict=True):
        assert (np.abs(one - other) <= 1e-3 * (1 + np.abs(other))).all()


def test_an_unroll_asks_for_no_number() -> None:
    simulator = make(derived_task())
    over = torch.tensor([True, False, False, True])
    with simulator.unroll(2), NeverWaits():
        for _ in range(2):
            simulator.step(torch.ones(WORLDS, 2))
            simulator.reset(over)
            simulator.set_goal(torch.zeros(WORLDS, 2), ~over)
    with pytest.raises(WouldWait), NeverWaits():
        simulator.reset(over)


@pytest.mark.cuda
def test_an_unroll_on_cuda_never_waits_for_the_device() -> None:
    simulator = make(derived_task(), device="cuda:0")
    action = torch.zeros(WORLDS, 2, device="cuda:0")
    simulator.step(action)  # sends the control range, once
    simulator.reset()
    with simulator.unroll(60):
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(60):
                result = simulator.step(action.uniform_(-1, 1))
                simulator.reset(result.truncated | result.unstable)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert (numpy(simulator.episode_step) == 0).all()
    assert simulator.reused_starts == 0


@pytest.mark.parametrize(
    ("changes", "steps", "size"),
    [
        ({"episode_steps": 100}, 100, 3),
        ({"episode_steps": 100}, 30, 2),
        ({"episode_steps": 10}, 100, 12),
        ({"episode_steps": 100, "early_end": (EarlyEnd(Term("qvel"), -9, 9),)}, 100, 25),
        ({"episode_steps": 2, "early_end": (EarlyEnd(Term("qvel"), -9, 9),)}, 100, 52),
    ],
)
def test_an_unroll_draws_starts_for_all_episodes_that_may_end(
    changes: dict[str, Any], steps: int, size: int
) -> None:
    simulator = make(changed(**changes))
    with simulator.unroll(steps):
        assert len(simulator._pool) == size * WORLDS


def test_starts_that_serve_twice_are_counted(task: CompiledTask) -> None:
    simulator = make(task)
    shown = []
    with simulator.unroll(1):  # draws two starts a world
        for _ in range(5):
            simulator.reset(mask(0, 1, 3))
            shown += numpy(simulator.desired_goal)[[0, 1, 3]].tolist()
    assert simulator.reused_starts == 15 - 8
    assert shown[8:] == shown[:7] and len({tuple(goal) for goal in shown}) == 8
    with simulator.unroll(1):
        simulator.reset(mask(2))
    assert simulator.reused_starts == 7


def test_there_is_no_state_inside_an_unroll(task: CompiledTask) -> None:
    simulator = make(task)
    with simulator.unroll(1), pytest.raises(RuntimeError, match="no state to save"):
        simulator.state_dict()
    with pytest.raises(ZeroDivisionError), simulator.unroll(1):
        raise ZeroDivisionError
    simulator.state_dict()


def test_arrays_are_the_physics_own_memory(task: CompiledTask) -> None:
    """What torch reads is what Warp wrote, without a copy."""
    simulator = make(derived_task())
    for name, field in simulator._fields.items():
        assert field.data_ptr() == getattr(simulator._data, name).ptr, name
    simulator.step(torch.ones(WORLDS, 2))
    assert torch.equal(simulator.observation[:, :2], simulator._fields["qpos"])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.cuda)])
def test_deterministic_worlds_repeat_bit_for_bit(device: str) -> None:
    """On CUDA only out of contact: here they fly, and no wall is near."""
    free = changed(build_spec=lambda: build_spec(OPEN), observation=derived_task().spec.observation)
    simulators = [make(free, device, deterministic=True) for _ in range(2)]
    assert all(simulator._model.opt.deterministic for simulator in simulators)
    for one, other in zip(*map(play, simulators), strict=True):
        assert np.array_equal(one, other)
    assert not make(free, device)._model.opt.deterministic


def test_deterministic_sums_are_the_same_sums(task: CompiledTask) -> None:
    for one, other in zip(play(make(task, deterministic=True)), play(make(task)), strict=True):
        assert np.array_equal(one, other)
