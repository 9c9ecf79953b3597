from __future__ import annotations

import mujoco
import numpy as np
import pytest

from thousandfold.envs.mazes import (
    FREE,
    LAYOUTS,
    GoalsByPathLength,
    MazeCoverage,
    add_walls,
    cells,
    evaluation_layout,
    maze_episodes,
    maze_scene,
    path_lengths,
    wall_runs,
)
from thousandfold.envs.registry import compile_task
from thousandfold.envs.task import MazePicture, Reset, TaskError


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
    assert set(path_lengths(layout, next(iter(free)))) == free


@pytest.mark.parametrize("name", ["u", "u2", "u3", "u4", "u5", "big"])
def test_evaluation_layout_has_the_same_walls_and_fewer_goals(name: str) -> None:
    training, evaluation = LAYOUTS[name], evaluation_layout(name)
    assert [cell == "#" for cell in training] == [cell == "#" for cell in evaluation]
    assert set(cells(evaluation, "G", 1.0)) < set(cells(training, "G", 1.0))


def test_longer_u_mazes_are_evaluated_on_their_bottom_row_and_the_hardest_on_itself() -> None:
    assert cells(evaluation_layout("u2"), "G", 1.0) == ((3, 1), (3, 2), (3, 3), (3, 4))
    assert cells(evaluation_layout("u3"), "G", 1.0) == ((3, 1), (3, 2), (3, 3), (3, 4), (3, 5))
    assert evaluation_layout("hardest") == LAYOUTS["hardest"]


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


def test_walls_may_start_elsewhere() -> None:
    """The same maze with its cell (0, 0) at (−2, 5) metres: every box moves by as much."""
    here, there = mujoco.MjSpec(), mujoco.MjSpec()
    add_walls(here, LAYOUTS["u"], 2.0, 1.0)
    add_walls(there, LAYOUTS["u"], 2.0, 1.0, origin=(-2.0, 5.0), contype=0, conaffinity=2)
    moved = there.compile()
    np.testing.assert_allclose(moved.geom_pos - here.compile().geom_pos, [[-2, 5, 0]] * moved.ngeom)
    assert (moved.geom_contype == 0).all() and (moved.geom_conaffinity == 2).all()


def test_path_lengths_go_around_walls() -> None:
    """In the U every cell is one step farther; in the big maze (1, 6) takes 9 steps through (3, 3)."""
    path = [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]
    assert path_lengths(LAYOUTS["u"], (1, 1)) == {cell: k for k, cell in enumerate(path)}
    assert path_lengths(LAYOUTS["u"], (2, 3)) == {cell: abs(k - 3) for k, cell in enumerate(path)}
    assert path_lengths(LAYOUTS["u5"], (2, 1))[4, 1] == 16
    big = path_lengths(LAYOUTS["big"], (1, 1))
    assert (big[2, 2], big[3, 3], big[2, 4], big[1, 6], big[6, 6]) == (2, 4, 6, 9, 10)
    assert len(big) == len(cells(LAYOUTS["big"], FREE, 1.0))


def test_goals_near_a_start_are_equally_likely() -> None:
    """Up to 2 steps from (1, 3) of the U lie (1, 1), (1, 2), (2, 3) and (3, 3), never the start itself."""
    goals = GoalsByPathLength(LAYOUTS["u"], 4.0, longest=2)
    starts = np.tile([4.0 + 0.9, 12.0 - 1.9], (4000, 1))
    found, counts = np.unique(goals.sample_for(np.random.default_rng(0), starts), axis=0, return_counts=True)
    assert found.tolist() == [[4.0, 4.0], [4.0, 8.0], [8.0, 12.0], [12.0, 12.0]]
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(4000 * 0.25 * 0.75)


def test_goals_follow_each_start() -> None:
    goals = GoalsByPathLength(LAYOUTS["u"], 1.0, shortest=5, longest=5)
    drawn = goals.sample_for(np.random.default_rng(0), np.array([[1.0, 1.0], [1.0, 2.0], [3.0, 2.0]]))
    assert drawn.tolist() == [[3.0, 2.0], [3.0, 1.0], [1.0, 1.0]]


