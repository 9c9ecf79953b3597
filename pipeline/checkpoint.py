"""Tensors on disk: safetensors with a JSON header, and checkpoints of a training run that can be resumed.

A checkpoint folder:

    checkpoint/
      manifest.json               which files make up the checkpoint, their hashes, and the run's progress
      state-00000012.safetensors  networks, optimisers, generators, simulator, counters
      replay-00000004.safetensors rows of the replay memory, append-only, oldest first
      replay-00000012.safetensors
      finalist-00000008.safetensors weights that stay as they are, written once

Of several ranks each has worlds and a memory of its own:

      state-00000012.safetensors          networks and optimisers, which are the same on every rank
      worlds-00000012-rank-0.safetensors  generators, simulator and counters of rank 0; one such file a rank
      replay-00000012-rank-0.safetensors  rows of its replay memory

A save writes new files beside the old ones, waits until every rank has written its own, then swaps the
manifest in one rename, then deletes what the new manifest does not name: a kill at any moment, of any rank,
leaves a whole checkpoint, the old one or the new one. `BackgroundSaves` does so beside the training.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thousandfold.ground.errors import BAD_CONTENT, DamagedFileError
from thousandfold.ground.files import (
    atomic_file,
    file_sha256,
    folder_lock,
    is_temporary,
    json_sha256,
    plain_json,
    write_json_atomic,
)
from thousandfold.pipeline.distributed import Ranks

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 3
"""1: of one process, 2: also of several ranks, 3: with files that are written once, beside the replay's."""
_HEADER_KEY = "thousandfold"
_REMEDY = "restore it, or start the training again without --resume."


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors (moved to the CPU) and JSON metadata as one safetensors file, atomically."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_file(path) as temporary:
        try:
            save_file(whole, temporary, metadata={_HEADER_KEY: json.dumps(plain_json(metadata))})
        except SafetensorError as error:
            # What the system said stands in its text alone: "… I/O error: … (os error 28) at path …".
            if (found := re.search(r"\(os error (\d+)\)", str(error))) is None:
                raise
            number = int(found[1])
            raise OSError(number, os.strerror(number)) from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the metadata of a file that `save_tensors` wrote.

    Raises:
        DamagedFileError: the file is missing, truncated, or was not written by Thousandfold.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_HEADER_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if header is None:
            raise DamagedFileError(f"{path} was not written by Thousandfold.")
        return tensors, json.loads(header)
    except FileNotFoundError as error:
        raise DamagedFileError(f"{path} is missing.") from error
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise DamagedFileError(f"{path} is truncated or no safetensors file ({error}).") from error


@dataclass(frozen=True)
class RankPart:
    """What one rank has saved for itself."""

    tensors: dict[str, Tensor]
    """State of its worlds; where a single process saved, its complete state."""
    segments: list[dict[str, Tensor]]
    """Of its replay memory, in the order in which they were saved."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back."""

    tensors: dict[str, Tensor]
    """What is the same on every rank; where a single process saved, its complete state but for the replay."""
    parts: list[RankPart]
    """Of the ranks that were asked for."""
    progress: dict[str, Any]
    """The run's counters and history."""
    fixed: dict[str, dict[str, Tensor]]
    """What stays as it is, by name."""

    @property
    def segments(self) -> list[dict[str, Tensor]]:
        """The segments of the first part."""
        return self.parts[0].segments


