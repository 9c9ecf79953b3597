"""Rolling out, with the teacher's label at every state: the teacher acts, or whoever is given to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.pipeline.runtime import seed_sequence, torch_seed
from thousandfold.replay.goal_dataset import GoalEpisode
from thousandfold.stages.dataset.labels import LabelledAction, TeacherLabels, add_alternatives
from thousandfold.stages.episodes import ControlStep, steps
from thousandfold.stages.networks import TeacherCritic, TrainedActor

Act = Callable[[np.ndarray, np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
"""Maps what a student sees (n, its observation_dim), goals (n, goal_dim), the teacher's actions
(n, action_dim) and a generator to actions (n, action_dim) in [−1, 1]."""

_EPISODE_STREAM, _NOISE_STREAM, _ACT_STREAM, _GOAL_STREAM, _SAMPLE_STREAM = 21, 22, 23, 24, 25


@dataclass(frozen=True)
class EpisodeGroup:
    """Episodes that are drawn and acted alike.

    Attributes:
        index: number of the group, which its random streams go by.
        distribution: the episode distribution of starts and goals.
        action_noise: standard deviation of the noise on the actions; 0 for clean episodes.
        episodes: how many.
    """

    index: int
    distribution: str
    action_noise: float
    episodes: int


@dataclass(frozen=True)
class Round:
    """Episodes that run at a time, the unit of randomness.

    Attributes:
        index: its number among all rounds of the plan.
        group: what its episodes have in common.
        number: its number among the rounds of the group.
        episodes: how many, at most as many as there are worlds.
    """

    index: int
    group: EpisodeGroup
    number: int
    episodes: int


@dataclass(frozen=True)
class RolloutPlan:
    """Which episodes to run, and which goals to label their states for.

    Attributes:
        groups: the episodes, in the order in which they run.
        num_worlds: episodes that run at a time.
        noise_until: share of an episode's steps after which a noisy one acts without noise.
        alternative_goals: K, goals beside the commanded one that every state is labelled for.
        hindsight_fraction: share of them that the episode achieves later.
        discount: of the distance ahead of those.
        teacher_samples: actions that the critic chooses the teacher's from; 1 takes its mean.
        sample_scale: times the teacher's standard deviation is what they are drawn with.
    """

    groups: Sequence[EpisodeGroup]
    num_worlds: int = 256
    noise_until: float = 1.0
    alternative_goals: int = 0
    hindsight_fraction: float = 0.5
    discount: float = 0.99
    teacher_samples: int = 1
    sample_scale: float = 1.0

    def rounds(self) -> list[Round]:
        """Return the rounds of every group, in order."""
        rounds: list[Round] = []
        for group in self.groups:
            for number, first in enumerate(range(0, group.episodes, self.num_worlds)):
                count = min(self.num_worlds, group.episodes - first)
                rounds.append(Round(len(rounds), group, number, count))
        return rounds


@dataclass
class RolloutTally:
    """What a rollout has done so far.

    Attributes:
        env_steps: control steps of running episodes.
        unstable: episodes dropped because the physics diverged.
    """

    env_steps: int = 0
    unstable: int = 0


class LabelledRollout:
    """Runs episodes and labels every state of theirs, the same ones for the same seed.

    Every world of a round runs one episode to its end, so that short episodes are not favoured. A round is
    seeded by itself: it is the same whatever ran before it, and in whichever process.

    Args:
        trained: the teacher.
        plan: which episodes to run.
        device: where the teacher runs.
        seed: of all randomness.
        act: acts in the teacher's place; None: the teacher does. A group's noise is added to either.
        critic: the teacher's, where the plan has several samples.
        num_threads: threads of the physics; 0: as many as this process may use.
    """

    def __init__(
        self,
        trained: TrainedActor,
        plan: RolloutPlan,
        *,
        device: str = "cpu",
        seed: int = 0,
        act: Act | None = None,
        critic: TeacherCritic | None = None,
        num_threads: int = 0,
    ) -> None:
        self.task, self.plan, self.tally = trained.task, plan, RolloutTally()
        self._labels = TeacherLabels(trained, device, critic, plan.teacher_samples, plan.sample_scale)
        self._act, self._seed, self._num_threads = act, seed, num_threads

    def __iter__(self) -> Iterator[GoalEpisode]:
        """Yield the episodes of every round, but for those whose physics diverged."""
        for each in self.plan.rounds():
            yield from self.run_round(each)

    def run_round(self, each: Round, on_step: Callable[[], None] = lambda: None) -> list[GoalEpisode]:
        """Return the episodes of a round, but for those whose physics diverged.

        Args:
            each: the round.
            on_step: called after each step.
        """
        group, stream = each.group, (each.group.index, each.number)
        noise_rng, act_rng, goal_rng = (
            np.random.default_rng(seed_sequence(self._seed, kind, *stream))
            for kind in (_NOISE_STREAM, _ACT_STREAM, _GOAL_STREAM)
        )
        self._labels.reseed(torch_seed(self._seed, _SAMPLE_STREAM, *stream))
        simulator = CpuSimulator(
            self.task,
            each.episodes,
            seed=seed_sequence(self._seed, _EPISODE_STREAM, *stream),
            distribution=group.distribution,
            num_threads=self._num_threads,
            with_student=True,
        )
        record = RoundRecord(simulator)
        noisy_steps = self.plan.noise_until * self.task.spec.episode_steps if group.action_noise else 0

        def act(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
            action = record.visit(simulator, self._labels)
            if self._act is not None:
                action = self._act(simulator.student_observation, goal, action, act_rng)
            if record.step < noisy_steps:
                noise = group.action_noise * noise_rng.standard_normal(action.shape, np.float32)
                action = np.clip(action + noise, -1.0, 1.0)
            return action

        for step in steps(simulator, act):
            self.tally.env_steps += int(step.running.sum())
            record.add(step)
            on_step()
        record.visit(simulator, self._labels)  # the state that the last step led to
        found = [record.episode(world, group) for world in range(each.episodes)]
        self.tally.unstable += found.count(None)
        return add_alternatives(
            [episode for episode in found if episode is not None],
            self._labels,
            goal_rng,
            count=self.plan.alternative_goals,
            hindsight_fraction=self.plan.hindsight_fraction,
            discount=self.plan.discount,
        )


class RoundRecord:
    """One episode of every world, as it happens. What a world does after its episode's end is left out.

    The simulator is one that shows what a student sees.

    Attributes:
        step: how many actions were taken.
    """

    def __init__(self, simulator: CpuSimulator) -> None:
        worlds, task = simulator.num_worlds, simulator.task
        rows = task.spec.episode_steps + 1
        sizes = {"observation": task.observation_dim, "achieved_goal": task.goal_dim}
        sizes |= {"desired_goal": task.goal_dim} if task.later_goals else {}
        sizes |= dict.fromkeys(("action", "teacher_mean", "teacher_log_std"), task.action_dim)
        if task.student_view is not task:
            sizes["student_observation"] = task.student_view.observation_dim
        self._rows = {name: np.zeros((worlds, rows, size), np.float32) for name, size in sizes.items()}
        self._desired_goal = simulator.desired_goal.copy()
        self._success = np.zeros((worlds, rows), bool)
        self._success[:, 0] = task.is_success(simulator.achieved_goal, self._desired_goal)
        self._hold_steps = task.spec.hold_steps
        self._length, self.step = np.zeros(worlds, np.int64), 0
        self._terminated, self._truncated, self._unstable = (np.zeros(worlds, bool) for _ in range(3))

    def visit(self, simulator: CpuSimulator, label: Callable[..., LabelledAction]) -> np.ndarray:
        """Record every world's state with the teacher's label for it; return the teacher's action."""
        action, mean, log_std = label(simulator.observation, simulator.desired_goal)
        row = {"observation": simulator.observation, "achieved_goal": simulator.achieved_goal}
        if "student_observation" in self._rows:
            row["student_observation"] = simulator.student_observation
        row |= {"desired_goal": simulator.desired_goal} if "desired_goal" in self._rows else {}
        for name, values in {**row, "teacher_mean": mean, "teacher_log_std": log_std}.items():
            self._rows[name][:, self.step] = values
        return action

    def add(self, step: ControlStep) -> None:
        """Record the actions of a step, and which episodes it ended."""
        self._rows["action"][:, self.step] = step.action
        self.step += 1
        self._success[:, self.step] = step.result.success
        self._length += step.running
        self._terminated |= step.ended & step.result.terminated
        self._truncated |= step.ended & step.result.truncated
        self._unstable |= step.unstable

    def episode(self, world: int, group: EpisodeGroup) -> GoalEpisode | None:
        """Return the episode of a world once it has ended, without alternative goals; None where the physics
        diverged.
        """
        if self._unstable[world]:
            return None
        stop = int(self._length[world]) + 1
        rows = {name: values[world, :stop] for name, values in self._rows.items()}
        rows["action"] = rows["action"][:-1]
        like = {"goal": "achieved_goal", "mean": "teacher_mean", "log_std": "teacher_log_std"}
        none = {f"alternative_{name}": rows[source][:, None][:, :0] for name, source in like.items()}
        return GoalEpisode(
            **{"desired_goal": self._desired_goal[world], **rows, **none},
            success=self._success[world, :stop],
            terminated=bool(self._terminated[world]),
            truncated=bool(self._truncated[world]),
            distribution=group.distribution,
            action_noise=group.action_noise,
            hold_steps=self._hold_steps,
        )
