"""Maze layouts and the walls, cells and model options that come from them.

A layout is rows of ``#`` wall, ``R`` start, ``G`` goal and ``.`` free, separated by spaces. The cell in
row i and column j has its centre at (x, y) = scale * (i, j).
"""

from __future__ import annotations

import mujoco

from envs.task import TaskError

LAYOUTS = {
    "u": "##### #RGG# ###G# #GGG# #####",
    "u_eval": "##### #R..# ###.# #GGG# #####",
    "big": "######## #RG##GG# #GG#GGG# ##GGG### #GG#GGG# #G#GG#G# #GGG#GG# ########",
    "big_eval": "######## #R.##GG# #..#..G# ##...### #..#...# #.#G.#G# #.GG#GG# ########",
    "hardest": (
        "############ #RGGG#GGGGG# #G##G#G#G#G# #GGGGGG#GGG# #G####G###G# #GG#G#GGGGG# ##G#G#G#G### "
        "#GG#GGG#GGG# ############"
    ),
}


def cells(layout: str, kinds: str, scale: float) -> tuple[tuple[float, float], ...]:
    """Return the centres (x, y) in metres of all cells whose character is in `kinds`, row by row."""
    found = tuple(
        (scale * i, scale * j)
        for i, row in enumerate(layout.split())
        for j, character in enumerate(row)
        if character in kinds
    )
    if not found:
        raise TaskError(f"The maze layout {layout!r} has no cell of kind {kinds!r}.")
    return found


def wall_runs(layout: str) -> list[tuple[int, int, int]]:
    """Return walls as horizontal runs (row, first column, last column): fewer boxes for the broad phase."""
    runs = []
    for i, row in enumerate(layout.split()):
        j = 0
        while j < len(row):
            first = j
            while j < len(row) and row[j] == "#":
                j += 1
            if j > first:
                runs.append((i, first, j - 1))
            j += 1
    return runs


def add_walls(spec: mujoco.MjSpec, layout: str, scale: float, height: float) -> None:
    """Add the layout's walls to the world body as boxes of `height` metres standing on z = 0."""
    for row, first, last in wall_runs(layout):
        spec.worldbody.add_geom(
            name=f"wall_{row}_{first}",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=[scale * row, scale * (first + last) / 2, height / 2],
            size=[scale / 2, scale * (last - first + 1) / 2, height / 2],
            rgba=[0.55, 0.60, 0.68, 1.0],
        )
