"""Users' tasks: what a page says is what the task does."""

from __future__ import annotations

import re
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
from pydantic import BaseModel

import thousandfold
from tests.envs.user_tasks.user_pages import ARM, PAGE, STATEFUL_ARM, changed, with_line, write
from tests.pages import blocks
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.distributions import constant
from thousandfold.envs.goal_env import GoalEnv, GoalVectorEnv
from thousandfold.envs.registry import compile_task, get_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.start_states import StartStates
from thousandfold.envs.task import Reset
from thousandfold.envs.user_tasks.task_yaml import read_page
from thousandfold.envs.user_tasks.user_schema import (
    CommandEntry,
    DistributionEntry,
    OptionsEntry,
    OrientationsEntry,
    ReachableEntry,
    ResetEntry,
    SceneEntry,
    SuccessEntry,
    TaskEntry,
    TermEntry,
    validate,
)

assert thousandfold.__version__  # importing it registers the environments


def compiled(page: str = PAGE, model: str = ARM) -> CompiledTask:
    return compile_task(str(write(Path.cwd(), page, model)))


def goals(task: CompiledTask, name: str = "evaluation", count: int = 400) -> np.ndarray:
    return task.sample_start(name, np.random.default_rng(0), count)[2]


class TestWhatAPageSays:
    def test_sizes_units_and_times(self) -> None:
        task = compiled()
        assert (task.name, task.spec.file) == ("my_arm", str(Path.cwd() / "robot.yaml"))
        assert (task.observation_dim, task.goal_dim, task.action_dim) == (5, 3, 2)
        assert task.frame_skip == 5  # 5e-2 is a number, not a text
        assert task.spec.episode_steps == 30
        units = [each["unit"] for each in task.describe("observation")]
        assert units == ["rad", "rad", "m", "m", "m"]
        assert task.spec.reference == task.spec.file

    def test_a_success_may_have_to_be_held(self) -> None:
        assert compiled(PAGE + "hold_steps: 10\n").spec.hold_steps == 10
        assert compiled().spec.hold_steps == 1

    def test_whole_numbers_written_as_floats(self) -> None:
        page = changed(
            changed(PAGE, "steps: 30", "steps: 1e3"), "radius: 0.05", "radius: 0.05, slice: [0, 2.0]"
        )
        task = compiled(page).spec
        assert task.episode_steps == 1000 and isinstance(task.episode_steps, int)
        assert task.success[0].stop == 2

    def test_training_and_evaluation_start_at_the_keyframe(self) -> None:
        for name in ("training", "evaluation"):
            qpos, qvel, _ = compiled().sample_start(name, np.random.default_rng(0), 3)
            assert np.array_equal(qpos, [[0.25, 0.5]] * 3) and not qvel.any()

    def test_a_start_is_the_whole_keyframe(self) -> None:
        terms = "  - {field: act}\n  - {field: xpos, object: marker}\n"
        page = changed(PAGE, "  - {field: qpos", terms + "  - {field: qpos")
        weightless = changed(STATEFUL_ARM, '"0.01"', '"0.01" gravity="0 0 0"')
        task = compiled(page, weightless)
        assert [each["name"] for each in task.describe("observation")][:4] == [
            "act:lift[0]", "xpos:marker[0]", "xpos:marker[1]", "xpos:marker[2]",
        ]  # fmt: skip
        simulator = CpuSimulator(task, 2)
        assert simulator.observation[:, :4] == pytest.approx(np.tile([0.25, 0.3, 0.2, 0.1], (2, 1)))
        for _ in range(20):
            simulator.step(np.zeros((2, 2), np.float32))
        # Action 0 asks the servo of an integrated velocity for no motion, from where its activation began.
        assert simulator.observation[:, 0] == pytest.approx(0.25)
        assert simulator.observation[:, 4] == pytest.approx(0.25, abs=0.1)

    def test_a_relative_path_and_one_with_a_tilde(self, monkeypatch: pytest.MonkeyPatch) -> None:
        write(Path.cwd())
        monkeypatch.setenv("HOME", str(Path.cwd()))
        expected = str(Path.cwd() / "robot.yaml")
        assert [get_task(name).file for name in ("robot.yaml", "~/robot.yaml")] == [expected] * 2

    def test_it_is_compiled_again_once_a_file_changed(self) -> None:
        first = compiled()
        assert compile_task("robot.yaml") is first
        assert (
            compiled(model=changed(ARM, 'kp="10" ctrlrange="-1 1"', 'kp="12" ctrlrange="-1 1"')) is not first
        )
        assert compiled(changed(PAGE, "radius: 0.05", "radius: 0.5")).spec.success[0].radius == 0.5

    def test_episodes_of_their_own(self) -> None:
        page = PAGE + (
            "evaluation:\n"
            "  goal: {list: [[0.1, 0.0, 0.2]]}\n"
            "  reset: {joints: [elbow], positions: {list: [[1.5]]}, qvel_noise: 0.1, noise_joints: [elbow]}\n"
        )
        task = compiled(page)
        qpos, qvel, goal = task.sample_start("evaluation", np.random.default_rng(0), 2)
        assert np.array_equal(qpos, [[0.0, 1.5]] * 2)
        assert not qvel[:, 0].any() and qvel[:, 1].all()
        assert np.array_equal(goal, [[0.1, 0.0, 0.2]] * 2)
        assert np.array_equal(task.sample_start("training", np.random.default_rng(0), 1)[0], [[0.25, 0.5]])

    def test_differences_columns_and_slices(self) -> None:
        page = with_line(
            "achieved_goal",
            "achieved_goal:\n"
            "  - {field: site_xpos, object: fingertip, columns: [0, 2]}\n"
            "  - {field: site_xpos, object: fingertip, columns: [0], minus: {field: xpos, object: lower,"
            " columns: [0]}}",
        )
        page = changed(page, "{radius: 0.05}", "[{radius: 0.1, slice: [0, 2]}, {radius: 0.2, slice: [2, 3]}]")
        task = compiled(
            changed(
                page, "goal: {box: {low: [0.2, 0, -0.3], high: [0.3, 0, -0.1]}}", "goal: {list: [[0, 0, 0]]}"
            )
        )
        fields = {"site_xpos": np.array([[0.4, 9.0, 0.1]]), "xpos": np.array([[0, 0, 0, 0, 0, 0, 0.3, 0, 0]])}
        out = np.zeros((1, 3))
        task.read_achieved_goal(fields, out)
        assert out[0] == pytest.approx([0.4, 0.1, 0.1])
        assert task.is_success(np.zeros(3), np.array([0.05, 0.05, 0.15]))
        assert not task.is_success(np.zeros(3), np.array([0.0, 0.0, 0.25]))

    def test_other_radii_and_early_end(self) -> None:
        page = (
            PAGE
            + "other_radii: {easy: 0.2}\nearly_end: {term: {field: qpos, object: elbow}, low: 0, high: 1}\n"
        )
        task = compiled(page)
        assert task.spec.other_radii == {"easy": 0.2}
        qpos = np.array([[0.0, 0.5], [0.0, 1.5]])
        assert list(task.ended_early({"qpos": qpos})) == [False, True]

    def test_options_replace_those_of_the_model(self) -> None:
        task = compiled(PAGE + "options: {timestep_s: 0.025, integrator: RK4}\n")
        assert task.model.opt.timestep == 0.025 and task.frame_skip == 2
        assert task.model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4

    def test_quaternions_stay_unit_under_noise(self) -> None:
        model = changed(
            ARM,
            '<body name="upper">',
            '<body name="loose"><freejoint name="root"/><geom size=".1"/></body><body name="upper">',
        )
        model = changed(model, 'qpos="0.25 0.5"', 'qpos="0 0 0 1 0 0 0 0.25 0.5"')
        qpos, _, _ = compiled(changed(PAGE, "home}", "home, qpos_noise: 0.3}"), model).sample_start(
            "training", np.random.default_rng(0), 50
        )
        assert np.linalg.norm(qpos[:, 3:7], axis=1) == pytest.approx(1.0)
        assert np.ptp(qpos[:, 7]) > 0.4

    def test_an_orientation_that_is_none_becomes_the_identity(self) -> None:
        model = mujoco.MjModel.from_xml_string(
            '<mujoco><worldbody><body><freejoint name="root"/><geom size=".1"/></body></worldbody></mujoco>'
        )
        joints = tuple(f"root[{index}]" for index in range(3, 7))
        starts = StartStates(model, Reset(joints, constant(0.0, 1.0, 0.0, 0.0)), "the task")
        with np.errstate(all="raise"):
            qpos, _ = starts.sample(np.random.default_rng(0), np.array([[0.0] * 4, [0, 0, 2, 0]]))
        assert qpos[:, 3:].tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]]


