from __future__ import annotations

import warnings
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest

from thousandfold.envs.distributions import BoxPositions
from thousandfold.envs.registry import compile_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.tasks.planar import DistantGoals


def set_up(name: str, qpos: list[float], qvel: list[float]) -> CpuSimulator:
    simulator = CpuSimulator(compile_task(name), 1, num_threads=1)
    simulator.set_state(np.array([qpos]), np.array([qvel]))
    return simulator


# -- reacher ------------------------------------------------------------------------------------------


def test_reacher_state_is_cosines_sines_tip_and_its_velocity() -> None:
    # The second link points along y: the tip is at (0.1, 0.11), and turns about the origin at 2 rad/s.
    simulator = set_up("reacher", [0.0, np.pi / 2], [2.0, 0.0])
    expected = [1, 0, 0, 1, 0.1, 0.11, 0.01, -0.22, 0.2, 0]
    assert simulator.observation[0] == pytest.approx(expected, abs=1e-6)
    assert simulator.achieved_goal[0] == pytest.approx([0.1, 0.11, 0.01], abs=1e-6)
    # The elbow alone turns: about the end of the first link.
    elbow = set_up("reacher", [np.pi / 2, 0.0], [0.0, 1.0])
    assert elbow.observation[0, 4:] == pytest.approx([0, 0.21, 0.01, -0.11, 0, 0], abs=1e-6)


def test_reacher_goals_lie_in_the_tips_plane_as_near_as_far() -> None:
    task = compile_task("reacher")
    qpos, qvel, goals = task.sample_start("evaluation", np.random.default_rng(0), 4000)
    radius = np.linalg.norm(goals[:, :2], axis=1)
    assert (goals[:, 2] == 0.01).all()
    assert radius.max() <= 0.2
    # Uniform in the radius, not in the area, whose mean radius would be 2/3 of the largest.
    assert radius.mean() == pytest.approx(0.1, abs=0.003)
    assert goals[:, :2].mean(0) == pytest.approx([0, 0], abs=0.006)
    assert np.abs(qpos).max() == pytest.approx(0.1, abs=1e-3)
    assert qvel.std() == pytest.approx(0.005 / np.sqrt(3), rel=0.05)
    assert task.is_success(np.array([0.04, 0, 0.01]), np.array([0, 0, 0.01]))
    assert not task.is_success(np.array([0.051, 0, 0.01]), np.array([0, 0, 0.01]))


# -- pusher -------------------------------------------------------------------------------------------

DOWN = [0.0, 0.35, 0.0, 0.0, 0.0, 0.0, 0.0]  # the arm stretched along x, its tips at the table


def test_pusher_state_is_joints_tip_object_and_joint_velocities() -> None:
    speeds = [0.1 * i for i in range(1, 8)]
    # The object's joints are y, then x.
    simulator = set_up("pusher", [*DOWN, -0.2, 0.1], [*speeds, 5.0, 6.0])
    x, z = 0.1 + 0.721 * np.cos(0.35), -0.721 * np.sin(0.35)
    state = [*DOWN, x, -0.6, z, 0.55, -0.25, -0.275, *speeds]
    assert simulator.observation[0] == pytest.approx(state, abs=1e-6)
    assert simulator.achieved_goal[0] == pytest.approx([0.55, -0.25, -0.275], abs=1e-6)


def test_pusher_starts_are_gymnasiums_and_no_goal_is_near() -> None:
    task = compile_task("pusher")
    qpos, qvel, goals = task.sample_start("training", np.random.default_rng(0), 4000)
    y, x = qpos[:, 7] - 0.05, qpos[:, 8] + 0.45
    assert [x.min(), x.max(), y.min(), y.max()] == pytest.approx([0.25, 0.65, -0.35, -0.05], abs=5e-3)
    assert goals.min(0) == pytest.approx([0.25, -0.6, -0.275], abs=5e-3)
    assert goals.max(0) == pytest.approx([0.65, -0.3, -0.275], abs=5e-3)
    distance = np.linalg.norm(goals[:, :2] - np.column_stack([x, y]), axis=1)
    assert distance.min() > 0.17
    assert not qpos[:, :7].any() and not qvel[:, 7:].any()
    assert qvel[:, :7].std() == pytest.approx(0.005 / np.sqrt(3), rel=0.05)


def test_goals_are_drawn_again_until_they_are_distant() -> None:
    goals = DistantGoals(BoxPositions((0.0, 0.0, 7.0), (1.0, 1.0, 7.0)), origin=(1.0, -1.0), least=0.5)
    starts = np.tile([-0.5, 1.5], (2000, 1))  # the object is at (0.5, 0.5): only the corners are far enough
    drawn = goals.sample_for(np.random.default_rng(0), starts)
    assert np.linalg.norm(drawn[:, :2] - 0.5, axis=1).min() > 0.5
    assert (drawn[:, 2] == 7.0).all()
    assert drawn[:, :2].mean(0) == pytest.approx([0.5, 0.5], abs=0.04)


def test_the_pushers_arm_moves_the_object() -> None:
    simulator = set_up("pusher", [*DOWN, -0.35, 0.38], [0.0] * 9)
    sweep = np.array([[1.0, 0, 0, 0, 0, 0, 0]])
    before = simulator.achieved_goal[0].copy()
    for _ in range(12):
        assert not simulator.step(sweep).unstable.any()
        assert min((contact.dist for contact in simulator.world_data(0).contact), default=0) > -5e-3
    after = simulator.achieved_goal[0]
    assert after[1] - before[1] > 0.1
    assert after[2] == pytest.approx(-0.275, abs=1e-6)


# -- half-cheetah -------------------------------------------------------------------------------------


def test_half_cheetah_state_is_positions_and_velocities_and_its_goal_is_ahead() -> None:
    task = compile_task("half_cheetah")
    state = np.linspace(-0.4, 0.45, 18)
    simulator = set_up("half_cheetah", list(state[:9]), list(state[9:]))
    assert simulator.observation[0] == pytest.approx(state, abs=1e-6)
    assert simulator.achieved_goal[0] == pytest.approx([-0.4], abs=1e-6)
    _, _, goals = task.sample_start("training", np.random.default_rng(0), 10)
    assert (goals == 5.0).all()
    assert task.is_success(np.array([4.51]), np.array([5.0]))
    assert not task.is_success(np.array([4.49]), np.array([5.0]))
    assert task.spec.other_radii == {"easy": 2.0}


def test_half_cheetah_weighs_what_gymnasiums_does() -> None:
    path = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / "half_cheetah.xml"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MuJoCo's, on how that file sets the mass
        theirs = mujoco.MjModel.from_xml_path(str(path))
    ours = compile_task("half_cheetah").model
    assert ours.body_mass.sum() == pytest.approx(14.0)
    assert ours.body_mass == pytest.approx(theirs.body_mass)
    assert ours.body_inertia == pytest.approx(theirs.body_inertia)


@pytest.mark.parametrize(("name", "nq"), [("reacher", 2), ("pusher", 9), ("half_cheetah", 9)])
def test_the_goal_is_nowhere_in_the_model(name: str, nq: int) -> None:
    assert compile_task(name).model.nq == nq
