"""How much of a policy's success is left where robot and world are not as the model says.

One factor at a time is held at a level, within what training varied and beyond it;
then several vary together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.randomization import FACTORS, Factor
from thousandfold.envs.task import TaskError
from thousandfold.ground.files import write_json_atomic
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.console import Console, figure
from thousandfold.pipeline.runtime import seed_sequence
from thousandfold.stages.episodes import Episodes, Policy, run_episodes, wilson_interval
from thousandfold.stages.policy_file.metadata import past_reading

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOMINAL, TOGETHER, NOISE, DELAY = "nominal", "together", "sensor_noise", "action_delay"
ROBUSTNESS_FILE, ROBUSTNESS_PICTURE = FILES = ("robustness.json", "robustness.png")
KEPT = 0.9
"""A level holds where this share of the nominal success is left."""
_TIMES_THE_MODEL = (0.5, 0.7, 0.85, 1.15, 1.3, 1.5, 2.0)
_LEVELS: Mapping[str, tuple[float, ...]] = {
    "mass": _TIMES_THE_MODEL,
    "friction": _TIMES_THE_MODEL,
    "damping": _TIMES_THE_MODEL,
    "gain": _TIMES_THE_MODEL,
    "strength": (0.5, 0.7, 0.85),
    NOISE: (0.005, 0.01, 0.02, 0.05),
    DELAY: (1.0, 2.0, 3.0, 4.0),
    TOGETHER: (0.15, 0.3, 0.5),
}
_VARIED_TOGETHER = ("mass", "friction", "gain")
_NOISE_TOGETHER, _DELAY_TOGETHER = 0.01, 2
_EPISODE_STREAM, _NOISE_STREAM = 58, 59
_KNOWN = ("ctrl:", "clock:", "factors:")  # how numbers begin that no sensor tells
_LABELS: Mapping[str, str] = {
    NOISE: "noise of each sensor, share of its range",
    DELAY: "delay of actions, control steps",
    TOGETHER: f"{', '.join(_VARIED_TOGETHER)} within ±, with {_NOISE_TOGETHER:.0%} noise and a delay of "
    f"{_DELAY_TOGETHER}",
}


@dataclass(frozen=True)
class Level:
    """Closed-loop success with one factor held at one level.

    Attributes:
        factor: a name of `envs.randomization.FACTORS`, ``sensor_noise`` (normal, its standard deviation as a
            share of each number's range in nominal episodes), ``action_delay`` (control steps), ``together``
            (mass, friction and gain each drawn within ± this share, with noise of 1 % and a delay of 2), or
            ``nominal``.
        value: the level; 0 of ``nominal``.
        trained: whether training varied the factor so far.
        successes, episodes: how many of how many fresh episodes reached their goal.
    """

    factor: str
    value: float
    trained: bool
    successes: int
    episodes: int

    @property
    def success(self) -> float:
        """Share of the episodes that reached their goal."""
        return self.successes / self.episodes

    def record(self) -> dict[str, Any]:
        """Return everything, for JSON, with the 95 % Wilson interval of the success."""
        interval = list(wilson_interval(self.successes, self.episodes))
        return {**vars(self), "success": self.success, "success_interval": interval}


def levels_of(task: CompiledTask) -> list[tuple[str, float, bool]]:
    """Return factor, level and whether training went so far, for everything that can vary of a task."""
    trained = _trained_bounds(task)
    found = []
    for factor, usual in _LEVELS.items():
        low, high = trained.get(factor, (None, None))
        if factor in FACTORS and not _is_relative(task, factor):
            assert low is not None and high is not None
            usual = _around(factor, low, high)
        for value in usual:
            within = low is not None and high is not None and low - 1e-9 <= value <= high + 1e-9
            found.append((factor, value, within))
    for factor, (low, high) in trained.items():
        if factor not in _LEVELS and factor in FACTORS:
            found += [(factor, value, low <= value <= high) for value in _around(factor, low, high)]
    return found


def measure_robustness(
    policy: Policy, task: CompiledTask, episodes: int, seed: int, console: Console
) -> list[Level] | None:
    """Measure and print success on the model as it is and at every level, over the same starts and goals.

    A factor that changes nothing, such as the friction of a robot that touches nothing, is left out. None is
    returned, and said, where no goal is reached on the model as it is: nothing could be lost.

    Args:
        policy, task: the policy, and the task as it sees it: its own senses are noisy beside what is varied
            here, and a delay that is varied takes the place of the task's own.
        episodes: of each level.
        seed: of starts, goals and noise.
        console: shows how far it is, then the table.
    """
    planned = levels_of(task)
    with console.progress("robustness", len(planned), unit="levels") as bar:
        levels: list[Level] = []
        for level in measured_levels(policy, task, planned, episodes, seed):
            levels.append(level)
            if level.factor == NOMINAL and level.successes == 0:
                console.warn(
                    "No robustness card: no goal is reached on the model as it is, so that nothing can be "
                    "lost."
                )
                return None
            bar.update(len(levels) - 1, factor=level.factor)
    rows = [
        (
            level.factor,
            "" if level.factor == NOMINAL else f"{level.value:g}",
            "yes" if level.trained else "no",
            level.success,
            figure(level.record()["success_interval"]),
        )
        for level in levels
    ]
    columns = ("factor", "level", "within training", "success", "95 % interval")
    console.table(f"Robustness, {episodes} episodes a level", columns, rows)
    for factor, failure in first_failures(levels).items():
        ends = " and ".join(f"{value:g}" for value in failure.values() if value is not None)
        if ends:
            console.say(f"{factor}: less than {KEPT:.0%} of the nominal success is left at {ends}.")
    return levels


def measured_levels(
    policy: Policy,
    task: CompiledTask,
    planned: Sequence[tuple[str, float, bool]],
    episodes: int,
    seed: int,
    *stream: int,
) -> Iterator[Level]:
    """Yield the nominal level, then the planned ones that the model has.

    Arguments as of `measure_robustness`; another `stream` gives other episodes of the same seed.
    """
    watched = _Ranges(policy)
    run = _Runner(task, episodes, seed_sequence(seed, _EPISODE_STREAM, *stream))
    nominal = run(task.with_factors({}), watched)
    yield Level(NOMINAL, 0.0, True, int(nominal.success.sum()), episodes)
    for factor in dict.fromkeys(factor for factor, _, _ in planned):
        own = [(value, trained) for name, value, trained in planned if name == factor]
        outcomes: dict[float, Episodes] = {}
        # Both ends first: what changes nothing at either, as friction of what touches nothing, is no factor.
        for value in (own[0][0], own[-1][0], *(value for value, _ in own[1:-1])):
            try:
                outcomes[value] = run(*_varied(task, policy, watched, factor, value, seed))
            except TaskError:
                break
            alike = (
                np.array_equal(each.final_distance, nominal.final_distance) for each in outcomes.values()
            )
            if value == own[-1][0] and all(alike):
                break
        else:
            for value, trained in own:
                yield Level(factor, value, trained, int(outcomes[value].success.sum()), episodes)


def first_failures(levels: Sequence[Level]) -> dict[str, dict[str, float | None]]:
    """Return for each factor the level nearest the model, ``below`` and ``above`` it, that does not hold.

    A level holds where `KEPT` of the nominal success is left; None: every level that was tried does.
    """
    nominal = next(level for level in levels if level.factor == NOMINAL)
    found: dict[str, dict[str, float | None]] = {}
    for factor in dict.fromkeys(level.factor for level in levels if level.factor != NOMINAL):
        own = [level for level in levels if level.factor == factor]
        failed = [level.value for level in own if level.success < KEPT * nominal.success]
        middle = 1.0 if factor in FACTORS and FACTORS[factor].relative else 0.0
        below, above = [v for v in failed if v < middle], [v for v in failed if v >= middle]
        found[factor] = {"below": max(below, default=None), "above": min(above, default=None)}
    return found


def keep(artifact: Artifact, levels: Sequence[Level], facts: Sequence[str]) -> None:
    """Write a card into an artifact, as JSON and as a picture with these facts in its heading."""
    content = {"levels": [level.record() for level in levels], "first_failures": first_failures(levels)}
    write_json_atomic(artifact.file(ROBUSTNESS_FILE), content)
    draw_card(artifact.file(ROBUSTNESS_PICTURE), levels, facts)


def draw_card(path: Path, levels: Sequence[Level], facts: Sequence[str] = ()) -> None:
    """Draw success against the level of every factor, with 95 % intervals, as a PNG file.

    What training varied is shaded; the dashed line is `KEPT` of the nominal success.
    """
    from matplotlib.patches import Patch

    from thousandfold.ground.picture_style import PALETTE, SOFT, house_figure

    nominal = next(level for level in levels if level.factor == NOMINAL)
    factors = list(dict.fromkeys(level.factor for level in levels if level.factor != NOMINAL))
    columns, colour = 2, PALETTE[0]
    rows = -(-len(factors) // columns)
    title, facts = (
        "Success where the world is not as the model",
        (*facts, f"{nominal.episodes:,} episodes a level"),
    )
    with house_figure(path, 9.0, 0.6 + 2.3 * rows, title, facts) as figure:
        panels: list[Axes] = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
        for axes, factor in zip(panels, factors, strict=False):
            own = sorted((level for level in levels if level.factor == factor), key=lambda each: each.value)
            if trained := [level.value for level in own if level.trained]:
                axes.axvspan(min(trained), max(trained), color=PALETTE[2], alpha=0.12, linewidth=0)
            middle = 1.0 if factor in FACTORS and FACTORS[factor].relative else 0.0
            own = sorted([*own, replace(nominal, value=middle)], key=lambda each: each.value)
            values, share = [level.value for level in own], [level.success for level in own]
            ends = np.array([wilson_interval(level.successes, level.episodes) for level in own])
            axes.fill_between(values, *ends.T, color=colour, alpha=0.2, linewidth=0)
            (line,) = axes.plot(values, share, color=colour, linewidth=2, marker="o", markersize=4)
            kept = axes.axhline(KEPT * nominal.success, color=SOFT, linewidth=1, linestyle="--")
            axes.set_ylim(-0.04, 1.04)
            axes.set_xlabel(_label(factor))
        for axes in panels[::columns]:
            axes.set_ylabel("success")
        for axes in panels[len(factors) :]:
            axes.set_visible(False)
        shown = {
            "success": line,
            "95 % interval": Patch(color=colour, alpha=0.2, linewidth=0),
            f"{KEPT:.0%} of the nominal success": kept,
            "varied in training": Patch(color=PALETTE[2], alpha=0.12, linewidth=0),
        }
        figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=4)


def _label(factor: str) -> str:
    """Return what an axis of levels says."""
    if factor in _LABELS:
        return _LABELS[factor]
    unit = "times the model's" if FACTORS[factor].relative else FACTORS[factor].unit
    return f"{factor.replace('_', ' ')}, {unit}"


class _Runner:
    """Runs episodes of a policy in a task; every call gives the same starts and goals."""

    def __init__(self, task: CompiledTask, episodes: int, seed: np.random.SeedSequence) -> None:
        self._distribution = "nominal" if "nominal" in task.spec.distributions else "evaluation"
        self._episodes, self._seed = episodes, seed

    def __call__(self, task: CompiledTask, policy: Policy) -> Episodes:
        return run_episodes(
            task, policy, episodes=self._episodes, seed=self._seed, distribution=self._distribution
        )


class _Ranges:
    """A policy that notes the least and the greatest of every number of its observations."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.low: Any = np.inf
        self.high: Any = -np.inf

    def __call__(self, observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        self.low = np.minimum(self.low, observation.min(0))
        self.high = np.maximum(self.high, observation.max(0))
        return self._policy(observation, goal)


def _noisy(task: CompiledTask, policy: Policy, ranges: _Ranges, share: float, seed: int) -> Policy:
    """Return the policy on noisy observations; what no sensor tells, as what was sent, is known exactly."""
    names = [element["name"] for element in task.describe("observation")]
    sensed = np.array([not name.startswith(_KNOWN) for name in names])
    std = (share * sensed * (ranges.high - ranges.low)).astype(np.float32)
    rng = np.random.Generator(np.random.PCG64(seed_sequence(seed, _NOISE_STREAM)))
    # A reading keeps its noise as it grows older: x[0]@-2 has that which x[0] had two steps before.
    readings = [past_reading(name) for name in names]
    ages, newest = [age for _, age in readings], [names.index(name) for name, _ in readings]
    before: list[np.ndarray] = []

    def act(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        if before and len(before[0]) != len(observation):
            before.clear()
        before.insert(0, rng.standard_normal(observation.shape, np.float32))
        del before[max(ages) + 1 :]
        noise = [
            before[min(age, len(before) - 1)][:, column] for age, column in zip(ages, newest, strict=True)
        ]
        return policy(observation + std * np.stack(noise, 1), goal)

    return act


def _varied(
    task: CompiledTask, policy: Policy, ranges: _Ranges, factor: str, value: float, seed: int
) -> tuple[CompiledTask, Policy]:
    """Return the task and the policy with a factor held at a level; TaskError where there is none such."""
    if factor == NOISE:
        return task.with_factors({}), _noisy(task, policy, ranges, value, seed)
    if factor == DELAY:
        return task.with_factors({}).with_action_delay(int(value)), policy
    if factor == TOGETHER:
        drawn = list(_drawn_together(task, value))
        noisy = _noisy(task, policy, ranges, _NOISE_TOGETHER, seed)
        return task.with_factors(drawn).with_action_delay(_DELAY_TOGETHER), noisy
    return task.with_factors({factor: value}), policy


def _drawn_together(task: CompiledTask, share: float) -> Iterator[Factor]:
    """Yield the factors that vary together, those that the model has."""
    for name in _VARIED_TOGETHER:
        try:
            task.with_factors({name: 1.0})
        except TaskError:
            continue
        yield Factor(name, 1 - share, 1 + share)


def _trained_bounds(task: CompiledTask) -> dict[str, tuple[float, float]]:
    """Return what training varied: bounds by factor, the widest where there are several of one name."""
    found: dict[str, tuple[float, float]] = {DELAY: task.spec.action_delay}
    for factor in task.spec.distribution("training").varies:
        if isinstance(factor, Factor):
            low, high = factor.bounds
            before = found.get(factor.name, (low, high))
            found[factor.name] = (min(low, before[0]), max(high, before[1]))
    return found


def _is_relative(task: CompiledTask, name: str) -> bool:
    """Tell whether levels of a factor multiply the model's own number."""
    own = [
        factor
        for factor in task.spec.distribution("training").varies
        if isinstance(factor, Factor) and factor.name == name
    ]
    return FACTORS[name].relative and all(factor.relative for factor in own)


def _around(factor: str, low: float, high: float) -> tuple[float, ...]:
    """Return levels within bounds and half of their width beyond, those that the factor can have."""
    half, kind = (high - low) / 2, FACTORS[factor]
    levels = (low - half, low, (low + high) / 2, high, high + half)
    least = -np.inf if kind.least is None else kind.least
    possible = (value for value in levels if value > least or (kind.may_be_least and value == least))
    return tuple(dict.fromkeys(possible))
