"""The command `pipeline frontier`: make a grid of students, go on with one, or choose a student from it."""

from __future__ import annotations

from typing import Any

import click

from thousandfold.ground.errors import SettingsError
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.completion import complete_artifacts
from thousandfold.pipeline.resume import find_parent
from thousandfold.pipeline.session import (
    CommonOptions,
    Session,
    describe,
    named,
    resume_option,
    stage_command,
)
from thousandfold.stages.distill.command import take_dataset

_MIN_RETENTION = 0.98


@click.command()
@click.option("--depths", metavar="N,N,...", help="Layers of the students [default: 1,2,4,8].")
@click.option("--widths", metavar="N,N,...", help="Units of the students' layers [default: 32,64,128,256].")
@click.option(
    "--teacher",
    metavar="TEACHER",
    shell_complete=complete_artifacts("teacher"),
    help="Name or path of a teacher [default: the newest; with --select the frontier's].",
)
@click.option(
    "--dataset",
    metavar="DATASET",
    shell_complete=complete_artifacts("dataset"),
    help="Name or path of a dataset [default: the teacher's newest; it is made first if there is none].",
)
@click.option("--jobs", type=int, help="Processes that distil at a time [default: one for each CPU].")
@click.option(
    "--runtime",
    type=click.Choice(["onnxruntime", "c"]),
    help="Whose latency to compare and choose by; c: C code as of `policy to-c` [default: onnxruntime].",
)
@resume_option(
    "FRONTIER",
    "Continue an unfinished frontier, the newest or the one named; with a name, also try again what "
    "failed in a finished one.",
)
@click.option(
    "--select", is_flag=True, help="Choose the smallest student that meets the bounds, and export it."
)
@click.option(
    "--min-retention",
    type=float,
    help=f"With --select: smallest share of the teacher's success [default: {_MIN_RETENTION}].",
)
@click.option(
    "--max-p99-us", type=float, help="With --select: largest p99 of one call, in microseconds [default: any]."
)
@click.option(
    "--confident",
    is_flag=True,
    default=None,
    help="With --select: the bound applies to the lower end of retention's 95 % interval, not to its "
    "estimate.",
)
@click.option(
    "--frontier",
    metavar="FRONTIER",
    shell_complete=complete_artifacts("frontier"),
    help="With --select: name or path of a frontier [default: the newest].",
)
@stage_command
def frontier(
    session: Session,
    common: CommonOptions,
    teacher: str | None,
    dataset: str | None,
    resume: str | None,
    select: bool,
    min_retention: float | None,
    max_p99_us: float | None,
    confident: bool | None,
    frontier: str | None,
    **flags: Any,
) -> None:
    """Distil a grid of students and measure what each retains and how fast it is; or choose one.

    With --set, name the stage too: --set distill.updates=3000. --select exports the chosen student, so that
    benchmark, evaluate and render use it.
    """
    if select:
        making = flags | {"dataset": dataset, "resume": resume}
        making |= {"preset": common.preset, "seed": common.seed, "device": common.device}
        making |= {
            "config": common.config,
            "set": common.overrides or None,
            "dry-run": common.dry_run or None,
        }
        _refuse("--select chooses from an existing frontier", making)
        from thousandfold.stages.frontier.selection import Bounds, select_student

        least = _MIN_RETENTION if min_retention is None else min_retention
        bounds = Bounds(least, max_p99_us, bool(confident))
        if not 0 <= bounds.min_retention <= 2 or (max_p99_us is not None and not max_p99_us > 0):
            raise SettingsError("--min-retention must be between 0 and 2, and --max-p99-us greater than 0.")
        chosen_from = session.take("frontier", frontier)
        given = None if teacher is None else _parent(session, chosen_from, "teacher", teacher)
        made = select_student(chosen_from, bounds, session.context, given)
        session.console.result({kind: describe(artifact) for kind, artifact in made.items()})
        return
    choosing = {"min-retention": min_retention, "max-p99-us": max_p99_us, "confident": confident}
    _refuse("only --select chooses", choosing | {"frontier": frontier})
    from thousandfold.stages.frontier.cells import find_resumable
    from thousandfold.stages.frontier.frontier import resolve_plan, run

    if resume is not None:
        common.refuse_with_resume({**flags, "dry-run": common.dry_run or None})
        plan, artifact = find_resumable(session.workspace, named(resume))
        session.console.say(f"Going on with {artifact.name}; workspace {session.workspace.root}.")
        source = _parent(session, artifact, "teacher", teacher)
        data = _parent(session, artifact, "dataset", dataset)
        session.report(run(plan, session.context, source, data, artifact))
        return
    plan = resolve_plan(common, flags)
    if session.starts(common, "frontier", plan):
        source = session.take("teacher", teacher)
        data = take_dataset(session, common, source, dataset)
        session.report(run(plan, session.context, source, data))


def _parent(session: Session, artifact: Artifact, role: str, reference: str | None) -> Artifact:
    """Return what a frontier is made from. Raises UserError where it is another one now."""
    return session.take(role, str(find_parent(artifact, role, session.workspace, reference).path))


def _refuse(why: str, options: dict[str, Any]) -> None:
    """Raise SettingsError where options are given that have no meaning here."""
    named = [f"--{name}" for name, value in options.items() if value is not None]
    if named:
        raise SettingsError(f"{', '.join(named)}: {why}; leave {'it' if len(named) == 1 else 'them'} out.")
