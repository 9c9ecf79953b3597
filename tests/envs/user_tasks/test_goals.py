"""Goals of a user's page: orientations, frames, velocities, several objects; the examples of the docs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.envs.user_tasks.user_pages import write
from thousandfold.envs.checks.goal_judgement import judge_goals
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.goal_env import GoalEnv
from thousandfold.envs.orientations import are_orientations, rotation_angle
from thousandfold.envs.registry import compile_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.task import TaskError

DOCS = (Path(__file__).resolve().parents[3] / "docs/user_tasks.md").read_text(encoding="utf-8")
MODEL = """<mujoco>
  <option timestep="0.01"/>
  <worldbody>
    <geom name="floor" type="plane" size="2 2 .1"/>
    <body name="base" pos="0 0 1"><freejoint name="root"/><geom type="box" size=".1 .1 .05"/></body>
    <body name="upper" pos="0 0 .3">
      <joint name="shoulder" axis="0 1 0" range="-90 90" damping="1"/>
      <geom type="capsule" size=".02" fromto="0 0 0 .2 0 0"/>
      <body name="lower" pos=".2 0 0">
        <joint name="elbow" axis="0 1 0" range="0 120" damping="1"/>
        <geom type="capsule" size=".02" fromto=".03 0 0 .2 0 0"/>
        <site name="hand" pos=".2 0 0"/>
      </body>
    </body>
    <body name="cube_a" pos=".5 -.1 .05"><freejoint/><geom type="box" size=".05 .05 .05"/></body>
    <body name="cube_b" pos=".5 .1 .05"><freejoint/><geom type="box" size=".05 .05 .05"/></body>
  </worldbody>
  <actuator>
    <position name="lift" joint="shoulder" kp="10" ctrlrange="-1 1"/>
    <position name="bend" joint="elbow" kp="10" ctrlrange="0 1"/>
  </actuator>
</mujoco>
"""
PAGE = """name: my_robot
model: arm.xml
control_dt_s: 0.05
observation: {field: qpos}
achieved_goal: {field: site_xpos, object: hand}
goal: {box: {low: [0.2, 0, 0.1], high: [0.3, 0, 0.3]}}
success: {radius: 0.05}
"""
POSE = """achieved_goal:
  - {field: site_xpos, object: hand}
  - {orientation: {object: hand, kind: site}}
