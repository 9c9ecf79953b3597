"""How long something held without a break, and whether every goal of an episode was held."""

import numpy as np
import pytest

from thousandfold.ground.runs import HeldGoals, every_goal_held, longest_run


@pytest.mark.parametrize(
    ("held", "expected"), [("", 0), ("0", 0), ("1", 1), ("0110", 2), ("1101", 2), ("10111", 3), ("1111", 4)]
)
def test_the_longest_run(held: str, expected: int) -> None:
    assert longest_run(np.array([each == "1" for each in held])) == expected


@pytest.mark.parametrize(
    ("goals", "success", "hold_steps", "expected"),
    [
        ("aaaa", "0100", 1, True),
        ("aabb", "0100", 1, False),
        ("aabb", "0101", 1, True),
        ("aabb", "0110", 2, False),  # not of one goal
        ("aabbb", "11110", 2, True),
        ("aabba", "11111", 2, False),  # the last one for one step alone
        ("aabba", "11001", 1, False),
    ],
)
def test_every_goal_must_be_held(goals: str, success: str, hold_steps: int, expected: bool) -> None:
    there = np.array([each == "1" for each in success])
    rows = np.array([[float(ord(each)), 0.0] for each in goals])
    assert every_goal_held(there, rows, hold_steps) is expected
    running = HeldGoals(rows[:1].repeat(2, 0), hold_steps)
    for one, row in zip(there, rows, strict=True):
        running.add(np.array([one, True]), np.array([True, False]), np.stack([row, row]))
    assert running.all_held.tolist() == [expected, False]


def test_goals_that_were_held_are_counted() -> None:
    running = HeldGoals(np.zeros((2, 1)), hold_steps=2)
    for goal, there in ((0, "11"), (0, "10"), (1, "11"), (1, "01"), (2, "11"), (2, "11")):
        success = np.array([each == "1" for each in there])
        running.add(success, np.ones(2, bool), np.full((2, 1), float(goal)))
    assert running.commanded.tolist() == [3, 3]
    assert running.held.tolist() == [2, 2] and not running.all_held.any()
