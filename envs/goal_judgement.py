"""What is said of a task's goals before it is trained: which of them most likely cannot be reached."""

from __future__ import annotations

from dataclasses import dataclass

from envs.compiled_task import CompiledTask
from envs.goal_reach import GoalReach, ReachReport
from envs.mujoco_log import quiet_mujoco

_MORE_THAN_POSITIONS = "the goal is more than a matter of positions"
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
        goals: of training and of evaluation each.
        configurations: how many random ones to look at before the search.
    """
    reach = GoalReach(task, seed, configurations)
    if not reach.can_judge:
        return GoalJudgement(None, [], _MORE_THAN_POSITIONS)
    shares: dict[str, float] = {}
    warnings: list[str] = []
    with quiet_mujoco():
        for name in ("training", "evaluation"):
            report = reach.judge(name, goals)
            shares[name] = report.share
            warnings += _warnings(task, name, report)
        if reach.is_driven:
            return GoalJudgement(shares, warnings)
    return GoalJudgement(shares if any(shares.values()) else None, warnings, _UNDRIVEN)


def _warnings(task: CompiledTask, name: str, report: ReachReport) -> list[str]:
    """Return a line for each kind of goals of a distribution that most likely cannot be reached."""
    found = []
    if report.out_of_reach:
        radius = task.task.success[0].radius
        bounds = "ranges and the bounds of early_end" if task.task.early_end else "ranges"
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
