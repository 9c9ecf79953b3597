from __future__ import annotations

import numpy as np
import pytest

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import compile_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator


@pytest.fixture(scope="module")
def task() -> CompiledTask:
    return compile_task("humanoid")


def test_state_is_read_without_the_world_body(task: CompiledTask) -> None:
    simulator = CpuSimulator(task, 2, seed=1)
    action = np.random.default_rng(1).uniform(-1, 1, (2, 17))
    for _ in range(8):
        simulator.step(action)
    for world in range(2):
        data = simulator.world_data(world)
        parts = (data.qpos, data.qvel, data.cinert[1:], data.cvel[1:], data.qfrc_actuator[6:])
        assert [part.size for part in parts] == [24, 23, 130, 78, 17]
        expected = np.concatenate([part.ravel() for part in parts])
        np.testing.assert_allclose(simulator.observation[world], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(simulator.achieved_goal[world], data.body("torso").xpos, rtol=1e-6)


def test_actions_span_the_shipped_control_range(task: CompiledTask) -> None:
    """The knee: action 1 is control 0.4, times its gear of 200."""
    np.testing.assert_allclose(task.control(np.ones((1, 17))), 0.4)
    simulator = CpuSimulator(task, 1)
    simulator.step(np.ones((1, 17)))
    forces = dict(
        zip([each["name"] for each in task.describe("observation")], simulator.observation[0], strict=True)
    )
    assert forces["qfrc_actuator:right_knee[0]"] == pytest.approx(80.0)


def test_starts_upright_without_noise(task: CompiledTask) -> None:
    qpos, qvel, goals = task.sample_start("training", np.random.default_rng(0), 2000)
    assert (qpos == [0, 0, 1.4, 1, *np.zeros(20)]).all() and (qvel == 0).all()
    distance = np.linalg.norm(goals[:, :2], axis=1)
    assert 1.0 <= distance.min() < 1.01 and 4.99 < distance.max() <= 5.0
    assert distance.mean() == pytest.approx(3.0, abs=0.1)
    assert (goals[:, 2] == 1.25).all()


def test_success_counts_height_too(task: CompiledTask) -> None:
    goal = np.array([2.0, 0.0, 1.25])
    assert task.is_success(np.array([2.3, 0.0, 1.25 - 0.39]), goal)
    assert not task.is_success(np.array([2.3, 0.0, 1.25 - 0.41]), goal)
    assert task.spec.other_radii == {"easy": 2.0}


def test_falling_ends_the_episode(task: CompiledTask) -> None:
    simulator = CpuSimulator(task, 1)
    heights = []
    for _ in range(200):
        result = simulator.step(np.zeros((1, 17)))
        heights.append(simulator.achieved_goal[0, 2])
        if result.terminated[0]:
            break
    assert 20 < len(heights) < 200
    assert heights[-1] < 1.0 <= min(heights[:-1])
    simulator.set_state(np.array([[0, 0, 2.1, 1, *np.zeros(20)]]), np.zeros((1, 23)))
    assert simulator.step(np.zeros((1, 17))).terminated[0]


def test_limbs_meet_floor_and_walls_but_not_one_another() -> None:
    model = compile_task("humanoid_u_maze").model
    names = [model.geom(i).name for i in range(model.ngeom)]
    walls = np.array([name.startswith("wall") for name in names])
    limbs = ~walls & (np.array(names) != "floor")
    kinds, partners = model.geom_contype, model.geom_conaffinity
    meets = (kinds[:, None] & partners[None]) > 0
    meets |= meets.T
    assert not meets[np.ix_(limbs, limbs)].any() and not meets[np.ix_(walls, walls)].any()
    assert meets[np.ix_(limbs, walls)].all()
    on_floor = {name for name, met in zip(names, meets[names.index("floor")], strict=True) if met}
    assert on_floor == {"right_foot", "left_foot", "right_shin1", "left_shin1"}


def test_walls_hold_a_humanoid() -> None:
    """Thrown at the wall beside it at 3 m/s, no foot gets through; in the open it travels past that place."""
    reached = {}
    for name in ("humanoid", "humanoid_u_maze"):
        task = compile_task(name)
        simulator = CpuSimulator(task, 1)
        qpos, qvel, _ = task.sample_start("evaluation", np.random.default_rng(0), 1)
        qpos[:, :2] = 2.0, 2.0
        qvel[:, 0] = -3.0  # the wall's face is at x = 1
        simulator.set_state(qpos, qvel)
        lowest = np.inf
        for _ in range(60):
            simulator.step(np.zeros((1, 17)))
            data = simulator.world_data(0)
            lowest = min(lowest, *(data.geom(foot).xpos[0] for foot in ("right_foot", "left_foot")))
        reached[name] = lowest
    assert reached["humanoid"] < 0.9
    assert reached["humanoid_u_maze"] > 1.0


def test_maze_goals_stand_at_torso_height() -> None:
    task = compile_task("humanoid_u_maze")
    qpos, _, goals = task.sample_start("evaluation", np.random.default_rng(0), 100)
    assert (qpos[:, :3] == [2.0, 2.0, 1.4]).all()
    assert {tuple(goal) for goal in goals} == {(6.0, y, 1.25) for y in (2.0, 4.0, 6.0)}
