"""Users' tasks: what is wrong in a page or a model is told in one line that names file, line and entry."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.envs.user_tasks.user_pages import ARM, PAGE, STATEFUL_ARM, changed, with_line, write
from thousandfold.envs.registry import compile_task, get_task, task_names
from thousandfold.envs.task import TaskError


def refusal(page: str = PAGE, model: str = ARM) -> str:
    with pytest.raises(TaskError) as raised:
        compile_task(str(write(Path.cwd(), page, model)))
    message = str(raised.value)
    assert "\n" not in message
    return message


BOMB = "[&a0 [x]" + "".join(f", &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)) + "]"
MISTAKES = {
    "an unknown key": (
        changed(PAGE, "observation:", "obervation:"),
        "line 5, obervation: unknown key; did you mean 'observation'?",
    ),
    "an unknown key inside": (
        changed(PAGE, "    object: fingertip", "    objct: fingertip"),
        "line 8, observation[1].objct: unknown key; did you mean 'object'?",
    ),
    "a key twice": (PAGE + "name: again\n", "line 13: not valid YAML: the key 'name' is there twice."),
    "no YAML": (changed(PAGE, "name: my_arm", "name: [my_arm"), "line 2: not valid YAML: "),
    "no mapping": ("- a\n- b\n", "holds no `key: value` lines"),
    "an empty page": ("", "holds no `key: value` lines"),
    "a key that is missing": (with_line("success", ""), "line 1: 'success' must be given"),
    "no goal": (
        with_line("goal", ""),
        "goal must be given, or a goal of its own for training and evaluation",
    ),
    "a text for a number": (
        changed(PAGE, "5e-2", "fast"),
        "line 3, control_dt_s: must be a valid number (got 'fast')",
    ),
    "a boolean for a number": (
        changed(PAGE, "5e-2", "true"),
        "line 3, control_dt_s: must be a valid number (got True)",
    ),
    "NaN": (changed(PAGE, "5e-2", ".nan"), "line 3, control_dt_s: must be a finite number"),
    "a control step of 0": (
        changed(PAGE, "5e-2", "0"),
        "line 3, control_dt_s: must be greater than 0 (got 0)",
    ),
    "a negative control step": (
        changed(PAGE, "5e-2", "-0.05"),
        "line 3, control_dt_s: must be greater than 0 (got -0.05)",
    ),
    "a control step between": (
        changed(PAGE, "5e-2", "0.033"),
        "line 3, control_dt_s: 0.033 is not a multiple of the model's timestep 0.01.",
    ),
    "a built-in name": (
        changed(PAGE, "my_arm", "point_u_maze"),
        "line 1, name: 'point_u_maze' is a built-in task: choose another name",
    ),
    "a name with a blank": (changed(PAGE, "my_arm", "My arm"), "line 1, name: must be lower-case letters"),
    "no model": (changed(PAGE, "arm.xml", "gone.xml"), "line 2, model: there is no file gone.xml"),
    "no such field": (
        changed(PAGE, "field: qpos", "field: qposs"),
        "line 6, observation[0].field: unknown field 'qposs'; did you mean 'qpos'?",
    ),
    "no such object": (
        changed(PAGE, "    object: fingertip", "    object: fingertop"),
        "line 8, observation[1].object: the model has no site named 'fingertop'; did you mean 'finger",
    ),
    "activations of a model without any": (
        changed(PAGE, "field: qpos", "field: act"),
        "line 6, observation[0].field: the model has nothing that 'act' reads.",
    ),
    "the activation of an actuator without one": (
        changed(PAGE, "{field: qpos", "{field: act, object: bend"),
        "line 6, observation[0].field: 'bend' has nothing that 'act' reads.",
    ),
    "no such keyframe": (
        changed(PAGE, "home", "hom"),
        "line 12, reset.keyframe: the model has no keyframe named 'hom'; did you mean 'home'?",
    ),
    "no such joint": (
        changed(PAGE, "keyframe: home", "joints: [elbo], positions: {list: [[1]]}"),
        "line 12, reset.joints[0]: the model has no joint named 'elbo'; did you",
    ),
    "no such actuator": (
        PAGE + "action: [{actuator: lift}, {actuator: bnd}]\n",
        "line 13, action[1].actuator: the model has no actuator named 'bnd'; did you mean 'bend'?",
    ),
    "no such body to follow": (
        PAGE + "scene: {follow: upper_arm}\n",
        "line 13, scene.follow: the model has no body named 'upper_arm'; did you mean 'upper'?",
    ),
    "an actuator left out": (
        PAGE + "action: [{actuator: lift}]\n",
        "line 13, action: actuator 'bend' has no command",
    ),
    "an unknown action": (
        PAGE + "action: position_targets\n",
        "line 13, action: must be 'range' or 'position_target' (got 'position_targets')",
    ),
    "held for longer than an episode": (
        PAGE + "hold_steps: 31\n",
        "hold_steps 31 is more than the 30 steps of an episode",
    ),
    "held and commanded": (
        PAGE + "action: [{actuator: lift}, {actuator: bend, hold: 1, low: 0}]\n",
        "line 13, action[1]: an actuator that is held has no kind, low or high",
    ),
    "goals of another size": (
        with_line("goal", "goal: {box: {low: [0, 0], high: [1, 1]}}"),
        "line 10, goal: goals have 2 numbers, but the achieved_goal has 3",
    ),
    "goals of another size in training": (
        PAGE + "training: {goal: {ring: {low: 1, high: 2}}}\n",
        "line 13, training.goal: goals have 2 numbers, but the achieved_goal has 3",
    ),
    "bounds of unequal length": (
        changed(PAGE, "[0.3, 0, -0.1]", "[0.3, 0]"),
        "line 10, goal.box: low has 3 numbers, high 2",
    ),
    "bounds the wrong way": (
        changed(PAGE, "[0.3, 0, -0.1]", "[0.1, 0, -0.1]"),
        "line 10, goal.box: low is above high",
    ),
    "two distributions in one": (
        with_line("goal", "goal: {ring: {low: 1, high: 2}, list: [[1]]}"),
        "line 10, goal: must be exactly one of box, list, ring, cells, orientation, reach",
    ),
    "cells without a layout": (
        with_line("goal", "goal: {cells: {z: 1}}"),
        "line 10, goal: cells need a layout and a scale",
    ),
    "no such layout": (
        with_line("goal", "goal: {cells: {layout: uu, scale: 1}}"),
        "line 10, goal.cells.layout: no layout 'uu'; did you mean 'u'?",
    ),
    "a slice beyond the goal": (
        changed(PAGE, "radius: 0.05", "radius: 0.05, slice: [1, 4]"),
        "line 11, success: the slice [1, 4] does not fit an achieved_goal of 3 numbers",
    ),
    "points that do not divide": (
        changed(PAGE, "radius: 0.05", "radius: 0.05, points: 2"),
        "line 11, success: 3 numbers cannot be divided into 2 points",
    ),
    "a radius with a name of two words": (
        PAGE + "other_radii: {very easy: 0.2}\n",
        "line 13, other_radii.very easy: must be lower-case letters",
    ),
    "a radius of 0": (
        changed(PAGE, "radius: 0.05", "radius: 0"),
        "line 11, success.radius: must be greater than 0 (got 0)",
    ),
    "joints without positions": (
        changed(PAGE, "keyframe: home", "joints: [elbow]"),
        "line 12, reset: joints and positions are given together",
    ),
    "positions for fewer joints": (
        changed(PAGE, "keyframe: home", "joints: [elbow], positions: {list: [[1, 2]]}"),
        "line 12, reset.positions: starts draw 2 numbers for 1 joints.",
    ),
    "bounds whose span is no number": (
        changed(PAGE, "[0.2, 0, -0.3], high: [0.3, 0, -0.1]", "[0, 0, -1e308], high: [0, 0, 1e308]"),
        "line 10, goal.box: low and high are too far apart",
    ),
    "noise whose span is no number": (
        changed(PAGE, "keyframe: home", "qpos_noise: 1e308"),
        "line 12, reset.qpos_noise: must be less than or equal to 1000000000 (got 1e+308)",
    ),
    "jitter whose span is no number": (
        with_line("goal", "goal: {cells: {layout: u, scale: 1, jitter: 1e308, z: 0}}"),
        "line 10, goal.cells.jitter: must be less than or equal to 1000000000 (got 1e+308)",
    ),
    "a fraction of a step": (
        changed(PAGE, "episode_steps: 30", "episode_steps: 30.5"),
        "line 4, episode_steps: must be a valid integer (got 30.5)",
    ),
    "a body where a site goes": (
        changed(PAGE, "    object: fingertip", "    object: lower"),
        "line 8, observation[1].object: the model has no site named 'lower'; 'lower' is a body; it has",
    ),
    "one number of a joint in a term": (
        with_line("achieved_goal", "achieved_goal: {field: qpos, object: 'elbow[0]'}"),
        "One of its numbers is read with `object: elbow, columns: [0]`.",
    ),
    "a number that a joint does not have": (
        changed(PAGE, "keyframe: home", "joints: ['elbow[1]'], positions: {list: [[1]]}"),
        "line 12, reset.joints[0]: qpos of 'elbow' has no number 1: it has one, number 0.",
    ),
    "a column that a site does not have": (
        changed(PAGE, "    object: fingertip", "    object: fingertip\n    columns: [0, 7]"),
        "line 9, observation[1].columns: site_xpos of 'fingertip' has no number 7: it has 3, from 0 to 2",
    ),
    "a joint drawn twice": (
        changed(PAGE, "keyframe: home", "joints: [elbow, elbow], positions: {list: [[1, 1]]}"),
        "line 12, reset.joints[1]: 'elbow' is drawn twice.",
    ),
    "noise for a joint that is not there": (
        changed(PAGE, "keyframe: home", "qpos_noise: 0.1, noise_joints: [elbow, sholder]"),
        "line 12, reset.noise_joints[1]: the model has no joint named 'sholder'; did you mean 'shoulder'?",
    ),
    "an actuator commanded twice": (
        PAGE + "action: [{actuator: lift}, {actuator: bend}, {actuator: lift}]\n",
        "line 13, action[2]: actuator 'lift' is commanded twice.",
    ),
    "a name that YAML takes for a number": (
        changed(PAGE, "    object: fingertip", "    object: 10"),
        'line 8, observation[1].object: must be a text: put it in quotes, "10" (got 10)',
    ),
    "a name that YAML 1.1 takes for another number": (
        changed(PAGE, "    object: fingertip", "    object: 010"),
        "line 8: not valid YAML: 010 is one number in YAML 1.1 and another, or a text, in YAML 1.2: write a "
        'plain decimal number, or "010" for the text.',
    ),
    "nesting without end": (
        changed(PAGE, "unit: rad}", "unit: " + "[" * 40 + "]" * 40 + "}"),
        "line 6: not valid YAML: it is nested deeper than 32 levels.",
    ),
    "aliases that multiply": (
        PAGE.replace("name: my_arm", "name: my_arm\ndescription: " + BOMB),
        "line 2: not valid YAML: it holds more than 50,000 entries, with aliases written out.",
    ),
    "episodes without end": (
        changed(PAGE, "episode_steps: 30", "episode_steps: 1e12"),
        "episode_steps: must be less than or equal to 1000000 (got 1000000000000)",
    ),
    "a maze without end": (
        PAGE + f'maze: {{layout: "{" ".join(["#" * 200] * 200)}", scale: 1, wall_height: 1}}\n',
        "maze.layout: a layout has at most 10,000 cells",
    ),
    "a name of a file that is none": (changed(PAGE, "arm.xml", "a" * 300), "line 2, model: 'aaa"),
    "a NUL in the name of a file": (
        changed(PAGE, "model: arm.xml", 'model: "a\\0b"'),
        "line 2, model: 'a\\x00b' is not a file name",
    ),
    "nobody's folder": (
        changed(PAGE, "arm.xml", "~nobody-of-this-name/arm.xml"),
        "line 2, model: there is no file",
    ),
    "a name that YAML takes for nothing": (
        changed(PAGE, "    object: fingertip", "    object: null"),
        "line 8, observation[1].object: is empty: leave the key out, or give a name",
    ),
    "an empty list": (
        with_line("achieved_goal", "achieved_goal: []"),
        "line 9, achieved_goal: must be a list of at least 1 entry, not 0 (got [])",
    ),
    "a number where a list goes": (
        with_line("goal", "goal: {box: {low: 0, high: [1]}}"),
        "line 10, goal.box.low: must be a list (got 0)",
    ),
    "numbers where a distribution goes": (
        with_line("goal", "goal: [0.2]"),
        "line 10, goal[0]: must be a mapping of keys to values (box, list, ring, cells, orientation",
    ),
    "sensors that the model does not have": (
        changed(PAGE, "field: qpos", "field: sensordata"),
        "line 6, observation[0].field: the model has nothing that 'sensordata' reads.",
    ),
    "a number to draw beyond the goal": (
        PAGE + "scene: {goal_position: [0, 3]}\n",
        "line 13, scene.goal_position: there is no number 3, the last one is 2",
    ),
}

MODELS = {
    "an unknown type": (
        changed(
            ARM,
            '"capsule" size=".02" fromto="0 0 0 .2 0 0"/>\n      <body',
            '"blob" size=".02"/>\n      <body',
        ),
        "MuJoCo refuses arm.xml: XML Error: invalid keyword: 'blob' Element 'geom', line 6",
    ),
    "no XML": (changed(ARM, "  </worldbody>\n", ""), "MuJoCo refuses arm.xml: XML parse error"),
    "a joint that is not there": (
        changed(ARM, 'joint="elbow"', 'joint="knee"'),
        "unknown transmission target 'knee' for actuator id = 1 Element name 'bend', id 1, line 16",
    ),
    "limits that are switched off": (
        changed(ARM, 'ctrlrange="-0.5 1"', 'ctrlrange="-0.5 1" ctrllimited="false"'),
        "actuator 'bend' has the ctrlrange -0.5 to 1, but the model switches it off (ctrllimited=\"false\"): "
        "switch it on there, or list the actuators in `action`, each with its `low` and `high`: "
        "{actuator: bend, low: -0.5, high: 1}.",
    ),
    "a ctrlrange that runs down": (
        changed(ARM, 'ctrlrange="-0.5 1"', 'ctrlrange="1 -0.5"'),
        "actuator 'bend' has a ctrlrange that runs down, from 1 to -0.5, which MuJoCo ignores: swap "
        "its bounds in the model, or list the actuators in `action`, each with its `low` and `high`: "
        "{actuator: bend, low: 1, high: -0.5}.",
    ),
    "a forcerange alone": (
        changed(ARM, 'ctrlrange="-0.5 1"', 'forcerange="-2 2"'),
        "actuator 'bend' has the forcerange -2 to 2, which bounds no control, and no ctrlrange: give it one",
    ),
    "servos without a ctrlrange": (
        changed(changed(ARM, ' ctrlrange="-0.5 1"', ""), ' ctrlrange="-1 1"', ""),
        "actuator 'lift' has no ctrlrange: give it one in the model, or list the actuators in `action`, each "
        "with its `low` and `high`. `action: position_target` takes the ranges of what the servos move.",
    ),
    "NaN in a sensor": (
        changed(ARM, "</actuator>", '</actuator><sensor><clock cutoff="nan"/></sensor>'),
        "arm.xml holds NaN, in sensor_cutoff of 'sensor_0'",
    ),
    "no actuators": (
        ARM[: ARM.index("  <actuator>")] + ARM[ARM.index("  <keyframe>") :],
        "action: the model has no actuator",
    ),
    "a keyframe of the wrong size": (
        changed(ARM, 'qpos="0.25 0.5"', 'qpos="0.25 0.5 1"'),
        "MuJoCo refuses arm.xml: Error: keyframe 'home': invalid qpos size, expected 2, got 3",
    ),
    "a keyframe that is too short": (
        changed(ARM, 'qpos="0.25 0.5"', 'qpos="0.25"'),
        "reset.keyframe: 'home' gives 1 of the model's 2 qpos",
    ),
    "a keyframe whose velocities are too short": (
        changed(ARM, 'qpos="0.25 0.5"', 'qpos="0.25 0.5" qvel="1"'),
        "reset.keyframe: 'home' gives 1 of the model's 2 qvel",
    ),
    "a keyframe for one of two servos": (
        STATEFUL_ARM.replace("<position", "<intvelocity").replace(
            'kp="10" ctrlrange="-0.5', 'actrange="-2 2" ctrlrange="-0.5'
        ),
        "reset.keyframe: 'home' gives 1 of the model's 2 act",
    ),
    "a keyframe whose controls are too few": (
        changed(ARM, 'qpos="0.25 0.5"', 'qpos="0.25 0.5" ctrl="1"'),
        "reset.keyframe: 'home' gives 1 of the model's 2 ctrl",
    ),
    "a keyframe for one of two bodies that are moved from outside": (
        STATEFUL_ARM.replace("</worldbody>", '<body mocap="true"/></worldbody>').replace(
            'mquat="0 1 0 0"', ""
        ),
        "reset.keyframe: 'home' gives 3 of the model's 6 mpos",
    ),
    "infinity in a keyframe's activations": (
        STATEFUL_ARM.replace('act="0.25"', 'act="inf"'),
        "keyframe 'home' holds NaN or infinity",
    ),
    "sleep": (
        changed(ARM, '<option timestep="0.01"/>', '<option timestep="0.01"><flag sleep="enable"/></option>'),
        "line 2, model: the model enables 'sleep', whose bookkeeping is no part of MuJoCo's state",
    ),
    "NaN in gravity": (
        changed(ARM, 'timestep="0.01"', 'timestep="0.01" gravity="0 0 nan"'),
        "arm.xml holds NaN, in option.gravity[2]",
    ),
    "NaN in the wind": (
        changed(ARM, 'timestep="0.01"', 'timestep="0.01" wind="nan 0 0"'),
        "arm.xml holds NaN, in option.wind[0]",
    ),
    "NaN in the density": (
        changed(ARM, 'timestep="0.01"', 'timestep="0.01" density="nan"'),
        "arm.xml holds NaN, in option.density",
    ),
    "NaN in the viscosity": (
        changed(ARM, 'timestep="0.01"', 'timestep="0.01" viscosity="nan"'),
        "arm.xml holds NaN, in option.viscosity",
    ),
    "an include that is not there": (
        changed(ARM, "  <worldbody>", '  <include file="gone.xml"/>\n  <worldbody>'),
        "XML Error: Error opening file 'gone.xml' Element 'include', line 3",
    ),
    "a mesh that is not there": (
        changed(ARM, "  <worldbody>", '  <asset><mesh name="m" file="gone.stl"/></asset>\n  <worldbody>'),
        "MuJoCo refuses arm.xml: Error: Error opening file 'gone.stl'",
    ),
    "NaN in a position": (
        changed(ARM, 'pos=".2 0 0">', 'pos="nan 0 0">'),
        "arm.xml holds NaN, in body_pos of 'lower'",
    ),
    "NaN in a gain": (
        changed(ARM, 'kp="10" ctrlrange="-1 1"', 'kp="nan" ctrlrange="-1 1"'),
        "arm.xml holds NaN, in actuator_biasprm of 'lift'",
    ),
    "NaN in the keyframe": (
        changed(ARM, 'qpos="0.25 0.5"', 'qpos="nan 0.5"'),
        "arm.xml holds NaN, in key_qpos of 'home'",
    ),
    "a negative timestep": (
        changed(ARM, 'timestep="0.01"', 'timestep="-0.01"'),
        "line 2, model: the timestep of arm.xml (option timestep) must be above 0, not -0.01",
    ),
    "a timestep of 0": (
        changed(ARM, 'timestep="0.01"', 'timestep="0"'),
        "line 2, model: the timestep of arm.xml (option timestep) must be above 0, not 0",
    ),
}


INCLUDED = """<mujocoinclude>

  <body name="loose" pos="0 0 1">
    <freejoint/>
    <geom name="ball" size=".1"/>
    <geom name="box" type="box" size=".1 .1 .1"/>
  </body>
