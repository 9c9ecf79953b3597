"""`pipeline run`: every stage in one chain."""

from __future__ import annotations

import click

from thousandfold.ground.errors import SettingsError
from thousandfold.pipeline.completion import complete_tasks
from thousandfold.pipeline.session import (
    CommonOptions,
    Session,
    describe,
    named,
    resume_option,
    stage_command,
)


@click.command()
@click.option(
    "--task",
    metavar="TASK",
    shell_complete=complete_tasks,
    help="Task to learn: a name of `pipeline tasks`, or the YAML file of your own task [default: the "
    "preset's].",
)
@resume_option("CHAIN", "Continue an unfinished chain: the newest, or the one named.")
@click.option(
    "--min-success",
    type=float,
    metavar="SHARE",
    help="Stop with exit code 1 after the teacher, if it reaches a smaller share of its goals.",
)
@stage_command
def run(
    session: Session, common: CommonOptions, task: str | None, resume: str | None, min_success: float | None
) -> None:
    """Run every stage, from teacher to benchmark and report, in one chain run.

    With --set, name the stage too: --set train_teacher.depth=32.
    """
    from thousandfold.stages.chain.chain import resolve_chain, resume_chain, start_chain

    if min_success is not None and not 0 <= min_success <= 1:  # NaN is not
        raise SettingsError(f"--min-success must be between 0 and 1 (got {min_success:g}).")
    if resume is not None:
        common.refuse_with_resume({"dry-run": common.dry_run or None, "task": task})
        made = resume_chain(session.context, named(resume), min_success)
    else:
        settings = resolve_chain(common, task)
        if common.dry_run:
            session.show_settings(settings)
            return
        session.announce_training(common, settings["train_teacher"].model_dump()["task"])
        made = start_chain(settings, session.context, min_success)
    session.console.result({stage: describe(artifact) for stage, artifact in made.items()})
