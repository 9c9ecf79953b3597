"""`pipeline tasks check` through Click's runner: what it tells, what it draws, and what it refuses."""

from __future__ import annotations

import ctypes.util
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tests.end_to_end.command_line import error_of
from tests.envs.user_tasks.user_pages import ARM, PAGE, changed, with_line, write
from thousandfold.envs.pictures.opengl import NoOpenGLError, choose_backend
from thousandfold.pipeline.cli import cli
from thousandfold.stages.tasks import check as tasks_check
from thousandfold.stages.tasks.check import write_png

ROOT = Path(__file__).resolve().parents[3]


def has_opengl() -> bool:
    try:
        choose_backend()
    except NoOpenGLError:
        return False
    return True


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("THOUSANDFOLD_TRACEBACK", raising=False)


def invoke(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["tasks", *arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def check(*arguments: str) -> dict[str, Any]:
    result = invoke("check", "robot.yaml", "--episodes", "4", "--json", *arguments)
    (line,) = result.stdout.splitlines()
    return json.loads(line)


def read_png(path: Path) -> np.ndarray:
    """Return the picture of a PNG whose lines are not filtered."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + content)
        chunks[kind], at = content, at + 12 + length
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    assert not lines[:, 0].any()
    return lines[:, 1:].reshape(height, width, 3)


class TestCommand:
    def test_the_group_alone_still_lists(self) -> None:
        assert "point_u_maze" in invoke().stdout
        assert json.loads(invoke("--json").stdout)["tasks"][0]["task"] == "point_u_maze"

    def test_what_it_tells(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tasks_check, "draw_starts", lambda *_: np.zeros((2, 6, 3), np.uint8))
        write(Path.cwd())
        result = invoke("check", "robot.yaml", "--episodes", "4")
        for text in (
            "Task my_arm: control step 0.05 s (5 physics steps of 0.01 s), 30 steps an episode",
            "site_xpos:fingertip[2]",
            "A random policy meets",
            "0 unstable; 120 steps at",
            "Picture of 3 starts with their goals: robot_check.png",
            "Nothing looks wrong.",
        ):
            assert text in result.stdout, text
        assert result.stderr == ""
        assert read_png(Path("robot_check.png")).shape == (2, 6, 3)

    def test_the_result_as_json(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tasks_check, "draw_starts", lambda *_: np.zeros((2, 6, 3), np.uint8))
        write(Path.cwd(), PAGE + "action: [{actuator: bend, kind: switch}, {actuator: lift, hold: 0.3}]\n")
        found = check("--output", "pictures/arm.png")
        assert (found["task"], found["file"]) == ("my_arm", str(Path.cwd() / "robot.yaml"))
        assert [each["name"] for each in found["observation"]][:3] == [
            "qpos:shoulder[0]",
            "qpos:elbow[0]",
            "site_xpos:fingertip[0]",
        ]
        assert [each["unit"] for each in found["goal"]] == ["m"] * 3
        assert all(
            0.2 <= each <= 0.3
            for each in (found["goal"][0]["commanded_low"], found["goal"][0]["commanded_high"])
        )
        assert found["action"] == [
            {
                "actuator": "lift",
                "action": None,
                "kind": "hold",
                "low": pytest.approx(0.3),
                "high": pytest.approx(0.3),
            },
            {"actuator": "bend", "action": 0, "kind": "switch", "low": -0.5, "high": 1.0},
        ]
        assert (found["episodes"], found["steps"], found["unstable_episodes"]) == (4, 120, 0)
        assert found["steps_per_s"] > 0
        assert found["out_of_reach"] == {"training": 0.0, "evaluation": 0.0}
        assert found["warnings"] == [] and found["picture"] == str(Path.cwd() / "pictures/arm.png")
        assert Path(found["picture"]).is_file()

    def test_what_varies_and_what_of_it_changes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tasks_check, "draw_starts", lambda *_: np.zeros((2, 6, 3), np.uint8))
        lines = "randomize:\n  mass: {low: 0.7, high: 1.3}\n  friction: {low: 0.5, high: 1.5}\n"
        write(Path.cwd(), PAGE + lines + "evaluation: {randomize: {}}\n")
        found = check()
        assert set(found["varies"]) == {"training", "randomized"}
        mass, friction = found["varies"]["training"]
        assert (mass["factor"], mass["objects"], mass["low"], mass["high"]) == ("mass", "2 bodies", 0.7, 1.3)
        assert (friction["factor"], friction["how"]) == ("friction", "relative")
        (warning,) = found["warnings"]
        assert warning.startswith("robot.yaml, line 15, randomize.friction: friction changes nothing")

    def test_a_built_in_task(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tasks_check, "draw_starts", lambda *_: np.zeros((2, 6, 3), np.uint8))
        result = invoke("check", "point_u_maze", "--episodes", "2")
        assert "Picture of 3 starts with their goals: point_u_maze_check.png" in result.stdout

    @pytest.mark.skipif(not has_opengl(), reason="no EGL and no OSMesa here")
    def test_a_picture_shows_the_arm(self) -> None:
        write(Path.cwd())
        picture = read_png(Path(check()["picture"]))
        assert picture.shape == (480, 1440, 3)
        assert picture.std() > 5
        assert not np.array_equal(picture[:, :480], picture[:, 480:960]), "goals differ"

    def test_without_opengl_it_names_the_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        write(Path.cwd())
        monkeypatch.setenv("MUJOCO_GL", "off")
        found = check()
        assert found.get("picture") is None
        (warning,) = found["warnings"]
        assert warning.startswith("no picture: drawing needs OpenGL, and MUJOCO_GL=off switches it off")
        assert "apt install libegl1" in warning

    def test_warnings_go_to_stderr_and_do_not_fail(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tasks_check, "draw_starts", lambda *_: np.zeros((2, 6, 3), np.uint8))
        write(Path.cwd(), with_line("goal", "goal: {list: [[0.9, 0, 0]]}"))
        result = invoke("check", "robot.yaml", "--episodes", "2")
        assert "Warning: no configuration was found for 48 of 48 evaluation goals" in result.stderr
        assert "the farthest is missed by 0.5." in result.stderr


class TestPicturePlace:
    @pytest.fixture(autouse=True)
    def drawn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tasks_check, "draw_starts", lambda *_: np.zeros((2, 6, 3), np.uint8))
        write(Path.cwd())

    def refusal(self, *arguments: str) -> str:
        return error_of(invoke("check", "robot.yaml", "--episodes", "1", *arguments, code=2).stderr)

    def test_a_picture_of_the_user_stays(self) -> None:
        Path("robot.png").write_bytes(b"a texture")
        check()
        check()  # replaces its own
        assert Path("robot.png").read_bytes() == b"a texture"

    @pytest.mark.parametrize("arguments", [(), ("--output", "robot_check.png")])
    def test_it_replaces_nothing_but_its_own(self, arguments: tuple[str, ...]) -> None:
        Path("robot_check.png").write_bytes(b"a texture")
        assert "robot_check.png is there already, and is no picture of" in self.refusal(*arguments)
        assert Path("robot_check.png").read_bytes() == b"a texture"

    def test_the_page_stays(self) -> None:
        before = Path("robot.yaml").read_bytes()
        assert self.refusal("--output", "robot.yaml").endswith("give it a name that ends in .png.")
        assert Path("robot.yaml").read_bytes() == before

    def test_a_folder_and_a_place_that_cannot_be(self) -> None:
        Path("folder.png").mkdir()
        assert "folder.png is there already" in self.refusal("--output", "folder.png")
        assert self.refusal("--output", "robot.yaml/a.png").endswith("choose another --output.")


@pytest.mark.parametrize("variable", ["nonsense", "osmesa"])
@pytest.mark.parametrize(
    "command", ["tasks check point_u_maze", "tasks", "evaluate", "benchmark", "train-teacher --dry-run"]
)
def test_what_keeps_mujoco_from_being_imported_is_told_in_one_line(command: str, variable: str) -> None:
    if variable == "osmesa" and ctypes.util.find_library("OSMesa") is not None:
        pytest.skip("OSMesa is here")
    # What MuJoCo leaves in the environment once it has drawn.
    environment = {name: value for name, value in os.environ.items() if name != "PYOPENGL_PLATFORM"}
    done = subprocess.run(
        [sys.executable, "-m", "thousandfold.pipeline", "--workspace", "ws", *command.split()],
        env={**environment, "MUJOCO_GL": variable, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: MUJOCO_GL={variable} keeps MuJoCo from being imported")
    assert "leave it unset" in line


class TestMistakes:
    @pytest.mark.parametrize(
        ("page", "model", "expected"),
        [
            (
                changed(PAGE, "arm.xml", "gone.xml"),
                ARM,
                "robot.yaml, line 2, model: there is no file gone.xml",
            ),
            (
                changed(PAGE, "episode_steps", "episode_step"),
                ARM,
                "line 4, episode_step: unknown key; did you mean 'episode_steps'?",
            ),
            (changed(PAGE, "name: my_arm", "name: [my_arm"), ARM, "robot.yaml, line 2: not valid YAML"),
            (changed(PAGE, "5e-2", "-1"), ARM, "line 3, control_dt_s: must be greater than 0"),
            (
                with_line("goal", "goal: {ring: {low: 1, high: 2}}"),
                ARM,
                "goals have 2 numbers, but the achieved_goal has 3",
            ),
            (changed(PAGE, "    object: fingertip", "    object: tip"), ARM, "has no site named 'tip'"),
            (
                PAGE,
                changed(ARM, 'joint="elbow"', 'joint="knee"'),
                "MuJoCo refuses arm.xml: Error: unknown transmission target",
            ),
            (
                PAGE,
                changed(ARM, 'qpos="0.25 0.5"', 'qpos="0 0 0"'),
                "keyframe 'home': invalid qpos size, expected 2, got 3",
            ),
            (
                PAGE,
                changed(ARM, 'pos=".2 0 0">', 'pos="nan 0 0">'),
                "arm.xml holds NaN, in body_pos of 'lower'",
            ),
        ],
    )
    def test_one_line_and_exit_code_2(self, page: str, model: str, expected: str) -> None:
        write(Path.cwd(), page, model)
        for arguments in (("tasks", "check", "robot.yaml"), ("train-teacher", "--task", "robot.yaml")):
            result = CliRunner().invoke(cli, ["--workspace", "ws", *arguments])
            assert result.exit_code == 2, result.output
            message = error_of(result.stderr).removeprefix("Error: ").removeprefix("train_teacher: ")
            assert message.startswith("robot.yaml, line ") and expected in message
            assert len(result.stderr.splitlines()) == 1
        assert not list(Path("ws").rglob("manifest.json")), "nothing was begun"

    def test_no_such_file(self) -> None:
        assert (
            error_of(invoke("check", "gone.yaml", code=2).stderr) == "Error: There is no task file gone.yaml."
        )


def test_a_picture_comes_back(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    write_png(tmp_path / "a.png", picture)
    assert np.array_equal(read_png(tmp_path / "a.png"), picture)
