"""The files of a dataset artifact: checked by hash, read shard by shard, and packed for the next time.

<workspace>/cache/datasets/<the dataset's hash>-<format>.safetensors    may be deleted at any time

The packed copy stands for the files as long as each of them has the size and the time of change that it had
when it was compared with its hash; where one differs, all are compared again.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from thousandfold.ground.errors import BAD_CONTENT, DamagedFileError
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.replay.dataset_layout import (
    METADATA_NAME,
    NAMESPACE,
    ROWS_NAME,
    dataset_id,
    is_whole,
    read_metadata,
    shards_below,
)
from thousandfold.replay.goal_dataset import DatasetError, GoalDataset, load_shards

MINARI_FOLDER = "minari"
"""Folder of a dataset artifact that MINARI_DATASETS_PATH is set to, to read it with `minari.load_dataset`."""

COVERAGE_PICTURE = "coverage.png"

SKIPPED = "skipped_shards"
"""What the metadata of a dataset that was read without its damaged shards calls these."""

PACK_FORMAT = 2
"""To be raised whenever the rows that are read from the same files become others."""

_INSTEAD = (
    "or use the rest with `pipeline distill --skip-damaged-shards`, "
    "elsewhere with --set distill.skip_damaged_shards=true."
)


def _silent(message: str) -> None:
    """Say nothing."""


def verify_dataset(
    dataset: Artifact, skip_damaged: bool = False, warn: Callable[[str], None] = _silent
) -> list[Path]:
    """Compare a dataset's files with their recorded hashes; return the data folders of the whole shards.

    Args:
        dataset: a completed artifact.
        skip_damaged: leave damaged shards out, as long as one is whole.
        warn: told of each that is left out.

    Raises:
        DamagedFileError: a file is missing or differs; the message names it.
        MissingArtifactError: the artifact is not completed.
    """
    shards = shard_folders(dataset)
    damaged: dict[Path, str] = {}
    for path, problem in dataset.damage():
        if not skip_damaged or not path.is_relative_to(dataset.file(MINARI_FOLDER)):
            hint = f", {_INSTEAD}" if path.parent in shards and len(shards) > 1 else "."
            raise DamagedFileError(f"{path} {problem}: restore it, make the dataset again{hint}")
        damaged.setdefault(path.parent, problem)
    for shard in shards:
        if shard in damaged:
            warn(f"shard {shard.parent.name} of {dataset.name} {damaged[shard]}: it is left out.")
    whole = [shard for shard in shards if shard not in damaged]
    if not whole:
        raise DamagedFileError(f"Every shard of {dataset.path} is damaged: make the dataset again.")
    return whole


def shard_folders(dataset: Artifact) -> list[Path]:
    """Return the data folders of a dataset's shards, whole or not; of one without shards, its only one.

    Raises:
        DamagedFileError: the artifact holds no dataset.
    """
    view = Path(dataset_id(dataset.manifest.task)).name
    rows = [dataset.file(name) for name in dataset.manifest.files if Path(name).name == ROWS_NAME]
    shards = [path.parent for path in rows if path.parent.parent.name != view]
    found = sorted(shards or [path.parent for path in rows])
    if not found:
        raise DamagedFileError(f"{dataset.path} holds no Minari dataset: make another.")
    return found


def load_dataset(
    dataset: Artifact,
    cache: Path | None = None,
    skip_damaged: bool = False,
    warn: Callable[[str], None] = _silent,
) -> GoalDataset:
    """Read a dataset artifact: from the packed copy in the cache, if there is one and no file changed since.

    Otherwise from its shards, after every file was compared with its hash.

    Args:
        dataset: a completed artifact.
        cache: the workspace's folder of caches; None: neither read nor write one.
        skip_damaged, warn: as of `verify_dataset`; what is left of a damaged dataset is not packed, and its
            metadata names the shards that were left out as `skipped_shards`.

    Raises:
        UserError: the dataset is damaged.
    """
    dataset.require_completed()
    packed = None if cache is None else _packed_path(cache, dataset)
    stamps = _stamps(dataset)
    data = None if packed is None else _unpack(packed, stamps)
    if data is not None:
        return data
    shards = verify_dataset(dataset, skip_damaged, warn)
    hashes = {dataset.file(name): recorded for name, recorded in dataset.manifest.files.items()}
    data = load_shards(shards, _metadata_of(dataset), known_hashes=hashes)
    skipped = [shard.parent.name for shard in shard_folders(dataset) if shard not in shards]
    if skipped:
        facts = data.metadata.get(NAMESPACE, {}) | {SKIPPED: skipped}
        return dataclasses.replace(data, metadata=data.metadata | {NAMESPACE: facts})
    if packed is not None:
        try:
            _pack(packed, data, stamps)
        except OSError as error:
            warn(f"{packed} cannot be written ({error.strerror}): the next load is as slow as this one.")
    return data


def _metadata_of(dataset: Artifact) -> dict[str, Any] | None:
    """Return what the view says of the dataset; None, which takes a shard's word, where it is damaged."""
    root = dataset.file(MINARI_FOLDER) / dataset_id(dataset.manifest.task) / "data"
    try:
        return read_metadata(root) if (root / METADATA_NAME).is_file() else None
    except DatasetError:
        return None


