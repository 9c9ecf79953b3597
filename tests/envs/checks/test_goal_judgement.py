"""Orientations in goals: refused where success compares quaternions number by number, warned of elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.envs.user_tasks.user_pages import ARM, PAGE, changed, with_line, write
from thousandfold.envs.checks.goal_judgement import judge_goals, require_comparable_goals
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import compile_task
from thousandfold.envs.task import TaskError

MODEL = changed(
    changed(
        changed(
            ARM,
            '<body name="upper">',
            """<body name="loose" pos="1 0 1"><freejoint name="root"/><geom size=".1"/></body>
               <body name="ball" pos="2 0 1"><joint name="ball" type="ball"/><geom size=".1"/></body>
               <body name="upper">""",
        ),
        "</actuator>",
        """</actuator><sensor>
             <framequat name="heading" objtype="site" objname="fingertip"/>
             <framezaxis name="up" objtype="site" objname="fingertip"/>
           </sensor>""",
    ),
    'qpos="0.25 0.5"',
    'qpos="0 0 0 1 0 0 0 1 0 0 0 0.25 0.5"',
)
GOAL = "goal: {{list: [[{}]]}}"
ONE, OTHER = "{field: xquat, object: upper}", "{field: xquat, object: lower}"


def task(folder: Path, goal: str, numbers: int, extra: str = "") -> CompiledTask:
    """Return the task whose achieved goal is a list of terms of so many numbers."""
    page = with_line("achieved_goal", f"achieved_goal: [{goal}]")
    page = changed(page, PAGE.splitlines()[9], GOAL.format(", ".join(["0.5"] * numbers)))
    return compile_task(str(write(folder, page + extra, MODEL)))


@pytest.mark.parametrize(
    ("goal", "numbers"),
    [
        (ONE, 4),
        ("{field: qpos, object: root}", 7),
        ("{field: qpos, object: root, columns: [3]}", 1),
        ("{field: qpos, object: ball}", 4),
        ("{field: qpos}", 13),
        ("{field: sensordata, object: heading}", 4),
        (f"{{field: xquat, object: upper, minus: {OTHER}}}", 4),
        (f"{{field: sensordata, object: heading, minus: {ONE}}}", 4),
    ],
)
def test_quaternions_that_success_compares_are_refused(tmp_path: Path, goal: str, numbers: int) -> None:
    with pytest.raises(TaskError) as raised:
        require_comparable_goals(task(tmp_path, goal, numbers))
    assert "robot.yaml, line 9, achieved_goal[0]: " in str(raised.value)
    assert "although q and -q are one orientation: take `orientation: {object: " in str(raised.value)
    assert "give success an `angle`" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("goal", "numbers"),
    [
        ("{field: xpos, object: upper}", 3),
        ("{field: qpos, object: root, columns: [0, 1, 2]}", 3),
        ("{field: qpos, object: elbow}", 1),
        ("{field: sensordata, object: up}", 3),
    ],
)
def test_positions_and_directions_pass(tmp_path: Path, goal: str, numbers: int) -> None:
    compiled = task(tmp_path, goal, numbers)
    require_comparable_goals(compiled)
    assert not [each for each in judge_goals(compiled, 0, goals=1).warnings if "orientation" in each]


def test_quaternions_beside_what_success_compares_are_warned_of(tmp_path: Path) -> None:
    page = changed(PAGE, "{radius: 0.05}", "{radius: 0.05, slice: [0, 3]}")
    page = changed(page, "achieved_goal: {field: site_xpos, object: fingertip, unit: m}", "")
    page = changed(page, PAGE.splitlines()[9], GOAL.format("0.2, 0, -0.2, 1, 0, 0, 0"))
    page += "achieved_goal: [{field: site_xpos, object: fingertip}, {field: xquat, object: lower}]\n"
    page += "early_end: {term: {field: qpos, object: root, columns: [3]}, low: 0.5, high: 2}\n"
    page = changed(
        page, "  - {field: qpos", f"  - {{field: xquat, object: upper, minus: {OTHER}}}\n  - {{field: qpos"
    )
    compiled = compile_task(str(write(tmp_path, page, MODEL)))
    require_comparable_goals(compiled)
    goal, observation, end = [
        each for each in judge_goals(compiled, 0, goals=1).warnings if "one orientation" in each
    ]
    assert "achieved_goal[1]: xquat:lower is a quaternion that goals command number by number" in goal
    assert "observation[0]: xquat:upper - xquat:lower subtracts quaternions" in observation
    assert "early_end" in end and "qpos:root ends episodes by a quaternion" in end


def test_built_in_tasks_have_none() -> None:
    task = compile_task("arm_push_easy")
    require_comparable_goals(task)
    assert not [each for each in judge_goals(task, 0, goals=1).warnings if "one orientation" in each]
