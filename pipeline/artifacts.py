"""The workspace and what stages leave in it.

    <workspace>/
        runs/
            teacher-20260131-120000/    one artifact: a folder ...
                manifest.json           ... with its settings, parents and hashes
                ...                     ... and its files
        mlflow/                         the tracking store
        cache/                          packed copies of datasets, which may be deleted

An artifact is running until `Artifact.complete` hashes its files. Its manifest has two hashes, for two
purposes. `hash` names the content: it covers the settings, the files and the hashes of the parents, so that a
chain of artifacts can be checked from its end to its beginning; a copy under another name has the same.
`seal` covers everything that the manifest says, results and times included, and is made anew whenever it is
written: one that somebody changed since is noticed by its readers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from thousandfold.ground.errors import (
    DamagedFileError,
    DamagedRecordError,
    MissingArtifactError,
    WorkspaceError,
    nearest_name,
)
from thousandfold.ground.files import (
    FORMAT_VERSION,
    LOCK_FILE,
    file_sha256,
    folder_lock,
    is_locked,
    is_temporary,
    json_sha256,
    plain_json,
    read_sealed_json,
    strict_json,
    write_atomic,
    write_sealed_json,
)

KINDS = {
    "teacher": "train-teacher",
    "dataset": "generate-dataset",
    "student": "distill",
    "policy": "export-onnx",
    "benchmark": "benchmark",
    "evaluation": "evaluate",
    "rendering": "render",
    "frontier": "frontier",
    "study": "study",
    "report": "report",
}
"""Every kind of artifact and the command that makes it."""
NEWEST = "newest"
"""What names the newest artifact wherever a name is asked for."""
MANIFEST_NAME = "manifest.json"
_PACKAGES = (
    "gymnasium", "minari", "mlflow", "mujoco", "mujoco-warp", "numpy", "onnx", "onnxruntime", "pydantic",
    "safetensors", "torch", "warp-lang",
)  # fmt: skip
_ABANDONED_S = 3600.0
"""Age from which a half-written file of another process is no write under way: these files are small."""
_NAME = re.compile(rf"(?:{'|'.join(KINDS)})-(\d{{8}}-\d{{6}})(?:-\d+)?")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00")


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
    kind: str
    """One of `KINDS`."""
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
    device: dict[str, Any] = field(default_factory=dict)
    """What it was computed on, and on CUDA its driver, of what version; empty where none is recorded."""
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
            if manifest.kind not in KINDS:
                raise ValueError(f"no artifact is a {manifest.kind}")
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


class Artifact:
    """A folder with a manifest."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Wrap an existing folder; `Workspace.create` makes new ones and `load` reads old ones."""
        self.path = path
        self.manifest = manifest

    @classmethod
    def load(cls, path: Path) -> Artifact:
        """Read the artifact in a folder, whatever its status. Raises DamagedRecordError."""
        return cls(path, Manifest.read(path / MANIFEST_NAME))

    def __repr__(self) -> str:
        return f"Artifact({str(self.path)!r})"

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return self.manifest.kind

    @property
    def name(self) -> str:
        """The name under which it was created."""
        return self.manifest.name

    @property
    def results(self) -> dict[str, Any]:
        """What the stage found."""
        return self.manifest.results

    @property
    def is_completed(self) -> bool:
        """Whether it is whole, and may be taken by other stages."""
        return self.manifest.status == "completed"

    @property
    def status(self) -> str:
        """The manifest's status, or `stopped` where that says `running` and no process holds the lock."""
        status = self.manifest.status
        places = (self.path, self.path / "checkpoint")  # a resumed training holds its checkpoint's lock
        return "stopped" if status == "running" and not any(map(is_locked, places)) else status

    def file(self, relative: str | Path) -> Path:
        """Return the path of a file below the folder, whether or not it exists."""
        return self.path / relative

    def is_made_from(self, parent: Artifact) -> bool:
        """Tell whether it names this artifact, by hash, as what it was made from."""
        entry = self.manifest.parents.get(parent.kind)
        return entry is not None and entry.hash == parent.manifest.hash

    def parent_entry(self) -> Parent:
        """Return what a child records of it. Raises MissingArtifactError if it is not completed."""
        self.require_completed()
        return Parent(self.kind, self.name, str(self.manifest.hash))

    def save(self) -> None:
        """Write the manifest atomically, with a new seal."""
        self.manifest = dataclasses.replace(self.manifest, format_version=FORMAT_VERSION)
        seal = write_sealed_json(self.path / MANIFEST_NAME, dataclasses.asdict(self.manifest))
        self.manifest = dataclasses.replace(self.manifest, seal=seal)

    def update(self, **changes: Any) -> None:
        """Change fields of the manifest and save it."""
        self.manifest = dataclasses.replace(self.manifest, **changes)
        self.save()

    def complete(self, results: Mapping[str, Any], exclude: Iterable[str] = ()) -> None:
        """Hash the files, mark the artifact as completed and remove what a process that was killed has left.

        `exclude` names files and subfolders that are not part of the result, such as `checkpoint`.
        """
        for path in list(self.path.rglob(".*")):
            if is_temporary(path) or (path.name == LOCK_FILE and not is_locked(path.parent)):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        excluded = [self.path / MANIFEST_NAME, *(self.path / name for name in exclude)]
        files = {
            path.relative_to(self.path).as_posix(): file_sha256(path)
            for path in _lasting_files(self.path)
            if not any(path.is_relative_to(out) for out in excluded)
        }
        changes = {"status": "completed", "finished_at": _now(), "results": plain_json(dict(results))}
        self.manifest = dataclasses.replace(self.manifest, files=files, **changes)
        self.update(hash=self.manifest.content_hash())

    def fail(self, reason: str) -> None:
        """Mark the artifact as failed; `results["error"]` says why."""
        self.update(status="failed", finished_at=_now(), results={**self.manifest.results, "error": reason})

    def verify(self) -> None:
        """Compare the files with the hashes of the manifest.

        Raises DamagedFileError for the first that is missing or differs, MissingArtifactError if the artifact
        is not completed.
        """
        for path, problem in self.damage():
            raise DamagedFileError(
                f"{path} {problem}: restore it, or make the {self.kind} again with "
                f"`pipeline {KINDS[self.kind]}`."
            )

    def damage(self) -> Iterator[tuple[Path, str]]:
        """Yield every file that is missing or differs from its hash, and which of the two.

        Raises MissingArtifactError if the artifact is not completed.
        """
        self.require_completed()
        for relative, expected in self.manifest.files.items():
            path = self.file(relative)
            if not path.is_file():
                yield path, "is missing"
            elif file_sha256(path) != expected:
                yield path, "differs from its recorded hash"

    def require_completed(self) -> None:
        """Raise MissingArtifactError if it is not completed."""
        if not self.is_completed:
            raise MissingArtifactError(
                f"{self.name} is not completed ({self.status}): choose a completed {self.kind}, "
                f"or make one with `pipeline {KINDS[self.kind]}`."
            )


