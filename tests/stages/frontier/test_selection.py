"""The smallest student that keeps to the bounds, or by how much the nearest ones miss them."""

from __future__ import annotations

import pytest

from tests.stages.frontier.frontier_runs import row
from thousandfold.ground.errors import UserError
from thousandfold.stages.frontier.selection import Bounds, smallest

ROWS = [row("1x32", 0.80, 8.0), row("2x64", 0.97, 12.0), row("4x64", 0.99, 18.0), row("8x128", 1.01, 40.0)]


def chosen(bounds: Bounds) -> str:
    return smallest(ROWS, bounds)["name"]


def test_the_smallest_that_keeps_to_both_bounds() -> None:
    assert chosen(Bounds(0.98)) == "4x64"
    assert chosen(Bounds(0.97, 12.0)) == "2x64", "a bound itself is kept to"
    assert chosen(Bounds(0.0)) == "1x32"
    assert chosen(Bounds(1.0, 50.0)) == "8x128"


def test_the_lower_end_counts_for_the_confident() -> None:
    assert chosen(Bounds(0.98, confident=True)) == "8x128"
    assert chosen(Bounds(0.95, confident=True)) == "2x64"


def test_of_equally_small_ones_the_faster() -> None:
    rows = [row("4x32", 0.99, 20.0), row("4x32", 0.99, 15.0) | {"name": "other"}]
    assert smallest(rows, Bounds(0.98))["name"] == "other"


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (
            Bounds(1.05, 50.0),
            "No student retains 1.05 of the teacher's success: the best, 8x128, has 1.0100, short by 0.0400.",
        ),
        (
            Bounds(1.0, confident=True),
            "No student retains 1 at the lower end of its interval: the best, 8x128, has 0.9900, "
            "short by 0.0100.",
        ),
        (
            Bounds(0.5, 5.0),
            "No student has a p99 of 5 µs: the fastest, 1x32, takes 8.0 µs, too long by 3.0 µs.",
        ),
        (
            Bounds(1.05, 5.0),
            "No student retains 1.05 of the teacher's success: the best, 8x128, has 1.0100, short by "
            "0.0400. No student has a p99 of 5 µs: the fastest, 1x32, takes 8.0 µs, too long by 3.0 µs.",
        ),
        (
            Bounds(0.98, 15.0),
            "No student meets both bounds: of those within 15 µs, the best, 2x64, has 0.9700, short by "
            "0.0100; of those that retain 0.98, the fastest, 4x64, takes 18.0 µs, too long by 3.0 µs.",
        ),
    ],
)
def test_a_bound_that_none_meets_is_named_with_what_is_missing(bounds: Bounds, message: str) -> None:
    with pytest.raises(UserError) as caught:
        smallest(ROWS, bounds)
    assert str(caught.value) == message


def test_beside_a_teacher_that_reaches_nothing_nobody_is_chosen() -> None:
    with pytest.raises(UserError, match="never reached a goal"):
        smallest([row("1x32", None, 8.0)], Bounds(0.98))


def test_a_student_without_a_retention_is_not_chosen() -> None:
    assert smallest([row("1x32", None, 8.0), ROWS[2]], Bounds(0.5))["name"] == "4x64"
