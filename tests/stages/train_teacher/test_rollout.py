"""The rows in memory are what the simulator showed, when it showed it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import pytest
import torch

from thousandfold.envs.registry import compile_task
from thousandfold.envs.simulators.simulator import Simulator, StepResult
from thousandfold.replay.trajectory_buffer import TrajectoryBuffer
from thousandfold.stages.train_teacher.training import Rollout, RolloutStatistics

WORLDS, EPISODE_STEPS = 3, 5


@pytest.fixture(autouse=True, params=[True, False], ids=["cpu", "device"])
def asking_is_free(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Collect as on the CPU, and as where asking whether an episode ended would wait for the device."""
    if not request.param:
        monkeypatch.setattr(TrajectoryBuffer, "known_empty", lambda *_: False)


class ScriptedSimulator:
    """Shows the numbers [world, episode, step] in arrays that every call overwrites.

    Args:
        terminates, diverges: (world, episode) to the step that ends the episode so.
    """

    def __init__(
        self,
        terminates: dict[tuple[int, int], int] | None = None,
        diverges: dict[tuple[int, int], int] | None = None,
    ) -> None:
        self.num_worlds, self.overflow_count = WORLDS, 0
        self.terminates, self.diverges = terminates or {}, diverges or {}
        self.episode, self.step_in_episode = np.zeros(WORLDS, int), np.zeros(WORLDS, int)
        self.observation = np.zeros((WORLDS, 3), np.float32)
        self.achieved_goal = np.zeros((WORLDS, 2), np.float32)
        self.desired_goal = np.zeros((WORLDS, 2), np.float32)
        self.actions: list[np.ndarray] = []
        self._show()

    def _show(self) -> None:
        self.observation[:] = np.stack([np.arange(WORLDS), self.episode, self.step_in_episode], 1)
        self.achieved_goal[:] = self.observation[:, 1:] + 0.5
        self.desired_goal[:] = self.observation[:, :2] + 100

    def unroll(self, steps: int) -> AbstractContextManager[None]:
        return nullcontext()

    def step(self, action: Any) -> StepResult:
        self.actions.append(action.numpy().copy())
        self.step_in_episode += 1
        self._show()
        keys = list(zip(range(WORLDS), self.episode.tolist(), strict=True))
        steps = self.step_in_episode.tolist()
        terminated = [self.terminates.get(key) == step for key, step in zip(keys, steps, strict=True)]
        unstable = [self.diverges.get(key) == step for key, step in zip(keys, steps, strict=True)]
        if any(unstable):  # what a diverged world shows must never be stored
            self.observation[unstable] = self.achieved_goal[unstable] = np.nan
        success = self.step_in_episode == 2
        truncated = self.step_in_episode >= EPISODE_STEPS
        return StepResult(success, np.array(terminated), truncated, np.array(unstable))

    def reset(self, worlds: Any = None) -> None:
        chosen = np.asarray(worlds)
        self.episode[chosen] += 1
        self.step_in_episode[chosen] = 0
        self._show()


