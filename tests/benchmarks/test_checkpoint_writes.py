"""The benchmark of checkpoints counts the bytes that a save writes anew."""

from __future__ import annotations

from benchmarks.checkpoint_writes import SIDES, measure


def test_finalists_are_written_once_and_the_rest_every_time():
    cell = measure(depth=4, width=16, rounds=2)
    at_once, beside = (cell["sides"][side]["bytes"]["median"] for side in SIDES)
    weights = 4 * cell["parameters"]
    assert 3 * weights < beside < at_once < 16 * weights
    assert at_once - beside > 0.9 * cell["finalists"] * weights