class TestGoals:
    def test_a_ring_with_a_height(self) -> None:
        found = goals(compiled(with_line("goal", "goal: {ring: {low: 1, high: 2, center: [3, 4], z: 0.5}}")))
        radii = np.hypot(found[:, 0] - 3, found[:, 1] - 4)
        assert 1 <= radii.min() < 1.1 and 1.9 < radii.max() <= 2
        assert set(found[:, 2]) == {0.5}

    def test_a_list(self) -> None:
        found = goals(compiled(with_line("goal", "goal: {list: [[1, 2, 3], [4, 5, 6]]}")))
        assert {tuple(goal) for goal in found} == {(1, 2, 3), (4, 5, 6)}

    def test_cells_of_the_maze(self) -> None:
        page = (
            with_line("goal", "goal: {cells: {kinds: G, z: 0}}")
            + "maze: {layout: '#### #RG# ####', scale: 2}\n"
        )
        task = compiled(page)
        assert {tuple(goal) for goal in goals(task)} == {(2.0, 4.0, 0.0)}
        assert task.spec.maze is not None and task.spec.maze.scale == 2
        assert task.model.ngeom == 2, "a maze without a height has no walls"

    def test_cells_of_a_built_in_layout_and_walls(self) -> None:
        page = with_line("goal", "goal: {cells: {kinds: R, z: 1, jitter: 0.1}}")
        task = compiled(page + "maze: {layout: u, scale: 1, wall_height: 0.5}\n")
        found = goals(task)
        assert np.abs(found[:, :2] - 1).max() <= 0.1 < 0.2 and np.ptp(found[:, 0]) > 0.15
        walls = [i for i in range(task.model.ngeom) if task.model.geom(i).name.startswith("wall_")]
        assert walls and {float(task.model.geom_size[i, 2]) for i in walls} == {0.25}

    def test_several_stand_side_by_side(self) -> None:
        found = goals(
            compiled(with_line("goal", "goal: [{ring: {low: 1, high: 1}}, {box: {low: [5], high: [6]}}]"))
        )
        assert np.hypot(found[:, 0], found[:, 1]) == pytest.approx(1.0)
        assert found[:, 2].min() >= 5