def act(observation: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    """Act with a number that tells the observation and the goal that were given."""
    return (observation.sum(1, keepdim=True) + 10 * goal.sum(1, keepdim=True)).clone()


def make_buffer(capacity: int = 64) -> TrajectoryBuffer:
    return TrajectoryBuffer(WORLDS, capacity, observation_dim=3, goal_dim=2, action_dim=1)


def run(simulator: ScriptedSimulator, buffer: TrajectoryBuffer, steps: int) -> RolloutStatistics:
    return Rollout(cast(Simulator, simulator), buffer, act).collect(steps)


def rows_of(buffer: TrajectoryBuffer, world: int) -> list[tuple[int, int, float]]:
    """Return (episode shown, step shown, action) of a world's rows, after checking their columns."""
    segment = buffer.unsaved_segment()
    place = int(segment["rows"][:world].sum())
    mine = slice(place, place + int(segment["rows"][world]))
    observation = segment["observation"][mine]
    assert torch.equal(segment["achieved_goal"][mine], observation[:, 1:] + 0.5)
    assert (observation[:, 0] == world).all()
    shown = observation[:, 1:].int().tolist()
    return [
        (episode, step, float(action))
        for (episode, step), action in zip(shown, segment["action"][mine], strict=True)
    ]


def action_at(world: int, episode: int, step: int) -> float:
    return world + episode + step + 10.0 * (world + 100 + episode + 100)


def full_episode(world: int, episode: int, end: int = EPISODE_STEPS) -> list[tuple[int, int, float]]:
    """Return an episode's rows with its final observation, which has no action."""
    rows = [(episode, step, action_at(world, episode, step)) for step in range(end)]
    return [*rows, (episode, end, 0.0)]


def test_rows_are_what_the_simulator_showed_before_each_action():
    simulator, buffer = ScriptedSimulator(), make_buffer()
    statistics = run(simulator, buffer, 3)
    for world in range(WORLDS):
        assert rows_of(buffer, world) == [(0, step, action_at(world, 0, step)) for step in range(3)]
    assert [action.flatten().tolist() for action in simulator.actions] == [
        [action_at(world, 0, step) for world in range(WORLDS)] for step in range(3)
    ]
    assert statistics == RolloutStatistics(env_steps=9, successes=3, episodes=0, unstable=0)


def test_a_truncated_episode_ends_with_its_final_observation_and_a_fresh_one_follows():
    simulator, buffer = ScriptedSimulator(), make_buffer()
    statistics = run(simulator, buffer, EPISODE_STEPS + 2)
    for world in range(WORLDS):
        begun = [(1, step, action_at(world, 1, step)) for step in range(2)]
        assert rows_of(buffer, world) == full_episode(world, 0) + begun
    assert buffer.counters()["episode"].tolist() == [1] * WORLDS
    assert statistics == RolloutStatistics(env_steps=21, successes=6, episodes=3, unstable=0)


def test_unrolls_go_on_in_the_middle_of_an_episode():
    split, whole = make_buffer(), make_buffer()
    simulator = ScriptedSimulator()
    statistics = [run(simulator, split, steps) for steps in (2, 4, 1)]
    run(ScriptedSimulator(), whole, 7)
    for name, column in whole.unsaved_segment().items():
        assert torch.equal(column, split.unsaved_segment()[name]), name
    assert [part.env_steps for part in statistics] == [6, 12, 3]


def test_an_early_end_is_an_end_of_its_world_alone():
    simulator, buffer = ScriptedSimulator(terminates={(1, 0): 2}), make_buffer()
    statistics = run(simulator, buffer, 4)
    assert rows_of(buffer, 1) == full_episode(1, 0, end=2) + [(1, s, action_at(1, 1, s)) for s in range(2)]
    assert rows_of(buffer, 0) == [(0, step, action_at(0, 0, step)) for step in range(4)]
    assert buffer.counters()["episode"].tolist() == [0, 1, 0]
    assert statistics.episodes == 1 and statistics.unstable == 0


def test_the_early_end_may_fall_on_the_last_step():
    buffer = make_buffer()
    statistics = run(ScriptedSimulator(terminates={(0, 0): EPISODE_STEPS}), buffer, EPISODE_STEPS)
    assert rows_of(buffer, 0) == full_episode(0, 0)
    assert statistics.episodes == WORLDS


def test_a_diverged_episode_is_dropped_whole_and_its_world_goes_on():
    simulator, buffer = ScriptedSimulator(diverges={(2, 1): 3}), make_buffer()
    statistics = run(simulator, buffer, EPISODE_STEPS + 3 + 2)
    begun = [(2, step, action_at(2, 2, step)) for step in range(2)]
    assert rows_of(buffer, 2) == full_episode(2, 0) + begun  # nothing of episode 1
    for world in (0, 1):
        assert rows_of(buffer, world) == full_episode(world, 0) + full_episode(world, 1)
    assert statistics.unstable == 1 and statistics.episodes == 5
    assert all(bool(column.isfinite().all()) for column in buffer.unsaved_segment().values())


def test_divergence_on_the_last_step_is_no_regular_end():
    buffer = make_buffer()
    statistics = run(ScriptedSimulator(diverges={(0, 0): EPISODE_STEPS}), buffer, EPISODE_STEPS)
    assert rows_of(buffer, 0) == []
    assert statistics.unstable == 1 and statistics.episodes == WORLDS - 1
    assert buffer.counters()["episode"].tolist() == [0, 1, 1]


def test_divergence_counts_also_where_the_task_ended_at_once():
    buffer = make_buffer()
    statistics = run(ScriptedSimulator({(1, 0): 3}, {(1, 0): 3}), buffer, 3)
    assert rows_of(buffer, 1) == [] and statistics.unstable == 1 and statistics.episodes == 0


def test_an_episode_that_lost_contacts_is_dropped_and_counted_as_such():
    """On MuJoCo Warp, with room for no contact: the row before the corner is dropped with what came of it."""
    warp_simulator = pytest.importorskip(
        "thousandfold.envs.simulators.warp_simulator", reason="needs MuJoCo Warp"
    )
    simulator = warp_simulator.WarpSimulator(compile_task("point_u_maze"), WORLDS, njmax=1)
    simulator.set_state(np.array([(0.6, 0.6), (1.0, 2.0), (1.0, 2.0)]), np.zeros((WORLDS, 2)))
    buffer = TrajectoryBuffer(WORLDS, 64, observation_dim=4, goal_dim=2, action_dim=2)
    statistics = Rollout(simulator, buffer, lambda *_: torch.zeros(3, 2)).collect(1)
    assert statistics == RolloutStatistics(env_steps=3, unstable=1, overflowed=1)
    assert buffer.unsaved_segment()["rows"].tolist() == [0, 1, 1]
    assert simulator.episode_step.tolist() == [0, 1, 1] and simulator.observation[0].any()
