from __future__ import annotations

from collections import deque

import mujoco
import numpy as np
import pytest

from envs.mazes import LAYOUTS, add_walls, cells, wall_runs
from envs.registry import compile_task
from envs.task import TaskError


def test_cells_are_centres_in_metres_row_by_row() -> None:
    assert cells("#### #RG# #.## ####", "RG", 4.0) == ((4.0, 4.0), (4.0, 8.0))
    assert cells("#### #RG# #.## ####", ".", 0.5) == ((1.0, 0.5),)


def test_layout_without_such_a_cell_is_a_task_error() -> None:
    with pytest.raises(TaskError, match="no cell of kind 'X'"):
        cells(LAYOUTS["u"], "X", 1.0)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layouts_are_closed_and_connected(layout: str) -> None:
    rows = layout.split()
    assert len({len(row) for row in rows}) == 1
    assert set(rows[0] + rows[-1]) == {"#"}
    assert all(row[0] == row[-1] == "#" for row in rows)
    assert layout.count("R") == 1
    free = {(i, j) for i, row in enumerate(rows) for j, cell in enumerate(row) if cell != "#"}
    reached, queue = set(), deque([next(iter(free))])
    while queue:
        i, j = queue.popleft()
        if (i, j) in free and (i, j) not in reached:
            reached.add((i, j))
            queue.extend([(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)])
    assert reached == free


@pytest.mark.parametrize("name", ["u", "big"])
def test_evaluation_layout_has_the_same_walls_and_fewer_goals(name: str) -> None:
    training, evaluation = LAYOUTS[name], LAYOUTS[f"{name}_eval"]
    assert [cell == "#" for cell in training] == [cell == "#" for cell in evaluation]
    assert set(cells(evaluation, "G", 1.0)) < set(cells(training, "G", 1.0))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_wall_runs_cover_every_wall_once(layout: str) -> None:
    covered = [(row, j) for row, first, last in wall_runs(layout) for j in range(first, last + 1)]
    walls = [(i, j) for i, row in enumerate(layout.split()) for j, cell in enumerate(row) if cell == "#"]
    assert sorted(covered) == walls


def test_walls_stand_where_the_layout_has_them() -> None:
    """A ray from above meets a wall's top over every wall cell, and nothing over every free one."""
    scale, height, layout = 2.0, 0.7, LAYOUTS["u"]
    spec = mujoco.MjSpec()
    add_walls(spec, layout, scale, height)
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    for i, row in enumerate(layout.split()):
        for j, cell in enumerate(row):
            for offset in (-0.45, 0.0, 0.45):
                above = np.array([scale * (i + offset), scale * (j + offset), 5.0])
                met = mujoco.mj_ray(
                    model, data, above, np.array([0.0, 0.0, -1.0]), None, 1, -1, np.zeros(1, np.int32), None
                )
                assert met == pytest.approx(5.0 - height if cell == "#" else -1.0)


def test_evaluation_of_the_u_maze_goes_around_the_bend() -> None:
    task = compile_task("point_u_maze")
    qpos, _, goals = task.sample_start("evaluation", np.random.default_rng(0), 300)
    assert np.abs(qpos - 1.0).max() <= 0.25
    assert {tuple(goal) for goal in goals} == {(3.0, 1.0), (3.0, 2.0), (3.0, 3.0)}
