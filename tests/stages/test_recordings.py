"""Recordings to play: which goals, what is kept of the way to them, and what the packed numbers say."""

from __future__ import annotations

import base64
import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.envs.user_tasks.user_pages import PAGE, write
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.pictures.solids import Solids
from thousandfold.envs.registry import compile_task, get_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.stages import recordings
from thousandfold.stages.episodes import Policy
from thousandfold.stages.recordings import plan_columns, record_goals, spread, write_recording
from thousandfold.stages.videos import RecordedEpisode, Starts, record_episodes

TASK = compile_task("point_u_maze")


def towards_goal(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
    return np.clip(5 * (goal - observation[:, :2]), -1, 1)


def still(task: CompiledTask) -> Policy:
    return lambda observation, goal: np.zeros((len(observation), task.action_dim), np.float32)


def recorded(task: CompiledTask, policy: Policy, goals: int = 9) -> list[RecordedEpisode]:
    seed = np.random.SeedSequence(3)
    return record_goals(task, policy, goals=goals, seed=seed, distribution="training")


def written(path: Path, task: CompiledTask, episodes: list[RecordedEpisode]) -> dict[str, Any]:
    write_recording(path / "recording.json", task, episodes, "training")
    assert [file.name for file in path.iterdir()] == ["recording.json"]
    return json.loads((path / "recording.json").read_text())


def unpacked(content: dict[str, Any]) -> list[np.ndarray]:
    """Return the frames of each episode, (frames, columns), as the page reads them."""
    raw = np.frombuffer(zlib.decompress(base64.b64decode(content["numbers"])), np.uint8).astype(int)
    low, high, found, at = np.array(content["low"]), np.array(content["high"]), [], 0
    for episode in content["episodes"]:
        shape = (len(low), episode["frames"])
        count = shape[0] * shape[1]
        differences = raw[at : at + count] + 256 * raw[at + count : at + 2 * count]
        levels = np.cumsum(differences.reshape(shape), axis=1) & 65535
        found.append(low + (high - low) * levels.T / 65535)
        at += 2 * count
    assert at == len(raw)
    return found


# -- which goals --------------------------------------------------------------------------------------


def test_goals_lie_on_a_grid_as_fine_as_their_number_allows() -> None:
    points = np.random.default_rng(0).uniform((-2, 0), (2, 4), (4000, 2))
    chosen = points[spread(points, 49, square=True)]
    assert 40 <= len(chosen) <= 49
    off = np.abs((chosen - (-2, 0)) / (4 / 7) % 1 - 0.5)
    assert off.max() < 0.2, "each near the middle of its cell"
    distances = np.linalg.norm(chosen[:, None] - chosen, axis=-1) + 9 * np.eye(len(chosen))
    assert distances.min() > 0.7 * 4 / 7


@pytest.mark.parametrize(
    ("points", "most", "expected"),
    [
        (np.zeros((50, 2)), 9, 1),
        (np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 5.0]] * 10), 9, 3),
        (np.linspace(0, 1, 500)[:, None], 49, 15),
        (np.linspace(0, 1, 500)[:, None], 1, 1),
    ],
)
def test_few_goals_and_goals_in_a_row(points: np.ndarray, most: int, expected: int) -> None:
    assert len(spread(points, most, square=True)) == expected


def test_numbers_of_different_units_have_a_grid_of_their_own_each() -> None:
    points = np.random.default_rng(0).uniform((0, 0), (1000, 1), (4000, 2))
    assert len(spread(points, 49, square=False)) > 40 > len(spread(points, 25, square=True))


@pytest.mark.parametrize(
    ("name", "columns"), [("point_u_maze", [0, 1]), ("arm_grasp", [0, 1]), ("half_cheetah", [0])]
)
def test_the_grid_spans_x_and_y_or_the_first_numbers(name: str, columns: list[int]) -> None:
    assert plan_columns(compile_task(name)) == columns


# -- what is recorded ---------------------------------------------------------------------------------


def test_every_episode_goes_from_its_start_to_its_own_goal() -> None:
    episodes = recorded(TASK, towards_goal)
    assert 5 <= len(episodes) <= 9 and 0 < sum(episode.success for episode in episodes) < len(episodes)
    goals = np.stack([episode.goals[0] for episode in episodes])
    assert len(np.unique(goals.round(2), axis=0)) == len(goals)
    again = recorded(TASK, towards_goal)
    for one, other in zip(episodes, again, strict=True):
        assert np.array_equal(one.qpos, other.qpos) and (one.goals == one.goals[0]).all()


def test_given_starts_are_run_as_a_simulator_runs_them() -> None:
    delayed = CompiledTask(dataclasses.replace(get_task("point_u_maze"), action_delay=(2, 2)))
    starts = Starts(*delayed.sample_start("training", np.random.default_rng(1), 3))
    episodes = record_episodes(
        delayed, towards_goal, episodes=3, seed=0, distribution="training", starts=starts
    )
    simulator = CpuSimulator(delayed, 3, seed=0, distribution="training")
    simulator.set_state(starts.qpos, starts.qvel)
    simulator.set_goal(starts.goals)
    for step in range(1, 20):
        simulator.step(towards_goal(simulator.observation, simulator.desired_goal))
        for world, episode in enumerate(episodes):
            assert np.array_equal(episode.qpos[step], simulator.qpos[world])
    for start, goal, episode in zip(starts.qpos, starts.goals, episodes, strict=True):
        assert np.array_equal(episode.qpos[0], start) and np.allclose(episode.goals[0], goal)
        assert np.array_equal(episode.qpos[1], start), "what is sent acts two steps later"