goal: [{box: {low: [0.2, 0, 0.1], high: [0.3, 0, 0.3]}}, {orientation: {within: 0.3}}]
success: {radius: 0.02, angle: 0.1}
"""
GOALS = DOCS.partition("### Orientations\n")[2].partition("\n### Actions\n")[0]
EXAMPLES = re.findall(r"```yaml\n(.*?)```", GOALS, re.DOTALL)

(TWO_OBJECTS,) = [each for each in EXAMPLES if "cube_b" in each]
VELOCITY, CHANGING = [each for each in EXAMPLES if "qvel" in each]


def page_with(keys: str) -> str:
    """Return the page with the keys of a fragment in place of its own."""
    content = yaml.safe_load(PAGE) | yaml.safe_load(keys)
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=200)


def compiled(keys: str, model: str = MODEL) -> CompiledTask:
    return compile_task(str(write(Path.cwd(), page_with(keys), model)))


def refusal(keys: str, model: str = MODEL) -> str:
    with pytest.raises(TaskError) as raised:
        compiled(keys, model)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def goals(task: CompiledTask, count: int = 200) -> np.ndarray:
    return task.sample_start("evaluation", np.random.default_rng(0), count)[2]


@pytest.mark.parametrize("keys", EXAMPLES)
def test_the_examples_of_the_docs_run(keys: str) -> None:
    task = compiled(keys)
    simulator = CpuSimulator(task, 3, num_threads=1)
    for _ in range(3):
        result = simulator.step(np.zeros((3, task.action_dim), np.float32))
    assert not result.unstable.any()
    assert np.isfinite(task.goal_distance(simulator.achieved_goal, simulator.desired_goal)).all()


class TestPoses:
    def test_a_radius_for_the_position_and_an_angle_for_the_orientation(self) -> None:
        task = compiled(POSE)
        position, orientation = task.spec.success
        assert (position.radius, position.start, position.stop, position.kind) == (0.02, 0, 3, "distance")
        assert (orientation.radius, orientation.start, orientation.stop) == (0.1, 3, 9)
        assert task.position_radius == 0.02 and task.distance_unit(position) == "m"
        drawn = goals(task)
        assert are_orientations(drawn[:, 3:])
        assert rotation_angle(drawn[:, 3:], np.array([1, 0, 0, 0, 1, 0])).max() == pytest.approx(
            0.3, abs=0.02
        )
        assert not task.is_success(np.tile(drawn[:1], (3, 1)), drawn[1:4]).any()
        assert task.is_success(drawn, drawn).all()

    def test_an_orientation_alone_is_compared_in_radians(self) -> None:
        task = compiled(
            "achieved_goal: {orientation: {object: lower}}\n"
            "goal: {orientation: {axis: [0, 1, 0], low: 0.2, high: 0.2}}\n"
            "success: {angle: 0.3}\nother_radii: {easy: 0.5}\n"
        )
        assert task.distance_unit(task.spec.success[0]) == "rad"
        simulator = CpuSimulator(task, 2, num_threads=1)
        at_once = task.goal_distance(simulator.achieved_goal, simulator.desired_goal)
        assert at_once == pytest.approx([0.2, 0.2], abs=1e-5)

    def test_each_object_has_its_region(self) -> None:
        task = compiled(TWO_OBJECTS)
        first, turned, second = task.spec.success
        assert [(each.start, each.stop, each.radius) for each in (first, turned, second)] == [
            (0, 3, 0.03), (3, 9, 0.2), (9, 12, 0.05),
        ]  # fmt: skip
        there = goals(task, 1)[0]
        other = there.copy()
        other[10] += 0.06  # of the second cube
        assert task.is_success(there, there) and not task.is_success(other, there)
        assert task.goal_distance(other, there) == 0

    @pytest.mark.parametrize(
        ("old", "new", "reason"),
        [
            (", angle: 0.1", "", "success: orientations are compared by an angle: give `angle`"),
            ("radius: 0.02, angle", "radius: 0.02, slice: [0, 5], angle", "the slice cuts an orientation"),
            ("radius: 0.02, angle", "radius: 0.02, slice: [3, 9], angle", "give `angle` alone"),
            ("radius: 0.02, angle: 0.1", "angle: 0.1, slice: [0, 3]", "there is no orientation to compare"),
            ("radius: 0.02, angle: 0.1", "slice: [0, 3]", "'radius' must be given, or for an orientation"),
            ("angle: 0.1", "angle: 4", "success.angle: must be less than or equal to 3.1416"),
            ("{orientation: {within: 0.3}}", "{box: {low: [0, 0, 0, 0, 0, 0], high: [1, 1, 1, 1, 1, 1]}}",
             "numbers 3 to 8 of the goal are an orientation, and what is drawn for them is none"),
            ("within: 0.3", "within: 0.3, axis: [0, 0, 1], low: 0, high: 1", "goal[1].orientation: turned"),
            ("within: 0.3", "axis: [0, 0, 1]", "axis, low and high are given together"),
            ("within: 0.3", "quat: [0, 0, 0, 0]", "must not be all zeros"),
            ("object: hand, kind: site}}", "object: hnd, kind: site}}", "no site named 'hnd'; did you mean"),
            ("{orientation: {object: hand, kind: site}}", "{orientation: {object: hand}, columns: [0]}",
             "columns goes with a field, not with orientation"),
            ("{field: site_xpos, object: hand}", "{object: hand}", "'field' must be given"),
        ],
    )  # fmt: skip
    def test_mistakes(self, old: str, new: str, reason: str) -> None:
        assert POSE.count(old) == 1
        message = refusal(POSE.replace(old, new))
        assert "robot.yaml, line " in message and reason in message


class TestFrames:
    def test_a_velocity_command(self) -> None:
        """Forwards is where the base looks: it is turned to the left here, and moves along the world's y."""
        task = compiled(VELOCITY)
        assert [each["unit"] for each in task.describe("achieved_goal")] == ["m/s", "m/s", "rad/s"]
        assert task.spec.success[0].scale == (0.1, 0.1, 0.2) and task.spec.hold_steps == 10
        simulator = CpuSimulator(task, 1, num_threads=1)
        qpos, qvel = task.model.qpos0.copy()[None], np.zeros((1, task.model.nv))
        qpos[0, 3:7] = np.sqrt(0.5), 0, 0, np.sqrt(0.5)
        qvel[0, :6] = 0, 0.8, 0, 0, 0, 0.5
        simulator.set_state(qpos, qvel)
        assert simulator.achieved_goal[0] == pytest.approx([0.8, 0, 0.5], abs=1e-6)
        assert simulator.observation[0, :3] == pytest.approx([0, 0, 1])
        simulator.set_goal(np.array([0.75, 0.0, 0.55], np.float32))
        assert simulator.step(np.zeros((1, 2), np.float32)).success[0]
        simulator.set_goal(np.array([0.65, 0.0, 0.55], np.float32))
        assert not simulator.step(np.zeros((1, 2), np.float32)).success[0]

    def test_a_goal_in_a_frame_is_drawn_nowhere(self) -> None:
        task = compiled("achieved_goal: {field: site_xpos, object: hand, in: base}\n")
        assert task.spec.scene.goal_position is None

    @pytest.mark.parametrize(
        ("term", "reason"),
        [
            ("{field: qpos, in: base}", "observation[0].in: qpos cannot be expressed in a body's frame"),
            ("{field: xpos, object: cube_a, in: bse}", "[0].in: the model has no body named 'bse'"),
            ("{up: {object: base}, in: base}", "observation[0]: in goes with a field, not with up"),
            ("{field: xpos, object: lower, in: base, minus: {field: xpos, object: upper, in: base}}",
             "observation[0].minus: a difference is expressed in one frame"),
            ("{field: xmat, object: lower, in: base, minus: {field: xmat, object: upper}}",
             "minus: a difference in a body's frame is one of two positions or of two vectors"),
        ],
    )  # fmt: skip
    def test_mistakes(self, term: str, reason: str) -> None:
        assert reason in refusal(f"observation: [{term}]")


