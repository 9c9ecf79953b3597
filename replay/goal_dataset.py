"""Goal-conditioned Minari datasets whose rows also carry what the teacher would have done.

    <root>/                              set MINARI_DATASETS_PATH to this, and
        thousandfold/point_u_maze-v0/    minari.load_dataset("thousandfold/point_u_maze-v0") reads it
            data/
                metadata.json            Minari's keys; ours lie under "thousandfold"
                main_data.hdf5           episode_0, episode_1, ...

An episode of T actions has T + 1 rows of observations and infos: row 0 is the state at the reset, row t + 1
the state after action t. ``infos`` holds ``teacher_mean`` and ``teacher_log_std``, the teacher's Gaussian
before the tanh at the state of the same row (the last row labels the state after the last action), and
``is_success``, as the environments report it. The reward of action t is ``is_success[t + 1] − 1``.

A dataset is written under a temporary name and renamed once it is whole and on the disk.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from gymnasium.envs.registration import EnvSpec

from envs.compiled_task import CompiledTask
from envs.goal_env import goal_spaces
from envs.registry import environment_id

FORMAT_VERSION = 1
NAMESPACE = "thousandfold"

_TEMPORARY_PREFIX = ".tmp-"
_METADATA_NAME, _ROWS_NAME = "metadata.json", "main_data.hdf5"
# Place of each column in an episode, and how many rows it has beyond the episode's actions.
_COLUMNS = {
    "observation": ("observations/observation", 1),
    "achieved_goal": ("observations/achieved_goal", 1),
    "desired_goal": ("observations/desired_goal", 1),
    "action": ("actions", 0),
    "teacher_mean": ("infos/teacher_mean", 1),
    "teacher_log_std": ("infos/teacher_log_std", 1),
}
_SUCCESS = ("infos/is_success", 1)


class DatasetError(ValueError):
    """A dataset that is damaged, foreign, empty or already there. The message is one line naming the file."""


@dataclass(frozen=True)
class GoalEpisode:
    """An episode of T actions, T at least 1.

    Attributes:
        observation: (T + 1, observation_dim), float32, as are all arrays but `success`.
        achieved_goal: (T + 1, goal_dim).
        desired_goal: (goal_dim,), commanded throughout.
        action: (T, action_dim) in [−1, 1], as executed.
        teacher_mean, teacher_log_std: (T + 1, action_dim), before the tanh, at every state.
        success: (T + 1,) bool, the state lies within the success region.
        terminated, truncated: how it ended; an early end, the last of its steps, or both.
        distribution: the episode distribution that start and goal were drawn from.
        action_noise: standard deviation of the noise on its actions; 0 for a clean episode.
    """

    observation: np.ndarray
    achieved_goal: np.ndarray
    desired_goal: np.ndarray
    action: np.ndarray
    teacher_mean: np.ndarray
    teacher_log_std: np.ndarray
    success: np.ndarray
    terminated: bool
    truncated: bool
    distribution: str
    action_noise: float

    @property
    def succeeded(self) -> bool:
        """Whether any action led into the success region."""
        return bool(self.success[1:].any())


@dataclass
class DatasetStatistics:
    """What a dataset holds.

    Attributes:
        episodes, rows: episodes and actions in it.
        successes: episodes that succeeded.
        clean_episodes, clean_successes: the same of the episodes without action noise.
    """

    episodes: int = 0
    rows: int = 0
    successes: int = 0
    clean_episodes: int = 0
    clean_successes: int = 0

    def add(self, episode: GoalEpisode) -> None:
        """Count one episode."""
        clean = episode.action_noise == 0.0
        self.episodes += 1
        self.rows += len(episode.action)
        self.successes += episode.succeeded
        self.clean_episodes += clean
        self.clean_successes += clean and episode.succeeded


@dataclass(frozen=True)
class GoalDataset:
    """A dataset in memory, one row an action, its episodes one after the other; float32 but where noted.

    Attributes:
        observation: (rows, observation_dim), the state in which the action was taken.
        achieved_goal, desired_goal: (rows, goal_dim).
        action: (rows, action_dim).
        teacher_mean, teacher_log_std: (rows, action_dim), before the tanh.
        episode: (rows,) int64, the number of the row's episode.
        success: (episodes,) bool.
        metadata: all of `metadata.json`; `metadata["thousandfold"]` is what `write_goal_dataset` was given.
    """

    observation: np.ndarray
    achieved_goal: np.ndarray
    desired_goal: np.ndarray
    action: np.ndarray
    teacher_mean: np.ndarray
    teacher_log_std: np.ndarray
    episode: np.ndarray
    success: np.ndarray
    metadata: dict[str, Any]


# -- writing --------------------------------------------------------------------------------------


def dataset_id(task_name: str) -> str:
    """Return the Minari id of a task's dataset; what Minari does not take in an id becomes ``_``."""
    return f"{NAMESPACE}/{re.sub(r'[^-_0-9A-Za-z]', '_', task_name)}-v0"


