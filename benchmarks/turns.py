"""Sides that work in turn: rates of what is compared, round after round, on a machine that may slow down."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.learner_speed import spread
from thousandfold.pipeline.artifacts import installed_versions
from thousandfold.pipeline.runtime import describe_host

# Pools of threads spin for some milliseconds after their work, and a side that works ahead has environments
# under way; the next side waits for both to end.
_PAUSE_S = 0.05
_WARM_UP_STEPS = 4
_CALIBRATION_S = 0.2
_BESIDE = ("envpool", "stable-baselines3")


def _nothing() -> None:
    """Free nothing."""


@dataclass(frozen=True)
class Side:
    """One of the systems that are compared.

    Attributes:
        advance: makes `count` calls, each a control step of `worlds` environments.
        worlds: environment steps a call.
        close: frees what the side holds.
    """

    advance: Callable[[int], None]
    worlds: int
    close: Callable[[], None] = _nothing

    def rate(self, count: int) -> float:
        """Return environment steps a second over `count` calls."""
        start = time.perf_counter()
        self.advance(count)
        return count * self.worlds / (time.perf_counter() - start)


def calls_for(side: Side, seconds: float) -> int:
    """Return how many calls take about `seconds`, after warming up."""
    side.advance(_WARM_UP_STEPS)
    calls, trial_s = 1, min(seconds, _CALIBRATION_S)
    while True:
        start = time.perf_counter()
        side.advance(calls)
        elapsed = time.perf_counter() - start
        if elapsed >= trial_s / 2:
            return max(1, round(calls * seconds / elapsed))
        calls *= 2


def take_turns(sides: Mapping[str, Side], rounds: int, round_s: float) -> dict[str, list[float]]:
    """Measure every side once a round, about `round_s` each; return their steps a second, round by round."""
    counts = {name: calls_for(side, round_s) for name, side in sides.items()}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            time.sleep(_PAUSE_S)
            rates[name].append(round(side.rate(counts[name]), 1))
    return rates


def fastest(
    candidates: Mapping[str, Callable[[], Side]], rounds: int, round_s: float
) -> tuple[str, dict[str, float]]:
    """Return the candidate with the highest median rate, and the medians of all.

    Args:
        candidates: how to make each side; one lives at a time.
        rounds, round_s: how often and how long each is measured.
    """
    medians = {}
    for name, make in candidates.items():
        with contextlib.closing(make()) as side:
            medians[name] = statistics.median(take_turns({name: side}, rounds, round_s)[name])
    return max(medians, key=medians.__getitem__), medians


def ratios(rates: Mapping[str, Sequence[float]], side: str, other: str) -> dict[str, float]:
    """Return how many times as fast `side` was as `other`: median, min and max over the rounds."""
    return spread([one / two for one, two in zip(rates[side], rates[other], strict=True)])


def facts() -> dict[str, Any]:
    """Return what a reader needs to judge figures: date, machine, its load before, and versions."""
    versions = installed_versions()
    for package in _BESIDE:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": describe_host() | {"load_before": round(os.getloadavg()[0], 2)},
        "versions": versions,
    }