def test_cells_without_a_far_goal_are_no_starts() -> None:
    """From the middle of the U, (2, 3), no cell is 4 steps away."""
    far = GoalsByPathLength(LAYOUTS["u"], 4.0, shortest=4)
    assert set(cells(LAYOUTS["u"], FREE, 4.0)) - set(far.start_cells) == {(8.0, 12.0)}
    with pytest.raises(TaskError, match=r"No goal is 4 to inf cells from \(8, 12\)"):
        far.sample_for(np.random.default_rng(0), np.array([[4.0, 4.0], [8.0, 12.0]]))
    with pytest.raises(TaskError, match="no cells 7 to inf apart"):
        _ = GoalsByPathLength(LAYOUTS["u"], 4.0, shortest=7).start_cells


def test_episodes_of_a_maze() -> None:
    episodes = maze_episodes("u", 2.0, Reset(joints=("x", "y")), goal_height=1.25)
    rng = np.random.default_rng(0)
    starts, goals = episodes["training"].sample(rng, 200)
    assert (starts == 2.0).all()
    assert {tuple(goal) for goal in goals} == {(x, y, 1.25) for x, y in cells(LAYOUTS["u"], "G", 2.0)}
    _, goals = episodes["evaluation"].sample(rng, 200)
    assert {tuple(goal) for goal in goals} == {(6.0, 2.0, 1.25), (6.0, 4.0, 1.25), (6.0, 6.0, 1.25)}
    for drawn in episodes["training_anywhere"].sample(rng, 500):
        centers = np.rint(drawn[:, :2] / 2.0)
        assert {tuple(center) for center in centers} == set(cells(LAYOUTS["u"], FREE, 1.0))
        assert 0.3 < np.abs(drawn[:, :2] - 2.0 * centers).max() <= 0.4
    starts, goals = episodes["near"].sample(rng, 500)
    assert {tuple(cell) for cell in np.rint(starts / 2.0)} == set(cells(LAYOUTS["u"], FREE, 1.0))
    assert (np.abs(np.rint(starts / 2.0) - goals[:, :2] / 2.0).sum(1) == 1).all() and (
        goals[:, 2] == 1.25
    ).all()
    flat = maze_episodes("u", 1.0, Reset(joints=("x", "y")))
    assert all(flat[name].sample(rng, 3)[1].shape == (3, 2) for name in ("training", "near"))


def test_scene_looks_a_little_below_the_middle_of_the_maze() -> None:
    scene = maze_scene("##### #R.G# #####", 2.0, origin=(10.0, 0.0))
    assert scene.lookat == (12.0, 3.5, 0.0)
    assert scene.distance == 12.0 and scene.follow is None


# -- coverage ---------------------------------------------------------------------------------------


def test_a_cell_counts_once_it_was_visited_and_walls_never_do():
    coverage = MazeCoverage(MazePicture("##### #R.G# #####", 2.0))
    assert coverage.share == 0.0
    coverage.add(np.array([[2.0, 2.0], [2.9, 2.9], [2.0, 0.0]]))  # twice the first cell, once a wall
    assert coverage.share == pytest.approx(1 / 3)
    coverage.add(np.array([[2.0, 4.0], [2.0, 6.0]]))
    assert coverage.share == 1.0
    assert coverage.visits.sum() == 5 and coverage.visits.shape == (24, 40)


def test_positions_outside_the_maze_are_left_out():
    coverage = MazeCoverage(MazePicture("### #R# ###", 1.0))
    coverage.add(np.array([[-5.0, 1.0], [1.0, 99.0]]))
    assert coverage.visits.sum() == 0


def test_a_maze_whose_first_cell_lies_elsewhere():
    coverage = MazeCoverage(MazePicture("##### #R.G# #####", 2.0, (-2.0, 10.0)))
    assert coverage.extent == (-3.0, 3.0, 9.0, 19.0)
    coverage.add(np.array([[0.0, 12.0], [0.0, 16.0], [2.0, 2.0]]))  # two cells, and outside
    assert coverage.share == pytest.approx(2 / 3) and coverage.visits.sum() == 2


def test_a_patch_is_an_eighth_of_a_cell():
    coverage = MazeCoverage(MazePicture("### #R# ###", 1.0))
    coverage.add(np.array([[0.51, 0.51], [1.49, 1.49]]))
    assert np.argwhere(coverage.visits).tolist() == [[8, 8], [15, 15]]