def write_goal_dataset(
    root: Path,
    task: CompiledTask,
    episodes: Iterable[GoalEpisode],
    metadata: Mapping[str, Any],
    task_file: str | None = None,
) -> DatasetStatistics:
    """Write episodes, as they come, to the dataset of `task` below `root`; it appears once it is whole.

    Args:
        root: what MINARI_DATASETS_PATH will be set to.
        task: gives the id, the spaces and the environment to recover.
        episodes: at least one; the same episodes give the same bytes.
        metadata: JSON-able facts for `metadata.json`, kept under "thousandfold" beside the statistics.
        task_file: where a user's task lies, for the environment to recover; None: where it was read.

    Raises:
        DatasetError: the dataset is already there, or there is no episode.
    """
    final = Path(root) / dataset_id(task.name)
    if final.exists():
        raise DatasetError(f"{final} is already there: a dataset is never changed, write it elsewhere.")
    temporary = final.with_name(f"{_TEMPORARY_PREFIX}{secrets.token_hex(4)}-{final.name}")
    temporary.mkdir(parents=True)
    try:
        reference = task_file or task.task.reference
        statistics = _write(temporary / "data", task, episodes, metadata, reference)
        if not statistics.episodes:
            raise DatasetError(f"{final}: there is no episode to write.")
        for path in (temporary / "data" / _METADATA_NAME, temporary / "data" / _ROWS_NAME):
            _sync(path)
        _sync(temporary / "data")
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(final.parent)
    return statistics


def _write(
    folder: Path,
    task: CompiledTask,
    episodes: Iterable[GoalEpisode],
    metadata: Mapping[str, Any],
    reference: str,
) -> DatasetStatistics:
    import minari
    from minari.dataset.minari_storage import MinariStorage

    observation_space, action_space = goal_spaces(task)
    spec = _environment_spec(task.name, reference, "training")
    storage = MinariStorage.new(folder, observation_space, action_space, spec, data_format="hdf5")
    statistics = _write_rows(folder / _ROWS_NAME, episodes)
    storage.update_metadata(
        {
            "total_episodes": statistics.episodes,
            "total_steps": statistics.rows,
            "dataset_size": storage.get_size(),
            "dataset_id": dataset_id(task.name),
            "minari_version": minari.__version__,
            "algorithm_name": "contrastive RL teacher",
            "description": f"Episodes of a goal-reaching teacher on {task.name}, labelled with its Gaussian.",
            "eval_env_spec": _environment_spec(task.name, reference, "evaluation").to_json(),
            NAMESPACE: {"format_version": FORMAT_VERSION, **metadata, **vars(statistics)},
        }
    )
    return statistics


def _environment_spec(task_name: str, reference: str, distribution: str) -> EnvSpec:
    """Return what Minari makes the environment from, `import thousandfold` or not."""
    return EnvSpec(
        environment_id(task_name),
        entry_point="envs.goal_env:GoalEnv",
        vector_entry_point="envs.goal_env:GoalVectorEnv",
        kwargs={"task": reference, "distribution": distribution},
    )


def _write_rows(path: Path, episodes: Iterable[GoalEpisode]) -> DatasetStatistics:
    """Write the episodes in Minari's layout and return what they are.

    Minari's own writer makes every column resizable, which takes twice the time and three times the space.
    """
    statistics = DatasetStatistics()
    with h5py.File(path, "w", track_order=True) as file:
        for index, episode in enumerate(episodes):
            group = file.create_group(f"episode_{index}")
            group.attrs["id"] = index
            group.attrs["total_steps"] = len(episode.action)
            group.attrs["options/distribution"] = episode.distribution
            group.attrs["options/action_noise"] = episode.action_noise
            for place, column in _columns_of(episode).items():
                group.create_dataset(place, data=column)
            statistics.add(episode)
    return statistics


def _columns_of(episode: GoalEpisode) -> dict[str, np.ndarray]:
    """Return an episode's columns by their place."""
    steps = len(episode.action)
    terminations, truncations = np.zeros(steps, bool), np.zeros(steps, bool)
    terminations[-1], truncations[-1] = episode.terminated, episode.truncated
    columns = {place: getattr(episode, name) for name, (place, _) in _COLUMNS.items()}
    return columns | {
        _COLUMNS["desired_goal"][0]: np.tile(episode.desired_goal, (steps + 1, 1)),
        _SUCCESS[0]: episode.success,
        "rewards": episode.success[1:].astype(np.float64) - 1.0,
        "terminations": terminations,
        "truncations": truncations,
    }