</mujocoinclude>
"""
INCLUDES = {
    "an unknown attribute": (
        changed(INCLUDED, 'box" type="box" size', 'box" type="box" sise'),
        "Schema violation: unrecognized attribute: 'sise' Element 'geom', line 6 of parts/ball.xml",
    ),
    "a text for a number": (
        changed(INCLUDED, 'size=".1"', 'size="large"'),
        "bad format in attribute 'size' Element 'geom', line 5 of parts/ball.xml",
    ),
    "a size that is none": (
        changed(INCLUDED, 'size=".1"', 'size="-1"'),
        "must be positive in geom Element name 'ball', id 0, line 5 of parts/ball.xml",
    ),
    "a name twice": (
        changed(INCLUDED, "loose", "upper"),
        "repeated name 'upper' in body Element 'body', line 5",  # of the model itself, which comes after it
    ),
    "an element that is none": (
        changed(INCLUDED, "<freejoint/>", "<freejont/>"),
        "unrecognized element Element 'freejont', line 4 of parts/ball.xml",
    ),
    "no XML": (changed(INCLUDED, "  </body>\n", ""), "XML Error: mismatched tag, line 7 of parts/ball.xml"),
    "one of two that look alike": (
        changed(changed(INCLUDED, ' name="ball" size=".1"', ' size="-1"'), ' name="box"', ""),
        "Element name '', id 0, in a file that it includes: parts/ball.xml",
    ),
    "an include that is not there": (
        changed(INCLUDED, "<freejoint/>", '<include file="gone.xml"/>'),
        "parts/gone.xml' Element 'include', in a file that it includes: parts/ball.xml",
    ),
}


class TestMistakes:
    @pytest.mark.parametrize(("page", "expected"), MISTAKES.values(), ids=MISTAKES)
    def test_in_the_page(self, page: str, expected: str) -> None:
        message = refusal(page)
        assert message.startswith("robot.yaml")
        assert expected in message

    @pytest.mark.parametrize(("model", "expected"), MODELS.values(), ids=MODELS)
    def test_in_the_model(self, model: str, expected: str, capfd: pytest.CaptureFixture[str]) -> None:
        message = refusal(model=model)
        assert message.startswith("robot.yaml, line ")
        assert expected in message
        assert capfd.readouterr() == ("", ""), "MuJoCo keeps silent"
        assert not Path("MUJOCO_LOG.TXT").exists()

    @pytest.mark.parametrize(("included", "expected"), INCLUDES.values(), ids=INCLUDES)
    def test_in_a_file_that_the_model_includes(self, included: str, expected: str) -> None:
        Path("parts").mkdir()
        Path("parts/ball.xml").write_text(included, encoding="utf-8")
        message = refusal(
            model=changed(ARM, "  <worldbody>\n", '  <worldbody>\n  <include file="parts/ball.xml"/>\n')
        )
        assert message.startswith("robot.yaml, line 2, model: MuJoCo refuses arm.xml: ")
        assert message.endswith(expected)

    @pytest.mark.parametrize(
        "draws", ["list: [[1, 0, 0, 0], [0, 0, 0, 0]]", "box: {low: [0, 0, 0, 0], high: [0, 0, 0, 0]}"]
    )
    def test_a_quaternion_of_length_0(self, draws: str) -> None:
        joints = [f"root[{index}]" for index in range(3, 7)]
        page = changed(PAGE, "keyframe: home", f"joints: {joints}, positions: {{{draws}}}")
        model = changed(
            ARM,
            "</body>\n  </worldbody>",
            '</body><body><freejoint name="root"/><geom size=".1"/></body>\n  </worldbody>',
        )
        model = changed(model, '<key name="home" qpos="0.25 0.5"/>', "")
        message = refusal(page, model)
        assert (
            message.startswith("robot.yaml, line 12, reset: ")
            and "all four numbers of a quaternion" in message
        )

    def test_several_at_once_on_one_line(self) -> None:
        message = refusal(
            changed(changed(PAGE, "radius: 0.05", "radius: -1"), "episode_steps: 30", "episode_steps: 0")
        )
        assert message.count("robot.yaml, line") == 2

    @pytest.mark.parametrize(
        ("old", "new", "expected"),
        [
            (
                '<position name="bend"',
                '<velocity name="bend"',
                "position servos, and actuator 'bend' is not one",
            ),
            (' range="0 120"', "", "actuator 'bend' moves joint 'elbow', which has no range"),
            (
                ' range="0 120"',
                ' range="0 120" limited="false"',
                "'elbow', which has the range 0 to 120, but",
            ),
        ],
    )
    def test_no_position_targets(self, old: str, new: str, expected: str) -> None:
        model = changed(ARM, old, new)
        if "velocity" in new:
            model = changed(model, 'joint="elbow" kp="10"', 'joint="elbow" kv="10"')
        message = refusal(PAGE + "action: position_target\n", model)
        assert message.startswith("robot.yaml, line 13, action: ") and expected in message

    def test_a_keyframe_without_a_name_that_is_too_short(self) -> None:
        model = changed(ARM, '<key name="home" qpos="0.25 0.5"/>', '<key qpos="0.25 0.5"/><key qpos="0.1"/>')
        page = changed(PAGE, "keyframe: home", "keyframe: keyframe_0")
        assert compile_task(str(write(Path.cwd(), page, model))).start_data("training").qpos[0] == 0.25
        message = refusal(changed(page, "keyframe_0", "keyframe_1"), model)
        assert "line 12, reset.keyframe: 'keyframe_1' gives 1 of the model's 2 qpos" in message

    def test_no_file(self) -> None:
        Path("folder.yaml").mkdir()
        Path("bytes.yaml").write_bytes(b"\xff\xfe\x00")
        write(Path.cwd())
        for name, expected in (
            ("gone.yaml", "There is no task file gone.yaml."),
            ("folder.yaml", "folder.yaml cannot be read: it is a folder, and must be a regular file."),
            ("bytes.yaml", "bytes.yaml is not a text file in UTF-8."),
            ("robot", "Unknown task 'robot': did you mean the file robot.yaml?"),
        ):
            with pytest.raises(TaskError) as raised:
                get_task(name)
            assert str(raised.value) == expected

    def test_no_built_in_task_has_the_name_of_the_environment(self) -> None:
        assert "user_task" not in task_names()
