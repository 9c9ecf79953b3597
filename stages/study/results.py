"""What a study shows: its table, its picture and its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thousandfold.ground.picture_style import PALETTE, SOFT, count_axis, house_figure
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.console import figure
from thousandfold.stages.report.page import (
    Block,
    Figures,
    Headline,
    Note,
    Page,
    Section,
    Table,
    inline_figure,
    render,
)
from thousandfold.stages.study.claims import (
    FEWEST_SEEDS,
    METRICS,
    Finding,
    Training,
    estimate_mean,
)
from thousandfold.stages.study.page import StudyPlan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE_FILE = "study.png"
_ALL = "all tasks"
_MEAN_DRAWS = 1000  # of a bootstrap


def describe(finding: Finding) -> str:
    """Return a finding's numbers, or why there are none, as the end of a line."""
    if finding.interval is None:
        return f" ({finding.reason})"
    assert finding.estimate is not None
    what = "difference" if finding.claim.other else "score"
    if finding.claim.moment is None:
        return (
            f" ({what} {finding.estimate:,.0f} {finding.claim.unit} {_interval(finding.interval, '{:,.0f}')})"
        )
    return f" ({what} {finding.estimate:+.3f} {_interval(finding.interval, '{:+.3f}')})"


def _interval(interval: tuple[float, float], form: str) -> str:
    return "[" + ", ".join(form.format(end) for end in interval) + "]"


def score_table(trainings: Sequence[Training]) -> list[dict[str, Any]]:
    """Return the score of each arm on each task, and on all together: of its fresh episodes at the end.

    An interval is None where a task has too few seeds.
    """
    tasks, arms = (list(dict.fromkeys(getattr(each, name) for each in trainings)) for name in ("task", "arm"))
    rows = []
    for task in [*tasks, *([_ALL] if len(tasks) > 1 else [])]:
        for arm in arms:
            own = [each for each in trainings if each.arm == arm and task in (each.task, _ALL)]
            if not own:
                continue
            row: dict[str, Any] = {"task": task, "arm": arm, "trainings": len(own)}
            for metric in METRICS:
                scores = [
                    np.array([each.final[metric] for each in own if each.task == name])
                    for name in dict.fromkeys(each.task for each in own)
                ]
                if min(map(len, scores)) < FEWEST_SEEDS:
                    row |= {metric: float(np.concatenate(scores).mean()), f"{metric}_interval": None}
                else:
                    estimate, low, high = estimate_mean(scores)
                    row |= {metric: estimate, f"{metric}_interval": [low, high]}
            row["seconds"] = float(np.median([each.curve["elapsed_s"][-1] for each in own]))
            rows.append(row)
    return rows


