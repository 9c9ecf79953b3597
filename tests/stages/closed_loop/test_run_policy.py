"""A policy in closed loop: success as evaluation counts it, pace, goals, clipping, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.stages.policy_file.handmade_policy import LIMIT, expected_action, metadata, write_policy
from thousandfold.envs.pictures.live_viewer import NoScreenError
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.ground.errors import NonFiniteError, SettingsError, UserError
from thousandfold.pipeline.artifacts import Workspace
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.runtime import seed_sequence
from thousandfold.stages.closed_loop import run_policy
from thousandfold.stages.closed_loop.paced_world import ClosedLoop, LoopEnded
from thousandfold.stages.closed_loop.run_policy import RunPolicySettings
from thousandfold.stages.episodes import run_round
from thousandfold.stages.policy_file.source import PolicySource, open_source


@pytest.fixture
def source(tmp_path: Path) -> PolicySource:
    """Return a policy with short episodes."""
    return source_of(tmp_path)


def source_of(folder: Path, **changes: Any) -> PolicySource:
    path = write_policy(folder / "policy.onnx", json.dumps(metadata(**{"episode_steps": 20} | changes)))
    return open_source(Workspace(folder), str(path))


def fast(**changes: Any) -> RunPolicySettings:
    return RunPolicySettings(**{"fast": True, "episodes": 3, "viewer": "off"} | changes)


def run(settings: RunPolicySettings, source: PolicySource) -> dict[str, Any]:
    return run_policy.run(settings, Console(silent=True), source)


def test_episodes_are_those_of_the_same_policy_in_numpy(source: PolicySource) -> None:
    seed = seed_sequence(5, 47)
    simulator = CpuSimulator(source.task, 1, seed=seed, distribution="evaluation")
    rounds = []
    for _ in range(6):
        rounds.append(run_round(simulator, expected_action))
        simulator.reset()
    found = run(fast(episodes=6, seed=5), source)
    assert found["success"] == np.mean([part.success[0] for part in rounds])
    assert found["time_at_goal"] == pytest.approx(np.mean([part.time_at_goal[0] for part in rounds]))
    final = np.mean([part.final_distance[0] for part in rounds])
    assert found["final_distance"] == pytest.approx(final, abs=1e-4)
    assert (found["episodes"], found["steps"], found["ended_by"]) == (6, 120, "episodes")
    low, high = found["success_interval"]
    assert 0 <= low <= found["success"] <= high <= 1
    assert found["missed"] is None and found["rate_hz"] is None and found["achieved_rate_hz"] > 100


def test_a_goal_is_commanded_in_its_units(source: PolicySource, capsys: pytest.CaptureFixture[str]) -> None:
    goals = []
    step = source.policy.step
    source.policy.step = lambda observation, goal: (goals.append(goal.copy()), step(observation, goal))[1]
    found = run(fast(goal=(0.5, -0.25)), source)
    assert found["goal"] == [0.5, -0.25]
    assert np.array_equal(goals, [[0.5, -0.25]] * 60)
    assert capsys.readouterr().err == ""

    found = run_policy.run(fast(goal=(0.5, 4.0)), Console(), source)
    assert "goal qpos:y[0] = 4 m: the policy was checked from -1 to 1, and acts as if it were 3" in (
        capsys.readouterr().err
    )
    assert found["clipped_share"] == 1.0 and found["clipped"]["qpos:y[0]"] == 1.0


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        ((1.0,), r"--goal has 1 numbers, task 'point_u_maze' takes 2: qpos:x\[0\] \(m\), qpos:y\[0\] \(m\)"),
        ((float("nan"), 1.0), r"qpos:x\[0\] must be a finite number"),
        ((1.0, float("-inf")), r"qpos:y\[0\] must be a finite number"),
        ((1.0, 1e300), r"qpos:y\[0\] must be a finite number of float32"),
    ],
)
def test_a_wrong_goal_is_refused(source: PolicySource, goal: tuple[float, ...], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        run(fast(goal=goal), source)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rate_hz": 0.0}, "--rate must be a number of Hz above 0, not 0"),
        ({"rate_hz": -5.0}, "not -5"),
        ({"rate_hz": float("nan")}, "not nan"),
        ({"seconds": float("inf")}, "--seconds must be a number of s above 0"),
        ({"episodes": 0}, "--episodes must be at least 1"),
        ({"seed": -1}, "--seed"),
        ({"fast": True, "rate_hz": 5.0}, "--fast .* --rate"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        RunPolicySettings(**values)


def test_an_unknown_distribution_is_refused(source: PolicySource) -> None:
    with pytest.raises(UserError, match="no episode distribution 'elsewhere'"):
        run(fast(distribution="elsewhere"), source)


def test_the_pace_is_the_policys_own_or_the_one_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = source_of(tmp_path, episode_steps=3)
    settings = RunPolicySettings(episodes=1, viewer="off")
    found = run_policy.run(settings, Console(), source)
    assert found["rate_hz"] == found["own_rate_hz"] == pytest.approx(10.0)
    assert found["ticks"] >= 3 and found["missed"] == found["ticks"] - 3  # a busy machine may miss some
    assert found["achieved_rate_hz"] <= 10.1
    printed = capsys.readouterr().out
    assert "at 10 Hz, real time" in printed and "ticks missed" in printed and "over 1 episodes" in printed

    found = run(RunPolicySettings(episodes=1, viewer="off", rate_hz=200.0), source)
    assert found["rate_hz"] == 200.0 and found["achieved_rate_hz"] <= 202


def test_time_ends_the_run_and_a_cut_episode_does_not_count(
    source: PolicySource, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = RunPolicySettings(seconds=0.25, viewer="off")  # two seconds an episode
    found = run_policy.run(settings, Console(), source)
    assert found["ended_by"] == "seconds" and found["episodes"] == 0 and found["success"] is None
    assert 1 <= found["steps"] <= 4
    assert "No complete episode; the time is used up" in capsys.readouterr().out
    found = run(RunPolicySettings(seconds=0.5, fast=True, viewer="off"), source)
    assert found["ended_by"] == "seconds" and found["episodes"] > 3


def test_ctrl_c_ends_it_with_what_is_complete(
    source: PolicySource, capsys: pytest.CaptureFixture[str]
) -> None:
    calls, step = [], source.policy.step

    def interrupted(observation: np.ndarray, goal: np.ndarray) -> Any:
        calls.append(1)
        if len(calls) == 50:
            raise KeyboardInterrupt
        return step(observation, goal)

    source.policy.step = interrupted
    found = run_policy.run(fast(episodes=10), Console(), source)
    assert (found["episodes"], found["steps"], found["ended_by"]) == (2, 49, "interrupt")
    assert "over 2 episodes; ended by Ctrl-C" in capsys.readouterr().out


class Window:
    """A viewer that notes what it is told to show."""

    def __init__(self, keys: list[str], close_after: int | None = None) -> None:
        self.shown: list[tuple[np.ndarray, np.ndarray, bool]] = []
        self.keys, self.close_after, self.closed = keys, close_after, False

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    @property
    def is_open(self) -> bool:
        return self.close_after is None or len(self.shown) < self.close_after

    def show(self, qpos: np.ndarray, goal: np.ndarray, *, reached: bool, shape: object) -> None:
        self.shown.append((qpos.copy(), goal.copy(), reached))


def test_closing_the_window_ends_the_run(source: PolicySource, monkeypatch: pytest.MonkeyPatch) -> None:
    windows: list[Window] = []

    def opened(task: Any, on_key: Any, *, distribution: str) -> Window:
        assert distribution == "evaluation"
        windows.append(Window([], close_after=3))
        return windows[0]

    monkeypatch.setattr(run_policy, "LiveViewer", opened)
    found = run(RunPolicySettings(rate_hz=50.0, goal=(0.5, 0.5)), source)
    assert found["ended_by"] == "window" and found["episodes"] == 0
    assert windows[0].closed and len(windows[0].shown) == 3
    qpos, goal, reached = windows[0].shown[0]
    assert qpos.shape == (source.task.model.nq,) and goal.tolist() == [0.5, 0.5] and reached is False


def test_a_key_goes_on_to_the_next_episode(source: PolicySource) -> None:
    simulator = CpuSimulator(source.task, 1)
    keys: list[str] = ["N"]
    loop = ClosedLoop(source.policy, simulator, keys=keys)
    loop.begin_episode()  # what was pressed before it does not count
    loop(simulator.observation, simulator.desired_goal)
    keys += ["X", "N"]
    with pytest.raises(LoopEnded, match="next"):
        loop(simulator.observation, simulator.desired_goal)
    assert loop.figures()["steps"] == 1


def test_no_screen_is_said_and_refused_only_where_a_window_is_asked_for(
    source: PolicySource, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> Iterator[None]:
        raise NoScreenError("there is no screen here")

    monkeypatch.setattr(run_policy, "LiveViewer", fail)
    run_policy.run(RunPolicySettings(rate_hz=1000.0, episodes=1), Console(), source)
    assert "No viewer: there is no screen here." in capsys.readouterr().out
    with pytest.raises(UserError, match=r"No viewer: there is no screen here\. Leave --viewer on out"):
        run(fast(viewer="on"), source)


def test_clipped_inputs_are_counted_and_what_is_not_finite_is_refused(source: PolicySource) -> None:
    simulator = CpuSimulator(source.task, 1)
    loop = ClosedLoop(source.policy, simulator)
    assert loop.figures()["clipped_share"] is None and loop.figures()["latency"]["p50_us"] is None
    rows = np.zeros((4, 4), np.float32)
    rows[1, 2], rows[2, 2], rows[2, 0], rows[3, 3] = LIMIT + 1, -LIMIT - 1, 2 * LIMIT, LIMIT
    for row in rows:
        loop(row[None], np.zeros((1, 2), np.float32))
    figures = loop.figures()
    assert figures["clipped_share"] == 0.5
    assert figures["clipped"] == {"qvel:x[0]": 0.5, "qpos:x[0]": 0.25}
    latency = figures["latency"]
    assert 0 < latency["p50_us"] <= latency["p99_us"] <= latency["max_us"]
    with pytest.raises(NonFiniteError, match=r"observation\[1\]"):
        loop(np.array([[0, np.nan, 0, 0]], np.float32), np.zeros((1, 2), np.float32))