@dataclass(frozen=True)
class DamagedArtifact:
    """An artifact whose manifest is missing or cannot be relied on, and what is known of it all the same."""

    path: Path
    error: DamagedRecordError
    content: Mapping[str, Any]
    """What the manifest says before the place where it is broken off."""

    @property
    def name(self) -> str:
        """The folder's."""
        return self.path.name

    @property
    def kinds(self) -> set[str]:
        """The kinds that it may be of, by its folder's name and by what can be read of its manifest."""
        return {self.name.partition("-")[0], str(self.content.get("kind"))} & set(KINDS)

    @property
    def begun(self) -> str | None:
        """The latest time at which its making can have begun; None: any."""
        if time := _time_of(self.content.get("created_at")):
            return time
        if stamp := _NAME.fullmatch(self.name):
            with contextlib.suppress(ValueError):  # no day of the calendar
                # The name has whole seconds.
                return datetime.strptime(f"{stamp[1]}.999999+0000", "%Y%m%d-%H%M%S.%f%z").isoformat()
        return None

    def may_have_finished_after(self, time: str | None) -> bool:
        """Tell whether it can be a completed artifact that finished at this time or later."""
        content = self.content
        if content.get("status") in ("running", "failed") and not content.get("hash"):
            return False
        finished = _time_of(content.get("finished_at"))
        if finished is None:
            files = (path for path in _lasting_files(self.path) if path.name != MANIFEST_NAME)
            written = [path.stat().st_mtime for path in files]
            times = [datetime.fromtimestamp(time, UTC).isoformat(timespec="microseconds") for time in written]
            finished = max([*times, self.begun or ""]) or None
        return finished is None or time is None or finished >= time

    def may_be_made_from(self, parent: Artifact) -> bool:
        """Tell whether it can name this artifact as what it was made from."""
        if self.begun is not None and self.begun < parent.manifest.created_at:
            return False
        parents = self.content.get("parents")
        if not isinstance(parents, dict) or list(self.content)[-1] == "parents":  # broken off in there
            return True
        entry = parents.get(parent.kind)
        return isinstance(entry, dict) and entry.get("hash") == parent.manifest.hash

    def refuse(self, kind: str, option: str | None) -> None:
        """Raise DamagedRecordError: it may be what is asked for; `option`, if any, names another."""
        instead = f"name the {kind} to take with {option}, " if option else ""
        remedy = f"restore the file, {instead}or remove {self.path} to go on without it"
        problem = f"{self.error.problem}, and {self.name} may be the newest {kind}"
        raise DamagedRecordError(self.error.path, problem, remedy)


