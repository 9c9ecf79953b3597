"""What is said of a student's senses that no robot has, and of controls that act late."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.envs.user_tasks.user_pages import ARM, PAGE, changed, write
from thousandfold.envs.checks.sense_judgement import judge_senses
from thousandfold.envs.registry import compile_task

FLOATING = changed(ARM, '<body name="upper">', '<body name="base"><freejoint name="root"/><geom size=".05"/>')
FLOATING = changed(
    FLOATING,
    '<body name="lower"',
    '<body name="upper" pos="0 0 .1"><joint name="hip"/><geom size=".02"/></body><body name="lower"',
)
FLOATING = changed(FLOATING, '<joint name="shoulder" axis="0 1 0" range="-90 90" damping="1"/>\n', "")
FLOATING = changed(FLOATING, 'joint="shoulder"', 'joint="hip"')
FLOATING = changed(FLOATING, '  <keyframe><key name="home" qpos="0.25 0.5"/></keyframe>\n', "")
FLOATING = changed(
    FLOATING,
    "</mujoco>",
    '<sensor><framepos name="gps" objtype="site" objname="fingertip"/><subtreelinvel name="all" body="base"/>'
    '<framepos name="hand" objtype="site" objname="fingertip" reftype="body" refname="base"/>'
    "</sensor></mujoco>",
)


def judged(student: str, model: str, more: str = "") -> list[str]:
    page = PAGE if model == ARM else changed(PAGE, "reset: {keyframe: home}\n", "")
    path = write(Path.cwd(), f"{page}student_observation: {student}\n{more}", model)
    return judge_senses(compile_task(str(path)))


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("term", "said"),
    [
        ("{field: qpos}", "where a free body is"),
        ("{field: qvel, object: root}", "how fast a free body travels"),
        ("{field: site_xpos, object: fingertip}", "the place in the world of what is on a free joint"),
        ("{field: xpos}", "the place in the world of what is on a free joint"),
        ("{field: cvel, object: base}", "about a centre of mass"),
        ("{field: cinert}", "about a centre of mass"),
        ("{field: qfrc_actuator, object: elbow}", "motor currents tell it roughly"),
        ("{field: sensordata, object: gps}", "sensor 'gps' measures a place"),
        ("{field: sensordata}", "sensor 'gps' measures a place"),
        ("{field: sensordata, object: all}", "what all bodies of a tree do together"),
    ],
)
def test_what_no_sensor_gives(term: str, said: str) -> None:
    (line,) = judged(f"[{{field: qpos, object: elbow}}, {term}]", FLOATING)
    assert line.startswith("robot.yaml, line 12, student_observation[1]: ") and said in line


@pytest.mark.parametrize(
    "term",
    [
        "{field: qpos, object: elbow}",
        "{field: qpos, object: root, columns: [3, 4, 5, 6]}",
        "{field: qvel, object: root, columns: [3, 4, 5]}",
        "{field: xquat, object: base}",
        "{field: qfrc_actuator, object: elbow, noise: 0.1}",
        "{field: sensordata, object: hand}",
        "{field: xpos, object: upper, minus: {field: xpos, object: base}}",
    ],
)
def test_what_sensors_give(term: str) -> None:
    assert judged(f"[{term}]", FLOATING) == []


def test_encoders_and_the_model_tell_where_an_arm_is() -> None:
    assert judged("[{field: qpos}, {field: site_xpos, object: fingertip}]", ARM) == []


def test_controls_on_their_way_belong_into_what_is_seen() -> None:
    student = "[{field: qpos}, {field: ctrl, history: 2}]"
    assert judged(student, ARM, "action_delay: {low: 0, high: 3}\n") == [
        f"robot.yaml, line {line}, {part}: what was sent in the last 3 control steps may not show in it "
        "yet: add {field: ctrl, history: 3}."
        for line, part in ((5, "observation"), (13, "student_observation"))
    ]
    assert len(judged(student, ARM, "action_delay: 2\n")) == 1


@pytest.mark.parametrize(
    ("student", "more", "history"),
    [
        ("[{field: qpos, delay: 2}]", "", 2),
        ("[{field: qpos, delay: {low: 0, high: 2}}, {field: ctrl}]", "", 2),
        ("[{field: qpos, delay: 1}]", "action_delay: 2\n", 3),
        ("[{field: qpos, delay: 2}, {field: ctrl, history: 2}]", "", None),
        ("[{field: qpos, delay: 2}, {field: qvel}]", "", None),  # what moves shows at once
    ],
)
def test_late_readings_show_them_later_still(student: str, more: str, history: int | None) -> None:
    lines = [line for line in judged(student, ARM, more) if ", student_observation:" in line]
    assert [f"add {{field: ctrl, history: {history}}}." in line for line in lines] == [True] * (
        history is not None
    )
