"""What a study claims before it runs, as sentences, and what its trainings say of each claim.

    deep reaches more than shallow of success at the end
    deep reaches at least 0.95 of success after 10 minutes on arm_reach
    deep needs fewer steps than shallow to reach 0.8 of success

A score is one number a training. Over the seeds of one task the interquartile mean is taken, and over tasks
the same of all of them together; its 95 % interval is a bootstrap that draws seeds within each task.
Source: Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from thousandfold.ground.errors import SettingsError, unknown_name

METRICS = ("success", "time_at_goal")
Verdict = Literal["shown", "not shown", "contradicted"]
FORMS = (
    "ARM reaches more than ARM of METRIC WHEN",
    "ARM reaches at least NUMBER of METRIC WHEN",
    "ARM needs fewer steps|seconds than ARM to reach NUMBER of METRIC",
)
WHEN = "at the end, at equal seconds, or after NUMBER steps|seconds|minutes"
"""of a training; `on TASK` may follow, where it is not all tasks together"""

FEWEST_SEEDS = 3
"""of a task and an arm, below which a bootstrap's interval means nothing"""

_RESAMPLES = 10_000
_NUMBER = r"[0-9][0-9_,]*(?:\.[0-9]+)?(?:e[0-9]+)?"
_MOMENT = rf"(at the end|at equal seconds|after {_NUMBER} (?:steps|seconds|minutes))"
_PATTERNS = (
    re.compile(rf"(?P<arm>\S+) reaches more than (?P<other>\S+) of (?P<metric>\w+) {_MOMENT}"),
    re.compile(rf"(?P<arm>\S+) reaches at least (?P<least>{_NUMBER}) of (?P<metric>\w+) {_MOMENT}"),
    re.compile(
        rf"(?P<arm>\S+) needs fewer (?P<unit>steps|seconds) than (?P<other>\S+) "
        rf"to reach (?P<least>{_NUMBER}) of (?P<metric>\w+)"
    ),
)


@dataclass(frozen=True)
class Moment:
    """A moment of a training.

    Attributes:
        axis: of the learning curve; ``end``: after the training, where fresh episodes are measured;
            ``equal seconds``: where the first training of those that are compared has ended.
        value: on the axis, in steps or seconds.
    """

    axis: Literal["end", "equal seconds", "env_steps", "elapsed_s"]
    value: float = 0.0


@dataclass(frozen=True)
class Claim:
    """A claim of a study.

    Attributes:
        text: as it was written.
        arm, other: that are compared; no other: with a number.
        metric: of the score.
        least: the number to reach; None where two arms are compared.
        moment: when the score is taken; None: the score is what it takes to reach `least`.
        unit: of that.
        task: the claim is about; None: all tasks together.
    """

    text: str
    arm: str
    metric: str
    other: str | None = None
    least: float | None = None
    moment: Moment | None = None
    unit: Literal["steps", "seconds"] = "steps"
    task: str | None = None


@dataclass(frozen=True)
class Training:
    """What is compared of one training: its learning curve, and its fresh episodes at the end."""

    arm: str
    task: str
    seed: int
    curve: Mapping[str, Sequence[float]]
    """``env_steps``, ``elapsed_s`` and each of `METRICS`, one number an evaluation."""
    final: Mapping[str, float]
    """Each of `METRICS`."""


@dataclass(frozen=True)
class Finding:
    """What the trainings say of a claim.

    Attributes:
        estimate: difference of the arms, or score of the arm; None where nothing could be compared.
        interval: its 95 % interval.
        reason: why nothing could be compared; empty where it could.
    """

    claim: Claim
    verdict: Verdict
    estimate: float | None = None
    interval: tuple[float, float] | None = None
    reason: str = ""


def read_claim(text: str, arms: Collection[str], tasks: Collection[str]) -> Claim:
    """Return the claim that a sentence makes.

    Raises:
        SettingsError: it has none of the forms, or names an arm, a metric or a task that is not there.
    """
    sentence = " ".join(text.split()).rstrip(".")
    task = None
    if " on " in sentence:
        sentence, _, task = sentence.rpartition(" on ")
        if task not in tasks:
            raise SettingsError(f"claim {text!r}: {unknown_name('task of the study', task, tasks)}")
    match = next((found for pattern in _PATTERNS if (found := pattern.fullmatch(sentence))), None)
    if match is None:
        raise SettingsError(
            f"claim {text!r} is none of these: {'; '.join(FORMS)}. WHEN is {WHEN}; `on TASK` may follow."
        )
    named: dict[str, Any] = match.groupdict()
    for arm in (named["arm"], named.get("other")):
        if arm is not None and arm not in arms:
            raise SettingsError(f"claim {text!r}: {unknown_name('arm', arm, arms)}")
    if named["metric"] not in METRICS:
        raise SettingsError(f"claim {text!r}: {unknown_name('metric', named['metric'], METRICS)}")
    common: dict[str, Any] = {"text": text, "arm": named["arm"], "metric": named["metric"], "task": task}
    least = _number(named["least"]) if "least" in named else None
    if "unit" in named:
        return Claim(**common, other=named["other"], least=least, unit=named["unit"])
    moment = _moment(sentence)
    if "other" in named:
        return Claim(**common, other=named["other"], moment=moment)
    return Claim(**common, least=least, moment=moment)


