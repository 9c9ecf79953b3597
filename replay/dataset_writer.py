"""Writes datasets: shard by shard as the episodes come, then the view of them all.

A shard, and the view, is written under a temporary name and renamed once it is whole and on the disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from gymnasium.envs.registration import EnvSpec

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.goal_env import environment_arguments, goal_spaces
from thousandfold.envs.task_names import environment_id
from thousandfold.ground.errors import BAD_CONTENT
from thousandfold.replay.dataset_layout import (
    COLUMNS,
    FORMAT_VERSION,
    HOLD_STEPS,
    METADATA_NAME,
    NAMESPACE,
    ROWS_NAME,
    STUDENT_OBSERVATION,
    SUCCEEDED,
    SUCCESS,
    TEMPORARY_PREFIX,
    dataset_id,
    file_sha256,
    read_metadata,
    shard_id,
    shards_below,
)
from thousandfold.replay.goal_episode import DatasetError, DatasetStatistics, GoalEpisode
from thousandfold.replay.hdf5 import writing

_SHARD_EPISODES = 256


def write_goal_dataset(
    root: Path,
    task: CompiledTask,
    episodes: Iterable[GoalEpisode],
    metadata: Mapping[str, Any],
    task_file: str | None = None,
) -> DatasetStatistics:
    """Write episodes, as they come, to a dataset of `task` below `root`; its view appears once it is whole.

    Args:
        root: what MINARI_DATASETS_PATH will be set to.
        task: gives the id, the spaces and the environment to recover.
        episodes: at least one; the same episodes give the same bytes.
        metadata: JSON-able facts for every `metadata.json`, kept under "thousandfold" beside the statistics.
        task_file: where a user's task lies, for the environment to recover; None: where it was read.

    Raises:
        DatasetError: the dataset is already there, or there is no episode.
    """
    final = Path(root) / dataset_id(task.name)
    if final.exists() or shards_below(root, task.name):
        raise DatasetError(f"{final} is already there: a dataset is never changed, write it elsewhere.")
    try:
        coming, index = iter(episodes), 0
        while shard := list(islice(coming, _SHARD_EPISODES)):
            write_shard(root, task, index, shard, metadata, task_file)
            index += 1
        return write_view(root, task, metadata, task_file)
    except BaseException:
        for folder in shards_below(root, task.name).values():
            shutil.rmtree(folder.parent, ignore_errors=True)
        raise


def write_shard(
    root: Path,
    task: CompiledTask,
    index: int,
    episodes: Sequence[GoalEpisode],
    metadata: Mapping[str, Any],
    task_file: str | None = None,
) -> DatasetStatistics:
    """Write one shard; arguments as of `write_goal_dataset`, `index` being its number.

    Raises:
        DatasetError: the shard is already there, or there is no episode.
    """
    name = shard_id(task.name, index)
    if (Path(root) / name).exists():
        raise DatasetError(f"{Path(root) / name} is already there: a shard is never changed.")
    if not episodes:
        raise DatasetError(f"{Path(root) / name}: there is no episode to write.")
    with _renamed_when_whole(Path(root) / name) as folder:
        statistics = _write_rows(folder / ROWS_NAME, episodes)
        facts = {**metadata, "sha256": file_sha256(folder / ROWS_NAME), **vars(statistics)}
        _write_metadata(folder, task, name, facts, task_file)
    return statistics


def adopt_shard(root: Path, task_name: str, index: int, shard: Path) -> None:
    """Take a shard of another dataset over as number `index`; its rows are linked, or copied if they cannot.

    Args:
        root, index: as of `write_shard`.
        task_name: of the task of both datasets.
        shard: the other's data folder.

    Raises:
        DatasetError: the shard is damaged, or one of that number is already there.
    """
    name = shard_id(task_name, index)
    if (Path(root) / name).exists():
        raise DatasetError(f"{Path(root) / name} is already there: a shard is never changed.")
    metadata = read_metadata(shard) | {"dataset_id": name}
    with _renamed_when_whole(Path(root) / name) as folder:
        try:
            os.link(shard / ROWS_NAME, folder / ROWS_NAME)
        except OSError:  # another file system, or one without links
            shutil.copyfile(shard / ROWS_NAME, folder / ROWS_NAME)
        (folder / METADATA_NAME).write_text(json.dumps(metadata), encoding="utf-8")


def write_view(
    root: Path, task: CompiledTask, metadata: Mapping[str, Any], task_file: str | None = None
) -> DatasetStatistics:
    """Write the view of the shards that lie below `root`, in the place of one that is there.

    Minari reads the view as one dataset: each of its episodes is a relative external link into a shard.

    Args:
        root, task, metadata, task_file: as of `write_goal_dataset`.

    Raises:
        DatasetError: there is no shard, or the metadata of one is damaged.
    """
    final, statistics, shards = Path(root) / dataset_id(task.name), DatasetStatistics(), []
    found = shards_below(root, task.name)
    if not found:
        raise DatasetError(f"{final}: there is no episode to write.")
    for index, folder in found.items():
        own = _statistics_of(folder)
        shards.append({"id": shard_id(task.name, index), "episodes": own.episodes, "rows": own.rows})
        statistics.merge(own)
    if final.exists():
        shutil.rmtree(final)
    with _renamed_when_whole(final) as folder:
        with writing(folder / ROWS_NAME) as file:
            _link_episodes(file, final / "data", Path(root), shards)
        facts = {**metadata, "shards": shards, **vars(statistics)}
        _write_metadata(folder, task, dataset_id(task.name), facts, task_file)
    return statistics


def _statistics_of(folder: Path) -> DatasetStatistics:
    try:
        return DatasetStatistics.from_metadata(read_metadata(folder)[NAMESPACE])
    except BAD_CONTENT as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{folder / METADATA_NAME} is no metadata of a shard.") from error


def _link_episodes(file: h5py.File, view: Path, root: Path, shards: Sequence[Mapping[str, Any]]) -> None:
    """Link every episode of the shards under a number of its own."""
    count = 0
    for shard in shards:
        rows = Path(os.path.relpath(root / shard["id"] / "data" / ROWS_NAME, view)).as_posix()
        for index in range(shard["episodes"]):
            file[f"episode_{count}"] = h5py.ExternalLink(rows, f"/episode_{index}")
            count += 1


@contextlib.contextmanager
def _renamed_when_whole(final: Path) -> Iterator[Path]:
    """Yield the data folder of a temporary dataset beside `final`, which takes that name if all goes well."""
    temporary = final.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}-{final.name}")
    data = temporary / "data"
    data.mkdir(parents=True)
    try:
        yield data
        for path in (data / METADATA_NAME, data / ROWS_NAME, data):
            _sync(path)
        temporary.rename(final)
        _sync(final.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(final)  # a write that fails does not say where; see `atomic_file`
        raise


def remove_leftovers(root: Path) -> None:
    """Remove what interrupted writes have left below `root`, while nobody writes there."""
    for folder in list(Path(root).rglob(f"{TEMPORARY_PREFIX}*")):
        shutil.rmtree(folder, ignore_errors=True)


def _write_metadata(
    folder: Path, task: CompiledTask, name: str, facts: Mapping[str, Any], task_file: str | None
) -> None:
    """Write the metadata of the rows in `folder`: Minari's keys, and `facts` under ours."""
    import minari
    from minari.serialization import serialize_space

    reference = task_file or task.spec.reference
    observation_space, action_space = goal_spaces(task)
    own: dict[str, Any] = {"task_changes": dict(task.spec.changes)} if task.spec.changes else {}
    if task.student_view is not task:
        own[STUDENT_OBSERVATION] = task.student_view.observation_dim
    metadata = {
        "total_episodes": facts["episodes"],
        "total_steps": facts["rows"],
        "data_format": "hdf5",
        "jpeg_encoding": True,
        "observation_space": serialize_space(observation_space),
        "action_space": serialize_space(action_space),
        "env_spec": _environment_spec(task, reference, "training").to_json(),
        "eval_env_spec": _environment_spec(task, reference, "evaluation").to_json(),
        "dataset_size": round((folder / ROWS_NAME).stat().st_size / 1e6, 1),
        "dataset_id": name,
        "minari_version": minari.__version__,
        "algorithm_name": "contrastive RL teacher",
        "description": f"Episodes of a goal-reaching teacher on {task.name}, labelled with its Gaussian.",
        NAMESPACE: {"format_version": FORMAT_VERSION, **own, **facts},
    }
    (folder / METADATA_NAME).write_text(json.dumps(metadata), encoding="utf-8")


