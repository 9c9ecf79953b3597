"""Closed-loop episodes: success, time at goal, and honest intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydantic

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.simulators.simulator import StepResult
from thousandfold.ground.runs import HeldGoals
from thousandfold.pipeline.settings import StageSettings

# -- How a teacher's action may be the best of several, as its critic holds them -------------------


class SamplingSettings(StageSettings):
    """How the teacher's action is chosen."""

    teacher_samples: int = pydantic.Field(
        default=1,
        ge=1,
        le=1024,
        description="candidate actions from which the teacher's critic chooses; 1: the mean action",
    )
    sample_scale: float = pydantic.Field(
        default=0.1,
        gt=0,
        le=10,
        description="standard deviation of these candidates, relative to the teacher's; a critic judges "
        "actions far from the mean badly",
    )


# --------------------------------------------------------------------------------------------------

Policy = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Maps observations (n, observation_dim) and goals (n, goal_dim) to actions (n, action_dim) in [−1, 1]."""
HISTORY_FILE = "history.json"
"""Every evaluation of a training, of a teacher or a student, as ``{"history": [...]}``.

A teacher's has ``evaluated`` too: from which environment step on evaluations draw from which distribution.
"""

Z_95 = 1.959963984540054
LEAST_CHANCE = 0.01
"""Below that a difference of success between two runtimes is held against the one."""
MAX_WORLDS = 256
_BOOTSTRAP_DRAWS = 4000
_CHUNK_NUMBERS = 2**22  # of a resampling at a time, 32 MiB
_MEAN_DRAWS = 1000
_OUTCOMES = (
    "success", "time_at_goal", "final_distance", "closest_distance", "start", "goal", "unstable", "touched",
    "at_end",
)  # fmt: skip


@dataclass(frozen=True)
class Episodes:
    """Outcomes of closed-loop episodes; episode i has the same start and goal for every policy and seed.

    Attributes:
        success: (episodes,) bool, as many steps in a row within the success region as the task asks for; of
            every goal, where several are commanded one after the other.
        touched: (episodes,) bool, at least one step within the success region.
        at_end: (episodes,) bool, the last step within the success region.
        time_at_goal: (episodes,) steps within the success region, per 1000 steps.
        final_distance: (episodes,) distance to the goal after the last step.
        closest_distance: (episodes,) smallest distance to the goal of the step after any step.
        start: (episodes, goal_dim) what was achieved at the start.
        goal: (episodes, goal_dim) what was commanded, at the start.
        unstable: (episodes,) bool, the physics diverged; such an episode counts as a failure.
        paths: achieved goals of the first episodes, one (steps + 1, goal_dim) each.
        other_radii: further radii that successes are counted for, by name.
        goals_held: (episodes,) share of the episode's goals that were held, each within its own time; those
            that an early end kept from coming were not. None where every episode has one goal.
    """

    success: np.ndarray
    time_at_goal: np.ndarray
    final_distance: np.ndarray
    closest_distance: np.ndarray
    start: np.ndarray
    goal: np.ndarray
    unstable: np.ndarray
    touched: np.ndarray
    at_end: np.ndarray
    paths: list[np.ndarray] = field(default_factory=list)
    other_radii: Mapping[str, float] = field(default_factory=dict)
    goals_held: np.ndarray | None = None

    def summary(self) -> dict[str, Any]:
        """Return success and final distance with 95 % intervals, time at goal and the episode count.

        ``success_easy`` and the like count episodes that came within the task's other radii; ``goals_held``
        is the share of the commanded goals, where episodes have several.
        """
        low, high = wilson_interval(int(self.success.sum()), len(self.success))
        others: dict[str, Any] = {
            f"success_{name}": float(((self.closest_distance < radius) & ~self.unstable).mean())
            for name, radius in self.other_radii.items()
        }
        if self.goals_held is not None:
            others["goals_held"] = float(self.goals_held.mean())
            others["goals_held_interval"] = list(mean_interval(self.goals_held))
        return others | {
            "episodes": len(self.success),
            "success": float(self.success.mean()),
            "success_interval": [low, high],
            "touched": float(self.touched.mean()),
            "at_goal_at_end": float(self.at_end.mean()),
            "time_at_goal": float(self.time_at_goal.mean()),
            "final_distance": float(self.final_distance.mean()),
            "final_distance_interval": list(mean_interval(self.final_distance)),
            "unstable_episodes": int(self.unstable.sum()),
        }


def run_episodes(
    task: CompiledTask,
    policy: Policy,
    *,
    episodes: int,
    seed: int | np.random.SeedSequence,
    distribution: str = "evaluation",
    num_paths: int = 0,
) -> Episodes:
    """Run fresh episodes to their end with `policy`, at most 256 at a time.

    The same seed gives the same starts and goals to every policy, so outcomes can be paired.

    Args:
        seed: seed of starts and goals.
        distribution: episode distribution to draw from.
        num_paths: of how many episodes to keep the path.
    """
    return EpisodeStream(task, policy, seed=seed, distribution=distribution, num_paths=num_paths).first(
        episodes
    )


class EpisodeStream:
    """Episodes that go on where they stopped: `first(n)` is what `run_episodes` returns for n episodes."""

    def __init__(
        self,
        task: CompiledTask,
        policy: Policy,
        *,
        seed: int | np.random.SeedSequence,
        distribution: str = "evaluation",
        num_paths: int = 0,
    ) -> None:
        self.task, self.policy, self.num_paths = task, policy, num_paths
        self._seed, self._distribution = seed, distribution
        self._simulator: CpuSimulator | None = None
        self._rounds: list[Episodes] = []

    def first(self, episodes: int) -> Episodes:
        """Return the first so many episodes, running those that are missing."""
        worlds = min(episodes, MAX_WORLDS)
        if self._simulator is None or self._simulator.num_worlds < worlds:
            # Worlds draw their starts from one generator, so that their number decides what each draws.
            self._simulator = CpuSimulator(
                self.task, worlds, seed=self._seed, distribution=self._distribution
            )
            self._rounds = []
        worlds = self._simulator.num_worlds
        for index in range(len(self._rounds), math.ceil(episodes / worlds)):
            if index:
                self._simulator.reset()
            self._rounds.append(self._round(self._simulator, max(self.num_paths - index * worlds, 0)))
        rounds = self._rounds[: math.ceil(episodes / worlds)]
        return join_rounds(rounds, self.task, episodes, self.num_paths)

    def _round(self, simulator: CpuSimulator, num_paths: int) -> Episodes:
        """Run the episodes that the simulator has begun, one in every world."""
        return run_round(simulator, self.policy, num_paths)


def join_rounds(rounds: list[Episodes], task: CompiledTask, episodes: int, num_paths: int = 0) -> Episodes:
    """Return the first episodes of several rounds, in order, with the paths of the first of them."""
    joined = {name: np.concatenate([getattr(part, name) for part in rounds])[:episodes] for name in _OUTCOMES}
    paths = [path for part in rounds for path in part.paths][: min(num_paths, episodes)]
    shares = [part.goals_held for part in rounds if part.goals_held is not None]
    held = np.concatenate(shares)[:episodes] if len(shares) == len(rounds) else None
    return Episodes(**joined, paths=paths, other_radii=task.spec.other_radii, goals_held=held)


class ControlStep(NamedTuple):
    """One control step of all worlds; a row a world.

    Attributes:
        action: (num_worlds, action_dim) as the policy gave it.
        result: what the simulator returned.
        running: (num_worlds,) bool, the worlds in whose episode the step was taken.
        ended: (num_worlds,) bool, those of them whose episode it ended, unstable ones included.
        unstable: (num_worlds,) bool, those of them whose physics diverged.
    """

    action: np.ndarray
    result: StepResult
    running: np.ndarray
    ended: np.ndarray
    unstable: np.ndarray


def steps(simulator: CpuSimulator, policy: Policy) -> Iterator[ControlStep]:
    """Step all worlds until the episode that each has begun is over; yield each step once it is taken.

    Worlds whose episode is over are stepped along with the others. The simulator shows what came of a step
    until the next one is asked for.
    """
    running = np.ones(simulator.num_worlds, bool)
    while running.any():
        action = policy(simulator.observation, simulator.desired_goal)
        result = simulator.step(action)
        unstable = running & result.unstable
        ended = unstable | (running & (result.terminated | result.truncated))
        yield ControlStep(action, result, running, ended, unstable)
        running = running & ~ended


def run_round(simulator: CpuSimulator, policy: Policy, num_paths: int = 0) -> Episodes:
    """Return the outcomes of the episode that every world has just begun.

    A step in which the physics diverges changes nothing but `unstable`.
    """
    worlds, task = simulator.num_worlds, simulator.task
    start, goal = simulator.achieved_goal.copy(), simulator.desired_goal.copy()
    distance, closest = task.goal_distance(start, goal), np.full(worlds, np.inf)
    at_goal, length, unstable = np.zeros(worlds), np.zeros(worlds, np.int64), np.zeros(worlds, bool)
    held, last = HeldGoals(goal, task.spec.hold_steps), goal.copy()
    cut, goals_held = np.zeros(worlds, bool), None
    is_steered = ~np.isnan(simulator.later_goals).any(1)  # not told by hand what to do throughout
    trace = [start[:num_paths]]
    for step in steps(simulator, policy):
        unstable |= step.unstable
        length += step.running
        counted = step.running & ~step.unstable
        there = counted & step.result.success
        at_goal += there
        held.add(there, counted, simulator.desired_goal)
        last = np.where(counted[:, None], simulator.desired_goal, last)
        reached = task.goal_distance(simulator.achieved_goal, last)
        if task.later_goals:  # who falls holds no goal that would have come
            cut |= step.running & step.result.terminated
        distance = np.where(counted, reached, distance)
        closest = np.where(counted, np.minimum(closest, reached), closest)
        trace.append(simulator.achieved_goal[:num_paths].copy())
    if task.later_goals:
        came = (length - 1) // task.spec.resample_every  # none comes with the state that ends an episode
        never_came = np.where(is_steered, (task.later_goals - came).clip(0), 0)
        goals_held = np.where(unstable, 0.0, held.held / (held.commanded + never_came))
    paths = [np.stack([row[i] for row in trace])[: length[i] + 1] for i in range(min(num_paths, len(start)))]
    return Episodes(
        success=held.all_held & ~unstable & ~cut,
        touched=(at_goal > 0) & ~unstable,
        at_end=(held.run > 0) & ~unstable,
        time_at_goal=np.where(unstable, 0.0, 1000.0 * at_goal / task.spec.episode_steps),
        final_distance=distance,
        closest_distance=closest,
        start=start,
        goal=goal,
        paths=paths,
        unstable=unstable,
        goals_held=goals_held,
    )


def chance_of_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return how often two policies that do equally well differ by as much as these do, or more.

    Actions that are the same but for their last bits take other ways in a world with contacts: now and then
    one of the two reaches a goal that the other misses. Which of them does is the toss of a coin (McNemar's
    exact test of paired outcomes, two-sided). Both are successes in the same episodes, (episodes,) bool.
    """
    gained, lost = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    differing = gained + lost
    tail = sum(math.comb(differing, count) for count in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**differing)


