"""The workspace and what stages leave in it.

    <workspace>/
        runs/
            teacher-20260131-120000/    one artifact: a folder ...
                manifest.json           ... with its settings, parents and hashes
                ...                     ... and its files
        mlflow/                         the tracking store
        cache/                          packed copies of datasets, which may be deleted

An artifact is running until `Artifact.complete` hashes its files. Its own hash covers its settings, its files
and the hashes of its parents, so that a chain of artifacts can be checked from its end to its beginning.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.core.atomic import (
    atomic_file,
    file_sha256,
    is_temporary,
    plain_json,
    write_atomic,
    write_json_atomic,
)
from pipeline.core.errors import DamagedFileError, MissingArtifactError, WorkspaceError, nearest_name
from pipeline.core.manifest import FORMAT_VERSION, KINDS, Manifest, Parent, git_state, installed_versions

__all__ = [
    "KINDS",
    "Artifact",
    "Manifest",
    "Parent",
    "Workspace",
    "atomic_file",
    "file_sha256",
    "write_atomic",
    "write_json_atomic",
]

MANIFEST_NAME = "manifest.json"


class Artifact:
    """A folder with a manifest."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Wrap an existing folder; `Workspace.create` makes new ones and `load` reads old ones."""
        self.path = path
        self.manifest = manifest

    @classmethod
    def load(cls, path: Path) -> Artifact:
        """Read the artifact in a folder, whatever its status. Raises DamagedFileError."""
        return cls(path, Manifest.read(path / MANIFEST_NAME))

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return self.manifest.kind

    @property
    def name(self) -> str:
        """The name under which it was created."""
        return self.manifest.name

    def file(self, relative: str | Path) -> Path:
        """Return the path of a file below the folder, whether or not it exists."""
        return self.path / relative

    def parent_entry(self) -> Parent:
        """Return what a child records of it. Raises MissingArtifactError if it is not completed."""
        self._require_completed()
        return Parent(self.kind, self.name, str(self.manifest.hash))

    def save(self) -> None:
        """Write the manifest atomically."""
        write_json_atomic(self.path / MANIFEST_NAME, dataclasses.asdict(self.manifest))

    def update(self, **changes: Any) -> None:
        """Change fields of the manifest and save it."""
        self.manifest = dataclasses.replace(self.manifest, **changes)
        self.save()

    def complete(self, results: Mapping[str, Any], exclude: Iterable[str] = ()) -> None:
        """Hash the files, seal the manifest and mark the artifact as completed.

        Args:
            results: What the stage found; must fit into JSON.
            exclude: Files and subfolders that are not part of the result, such as `checkpoint`.
        """
        changes = {"status": "completed", "finished_at": _now(), "results": plain_json(dict(results))}
        self.manifest = dataclasses.replace(self.manifest, files=self._hash_files(exclude), **changes)
        self.update(hash=self.manifest.content_hash())

    def fail(self, reason: str) -> None:
        """Mark the artifact as failed; `results["error"]` says why."""
        self.update(status="failed", finished_at=_now(), results={**self.manifest.results, "error": reason})

    def verify(self) -> None:
        """Compare the files and the manifest with their hashes.

        Raises DamagedFileError for the first that is missing or differs, MissingArtifactError if the artifact
        is not completed.
        """
        for path, problem in self.damage():
            raise DamagedFileError(f"{path} {problem}: {self._remedy}")

    def damage(self) -> Iterator[tuple[Path, str]]:
        """Yield every file that is missing or differs from its hash, and which of the two.

        Raises as `require_sealed` does.
        """
        self.require_sealed()
        for relative, expected in self.manifest.files.items():
            path = self.file(relative)
            if not path.is_file():
                yield path, "is missing"
            elif file_sha256(path) != expected:
                yield path, "differs from its recorded hash"

    def require_sealed(self) -> None:
        """Raise MissingArtifactError if it is not completed, DamagedFileError if its manifest was changed."""
        self._require_completed()
        if self.manifest.content_hash() != self.manifest.hash:
            raise DamagedFileError(
                f"{self.path / MANIFEST_NAME} was changed since it was completed: {self._remedy}"
            )

    @property
    def _remedy(self) -> str:
        return f"restore it, or make the {self.kind} again with `pipeline {KINDS[self.kind]}`."

    def _hash_files(self, exclude: Iterable[str]) -> dict[str, str]:
        """Return the SHA-256 of every file below the folder by its relative path, sorted."""
        excluded = [self.path / MANIFEST_NAME, *(self.path / name for name in exclude)]
        files = sorted(path for path in self.path.rglob("*") if path.is_file() and not is_temporary(path))
        return {
            path.relative_to(self.path).as_posix(): file_sha256(path)
            for path in files
            if not any(path.is_relative_to(out) for out in excluded)
        }

    def _require_completed(self) -> None:
        if self.manifest.status != "completed":
            raise MissingArtifactError(
                f"{self.name} is not completed ({self.manifest.status}): choose a completed {self.kind}, "
                f"or make one with `pipeline {KINDS[self.kind]}`."
            )


