"""A success is told from chance: random actions are measured, compared, and what is no better says so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from thousandfold.envs.registry import compile_task
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.runtime import seed_sequence
from thousandfold.stages.random_baseline import (
    measure_random,
    no_better_than_random,
    random_record,
    warn_of_chance,
)

TASK = compile_task("point_u_maze", {"episode_steps": 20})


def results(success: float, episodes: int, chance: float | None = None, draws: int = 256) -> dict[str, Any]:
    own = {"success": success, "episodes": episodes}
    return own if chance is None else own | {"random_success": chance, "random_episodes": draws}


def test_random_actions_are_measured_over_as_many_episodes_and_the_same_each_time() -> None:
    first, second = (measure_random(TASK, 32, seed_sequence(0, 5), seed_sequence(0, 6)) for _ in range(2))
    assert first == second
    low, high = first["random_success_interval"]
    assert first["random_episodes"] == 32 and 0 <= low <= first["random_success"] <= high <= 1
    assert measure_random(TASK, 32, seed_sequence(0, 5), seed_sequence(0, 7)) is not None
    assert random_record(first | {"success": 1.0}) == first


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (results(0.0, 256), "reached none of 256 goals"),
        (results(0.0, 256, 0.0), "reached none of 256 goals"),
        (results(0.1, 256, 0.1), "is no better than random, as far as 256 episodes tell: success 0.100"),
        (results(0.05, 256, 0.3), "is no better than random"),
        (results(0.15, 256, 0.1), "is no better than random"),  # p = 0.09 of a two-sided test
        (results(1.0, 8, 0.75, 8), "is no better than random"),  # too few episodes to tell
        (results(0.2, 256, 0.1), None),
        (results(1.0, 8, 0.0, 8), None),
        (results(0.1, 256), None),  # an earlier version's: nothing is known
        ({}, None),
        ({"success": None, "episodes": 3}, None),
    ],
)
def test_what_is_above_chance(found: dict[str, Any], says: str | None) -> None:
    words = no_better_than_random(found)
    assert (words is None) if says is None else (words is not None and says in words)


def test_one_warning_names_the_first_that_is_none_better(capsys: pytest.CaptureFixture[str]) -> None:
    def artifact(kind: str, found: dict[str, Any]) -> Any:
        return SimpleNamespace(kind=kind, name=f"{kind}-1", manifest=SimpleNamespace(results=found))

    weak, strong = artifact("teacher", results(0.1, 64, 0.1)), artifact("student", results(0.9, 64, 0.1))
    empty = artifact("dataset", results(0.0, 64))
    with Console() as console:
        warn_of_chance(console, strong, None, weak, empty)
        warn_of_chance(console, empty)
        warn_of_chance(console, strong)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert (
        "teacher teacher-1 is no better than random" in lines[0] and "train a teacher for longer" in lines[0]
    )
    assert "dataset dataset-1 reached none of 64 goals." in lines[1]