# -- the file -----------------------------------------------------------------------------------------


def test_the_numbers_are_where_the_bodies_were(tmp_path: Path) -> None:
    task = compile_task("arm_reach")
    episodes = recorded(task, still(task), goals=4)
    content, solids = written(tmp_path, task, episodes), Solids(task)
    assert [axis["name"] for axis in content["axes"]] == ["x", "y"] and content["goal_numbers"] == 3
    stride = round(content["frame_s"] / task.spec.control_dt_s)
    for episode, frames, told in zip(episodes, unpacked(content), content["episodes"], strict=True):
        assert len(frames) == told["frames"] == -(-len(episode.qpos) // stride)
        for frame in (0, len(frames) // 2, len(frames) - 1):
            step = frame * stride
            poses = frames[frame][: 7 * len(solids.bodies)].reshape(-1, 7)
            expected = solids.poses(episode.qpos[step])
            assert np.abs(poses[:, :3] - expected[:, :3]).max() < 1e-3
            assert np.abs((poses[:, 3:] * expected[:, 3:]).sum(1)).min() > 1 - 1e-4
            distance, there, *achieved = frames[frame][7 * len(solids.bodies) :]
            away = float(task.goal_distance(episode.achieved[step], episode.goals[step]))
            assert distance == pytest.approx(away, abs=1e-3) and bool(round(there)) == episode.at_goal[step]
            assert achieved == pytest.approx(episode.achieved[step][:2], abs=1e-3)
        assert told["place"] == pytest.approx(episode.goals[0], abs=1e-6)


def test_what_comes_long_after_success_is_left_out(tmp_path: Path) -> None:
    episodes = recorded(TASK, towards_goal)
    content = written(tmp_path, TASK, episodes)
    for episode, told in zip(episodes, content["episodes"], strict=True):
        if not episode.success:
            assert told["success_s"] is None and told["frames"] == 101
            continue
        step = 1 + int(np.flatnonzero(episode.at_goal[1:])[0])
        assert told["success_s"] == pytest.approx(step * 0.1)
        assert told["frames"] == min(101, step + 21)
    held = dataclasses.replace(episodes[0], at_goal=np.arange(101) > 10, hold_steps=5)
    assert written(tmp_path, TASK, [held])["episodes"][0]["success_s"] == pytest.approx(1.5)


def test_long_episodes_have_fewer_frames_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    episodes = recorded(TASK, still(TASK), goals=4)
    whole = written(tmp_path, TASK, episodes)
    monkeypatch.setattr(recordings, "_MOST_NUMBERS", 1500)
    small = written(tmp_path, TASK, episodes)
    assert whole["frame_s"] == 0.1 < small["frame_s"]
    assert sum(each["frames"] for each in small["episodes"]) * len(small["low"]) < 2000
    assert len(small["numbers"]) < len(whole["numbers"])


def test_a_maze_has_its_walls_and_others_room_around_goals_and_starts(tmp_path: Path) -> None:
    plan = written(tmp_path, TASK, recorded(TASK, still(TASK), goals=4))["plan"]
    assert TASK.spec.maze is not None
    free = np.array([[character != "#" for character in row] for row in TASK.spec.maze.layout.split()])
    assert len(plan["walls"]) == (~free).sum() and [0.5, -0.5, 1.5, 0.5] in plan["walls"]

    ant = compile_task("ant").changed(episode_steps=3)
    content = written(tmp_path, ant, recorded(ant, still(ant), goals=9))
    assert content["plan"]["walls"] == [] and content["camera"]["follow"] >= 0
    for each in content["episodes"]:
        assert np.less(content["plan"]["low"], each["point"]).all()
        assert np.less(each["point"], content["plan"]["high"]).all()


def test_a_users_task_without_a_position_as_its_goal(tmp_path: Path) -> None:
    folder = tmp_path / "task"
    folder.mkdir()
    goal = "achieved_goal: {field: site_xpos, object: fingertip, unit: m}"
    box = "goal: {box: {low: [0.2, 0, -0.3], high: [0.3, 0, -0.1]}}"
    page = PAGE.replace(goal, "achieved_goal: {field: qpos, object: elbow, unit: rad}")
    page = page.replace(box, "goal: {box: {low: [-1], high: [1]}}")
    task = compile_task(str(write(folder, page))).changed(episode_steps=5)
    (tmp_path / "out").mkdir()
    content = written(tmp_path / "out", task, recorded(task, still(task), goals=49))
    assert content["marker"] is None and len(content["episodes"]) == 15
    assert content["axes"] == [{"name": "qpos:elbow[0]", "unit": "rad"}]
    assert all(each["place"] is None for each in content["episodes"])