class Workspace:
    """A folder with artifacts under `runs/`, the tracking store under `mlflow/` and copies under `cache/`."""

    def __init__(self, root: Path, cache: Path | None = None) -> None:
        """Name the folder; nothing is made until `ensure_writable` or `create`.

        Args:
            root: The folder.
            cache: Another workspace's folder of copies, to share; None: one of its own.
        """
        try:
            self.root = Path(root).expanduser().absolute()
        except (
            OSError,
            RuntimeError,
        ) as error:  # no such `~user`, or no current folder
            raise WorkspaceError(
                f"Workspace {root} cannot be found ({error}): give --workspace DIR."
            ) from None
        self.runs = self.root / "runs"
        self.tracking = self.root / "mlflow"
        self.cache = cache or self.root / "cache"

    @classmethod
    def resolve(cls, option: str | None) -> Workspace:
        """Take the command-line option, else THOUSANDFOLD_WORKSPACE, else the current folder."""
        return cls(Path(option or os.environ.get("THOUSANDFOLD_WORKSPACE") or "."))

    def ensure_writable(self) -> None:
        """Make `runs/` and try a write there. Raises WorkspaceError."""
        try:
            write_atomic(self.runs / ".writable", b"")
            (self.runs / ".writable").unlink(missing_ok=True)
        except OSError as error:
            raise WorkspaceError(
                f"Workspace {self.root} cannot be written ({error.strerror}): "
                "choose another with --workspace DIR."
            ) from None

    def create(
        self,
        kind: str,
        *,
        task: str,
        settings: Mapping[str, Any],
        parents: Mapping[str, Parent] | None = None,
        task_changes: Mapping[str, Any] | None = None,
        selectable: bool = True,
    ) -> Artifact:
        """Make a folder of its own for a new artifact, with a manifest whose status is running.

        Args:
            kind: One of `KINDS`.
            task: Name of the task.
            settings: The stage's resolved settings, as `dump_settings` gives them.
            parents: By role, from `Artifact.parent_entry`.
            task_changes: What was changed of the task, for the manifest.
            selectable: False for what must be chosen by name, such as intermediate rounds.

        Raises:
            WorkspaceError: The workspace cannot be written.
        """
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is none of {', '.join(KINDS)}")
        self.ensure_writable()
        path = _make_unique_folder(self.runs, _new_name(kind))
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            kind=kind,  # type: ignore[arg-type]
            name=path.name,
            status="running",
            created_at=_now(),
            finished_at=None,
            task=task,
            settings=plain_json(dict(settings)),
            parents=dict(parents or {}),
            task_changes=dict(task_changes or {}),
            versions=installed_versions(),
            git=git_state(Path(__file__).resolve().parents[2]),
            platform=platform.platform(),
            selectable=selectable,
        )
        artifact = Artifact(path, manifest)
        artifact.save()
        return artifact

    def adopt(self, source: Artifact, results: Mapping[str, Any], tracking: Mapping[str, Any]) -> Artifact:
        """Copy a completed artifact of another workspace and make it the newest of its kind here.

        Args:
            source: Its content, and so its hash, stays the same; name and finish time are new.
            results: What to record beside its own.
            tracking: Of the copy, in place of its own.

        Raises:
            MissingArtifactError: It is not completed.
            WorkspaceError: The workspace cannot be written.
        """
        source._require_completed()
        self.ensure_writable()
        path = _make_unique_folder(self.runs, _new_name(source.kind))
        # The manifest comes last: a folder without one is nothing yet.
        for relative in source.manifest.files:
            path.joinpath(relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.file(relative), path / relative)
        manifest = dataclasses.replace(
            source.manifest,
            name=path.name,
            finished_at=_now(),
            results={**source.manifest.results, **plain_json(dict(results))},
            tracking=dict(tracking),
            selectable=True,
        )
        artifact = Artifact(path, manifest)
        artifact.save()
        return artifact

    def artifacts(self, kind: str | None = None) -> list[Artifact]:
        """Return the artifacts of one kind, or all, newest first; damaged ones are left out."""
        found, _ = self._scan()
        return [artifact for artifact in found if kind in (None, artifact.kind)]

    @property
    def damaged(self) -> list[Path]:
        """The manifests that cannot be read."""
        return self._scan()[1]

    def newest(self, kind: str, where: Callable[[Artifact], bool] | None = None, why: str = "") -> Artifact:
        """Return the completed, selectable artifact that finished last.

        Args:
            kind: One of `KINDS`.
            where: Says which artifacts count; None means all.
            why: What `where` asks for, in words that follow "No completed dataset", such as "of teacher-1".

        Raises:
            MissingArtifactError: There is none; the message names the command that makes one.
        """
        candidates = [
            artifact
            for artifact in self.artifacts(kind)
            if artifact.manifest.status == "completed"
            and artifact.manifest.selectable
            and (where is None or where(artifact))
        ]
        if candidates:
            return max(candidates, key=lambda artifact: artifact.manifest.finished_at or "")
        damaged = [str(path) for path in self.damaged if path.parent.name.startswith(f"{kind}-")]
        note = f" Damaged and left out: {', '.join(damaged)}." if damaged else ""
        what = f"{kind} {why}".strip()
        raise MissingArtifactError(
            f"No completed {what} in {self.runs}: make one with `pipeline {KINDS[kind]}`.{note}"
        )

    def find(self, reference: str | Path, kind: str) -> Artifact:
        """Return the artifact of `kind` in a folder, or of a name under `runs/`, whatever its status.

        Raises MissingArtifactError if there is none or it is of another kind, DamagedFileError.
        """
        places = (Path(reference).expanduser().absolute(), self.runs / reference)
        path = next((place for place in places if (place / MANIFEST_NAME).is_file()), None)
        if path is None:
            nearest = nearest_name(str(reference), [artifact.name for artifact in self.artifacts(kind)])
            hint = f"did you mean {nearest}?" if nearest else f"make one with `pipeline {KINDS[kind]}`."
            raise MissingArtifactError(
                f"No {kind} {str(reference)!r}, neither a folder nor in {self.runs}: {hint}"
            )
        artifact = Artifact.load(path)
        if artifact.kind != kind:
            raise MissingArtifactError(f"{path} is a {artifact.kind}, not a {kind}: give a {kind} instead.")
        return artifact

    def open(self, reference: str | Path, kind: str) -> Artifact:
        """Return a completed artifact by its folder or name; raises as `find` does, and if not completed."""
        artifact = self.find(reference, kind)
        artifact._require_completed()
        return artifact

    def _scan(self) -> tuple[list[Artifact], list[Path]]:
        """Read every manifest: the artifacts, newest first, and the manifests that are damaged."""
        found, damaged = [], []
        for path in sorted(self.runs.glob(f"*/{MANIFEST_NAME}")):
            try:
                found.append(Artifact.load(path.parent))
            except DamagedFileError:
                damaged.append(path)
        return sorted(found, key=lambda artifact: artifact.manifest.created_at, reverse=True), damaged


def _now() -> str:
    """Return the time in a form whose alphabetical order is the order of time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _new_name(kind: str) -> str:
    return f"{kind}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def _make_unique_folder(parent: Path, name: str) -> Path:
    """Make `parent/name`, or `name-2`, `name-3`, ... where another process was first."""
    count = 1
    while True:
        path = parent / (name if count == 1 else f"{name}-{count}")
        try:
            path.mkdir()
            return path
        except FileExistsError:
            count += 1
