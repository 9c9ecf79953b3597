"""What `manifest.json` says of an artifact: its settings, parents, hashes, and where it was made.

Two hashes, for two purposes. `hash` names the content: an artifact's children record it, and a copy under
another name has the same. `seal` covers everything that the file says, results and times included, and is
made anew whenever the file is written: a manifest that somebody changed since is noticed by its readers.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from thousandfold.pipeline.errors import DamagedRecordError
from thousandfold.pipeline.files import json_sha256, read_sealed_json

KINDS = {
    "teacher": "train-teacher",
    "dataset": "generate-dataset",
    "student": "distill",
    "policy": "export-onnx",
    "benchmark": "benchmark",
    "evaluation": "evaluate",
    "rendering": "render",
    "frontier": "frontier",
    "report": "report",
}
"""Every kind of artifact and the command that makes it."""

_PACKAGES = (
    "gymnasium",
    "minari",
    "mlflow",
    "mujoco",
    "mujoco-warp",
    "numpy",
    "onnx",
    "onnxruntime",
    "pydantic",
    "safetensors",
    "torch",
    "warp-lang",
)


@dataclass(frozen=True)
class Parent:
    """An artifact that another one was made from."""

    kind: str
    name: str
    hash: str


@dataclass
class Manifest:
    """Everything that `manifest.json` says. Times are ISO 8601 in UTC with microseconds."""

    format_version: int
    kind: Literal[
        "teacher",
        "dataset",
        "student",
        "policy",
        "benchmark",
        "evaluation",
        "rendering",
        "frontier",
        "report",
    ]
    name: str
    status: Literal["running", "completed", "failed"]
    created_at: str
    finished_at: str | None
    task: str
    settings: dict[str, Any]
    parents: dict[str, Parent]
    """By role, such as `teacher`."""
    task_changes: dict[str, Any] = field(default_factory=dict)
    """What was changed of the task for this chain, as `GoalTask.changed` takes it."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 by path below the artifact's folder."""
    results: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    git: dict[str, Any] = field(default_factory=dict)
    """`commit` and `dirty` of the code's repository; both None outside one."""
    platform: str = ""
    tracking: dict[str, Any] = field(default_factory=dict)
    """`run_id` and `chain_run_id` in the tracking store."""
    selectable: bool = True
    """Whether `Workspace.newest` may take it."""
    hash: str | None = None
    """Of the content, once it is completed; see `content_hash`."""
    seal: str | None = None
    """As it was read; None: made by a version that sealed nothing. Writing makes a new one."""

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read and validate a manifest.

        Raises:
            DamagedRecordError: it is missing, truncated, foreign, too new, or was changed since.
        """
        what, remedy = "a manifest of thousandfold", "restore it, or delete its folder"
        content = read_sealed_json(path, what, remedy)
        try:
            manifest: Manifest = _manifest_adapter().validate_python(content)
        except ValueError:
            raise DamagedRecordError(path, f"is damaged or not {what}", remedy) from None
        if manifest.status == "completed" and manifest.content_hash() != manifest.hash:
            remedy = f"restore it, or make the {manifest.kind} again with `pipeline {KINDS[manifest.kind]}`"
            raise DamagedRecordError(path, "was changed since it was completed", remedy)
        return manifest

    @property
    def task_label(self) -> str:
        """The task's name, with what was changed of it: ``point_u_maze (episode_steps 20)``."""
        changes = ", ".join(f"{name} {value}" for name, value in self.task_changes.items())
        return f"{self.task} ({changes})" if changes else self.task

    def content_hash(self) -> str:
        """Return the SHA-256 over the kind, the settings, the parents' hashes and the files."""
        parents = {role: parent.hash for role, parent in self.parents.items()}
        return json_sha256(
            {"kind": self.kind, "settings": self.settings, "parents": parents, "files": self.files}
        )


def installed_versions() -> dict[str, str]:
    """Return the versions of Python, thousandfold and those packages that are installed."""
    versions = {"python": platform.python_version(), "thousandfold": "unknown"}
    for package in ("thousandfold", *_PACKAGES):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_state(folder: Path) -> dict[str, Any]:
    """Return the commit of the repository whose top is `folder` and whether tracked files differ from it."""
    git = ("git", "--no-optional-locks", "-C", str(folder))
    try:
        # The top is compared because an installed copy may lie inside a repository of somebody else.
        top, commit = _run_text(*git, "rev-parse", "--show-toplevel", "HEAD").splitlines()
        if Path(top).resolve() == folder:
            return {"commit": commit, "dirty": bool(_run_text(*git, "status", "--porcelain", "-uno"))}
    except (OSError, ValueError, subprocess.SubprocessError):
        pass
    return {"commit": None, "dirty": None}


def _run_text(*command: str) -> str:
    """Return what a command prints."""
    done = subprocess.run(command, capture_output=True, check=True, timeout=10)
    return os.fsdecode(done.stdout)


@functools.cache
def _manifest_adapter() -> Any:
    """Return pydantic's validator of `Manifest`; pydantic is imported when a manifest is read."""
    import pydantic

    return pydantic.TypeAdapter(Manifest)
