"""What the depth study found: records by arm and configuration, success with its intervals, and times.

Two intervals, because they answer two questions. Over episodes (Wilson, all episodes of all seeds pooled):
how well these very policies do. Over seeds (Student's t on the seeds' means): how well the next seed will do;
with three seeds it is wide, and it is the one to compare configurations by.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from thousandfold.ground.files import json_sha256
from thousandfold.stages.episodes import wilson_interval

Axis = Literal["depth", "network", "batch_size"]
Record = Mapping[str, Any]
Interval = tuple[float, float]
LAST = 5
PACES = Path(__file__).parent / "results/depth_study_pace.json"
# 97.5 % quantiles of Student's t for 1 to 10 degrees of freedom; beyond, the last one: a little too wide.
_T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


class Configuration(NamedTuple):
    """The sizes that a study compares."""

    depth: int
    width: int
    batch_size: int

    @property
    def label(self) -> str:
        """Short and unique, such as D64 W128 B256."""
        return f"D{self.depth} W{self.width} B{self.batch_size}"


@dataclass(frozen=True)
class Cell:
    """One configuration of an arm with one seed, and everything that the trainer is told."""

    arm: str
    axis: Axis
    configuration: Configuration
    seed: int
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Its name among the results."""
        return f"{self.settings['task']} {self.arm} {self.configuration.label} seed {self.seed}"

    @property
    def folder(self) -> str:
        """Its folder below the workspace root: another one for other settings."""
        return f"{self.key.replace(' ', '-')}-{json_sha256(dict(self.settings))[:8]}"

    def record(self, cells: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what is recorded of it; None where nothing is, or with other settings."""
        record = cells.get(self.key)
        if record is None or any(record["settings"].get(k) != v for k, v in self.settings.items()):
            return None
        return record


@dataclass(frozen=True)
class ConfigurationResults:
    """The records of one configuration, one a seed, and the seeds that have none yet."""

    configuration: Configuration
    records: Sequence[Record]
    missing: list[int]


@dataclass(frozen=True)
class ArmResults:
    """The configurations that are compared with one another, all with one budget of environment steps.

    With `paced`, their time is that of each alone on one machine, not that which their cells took.
    """

    name: str
    axis: Axis
    task: str
    env_steps: int
    rows: list[ConfigurationResults]
    paced: bool = False

    @property
    def started(self) -> list[ConfigurationResults]:
        """The configurations that have a record."""
        return [row for row in self.rows if row.records]


class Estimate(NamedTuple):
    """Mean success over the seeds, each seed's own, and both 95 % intervals; one seed has none over seeds."""

    mean: float
    seeds: list[float]
    over_episodes: Interval
    over_seeds: Interval | None


def pace_key(cell: Cell) -> str:
    """Return the name under which the pace of a cell's configuration is kept; seeds share it."""
    return f"{cell.settings['task']} {cell.arm} {cell.configuration.label}"


def read_paces(path: Path = PACES) -> dict[str, Any]:
    """Return the recorded paces by key."""
    return json.loads(path.read_text(encoding="utf-8"))["paces"] if path.exists() else {}


def _at_pace(record: Record, pace: Mapping[str, Any]) -> Record:
    """Return a record whose times are its environment steps times a pace."""
    times = [steps * pace["seconds_per_step"] for steps in record["curve"]["env_steps"]]
    return {**record, "curve": record["curve"] | {"elapsed_s": times}, "wall_clock_s": times[-1]}


def gather(
    cells: Sequence[Cell], recorded: Mapping[str, Record], paces: Mapping[str, Any] | None = None
) -> list[ArmResults]:
    """Sort what is recorded of the cells by arm and configuration, on one clock where all paces are known."""
    arms = []
    for name in dict.fromkeys(cell.arm for cell in cells):
        own = [cell for cell in cells if cell.arm == name]
        keys = {cell.configuration: pace_key(cell) for cell in own}
        paced, rows = all(key in (paces or {}) for key in keys.values()), []
        for configuration in dict.fromkeys(cell.configuration for cell in own):
            found = {c.seed: c.record(recorded) for c in own if c.configuration == configuration}
            records = [record for record in found.values() if record]
            if paces and paced:
                records = [_at_pace(record, paces[keys[configuration]]) for record in records]
            missing = [seed for seed, record in found.items() if not record]
            rows.append(ConfigurationResults(configuration, records, missing))
        arms.append(
            ArmResults(name, own[0].axis, own[0].settings["task"], own[0].settings["env_steps"], rows, paced)
        )
    return arms


def seed_interval(values: Sequence[float]) -> Interval | None:
    """Return the 95 % t interval of a mean success, within [0, 1]; None for a single seed."""
    if len(values) < 2:
        return None
    quantile = _T_QUANTILES[min(len(values) - 1, len(_T_QUANTILES)) - 1]
    mean, half = statistics.mean(values), quantile * statistics.stdev(values) / math.sqrt(len(values))
    return max(0.0, mean - half), min(1.0, mean + half)


def estimate(seeds: Sequence[tuple[float, int]]) -> Estimate:
    """Return the estimate from each seed's success rate and the number of its episodes."""
    rates = [rate for rate, _ in seeds]
    successes, trials = sum(round(rate * count) for rate, count in seeds), sum(count for _, count in seeds)
    return Estimate(statistics.mean(rates), rates, wilson_interval(successes, trials), seed_interval(rates))


def last_evaluations(records: Sequence[Record]) -> Estimate:
    """Return success over the last five evaluations of each seed."""
    curves = [(r["curve"]["success"][-LAST:], r["settings"]["evaluation_episodes"]) for r in records]
    return estimate([(statistics.mean(rates), len(rates) * episodes) for rates, episodes in curves])


def final_evaluation(records: Sequence[Record]) -> Estimate:
    """Return success over the fresh episodes after the training."""
    return estimate([(r["final"]["success"], r["final"]["episodes"]) for r in records])


def success_at(record: Record, axis: str, value: float) -> float | None:
    """Return success where `axis` of the learning curve has a value, between two evaluations on their line.

    None before the first evaluation and after the last: nothing is known of a run that had ended.
    """
    places, success = record["curve"][axis], record["curve"]["success"]
    if not places or not places[0] <= value <= places[-1]:
        return None
    return float(np.interp(value, places, success))


def mean_success_at(records: Sequence[Record], axis: str, value: float) -> Estimate | None:
    """Return success at a value of `axis` over the seeds; None where a seed has none there."""
    found = [success_at(record, axis, value) for record in records]
    rates = [rate for rate in found if rate is not None]
    if not rates or len(rates) < len(found):
        return None
    return estimate(
        [(rate, r["settings"]["evaluation_episodes"]) for rate, r in zip(rates, records, strict=True)]
    )


def equal_times_s(arm: ArmResults) -> list[float]:
    """Return the times at which an arm is compared: the end of the cell that ended first, ½, 2, 4 … of it.

    That cell belongs to the fastest configuration, so that at its end every seed of every configuration
    that has been evaluated by then has a success.
    """
    ends = [record["curve"]["elapsed_s"][-1] for row in arm.rows for record in row.records]
    times = [min(ends) / 2, min(ends)]
    while times[-1] * 2 <= max(ends):
        times.append(times[-1] * 2)
    return times