def wilson_interval(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion, of 95 % (Wilson 1927, J. Am. Stat. Assoc. 22).

    `z` is the quantile of the normal distribution, for another confidence.
    """
    if trials == 0:
        return 0.0, 1.0
    rate, square = successes / trials, z**2
    centre = (rate + square / (2 * trials)) / (1 + square / trials)
    half = z / (1 + square / trials) * math.sqrt(rate * (1 - rate) / trials + square / (4 * trials**2))
    low = max(0.0, centre - half) if successes else 0.0  # which rounding may miss
    return low, min(1.0, centre + half) if successes < trials else 1.0


def evaluation_changes(evaluated: Sequence[Mapping[str, Any]]) -> dict[float, str]:
    """Return what marks a curve where evaluations draw from another distribution: both names, by the step."""
    return {
        float(after["env_steps"]): f"goals of {before['distribution']} → {after['distribution']}"
        for before, after in pairwise(evaluated)
    }


def with_intervals(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a history with `success_low` and `success_high`, where an entry tells of how many episodes."""

    def bounds(entry: Mapping[str, Any]) -> dict[str, float]:
        episodes, success = int(entry.get("episodes") or 0), entry.get("success")
        if not episodes or success is None:
            return {}
        low, high = wilson_interval(round(success * episodes), episodes)
        return {"success_low": low, "success_high": high}

    return [{**entry, **bounds(entry)} for entry in history]


def mean_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean of independent values, (n,).

    Source: Efron 1979, Ann. Stat. 7.
    """
    values, rng = np.asarray(values, float), np.random.default_rng(seed)
    count = len(values)
    means = [values[rng.integers(count, size=count)].mean() for _ in range(_MEAN_DRAWS)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def retention(teacher: np.ndarray, student: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Return mean(student) / mean(teacher) over paired episodes, with a 95 % bootstrap interval.

    Episodes are resampled in pairs (percentile bootstrap, Efron 1979, Ann. Stat. 7), and two made-up pairs
    with them: one in which the student loses the largest outcome seen, and one in which it gains it. Without
    these, pairs that all agree would give an interval of no width, though one in n could have been lost.
    Pseudo-observations are Agresti and Min's way with matched pairs (2005, Stat. Med. 24), who add half an
    episode to each of four cells; agreeing pairs need none, so that the two go to those that disagree. Only
    how often each distinct pair of outcomes is drawn matters, and these counts are one multinomial draw.

    Args:
        teacher, student: (episodes,) outcomes of the same episodes, none negative.

    Returns:
        ``retention``, to which the made-up pairs do not count, and ``interval``; None where the teacher's
        mean is 0.
    """
    outcomes = np.stack([teacher, student], axis=1).astype(float)
    teacher_sum, student_sum = outcomes.sum(0)
    if teacher_sum == 0:
        return {"retention": None, "interval": None}
    outcomes = np.concatenate(
        [outcomes, np.eye(2) * outcomes.max()]
    )  # a pair that is lost, one that is gained
    pairs, counts = np.unique(outcomes, axis=0, return_counts=True)
    total = int(counts.sum())
    rng, sums = np.random.default_rng(seed), []
    chunk = max(1, _CHUNK_NUMBERS // len(pairs))
    for first in range(0, _BOOTSTRAP_DRAWS, chunk):
        draws = min(chunk, _BOOTSTRAP_DRAWS - first)
        sums.append(rng.multinomial(total, counts / total, size=draws) @ pairs)
    bases, ours = np.concatenate(sums).T
    low, high = np.percentile(ours[bases > 0] / bases[bases > 0], [2.5, 97.5])
    return {"retention": float(student_sum / teacher_sum), "interval": [float(low), float(high)]}


def draw_rollouts(
    path: Path, task: CompiledTask, episodes: Episodes, performer: str, facts: Sequence[str]
) -> None:
    """Draw the episodes' paths from above; tasks whose goals have no x and y have no such picture."""
    from thousandfold.envs.pictures.rendering import draw_paths, has_plan

    if not has_plan(task):
        return
    count = len(episodes.paths)
    goals, successes = episodes.goal[:count], episodes.success[:count]
    success = f"success {episodes.success.mean():.3f} over {len(episodes.success):,} episodes"
    title = f"Paths of the {performer}"
    draw_paths(path, task, episodes.paths, goals, successes, title, (*facts, success, f"{count} drawn"))
