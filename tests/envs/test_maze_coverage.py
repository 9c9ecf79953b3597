from __future__ import annotations

import numpy as np
import pytest

from thousandfold.envs.mazes import MazeCoverage
from thousandfold.envs.task import MazePicture


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