class TestActions:
    def test_every_actuator_over_its_ctrlrange(self) -> None:
        control = compiled().control
        assert control.low.tolist() == [-1.0, -0.5] and control.high.tolist() == [1.0, 1.0]

    def test_targets_over_the_joints_ranges(self) -> None:
        control = compiled(PAGE + "action: position_target\n").control
        assert control.low == pytest.approx([-np.pi / 2, 0.0])
        assert control.high == pytest.approx([np.pi / 2, 2 * np.pi / 3])

    def test_a_target_in_the_actuators_units(self) -> None:
        model = changed(ARM, 'name="bend" joint="elbow"', 'name="bend" gear="-2" joint="elbow"')
        control = compiled(PAGE + "action: position_target\n", model).control
        assert (control.low[1], control.high[1]) == pytest.approx((-4 * np.pi / 3, 0.0))

    def test_commands(self) -> None:
        page = PAGE + "action: [{actuator: bend, kind: switch, high: 0.7}, {actuator: lift, hold: 0.3}]\n"
        control = compiled(page).control
        assert control.actions == ["bend"]
        assert control(np.array([[0.5], [-0.5]], np.float32)) == pytest.approx(
            np.array([[0.3, 0.7], [0.3, -0.5]])
        )

    def test_actuators_without_names(self) -> None:
        model = changed(changed(ARM, 'name="lift" ', ""), 'name="bend" ', "")
        assert compiled(model=model).control.actuators == ["actuator_0", "actuator_1"]
        page = (
            PAGE + "action: [{actuator: actuator_1, low: -0.2, high: 0.3}, {actuator: actuator_0, hold: 0}]\n"
        )
        control = compiled(page, model).control
        assert control(np.ones((1, 1), np.float32)) == pytest.approx(np.array([[0, 0.3]]))
        assert compiled(PAGE + "action: position_target\n", model).control.high == pytest.approx(
            [np.pi / 2, np.radians(120)]
        )

    @pytest.mark.parametrize(
        ("actuator", "expected"),
        [
            ('<muscle name="bend" joint="elbow" lengthrange="1 2"/>', (0, 1)),
            ('<muscle name="bend" joint="elbow" lengthrange="1 2" ctrlrange="0 0.5"/>', (0, 0.5)),
            ('<position name="bend" joint="elbow" kp="10" inheritrange="1"/>', (0, np.radians(120))),
            ('<motor name="bend" joint="elbow" ctrllimited="true" ctrlrange="-3 2"/>', (-3, 2)),
        ],
    )
    def test_the_range_that_the_model_gives(self, actuator: str, expected: tuple[float, float]) -> None:
        servo = '<position name="bend" joint="elbow" kp="10" ctrlrange="-0.5 1"/>'
        control = compiled(model=changed(ARM, servo, actuator)).control
        assert (control.low[1], control.high[1]) == pytest.approx(expected)


