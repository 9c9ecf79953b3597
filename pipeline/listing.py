"""Tables of tasks, presets and artifacts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import click

from thousandfold.pipeline.artifacts import (
    Artifact,
    DamagedArtifact,
    Workspace,
    git_state,
    installed_versions,
)
from thousandfold.pipeline.completion import complete_artifacts, complete_presets
from thousandfold.pipeline.console import Console, as_set, figure, short
from thousandfold.pipeline.session import Session, describe, json_option
from thousandfold.pipeline.settings import list_presets, preset_info, preset_origins

_HEADLINES = ("success", "retention", "rows", "students")


def show_presets(console: Console) -> None:
    """Print every preset with its description."""
    rows = [
        {
            "preset": preset.name,
            "description": preset.description,
            "published": str(preset.published) if preset.published else None,
        }
        for preset in list_presets()
    ]
    show_rows(console, "Presets", rows, spare=("published",))


def show_preset(console: Console, name: str) -> None:
    """Print what a preset sets, and which preset each value comes from: itself, or one that it extends."""
    info, origins = preset_info(name), preset_origins(name)
    console.say(f"{info.name}: {info.description}" if info.description else info.name)
    for section, keys in origins.items():
        rows = [(key, as_set(value), origin) for key, (value, origin) in keys.items()]
        console.table(section.replace("_", "-"), ("setting", "value", "from"), rows)
    console.say("What is not listed has its default: `pipeline settings STAGE` lists those.")
    if info.published is not None:
        console.say(f"Published: {info.published}.")
    settings = {
        section: {key: value for key, (value, _) in keys.items()} for section, keys in origins.items()
    }
    sources = {
        section: {key: origin for key, (_, origin) in keys.items()} for section, keys in origins.items()
    }
    console.result({"preset": name, "description": info.description, "settings": settings, "from": sources})


def show_runs(
    console: Console,
    workspace: Workspace,
    kinds: Collection[str] = (),
    tasks: Collection[str] = (),
    statuses: Collection[str] = (),
) -> None:
    """Print the workspace's artifacts, newest first: of these kinds, tasks and statuses, or of any."""
    artifacts, damaged = workspace.artifacts(), workspace.damaged
    if not artifacts and not damaged:
        console.say(f"No artifacts in {workspace.runs} yet. Make the first with `pipeline run`.")

    def wanted(of: Collection[str], row: dict[str, Any]) -> bool:
        return all(
            (
                not kinds or set(kinds) & set(of),
                not tasks or row["task"] in tasks,
                not statuses or row["status"] in statuses,
            )
        )

    begun = [(each.manifest.created_at, {each.kind}, _listed(each)) for each in artifacts]
    begun += [(broken.begun or "", broken.kinds, _listed_damaged(broken)) for broken in damaged]
    begun = [(time, row) for time, of, row in begun if wanted(of, row)]
    rows = [row for _, row in sorted(begun, key=lambda pair: pair[0], reverse=True)]
    if rows:
        shown = [row | {"status": _status(row)} for row in rows]
        names = ("artifact", "task", "status", "result", "from")
        cells = [[row[name] for name in names] for row in shown]
        console.table(f"Artifacts in {workspace.runs}", names, cells, spare=("from", "task"))
    elif artifacts or damaged:
        console.say(f"None of the {len(artifacts) + len(damaged)} artifacts in {workspace.runs} matches.")
    listed = {row["artifact"] for row in rows}
    damaged = [broken for broken in damaged if broken.name in listed]
    for broken in damaged:
        console.warn(str(broken.error))
    console.result({"artifacts": rows, "damaged": [str(broken.error.path) for broken in damaged]})


def _listed(artifact: Artifact) -> dict[str, Any]:
    return {
        "artifact": artifact.name,
        "task": artifact.manifest.task,
        "status": artifact.status,
        "sealed": artifact.manifest.seal is not None,
        "result": headline(artifact),
        "from": ", ".join(parent.name for parent in artifact.manifest.parents.values()) or None,
    }


def _listed_damaged(damaged: DamagedArtifact) -> dict[str, Any]:
    values = {"status": "damaged", "sealed": False, "result": f"manifest {damaged.error.problem}"}
    return {"artifact": damaged.name, "task": None, **values, "from": None}


def _status(row: dict[str, Any]) -> str:
    """Return a row's status as it is shown; JSON has the seal apart."""
    return row["status"] if row["sealed"] or row["status"] == "damaged" else f"{row['status']}, unsealed"


def show_info(console: Console, workspace: Workspace, name: str | None) -> None:
    """Print one artifact in full, or the versions in use."""
    if name is None:
        facts = installed_versions() | {
            "commit": git_state(Path(__file__).resolve().parents[1])["commit"],
            "workspace": str(workspace.root),
        }
        console.table("Versions", ("what", "version"), facts.items())
        console.result(facts)
        return
    artifact = workspace.find(name, None)
    manifest, row = artifact.manifest, _listed(artifact)
    status = f"{artifact.name}: {manifest.kind} of {manifest.task_label}, {_status(row)}"
    console.table(status, ("result", "value"), flat_rows(manifest.results, figure))
    console.table("Settings", ("setting", "value"), flat_rows(manifest.settings, as_set))
    parents = [(role, parent.name, parent.hash) for role, parent in manifest.parents.items()]
    if parents:
        console.table("Parents", ("role", "artifact", "hash"), parents)
    console.table("Files", ("file", "sha256"), manifest.files.items())
    console.result(
        describe(artifact) | {"settings": manifest.settings, "status": row["status"], "sealed": row["sealed"]}
    )


def headline(artifact: Artifact) -> str | None:
    """Return what an artifact reached, in a few words; None where it says nothing of that."""
    results = artifact.manifest.results
    if artifact.kind == "benchmark" and results.get("networks"):
        try:
            timing = next(iter(results["networks"].values()))["back_to_back"]
            return f"p50 {short(timing['p50_us'])} µs, p99 {short(timing['p99_us'])} µs"
        except (AttributeError, KeyError, StopIteration, TypeError):  # of another version
            return None
    found = [f"{key} {figure(results[key])}" for key in _HEADLINES if key in results]
    return ", ".join(found) or None


def flat_rows(values: dict[str, Any], shown: Callable[[Any], str], prefix: str = "") -> list[tuple[str, str]]:
    """Return the keys of nested values, such as `outer.inner`, and each value as it is shown."""
    rows = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            rows += flat_rows(value, shown, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, shown(value)))
    return rows


def show_rows(console: Console, title: str, rows: list[dict[str, Any]], spare: Sequence[str] = ()) -> None:
    """Print rows as a table; with --json as a list under the title's first word. `spare` as of a table."""
    console.table(title, list(rows[0]), [list(row.values()) for row in rows], spare)
    console.result({title.split()[0].lower(): rows})


@click.command()
@click.argument("preset", required=False, shell_complete=complete_presets)
@json_option
@click.pass_obj
def presets(session: Session, preset: str | None) -> None:
    """List the presets, or show what PRESET sets, a name or a file, and where each value comes from."""
    with session.open():
        if preset is None:
            show_presets(session.console)
        else:
            show_preset(session.console, preset)


@click.command()
@click.argument("artifact", required=False, shell_complete=complete_artifacts())
@json_option
@click.pass_obj
def info(session: Session, artifact: str | None) -> None:
    """Show an artifact's results, settings and parents; without one, the versions in use."""
    with session.open():
        show_info(session.console, session.workspace, artifact)
