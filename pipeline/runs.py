"""`pipeline runs`: list the artifacts of the workspace, compare two of them, remove some."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from thousandfold.ground.errors import BAD_CONTENT, DamagedFileError, UserError
from thousandfold.ground.files import strict_json
from thousandfold.pipeline.artifacts import KINDS, Artifact, DamagedArtifact, Workspace
from thousandfold.pipeline.command_help import PlainGroup
from thousandfold.pipeline.completion import complete_artifacts, complete_tasks
from thousandfold.pipeline.console import Console, as_set, figure
from thousandfold.pipeline.listing import flat_rows, headline, show_runs
from thousandfold.pipeline.session import Session, json_option
from thousandfold.pipeline.tracking import open_tracker

_HISTORY = "history.json"
_AXES = {"env_steps": "environment steps", "updates": "updates"}
_CURVES = ("success", "time_at_goal", "validation_loss")


@click.group(cls=PlainGroup, invoke_without_command=True)
@click.option(
    "--kind",
    type=click.Choice(list(KINDS)),
    multiple=True,
    metavar="KIND",
    help=f"Only artifacts of this kind: {', '.join(KINDS)}.",
)
@click.option(
    "--task",
    multiple=True,
    metavar="TASK",
    shell_complete=complete_tasks,
    help="Only artifacts of this task.",
)
@click.option(
    "--status",
    type=click.Choice(["running", "stopped", "completed", "failed", "damaged"]),
    multiple=True,
    help="Only artifacts in this state.",
)
@json_option
@click.pass_context
def runs(
    context: click.Context, kind: tuple[str, ...], task: tuple[str, ...], status: tuple[str, ...]
) -> None:
    """List the artifacts of the workspace, newest first; compare two, or delete some.

    If you give a filter several times, it accepts each of the values.
    """
    session: Session = context.obj
    if context.invoked_subcommand is None:
        with session.open():
            show_runs(session.console, session.workspace, kind, task, status)
    elif kind or task or status:
        raise click.UsageError(
            f"--kind, --task and --status filter the list: `runs {context.invoked_subcommand}` has none."
        )


@runs.command()
@click.argument("first", metavar="ARTIFACT", shell_complete=complete_artifacts())
@click.argument("second", metavar="ARTIFACT", shell_complete=complete_artifacts())
@click.option(
    "--output", metavar="PNG", help="File for the curves [default: FIRST_SECOND.png in the current folder]."
)
@json_option
@click.pass_obj
def compare(session: Session, first: str, second: str, output: str | None) -> None:
    """Compare two artifacts: their settings, their results and their learning curves.

    If both have learning curves, a picture shows them in one plot.
    """
    with session.open():
        pair = session.workspace.find(first, None), session.workspace.find(second, None)
        if pair[0].name == pair[1].name:
            raise UserError(f"{pair[0].name} is named twice: name two different artifacts.")
        compare_artifacts(session.console, pair, None if output is None else Path(output).expanduser())


@runs.command("rm")
@click.argument("names", metavar="ARTIFACT...", nargs=-1, required=True, shell_complete=complete_artifacts())
@click.option("--with-dependents", is_flag=True, help="Also remove everything that was made from them.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
@click.pass_obj
def remove(session: Session, names: tuple[str, ...], with_dependents: bool, yes: bool) -> None:
    """Delete artifacts. An artifact that others were made from is deleted only with them.

    Their MLflow runs stay, with the tag `artifact_removed`.
    """
    with session.open():
        found = what_goes(session.workspace, names, with_dependents)
        for artifact in found:
            session.console.say(f"To be removed: {artifact.path}")
        if not yes and not _confirmed():
            raise UserError("Nothing was removed: answer y, or give --yes.")
        remove_artifacts(session, found)


def _confirmed() -> bool:
    try:
        return click.confirm("Remove for good?", err=True)
    except click.Abort:  # there is nobody to answer
        click.echo(err=True)
        return False


# -- Two artifacts beside one another


def compare_artifacts(console: Console, pair: tuple[Artifact, Artifact], output: Path | None) -> None:
    """Print what differs between two artifacts, and draw their curves.

    `output` is the picture's file; None: one in the current folder, with the names of both.
    """
    names = [artifact.name for artifact in pair]
    settings = _beside(*(dict(flat_rows(each.manifest.settings, as_set)) for each in pair))
    if pair[0].kind != pair[1].kind:  # of which each has settings of its own
        settings = {key: values for key, values in settings.items() if None not in values}
    settings = {key: values for key, values in settings.items() if values[0] != values[1]}
    about = _beside(*(_about(artifact) for artifact in pair))
    results = _beside(*(_figures(artifact) for artifact in pair))
    console.table("What they are", ("", *names), [(key, *values) for key, values in about.items()])
    if settings:
        console.table(
            "Settings that differ", ("setting", *names), [(key, *both) for key, both in settings.items()]
        )
    else:
        console.say("No setting differs.")
    rows = [
        (key, *(None if value is None else figure(value) for value in both)) for key, both in results.items()
    ]
    if rows:
        console.table("Results", ("result", *names), rows)
    picture = _draw_curves(console, pair, output or Path(f"{names[0]}_{names[1]}.png"))
    console.result(
        {
            "artifacts": names,
            "about": about,
            "settings": settings,
            "results": results,
            "picture": None if picture is None else str(picture.absolute()),
        }
    )


def _beside(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return both values of every key, None where one has none."""
    return {key: [first.get(key), second.get(key)] for key in dict.fromkeys((*first, *second))}


