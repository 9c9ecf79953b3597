"""Episodes of datasets that others have made: Minari's, and files of columns as OGBench's and D4RL's.

Such a file holds ``observations`` (n, observation_dim) and ``actions`` (n, action_dim), all episodes one
after the other, and flags (n,) that are true in the last row of each. OGBench calls them ``terminals`` (Park
et al. 2024, arXiv 2410.20092). In D4RL ``terminals`` are early ends and ``timeouts`` all others (Fu et al.
2020, arXiv 2004.07219), so that either may be false throughout. A row's observation is the one before its
action:

    row                  0    1    2  |  3    4
    observations         o0   o1   o2 |  o3   o4
    actions              a0   a1   a2 |  a3   a4
    next_observations    o1   o2   o' |  o4   o''
    terminals | timeouts 0    0    1  |  0    1

With ``next_observations`` an episode of three rows has three actions and ends in o'. An end that no flag
marks shows in them as well: row i + 1 does not go on where row i led to. Without them nobody knows what a2
led to: the episode has two actions and ends in o2.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from thousandfold.ground.errors import BAD_CONTENT, DamagedFileError, UserError, unknown_name
from thousandfold.replay.dataset_layout import METADATA_NAME, ROWS_NAME, shards_of
from thousandfold.replay.hdf5 import read_numbers, reading
from thousandfold.stages.dataset.column_file import is_column_file, read_columns

ENDS = ("terminals", "terminations", "terminated", "dones", "done", "timeouts", "truncations", "truncated")
"""Names of flags that mark an episode's last row; an episode ends where any of them says so."""

_EPISODE = re.compile(r"episode_\d{1,9}")
_MOST_SHOWN = 12


@dataclass(frozen=True)
class ForeignEpisode:
    """An episode of T actions, float32.

    Attributes:
        name: which one it is in its dataset.
        observation: (T + 1, observation_dim).
        achieved_goal: (T + 1, goal_dim).
        desired_goal: (T + 1, goal_dim), what was commanded; None where that is not known.
        action: (T, action_dim).
        terminated: it ended before its time.
    """

    name: str
    observation: np.ndarray
    achieved_goal: np.ndarray
    desired_goal: np.ndarray | None
    action: np.ndarray
    terminated: bool


@dataclass(frozen=True)
class BadEpisode:
    """An episode that cannot be read, and why."""

    name: str
    problem: str


@dataclass(frozen=True)
class GoalChoice:
    """Which numbers are the achieved goal, where a dataset does not say.

    Attributes:
        columns: numbers of an observation, where it is no dictionary with an achieved goal.
        keys: keys of a dictionary of goals, joined in this order.
    """

    columns: Sequence[int] = ()
    keys: Sequence[str] = ()


@dataclass(frozen=True)
class ForeignDataset:
    """The episodes of a dataset of others.

    Attributes:
        episodes: reads them, from the first one each time that it is called.
        notes: what a user should know about how the dataset was taken.
        warnings: what may well be wrong about it.
    """

    episodes: Callable[[], Iterator[ForeignEpisode | BadEpisode]]
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()


def read_foreign(source: str, goal: GoalChoice, *, episode_steps: int, limit: int) -> ForeignDataset:
    """Open a file of columns, a Minari dataset's folder, or one by its id.

    Args:
        source: path or id.
        goal: which numbers are the achieved goal.
        episode_steps: actions in an episode of the task, at most.
        limit: how many bytes of memory its numbers may take.

    Raises:
        UserError: there is no such dataset, it is damaged, or it does not say what its achieved goals are or
            where its episodes end.
    """
    try:
        path = Path(source).expanduser()
        is_file = is_column_file(path)
    except PermissionError:
        raise
    except (OSError, RuntimeError) as error:  # too long a name, or no such home folder
        raise UserError(f"{_name(source)} is no name of a dataset: {_reason(error)}.") from None
    if is_file:
        return _read_file(path, goal, episode_steps, limit)
    return _read_minari(source, path, goal, limit)


# -- files of columns -----------------------------------------------------------------------------


