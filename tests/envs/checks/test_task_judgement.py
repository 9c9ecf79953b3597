"""What is said of a task before anything acts in it: what is wrong is named, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.envs.user_tasks.user_pages import ARM, MOVER, PAGE, STATEFUL_ARM, changed, with_line, write
from thousandfold.envs.checks.task_judgement import judge_task
from thousandfold.envs.registry import compile_task

FOUR_BAR = """<mujoco>
  <compiler angle="radian"/>
  <option timestep="0.005"/>
  <default>
    <joint damping=".2" armature=".005" axis="0 0 1"/>
    <geom type="capsule" size=".02" mass=".3" contype="0" conaffinity="0"/>
  </default>
  <worldbody>
    <body pos="0 0 .1"><joint name="a"/><geom fromto="0 0 0 0 .3 0"/>
      <body name="c" pos="0 .3 0"><joint name="c"/><geom fromto="0 0 0 .4 0 0"/>
        <site name="fingertip" pos=".2 .1 0"/></body></body>
    <body name="b" pos=".4 0 .1"><joint name="b"/><geom fromto="0 0 0 0 .3 0"/></body>
  </worldbody>
  <equality>
    <connect name="loop" body1="c" body2="b" anchor=".4 0 0"/><joint joint1="a" joint2="b"/>
  </equality>
  <actuator><position joint="a" kp="20" kv="1" ctrlrange="-1 1"/></actuator>
  <keyframe><key name="home" qpos=".5 -.5 .5"/></keyframe>
