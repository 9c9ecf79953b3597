from __future__ import annotations

import mujoco
import numpy as np
import pytest

from thousandfold.envs.registry import compile_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.tasks.ant_objects import GoalsBeyond


@pytest.mark.parametrize("name", ["ant_ball", "ant_push"])
def test_state_is_the_ants_and_the_objects_place(name: str) -> None:
    simulator = CpuSimulator(compile_task(name), 2, seed=2)
    for action in np.random.default_rng(2).uniform(-1, 1, (10, 2, 8)):
        simulator.step(action)
    body = name.removeprefix("ant_").replace("push", "block")
    for world in range(2):
        data = simulator.world_data(world)
        expected = np.concatenate([data.qpos[:15], data.qvel[:14], data.body(body).xpos[:2]])
        np.testing.assert_allclose(simulator.observation[world], expected, rtol=1e-6, atol=1e-6)
        goal = data.body(body if name == "ant_ball" else "torso").xpos[:2]
        np.testing.assert_allclose(simulator.achieved_goal[world], goal, rtol=1e-6, atol=1e-6)


def test_ball_lies_between_ant_and_goal() -> None:
    task = compile_task("ant_ball")
    qpos, qvel, goals = task.sample_start("training", np.random.default_rng(0), 1000)
    ball = qpos[:, 15:]
    distance = np.linalg.norm(ball, axis=1)
    assert 2.0 <= distance.min() < 2.05 and 2.95 < distance.max() <= 3.0
    np.testing.assert_allclose(np.linalg.norm(goals, axis=1), 5.0)
    turn = np.arccos((ball * goals).sum(1) / distance / 5.0)
    assert 0.19 < turn.max() <= 0.2
    assert (qvel[:, 14:] == 0).all()
    assert np.linalg.norm(ball.mean(0)) < 0.3


def test_goal_beyond_an_object_without_a_turn() -> None:
    goals = GoalsBeyond(5.0, 0.0).sample_for(np.random.default_rng(0), np.array([[0.6, 0.8], [0.0, -2.0]]))
    np.testing.assert_allclose(goals, [[3.0, 4.0], [0.0, -5.0]], atol=1e-12)


def test_ant_moves_the_ball_and_the_ball_comes_to_rest() -> None:
    task = compile_task("ant_ball")
    simulator = CpuSimulator(task, 1)
    qpos, qvel, _ = task.sample_start("training", np.random.default_rng(0), 1)
    qpos[:, 15:] = 2.0, 0.0
    simulator.set_state(qpos, qvel)
    for _ in range(16):
        simulator._qvel[:, 0] = 3.0
        simulator.step(np.zeros((1, 8)))
    assert simulator.achieved_goal[0, 0] > 2.5
    assert simulator._qvel[0, 14] > 0.5
    simulator.set_state(np.array([[*qpos[0, :15], 20.0, 0.0]]), np.array([[*np.zeros(14), 3.0, 0.0]]))
    for _ in range(160):
        simulator.step(np.zeros((1, 8)))
    # Mass 0.52 kg over damping 0.5 N s/m: from 3 m/s it rolls 3.1 m, and e⁻⁸ of its speed is left after 8 s.
    assert simulator.achieved_goal[0, 0] == pytest.approx(20.0 + 3.0 * np.pi / 6 / 0.5, abs=0.02)
    assert abs(simulator._qvel[0, 14]) < 0.01


def height_at(x: float, y: float) -> tuple[str, float]:
    """What a ray from above meets first at (x, y) of ant_push, and how high that is."""
    model = compile_task("ant_push").model
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    met = np.zeros(1, np.int32)
    down = np.array([0.0, 0.0, -1.0])
    distance = mujoco.mj_ray(model, data, np.array([x, y, 10.0]), down, None, 1, -1, met)
    return model.geom(int(met[0])).name.split("_")[0], 10.0 - distance


def test_rooms_of_ant_push() -> None:
    """The ant's room, two rooms beside it, the block between them, and the goal's rooms behind the block."""
    for cell in ((0, 8), (8, 0), (16, 8), (8, 16)):
        assert height_at(*cell) == ("floor", pytest.approx(0.0))
    for x, y in ((-8, 0), (0, -8), (0, 16), (16, 0), (16, 16), (24, 8), (8, 24)):
        assert height_at(x, y) == ("wall", pytest.approx(2.0))
    assert height_at(8, 8) == height_at(11.5, 4.5) == ("block", pytest.approx(1.9))
    assert height_at(11.8, 8) == ("floor", pytest.approx(0.0))


def test_push_goals_lie_in_either_room() -> None:
    task = compile_task("ant_push")
    qpos, _, goals = task.sample_start("evaluation", np.random.default_rng(0), 2000)
    right = goals[:, 0] > goals[:, 1]
    for room, corner in ((goals[right], (16, 8)), (goals[~right], (8, 16))):
        assert (room >= corner).all() and (room <= np.add(corner, 2)).all()
    assert right.mean() == pytest.approx(0.5, abs=0.06)
    assert (qpos[:, 15:] == 8.0).all()
    assert 0.09 < np.abs(qpos[:, :2]).max() <= 0.1


def test_ant_pushes_the_block_as_far_as_the_wall() -> None:
    """Along y = 8 the block yields until its far side is at the wall at x = 20, with 0.4 m of play in y."""
    task = compile_task("ant_push")
    simulator = CpuSimulator(task, 1)
    qpos, qvel, _ = task.sample_start("training", np.random.default_rng(0), 1)
    qpos[:, :2] = 2.0, 8.0
    simulator.set_state(qpos, qvel)
    block = []
    for _ in range(160):
        simulator._qvel[:, 0] = 2.5
        simulator.step(np.zeros((1, 8)))
        block.append(simulator.observation[0, 29:].copy())
    block = np.array(block)
    assert block[:, 0].max() == pytest.approx(20.0 - 3.6, abs=0.1)
    assert np.abs(block[:, 1] - 8.0).max() <= 0.5
    assert simulator.achieved_goal[0, 0] > 10.0
