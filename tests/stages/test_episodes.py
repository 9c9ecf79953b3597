"""What an episode's outcome is: held for long enough, touched, there at the end."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import get_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.simulators.simulator import StepResult
from thousandfold.envs.task import EarlyEnd, TaskError, Term
from thousandfold.stages.episodes import chance_of_difference, run_episodes, run_round
from thousandfold.stages.videos import record_episodes

STEPS = 6
THERE = {"never": "000000", "once": "010000", "twice": "011011", "three": "001110", "to the end": "000111"}


class Scripted(CpuSimulator):
    """Worlds that are at their goal when a script says so; one diverges in its fifth step."""

    def step(self, action: np.ndarray) -> StepResult:
        result = super().step(action)
        now = int(self.episode_step[0]) - 1
        there = np.array([script[now] == "1" for script in THERE.values()] + [True])
        unstable = np.array([False] * len(THERE) + [now == 4])
        return result._replace(success=there & ~unstable, unstable=unstable)


def outcomes(hold_steps: int) -> Any:
    task = dataclasses.replace(get_task("point_u_maze"), episode_steps=STEPS, hold_steps=hold_steps)
    simulator = Scripted(CompiledTask(task), len(THERE) + 1, num_threads=1)
    return run_round(simulator, lambda observation, goal: np.zeros((len(goal), 2)))


@pytest.mark.parametrize(
    ("hold_steps", "held"),
    [(1, [0, 1, 1, 1, 1, 0]), (2, [0, 0, 1, 1, 1, 0]), (3, [0, 0, 0, 1, 1, 0]), (4, [0] * 6)],
)
def test_a_success_is_a_goal_that_is_held(hold_steps: int, held: list[int]) -> None:
    found = outcomes(hold_steps)
    assert found.success.astype(int).tolist() == held
    assert found.touched.astype(int).tolist() == [0, 1, 1, 1, 1, 0]
    assert found.at_end.astype(int).tolist() == [0, 0, 1, 0, 1, 0]
    summary = found.summary()
    assert (summary["success"], summary["touched"]) == (sum(held) / 6, 4 / 6)
    assert summary["at_goal_at_end"] == 2 / 6


@pytest.mark.parametrize("hold_steps", [0, STEPS + 1])
def test_no_episode_can_hold_longer_than_it_lasts(hold_steps: int) -> None:
    with pytest.raises(TaskError, match=f"hold_steps {hold_steps} must be at least 1 and no more than the 6"):
        outcomes(hold_steps)


def test_of_goals_that_change_every_one_must_be_held() -> None:
    """Another one is commanded with the state of step 3."""
    task = dataclasses.replace(get_task("point_u_maze"), episode_steps=STEPS, resample_every=3)
    simulator = Scripted(CompiledTask(task), len(THERE) + 1, num_threads=1)
    first = simulator.desired_goal.copy()
    found = run_round(simulator, lambda observation, goal: np.zeros((len(goal), 2)))
    last = simulator.desired_goal
    assert found.success.astype(int).tolist() == [0, 0, 1, 0, 0, 0]
    assert found.touched.astype(int).tolist() == [0, 1, 1, 1, 1, 0]
    assert found.goals_held is not None and found.goals_held.tolist() == [0, 0.5, 1, 0.5, 0.5, 0]
    assert found.summary()["goals_held"] == pytest.approx(2.5 / 6)
    low, high = found.summary()["goals_held_interval"]
    assert 0 <= low < 2.5 / 6 < high <= 1
    assert (found.goal == first).all() and (last != first).any(1).all(), "what is told is the start's"
    away = np.linalg.norm(found.start - last, axis=1)
    assert found.final_distance == pytest.approx(away, abs=1e-5), "they stood still"


def test_who_falls_before_the_last_goal_has_not_held_it() -> None:
    """Every world is at its first goal, and ends at its second step, before another one is commanded."""
    too_fast = EarlyEnd(Term("qvel"), low=-0.5, high=0.5)
    spec = dataclasses.replace(get_task("point_u_maze"), episode_steps=STEPS, early_end=(too_fast,))
    push = np.ones((2, 2), np.float32)
    for resample_every, expected in ((3, 0.0), (0, 1.0)):
        task = CompiledTask(dataclasses.replace(spec, resample_every=resample_every))
        simulator = CpuSimulator(task, 2, num_threads=1)
        simulator.set_goal(simulator.achieved_goal.copy())
        found = run_round(simulator, lambda observation, goal: push)
        assert found.touched.all() and found.success.mean() == expected
        by_hand = 1.0 if resample_every else None  # one goal for the whole episode
        assert found.summary().get("goals_held") == by_hand
        (recorded,) = record_episodes(task, lambda o, g: push[:1], episodes=1, seed=0)
        assert recorded.cut == bool(resample_every) and len(recorded.at_goal) < STEPS


def test_goals_that_an_early_end_keeps_from_coming_are_not_held() -> None:
    """Every world holds its first goal of three and ends at its second step."""
    too_fast = EarlyEnd(Term("qvel"), low=-0.5, high=0.5)
    spec = dataclasses.replace(get_task("point_u_maze"), early_end=(too_fast,), resample_every=2)
    task = CompiledTask(dataclasses.replace(spec, episode_steps=STEPS))
    simulator = CpuSimulator(task, 2, num_threads=1)
    simulator.desired_goal[:] = simulator.achieved_goal
    found = run_round(simulator, lambda observation, goal: np.ones((2, 2), np.float32))
    assert found.goals_held == pytest.approx(1 / 3)


def test_goals_held_are_those_of_all_rounds_and_episodes_of_one_goal_have_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("thousandfold.stages.episodes.MAX_WORLDS", 4)
    spec = dataclasses.replace(get_task("point_u_maze"), episode_steps=40)

    def towards(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        return np.clip(5 * (goal - observation[:, :2]), -1, 1)

    task = CompiledTask(dataclasses.replace(spec, resample_every=20))
    found = run_episodes(task, towards, episodes=10, seed=0, distribution="training")
    assert found.goals_held is not None and set(found.goals_held.tolist()) <= {0, 0.5, 1}
    assert ((found.goals_held == 1) == found.success).all() and 0 < found.goals_held.mean() < 1
    single = run_episodes(CompiledTask(spec), towards, episodes=10, seed=0)
    assert single.goals_held is None and "goals_held" not in single.summary()


@pytest.mark.parametrize(
    ("gained", "lost", "chance"),
    [
        (0, 0, 1.0),
        (0, 1, 1.0),
        (2, 2, 1.0),
        (0, 7, 2 / 2**7),
        (8, 0, 2 / 2**8),
        (1, 9, 22 / 2**10),
        (0, 2000, 0.0),
    ],
)
def test_the_chance_of_a_difference_is_that_of_tossed_coins(gained: int, lost: int, chance: float):
    ours = np.repeat([True, False, True, False], [gained, lost, 5, 5])
    theirs = np.repeat([False, True, True, False], [gained, lost, 5, 5])
    assert chance_of_difference(ours, theirs) == pytest.approx(chance)
