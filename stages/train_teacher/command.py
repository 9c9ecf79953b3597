"""`pipeline train-teacher`."""

from __future__ import annotations

from typing import Any

import click

from thousandfold.pipeline.completion import complete_tasks
from thousandfold.pipeline.session import CommonOptions, Session, named, resume_option, stage_command


@click.command("train-teacher")
@click.option(
    "--task",
    metavar="TASK",
    shell_complete=complete_tasks,
    help="Task to learn: a name of `pipeline tasks`, or the YAML file of your own task.",
)
@click.option("--depth", type=int, help="Layers of every network, a multiple of 4.")
@click.option("--width", type=int, help="Units of a layer.")
@click.option(
    "--global-negatives",
    is_flag=True,
    default=None,
    help="Contrast with the goals of all ranks (processes under torchrun), not only with this rank's.",
)
@resume_option(
    "TEACHER",
    "Continue an unfinished teacher: the newest, or the one named. Name a completed one, with --set "
    "env_steps=MORE, to train it further as a new teacher, with other goals too.",
)
@stage_command(several_ranks=True)
def train_teacher(session: Session, common: CommonOptions, resume: str | None, **flags: Any) -> None:
    """Train a contrastive teacher without rewards or demonstrations."""
    from thousandfold.stages.train_teacher import train_teacher as stage

    if resume is not None:
        found = stage.find_resumable(session.workspace, named(resume))
        session.go_on(common, "train_teacher", flags, found, stage.run, stage.changeable(found[1]))
        return
    settings = common.resolve(stage.TrainTeacherSettings, "train_teacher", flags)
    if common.dry_run:
        session.show_settings({"train_teacher": settings})
        return
    settings.shares(session.ranks)  # before anything is made
    session.announce_training(common, settings.task)
    session.report(stage.run(settings, session.context))