def draw_study(path: Path, trainings: Sequence[Training], title: str, facts: Sequence[str] = ()) -> None:
    """Draw success over steps and over seconds, a row a task: each training thin, the arm's mean thick.

    A training that has ended keeps its last success, as in the claims. The band around a mean of at least
    `FEWEST_SEEDS` trainings is its 95 % interval.

    Args:
        path: of the PNG file.
        trainings: of all tasks and arms.
        title, facts: of the heading; the seeds are added.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    tasks, arms = (list(dict.fromkeys(getattr(each, name) for each in trainings)) for name in ("task", "arm"))
    colours = dict(zip(arms, cycle(PALETTE), strict=False))
    seeds = sorted({each.seed for each in trainings})
    together = len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1))
    named = f"{seeds[0]} to {seeds[-1]}" if together else ", ".join(map(str, seeds))
    facts = (*facts, f"seed {named}" if len(seeds) == 1 else f"seeds {named}")
    with house_figure(path, 10.0, 0.7 + 2.7 * len(tasks), title, facts, panel_padding=0.1) as picture:
        panels = picture.subplots(len(tasks), 2, squeeze=False, sharey=True)
        for task, (by_steps, by_seconds) in zip(tasks, panels, strict=True):
            for arm in arms:
                own = [each.curve for each in trainings if each.task == task and each.arm == arm]
                _draw_arm(by_steps, own, "env_steps", colours[arm], arm)
                _draw_arm(by_seconds, own, "elapsed_s", colours[arm], arm)
            by_steps.set(title=task, ylabel="success", ylim=(-0.03, 1.03))
            for axes in (by_steps, by_seconds):
                count_axis(axes)
                axes.set_xlim(left=0)
        panels[-1][0].set_xlabel("environment steps")
        panels[-1][1].set_xlabel("seconds of training")
        handles, labels = panels[0][0].get_legend_handles_labels()
        handles += [Line2D([], [], color=SOFT, linewidth=0.8), Patch(color=SOFT, alpha=0.25, linewidth=0)]
        labels += ["one training", "95 % interval of the mean"]
        picture.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5))


def _draw_arm(
    axes: Axes, curves: Sequence[Mapping[str, Sequence[float]]], axis: str, colour: str, label: str
) -> None:
    """Draw each training, and their mean from where all of them have been evaluated."""
    for curve in curves:
        axes.plot(curve[axis], curve["success"], color=colour, linewidth=0.8, alpha=0.4)
    if not curves:
        axes.plot([], [], color=colour, linewidth=2.4, label=label)
        return
    first = max(curve[axis][0] for curve in curves)
    places = np.unique([at for curve in curves for at in curve[axis] if first <= at])
    values = np.array([np.interp(places, curve[axis], curve["success"]) for curve in curves])
    axes.plot(places, values.mean(0), color=colour, linewidth=2.4, label=label)
    if len(curves) >= FEWEST_SEEDS:
        drawn = np.random.default_rng(0).integers(len(curves), size=(_MEAN_DRAWS, len(curves)))
        low, high = np.percentile(values[drawn].mean(1), [2.5, 97.5], axis=0)
        axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)


def study_page(
    artifact: Artifact,
    plan: StudyPlan,
    trainings: Sequence[Training],
    findings: Sequence[Finding],
    planned: int,
    failed: Mapping[str, str],
) -> str:
    """Return the study as one page of HTML, which needs no other file."""
    content = artifact.file(PICTURE_FILE).read_bytes()
    picture = inline_figure(content, ".png", alt="Success of every arm over steps and seconds", caption="")
    seeds = len({each.seed for each in trainings})
    caption = (
        "Thin: a training each, which keeps its last success once it has ended. Thick: the mean of an arm's, "
        f"with its 95 % interval as a band. {seeds} {'seed' if seeds == 1 else 'seeds'}."
    )
    blocks: list[Block] = []
    if findings:
        rows = [(found.claim.text, found.verdict, describe(found).strip(" ()")) for found in findings]
        blocks.append(Table("Claims, as they were written before", ("claim", "verdict", "numbers"), rows))
    columns = ("task", "arm", "trainings", "success", "95 % of it", "time at goal", "95 % of that", "seconds")
    scores = [
        (
            row["task"],
            row["arm"],
            figure(row["trainings"]),
            *(cell for metric in METRICS for cell in _cells(row, metric)),
            f"{row['seconds']:,.0f}",
        )
        for row in score_table(trainings)
    ]
    blocks.append(Table("Fresh episodes after the training", columns, scores, numeric=frozenset(columns[2:])))
    blocks.append(Figures([picture], "large", caption))
    differing = _differences(plan.arms)
    if differing:
        rows = [(arm, *(str(values[name]) for name in differing)) for arm, values in plan.arms.items()]
        blocks.append(Table("What tells the arms apart", ("arm", *differing), rows))
    same = {name: value for name, value in next(iter(plan.arms.values())).items() if name not in differing}
    blocks.append(
        Table(
            "What is the same in all",
            ("setting", "value"),
            [(name, str(value)) for name, value in same.items()],
            folded=True,
        )
    )
    blocks += [Note(f"{name} failed: {reason}") for name, reason in failed.items()]
    lead = (
        "A score is the interquartile mean over tasks and seeds; its interval draws seeds anew in "
        "each task. A claim is shown where the whole interval is on its side, contradicted where it is on "
        "the other."
    )
    counts = [
        Headline(name.capitalize(), str(sum(found.verdict == name for found in findings)), "claims", "")
        for name in ("shown", "not shown", "contradicted")
    ]
    done = f"{len(trainings)} of {planned} trainings are done."
    return render(
        Page(
            plan.question or artifact.name,
            done,
            counts if findings else [],
            [Section("study", "What the trainings say", lead, blocks)],
            f"Made from study {artifact.name}.",
            [] if len(trainings) == planned else [f"This is a part of the study: {done}"],
        )
    )


def _cells(row: Mapping[str, Any], metric: str) -> tuple[str, str]:
    interval = row[f"{metric}_interval"]
    return figure(row[metric]), "too few seeds" if interval is None else figure(interval)


def _differences(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the settings that are not the same in all arms."""
    first = next(iter(arms.values()))
    return [name for name in first if any(values[name] != first[name] for values in arms.values())]
