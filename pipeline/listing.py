"""Tables of tasks, presets and artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.core.artifacts import MANIFEST_NAME, Artifact, Workspace
from pipeline.core.console import Console, figure
from pipeline.core.errors import MissingArtifactError, nearest_name
from pipeline.core.manifest import git_state, installed_versions
from pipeline.core.settings import list_presets
from pipeline.session import describe

_HEADLINES = ("success", "retention", "rows", "students")


def show_tasks(console: Console) -> None:
    """Print every task with its sizes and its Gymnasium id."""
    from envs.registry import compile_task, environment_id, get_task, task_names

    rows = []
    for name in task_names():
        task, compiled = get_task(name), compile_task(name)
        rows.append(
            {
                "task": name,
                "observation": compiled.observation_dim,
                "goal": compiled.goal_dim,
                "action": compiled.action_dim,
                "control dt (s)": task.control_dt_s,
                "steps": task.episode_steps,
                "Gymnasium id": environment_id(name),
                "description": task.description,
            }
        )
    _show(console, "Tasks", rows)


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
    _show(console, "Presets", rows)


def show_runs(console: Console, workspace: Workspace) -> None:
    """Print the workspace's artifacts, newest first."""
    artifacts = workspace.artifacts()
    if not artifacts:
        console.say(f"No artifacts in {workspace.runs} yet. Make the first with `pipeline run`.")
    rows = [
        {
            "artifact": artifact.name,
            "task": artifact.manifest.task,
            "status": artifact.manifest.status,
            "result": _headline(artifact),
            "from": ", ".join(parent.name for parent in artifact.manifest.parents.values()) or None,
        }
        for artifact in artifacts
    ]
    if rows:
        _show(console, f"Artifacts in {workspace.runs}", rows)
    for path in workspace.damaged:
        console.warn(f"{path} is damaged and left out.")
    console.result({"artifacts": rows, "damaged": [str(path) for path in workspace.damaged]})


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
    artifact = _find(workspace, name)
    manifest = artifact.manifest
    status = f"{artifact.name}: {manifest.kind} of {manifest.task}, {manifest.status}"
    console.table(status, ("result", "value"), _flat(manifest.results))
    console.table("Settings", ("setting", "value"), _flat(manifest.settings))
    parents = [(role, parent.name, parent.hash[:16]) for role, parent in manifest.parents.items()]
    if parents:
        console.table("Parents", ("role", "artifact", "hash"), parents)
    console.table(
        "Files", ("file", "sha256"), [(file, digest[:16]) for file, digest in manifest.files.items()]
    )
    console.result(describe(artifact) | {"settings": manifest.settings, "status": manifest.status})


def _find(workspace: Workspace, name: str) -> Artifact:
    """Return the artifact of any kind in a folder, or of a name under `runs/`."""
    for place in (Path(name).expanduser(), workspace.runs / name):
        if (place / MANIFEST_NAME).is_file():
            return Artifact.load(place.absolute())
    nearest = nearest_name(name, [artifact.name for artifact in workspace.artifacts()])
    hint = f"did you mean {nearest}?" if nearest else "`pipeline runs` lists them."
    raise MissingArtifactError(f"No artifact {name!r}, neither a folder nor in {workspace.runs}: {hint}")


def _headline(artifact: Artifact) -> str | None:
    results = artifact.manifest.results
    if artifact.kind == "benchmark" and results.get("networks"):
        timing = next(iter(results["networks"].values()))["back_to_back"]
        return f"p50 {timing['p50_us']:.0f} µs, p99 {timing['p99_us']:.0f} µs"
    found = [f"{key} {figure(results[key])}" for key in _HEADLINES if key in results]
    return ", ".join(found) or None


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, figure(value)))
    return rows


def _show(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    console.table(title, list(rows[0]), [list(row.values()) for row in rows])
    console.result({title.split()[0].lower(): rows})
