"""What is said of a task's goals before it is trained: which of them cannot be compared, or reached."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import mujoco

from thousandfold.envs.checks.goal_reach import GoalReach, ReachReport
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.mujoco_log import quiet_mujoco
from thousandfold.envs.object_names import as_written, find_object, object_name
from thousandfold.envs.task import TaskError, Term
from thousandfold.envs.term_columns import (
    FACTORS_FIELD,
    TermColumns,
    TermResolver,
    label_of,
    quaternion_columns,
)
from thousandfold.envs.user_tasks.task_yaml import task_place

_MORE_THAN_POSITIONS = "the goal is more than a matter of positions"
_NO_QUATERNIONS = "number by number, although q and -q are one orientation"
_SENSED = {
    mujoco.mjtObj.mjOBJ_SITE: "site",
    mujoco.mjtObj.mjOBJ_GEOM: "geom",
    mujoco.mjtObj.mjOBJ_XBODY: "body",
}
_UNDRIVEN = "the goal is the place of a body that nothing drives directly"


@dataclass(frozen=True)
class GoalJudgement:
    """What became of some goals of training and evaluation.

    Attributes:
        out_of_reach: the share that most likely cannot be reached, by distribution; None where that is not
            judged, and nothing was found.
        warnings: a line for each kind of them.
        not_judged: why only walls, floors and early ends were looked at, or nothing at all; empty where the
            joints' ranges tell.
    """

    out_of_reach: dict[str, float] | None
    warnings: list[str]
    not_judged: str = ""


def judge_goals(
    task: CompiledTask, seed: int, *, goals: int = 48, configurations: int = 1500
) -> GoalJudgement:
    """Look for configurations that reach goals.

    Args:
        task: the compiled task.
        seed: of goals and configurations.
        goals: of training, of evaluation and of near each.
        configurations: how many random ones to look at before the search.
    """
    reach = GoalReach(task, seed, configurations)
    warnings = [*_orientation_warnings(task)]
    if not reach.can_judge:
        return GoalJudgement(None, warnings, _MORE_THAN_POSITIONS)
    shares: dict[str, float] = {}
    with quiet_mujoco():
        for name in task.spec.judged:
            report = reach.judge(name, goals)
            shares[name] = report.share
            warnings += _warnings(task, name, report)
        if reach.is_driven:
            return GoalJudgement(shares, warnings)
    return GoalJudgement(shares if any(shares.values()) else None, warnings, _UNDRIVEN)


def require_comparable_goals(task: CompiledTask) -> None:
    """Raise TaskError where success compares the numbers of quaternions: q and −q would differ."""
    for place, columns, numbers in _quaternions(task, "achieved_goal", task.spec.achieved_goal):
        if _success_compares(task, numbers):
            label = label_of(columns.term)
            offer = _orientation_of(task.model, columns.term)
            raise TaskError(
                f"{place}: {label} is a quaternion that success compares {_NO_QUATERNIONS}: {offer} and give "
                "success an `angle` (docs/user_tasks.md)."
            )


def _orientation_warnings(task: CompiledTask) -> Iterator[str]:
    """Yield a line for each term, of those that are not refused, that takes quaternions number by number."""
    for place, columns, numbers in _quaternions(task, "achieved_goal", task.spec.achieved_goal):
        if not _success_compares(task, numbers):
            offer = _orientation_of(task.model, columns.term)
            yield (
                f"{place}: {label_of(columns.term)} is a quaternion that goals command {_NO_QUATERNIONS}: "
                f"{offer}."
            )
    student = task.spec.student_observation or ()
    for part, terms in (("observation", task.spec.observation), ("student_observation", student)):
        for place, columns, _ in _quaternions(task, part, terms):
            if columns.term.minus is not None:
                yield (
                    f"{place}: {label_of(columns.term)} subtracts quaternions {_NO_QUATERNIONS}: take the "
                    "one's orientation `in` the other body."
                )
    for place, columns, _ in _quaternions(task, "early_end", (end.term for end in task.spec.early_end)):
        yield (
            f"{place}: {label_of(columns.term)} ends episodes by a quaternion {_NO_QUATERNIONS}: take "
            "numbers of `up` or of an orientation."
        )


def _orientation_of(model: mujoco.MjModel, term: Term) -> str:
    """Return the advice to take the orientation of what a term's quaternion belongs to."""
    kind, name = "body", term.object
    if term.field == "qpos" and name is not None:
        joint = find_object(model, mujoco.mjtObj.mjOBJ_JOINT, name, "the task")
        name = object_name(model, mujoco.mjtObj.mjOBJ_BODY, int(model.jnt_bodyid[joint]))
    elif term.field == "sensordata" and name is not None:
        sensor = find_object(model, mujoco.mjtObj.mjOBJ_SENSOR, name, "the task")
        sensed = mujoco.mjtObj(model.sensor_objtype[sensor])
        kind = _SENSED.get(sensed, "body")
        name = None
        if sensed in _SENSED:
            named = mujoco.mjtObj.mjOBJ_BODY if sensed == mujoco.mjtObj.mjOBJ_XBODY else sensed
            name = object_name(model, named, int(model.sensor_objid[sensor]))
    of = "{object: …}" if name is None else f"{{object: {as_written(name)}, kind: {kind}}}"
    return f"take `orientation: {of}` in its place"


def _quaternions(
    task: CompiledTask, part: str, terms: Iterable[Term]
) -> Iterator[tuple[str, TermColumns, list[int]]]:
    """Yield where terms that read quaternions stand, their columns, and which of the part's numbers it is."""
    resolver, first = TermResolver(task.model, f"Task {task.name!r}"), 0
    for index, term in enumerate(terms):
        if term.field == FACTORS_FIELD:
            continue
        (columns,) = resolver.resolve((term,))
        found = quaternion_columns(task.model, term.field)[columns.source]
        if term.minus is not None:
            found = found | quaternion_columns(task.model, term.minus.field)[columns.minus]
        if found.any():
            yield (
                task_place(task.spec.file, (part, index)),
                columns,
                [first + int(number) for number in found.nonzero()[0]],
            )
        first += columns.stop


def _success_compares(task: CompiledTask, numbers: list[int]) -> bool:
    return any(region.covers(each) for region in task.spec.success for each in numbers)


def _warnings(task: CompiledTask, name: str, report: ReachReport) -> list[str]:
    """Return a line for each kind of goals of a distribution that most likely cannot be reached."""
    found = []
    if report.out_of_reach:
        radius = task.spec.success[0].radius
        bounds = "ranges and the bounds of early_end" if task.spec.early_end else "ranges"
        found.append(
            f"no configuration was found for {report.out_of_reach} of {report.goals} {name} goals: "
            f"in the joints' {bounds} nothing comes within {radius:g} of them, and the farthest is "
            f"missed by {report.farthest:.3g}."
        )
    if report.walled_off:
        found.append(
            f"{report.walled_off} of {report.goals} {name} goals lie within walls of the maze, or where "
            "no path leads from the start."
        )
    if report.below_floor:
        found.append(
            f"{report.below_floor} of {report.goals} {name} goals lie below a floor, a plane that the body "
            "of the goal cannot pass."
        )
    return found
