"""What the teacher would do: its Gaussian for states and goals, in batches as large as pays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pydantic
import torch
from torch import Tensor

from thousandfold.ground.errors import NonFiniteError, SettingsError
from thousandfold.models.goal_actor import Gaussian
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.runtime import seed_sequence
from thousandfold.pipeline.settings import MOST_THREADS
from thousandfold.replay.goal_dataset import GoalEpisode
from thousandfold.replay.hindsight import truncated_geometric
from thousandfold.stages.episodes import Episodes, SamplingSettings, retention, run_episodes
from thousandfold.stages.networks import (
    TeacherCritic,
    TrainedActor,
    best_action_policy,
    best_mean,
    torch_policy,
)

LABEL_BATCH = 2048
"""Rows of a forward pass. Larger ones are no faster on a CPU: their activations leave its caches."""

LabelledAction = tuple[np.ndarray, np.ndarray, np.ndarray]
"""The teacher's action tanh(mean), its mean and its log-std, each (rows, action_dim)."""


class LabelSettings(SamplingSettings):
    """How the states of a dataset are labelled."""

    alternative_goals: int = pydantic.Field(
        default=4,
        ge=0,
        le=64,
        description="goals, beside the commanded one, for which the teacher labels every state",
    )
    hindsight_fraction: float = pydantic.Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of these goals that the episode achieves later; the rest are commanded goals "
        "of other episodes",
    )
    hindsight_discount: float = pydantic.Field(
        default=0.99,
        gt=0,
        le=1,
        description="how near in time hindsight goals lie, like the discount of training",
    )
    accept_weaker_labels: bool = pydantic.Field(
        default=False,
        description="label with the best of several actions even if the mean action does better",
    )
    threads: int = pydantic.Field(
        default=1,
        ge=0,
        le=MOST_THREADS,
        description="CPU threads of torch in each process; 0: every CPU, shared evenly. Another number "
        "changes the last bits of the labels",
    )

    def label_facts(self) -> dict[str, Any]:
        """Return what a dataset's metadata says of its labels."""
        names = (
            "alternative_goals", "hindsight_fraction", "hindsight_discount", "teacher_samples",
            "sample_scale", "seed",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


class TeacherLabels:
    """Labels states with the teacher's Gaussian; its mean is the critic's best of several actions if asked.

    Args:
        trained: the teacher.
        device: where it runs.
        critic: the teacher's critic, for `samples` above 1.
        samples: how many actions the critic chooses from, the mean among them; 1 takes the mean.
        scale: times the teacher's standard deviation is what they are drawn with.
    """

    def __init__(
        self,
        trained: TrainedActor,
        device: str,
        critic: TeacherCritic | None = None,
        samples: int = 1,
        scale: float = 1.0,
    ) -> None:
        if samples > 1 and critic is None:
            raise ValueError(f"the best of {samples} actions is the critic's choice, and none was given")
        self._actor, self._device, self._samples = trained.actor.to(device), device, samples
        self._critic, self._scale = critic, scale
        if critic is not None:
            critic.to(device)
        self._generator = torch.Generator(device)
        self.reseed(0)

    def reseed(self, seed: int) -> None:
        """Start the draws anew, so that what follows depends on nothing before it."""
        self._generator.manual_seed(seed)

    def __call__(self, observation: np.ndarray, goal: np.ndarray) -> LabelledAction:
        """Return the teacher's action, mean and log-std.

        Args:
            observation: (rows, observation_dim), float32.
            goal: (rows, goal_dim), float32.

        Raises:
            NonFiniteError: the teacher's output is NaN or infinite.
        """
        batches = [slice(first, first + LABEL_BATCH) for first in range(0, len(goal), LABEL_BATCH)]
        mean, log_std = _joined([self._gaussian(observation[rows], goal[rows]) for rows in batches])
        return np.tanh(mean), mean, log_std

    def alternatives(self, observation: np.ndarray, goals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and log-std for several goals a state, (rows, K, action_dim) each.

        Args:
            observation: (rows, observation_dim), float32.
            goals: (rows, K, goal_dim), float32.

        Raises:
            NonFiniteError: the teacher's output is NaN or infinite.
        """
        rows, count = goals.shape[:2]
        flat = goals.reshape(rows * count, -1)
        labels = []
        for first in range(0, len(flat), LABEL_BATCH):
            own = np.arange(first, min(first + LABEL_BATCH, len(flat)))
            labels.append(self._gaussian(observation[own // count], flat[own]))
        mean, log_std = _joined(labels)
        return mean.reshape(rows, count, -1), log_std.reshape(rows, count, -1)

    @torch.inference_mode()
    def _gaussian(self, observation: np.ndarray, goal: np.ndarray) -> Gaussian:
        state, target = (torch.as_tensor(array, device=self._device) for array in (observation, goal))
        gaussian = self._actor(state, target)
        if self._samples > 1 and self._critic is not None:
            mean = best_mean(
                gaussian, state, target, self._critic, self._samples, self._generator, self._scale
            )
            return Gaussian(mean, gaussian.log_std)
        return gaussian


def _joined(labels: list[Gaussian]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and log-std of all batches, (rows, action_dim) each."""
    mean, log_std = (_on_cpu([getattr(label, name) for label in labels]) for name in ("mean", "log_std"))
    if not (np.isfinite(mean).all() and np.isfinite(log_std).all()):
        raise NonFiniteError("The teacher's output became NaN or infinite: train another teacher.")
    return mean, log_std


def _on_cpu(parts: list[Tensor]) -> np.ndarray:
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).cpu().numpy()


# -- Other goals for the states of a round, each labelled by the teacher: labels are cheap beside simulation -


def add_alternatives(
    episodes: Sequence[GoalEpisode],
    labels: TeacherLabels,
    rng: np.random.Generator,
    *,
    count: int,
    hindsight_fraction: float,
    discount: float,
) -> list[GoalEpisode]:
    """Return the episodes with `count` alternative goals for each of their states.

    A share of them the same episode achieves later, so that the teacher is asked about what lies ahead; the
    others were commanded in other episodes of the round. The last state has itself ahead of it.

    Args:
        episodes: of a round.
        labels: the teacher.
        rng: what goals are drawn from.
        count: K, the goals a state.
        hindsight_fraction: share of them that are achieved later in the episode.
        discount: γ of the distance ahead, as in `replay.hindsight`.
    """
    if not count or not episodes:
        return list(episodes)
    ahead = round(hindsight_fraction * count)
    lengths = np.array([len(episode.success) for episode in episodes])
    goals_ahead = _goals_ahead(episodes, lengths, rng, ahead, discount)
    goals = np.concatenate([goals_ahead, _other_goals(episodes, lengths, rng, count - ahead)], axis=1)
    observation = np.concatenate([episode.observation for episode in episodes])
    mean, log_std = labels.alternatives(observation, goals)
    stops = np.cumsum(lengths)[:-1]
    parts = (np.split(column, stops) for column in (goals, mean, log_std))
    return [
        dataclasses.replace(episode, alternative_goal=g, alternative_mean=m, alternative_log_std=s)
        for episode, g, m, s in zip(episodes, *parts, strict=True)
    ]


def _goals_ahead(
    episodes: Sequence[GoalEpisode],
    lengths: np.ndarray,
    rng: np.random.Generator,
    count: int,
    discount: float,
) -> np.ndarray:
    """Return goals that are achieved later in the same episode, (rows, count, goal_dim)."""
    achieved = np.concatenate([episode.achieved_goal for episode in episodes])
    last = np.repeat(np.cumsum(lengths) - 1, lengths)
    row = np.arange(len(achieved))
    remaining = np.repeat((last - row)[:, None], count, axis=1)
    uniform = torch.from_numpy(rng.random(remaining.shape))
    offset = truncated_geometric(uniform, torch.from_numpy(np.maximum(remaining, 1)), discount).numpy()
    return achieved[row[:, None] + np.minimum(offset, remaining)]


def _other_goals(
    episodes: Sequence[GoalEpisode], lengths: np.ndarray, rng: np.random.Generator, count: int
) -> np.ndarray:
    """Return goals commanded in other episodes, (rows, count, goal_dim); its own where there is no other."""
    commanded = [np.atleast_2d(episode.desired_goal) for episode in episodes]
    counts = np.array([len(goals) for goals in commanded])
    own = np.repeat(np.arange(len(episodes)), lengths)
    step = 1 + rng.integers(max(len(episodes) - 1, 1), size=(len(own), count))
    other = (own[:, None] + step) % len(episodes)
    row = (np.cumsum(counts) - counts)[other]
    if counts.max() > 1:  # commanded one after the other: that of any of its states
        row = row + rng.integers(counts[other])
    return np.concatenate(commanded)[row]


# -- Whether a critic's best of several actions is as strong a teacher as the mean, measured beforehand

TRIAL_EPISODES = 256
_TRIAL_STREAM = 44


@dataclasses.dataclass(frozen=True)
class StrengthTrial:
    """The same fresh episodes with the teacher's mean, and with its critic's best of several actions."""

    mean: Episodes
    best: Episodes

    def results(self) -> dict[str, Any]:
        """Return both sides, and the ratio best / mean of success and of time at goal, for a manifest."""
        results: dict[str, Any] = {"episodes": len(self.mean.success)}
        for name in ("success", "time_at_goal"):
            mean, best = getattr(self.mean, name), getattr(self.best, name)
            ratio = retention(mean, best)
            results |= {
                f"mean_{name}": float(mean.mean()),
                f"best_{name}": float(best.mean()),
                f"{name}_ratio": ratio["retention"],
                f"{name}_ratio_interval": ratio["interval"],
            }
        return results


def is_weaker(results: dict[str, Any]) -> bool:
    """Tell whether the best of several is worse in success or time at goal beyond the ratio's interval."""
    intervals = (results[f"{name}_ratio_interval"] for name in ("success", "time_at_goal"))
    return any(interval is not None and interval[1] < 1 for interval in intervals)


def try_strength(
    trained: TrainedActor,
    critic: TeacherCritic,
    *,
    samples: int,
    scale: float,
    seed: int,
    device: str = "cpu",
    episodes: int = TRIAL_EPISODES,
) -> StrengthTrial:
    """Run the episodes of a trial, drawn as in evaluation.

    Args:
        trained, critic: the teacher.
        samples, scale: as of `stages.networks.best_action_policy`.
        seed: of the episodes and of the draws.
        device: where both networks run.
        episodes: how many.
    """
    policies = (
        torch_policy(trained.actor.to(device), device),
        best_action_policy(trained, critic, samples, seed, device, scale=scale),
    )
    return StrengthTrial(
        *(
            run_episodes(trained.task, policy, episodes=episodes, seed=seed_sequence(seed, _TRIAL_STREAM))
            for policy in policies
        )
    )


def require_strength(
    trained: TrainedActor, critic: TeacherCritic, settings: LabelSettings, device: str, console: Console
) -> dict[str, Any]:
    """Try the best of several actions that the settings ask for, and return what came of it.

    Raises:
        SettingsError: it is weaker than the mean, and the settings do not accept that.
    """
    results = try_strength(
        trained,
        critic,
        samples=settings.teacher_samples,
        scale=settings.sample_scale,
        seed=settings.seed,
        device=device,
    ).results()
    said = _say(results, settings)
    if not is_weaker(results):
        console.say(f"{said}.")
    elif settings.accept_weaker_labels:
        console.warn(f"{said}: weaker labels, as accept_weaker_labels allows.")
    else:
        raise SettingsError(
            f"{said}: these labels would be worse. Set another sample_scale or teacher_samples=1, or "
            "accept_weaker_labels=true."
        )
    return results


def _say(results: dict[str, Any], settings: LabelSettings) -> str:
    best, mean = (
        f"success {results[f'{side}_success']:.3f}, {results[f'{side}_time_at_goal']:.0f} of 1000 steps at "
        "the goal"
        for side in ("best", "mean")
    )
    return (
        f"The critic's best of {settings.teacher_samples} actions at sample_scale {settings.sample_scale:g}: "
        f"{best}; the mean: {mean}, over the same {results['episodes']} episodes"
    )