def _moment(sentence: str) -> Moment:
    if sentence.endswith("at the end"):
        return Moment("end")
    if sentence.endswith("at equal seconds"):
        return Moment("equal seconds")
    number, unit = sentence.split()[-2:]
    scale = 60.0 if unit == "minutes" else 1.0
    return Moment("env_steps" if unit == "steps" else "elapsed_s", _number(number) * scale)


def _number(text: str) -> float:
    return float(text.replace(",", "").replace("_", ""))


def judge(claim: Claim, trainings: Sequence[Training]) -> Finding:
    """Return what the trainings of a study say of a claim.

    A claim is shown where the whole interval is on its side, and contradicted where it is on the other.
    """
    found = [each for each in trainings if claim.task in (None, each.task)]
    tasks = list(dict.fromkeys(each.task for each in found))
    arms = {name: [each for each in found if each.arm == name] for name in (claim.arm, claim.other) if name}
    if empty := [name for name, own in arms.items() if not own]:
        return Finding(claim, "not shown", reason=f"no training of {' and '.join(empty)} is done")
    if claim.moment is not None and claim.moment.axis == "equal seconds":
        moment = Moment(
            "elapsed_s", min(each.curve["elapsed_s"][-1] for own in arms.values() for each in own)
        )
    else:
        moment = claim.moment
    scores: dict[str, list[np.ndarray]] = {}
    for name, own in arms.items():
        values = {task: [_score(each, claim, moment) for each in own if each.task == task] for task in tasks}
        if any(value is None for scored in values.values() for value in scored):
            assert moment is not None
            at = f"{moment.value:,.6g} {'steps' if moment.axis == 'env_steps' else 'seconds'}"
            return Finding(claim, "not shown", reason=f"a training of {name} was not evaluated around {at}")
        if few := [task for task, scored in values.items() if len(scored) < FEWEST_SEEDS]:
            reason = f"{name} has fewer than {FEWEST_SEEDS} seeds on {', '.join(few)}"
            return Finding(claim, "not shown", reason=reason)
        scores[name] = [np.array(scored, float) for scored in values.values()]
    return _verdict(claim, list(scores.values()))


def _verdict(claim: Claim, scores: Sequence[Sequence[np.ndarray]]) -> Finding:
    estimate, low, high = estimate_difference(*scores) if claim.other else estimate_mean(scores[0])
    if claim.moment is None:  # fewer steps or seconds are better
        worst, best = -high, -low
    else:
        least = 0.0 if claim.other else claim.least or 0.0
        worst, best = low - least, high - least
    verdict: Verdict = "not shown"
    if worst > 0 or (worst == 0 and not claim.other):
        verdict = "shown"
    elif best < 0:
        verdict = "contradicted"
    return Finding(claim, verdict, estimate, (low, high))


def _score(training: Training, claim: Claim, moment: Moment | None) -> float | None:
    """Return a training's score; None where its curve does not reach to the moment."""
    curve = training.curve
    if moment is None:
        axis = curve["env_steps" if claim.unit == "steps" else "elapsed_s"]
        met = (at for at, value in zip(axis, curve[claim.metric], strict=True) if value >= (claim.least or 0))
        return next(met, axis[-1])  # one that never got there is taken at its end, in its favour
    if moment.axis == "end":
        return training.final[claim.metric]
    return value_at(curve, moment.axis, claim.metric, moment.value)


def value_at(curve: Mapping[str, Sequence[float]], axis: str, metric: str, place: float) -> float | None:
    """Return a metric on the line between the two evaluations around a place; None outside the curve."""
    places = curve[axis]
    if not places or not places[0] <= place <= places[-1]:
        return None
    return float(np.interp(place, places, curve[metric]))


def estimate_mean(scores: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Return the interquartile mean over tasks and seeds, and the ends of its 95 % interval.

    Args:
        scores: of each task, (seeds,), at least `FEWEST_SEEDS` of them.
    """
    return _bootstrap(_interquartile_mean, scores)


def estimate_difference(
    scores: Sequence[np.ndarray], others: Sequence[np.ndarray]
) -> tuple[float, float, float]:
    """Return by how much one interquartile mean exceeds another, and the ends of its 95 % interval.

    Args:
        scores, others: as of `estimate_mean`.
    """
    tasks = len(scores)

    def difference(*drawn: np.ndarray, axis: int) -> np.ndarray:
        return _interquartile_mean(*drawn[:tasks], axis=axis) - _interquartile_mean(*drawn[tasks:], axis=axis)

    return _bootstrap(difference, [*scores, *others])


def _interquartile_mean(*scores: np.ndarray, axis: int) -> np.ndarray:
    from scipy.stats import trim_mean

    return trim_mean(np.concatenate(scores, axis=axis), 0.25, axis=axis)


def _bootstrap(
    statistic: Callable[..., np.ndarray], samples: Sequence[np.ndarray]
) -> tuple[float, float, float]:
    from scipy.stats import bootstrap

    found = bootstrap(
        samples,
        statistic,
        n_resamples=_RESAMPLES,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(statistic(*samples, axis=0)), float(found.low), float(found.high)
