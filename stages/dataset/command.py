"""`pipeline dataset`: what a dataset holds, several as one, and those that others have made."""

from __future__ import annotations

from typing import Any

import click

from thousandfold.pipeline.command_help import PlainGroup
from thousandfold.pipeline.completion import complete_artifacts
from thousandfold.pipeline.console import figure
from thousandfold.pipeline.session import (
    CommonOptions,
    Session,
    describe,
    json_option,
    named,
    resume_option,
    stage_command,
)

_FACTS = (
    "episodes", "rows", "success", "success_interval", "success_by_noise", "alternative_goals", "coverage",
    "occupied_cells", "distinct_observations", "distances", "unstable_episodes", "dataset_id",
)  # fmt: skip


@click.group(cls=PlainGroup)
def dataset() -> None:
    """Inspect, merge or import datasets."""


@dataset.command()
@click.argument("name", metavar="[DATASET]", required=False, shell_complete=complete_artifacts("dataset"))
@json_option
@click.pass_obj
def info(session: Session, name: str | None) -> None:
    """Show the shards and the coverage of DATASET: a name or path, or nothing for the newest."""
    with session.open(mujoco=True):
        from thousandfold.stages.dataset.files import describe_shards, find_damage, other_damage

        workspace = session.workspace
        artifact = workspace.find(name, "dataset") if name else workspace.newest("dataset", option="its name")
        manifest, damage = artifact.manifest, find_damage(artifact)
        shards, damaged = describe_shards(artifact, damage), other_damage(artifact, damage)
        facts = [line for fact in _FACTS for line in _lines(fact, manifest.results.get(fact))]
        parents = [(role, parent.name) for role, parent in manifest.parents.items()]
        title = f"{artifact.name}: dataset of {manifest.task_label}, {artifact.status}"
        session.console.table(title, ("what", "value"), [*parents, *facts])
        if shards:
            rows = [[figure(value) for value in row.values()] for row in shards]
            session.console.table("Shards", list(shards[0]), rows)
        if damaged:
            session.console.table("Damaged files beside the shards", ("file", "state"), [*damaged.items()])
        found = {"status": artifact.status, "shards": shards, "damaged": damaged}
        session.console.result(describe(artifact) | found)


def _lines(name: str, value: Any) -> list[tuple[str, str]]:
    """Return a line for a result, or for each part of a mapping; none for one that is missing."""
    if isinstance(value, dict):
        return [line for key, item in value.items() for line in _lines(f"{name}, {key}", item)]
    return [] if value is None else [(name.replace("_", " "), figure(value))]


@dataset.command()
@click.argument(
    "datasets",
    metavar="DATASET DATASET...",
    nargs=-1,
    required=True,
    shell_complete=complete_artifacts("dataset"),
)
@json_option
@click.pass_obj
def merge(session: Session, datasets: tuple[str, ...]) -> None:
    """Merge several datasets of one task and teacher into one."""
    with session.open(mujoco=True):
        from thousandfold.stages.dataset import merge_datasets as stage

        found = [session.workspace.open(name, "dataset") for name in datasets]
        session.report(stage.run(session.context, found))


@dataset.command("import")
@click.argument("source")
@click.option(
    "--teacher",
    metavar="TEACHER",
    shell_complete=complete_artifacts("teacher"),
    help="Name or path of the teacher that labels the dataset [default: the newest].",
)
@click.option(
    "--goal-columns",
    metavar="COLUMN,...",
    help="Indices of the observation's numbers that are the achieved goal, if the observation is no "
    "dictionary.",
)
@click.option(
    "--achieved-goal",
    metavar="KEY,...",
    help="Keys of the achieved goal to use, if it is a dictionary of several.",
)
@click.option(
    "--skip-bad-episodes",
    is_flag=True,
    default=None,
    help="Leave out episodes that are damaged, cut short or contain NaN; the command names each.",
)
@stage_command
def import_(session: Session, common: CommonOptions, source: str, teacher: str | None, **flags: Any) -> None:
    """Import SOURCE, a Minari dataset (folder or id) or an OGBench or D4RL file; a teacher labels it."""
    from thousandfold.stages.dataset import import_dataset as stage

    settings = common.resolve(stage.ImportDatasetSettings, "import_dataset", flags)
    if not session.starts(common, "import_dataset", settings):
        return
    labeller = session.take("teacher", teacher)
    session.report(stage.run(settings, session.context, labeller, source))


@click.command("generate-dataset")
@click.option(
    "--teacher",
    metavar="TEACHER",
    shell_complete=complete_artifacts("teacher"),
    help="Name or path of a teacher [default: the newest].",
)
@click.option("--episodes", type=int, help="Episodes to record.")
@click.option(
    "--noise-levels",
    metavar="LEVEL,...",
    help="Standard deviations of the noise on actions; each gets equally many episodes; 0: no noise.",
)
@resume_option(
    "DATASET",
    "Continue an unfinished dataset: the newest, or the one named.",
)
@stage_command(several_ranks=True)
def generate_dataset(
    session: Session, common: CommonOptions, teacher: str | None, resume: str | None, **flags: Any
) -> None:
    """Record the teacher's episodes, with its mean and log-std in every row, as a Minari dataset."""
    from thousandfold.stages.dataset import generate_dataset as stage

    if resume is not None:
        found = stage.find_resumable(session.workspace, named(resume), teacher)
        session.go_on(common, "generate_dataset", flags, found, stage.run, stage.CHANGEABLE_ON_RESUME)
        return
    settings = common.resolve(stage.GenerateDatasetSettings, "generate_dataset", flags)
    if not session.starts(common, "generate_dataset", settings):
        return
    source = session.take("teacher", teacher)
    session.report(stage.run(settings, session.context, source))
