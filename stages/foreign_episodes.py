"""Episodes of datasets that others have made: Minari's, and OGBench's files.

An OGBench-style ``.npz`` holds ``observations`` (n, observation_dim), ``actions`` (n, action_dim) and
``terminals`` (n,), all episodes one after the other. With ``next_observations`` each row is a transition, and
a terminal one is an episode's last; without, a terminal row is an episode's final observation, whose action
was never taken (Park et al. 2024, arXiv 2410.20092).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.errors import DamagedFileError, UserError
from replay.dataset_layout import METADATA_NAME

_GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")


@dataclass(frozen=True)
class ForeignEpisode:
    """An episode of T actions, float32.

    Attributes:
        observation: (T + 1, observation_dim).
        achieved_goal: (T + 1, goal_dim).
        desired_goal: (T + 1, goal_dim), what was commanded; None where that is not known.
        action: (T, action_dim).
        terminated: it ended before its time.
    """

    observation: np.ndarray
    achieved_goal: np.ndarray
    desired_goal: np.ndarray | None
    action: np.ndarray
    terminated: bool


def read_foreign(source: str, goal_columns: Sequence[int] = ()) -> Iterator[ForeignEpisode]:
    """Yield the episodes of an ``.npz`` file, of a Minari dataset's folder, or of one by its id.

    Args:
        source: path or id.
        goal_columns: which numbers of an observation are the achieved goal, where it is no dictionary.

    Raises:
        UserError: there is no such dataset, it is damaged, or it does not say what its achieved goals are.
    """
    path = Path(source).expanduser()
    if path.suffix == ".npz":
        return _read_npz(path, goal_columns)
    return _read_minari(source, path, goal_columns)


# -- OGBench --------------------------------------------------------------------------------------


def _read_npz(path: Path, goal_columns: Sequence[int]) -> Iterator[ForeignEpisode]:
    columns = _load_npz(path)
    observations, actions = columns["observations"], columns["actions"]
    stops = np.flatnonzero(columns["terminals"]) + 1
    if not len(stops) or stops[-1] < len(actions):
        stops = np.append(stops, len(actions))
    following = columns.get("next_observations")
    start = 0
    for stop in stops.tolist():
        observation, action = observations[start:stop], actions[start:stop]
        if following is not None:
            observation = np.concatenate([observation, following[stop - 1 : stop]])
        else:
            action = action[:-1]
        start = stop
        if len(action):
            achieved = _goal_of(observation, goal_columns, str(path))
            yield ForeignEpisode(observation, achieved, None, action, terminated=False)


def _load_npz(path: Path) -> dict[str, np.ndarray]:
    """Return the columns of a file, float32, all as long."""
    names = ("observations", "actions", "terminals", "next_observations")
    if path.is_file() and not zipfile.is_zipfile(path):
        raise DamagedFileError(f"{path} is damaged or no .npz file of arrays: name another.")
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = {name: np.asarray(file[name], np.float32) for name in names if name in file.files}
    except FileNotFoundError:
        raise UserError(f"{path} is not there: name an .npz file or a Minari dataset.") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:200]
        if "allow_pickle" in reason:  # which is no advice to give
            raise DamagedFileError(
                f"{path} holds Python objects, which are not read: save plain arrays of numbers."
            ) from None
        raise DamagedFileError(f"{path} is damaged or no .npz file of arrays ({reason}).") from None
    missing = [name for name in names[:3] if name not in columns]
    if missing:
        raise UserError(f"{path} has no {', '.join(missing)}: it is no goal-conditioned dataset of OGBench.")
    lengths = {name: len(column) for name, column in columns.items()}
    flat = [name for name in columns if name != "terminals" and columns[name].ndim != 2]
    if flat or len(set(lengths.values())) > 1:
        raise UserError(f"{path}: its columns must be (rows, numbers), all as long, and are {lengths}.")
    return columns


def _goal_of(observation: np.ndarray, goal_columns: Sequence[int], source: str) -> np.ndarray:
    """Return the achieved goals (rows, goal_dim) in observations (rows, observation_dim)."""
    if not goal_columns:
        raise UserError(f"{source} does not say what its achieved goals are: give --goal-columns, as in 0,1.")
    if max(goal_columns) >= observation.shape[1] or min(goal_columns) < 0:
        shown = ",".join(map(str, goal_columns))
        size = observation.shape[1]
        raise UserError(f"--goal-columns {shown}: observations of {source} have {size} numbers.")
    return observation[:, list(goal_columns)]


# -- Minari ---------------------------------------------------------------------------------------


def _read_minari(source: str, path: Path, goal_columns: Sequence[int]) -> Iterator[ForeignEpisode]:
    dataset = _open_minari(source, path)
    if not dataset.total_episodes:
        raise UserError(f"{source} is an empty Minari dataset: there is no episode to import.")
    try:
        for episode in dataset.iterate_episodes():
            yield _from_minari(episode, goal_columns, source)
    except (OSError, ValueError, KeyError, TypeError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedFileError(f"{source} is damaged ({reason}).") from error


def _open_minari(source: str, path: Path) -> Any:
    """Return a `minari.MinariDataset`, opened by its folder or its id."""
    import minari

    folder = next((f for f in (path, path / "data") if (f / METADATA_NAME).is_file()), None)
    try:
        return minari.load_dataset(source) if folder is None else minari.MinariDataset(folder)
    except FileNotFoundError:
        raise UserError(
            f"{source} is neither an .npz file, nor a folder of a Minari dataset, nor the id of one below "
            "MINARI_DATASETS_PATH."
        ) from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedFileError(f"{source} cannot be read by Minari ({reason}).") from error


def _from_minari(episode: Any, goal_columns: Sequence[int], source: str) -> ForeignEpisode:
    observed = episode.observations
    if isinstance(observed, dict):
        missing = [key for key in _GOAL_KEYS if key not in observed]
        if missing:
            lacking = ", ".join(missing)
            raise UserError(f"{source} is no goal-conditioned dataset: its observations lack {lacking}.")
        observation, achieved, desired = (_matrix(observed[key]) for key in _GOAL_KEYS)
    else:
        observation, desired = _matrix(observed), None
        achieved = _goal_of(observation, goal_columns, source)
    return ForeignEpisode(
        observation, achieved, desired, _matrix(episode.actions), bool(np.any(episode.terminations))
    )


def _matrix(values: Any) -> np.ndarray:
    """Return (rows, numbers), float32."""
    array = np.asarray(values, np.float32)
    return array.reshape(len(array), -1)