# -- the packed copy ------------------------------------------------------------------------------


def _packed_path(cache: Path, dataset: Artifact) -> Path:
    return cache / "datasets" / f"{dataset.manifest.hash}-{PACK_FORMAT}.safetensors"


def _stamps(dataset: Artifact) -> dict[str, list[int] | None]:
    """Return size in bytes and time of change in ns of every file of a dataset; None where it is missing."""
    stamps: dict[str, list[int] | None] = {}
    for name in dataset.manifest.files:
        try:
            found = dataset.file(name).stat()
            stamps[name] = [found.st_size, found.st_mtime_ns]
        except OSError:
            stamps[name] = None
    return stamps


def _pack(path: Path, data: GoalDataset, stamps: Mapping[str, list[int] | None]) -> None:
    """Write a dataset as one file of tensors, each with a checksum, beside the stamps of its own files."""
    import torch

    from thousandfold.pipeline.checkpoint import save_tensors

    columns = {name: value for name, value in vars(data).items() if isinstance(value, np.ndarray)}
    checks = {name: _checksum(column) for name, column in columns.items()}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(column)) for name, column in columns.items()}
    # As text: NaN, which strict JSON lacks, may be in it.
    header = {"crc32": checks, "stamps": dict(stamps), "metadata": json.dumps(data.metadata)}
    save_tensors(path, tensors, header)


def _unpack(path: Path, stamps: Mapping[str, list[int] | None]) -> GoalDataset | None:
    """Return what was packed; None where there is nothing, nothing whole, or other stamps."""
    from thousandfold.pipeline.checkpoint import load_tensors

    if not path.is_file():
        return None
    try:
        tensors, header = load_tensors(path)
        if header["stamps"] != stamps:
            return None
        columns = {name: tensor.numpy() for name, tensor in tensors.items()}
        if {name: _checksum(column) for name, column in columns.items()} != header["crc32"]:
            return None
        return GoalDataset(**columns, metadata=json.loads(header["metadata"]))
    except (DamagedFileError, *BAD_CONTENT):
        return None


def _checksum(column: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(column).data)


# -- What a dataset artifact holds, shard by shard, whole or not -----------------------------------


def find_damage(dataset: Artifact) -> dict[Path, str]:
    """Return which files of a completed dataset differ from its manifest, and how; none of an unfinished."""
    return dict(dataset.damage()) if dataset.is_completed else {}


def other_damage(dataset: Artifact, damage: Mapping[Path, str]) -> dict[str, str]:
    """Return what is damaged beside the shards, the view of them for one, by its path in the artifact."""
    if not damage:
        return {}
    shards = shard_folders(dataset)
    others = {path: problem for path, problem in damage.items() if path.parent not in shards}
    return {path.relative_to(dataset.path).as_posix(): problem for path, problem in others.items()}


def describe_shards(dataset: Artifact, damage: Mapping[Path, str]) -> list[dict[str, Any]]:
    """Return a row for each shard: name, episodes, rows, distribution, noise, success, and its state.

    Args:
        dataset: of whatever status; the files of an unfinished one are compared with what each shard says of
            itself.
        damage: of `find_damage`.
    """
    if dataset.is_completed:
        damaged = {path.parent: problem for path, problem in damage.items()}
        return [_row(shard, damaged.get(shard, "whole")) for shard in shard_folders(dataset)]
    shards = shards_below(dataset.file(MINARI_FOLDER), dataset.manifest.task).values()
    return [_row(shard, "whole" if is_whole(shard) else "is damaged") for shard in shards]


def _row(shard: Path, state: str) -> dict[str, Any]:
    try:
        facts = read_metadata(shard)[NAMESPACE]
        by_noise = facts.get("by_noise", {})
        described: dict[str, Any] = {
            "episodes": int(facts["episodes"]),
            "rows": int(facts["rows"]),
            "distribution": facts.get("distribution"),
            "noise": ", ".join(by_noise) or None,
            "success": facts["successes"] / facts["episodes"],
        }
    except BAD_CONTENT:
        described = {name: None for name in ("episodes", "rows", "distribution", "noise", "success")}
    return {"shard": shard.parent.name, **described, "files": state}
