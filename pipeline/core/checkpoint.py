"""Tensors on disk: safetensors with a JSON header, and checkpoints of a training run that can be resumed.

A checkpoint folder:

    checkpoint/
      manifest.json               which files make up the checkpoint, their hashes, and the run's progress
      state-00000012.safetensors  networks, optimisers, generators, simulator, counters
      replay-00000004.safetensors rows of the replay memory, append-only, oldest first
      replay-00000012.safetensors

A save writes new files beside the old ones, then swaps the manifest in one rename, then deletes what the new
manifest does not name: a kill at any moment leaves a whole checkpoint, the old one or the new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.atomic import (
    atomic_file,
    file_sha256,
    is_temporary,
    json_sha256,
    plain_json,
    write_json_atomic,
)
from pipeline.core.errors import DamagedFileError, UserError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 1
_HEADER_KEY = "thousandfold"


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors (moved to the CPU) and JSON metadata as one safetensors file, atomically."""
    from safetensors.torch import save_file

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_file(path) as temporary:
        save_file(whole, temporary, metadata={_HEADER_KEY: json.dumps(plain_json(metadata))})


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
class Checkpoint:
    """A checkpoint read back.

    Attributes:
        tensors: the complete training state but for the replay memory.
        segments: segments of the replay memory, in the order in which they were saved.
        progress: the run's counters and history.
    """

    tensors: dict[str, Tensor]
    segments: list[dict[str, Tensor]]
    progress: dict[str, Any]


class CheckpointFolder:
    """Saves and loads checkpoints of one training run. See the module's docstring for the layout."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def exists(self) -> bool:
        """Whether a whole checkpoint lies here."""
        return (self.path / "manifest.json").is_file()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from writing here; raise UserError where one already does."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(
                    f"{self.path} is in use by another process: wait for it, or stop it."
                ) from error
            yield

    def save(
        self,
        step: int,
        tensors: dict[str, Tensor],
        progress: dict[str, Any],
        *,
        segment: dict[str, Tensor],
        oldest_row: int,
    ) -> None:
        """Save a checkpoint and drop the one before.

        Args:
            step: a number that grows from save to save; it names the files.
            tensors: the training state but for the replay memory.
            progress: JSON-able counters and history.
            segment: replay rows written since the last save; `first` and `rows` tell which, world by world.
            oldest_row: the lowest row that the replay memory still holds; older segments are dropped.

        Raises:
            ValueError: the step did not grow: the files of the checkpoint in place would be overwritten.
            DamagedFileError: the manifest in place cannot be read.
        """
        before = self._manifest() if self.exists else {"step": -1, "replay": []}
        if step <= before["step"]:
            raise ValueError(f"a checkpoint of step {step} after one of step {before['step']}")
        state, replay = f"state-{step:08d}.safetensors", f"replay-{step:08d}.safetensors"
        save_tensors(self.path / state, tensors, {"step": step})
        segments = [entry for entry in before["replay"] if entry["last_row"] >= oldest_row]
        if int(segment["rows"].sum()):
            save_tensors(self.path / replay, segment, {"step": step})
            last_row = int((segment["first"] + segment["rows"]).max()) - 1
            segments.append(self._entry(replay) | {"last_row": last_row})
        manifest = {
            "format_version": FORMAT_VERSION,
            "step": step,
            "state": self._entry(state),
            "replay": segments,
            "progress": plain_json(progress),
        }
        write_json_atomic(self.path / "manifest.json", manifest | {"sha256": json_sha256(manifest)})
        self._remove_unnamed({state, *(entry["file"] for entry in segments)})

    def load(self) -> Checkpoint:
        """Return the checkpoint.

        Raises:
            DamagedFileError: a file is missing, truncated or changed; the message names it.
        """
        manifest = self._manifest()
        tensors, _ = self._read(manifest["state"])
        segments = [self._read(entry)[0] for entry in manifest["replay"]]
        return Checkpoint(tensors, segments, manifest["progress"])

    def _manifest(self) -> dict[str, Any]:
        path = self.path / "manifest.json"
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if manifest["format_version"] != FORMAT_VERSION:
                raise DamagedFileError(
                    f"{path} has format {manifest['format_version']}; this version reads {FORMAT_VERSION}."
                )
            if manifest.pop("sha256") != json_sha256(manifest):
                raise DamagedFileError(f"{path} was changed since it was saved.")
            return manifest
        except FileNotFoundError as error:
            raise DamagedFileError(f"{self.path} holds no checkpoint.") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedFileError(f"{path} is truncated or no checkpoint manifest.") from error

    def _entry(self, name: str) -> dict[str, Any]:
        return {"file": name, "sha256": file_sha256(self.path / name)}

    def _read(self, entry: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        path = self.path / entry["file"]
        if path.is_file() and file_sha256(path) != entry["sha256"]:
            raise DamagedFileError(
                f"{path} differs from its recorded hash: the checkpoint cannot be resumed."
            )
        return load_tensors(path)

    def _remove_unnamed(self, named: set[str]) -> None:
        for path in self.path.iterdir():
            if is_temporary(path) or (path.suffix == ".safetensors" and path.name not in named):
                path.unlink(missing_ok=True)
