"""`pipeline play`: keys and the mouse on a stand-in for the window; without a screen a line says so."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from click.testing import CliRunner

from tests.end_to_end.command_line import clean_environment, command, error_of
from tests.stages.policy_file.handmade_policy import metadata, policy_artifact, write_policy
from thousandfold.envs.pictures.live_viewer import Caption
from thousandfold.envs.registry import compile_task
from thousandfold.ground.errors import SettingsError, UserError
from thousandfold.pipeline.cli import cli
from thousandfold.pipeline.console import Console
from thousandfold.stages.closed_loop import play
from thousandfold.stages.closed_loop.play import PlaySettings

TASK = compile_task("point_u_maze")


class HandClock:
    """A clock that moves when somebody sleeps, and a little with each look at it."""

    def __init__(self) -> None:
        self.now = 0

    def perf_counter_ns(self) -> int:
        self.now += 10_000
        return self.now

    def process_time_ns(self) -> int:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.now += round(seconds * 1e9)


class FakeViewer:
    """Records what is shown; at some frames it presses a key, drags the goal, takes long, or is closed."""

    made: ClassVar[list[FakeViewer]] = []
    script: ClassVar[dict[int, Any]] = {}

    def __init__(self, task: Any, on_key: Any, *, distribution: str, draggable: bool) -> None:
        assert draggable
        self.on_key, self.shown, self.is_open = on_key, list[tuple[np.ndarray, np.ndarray]](), True
        self.captions: list[Caption] = []
        self.made.append(self)

    def __enter__(self) -> FakeViewer:
        return self

    def __exit__(self, *_: object) -> None:
        self.is_open = False

    def show(self, qpos: np.ndarray, goal: np.ndarray, *, captions: Any, **_: Any) -> np.ndarray | None:
        self.shown.append((qpos, goal))
        self.captions = list(captions)
        happens: Any = self.script.get(len(self.shown))
        if isinstance(happens, str):
            self.on_key(happens)
            return None
        return happens(self) if happens else None


@pytest.fixture
def viewers(monkeypatch: pytest.MonkeyPatch) -> list[FakeViewer]:
    FakeViewer.made = []
    FakeViewer.script = {}
    monkeypatch.setattr(play, "LiveViewer", FakeViewer)
    return FakeViewer.made


def towards_goal(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
    return np.clip(5 * (goal - observation[:, :2]), -1, 1)


def run(script: dict[int, Any], clock: HandClock | None = None, **settings: Any) -> dict[str, Any]:
    FakeViewer.script = script
    given = PlaySettings(**{"seconds": 2.0, **settings})
    return play.run(given, Console(), TASK, towards_goal, "a policy", clock=clock or HandClock())


def closes(viewer: FakeViewer) -> None:
    viewer.is_open = False


def test_it_runs_in_real_time_with_frames_between_the_steps(viewers: list[FakeViewer]) -> None:
    calls = []

    def counting(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        calls.append(1)
        return towards_goal(observation, goal)

    play.run(PlaySettings(seconds=2.0), Console(), TASK, counting, "a policy", clock=HandClock())
    assert 20 <= len(calls) <= 21  # at 10 Hz
    shown = viewers[0].shown
    assert 118 <= len(shown) <= 121  # at 60 Hz
    moved = [not np.allclose(one[0], other[0]) for one, other in itertools.pairwise(shown)]
    assert np.mean(moved) > 0.8


def test_a_slow_window_shows_fewer_frames_and_keeps_the_pace(viewers: list[FakeViewer]) -> None:
    clock, calls = HandClock(), []

    def counting(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        calls.append(1)
        return towards_goal(observation, goal)

    FakeViewer.script = dict.fromkeys(range(1, 100), lambda viewer: clock.sleep(0.3))
    play.run(PlaySettings(seconds=3.0), Console(), TASK, counting, "a policy", clock=clock)
    assert len(viewers[0].shown) <= 11 and 28 <= len(calls) <= 31


def test_keys_and_the_mouse_place_goals(
    viewers: list[FakeViewer], capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(
        {5: "RIGHT", 10: lambda viewer: np.array([1.5, 1.0, 0.0]), 15: " ", 100: closes},
        seconds=9.0,
        goal=(2.0, 1.0),
    )
    goals = [goal for _, goal in viewers[0].shown]
    assert len(goals) == 100 and goals[0] == pytest.approx([2.0, 1.0])
    assert goals[5][0] > 2.0 and goals[10] == pytest.approx([1.5, 1.0])
    assert not np.allclose(goals[15], goals[14]) and found["goals"] >= 2
    help_, state = viewers[0].captions
    assert help_.corner == "TOPLEFT" and "another goal" in help_.right
    assert "m to the goal" in state.left and "qpos:x[0]" in state.left
    said = capsys.readouterr().out
    assert "Playing a policy on task point_u_maze at 10 Hz, real time." in said
    assert f"{found['reached']} of {found['goals']} goals reached." in said


def test_a_goal_that_is_reached_is_said_once(
    viewers: list[FakeViewer], capsys: pytest.CaptureFixture[str]
) -> None:
    def onto_it(viewer: FakeViewer) -> np.ndarray:
        return np.array([*viewer.shown[-1][0], 0.0])

    found = run({2: onto_it}, goal=(1.0, 1.0))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Goal ")]
    assert found == {"policy": "a policy", "task": "point_u_maze", "goals": 1, "reached": 1}
    assert len(lines) == 1 and "reached after 0." in lines[0]


def test_ctrl_c_ends_it_as_closing_does(viewers: list[FakeViewer]) -> None:
    def interrupt(viewer: FakeViewer) -> None:
        raise KeyboardInterrupt

    assert run({3: interrupt})["goals"] == 1 and not viewers[0].is_open


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"goal": (1.0,)}, r"--goal has 1 numbers, task 'point_u_maze' takes 2: qpos:x\[0\] \(m\)"),
        ({"goal": (1.0, float("nan"))}, "must be finite"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"seconds": 0.0}, "--seconds must be a number above 0"),
        ({"distribution": "elsewhere"}, "no episode distribution 'elsewhere'"),
    ],
)
def test_settings_that_make_no_sense(viewers: list[FakeViewer], settings: dict[str, Any], words: str) -> None:
    with pytest.raises((SettingsError, UserError), match=words):
        run({}, **settings)
    assert viewers == []


# -- the command ----------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("THOUSANDFOLD_WORKSPACE", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    policy_artifact(tmp_path)
    write_policy(tmp_path / "policy.onnx", json.dumps(metadata(episode_steps=10)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["play", *arguments])


@pytest.mark.parametrize("arguments", [(), ("--policy", "policy.onnx"), ("--policy", "newest")])
def test_without_a_screen_one_line_says_what_else_there_is(
    workspace: Path, arguments: tuple[str, ...]
) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 2
    line = error_of(done.stderr)
    assert "No window to play in: there is no screen here" in line and "pipeline report --open" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--policy", "gone.onnx"), "gone.onnx is no file"),
        (("--policy", "policy.onnx", "--student", "newest"), "Give one of --policy, --student, --teacher"),
        (("--policy", "policy.onnx", "--task", "reacher"), "for task 'point_u_maze', not for 'reacher'"),
        (("--task", "reacher"), "--task goes with a policy file"),
        (("--goal", "1;2"), "'1;2' is no number"),
        (("--teacher", "newest"), "pipeline train-teacher"),
    ],
)
def test_a_mistake_is_one_line(workspace: Path, arguments: tuple[str, ...], words: str) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 2 and words in error_of(done.stderr)


def test_the_command_plays_what_it_is_told(workspace: Path, viewers: list[FakeViewer]) -> None:
    FakeViewer.script = {3: closes}
    done = invoke("--policy", "policy.onnx", "--goal", "1,1", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["goals"] == 1
    assert viewers[0].shown[0][1] == pytest.approx([1.0, 1.0])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("xvfb-run") is None, reason="xvfb-run is not installed")
def test_a_real_window_opens_and_closes(workspace: Path) -> None:
    arguments = command("play", "--policy", "policy.onnx", "--seconds", "2", "--json")
    done = subprocess.run(
        ["xvfb-run", "-a", "-s", "-screen 0 1280x900x24", *arguments],
        cwd=workspace,
        env=clean_environment() | {"LIBGL_ALWAYS_SOFTWARE": "1", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if "the screen gives no window" in done.stderr:
        pytest.skip("the virtual screen gives no window with OpenGL")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["goals"] == 1
