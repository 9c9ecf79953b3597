"""Whether a success is more than chance: what uniformly random actions reach in the same episodes.

A teacher's results record it as ``random_success``; what is made from the teacher takes it over. Teachers of
earlier versions have no record: of them only a success of 0 is told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.ground.errors import BAD_CONTENT
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.console import Console
from thousandfold.stages.episodes import run_episodes, wilson_interval

_RECORD = ("random_success", "random_success_interval", "random_episodes")


def measure_random(
    task: CompiledTask,
    episodes: int,
    seed: np.random.SeedSequence,
    actions: np.random.SeedSequence,
    distribution: str = "evaluation",
) -> dict[str, Any]:
    """Return what the results record of uniformly random actions, drawn anew at each step.

    Args:
        task: the compiled task.
        episodes: how many to run.
        seed: of starts and goals; that of a policy's evaluation gives the same ones.
        actions: seed of the actions.
        distribution: episode distribution to draw from.
    """
    rng = np.random.default_rng(actions)

    def act(observation: np.ndarray, _: np.ndarray) -> np.ndarray:
        return rng.uniform(-1, 1, (len(observation), task.action_dim)).astype(np.float32)

    found = run_episodes(task, act, episodes=episodes, seed=seed, distribution=distribution).summary()
    return dict(zip(_RECORD, (found["success"], found["success_interval"], found["episodes"]), strict=True))


def random_record(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what some results record of random actions, for the results of what is made from them."""
    return {name: results[name] for name in _RECORD if name in results}


def no_better_than_random(results: Mapping[str, Any]) -> str | None:
    """Return how a success compares with that of random actions; None where it is above it, or not known.

    Above is it where the 95 % interval of the difference is (Newcombe 1998, Stat. Med. 17, method 10).

    Args:
        results: with ``success`` and ``episodes``, and ``random_success`` and ``random_episodes`` if known.
    """
    try:
        success, episodes = float(results["success"]), int(results["episodes"])
    except BAD_CONTENT:
        return None
    if success == 0:
        return f"reached none of {episodes:,} goals"
    try:
        chance, draws = float(results["random_success"]), int(results["random_episodes"])
    except BAD_CONTENT:
        return None
    low, high = wilson_interval(round(success * episodes), episodes)
    random_low, random_high = wilson_interval(round(chance * draws), draws)
    if success - chance > math.hypot(success - low, random_high - chance):
        return None
    return (
        f"is no better than random, as far as {episodes:,} episodes tell: success {success:.3f} "
        f"[{low:.3f}, {high:.3f}], random actions {chance:.3f} [{random_low:.3f}, {random_high:.3f}]"
    )


def warn_of_chance(console: Console, *artifacts: Artifact | None) -> None:
    """Warn, in one line, of the first of some artifacts that is no better than random."""
    for artifact in artifacts:
        if artifact is not None and (found := no_better_than_random(artifact.manifest.results)):
            advice = "" if artifact.kind == "dataset" else ": train a teacher for longer, or check the task"
            console.warn(f"{artifact.kind} {artifact.name} {found}{advice}.")
            return