def _sync(path: Path) -> None:
    """Force a file, or a folder's entries, to the disk; only POSIX lets a folder be opened."""
    if os.name != "posix" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- reading --------------------------------------------------------------------------------------


def load_goal_dataset(path: Path) -> GoalDataset:
    """Read a dataset into memory.

    Args:
        path: the folder of a dataset, or one above it that holds no other, such as a dataset artifact's.

    Raises:
        DatasetError: no dataset or several, a damaged file, or a dataset without the teacher's Gaussian.
    """
    folder = _find(Path(path))
    metadata = _read_metadata(folder / _METADATA_NAME)
    rows = folder / _ROWS_NAME
    try:
        with h5py.File(rows, "r") as file:
            return _read(file, metadata)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DatasetError(
            f"{rows} is damaged or no dataset of thousandfold ({reason}): make it again with "
            "`pipeline generate-dataset`."
        ) from error


def _find(path: Path) -> Path:
    """Return the one folder at or below `path` that holds a dataset's metadata."""
    found = [
        metadata.parent
        for metadata in sorted(path.rglob(_METADATA_NAME))
        if not any(part.startswith(".") for part in metadata.relative_to(path).parts)
    ]
    if not found:
        raise DatasetError(f"{path} holds no Minari dataset: make one with `pipeline generate-dataset`.")
    if len(found) > 1:
        raise DatasetError(f"{path} holds {len(found)} Minari datasets: name one of their folders.")
    return found[0]


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
        if int(metadata["total_episodes"]) < 1 or int(metadata["total_steps"]) < 1:
            raise DatasetError(f"{path}: the dataset is empty.")
        return metadata
    except DatasetError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{path} is damaged or no metadata of Minari: make the dataset again with "
            "`pipeline generate-dataset`."
        ) from error


def _read(file: h5py.File, metadata: dict[str, Any]) -> GoalDataset:
    """Read every episode straight into the place of its rows.

    Minari's own reader takes an episode through some ten Python objects; here each column is one HDF5 call.
    """
    episodes, rows = int(metadata["total_episodes"]), int(metadata["total_steps"])
    if len(file) != episodes:
        raise ValueError(f"{len(file)} episodes, {_METADATA_NAME} says {episodes}")
    lengths = np.array([_open(file, i, "actions").shape[0] for i in range(episodes)], np.int64)
    if lengths.min() < 1 or lengths.sum() != rows:
        raise ValueError(f"{lengths.sum()} rows, {_METADATA_NAME} says {rows}")
    columns = {
        name: _read_column(file, place, lengths + extra, np.float32)
        for name, (place, extra) in _COLUMNS.items()
    }
    success = _read_column(file, _SUCCESS[0], lengths + _SUCCESS[1], np.bool_)
    stops = np.cumsum(lengths + 1)
    final = np.zeros(rows + episodes, bool)
    final[stops - 1] = True
    for name, (_, extra) in _COLUMNS.items():
        columns[name] = columns[name][~final] if extra else columns[name]
        if not np.isfinite(columns[name]).all():
            raise ValueError(f"{name} holds NaN or infinity")
    first = np.concatenate([[0], stops[:-1]])
    success[first] = False  # a start within the success region is no success of the episode's
    return GoalDataset(
        **columns,
        episode=np.repeat(np.arange(episodes), lengths),
        success=np.logical_or.reduceat(success, first),
        metadata=metadata,
    )


def _read_column(file: h5py.File, place: str, lengths: np.ndarray, dtype: type) -> np.ndarray:
    """Return a column of all episodes, (sum of lengths, ...)."""
    shape = _open(file, 0, place).shape[1:]
    column = np.empty((int(lengths.sum()), *shape), dtype)
    start = 0
    for index, length in enumerate(lengths.tolist()):
        data = _open(file, index, place)
        # HDF5 writes as many numbers as the file says: a wrong shape would run over the end of the column.
        if data.shape != (length, *shape):
            raise ValueError(f"episode_{index}/{place} has shape {data.shape}, not {(length, *shape)}")
        data.read(h5py.h5s.ALL, h5py.h5s.ALL, column[start : start + length])
        start += length
    return column


def _open(file: h5py.File, episode: int, place: str) -> h5py.h5d.DatasetID:
    return h5py.h5d.open(file.id, f"episode_{episode}/{place}".encode())
