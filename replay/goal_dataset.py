"""Goal-conditioned datasets in memory, whose rows also carry what the teacher would have done.

`replay.dataset_layout` says how they lie on the disk; Minari reads them as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from thousandfold.ground.errors import BAD_CONTENT
from thousandfold.ground.runs import every_goal_held
from thousandfold.replay.dataset_layout import (
    ALTERNATIVES,
    COLUMNS,
    FORMAT_VERSION,
    HOLD_STEPS,
    NAMESPACE,
    ROWS_NAME,
    STUDENT_OBSERVATION,
    SUCCEEDED,
    SUCCESS,
    dataset_id,
    file_sha256,
    find_dataset,
    read_metadata,
    shards_of,
)
from thousandfold.replay.dataset_writer import write_goal_dataset
from thousandfold.replay.goal_episode import DatasetError, DatasetStatistics, GoalEpisode
from thousandfold.replay.hdf5 import own_shape, reading

__all__ = [
    "DatasetError",
    "DatasetStatistics",
    "GoalDataset",
    "GoalEpisode",
    "concatenate_datasets",
    "dataset_id",
    "load_goal_dataset",
    "load_shards",
    "write_goal_dataset",
]


@dataclass(frozen=True)
class GoalDataset:
    """A dataset in memory, one row an action, its episodes one after the other; float32 but where noted.

    Attributes:
        observation: (rows, observation_dim), the state in which the action was taken.
        achieved_goal, desired_goal: (rows, goal_dim).
        action: (rows, action_dim).
        teacher_mean, teacher_log_std: (rows, action_dim), before the tanh.
        alternative_goal: (rows, K, goal_dim), other goals that the teacher labelled the state for.
        alternative_mean, alternative_log_std: (rows, K, action_dim), its Gaussian under them.
        episode: (rows,) int64, the number of the row's episode.
        success: (episodes,) bool.
        metadata: all of `metadata.json`; `metadata["thousandfold"]` is what `write_goal_dataset` was given.
        student_observation: (rows, its size), what a student saw in the state; None where it sees
            `observation`.
    """

    observation: np.ndarray
    achieved_goal: np.ndarray
    desired_goal: np.ndarray
    action: np.ndarray
    teacher_mean: np.ndarray
    teacher_log_std: np.ndarray
    alternative_goal: np.ndarray
    alternative_mean: np.ndarray
    alternative_log_std: np.ndarray
    episode: np.ndarray
    success: np.ndarray
    metadata: dict[str, Any]
    student_observation: np.ndarray | None = None

    @property
    def seen_by_student(self) -> np.ndarray:
        """What a student saw in each state, (rows, its observation_dim)."""
        return self.observation if self.student_observation is None else self.student_observation


def load_goal_dataset(path: Path) -> GoalDataset:
    """Read a dataset into memory; the rows of every shard are checked against their recorded hash.

    Args:
        path: the folder of a dataset, or one above it that holds no other, such as a dataset artifact's.

    Raises:
        DatasetError: no dataset or several, a damaged file, or a dataset without the teacher's Gaussian.
    """
    folder, metadata = find_dataset(Path(path))
    try:
        shards = shards_of(folder, metadata)
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise DatasetError(f"{folder} does not say what its shards are: make the dataset again.") from error
    return load_shards(shards, metadata)


def load_shards(
    shards: Sequence[Path],
    metadata: dict[str, Any] | None = None,
    *,
    known_hashes: Mapping[Path, str] | None = None,
) -> GoalDataset:
    """Read shards into memory, in the order in which they are given.

    Args:
        shards: their data folders, at least one.
        metadata: what the result says of itself; None: what the first shard does.
        known_hashes: SHA-256 of files of rows that were hashed just now, which is not done again.

    Raises:
        DatasetError: a shard is damaged.
    """
    data = concatenate_datasets([_load_shard(shard, known_hashes or {}) for shard in shards])
    return GoalDataset(**_arrays(data), metadata=data.metadata if metadata is None else metadata)


def concatenate_datasets(datasets: Sequence[GoalDataset]) -> GoalDataset:
    """Return datasets one after the other, their episodes numbered anew, with the first one's metadata.

    A row with fewer alternative goals than others is given the goal that was commanded, with its own label.

    Args:
        datasets: of one task and teacher, at least one.
    """
    if len(datasets) == 1:
        return datasets[0]
    most = max(data.alternative_goal.shape[1] for data in datasets)
    parts = [_arrays(_with_alternatives(data, most)) for data in datasets]
    first = 0
    for part in parts:
        part["episode"] = part["episode"] + first
        first += len(part["success"])
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return GoalDataset(**columns, metadata=datasets[0].metadata)


def _arrays(data: GoalDataset) -> dict[str, np.ndarray]:
    return {name: value for name, value in vars(data).items() if name != "metadata" and value is not None}


def _with_alternatives(data: GoalDataset, count: int) -> GoalDataset:
    """Return the dataset with `count` alternative goals a row."""
    missing = count - data.alternative_goal.shape[1]
    if not missing:
        return data
    sources = (data.desired_goal, data.teacher_mean, data.teacher_log_std)
    filled = {
        name: np.concatenate([getattr(data, name), np.repeat(source[:, None], missing, 1)], 1)
        for name, source in zip(ALTERNATIVES, sources, strict=True)
    }
    return GoalDataset(**_arrays(data) | filled, metadata=data.metadata)


# -- one file -------------------------------------------------------------------------------------


def _load_shard(folder: Path, known_hashes: Mapping[Path, str]) -> GoalDataset:
    """Read one file of rows. Raises DatasetError, naming it."""
    metadata, rows = read_metadata(folder), folder / ROWS_NAME
    try:
        _check_hash(rows, metadata, known_hashes.get(rows))
        with reading(rows) as file:
            return _read(file, metadata)
    except (OSError, MemoryError, *BAD_CONTENT) as error:
        reason = " ".join(str(error).split())[:200]
        raise DatasetError(
            f"{rows} is damaged or no dataset of thousandfold ({reason}): make it again with "
            "`pipeline generate-dataset`."
        ) from error


def _check_hash(rows: Path, metadata: dict[str, Any], known: str | None) -> None:
    """Raise ValueError where the rows differ from what the metadata recorded; version 1 recorded nothing."""
    recorded = metadata[NAMESPACE].get("sha256")
    if recorded is not None and (known or file_sha256(rows)) != recorded:
        raise ValueError("it differs from its recorded hash")


def _read(file: h5py.File, metadata: dict[str, Any]) -> GoalDataset:
    """Read every episode straight into the place of its rows.

    Minari's own reader takes an episode through some ten Python objects; here each column is one HDF5 call.
    """
    episodes, rows = int(metadata["total_episodes"]), int(metadata["total_steps"])
    if len(file) != episodes:
        raise ValueError(f"{len(file)} episodes, metadata.json says {episodes}")
    lengths = np.array([_open(file, i, "actions").shape[0] for i in range(episodes)], np.int64)
    if lengths.min() < 1 or lengths.sum() != rows:
        raise ValueError(f"{lengths.sum()} rows, metadata.json says {rows}")
    columns = {
        name: _read_column(file, place, lengths + extra, np.float32)
        for name, (place, extra) in COLUMNS.items()
        if (name not in ALTERNATIVES or _has_alternatives(metadata))
        and (name != STUDENT_OBSERVATION or STUDENT_OBSERVATION in metadata[NAMESPACE])
    }
    success = _read_column(file, SUCCESS[0], lengths + SUCCESS[1], np.bool_)
    commanded = columns["desired_goal"]
    stops = np.cumsum(lengths + 1)
    final = np.zeros(rows + episodes, bool)
    final[stops - 1] = True
    for name, column in columns.items():
        columns[name] = column[~final] if COLUMNS[name][1] else column
        if not np.isfinite(columns[name]).all():
            raise ValueError(f"{name} holds NaN or infinity")
    first = np.concatenate([[0], stops[:-1]])
    success[first] = False  # a start within the success region is no success of the episode's
    succeeded = np.logical_or.reduceat(success, first)
    holds = [int(file[f"episode_{index}"].attrs.get(HOLD_STEPS, 1)) for index in range(episodes)]
    changes = np.concatenate([[False], (commanded[1:] != commanded[:-1]).any(1)])
    changes[first] = False
    several = np.logical_or.reduceat(changes, first)
    for index in np.flatnonzero((np.array(holds) > 1) | several).tolist():
        rows = slice(first[index] + 1, stops[index])
        succeeded[index] = every_goal_held(success[rows], commanded[rows], holds[index])
    for index in range(episodes):
        if (told := file[f"episode_{index}"].attrs.get(SUCCEEDED)) is not None:
            succeeded[index] = bool(told)
    return GoalDataset(
        **_no_alternatives(columns) | columns,
        episode=np.repeat(np.arange(episodes), lengths),
        success=succeeded,
        metadata=metadata,
    )


def _has_alternatives(metadata: dict[str, Any]) -> bool:
    return int(metadata[NAMESPACE].get("format_version", FORMAT_VERSION)) > 1


def _no_alternatives(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the columns of alternatives where there is none."""
    sources = ("desired_goal", "teacher_mean", "teacher_log_std")
    return {
        name: np.zeros((len(columns[source]), 0, columns[source].shape[1]), np.float32)
        for name, source in zip(ALTERNATIVES, sources, strict=True)
    }


def _read_column(file: h5py.File, place: str, lengths: np.ndarray, dtype: type) -> np.ndarray:
    """Return a column of all episodes, (sum of lengths, ...)."""
    _, *shape = own_shape(_open(file, 0, place), f"episode_0/{place}")
    column = np.empty((int(lengths.sum()), *shape), dtype)
    start = 0
    for index, length in enumerate(lengths.tolist()):
        data = _open(file, index, place)
        found, wanted = own_shape(data, f"episode_{index}/{place}"), (length, *shape)
        # HDF5 writes as many numbers as the file says: a wrong shape would run over the end of the column.
        if found != wanted:
            raise ValueError(f"episode_{index}/{place} has shape {found}, not {wanted}")
        if column.size:
            data.read(h5py.h5s.ALL, h5py.h5s.ALL, column[start : start + length])
        start += length
    return column


def _open(file: h5py.File, episode: int, place: str) -> h5py.h5d.DatasetID:
    return h5py.h5d.open(file.id, f"episode_{episode}/{place}".encode())