class CheckpointFolder:
    """Saves and loads checkpoints of one training run, which the `ranks` save together."""

    def __init__(self, path: Path, ranks: Ranks | None = None) -> None:
        self.path, self._ranks = path, ranks or Ranks()

    @property
    def exists(self) -> bool:
        """Whether a whole checkpoint lies here."""
        return (self.path / "manifest.json").is_file()

    @property
    def num_parts(self) -> int:
        """How many ranks saved the checkpoint in place. Raises DamagedFileError."""
        return len(_parts(self._manifest()))

    @property
    def progress(self) -> dict[str, Any]:
        """The progress that was saved, without reading the rest. Raises DamagedFileError."""
        return self._manifest()["progress"]

    def require_settings(self, own: Mapping[str, Any], changeable: Collection[str]) -> None:
        """Compare the settings that were saved with the progress, as ``settings``, with those of this run.

        Raises DamagedFileError where others than those that are changeable differ; the message names them.
        """
        saved: dict[str, Any] = self.progress.get("settings", {})
        fixed = {name: value for name, value in saved.items() if name not in changeable}
        if other := [f"{name} {value}" for name, value in fixed.items() if own.get(name) != value]:
            raise DamagedFileError(f"{self.path} belongs to a run with other settings ({', '.join(other)}).")

    @contextlib.contextmanager
    def taken_over(self) -> Iterator[None]:
        """Raise DamagedFileError where the content, whole as it is, is none that the run can go on from."""
        try:
            yield
        except BAD_CONTENT as error:
            reason = " ".join(str(error).split())[:200]
            raise DamagedFileError(f"{self.path} does not fit this run's settings ({reason}).") from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other runs from writing here, as rank 0; raise UserError where one already does."""
        if not self._ranks.leads:
            yield
            return
        with folder_lock(self.path):
            yield

    def save(
        self,
        step: int,
        tensors: dict[str, Tensor],
        progress: dict[str, Any],
        *,
        segment: dict[str, Tensor] | None = None,
        oldest_row: int = 0,
        own: dict[str, Tensor] | None = None,
        fixed: Mapping[str, dict[str, Tensor] | None] | None = None,
    ) -> None:
        """Save a checkpoint and drop the one before. All ranks save together.

        Args:
            step: a number that grows from save to save; it names the files.
            tensors: the training state that is the same on every rank; rank 0's is written.
            progress: JSON-able counters and history; rank 0's are written.
            segment: replay rows written since the last save; `first` and `rows` tell which, world by world.
                All rows that the memory holds where another number of ranks saved last. None: there is no
                replay memory.
            oldest_row: the lowest row that the replay memory still holds; older segments are dropped.
            own: the training state that each rank has for itself, but for the replay memory.
            fixed: what stays as it is, by the name of its file; rank 0's is written, unless the checkpoint in
                place has a file of that name. None: it has.

        Raises:
            ValueError: the step did not grow: the files of the checkpoint in place would be overwritten.
            DamagedFileError: the manifest in place cannot be read.
            LostRankError: another rank is gone; the checkpoint in place is as it was, or the new one.
        """

        def write(name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
            """Write a file and return its entry in the manifest."""
            file = f"{name}.safetensors"
            save_tensors(self.path / file, tensors, {"step": step})
            return {"file": file, "sha256": file_sha256(self.path / file)}

        several, suffix = self._ranks.size > 1, f"-rank-{self._ranks.rank}" if self._ranks.size > 1 else ""
        last_step, saved, written = self._ranks.from_leader(self._in_place)
        if step <= last_step:
            raise ValueError(f"a checkpoint of step {step} after one of step {last_step}")
        part: dict[str, Any] = {}
        if several:
            part["worlds"] = write(f"worlds-{step:08d}{suffix}", own or {})
        if self._ranks.leads:
            part["state"] = write(f"state-{step:08d}", tensors if several else tensors | (own or {}))
            part["fixed"] = [
                written[name] if name in written or each is None else write(name, each)
                for name, each in (fixed or {}).items()
            ]
        kept = saved[self._ranks.rank] if len(saved) == self._ranks.size else []
        part["replay"] = [entry for entry in kept if entry["last_row"] >= oldest_row]
        if segment is not None and int(segment["rows"].sum()):
            last_row = int((segment["first"] + segment["rows"]).max()) - 1
            part["replay"].append(write(f"replay-{step:08d}{suffix}", segment) | {"last_row": last_row})
        # Once every rank has told what it wrote, all of it is on the disk.
        parts = [json.loads(text) for text in self._ranks.texts(json.dumps(part))]
        if not self._ranks.leads:
            return
        ranks = [{name: part[name] for name in ("worlds", "replay")} for part in parts] if several else []
        manifest = {
            "format_version": FORMAT_VERSION,
            "step": step,
            "state": parts[0]["state"],
            "fixed": parts[0]["fixed"],
            **({"ranks": ranks} if several else {"replay": parts[0]["replay"]}),
            "progress": plain_json(progress),
        }
        write_json_atomic(self.path / "manifest.json", manifest | {"sha256": json_sha256(manifest)})
        named = {entry["file"] for entry in _entries(manifest)}
        for path in self.path.iterdir():
            if is_temporary(path) or (path.suffix == ".safetensors" and path.name not in named):
                path.unlink(missing_ok=True)

    def _in_place(self) -> tuple[int, list[list[dict[str, Any]]], dict[str, dict[str, Any]]]:
        """Return the step of the checkpoint in place, every rank's replay entries, and the fixed by name."""
        if not self.exists:
            return -1, [], {}
        manifest = self._manifest()
        return manifest["step"], [part["replay"] for part in _parts(manifest)], _fixed(manifest)

    def load(self, ranks: Iterable[int] | None = None) -> Checkpoint:
        """Return the checkpoint, with the parts of these of the ranks that saved it; None: of all.

        Raises DamagedFileError where a file is missing, truncated or changed; the message names it.
        """
        manifest = self._manifest()
        saved = _parts(manifest)
        wanted = [saved[rank] for rank in (range(len(saved)) if ranks is None else ranks)]
        tensors = self._read(manifest["state"])
        parts = [
            RankPart(
                tensors if part["worlds"] == manifest["state"] else self._read(part["worlds"]),
                [self._read(entry) for entry in part["replay"]],
            )
            for part in wanted
        ]
        fixed = {name: self._read(entry) for name, entry in _fixed(manifest).items()}
        return Checkpoint(tensors, parts, manifest["progress"], fixed)

    def fixed(self, name: str) -> dict[str, Tensor]:
        """Return what the checkpoint holds under a name as it is. Raises DamagedFileError as `load` does."""
        return self._read(_fixed(self._manifest())[name])

    def _manifest(self) -> dict[str, Any]:
        path = self.path / "manifest.json"
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if manifest["format_version"] not in range(1, FORMAT_VERSION + 1):
                raise DamagedFileError(
                    f"{path} has format {manifest['format_version']}; this version reads up to "
                    f"{FORMAT_VERSION}."
                )
            if manifest.pop("sha256") != json_sha256(manifest):
                raise DamagedFileError(f"{path} was changed since it was saved: {_REMEDY}")
            replay = [entry for part in _parts(manifest) for entry in part["replay"]]
            if not (
                isinstance(manifest["step"], int)
                and isinstance(manifest["progress"], dict)
                and isinstance(manifest["progress"].get("settings", {}), dict)
                and all(map(_names_a_file, _entries(manifest)))
                and all(isinstance(entry["last_row"], int) for entry in replay)
            ):
                raise ValueError("other entries than save writes")
            return manifest
        except FileNotFoundError as error:
            raise DamagedFileError(f"{self.path} holds no checkpoint: {_REMEDY}") from error
        except BAD_CONTENT as error:
            raise DamagedFileError(f"{path} is truncated or no checkpoint manifest: {_REMEDY}") from error

    def _read(self, entry: dict[str, Any]) -> dict[str, Tensor]:
        path = self.path / entry["file"]
        if path.is_file() and file_sha256(path) != entry["sha256"]:
            raise DamagedFileError(f"{path} differs from its recorded hash: {_REMEDY}")
        return load_tensors(path)[0]


