"""Closed-loop episodes and their statistics."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.stages.tiny_runs import make_context
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import compile_task, get_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.task import EarlyEnd, Term
from thousandfold.stages.closed_loop import evaluate
from thousandfold.stages.episodes import (
    EpisodeStream,
    mean_interval,
    retention,
    run_episodes,
    run_round,
    steps,
    wilson_interval,
)

TASK = compile_task("point_u_maze")


def towards_goal(observation, goal):
    return np.clip(5 * (goal - observation[:, :2]), -1, 1)


def still(observation, goal):
    return np.zeros((len(observation), 2), np.float32)


def test_wilson_interval_by_hand():
    low, high = wilson_interval(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-3), pytest.approx(0.9433, abs=1e-3))
    for trials in (10, 64, 256):
        assert wilson_interval(0, trials)[0] == 0.0 and wilson_interval(trials, trials)[1] == 1.0
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_starts_and_goals_are_the_same_for_every_policy():
    first = run_episodes(TASK, still, episodes=20, seed=3)
    second = run_episodes(TASK, towards_goal, episodes=20, seed=3)
    assert np.array_equal(first.start, second.start) and np.array_equal(first.goal, second.goal)
    assert not np.array_equal(first.goal, run_episodes(TASK, still, episodes=20, seed=4).goal)


def test_outcomes_follow_from_the_paths():
    episodes = run_episodes(TASK, towards_goal, episodes=40, seed=0, distribution="training", num_paths=40)
    assert 0 < episodes.success.mean() < 1  # goals behind the wall are not met by going straight
    for i, path in enumerate(episodes.paths):
        assert path.shape == (101, 2)
        within = np.linalg.norm(path[1:] - episodes.goal[i], axis=1) < 0.3
        assert episodes.success[i] == within.any()
        assert episodes.time_at_goal[i] == pytest.approx(1000 * within.mean())
        assert episodes.final_distance[i] == pytest.approx(
            np.linalg.norm(path[-1] - episodes.goal[i]), abs=1e-5
        )


def test_more_episodes_than_worlds_run_in_rounds(monkeypatch):
    monkeypatch.setattr("thousandfold.stages.episodes.MAX_WORLDS", 8)
    episodes = run_episodes(TASK, still, episodes=20, seed=0, num_paths=10)
    assert len(episodes.success) == 20 and len(episodes.paths) == 10
    assert len(np.unique(episodes.start, axis=0)) == 20


def test_a_diverged_episode_counts_as_a_failure():
    def poison(observation, goal):
        action = towards_goal(observation, goal)
        action[0] = np.nan
        return action

    episodes = run_episodes(TASK, poison, episodes=8, seed=0, distribution="training")
    assert episodes.unstable.tolist() == [True] + [False] * 7 and not episodes.success[0]
    assert episodes.time_at_goal[0] == 0 and episodes.summary()["unstable_episodes"] == 1


def test_each_world_runs_until_its_own_episode_is_over():
    left = EarlyEnd(Term("qpos", "x"), low=-10.0, high=1.3)  # the wall stops the point at 1.35
    task = CompiledTask(dataclasses.replace(get_task("point_u_maze"), early_end=(left,), episode_steps=60))

    def policy(observation, goal):
        return np.array([[1, 0], [0, 0], [np.nan, 0]], np.float32)

    taken = list(steps(CpuSimulator(task, 3, distribution="evaluation"), policy))
    running = np.stack([step.running for step in taken])
    ended = np.stack([step.ended for step in taken])
    assert len(taken) == 60 and (ended.sum(0) == 1).all()
    length = running.sum(0)
    assert 2 < length[0] < 60 and length[1:].tolist() == [60, 1]
    assert (np.arange(60)[:, None] < length).tolist() == running.tolist()
    assert (ended.argmax(0) == length - 1).all()
    assert [np.flatnonzero(step.unstable).tolist() for step in taken] == [[2]] + [[]] * 59
    outcome = run_round(CpuSimulator(task, 3, distribution="evaluation"), policy, num_paths=3)
    assert [len(path) for path in outcome.paths] == (length + 1).tolist()


def test_summary_reports_the_interval_and_the_count():
    summary = run_episodes(TASK, towards_goal, episodes=16, seed=0, distribution="training").summary()
    low, high = summary["success_interval"]
    assert low <= summary["success"] <= high and summary["episodes"] == 16


def test_retention_is_a_ratio_with_a_paired_interval():
    rng = np.random.default_rng(0)
    teacher = rng.random(1000) < 0.9
    same = retention(teacher, teacher)
    assert same["retention"] == 1.0 and 0.99 < same["interval"][0] < 1 < same["interval"][1] < 1.01
    student = teacher & (rng.random(1000) < 0.95)
    measured = retention(teacher, student)
    low, high = measured["interval"]
    assert measured["retention"] == pytest.approx(student.sum() / teacher.sum())
    assert low < measured["retention"] < high < 1 and high - low < 0.04


@pytest.mark.parametrize(
    ("count", "teacher", "student"),
    [(1024, 0.999, 0.998), (64, 1.0, 0.985), (64, 0.999, 0.998), (1024, 1.0, 0.999), (1024, 1.0, 0.985)],
)
def test_the_interval_of_retention_covers_near_one(count, teacher, student):
    """Whatever the student reaches the teacher does too; without pseudo-pairs these cover 7 to 93 %."""
    shares = [student, teacher - student, 1 - teacher]
    drawn = np.random.default_rng(1).multinomial(count, shares, size=1000)
    covered = 0
    for cells, times in zip(*np.unique(drawn, axis=0, return_counts=True), strict=True):
        low, high = retention(np.repeat([1, 1, 0], cells), np.repeat([1, 0, 0], cells))["interval"]
        covered += times * (low <= student / teacher <= high)
    assert covered / len(drawn) >= 0.93


@pytest.mark.parametrize("outcomes", [np.ones(64), np.full(64, 300.0), np.linspace(0, 900, 64)])
def test_pairs_that_agree_leave_an_interval_that_has_a_width(outcomes):
    low, high = retention(outcomes, outcomes)["interval"]
    # None of n lost leaves 3 / n possible at 95 %, of outcomes as large as the largest.
    expected = 3 / 64 * outcomes.max() / outcomes.mean()
    assert 0.6 * expected < 1 - low < 1.5 * expected and 0.6 * expected < high - 1 < 1.5 * expected


def test_retention_of_a_teacher_without_success_is_undefined():
    assert retention(np.zeros(4), np.ones(4)) == {"retention": None, "interval": None}


def test_other_radii_count_episodes_that_came_so_near():
    task = CompiledTask(dataclasses.replace(TASK.spec, other_radii={"easy": 1.9, "hard": 0.005}))
    episodes = run_episodes(task, towards_goal, episodes=40, seed=0, distribution="training", num_paths=40)
    closest = [
        np.linalg.norm(path[1:] - goal, axis=1).min()
        for path, goal in zip(episodes.paths, episodes.goal, strict=True)
    ]
    assert episodes.closest_distance == pytest.approx(closest, abs=1e-5)
    summary = episodes.summary()
    assert summary["success_easy"] == np.mean(np.array(closest) < 1.9)
    assert summary["success_hard"] == np.mean(np.array(closest) < 0.005)
    assert summary["success_hard"] < summary["success"] <= summary["success_easy"]


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(3.0, 2.0, 2000)
    low, high = mean_interval(values)
    half = 1.96 * values.std() / np.sqrt(2000)
    assert (low, high) == (
        pytest.approx(values.mean() - half, abs=0.01),
        pytest.approx(values.mean() + half, abs=0.01),
    )


def test_a_stream_goes_on_where_it_stopped(monkeypatch):
    monkeypatch.setattr("thousandfold.stages.episodes.MAX_WORLDS", 8)
    steps = []

    def counting(observation, goal):
        steps.append(len(observation))
        return still(observation, goal)

    stream = EpisodeStream(TASK, counting, seed=3, num_paths=3)
    for count in (16, 20, 10):
        found, fresh = stream.first(count), run_episodes(TASK, still, episodes=count, seed=3, num_paths=3)
        for name in ("start", "goal", "final_distance", "success"):
            assert np.array_equal(getattr(found, name), getattr(fresh, name))
        assert len(found.paths) == 3
    assert len(steps) == 3 * 100  # three rounds for 20 episodes, and none run twice


def test_a_stream_of_few_episodes_starts_again_with_more_worlds():
    stream = EpisodeStream(TASK, still, seed=3)
    stream.first(4)
    assert np.array_equal(stream.first(20).goal, run_episodes(TASK, still, episodes=20, seed=3).goal)


@pytest.mark.parametrize("discrete", [True, False])
def test_the_interval_of_retention_is_that_of_resampled_episodes(discrete, monkeypatch):
    monkeypatch.setattr("thousandfold.stages.episodes._CHUNK_NUMBERS", 500 * 300)  # several chunks
    rng, count = np.random.default_rng(0), 500
    teacher = rng.random(count) if not discrete else (rng.random(count) < 0.8).astype(float)
    student = teacher * (rng.random(count) < 0.9)
    measured = retention(teacher, student)
    ratios = []
    for _ in range(4000):
        rows = rng.integers(count, size=count)
        ratios.append(student[rows].sum() / teacher[rows].sum())
    assert measured["interval"] == pytest.approx(np.percentile(ratios, [2.5, 97.5]).tolist(), abs=0.004)


def test_where_goals_change_an_evaluation_says_which_share_was_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    task = CompiledTask(dataclasses.replace(get_task("point_u_maze"), episode_steps=40, resample_every=20))
    monkeypatch.setattr(evaluate, "load_policy", lambda *_: (task, towards_goal))
    context = make_context(tmp_path)
    source = context.workspace.create("teacher", task="point_u_maze", settings={})
    source.complete({})
    settings = evaluate.EvaluateSettings(episodes=16, num_paths=0, distribution="training")
    results = evaluate.run(settings, context, source).manifest.results
    low, high = results["goals_held_interval"]
    assert results["success"] < results["goals_held"] and low <= results["goals_held"] <= high
    assert f"; {results['goals_held']:.3f} of all goals were held, " in capsys.readouterr().out