def _about(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    parents = {role: parent.name for role, parent in manifest.parents.items()}
    return {
        "kind": artifact.kind,
        "task": manifest.task_label,
        "status": artifact.status,
        "reached": headline(artifact),
        **parents,
    }


def _figures(artifact: Artifact) -> dict[str, Any]:
    """Return the results that are one number or an interval."""

    def is_number(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    return {
        key: value
        for key, value in artifact.results.items()
        if is_number(value) or (isinstance(value, list) and len(value) == 2 and all(map(is_number, value)))
    }


def _draw_curves(console: Console, pair: Sequence[Artifact], path: Path) -> Path | None:
    """Draw what both artifacts recorded over their training; return the file, None where there is none."""
    histories = {artifact.name: _history(artifact) for artifact in pair}
    shared = set.intersection(
        *({key for entry in history for key in entry} for history in histories.values())
    )
    axis = next((key for key in _AXES if key in shared), None)
    metrics = [key for key in _CURVES if key in shared]
    if axis is None or not metrics:
        console.say("No picture: they have no learning curve in common.")
        return None
    if importlib.util.find_spec("matplotlib") is None:
        console.say('No picture: it needs pip install "thousandfold[train]".')
        return None
    from thousandfold.pipeline.pictures import draw_compared_curves

    draw_compared_curves(path, histories, axis, _AXES[axis], metrics)
    console.say(f"Learning curves: {path}")
    return path


def _history(artifact: Artifact) -> list[dict[str, Any]]:
    """Return what an artifact recorded at every evaluation; nothing where it keeps no such file.

    Of a teacher whose evaluations came to draw from another distribution, those since then, if there are any.
    """
    path = artifact.file(_HISTORY)
    if not path.is_file():
        return []
    try:
        told = strict_json(path.read_text(encoding="utf-8"))
        found = [dict(entry) for entry in told["history"]]
        changes = told.get("evaluated", [])[1:]
        begun = max((change["env_steps"] for change in changes), default=-1)
        return [entry for entry in found if entry.get("env_steps", 0) > begun] or found
    except BAD_CONTENT:
        raise DamagedFileError(f"{path} is damaged: restore it.") from None


# -- Artifacts that go


def what_goes(
    workspace: Workspace, names: Sequence[str], with_dependents: bool
) -> list[Artifact | DamagedArtifact]:
    """Return the artifacts to remove, what was made from others before these.

    Raises:
        UserError: a process is at work on one, or others depend on one and `with_dependents` does not say
            that they go, too.
    """
    everything: list[Artifact | DamagedArtifact] = [*workspace.artifacts(), *workspace.damaged]
    damaged = {artifact.name: artifact for artifact in workspace.damaged}
    chosen = [damaged.get(name) or workspace.find(name, None) for name in names]
    for artifact in chosen:
        if artifact.path.parent.resolve() != workspace.runs.resolve():
            raise UserError(
                f"{artifact.path} lies in another workspace, where other artifacts may depend on it: give "
                "that workspace with --workspace."
            )
    wanted = {artifact.path.name for artifact in chosen}
    going = [artifact for artifact in everything if artifact.path.name in wanted]
    while more := [
        other
        for other in everything
        if other not in going and any(depends_on(other, each, everything) for each in going)
    ]:
        going += more
    dependents = [artifact.name for artifact in going if artifact.path.name not in wanted]
    if dependents and not with_dependents:
        raise UserError(
            f"Made from {', '.join(names)}: {', '.join(dependents)}. Name these too, or remove them with "
            "--with-dependents."
        )
    for artifact in going:
        if isinstance(artifact, Artifact) and artifact.status == "running":
            raise UserError(f"{artifact.name} is being made: stop its process first.")
    # The newest first, for nothing is made from what is newer.
    return sorted(
        going, key=lambda each: each.manifest.created_at if isinstance(each, Artifact) else "", reverse=True
    )


def depends_on(
    other: Artifact | DamagedArtifact,
    artifact: Artifact | DamagedArtifact,
    everything: Sequence[Artifact | DamagedArtifact],
) -> bool:
    """Tell whether an artifact was made from another, of which no copy of the same content remains.

    Of a damaged one it is whatever names its folder; and it may be made from what it can name.
    """
    if isinstance(artifact, DamagedArtifact):
        parents = other.manifest.parents.values() if isinstance(other, Artifact) else ()
        return any(parent.name == artifact.name for parent in parents)
    content = artifact.manifest.hash
    whole = (each for each in everything if isinstance(each, Artifact) and each.path != artifact.path)
    if content is None or any(each.manifest.hash == content for each in whole):
        return False
    if isinstance(other, DamagedArtifact):
        return other.may_be_made_from(artifact)
    return any(parent.hash == content for parent in other.manifest.parents.values())


def remove_artifacts(session: Session, found: Sequence[Artifact | DamagedArtifact]) -> None:
    """Remove artifacts, each whole or not at all, and note it on their runs in the tracking store."""
    tracked = [each for each in found if isinstance(each, Artifact) and each.manifest.tracking.get("run_id")]
    tracker = None
    if tracked:  # opened before anything is removed: a store that is away ends the command
        tracker = open_tracker(session.workspace.root, session.console.warn, session.console.say)
    for artifact in found:
        session.workspace.remove(artifact.path)
        if tracker is not None and artifact in tracked:
            assert isinstance(artifact, Artifact)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            tracker.tag_run(artifact.manifest.tracking["run_id"], {"artifact_removed": now})
    if tracker is not None:
        tracker.report_lost()
    session.console.say(f"Removed: {', '.join(artifact.name for artifact in found)}.")
    session.console.result({"removed": [artifact.name for artifact in found]})
