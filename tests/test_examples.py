"""The example tasks: they are what their texts say, their goals can be reached, and their physics holds."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import mujoco
import numpy as np
import pytest

from thousandfold.envs.checks.goal_judgement import GoalJudgement, judge_goals
from thousandfold.envs.checks.random_rollout import roll_out, rollout_warnings
from thousandfold.envs.checks.task_judgement import judge_task
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import compile_task, task_names
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PAGES = sorted(EXAMPLES.rglob("*.yaml"))
SUBMARINE, CABLE_ARM = EXAMPLES / "submarine/submarine.yaml", EXAMPLES / "cable_arm/cable_arm.yaml"
SIX_AXIS_ARM = EXAMPLES / "six_axis_arm/six_axis_arm.yaml"
QUADRUPED = EXAMPLES / "quadruped"
REMARKS = {"quadruped_point": "takes a tracker outside of it, such as motion capture"}
"""what `tasks check` has to say of a page, and is meant"""


def settled(
    page: Path, controls: list[list[float]], steps: int, qpos: list[float] | None = None
) -> CpuSimulator:
    """Return worlds after so many control steps at constant actions, one world each."""
    task = compile_task(str(page))
    simulator = CpuSimulator(task, len(controls), distribution="evaluation", num_threads=1)
    start = task.model.qpos0 if qpos is None else np.array(qpos)
    simulator.set_state(np.tile(start, (len(controls), 1)), np.zeros((len(controls), task.model.nv)))
    for _ in range(steps):
        simulator.step(np.array(controls, np.float32))
    assert simulator.unstable_count == 0
    return simulator


def test_all_are_there() -> None:
    assert {SUBMARINE, CABLE_ARM, *SIX_AXIS_ARM.parent.glob("*.yaml"), *QUADRUPED.glob("*.yaml")} == set(
        PAGES
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
class TestEvery:
    def task(self, page: Path) -> CompiledTask:
        return compile_task(str(page))

    def test_nothing_looks_wrong(self, page: Path) -> None:
        task = self.task(page)
        rollout = roll_out(task, 16, 0)
        remarks = judge_task(task, 0)
        assert rollout_warnings(rollout, task) == []
        assert all(REMARKS.get(page.stem, "nothing") in remark for remark in remarks)
        assert rollout.reached.mean() < 0.5, "a task that a random policy solves shows nothing"
        judged = judge_goals(task, 0)
        if page.parent == QUADRUPED:  # nothing drives where a body that walks is, nor how fast
            assert judged.out_of_reach is None and judged.warnings == []
        else:
            assert judged == GoalJudgement({"training": 0.0, "evaluation": 0.0}, [])

    def test_it_is_in_no_built_in_list_and_in_the_readme(self, page: Path) -> None:
        assert self.task(page).name not in task_names()
        text = (EXAMPLES / "README.md").read_text()
        assert f"examples/{page.relative_to(EXAMPLES).as_posix()}" in text
        for name in re.findall(r"examples/[\w/]+\.(?:yaml|png)", text):
            assert (EXAMPLES.parent / name).is_file(), name


class TestSubmarine:
    def test_it_floats_freely_and_without_weight(self) -> None:
        model = compile_task(str(SUBMARINE)).model
        assert model.jnt_type.tolist() == [int(mujoco.mjtJoint.mjJNT_FREE)]
        assert settled(SUBMARINE, [[0, 0, 0]], 100).achieved_goal[0] == pytest.approx([0, 0, 1], abs=1e-4)

    def test_it_rights_itself(self) -> None:
        tilted = [0, 0, 1, np.cos(0.3), np.sin(0.3), 0, 0]  # rolled by 0.6 rad
        quaternion = settled(SUBMARINE, [[0, 0, 0]], 100, tilted).observation[0, 3:7]
        assert 2 * np.arcsin(np.linalg.norm(quaternion[1:3])) < 0.2

    def test_what_the_thrusters_do(self) -> None:
        ahead, turning, lifted = settled(SUBMARINE, [[1, 1, 0], [-1, 1, 0], [0, 0, 1]], 10).observation
        assert ahead[0] > 0.1 and abs(ahead[1]) < 1e-6
        assert 2 * np.arcsin(turning[6]) > 0.3 and np.hypot(*turning[:2]) < 0.1
        assert lifted[2] > 1.05


class TestCableArm:
    def test_cables_alone_move_it_and_only_pull(self) -> None:
        task = compile_task(str(CABLE_ARM))
        model = task.model
        assert set(model.actuator_trntype) == {int(mujoco.mjtTrn.mjTRN_TENDON)}
        assert (model.actuator_gear[:, 0] < 0).all() and (task.control.low == 0).all()

    def test_what_the_cables_do(self) -> None:
        slack, back, belly, curl = settled(
            CABLE_ARM, [[-1, -1, -1], [1, -1, -1], [-1, 1, -1], [-1, -1, 0]], 60
        ).observation[:, :3]
        assert back[0] < slack[0] - 0.2 < slack[0] + 0.2 < belly[0]  # the shoulder, positive downwards
        assert (curl[1:] > slack[1:] + 0.2).all()  # elbow and wrist

    def test_it_can_rest_at_its_goals(self) -> None:
        grid = list(itertools.product(np.linspace(-1, 1, 7), repeat=3))
        tips = settled(CABLE_ARM, [list(each) for each in grid], 60).achieved_goal
        goals = compile_task(str(CABLE_ARM)).sample_start("evaluation", np.random.default_rng(0), 200)[2]
        nearest = np.linalg.norm(goals[:, None] - tips[None], axis=-1).min(1)
        assert (nearest < 0.08).mean() > 0.9


class TestSixAxisArm:
    def test_it_reaches_where_the_makers_arm_does(self) -> None:
        """The tool's place in a pose whose coordinates follow from the maker's frames (a, d and alpha)."""
        arm = settled(SIX_AXIS_ARM, [[0] * 6], 0, [0, -1.57, 1.57, -1.57, -1.57, 0])
        assert arm.achieved_goal[0, :3] == pytest.approx([-0.492, -0.133, 0.488], abs=1e-3)

    def test_no_joint_comes_near_its_limit_of_speed_under_random_actions(self) -> None:
        task = compile_task(str(SIX_AXIS_ARM))
        simulator = CpuSimulator(task, 16, seed=0, num_threads=1)
        rng, fastest = np.random.default_rng(0), 0.0
        for step in range(100):
            if step % 5 == 0:  # the hardest: all joints at once, one way and then the other
                action = rng.choice([-1.0, 1.0], size=(16, 6)).astype(np.float32)
            simulator.step(action)
            fastest = max(fastest, float(np.abs(simulator.qvel).max()))
        assert 1.0 < fastest < np.pi, "the maker's limit is 180 degrees a second"


class TestQuadruped:
    @pytest.mark.parametrize("page", sorted(QUADRUPED.glob("*.yaml")), ids=lambda page: page.stem)
    def test_it_stands_or_trots_in_place_where_nothing_is_commanded(self, page: Path) -> None:
        task = compile_task(str(page))
        assert task.model.nu == task.action_dim == 12
        assert task.model.body_mass.sum() == pytest.approx(15.0, abs=0.1), "of the maker's description"
        simulator = CpuSimulator(task, 4, seed=0, num_threads=1)
        for _ in range(50):
            ended = simulator.step(np.zeros((4, 12), np.float32)).terminated
            assert not ended.any()
        if task.control.periods:
            assert np.linalg.norm(simulator.achieved_goal, axis=1).max() < 0.5
            assert np.abs(simulator.qvel[:, 6:]).max() > 0.5
        else:
            assert np.abs(simulator.qvel).max() < 0.5

    def test_what_students_see_is_on_the_robot(self) -> None:
        velocity = compile_task(str(QUADRUPED / "quadruped_velocity.yaml")).student_view
        seen = {element["name"].split(":")[0] for element in velocity.describe("observation")}
        assert seen <= {"qpos", "sensordata", "ctrl", "up", "xmat"}