def _environment_spec(task: CompiledTask, reference: str, distribution: str) -> EnvSpec:
    """Return what Minari makes the environment from, `import thousandfold` or not."""
    kwargs = {"task": reference, "distribution": distribution, **environment_arguments(task.spec)}
    return EnvSpec(
        environment_id(task.name),
        entry_point="thousandfold.envs.goal_env:GoalEnv",
        vector_entry_point="thousandfold.envs.goal_env:GoalVectorEnv",
        max_episode_steps=task.spec.episode_steps,
        kwargs=kwargs,
    )


def _write_rows(path: Path, episodes: Iterable[GoalEpisode]) -> DatasetStatistics:
    """Write the episodes in Minari's layout and return what they are.

    Minari's own writer makes every column resizable, which takes twice the time and three times the space.
    """
    statistics = DatasetStatistics()
    with writing(path) as file:
        for index, episode in enumerate(episodes):
            group = file.create_group(f"episode_{index}")
            group.attrs["id"] = index
            group.attrs["total_steps"] = len(episode.action)
            group.attrs["options/distribution"] = episode.distribution
            group.attrs["options/action_noise"] = episode.action_noise
            if episode.hold_steps > 1:
                group.attrs[HOLD_STEPS] = episode.hold_steps
                if episode.desired_goal.ndim == 2:  # what the rows alone do not tell
                    group.attrs[SUCCEEDED] = episode.succeeded
            for place, column in _columns_of(episode).items():
                group.create_dataset(place, data=column)
            statistics.add(episode)
    return statistics


def _columns_of(episode: GoalEpisode) -> dict[str, np.ndarray]:
    """Return an episode's columns by their place."""
    steps = len(episode.action)
    terminations, truncations = np.zeros(steps, bool), np.zeros(steps, bool)
    terminations[-1], truncations[-1] = episode.terminated, episode.truncated
    found = {place: getattr(episode, name) for name, (place, _) in COLUMNS.items()}
    columns = {place: column for place, column in found.items() if column is not None}
    return columns | {
        COLUMNS["desired_goal"][0]: np.broadcast_to(episode.desired_goal, episode.achieved_goal.shape),
        SUCCESS[0]: episode.success,
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
