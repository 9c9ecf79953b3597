"""Recorded episodes for a page: goals on a grid, and where every body was on the way to each of them.

The page draws the bodies itself, so that a recording needs neither OpenGL nor pictures and stays small.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.mazes import MazeCoverage
from thousandfold.envs.pictures.scene_rendering import goal_marker
from thousandfold.envs.pictures.solids import Solids
from thousandfold.ground.files import write_json_atomic
from thousandfold.stages.episodes import Policy
from thousandfold.stages.videos import RecordedEpisode, Starts, record_episodes

RECORDING_FILE = "recording.json"
FORMAT_VERSION = 1

_CANDIDATES = 4096
_GAP = 0.7  # between two goals, in cells of the grid
_MOST_IN_A_ROW = 15  # goals of one number
_AFTER_SUCCESS_S = 2.0
_FRAME_S = 0.08  # at least, where control steps are shorter: the page draws what lies between two frames
_MOST_NUMBERS = 2_000_000  # of all frames: 4 MB before they are packed, about half of it behind
_LEVELS = 65535
_POSITION_NAMES = ("x", "y")
_WALL_HIDDEN = 0.6  # of the outer walls, in cells
_PLAN_ROOM = 0.08  # around goals and starts, in the larger side of the plan


def record_goals(
    task: CompiledTask, policy: Policy, *, goals: int, seed: np.random.SeedSequence, distribution: str
) -> list[RecordedEpisode]:
    """Run an episode to each of at most `goals` goals of a distribution, spread over its range."""
    sampling, simulation = seed.spawn(2)
    starts = Starts(*task.sample_start(distribution, np.random.default_rng(sampling), _CANDIDATES))
    columns = plan_columns(task)
    units = {task.describe("achieved_goal")[column]["unit"] for column in columns}
    chosen = spread(starts.goals[:, columns], goals, square=len(units) == 1)
    return record_episodes(
        task,
        policy,
        episodes=len(chosen),
        seed=simulation,
        distribution=distribution,
        starts=Starts(*(rows[chosen] for rows in starts)),
    )


def plan_columns(task: CompiledTask) -> list[int]:
    """Return which numbers of a goal span the grid: x and y where it has them, else the first one or two."""
    columns = task.spec.scene.goal_position if _spans_the_plane(task) else range(task.goal_dim)
    return list(columns or ())[:2]


def spread(points: np.ndarray, most: int, *, square: bool) -> np.ndarray:
    """Return the indices of at most so many points, each the nearest to the middle of its cell of a grid.

    The grid is the finest that gives no more; what is too near to a point of the cell beside is left out.

    Args:
        points: (points, 1 or 2).
        most: how many.
        square: whether a cell is as wide as it is high, as where both numbers have one unit.
    """
    if points.shape[1] == 1:
        most = min(most, _MOST_IN_A_ROW)
    low, extent = points.min(0), np.ptp(points, axis=0)
    if square:
        extent = np.full_like(extent, extent.max())
    shares = (points - low) / np.where(extent > 0, extent, 1.0)
    chosen = np.zeros(1, int)
    for cells in range(1, most + 1):
        keys = np.floor(shares * cells).clip(0, cells - 1).astype(int)
        off_middle = np.linalg.norm(shares * cells - keys - 0.5, axis=1)
        order = np.argsort(off_middle)
        _, first = np.unique(keys[order], axis=0, return_index=True)
        kept: list[int] = []
        for index in order[np.sort(first)].tolist():  # the best placed first
            if all(np.linalg.norm((shares[index] - shares[other]) * cells) >= _GAP for other in kept):
                kept.append(index)
        if len(kept) > most:
            break
        chosen = np.array(kept)
    return chosen[np.lexsort(points[chosen].T)]


def write_recording(
    path: Path, task: CompiledTask, episodes: Sequence[RecordedEpisode], distribution: str
) -> None:
    """Write episodes as JSON that a page can draw: the solids of the task, and how their bodies moved.

    ``numbers`` holds, episode by episode, the columns of all its frames: seven of every body, as
    `Solids.poses` has them, the distance to the goal, 1 at the goal and 0 elsewhere, and what was achieved in
    the numbers that span the grid. Each is one of 65,536 levels from the column's ``low`` to its ``high``,
    written as the difference to the frame before; of an episode first come the low bytes, then the high ones.
    All of it is deflated, and written in base 64. The file appears complete or not at all.

    Args:
        path: the file.
        task: the task as the policy sees it.
        episodes: at least one, each to one goal.
        distribution: that their starts and goals were drawn from.
    """
    solids, columns, dt = Solids(task, distribution), plan_columns(task), task.spec.control_dt_s
    width = 7 * len(solids.bodies) + 2 + len(columns)
    total = sum(_states_shown(episode, dt) for episode in episodes) * width
    stride = max(1, int(_FRAME_S / dt + 1e-9), -(-total // _MOST_NUMBERS))
    frames = [_frames(task, solids, episode, stride) for episode in episodes]
    low = np.min([each.min(0) for each in frames], axis=0)
    span = np.max([each.max(0) for each in frames], axis=0) - low
    span[span == 0] = 1.0
    packed = [_packed(np.rint((each - low) / span * _LEVELS)) for each in frames]
    described = [task.describe("achieved_goal")[column] for column in columns]
    names = _POSITION_NAMES if _spans_the_plane(task) else [element["name"] for element in described]
    content = {
        "format_version": FORMAT_VERSION,
        "task": task.name,
        "distribution": distribution,
        "frame_s": stride * dt,
        "distance_unit": task.distance_unit(task.spec.success[0]),
        "goal_numbers": task.goal_dim,
        "axes": [
            {"name": name, "unit": element["unit"]} for name, element in zip(names, described, strict=False)
        ],
        "plan": _plan(task, episodes),
        "marker": _marker(task),
        "camera": solids.camera,
        "parts": solids.parts,
        "meshes": solids.meshes,
        "left_out": solids.left_out,
        "episodes": [
            _summary(task, solids, episode, len(each)) for episode, each in zip(episodes, frames, strict=True)
        ],
        "low": low.tolist(),
        "high": (low + span).tolist(),
        "numbers": base64.b64encode(zlib.compress(b"".join(packed), 9)).decode("ascii"),
    }
    write_json_atomic(path, content)


def _packed(levels: np.ndarray) -> bytes:
    """Return frames of levels, (frames, columns), as differences: column by column, low bytes before high."""
    differences = np.diff(levels.astype(np.uint16), axis=0, prepend=np.uint16(0)).T.ravel()
    return (differences & 255).astype(np.uint8).tobytes() + (differences >> 8).astype(np.uint8).tobytes()


def _success_step(episode: RecordedEpisode) -> int | None:
    """Return after how many control steps the goal had been held for long enough; None: it never was."""
    if not episode.success:
        return None
    held = np.lib.stride_tricks.sliding_window_view(episode.at_goal[1:], episode.hold_steps).all(1)
    return int(held.argmax()) + episode.hold_steps


def _states_shown(episode: RecordedEpisode, control_dt_s: float) -> int:
    """Return how many states of an episode are recorded: what comes long after its success is left out."""
    step = _success_step(episode)
    after = round(_AFTER_SUCCESS_S / control_dt_s)
    return len(episode.qpos) if step is None else min(len(episode.qpos), step + after + 1)


def _frames(task: CompiledTask, solids: Solids, episode: RecordedEpisode, stride: int) -> np.ndarray:
    """Return the frames of an episode, (frames, columns)."""
    steps = np.arange(0, _states_shown(episode, task.spec.control_dt_s), stride)
    poses = np.stack([solids.poses(episode.qpos[step], episode.shape) for step in steps])
    turns = poses[..., 3:]
    flips = np.where((turns[1:] * turns[:-1]).sum(-1) < 0, -1.0, 1.0)  # q and −q are one orientation
    turns[1:] *= np.cumprod(flips, axis=0)[..., None]
    achieved = episode.achieved[steps]
    distance = task.goal_distance(achieved, episode.goals[steps])
    told = [distance, episode.at_goal[steps], *achieved[:, plan_columns(task)].T]
    return np.concatenate([poses.reshape(len(steps), -1), np.stack(told, axis=1)], axis=1)


def _summary(task: CompiledTask, solids: Solids, episode: RecordedEpisode, frames: int) -> dict[str, Any]:
    goal, step = episode.goals[0], _success_step(episode)
    marker = goal_marker(task, goal)
    return {
        "goal": goal.tolist(),
        "point": goal[plan_columns(task)].tolist(),
        "place": None if marker is None else marker.position,
        "frames": frames,
        "success_s": None if step is None else step * task.spec.control_dt_s,
        "unstable": episode.unstable,
        "sizes": solids.sizes(episode.shape),
    }


def _spans_the_plane(task: CompiledTask) -> bool:
    """Return whether the grid is over x and y in the world."""
    columns = task.spec.scene.goal_position or ()
    return len(columns) >= 2 and task.goal_positions(np.zeros(task.goal_dim)) is not None


def _marker(task: CompiledTask) -> dict[str, float] | None:
    """Return how a goal is drawn in the scene; None where it is no position."""
    marker = goal_marker(task, np.zeros(task.goal_dim))
    return None if marker is None else {"radius": marker.radius, "numbers": marker.dims}


def _plan(task: CompiledTask, episodes: Sequence[RecordedEpisode]) -> dict[str, Any]:
    """Return what the grid covers, ``low`` and ``high``, and a maze's ``walls``: x, y, x, y of corners."""
    columns, maze = plan_columns(task), task.spec.maze
    if maze is not None and _spans_the_plane(task):
        coverage = MazeCoverage(maze)
        x, end_x, y, end_y = coverage.extent
        corners = np.argwhere(~coverage.free) * maze.scale + (x, y)
        walls, hidden = np.concatenate([corners, corners + maze.scale], axis=1), _WALL_HIDDEN * maze.scale
        low, high = [x + hidden, y + hidden], [end_x - hidden, end_y - hidden]
        return {"low": low, "high": high, "walls": walls.tolist()}
    seen = np.concatenate([[*episode.goals[:1], *episode.achieved[:1]] for episode in episodes])[:, columns]
    room = _PLAN_ROOM * np.maximum(np.ptp(seen, axis=0).max(), 1e-6)
    return {"low": (seen.min(0) - room).tolist(), "high": (seen.max(0) + room).tolist(), "walls": []}
