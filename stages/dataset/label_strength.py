"""Whether a critic's best of several actions is as strong a teacher as the mean, measured beforehand."""

from __future__ import annotations

import dataclasses
from typing import Any

from thousandfold.pipeline.console import Console
from thousandfold.pipeline.errors import SettingsError
from thousandfold.pipeline.runtime import seed_sequence
from thousandfold.stages.best_action import best_action_policy
from thousandfold.stages.dataset.labels import LabelSettings
from thousandfold.stages.episodes import Episodes, retention, run_episodes
from thousandfold.stages.networks import TrainedActor, torch_policy
from thousandfold.stages.teacher_critic import TeacherCritic

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
        samples, scale: as of `stages.best_action.best_action_policy`.
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
            f"{said}: these labels would be weaker. Take another sample_scale or teacher_samples=1, or give "
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