class Workspace:
    """A folder with artifacts under `runs/`, the tracking store under `mlflow/` and copies under `cache/`."""

    def __init__(self, root: Path, cache: Path | None = None) -> None:
        """Name the folder; nothing is made until `ensure_writable` or `create`.

        `cache` is another workspace's folder of copies, to share; None: one of its own.
        """
        try:
            self.root = Path(root).expanduser().absolute()
        except (OSError, RuntimeError) as error:  # no such `~user`, or no current folder
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
        """Make `runs/`, try a write there and remove what writes that were cut off have left in it.

        Raises WorkspaceError.
        """
        try:
            str(self.root).encode()
        except UnicodeEncodeError:  # neither MLflow nor safetensors nor MuJoCo opens what lies there
            raise WorkspaceError(
                f"Workspace {self.root} is no name in UTF-8: rename it, or choose another --workspace DIR."
            ) from None
        try:
            write_atomic(self.runs / ".writable", b"")
            (self.runs / ".writable").unlink(missing_ok=True)
            for path in filter(is_temporary, self.runs.glob(".*")):
                with contextlib.suppress(FileNotFoundError):  # another process was first
                    if time.time() - path.stat().st_mtime > _ABANDONED_S:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
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
            task: Its name.
            settings: As `dump_settings` gives them.
            parents: By role, from `Artifact.parent_entry`.
            task_changes: What was changed of the task.
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
            kind=kind,
            name=path.name,
            status="running",
            created_at=_now(),
            finished_at=None,
            task=task,
            settings=plain_json(dict(settings)),
            parents=dict(parents or {}),
            task_changes=dict(task_changes or {}),
            versions=installed_versions(),
            git=git_state(Path(__file__).resolve().parents[1]),
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
        source.require_completed()
        self.ensure_writable()
        path = _make_unique_folder(self.runs, _new_name(source.kind))
        begun: dict[str, Any] = {"status": "running", "finished_at": None, "files": {}, "hash": None}
        copy = Artifact(path, dataclasses.replace(source.manifest, name=path.name, **begun))
        copy.save()  # first, for a folder of files without a manifest counts as damaged
        for relative in source.manifest.files:
            path.joinpath(relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.file(relative), path / relative)
        copy.manifest = dataclasses.replace(
            source.manifest,
            name=path.name,
            finished_at=_now(),
            results={**source.manifest.results, **plain_json(dict(results))},
            tracking=dict(tracking),
            selectable=True,
        )
        copy.save()
        return copy

    def remove(self, path: Path) -> None:
        """Remove an artifact's folder, or the link to it: it is gone at once, and its files soon after.

        Raises UserError where a process writes to it.
        """
        gone = path.with_name(f".{path.name}.tmp")  # which no listing shows
        if path.is_symlink():
            path.unlink()
            return
        with folder_lock(path):
            path.rename(gone)
        shutil.rmtree(gone)

    def artifacts(self, kind: str | None = None) -> list[Artifact]:
        """Return the artifacts of one kind, or all, newest first; damaged ones are left out."""
        found, _ = self._scan()
        return [artifact for artifact in found if kind in (None, artifact.kind)]

    @property
    def damaged(self) -> list[DamagedArtifact]:
        """The artifacts whose manifest is missing, cannot be read, or was changed since it was written."""
        return self._scan()[1]

    def newest(self, kind: str, of: Artifact | None = None, option: str | None = "") -> Artifact:
        """Return the completed, selectable artifact that finished last.

        Args:
            kind: One of `KINDS`.
            of: What it must be made from; None: anything.
            option: How the user names another, for the message; empty: `--KIND NAME`; None: not at all.

        Raises:
            MissingArtifactError: There is none; the message names the command that makes one.
            DamagedRecordError: One that is damaged may be the newest.
        """
        newest = self.newest_if_any(kind, of, option)
        if newest is None:
            what = kind if of is None else f"{kind} of {of.kind} {of.name}"
            raise MissingArtifactError(
                f"No completed {what} in {self.runs}: make one with `pipeline {KINDS[kind]}`."
            )
        return newest

    def newest_if_any(
        self, kind: str, of: Artifact | None = None, option: str | None = ""
    ) -> Artifact | None:
        """Return what `newest` does, but None where there is none. Raises DamagedRecordError as it does."""
        found, damaged = self._scan()
        candidates = [
            artifact
            for artifact in found
            if artifact.kind == kind
            and artifact.is_completed
            and artifact.manifest.selectable
            and (of is None or artifact.is_made_from(of))
        ]
        newest = max(candidates, key=lambda artifact: artifact.manifest.finished_at or "", default=None)
        finished_at = newest.manifest.finished_at if newest else None
        for suspect in damaged:
            concerns = kind in suspect.kinds and (of is None or suspect.may_be_made_from(of))
            if concerns and suspect.may_have_finished_after(finished_at):
                suspect.refuse(kind, f"--{kind} NAME" if option == "" else option)
        return newest

    def newest_unfinished(
        self, kind: str, can_go_on: Callable[[Artifact], bool], trace: str = ""
    ) -> Artifact | None:
        """Return the artifact to resume that began last; None where there is none.

        Args:
            kind: One of `KINDS`.
            can_go_on: Says whether there is anything to go on from.
            trace: The folder of an artifact that this lies in; a damaged one without it has nothing.

        Raises:
            DamagedRecordError: One that is damaged may be it.
        """
        found, damaged = self._scan()
        unfinished = (a for a in found if a.kind == kind and not a.is_completed)
        newest = next(filter(can_go_on, unfinished), None)
        for suspect in damaged:
            concerns = kind in suspect.kinds and suspect.content.get("status") != "completed"
            after = newest is None or suspect.begun is None or suspect.begun >= newest.manifest.created_at
            if concerns and after and (suspect.path / trace).is_dir():
                suspect.refuse(f"unfinished {kind}", "--resume NAME")
        return newest

    def find(self, reference: str | Path, kind: str | None) -> Artifact:
        """Return the artifact in a folder, or of a name under `runs/`, whatever its status; any kind if None.

        `newest` is the newest completed one of the kind, or what was begun last of any kind.

        Raises:
            MissingArtifactError: There is none or it is of another kind.
            DamagedRecordError: Its manifest is missing or cannot be relied on.
        """
        if str(reference) == NEWEST and kind is not None:
            return self.newest(kind)
        if str(reference) == NEWEST:
            reference = next((artifact.path for artifact in self.artifacts()), reference)
        for place in (Path(reference).expanduser().absolute(), self.runs / reference):
            artifact = _read_folder(place) if _is_folder(place) else None
            if isinstance(artifact, DamagedArtifact):
                raise artifact.error
            if artifact is not None and kind not in (None, artifact.kind):
                raise MissingArtifactError(
                    f"{place} is a {artifact.kind}, not a {kind}: give a {kind} instead."
                )
            if artifact is not None:
                return artifact
        nearest = nearest_name(str(reference), [artifact.name for artifact in self.artifacts(kind)])
        hint = f"make one with `pipeline {KINDS[kind]}`." if kind else "`pipeline runs` lists them."
        hint = f"did you mean {nearest}?" if nearest else hint
        raise MissingArtifactError(
            f"No {kind or 'artifact'} {str(reference)!r}, neither a folder nor in {self.runs}: {hint}"
        )

    def open(self, reference: str | Path, kind: str) -> Artifact:
        """Return a completed artifact by its folder or name; raises as `find` does, and if not completed."""
        artifact = self.find(reference, kind)
        artifact.require_completed()
        return artifact

    def _scan(self) -> tuple[list[Artifact], list[DamagedArtifact]]:
        """Read every manifest: the artifacts, newest first, and those that are damaged."""
        found, damaged = [], []
        folders = sorted(path for path in self.runs.glob("*") if _is_folder(path) and not is_temporary(path))
        for artifact in map(_read_folder, folders):
            if isinstance(artifact, Artifact):
                found.append(artifact)
            elif artifact is not None:
                damaged.append(artifact)
        return sorted(found, key=lambda artifact: artifact.manifest.created_at, reverse=True), damaged


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

    def git(*arguments: str) -> str:
        command = ("git", "--no-optional-locks", "-C", str(folder), *arguments)
        return os.fsdecode(subprocess.run(command, capture_output=True, check=True, timeout=10).stdout)

    try:
        # The top is compared because an installed copy may lie inside a repository of somebody else.
        top, commit = git("rev-parse", "--show-toplevel", "HEAD").splitlines()
        if Path(top).resolve() == folder:
            return {"commit": commit, "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, ValueError, subprocess.SubprocessError):
        pass
    return {"commit": None, "dirty": None}


@functools.cache
def _manifest_adapter() -> Any:
    """Return pydantic's validator of `Manifest`; pydantic is imported when a manifest is read."""
    import pydantic

    return pydantic.TypeAdapter(Manifest)


def _read_folder(path: Path) -> Artifact | DamagedArtifact | None:
    """Return the artifact in a folder; None where it is none, or its making was cut off before it began."""
    try:
        return Artifact.load(path)
    except DamagedRecordError as error:
        manifest = path / MANIFEST_NAME
        gone = error.problem == "is missing" and not os.path.lexists(manifest)
        if gone and (
            _NAME.fullmatch(path.name) is None or (path.is_dir() and all(map(_is_passing, path.iterdir())))
        ):
            return None
        return DamagedArtifact(path, error, _readable_part(manifest))


def _is_folder(path: Path) -> bool:
    """Tell whether a folder lies here, or a link to one that may be away, as on a drive that is not there."""
    return os.path.isdir(path) or (os.path.islink(path) and not os.path.exists(path))


def _readable_part(path: Path) -> dict[str, Any]:
    """Return the keys of a broken JSON object up to where it is broken; of a whole one its kind alone.

    What a whole one says cannot be relied on, for it was changed after it was written.
    """
    import pydantic_core

    try:
        data = path.read_bytes() if path.is_file() else b""
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            text = data[: error.start].decode()
        try:
            content = strict_json(text)
            content = {"kind": content["kind"]} if isinstance(content, dict) and "kind" in content else {}
        except json.JSONDecodeError as error:
            content = pydantic_core.from_json(text[: error.pos], allow_partial=True)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_passing(path: Path) -> bool:
    """Tell whether a file says nothing of an artifact: a lock, or what an interrupted write has left."""
    return path.name == LOCK_FILE or is_temporary(path)


def _lasting_files(folder: Path) -> list[Path]:
    """Return the files of an artifact, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not _is_passing(path))


def _time_of(value: object) -> str | None:
    """Return a time as manifests have it; None for anything else."""
    return value if isinstance(value, str) and _TIME.fullmatch(value) else None


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
