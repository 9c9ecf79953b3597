"""Where the parts of a dataset lie: shards that are datasets of Minari by themselves, and a view of them all.

    <root>/                                  set MINARI_DATASETS_PATH to this, and
        thousandfold/point_u_maze-v0/        minari.load_dataset("thousandfold/point_u_maze-v0") reads all
            data/
                metadata.json                Minari's keys; ours lie under "thousandfold"
                main_data.hdf5               episode_0, episode_1, ...: links to the episodes of the shards
        thousandfold/point_u_maze/
            shard_00000-v0/                  "thousandfold/point_u_maze/shard_00000-v0" reads one shard
                data/
                    metadata.json            the hash of the file beside it, and what is in it
                    main_data.hdf5           episode_0, episode_1, ...
            shard_00001-v0/
                ...

An episode of T actions has T + 1 rows of observations and infos: row 0 is the state at the reset, row t + 1
the state after action t, each with the goal that was commanded in it. ``infos`` holds ``teacher_mean`` and
``teacher_log_std``, the teacher's Gaussian before the tanh at the state of the same row (the last row labels
the state after the last action);
``alternative_goal``, ``alternative_mean`` and ``alternative_log_std``, K other goals for the state and the
teacher's Gaussian under each; ``student_observation``, where the task says that a student sees another; and
``is_success``, as the environments report it. The reward of action t is ``is_success[t + 1] − 1``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from thousandfold.ground.errors import BAD_CONTENT
from thousandfold.ground.files import file_sha256
from thousandfold.replay.goal_episode import DatasetError

FORMAT_VERSION = 2
"""1: one file without shards and without alternative goals."""
NAMESPACE = "thousandfold"
TEMPORARY_PREFIX = ".tmp-"
METADATA_NAME, ROWS_NAME = "metadata.json", "main_data.hdf5"
# Place of each column in an episode, and how many rows it has beyond the episode's actions.
COLUMNS = {
    "observation": ("observations/observation", 1),
    "achieved_goal": ("observations/achieved_goal", 1),
    "desired_goal": ("observations/desired_goal", 1),
    "action": ("actions", 0),
    "teacher_mean": ("infos/teacher_mean", 1),
    "teacher_log_std": ("infos/teacher_log_std", 1),
    "alternative_goal": ("infos/alternative_goal", 1),
    "alternative_mean": ("infos/alternative_mean", 1),
    "alternative_log_std": ("infos/alternative_log_std", 1),
    "student_observation": ("infos/student_observation", 1),
}
ALTERNATIVES = tuple(name for name in COLUMNS if name.startswith("alternative_"))
STUDENT_OBSERVATION = "student_observation"
"""the one column that a dataset may lack; its metadata says by this key how many numbers it has"""
SUCCESS = ("infos/is_success", 1)
HOLD_STEPS = "options/hold_steps"
SUCCEEDED = "options/succeeded"
"""an episode's attribute: states in a row that make it a success; 1 where there is none"""

_SHARD = re.compile(r"shard_(\d{5,})-v0")
_ID = re.compile(r"[-\w]+(/[-\w]+)+")


def dataset_id(task_name: str) -> str:
    """Return the Minari id of a task's dataset; what Minari does not take in an id becomes ``_``."""
    return f"{_stem(task_name)}-v0"


def shard_id(task_name: str, index: int) -> str:
    """Return the Minari id of a shard of a task's dataset."""
    return f"{_stem(task_name)}/shard_{index:05d}-v0"


def _stem(task_name: str) -> str:
    return f"{NAMESPACE}/{re.sub(r'[^-_0-9A-Za-z]', '_', task_name)}"


def shards_below(root: Path, task_name: str) -> dict[int, Path]:
    """Return the data folder of every shard of a task's dataset by its number, in order."""
    found = {}
    for folder in (Path(root) / _stem(task_name)).glob("shard_*-v0"):
        if match := _SHARD.fullmatch(folder.name):
            found[int(match[1])] = folder / "data"
    return dict(sorted(found.items()))


def find_dataset(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return data folder and metadata of the one dataset at or below `path`; shards count where no view is.

    Raises:
        DatasetError: there is none, there are several, or the metadata is damaged.
    """
    path = Path(path)
    found = [
        metadata.parent
        for metadata in sorted(path.rglob(METADATA_NAME))
        if not any(part.startswith(".") for part in metadata.relative_to(path).parts)
    ]
    found = [folder for folder in found if not _SHARD.fullmatch(folder.parent.name)] or found
    if not found:
        raise DatasetError(f"{path} holds no Minari dataset: make one with `pipeline generate-dataset`.")
    if len(found) > 1:
        raise DatasetError(f"{path} holds {len(found)} Minari datasets: name one of their folders.")
    return found[0], read_metadata(found[0])


def shards_of(folder: Path, metadata: dict[str, Any]) -> list[Path]:
    """Return the data folders that hold a dataset's episodes, in order: its shards, or its own.

    Args:
        folder: the dataset's data folder.
        metadata: what it says of itself.

    Raises:
        DatasetError: it names a shard that would lie elsewhere.
    """
    shards = metadata.get(NAMESPACE, {}).get("shards")
    if shards is None:
        return [folder]
    for shard in shards:
        if not _ID.fullmatch(shard["id"]):
            raise DatasetError(f"{folder / METADATA_NAME} names {shard['id']!r}, which is no shard of it.")
    root = folder.resolve().parents[2]
    return [root / shard["id"] / "data" for shard in shards]


def read_metadata(folder: Path) -> dict[str, Any]:
    """Return the metadata in a data folder. Raises DatasetError: it is damaged, or the dataset is empty."""
    path = Path(folder) / METADATA_NAME
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
        if int(metadata["total_episodes"]) < 1 or int(metadata["total_steps"]) < 1:
            raise DatasetError(f"{path}: the dataset is empty.")
        return metadata
    except DatasetError:
        raise
    except (OSError, *BAD_CONTENT) as error:
        raise DatasetError(
            f"{path} is damaged or no metadata of Minari: make the dataset again with "
            "`pipeline generate-dataset`."
        ) from error


def is_whole(folder: Path) -> bool:
    """Tell whether the rows of a shard are those that its metadata speaks of."""
    try:
        recorded = read_metadata(folder)[NAMESPACE]["sha256"]
        return file_sha256(folder / ROWS_NAME) == recorded
    except (OSError, *BAD_CONTENT):
        return False