def _parts(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a manifest says of each rank; a single process keeps its worlds with the rest."""
    return manifest.get("ranks") or [{"worlds": manifest["state"], "replay": manifest["replay"]}]


def _fixed(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the entries of what stays as it is, by name; earlier versions had none."""
    return {Path(entry["file"]).stem: entry for entry in manifest.get("fixed", [])}


def _entries(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a manifest says of each of the files."""
    of_parts = [entry for part in _parts(manifest) for entry in (part["worlds"], *part["replay"])]
    return [manifest["state"], *of_parts, *manifest.get("fixed", [])]


def _names_a_file(entry: Any) -> bool:
    """Return whether an entry of a manifest names a file of the checkpoint's own folder, and its hash."""
    name = entry["file"]
    return isinstance(entry["sha256"], str) and name == Path(name).name and name.endswith(".safetensors")


class BackgroundSaves:
    """Saves checkpoints, each in a thread while the training goes on; all ranks do so together.

    The folder's lock is to be held until the `with` block has been left, which waits for the last save. What
    stopped one is raised by the next call, or by leaving the block.
    """

    def __init__(self, folder: CheckpointFolder) -> None:
        self._folder = CheckpointFolder(folder.path, folder._ranks.apart())
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._last: Future[None] | None = None

    def __enter__(self) -> BackgroundSaves:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._thread.shutdown()
        except KeyboardInterrupt:  # another process may take the lock once the block has been left
            self._thread.shutdown()
            raise
        if kind is None:
            self.wait()

    @property
    def path(self) -> Path | None:
        """The folder of the last checkpoint, which may still be written; None where there is none yet."""
        last = self._last
        comes = last is not None and not (last.done() and last.exception())
        return self._folder.path if comes or self._folder.exists else None

    def save(self, *arguments: Any, **options: Any) -> None:
        """Begin what `CheckpointFolder.save` does with these arguments, which may not change meanwhile."""
        self.wait()
        self._last = self._thread.submit(self._folder.save, *arguments, **options)

    def wait(self) -> None:
        """Wait for the last save."""
        if self._last is not None:
            self._last.result()

    def check(self) -> None:
        """Raise what has stopped the last save by now."""
        if self._last is not None and self._last.done():
            self._last.result()