def _read_file(path: Path, goal: GoalChoice, episode_steps: int, limit: int) -> ForeignDataset:
    if goal.keys:
        raise UserError(
            f"--achieved-goal chooses from a dictionary of goals, which {path} has not: leave it out."
        )
    raw, unread = read_columns(path, ("observations", "actions", "next_observations", *ENDS), limit)
    if missing := [name for name in ("observations", "actions") if name not in raw]:
        there, parts = _listed([*raw, *unread]) or "nothing", [name.split("/")[0] for name in unread]
        minari = any(_EPISODE.fullmatch(part) for part in parts)
        raise UserError(
            f"{path} has no {' and no '.join(missing)}, but {there}: "
            + (
                "name the folder that holds this Minari dataset."
                if minari
                else "no dataset as of OGBench or D4RL."
            )
        )
    tolerance = max(_tolerance(raw[name]) for name in raw if name.endswith("observations"))
    columns = {name: _matrix(raw.pop(name), name, path) for name in list(raw) if name not in ENDS}
    lengths = {name: column.shape[0] if column.ndim else 0 for name, column in (columns | raw).items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{path}: its columns must be all as long, and are {lengths}: save them anew.")
    observation, following = columns["observations"], columns.get("next_observations")
    if following is not None and following.shape != observation.shape:
        raise UserError(f"{path}: its next_observations are {following.shape}, not {observation.shape}.")
    if not lengths["observations"]:
        raise UserError(f"{path} has no episode: there is nothing to import.")
    marked = np.zeros(lengths["observations"], bool)
    for name, flags in raw.items():
        marked |= _flags(flags, name, path)
    jumps = None if following is None else _jumps(observation, following, tolerance)
    ends, led = _ends(marked, jumps)
    _require_ends(path, ends, marked, jumps, episode_steps)
    goal_columns = _goal_columns(goal, observation.shape[1], str(path))
    finals = None if following is None else following[ends]
    del following, columns["observations"]
    columns.pop("next_observations", None)

    def episodes() -> Iterator[ForeignEpisode]:
        start = 0
        for number, end in enumerate(ends.tolist()):
            observed, action = observation[start : end + 1], columns["actions"][start : end + 1]
            if finals is not None and led[number]:
                observed = np.concatenate([observed, finals[number : number + 1]])
            else:
                action = action[:-1]
            name = f"episode {number} (rows {start} to {end})"
            yield ForeignEpisode(name, observed, observed[:, goal_columns], None, action, terminated=False)
            start = end + 1

    notes = [f"Read {_listed([*lengths])}" + (f"; not read: {_listed(unread)}." if unread else ".")]
    return ForeignDataset(episodes, *_notes(notes, ends, led, marked, jumps, episode_steps))


def _matrix(column: np.ndarray, name: str, path: Path) -> np.ndarray:
    """Return a column as (rows, numbers), float32."""
    if name == "actions" and column.dtype.kind not in "f":
        raise UserError(
            f"{path}: its actions are whole numbers ({column.dtype}), as those of discrete choices are, "
            "which no task here takes: save them as float32 if they are amounts."
        )
    if column.ndim == 1:
        column = column[:, None]
    if column.ndim != 2 or not column.shape[1]:
        raise UserError(f"{path}: its {name} must be (rows, numbers), and are {column.shape}: save them so.")
    return _float32(column)


def _float32(numbers: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what is too large becomes infinity, which is refused by name
        return np.asarray(numbers, np.float32)


def _tolerance(column: np.ndarray) -> float:
    """Return the relative difference that rounding may make: that of float32, or of a coarser column."""
    own = np.finfo(column.dtype).eps if column.dtype.kind == "f" else 0.0
    return float(max(2 * own, 32 * np.finfo(np.float32).eps))


def _flags(column: np.ndarray, name: str, path: Path) -> np.ndarray:
    """Return flags as (rows,) bool, from (rows,) or (rows, 1) of 0 and 1 in any type."""
    if column.ndim == 2 and column.shape[1] == 1:
        column = column[:, 0]
    if column.ndim != 1 or not ((column == 0) | (column == 1)).all():
        raise UserError(f"{path}: its {name} must be one flag a row, true or false: save them so.")
    return column.astype(bool)


def _jumps(observation: np.ndarray, following: np.ndarray, tolerance: float) -> np.ndarray:
    """Return (rows − 1,) bool: the row after does not go on where this one led to.

    A few units in the last place are no jump: the two columns may have been worked out apart. NaN is none
    either: the episode that holds it is named as a bad one.
    """
    jumps = np.empty(len(observation) - 1, bool)
    for start in range(0, len(jumps), 65536):  # not all at once, which would take the memory a few times over
        rows = slice(start, min(start + 65536, len(jumps)))
        ahead, led_to = observation[1:][rows], following[:-1][rows]
        with np.errstate(invalid="ignore"):  # the difference of infinities
            jumps[rows] = (np.abs(ahead - led_to) > tolerance * (1 + np.abs(led_to))).any(1)
    return jumps


def _ends(marked: np.ndarray, jumps: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the last row of every episode, and whether its next observation is known to be of the episode.

    Where the next observation of a marked end is the next episode's first one, `next_observations` were made
    by shifting `observations`: what the action led to is not known.
    """
    cut = marked.copy()
    cut[-1] = True
    if jumps is None:
        ends = np.flatnonzero(cut)
        return ends, np.zeros(len(ends), bool)
    cut[:-1] |= jumps
    ends = np.flatnonzero(cut)
    led = np.append(jumps, True)[ends]
    led[-1] = led.all()
    return ends, led


def _require_ends(
    path: Path, ends: np.ndarray, marked: np.ndarray, jumps: np.ndarray | None, episode_steps: int
) -> None:
    """Raise UserError where the rows are not in the order of time, or all of them would be one episode."""
    rows = len(marked)
    if jumps is not None and 2 * (unmarked := int((jumps & ~marked[:-1]).sum())) > rows:
        raise UserError(
            f"{path}: after {unmarked:,} of its {rows:,} rows the next row is not the one that "
            "next_observations speak of: save its rows in the order of time, episode after episode."
        )
    if len(ends) == 1 and rows > episode_steps + 1:
        more = ", or save next_observations" if jumps is None else ""
        raise UserError(
            f"{path}: nothing marks where an episode ends before the last of its {rows:,} rows, and one of "
            f"the task has {episode_steps:,} steps at most: add flags named timeouts that are true in the "
            f"last row of every episode (also read are terminals, terminations, dones, truncations){more}."
        )


def _notes(
    notes: list[str],
    ends: np.ndarray,
    led: np.ndarray,
    marked: np.ndarray,
    jumps: np.ndarray | None,
    episode_steps: int,
) -> tuple[list[str], list[str]]:
    """Return what to tell of how the rows were divided, and what to warn of."""
    warnings, count = [], len(ends)
    if jumps is not None and (unmarked := int((jumps & ~marked[:-1]).sum())):
        notes.append(
            f"{unmarked:,} of its {count:,} episodes end where no flag says so: the last of their "
            "next_observations is not what the next row begins with."
        )
    if jumps is not None and count > 1 and not led.all():
        notes.append(
            f"In {int((~led).sum()):,} of its {count:,} episodes the last of next_observations is what the "
            "next episode begins with: the last action is left out, for what it led to is not known."
        )
    lengths = np.diff(ends, prepend=-1)
    if longer := int((lengths > episode_steps + 1).sum()):
        warnings.append(
            f"{longer:,} of its {count:,} episodes are longer than one of the task, up to {lengths.max():,} "
            f"rows against {episode_steps:,} steps: see that all ends are marked."
        )
    return notes, warnings


def _goal_columns(goal: GoalChoice, size: int, source: str) -> list[int]:
    """Return which of the `size` numbers of an observation are the achieved goal."""
    if not goal.columns:
        raise UserError(f"{source} does not say what its achieved goals are: give --goal-columns, as in 0,1.")
    if max(goal.columns) >= size or min(goal.columns) < 0:
        shown = ",".join(map(str, goal.columns))
        raise UserError(f"--goal-columns {shown}: observations of {source} have {size} numbers.")
    return list(goal.columns)


# -- Minari ---------------------------------------------------------------------------------------


def _read_minari(source: str, path: Path, goal: GoalChoice, limit: int) -> ForeignDataset:
    folder = _minari_folder(source, path)
    metadata = _minari_metadata(folder)
    form = metadata.get("data_format", "hdf5")
    warnings: list[str] = []
    if metadata.get("total_episodes") == 0:
        raise UserError(f"{source} is an empty Minari dataset: there is no episode to import.")
    if form == "hdf5":
        each = _hdf5_episodes(folder, metadata, source)
    elif form in ("arrow", "parquet"):
        each = _arrow_episodes(folder, metadata, source)
    else:
        raise UserError(f"{source} is a Minari dataset of format {form!r}: convert it to hdf5.")

    def episodes() -> Iterator[ForeignEpisode | BadEpisode]:
        refusal, is_any_taken = None, False
        for name, read in each():
            try:
                taken = _from_minari(name, read(), goal, source, limit, warnings)
                is_any_taken = True
            except UserError as error:  # the kind of all its episodes, or of this one alone
                refusal = refusal or error
                taken = BadEpisode(name, str(error).removeprefix(f"{source}: ").removesuffix("."))
            except Exception as error:  # whatever h5py and Arrow make of bytes that anybody wrote
                taken = BadEpisode(name, _reason(error))
            yield taken
        if refusal is not None and not is_any_taken:
            raise refusal

    return ForeignDataset(episodes, warnings=warnings)


def _minari_folder(source: str, path: Path) -> Path:
    """Return the data folder of a dataset by its folder or by its id."""
    root = Path(os.environ.get("MINARI_DATASETS_PATH") or "~/.minari/datasets").expanduser()
    for folder in (path, path / "data", root / source / "data"):
        if (folder / METADATA_NAME).is_file() or (folder / ROWS_NAME).is_file():
            return folder
    raise UserError(
        f"{source} is neither an .npz file, nor one of HDF5, nor a folder of a Minari dataset, nor the id of "
        "one below MINARI_DATASETS_PATH."
    )


def _minari_metadata(folder: Path) -> dict[str, Any]:
    """Return what a dataset says of itself; nothing where it was made before Minari wrote that down."""
    path = folder / METADATA_NAME
    if not path.is_file():
        return {}
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(metadata, dict):
            raise ValueError("it is no object")
        return metadata
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged or no metadata of Minari: {_reason(error)}.") from error


_Episodes = Callable[[], Iterator[tuple[str, Callable[[], Mapping[str, Any]]]]]
"""Yields names of episodes and what reads them: observations, actions, terminations."""


def _hdf5_episodes(folder: Path, metadata: Mapping[str, Any], source: str) -> _Episodes:
    try:
        files = [shard / ROWS_NAME for shard in shards_of(folder, dict(metadata))]
    except BAD_CONTENT as error:
        raise DamagedFileError(f"{source} does not say what its shards are: {_reason(error)}.") from error
    names = [_episode_names(file, source) for file in files]
    _require_count(sum(map(len, names)), metadata, source)

    def episodes() -> Iterator[tuple[str, Callable[[], Mapping[str, Any]]]]:
        for path, own in zip(files, names, strict=True):
            with reading(path) as rows:
                for name in own:
                    shown = name if len(files) == 1 else f"{path.parent.parent.name}/{name}"
                    yield shown, lambda rows=rows, name=name: _group(rows, name)

    return episodes


def _group(rows: h5py.File, name: str) -> h5py.Group:
    if not isinstance(found := rows[name], h5py.Group):
        raise ValueError("it is no group of columns")
    return found


def _episode_names(path: Path, source: str) -> list[str]:
    """Return the names of the episodes in a file of rows, in order."""
    if not path.is_file():
        raise DamagedFileError(f"{source} is damaged: {path} is missing: restore it.")
    with path.open("rb"):
        pass  # what may not be opened is not damaged
    try:
        with reading(path) as rows:
            found = [name for name in rows if isinstance(name, str) and _EPISODE.fullmatch(name)]
    except Exception as error:
        raise DamagedFileError(f"{source} is damaged: {path} cannot be read: {_reason(error)}.") from error
    return sorted(found, key=lambda name: int(name.removeprefix("episode_")))


def _arrow_episodes(folder: Path, metadata: Mapping[str, Any], source: str) -> _Episodes:
    if not all(isinstance(metadata.get(name), str) for name in ("observation_space", "action_space")):
        # Minari would make the environment that the dataset names to ask it, and so run whatever that is.
        raise UserError(f"{source} does not say what its spaces are: convert it to hdf5.")
    try:
        from minari.dataset.minari_storage import MinariStorage

        storage = MinariStorage.read(folder)
    except Exception as error:
        raise DamagedFileError(f"{source} cannot be read by Minari: {_reason(error)}.") from error
    numbers = sorted(int(each.name) for each in folder.iterdir() if each.name.isdecimal())
    _require_count(len(numbers), metadata, source)

    def episodes() -> Iterator[tuple[str, Callable[[], Mapping[str, Any]]]]:
        for number in numbers:
            yield f"episode {number}", lambda number=number: next(iter(storage.get_episodes([number])))

    return episodes


def _require_count(found: int, metadata: Mapping[str, Any], source: str) -> None:
    """Raise UserError where a dataset has no episode, or fewer than it says."""
    said = metadata.get("total_episodes")
    if isinstance(said, int) and found < said:
        raise DamagedFileError(f"{source} is damaged: it has {found:,} of {said:,} episodes: restore it.")
    if not found:
        raise UserError(f"{source} is an empty Minari dataset: there is no episode to import.")


def _from_minari(
    name: str, episode: Mapping[str, Any], goal: GoalChoice, source: str, limit: int, warnings: list[str]
) -> ForeignEpisode:
    """Return an episode; `warnings` are added to.

    Raises:
        UserError: episodes of this kind cannot be taken.
        Exception: this episode is damaged.
    """
    if missing := [column for column in ("observations", "actions") if column not in episode]:
        raise ValueError(f"it has no {' and no '.join(missing)}")
    observed, action = episode["observations"], episode["actions"]
    rows = lambda node, what: _rows(node, what, source, limit)  # noqa: E731
    if isinstance(observed, Mapping):
        if "observation" not in observed:
            raise UserError(
                f"{source} has no observation to learn from: its observations are {_listed(observed)}, and "
                "one of them must be called observation, beside achieved_goal and desired_goal."
            )
        observation = rows(observed["observation"], "observation")
        achieved, desired = observed.get("achieved_goal"), observed.get("desired_goal")
    else:
        observation, achieved, desired = rows(observed, "observations"), None, None
    if achieved is None:
        if goal.keys:
            raise UserError(
                f"--achieved-goal chooses from a dictionary, and {source} has none: leave it out."
            )
        achieved_goal = observation[:, _goal_columns(goal, observation.shape[1], source)]
    else:
        if goal.columns and not warnings:
            warnings.append("it says what its achieved goals are: --goal-columns is not used.")
        achieved_goal = _goals(achieved, "achieved_goal", goal.keys, rows, source)
    return ForeignEpisode(
        name,
        observation,
        achieved_goal,
        None if desired is None else _goals(desired, "desired_goal", goal.keys, rows, source),
        rows(action, "actions"),
        bool(np.any(rows(episode["terminations"], "terminations"))) if "terminations" in episode else False,
    )


def _goals(
    node: Any, what: str, keys: Sequence[str], rows: Callable[[Any, str], np.ndarray], source: str
) -> np.ndarray:
    """Return goals, or of a dictionary of them those of `keys`, one after the other."""
    if not isinstance(node, Mapping):
        if keys:
            raise UserError(
                f"--achieved-goal chooses from a dictionary, and {source} has none: leave it out."
            )
        return rows(node, what)
    if not keys:
        first = [_name(key) for key in node][:2] or ["KEY"]
        raise UserError(
            f"{source}: its {what} is a dictionary of {_listed(node) or 'nothing'}: choose with "
            f"--achieved-goal {first[0]}, or several as in --achieved-goal {','.join(first)}."
        )
    if unknown := [key for key in keys if key not in node]:
        raise UserError(
            f"{source}: " + unknown_name(f"key of {what}", unknown[0], [_name(key) for key in node])
        )
    return np.concatenate([rows(node[key], f"{what}/{key}") for key in keys], axis=1)


def _rows(node: Any, what: str, source: str, limit: int) -> np.ndarray:
    """Return (rows, numbers), float32, of a dataset of HDF5 or an array.

    Raises:
        UserError: it is a dictionary, or actions are choices.
        ValueError: it is something else than rows of numbers.
    """
    if isinstance(node, Mapping):
        raise UserError(f"{source}: its {what} is a dictionary of {_listed(node)}: numbers are wanted.")
    array = read_numbers(node, what, limit) if isinstance(node, h5py.Dataset) else np.asarray(node)
    if array.dtype.kind not in "fiub" or not array.ndim:
        raise ValueError(f"its {what} are no rows of numbers")
    if what == "actions" and array.dtype.kind != "f":
        raise UserError(
            f"{source}: its actions are whole numbers ({array.dtype}), as those of discrete choices are, "
            "which no task here takes."
        )
    return _float32(array).reshape(len(array), int(np.prod(array.shape[1:])))


def _listed(names: Any) -> str:
    """Return names with commas, the first dozen of them."""
    shown = [_name(name) for name in names]
    rest = f" and {len(shown) - _MOST_SHOWN} more" if len(shown) > _MOST_SHOWN else ""
    return ", ".join(shown[:_MOST_SHOWN]) + rest


def _name(name: object) -> str:
    """Return a name that anybody chose in a form that can be printed."""
    return " ".join(str(name).encode("utf-8", "backslashreplace").decode().split())[:80]


def _reason(error: BaseException) -> str:
    return _name(error)[:200] or type(error).__name__
