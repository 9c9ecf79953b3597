"""Pairs of episodes: as many as retention needs, who failed where, and a picture of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from thousandfold.envs.registry import compile_task
from thousandfold.stages.distill import retention as paired_evaluation
from thousandfold.stages.distill.retention import EpisodeBudget, PairedEpisodes, run_pairs, write_failures
from thousandfold.stages.episodes import Episodes, EpisodeStream, retention

TASK = compile_task("point_u_maze")


def episodes(success: np.ndarray, time_at_goal: np.ndarray | None = None, goal_dim: int = 2) -> Episodes:
    """Return episodes with these outcomes; starts and goals say which episode it is."""
    count = len(success)
    number = np.arange(count, dtype=float)
    return Episodes(
        success=np.asarray(success, bool),
        time_at_goal=np.where(success, 500.0, 0.0) if time_at_goal is None else time_at_goal,
        final_distance=number,
        closest_distance=number / 2,
        start=np.tile(number[:, None], goal_dim),
        goal=np.tile(number[:, None] + 1, goal_dim),
        unstable=np.zeros(count, bool),
        touched=np.asarray(success, bool),
        at_end=np.asarray(success, bool),
    )


def pairs_of(lost: float, count: int = 1024, seed: int = 0) -> PairedEpisodes:
    """Return pairs of a teacher that succeeds in nine of ten and a student that loses a share of those."""
    rng = np.random.default_rng(seed)
    teacher = rng.random(count) < 0.9
    return PairedEpisodes(episodes(teacher), episodes(teacher & (rng.random(count) >= lost)))


class Stream(EpisodeStream):
    """Episodes with given outcomes; counts those that were asked for."""

    def __init__(self, success: np.ndarray, shift: float = 0.0) -> None:
        self.success, self.shift, self.asked = success, shift, []

    def first(self, episodes_asked: int) -> Episodes:
        self.asked.append(episodes_asked)
        found = episodes(self.success[:episodes_asked])
        found.goal[:] += self.shift
        return found


# -- how many ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [0.1, 0.3, 0.5])
def test_as_many_episodes_as_the_interval_needs(lost: float):
    first = pairs_of(lost, 1024)
    budget = EpisodeBudget(1024, 100_000, 0.01)
    needed = budget.needed(first)
    assert needed % 256 == 0 and needed > 1024
    width = pairs_of(lost, needed, seed=1).half_width
    assert width is not None and 0.008 < width <= 0.0103  # hardly more episodes than it takes


def test_what_is_known_well_enough_takes_no_more_and_the_limit_holds():
    certain, uncertain = pairs_of(0.0), pairs_of(0.5)
    assert EpisodeBudget(1024, 8192, 0.03).needed(certain) == 1024
    assert EpisodeBudget(1024, 2000, 0.001).needed(uncertain) == 2000
    assert EpisodeBudget(1024, 10, 0.001).needed(uncertain) == 1024  # they have been run already
    without = PairedEpisodes(episodes(np.zeros(64)), episodes(np.ones(64)))
    assert without.half_width is None and EpisodeBudget(64, 999, 0.03).needed(without) == 64


def test_the_wider_of_both_intervals_decides():
    rng, success = np.random.default_rng(0), np.ones(400, bool)
    teacher, student = rng.uniform(0, 1000, 400), rng.uniform(0, 1000, 400)
    pairs = PairedEpisodes(episodes(success, teacher), episodes(success, student))
    measured = retention(teacher, student)
    low, high = measured["interval"]
    assert pairs.half_width == max(measured["retention"] - low, high - measured["retention"])


def test_the_number_is_decided_once_from_the_first_episodes():
    rng = np.random.default_rng(0)
    success = rng.random(20_000) < 0.9
    teacher, student = Stream(success), Stream(success & (rng.random(20_000) < 0.7))
    budget = EpisodeBudget(512, 8192, 0.02)
    pairs = run_pairs(teacher, student, budget)
    expected = budget.needed(PairedEpisodes(teacher.first(512), student.first(512)))
    assert teacher.asked[:2] == student.asked[:2] == [512, expected] and expected > 512
    assert len(pairs.student.success) == expected


def test_other_episodes_are_no_pairs():
    success = np.ones(64, bool)
    with pytest.raises(ValueError, match="goals of the teacher's and the student's episodes differ"):
        run_pairs(Stream(success), Stream(success, shift=0.5), EpisodeBudget(64, 64, 0.03))


# -- what is said of them ---------------------------------------------------------------------------


def test_results_and_failures_name_who_failed():
    teacher, student = np.array([1, 1, 0, 0]), np.array([1, 0, 1, 0])
    pairs = PairedEpisodes(episodes(teacher), episodes(student))
    results = pairs.results()
    assert results["lost_episodes"] == results["gained_episodes"] == 1 and results["episodes"] == 4
    assert results["teacher_success"] == results["success"] == 0.5 and results["retention"] == 1.0
    failed = pairs.failures()
    assert [(entry["episode"], entry["failed"]) for entry in failed] == [
        (1, "student"),
        (2, "teacher"),
        (3, "both"),
    ]
    assert failed[0]["start"] == [1.0, 1.0] and failed[0]["goal"] == [2.0, 2.0]
    assert failed[2]["student_final_distance"] == 3.0 and failed[2]["teacher_closest_distance"] == 1.5


def colour_share(path: Path) -> float:
    """Return the share of pixels that are vermilion, the colour of the arrows."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return float(((pixels[..., 0] - pixels[..., 2] > 80) & (pixels[..., 1] < 180)).mean())


@pytest.mark.pictures
@pytest.mark.parametrize("name", ["point_u_maze", "arm_reach", "half_cheetah"])
def test_the_picture_shows_the_episodes_that_the_student_alone_lost(name: str, tmp_path: Path):
    task, count = compile_task(name), 6
    for folder, student in (("none", np.ones(count)), ("some", np.arange(count) % 2)):
        (tmp_path / folder).mkdir()
        pairs = PairedEpisodes(
            episodes(np.ones(count), goal_dim=task.goal_dim), episodes(student, goal_dim=task.goal_dim)
        )
        write_failures(tmp_path / folder, task, pairs)
    assert json.loads((tmp_path / "none" / "failures.json").read_text()) == []
    assert len(json.loads((tmp_path / "some" / "failures.json").read_text())) == 3
    assert colour_share(tmp_path / "none" / "failures.png") == 0
    assert colour_share(tmp_path / "some" / "failures.png") > 0.001


@pytest.mark.parametrize(
    ("student", "teacher", "count", "none"),
    [
        (
            np.zeros(250),
            np.ones(250),
            "250 of 250 episodes, 200 drawn",
            "None: the student reached every goal",
        ),
        (np.ones(4), np.ones(4), "0 of 4 episodes", "that the teacher reached."),
        (np.zeros(4), np.zeros(4), "0 of 4 episodes", "Both missed 4 of 4."),
    ],
)
def test_the_picture_says_how_many_failures_there_are_and_that_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: Any, teacher: Any, count: str, none: str
):
    said = []
    monkeypatch.setattr(
        paired_evaluation,
        "draw_arrows",
        lambda path, task, starts, goals, title, facts, none: said.append((title, facts, none)),
    )
    facts = ("point_u_maze", "student-20260131-120000")
    write_failures(tmp_path, TASK, PairedEpisodes(episodes(teacher), episodes(student)), facts)
    ((title, shown, text),) = said
    assert title == "Where the student alone fails" and shown == (*facts, count)
    assert none in text.split("\n")