class TestFreeJointWithoutAName:
    MODEL = changed(
        changed(ARM, 'name="home" qpos="0.25 0.5"', 'name="home"'),
        "</body>\n  </worldbody>",
        '</body><body name="hull" pos="0 0 1"><freejoint/><geom size=".1"/></body>\n  </worldbody>',
    )

    def test_observation_reset_and_noise_take_its_bodys_name(self) -> None:
        page = changed(PAGE, "  - {field: qpos, unit: rad}", "  - {field: qpos, object: hull, columns: [2]}")
        reset = "joints: ['hull[2]'], positions: {list: [[3]]}, qpos_noise: 0.1, noise_joints: [hull]"
        task = compiled(changed(page, "keyframe: home", reset), self.MODEL)
        assert task.describe("observation")[0] == {"name": "qpos:hull[2]", "unit": "m"}
        qpos, _, _ = task.sample_start("training", np.random.default_rng(0), 50)
        assert qpos[:, 4].min() > 2.89 and qpos[:, 4].max() < 3.11 and qpos[:, 4].std() > 0
        assert (qpos[:, :2] == 0).all(), "the arm has no noise"

    def test_a_joint_of_that_name_wins(self) -> None:
        model = self.MODEL.replace("elbow", "hull")
        page = with_line("achieved_goal", "achieved_goal: {field: qpos, object: hull}")
        page = changed(page, "[0.2, 0, -0.3], high: [0.3, 0, -0.1]", "[0], high: [1]")
        assert compiled(page, model).describe("achieved_goal") == [{"name": "qpos:hull[0]", "unit": "rad"}]
        assert compiled(PAGE, model).describe("observation")[2]["name"] == "qpos:joint_2[0]"


class TestGoalMarker:
    @pytest.mark.parametrize(
        ("goal", "scene", "expected"),
        [
            ("{field: site_xpos, object: fingertip}", "", (0, 1, 2)),
            ("{field: xpos, object: lower, columns: [0, 1]}", "", (0, 1)),
            ("{field: site_xpos, object: fingertip, columns: [0, 2]}", "", None),
            ("{field: qpos}", "", None),
            ("{field: qpos}", "scene: {goal_position: [1, 0]}\n", (1, 0)),
            ("{field: site_xpos, object: fingertip}", "scene: {goal_position: []}\n", None),
        ],
    )
    def test_where_a_goal_is_drawn(self, goal: str, scene: str, expected: tuple[int, ...] | None) -> None:
        size = {"site_xpos": 3}.get("site_xpos" if "columns" not in goal and "xpos" in goal else "", 2)
        page = with_line("goal", f"goal: {{list: [{[0] * size}]}}")
        page = changed(
            page, "achieved_goal: {field: site_xpos, object: fingertip, unit: m}", f"achieved_goal: {goal}"
        )
        assert compiled(page + scene).spec.scene.goal_position == expected


class TestEnvironments:
    def test_one_world(self) -> None:
        write(Path.cwd())
        env = GoalEnv(task="robot.yaml")
        observation, _ = env.reset(seed=0, options={"goal": [0.2, 0, 0]})
        assert observation["desired_goal"] == pytest.approx([0.2, 0, 0])
        assert env.step(np.zeros(2, np.float32))[1] == -1.0

    def test_by_gymnasium(self) -> None:
        write(Path.cwd())
        env = gymnasium.make("thousandfold/UserTask-v0", task="robot.yaml")
        assert env.reset(seed=0)[0]["observation"].shape == (5,)
        worlds = gymnasium.make_vec("thousandfold/UserTask-v0", num_envs=3, task="robot.yaml")
        assert isinstance(worlds.unwrapped, GoalVectorEnv)
        assert worlds.reset(seed=0)[0]["observation"].shape == (3, 5)


class TestDocumentation:
    text = (Path(__file__).resolve().parents[3] / "docs/user_tasks.md").read_text()

    def test_its_page_is_valid(self) -> None:
        page, *_ = blocks("docs/user_tasks.md", "yaml")
        Path("robot.yaml").write_text(page.text, encoding="utf-8")
        assert validate(read_page("robot.yaml")).name == "my_arm_reach"

    @pytest.mark.parametrize(
        "section",
        [
            TaskEntry,
            TermEntry,
            ResetEntry,
            CommandEntry,
            SceneEntry,
            OptionsEntry,
            SuccessEntry,
            OrientationsEntry,
            ReachableEntry,
            DistributionEntry,
        ],
    )
    def test_every_key_is_explained(self, section: type[BaseModel]) -> None:
        for name, field in section.model_fields.items():
            assert re.search(rf"[`{{ ]{field.alias or name}[`:}}]", self.text), name
