"""The command `pipeline study`: train what a page asks for, and judge what it claims."""

from __future__ import annotations

from pathlib import Path

import click

from thousandfold.ground.errors import SettingsError
from thousandfold.pipeline.session import CommonOptions, Session, named, resume_option, stage_command

_HERE = "here"


@click.command()
@click.argument("page", metavar="[FILE]", required=False, type=click.Path(path_type=Path))
@click.option("--scale", metavar="NAME", help="One of the file's scales; overrides the file's settings.")
@click.option(
    "--jobs", type=click.IntRange(0, 1024), default=0, help="Trainings at a time; 0: one for each CPU."
)
@click.option(
    "--launcher",
    type=click.Choice([_HERE, "slurm", "local"]),
    default=_HERE,
    help="Where trainings run: on this machine, on a cluster with Slurm, or on this machine as a cluster "
    "would run them [default: here].",
)
@click.option(
    "--submit",
    "parameters",
    multiple=True,
    metavar="KEY=VALUE",
    help="Request a resource from the cluster, in submitit's words: timeout_min=240, slurm_partition=gpu.",
)
@resume_option("STUDY", "Continue an unfinished study: the newest, or the one named.")
@stage_command
def study(
    session: Session,
    common: CommonOptions,
    page: Path | None,
    scale: str | None,
    jobs: int,
    launcher: str,
    parameters: tuple[str, ...],
    resume: str | None,
) -> None:
    """Train every arm of a study on its tasks and seeds, and judge what the study claims.

    FILE is YAML: question, tasks, seeds, settings of train-teacher, arms, claims (docs/studies.md). --set
    goes to every training.
    """
    if common.seed is not None:
        raise SettingsError("--seed: the study's file sets its seeds; leave the option out.")
    if common.config is not None:
        raise SettingsError("--config: the study's file sets its settings; leave the option out.")
    if launcher == _HERE and parameters:
        raise SettingsError("--submit needs --launcher slurm or local.")
    if (page is None) == (resume is None):
        raise SettingsError("Give the FILE of a new study, or --resume to continue one.")
    from thousandfold.pipeline.settings import parse_override
    from thousandfold.stages.study.page import read_page, resolve_plan
    from thousandfold.stages.study.study import Launch, find_resumable, run

    cluster = None if launcher == _HERE else launcher
    launch = Launch(jobs, cluster, {"timeout_min": 24 * 60} | dict(map(parse_override, parameters)))
    if page is None:
        assert resume is not None
        common.refuse_with_resume({"dry-run": common.dry_run or None, "scale": scale})
        plan, artifact = find_resumable(session.workspace, named(resume))
        session.console.say(f"Going on with {artifact.name}; workspace {session.workspace.root}.")
        session.report(run(plan, session.context, launch, resumed=artifact))
        return
    read, content = read_page(page)
    plan = resolve_plan(
        read, scale=scale, preset=common.preset, overrides=common.overrides, device=common.device
    )
    if common.dry_run:
        session.show_settings({"study": plan})
        return
    session.report(run(plan, session.context, launch, content))