def test_a_scale_must_suit_the_slice() -> None:
    assert "success.scale: scale has 2 numbers for 3 that are compared" in refusal(
        "success: {radius: 1, scale: [1, 2]}"
    )
    assert "points and scale go with a radius" in refusal("success: {angle: 1, scale: [1, 2]}")


REACHABLE = """achieved_goal:
  - {field: site_xpos, object: hand}
  - {orientation: {object: hand, kind: site}}
goal: {reachable: {joints: [shoulder, elbow], margin: 0.1}}
success: {radius: 0.02, angle: 0.1}
reset: {joints: [shoulder], positions: {list: [[-0.5]]}}
"""


def angles_of(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return shoulder and elbow (n,) of goals of the hand's pose, and check that position and pose agree."""
    both = np.arctan2(-drawn[:, 5], drawn[:, 3])  # the hand turns about y by their sum
    shoulder = np.arcsin(np.clip((0.3 - 0.2 * np.sin(both) - drawn[:, 2]) / 0.2, -1, 1))
    x = 0.2 * np.cos(shoulder) + 0.2 * np.cos(both)
    assert drawn[:, 0] == pytest.approx(x, abs=1e-6) and np.abs(drawn[:, 1]).max() < 1e-9
    return shoulder, both - shoulder


class TestReachable:
    def test_goals_are_what_joints_within_their_ranges_achieve(self) -> None:
        task = compiled(REACHABLE)
        drawn = goals(task, 2000)
        assert are_orientations(drawn[:, 3:]) and len(np.unique(drawn[:, 0])) > 1000
        shoulder, elbow = angles_of(drawn)
        assert -0.8 * np.pi / 2 <= shoulder.min() < -1.2
        assert np.radians(12) - 1e-6 <= elbow.min() < 0.3 and 1.7 < elbow.max() <= np.radians(108) + 1e-6

    def test_states_in_which_geoms_penetrate_are_left_out(self) -> None:
        """The floor is 0.3 below the shoulder: the hand stays above it."""
        assert goals(compiled(REACHABLE), 2000)[:, 2].min() > 0.0
        through = compiled(REACHABLE.replace("margin: 0.1", "collision_free: false"))
        assert goals(through, 2000)[:, 2].min() < -0.05

    def test_goals_without_the_bounds_are_left_out(self) -> None:
        within = "within: {low: [0.2, -1, 0.1], high: [0.4, 1, 0.4]}"
        drawn = goals(compiled(REACHABLE.replace("margin: 0.1", within)), 500)[:, :3]
        assert (drawn >= [0.2, -1, 0.1]).all() and (drawn <= [0.4, 1, 0.4]).all()
        end = "early_end: {term: {field: site_xpos, object: hand, columns: [2]}, low: 0.25, high: 2}\n"
        assert goals(compiled(REACHABLE + end), 500)[:, 2].min() > 0.25

    def test_draws_are_the_same_again_and_others_in_training(self) -> None:
        task = compiled(REACHABLE)
        once, again = task.sample_start("training", np.random.default_rng(1), 50)[2], goals(task, 50)
        assert np.array_equal(goals(compiled(REACHABLE + "description: again\n"), 50), again)
        assert not set(once[:, 0]) & set(again[:, 0])

    def test_a_joint_that_follows_another_goes_with_it(self) -> None:
        coupled = '<equality><joint joint1="elbow" joint2="shoulder" polycoef="0.5 -0.3 0 0 0"/></equality>'
        model = MODEL.replace("</worldbody>", f"</worldbody>{coupled}")
        shoulder, elbow = angles_of(
            goals(compiled(REACHABLE.replace("joints: [shoulder, elbow], ", ""), model))
        )
        assert np.ptp(shoulder) > 1 and elbow == pytest.approx(0.5 - 0.3 * shoulder, abs=1e-6)
        assert "reachable.joints[1]: an equality constraint determines joint 'elbow'" in refusal(
            REACHABLE, model
        )

    def test_the_check_takes_them_as_reachable(self) -> None:
        assert judge_goals(compiled(REACHABLE), 0).out_of_reach == {"training": 0.0, "evaluation": 0.0}

    @pytest.mark.parametrize(
        ("old", "new", "reason"),
        [
            ("elbow]", "elbo]", "reachable.joints[1]: the model has no joint named 'elbo'; did"),
            ("elbow]", "root]", "goal.reachable.joints[1]: joint 'root' is no hinge, and no slide with a"),
            ("margin: 0.1", "margin: 0.5", "goal.reachable.margin: must be less than 0.5"),
            ("margin: 0.1", "within: {low: [9], high: [10]}", "reachable: only 0 of 40,960 drawn states can"),
            ("margin: 0.1", f"within: {{low: {[0] * 10}, high: {[1] * 10}}}", "within has 10 numbers, and"),
            ("goal: {reachable: {joints: [shoulder, elbow], margin: 0.1}}",
             "goal: [{reachable: {}}, {orientation: {}}]", "goal[0]: reachable gives all numbers of a goal"),
            ("{list: [[-0.5]]}", "{reachable: {}}", "reset: positions of joints are a box, a list, a ring"),
        ],
    )  # fmt: skip
    def test_mistakes(self, old: str, new: str, reason: str) -> None:
        assert REACHABLE.count(old) == 1
        assert reason in refusal(REACHABLE.replace(old, new))


class TestRelative:
    KEYS = (
        "achieved_goal: [{field: site_xpos, object: hand}, {orientation: {object: hand, kind: site}}]\n"
        "goal: [{relative: {box: {low: [0.1, 0, 0], high: [0.2, 0, 0]}}}, {orientation: {within: 0.1}}]\n"
        "success: {radius: 0.02, angle: 0.1}\n"
        "reset: {qpos_noise: 0.3, noise_joints: [shoulder, elbow]}\n"
    )

    def test_a_goal_is_what_the_start_achieves_and_what_is_drawn(self) -> None:
        task = compiled(self.KEYS)
        qpos, qvel, drawn = task.sample_start("training", np.random.default_rng(0), 20)
        simulator = CpuSimulator(task, 20, num_threads=1)
        simulator.set_state(qpos, qvel)
        away = drawn[:, :3] - simulator.achieved_goal[:, :3]
        assert 0.1 <= away[:, 0].min() < away[:, 0].max() <= 0.2 + 1e-6
        assert away[:, 1:] == pytest.approx(np.zeros((20, 2)), abs=1e-6)
        assert np.ptp(simulator.achieved_goal[:, 0]) > 0.01
        assert are_orientations(drawn[:, 3:])

    def test_orientations_are_not_composed(self) -> None:
        keys = self.KEYS.replace("[0.1, 0, 0]", "[0, 0, 0, 0, 0, 0, 0, 0, 0]").replace(
            "[0.2, 0, 0]}}}, {orientation: {within: 0.1}}]", "[0, 0, 0, 0, 0, 0, 0, 0, 0]}}}]"
        )
        assert "goal: goals relative to the start are positions and scalars" in refusal(keys)
        assert "what is relative to the start is a box, a list, a ring or cells" in refusal(
            "goal: {relative: {orientation: {}}}"
        )


class TestGoalsThatChange:
    def test_an_episode_has_goals_to_come(self) -> None:
        task = compiled(CHANGING)
        assert (task.later_goals, task.spec.hold_steps) == (3, 10)
        assert CpuSimulator(task, 2, num_threads=1).later_goals.shape == (2, 9)
        assert task.changed(episode_steps=99).later_goals == 0

    def test_an_environment_judges_each_step_by_the_goal_that_it_shows(self) -> None:
        write(Path.cwd(), page_with("resample_every: 3\nepisode_steps: 9\n"), MODEL)
        env = GoalEnv(task="robot.yaml")
        observation, _ = env.reset(seed=0)
        goals = [observation["desired_goal"]]
        for _ in range(9):
            observation, reward, _, truncated, info = env.step(np.zeros(2, np.float32))
            assert reward == env.compute_reward(
                observation["achieved_goal"], observation["desired_goal"], info
            )
            goals.append(observation["desired_goal"])
        changes = [step for step in range(1, 10) if (goals[step] != goals[step - 1]).any()]
        assert changes == [3, 6] and truncated
        env.reset(options={"goal": [0.25, 0, 0.2]})
        for _ in range(4):
            observation = env.step(np.zeros(2, np.float32))[0]
        assert observation["desired_goal"] == pytest.approx([0.25, 0, 0.2]), (
            "it was commanded for the episode"
        )

    @pytest.mark.parametrize(
        ("keys", "reason"),
        [
            ("resample_every: 1", "resample_every: must be greater than or equal to 2"),
            (
                "resample_every: 101",
                "must be more than the hold_steps 1, and no more than half of the 200 steps",
            ),
            ("resample_every: 10\nhold_steps: 10", "resample_every 10 must be more than the hold_steps 10"),
        ],
    )
    def test_mistakes(self, keys: str, reason: str) -> None:
        assert reason in refusal(keys)
