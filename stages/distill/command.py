"""`pipeline distill`."""

from __future__ import annotations

from typing import Any

import click

from thousandfold.ground.errors import MissingArtifactError
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.completion import complete_artifacts
from thousandfold.pipeline.session import CommonOptions, Session, named, resume_option, stage_command


@click.command()
@click.option(
    "--teacher",
    metavar="TEACHER",
    shell_complete=complete_artifacts("teacher"),
    help="Name or path of a teacher [default: the newest].",
)
@click.option(
    "--dataset",
    metavar="DATASET",
    shell_complete=complete_artifacts("dataset"),
    help="Name or path of a dataset [default: the teacher's newest; it is made first if there is none].",
)
@click.option("--student-depth", type=int, help="Layers of the student.")
@click.option("--student-width", type=int, help="Units of a layer.")
@click.option(
    "--student-kind",
    type=click.Choice(["auto", "residual", "plain"]),
    help="Form of the student; auto: residual if the depth is a multiple of 4, else plain.",
)
@click.option("--objective", type=click.Choice(["kl", "mse", "critic"]), help="What the student minimises.")
@click.option(
    "--dagger-rounds", type=int, help="DAgger rounds, in which the student acts and the teacher labels."
)
@click.option(
    "--skip-damaged-shards", is_flag=True, default=None, help="Continue without the dataset's damaged shards."
)
@resume_option(
    "STUDENT",
    "Continue an unfinished student: the newest, or the one named. Name a completed one, with --set "
    "updates=MORE, to train it further as a new student.",
)
@stage_command
def distill(
    session: Session,
    common: CommonOptions,
    teacher: str | None,
    dataset: str | None,
    resume: str | None,
    **flags: Any,
) -> None:
    """Distil a teacher into a student of a few layers."""
    from thousandfold.stages.distill import distill as stage

    if resume is not None:
        found = stage.find_resumable(session.workspace, named(resume), teacher, dataset)
        session.go_on(common, "distill", flags, found, stage.run, stage.changeable(found[1]))
        return
    settings = common.resolve(stage.DistillSettings, "distill", flags)
    if not session.starts(common, "distill", settings):
        return
    source = session.take("teacher", teacher)
    data = take_dataset(session, common, source, dataset)
    session.report(stage.run(settings, session.context, source, data))


def take_dataset(
    session: Session, common: CommonOptions, teacher: Artifact, reference: str | None
) -> Artifact:
    """Return the dataset named, or the teacher's newest; where it has none, make one by the preset."""
    from thousandfold.stages.dataset import generate_dataset

    try:
        return session.take("dataset", reference, of=teacher)
    except MissingArtifactError:
        if reference is not None:
            raise
    session.console.say(f"No dataset of teacher {teacher.name} yet: making one first.")
    first = CommonOptions(common.preset, (), common.seed, common.device, dry_run=False, config=common.config)
    settings = first.resolve(generate_dataset.GenerateDatasetSettings, "generate_dataset")
    return generate_dataset.run(settings, session.context, teacher)