</mujoco>
"""


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def found(page: str = PAGE, model: str = ARM) -> list[str]:
    return judge_task(compile_task(str(write(Path.cwd(), page, model))), 0)


def test_nothing_to_say() -> None:
    assert found() == []
    assert found(model=FOUR_BAR) == [], "a loop that is closed"


def test_what_mujoco_warns_of_is_told_in_one_line(recwarn: pytest.WarningsRecorder) -> None:
    (line,) = found(model=changed(ARM, "  <option", '  <compiler settotalmass="1"/>\n  <option'))
    assert line.startswith("robot.yaml, line 2, model: MuJoCo says: compiler attribute 'settotalmass' is")
    assert len(recwarn) == 0


class TestStarts:
    def test_noise_that_opens_a_loop(self) -> None:
        (line,) = found(changed(PAGE, "{keyframe: home}", "{keyframe: home, qpos_noise: 0.2}"), FOUR_BAR)
        assert line.startswith(
            "robot.yaml, line 12, reset: starts violate the joint equality 'equality_1' by 0.3"
        )
        assert ", the connect equality 'loop' by 0.0" in line

    def test_a_start_of_training_alone(self) -> None:
        page = PAGE + "training: {reset: {keyframe: home, qpos_noise: 0.2}}\n"
        (line,) = found(page, FOUR_BAR)
        assert line.startswith("robot.yaml, line 13, training.reset: starts violate the joint equality")

    def test_equalities_that_contradict_one_another(self) -> None:
        model = changed(FOUR_BAR, '<joint joint1="a" joint2="b"/>', '<weld name="stuck" body1="b"/>')
        model = changed(model, 'name="b"/><geom', 'name="b" armature="0"/><geom')
        model = changed(model, 'kp="20" kv="1"', 'kp="9000" kv="90"')
        page = changed(PAGE, "{keyframe: home}", "{}")
        (line,) = found(page, model.replace('ctrlrange="-1 1"', 'ctrlrange="0.2 2"'))
        assert line.startswith("after 0.5 s at action 0 the model violates the ")

    def test_geoms_deep_in_one_another(self) -> None:
        ground = '    <geom name="ground" type="plane" size="1 1 1" pos="0 0 -.05"/>\n  </worldbody>'
        (line,) = found(model=changed(ARM, "  </worldbody>", ground))
        assert line.startswith("robot.yaml, line 12, reset: starts with ")
        assert "a geom of 'lower' 0." in line and "deep in geom 'ground'" in line

    def test_joints_beyond_their_ranges(self) -> None:
        page = changed(PAGE, "keyframe: home", "joints: [elbow], positions: {list: [[-0.5]]}")
        (line,) = found(page)
        assert "reset: starts with joint 'elbow' at -0.5, beyond its range 0 to 2.09" in line

    def test_servos_whose_activation_is_elsewhere(self) -> None:
        expected = "starts with servo 'lift' at 0.25 and its `act` at 0: it pulls the joint there"
        assert found(model=STATEFUL_ARM) == []
        assert found(PAGE.replace("home}", "home, qpos_noise: 0.1}"), STATEFUL_ARM) == []
        (line,) = found(model=changed(STATEFUL_ARM, 'act="0.25"', ""))
        assert line.startswith(f"robot.yaml, line 12, reset: {expected}")

    def test_noise_that_takes_a_joint_away_from_its_servo(self) -> None:
        (line,) = found(PAGE.replace("home}", "home, qpos_noise: 0.6}"), STATEFUL_ARM)
        assert "servo 'lift' at " in line and "and its `act` at 0.25" in line


class TestControls:
    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ('<position name="bend" joint="elbow" kp="10"', '<motor name="bend" joint="elbow" gear="0"'),
            ('joint="elbow" kp="10"', 'joint="elbow" kp="10" forcerange="-1e-12 1e-12"'),
            ('joint="elbow" kp="10"', 'joint="elbow" kp="10" group="3"'),
        ],
    )
    def test_an_actuator_without_effect(self, old: str, new: str) -> None:
        model = changed(ARM, old, new)
        model = changed(model, 'timestep="0.01"', 'timestep="0.01" actuatorgroupdisable="3"')
        (line,) = found(model=model)
        assert line.startswith("nothing moves with the action of actuator 'bend': ")

    def test_a_servo_at_its_strongest_acts(self) -> None:
        weak = changed(ARM, 'joint="elbow" kp="10"', 'joint="elbow" kp="1000" forcerange="-1 1"')
        assert found(model=weak) == []

    def test_swings_beyond_the_range(self) -> None:
        swing = (
            "action: {{actuators: '*', kind: offset, scale: 0.1, swing: {{amplitude: {}, period_s: 0.4}}}}\n"
        )
        assert found(PAGE + swing.format(-0.4)) == []
        assert found(PAGE + swing.format(0.8)) == [
            "robot.yaml, line 13, action: swings leave the range of their actuator and are cut off there: "
            "actuator 'bend' swings by 0.8 about 0.5, actuator 'lift' swings by 0.8 about 0.25."
        ]

    def test_controls_that_mujoco_cuts(self) -> None:
        page = PAGE + "action: [{actuator: lift, low: -9, high: 1}, {actuator: bend}]\n"
        assert found(page) == [
            "robot.yaml, line 13, action: MuJoCo cuts controls to their ctrlrange: actuator 'lift' is "
            "commanded -9 to 1, beyond -1 to 1."
        ]


class TestTermsAndGoals:
    def test_a_term_twice(self) -> None:
        page = changed(PAGE, "achieved_goal:", "  - {field: qpos, unit: rad}\nachieved_goal:")
        assert found(page) == ["robot.yaml, line 9, observation[2]: this term is listed twice."]

    def test_the_place_of_what_is_fixed(self) -> None:
        model = changed(ARM, '<body name="upper">', '<site name="base"/><body name="upper">')
        page = changed(PAGE, "    object: fingertip", "    object: base")
        assert found(page, model) == [
            "robot.yaml, line 7, observation[1]: 'base' is fixed to the world, and what is read of it never "
            "changes."
        ]

    def test_a_radius_that_covers_all_goals(self) -> None:
        assert found(changed(PAGE, "radius: 0.05", "radius: 0.12")) == [
            "robot.yaml, line 10, goal: the success radius 0.12 covers all goals: a policy that stays in "
            "their middle meets every one."
        ]

    def test_one_goal_alone_is_a_task(self) -> None:
        assert found(with_line("goal", "goal: {list: [[0.3, 0, -0.2]]}")) == []


def test_a_model_whose_joints_have_no_names() -> None:
    page = with_line("reset", "")
    page = changed(page, "object: fingertip, unit: m}", "object: mover, unit: m}").replace(
        "    object: fingertip", "    object: mover"
    )
    page = page.replace("site_xpos", "xpos")
    model = changed(changed(MOVER, ' name="x"', ""), ' name="y"', "").replace("<motor joint=", "<motor site=")
    model = changed(model, '<motor site="x"', '<motor site="s" gear="1 0 0 0 0 0"').replace(
        '<motor site="y"', '<motor site="s" gear="0 1 0 0 0 0"'
    )
    model = changed(model, '<geom size=".1"/>', '<geom size=".1"/><site name="s"/>')
    assert found(page, model) == []
