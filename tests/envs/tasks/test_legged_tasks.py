"""What every task of the ant and the humanoid must do; the fast tests take three of them."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

import thousandfold  # noqa: F401, registers the environments
from tests.envs.strict_checks import check_env_strictly
from thousandfold.envs.mazes import FREE, cells
from thousandfold.envs.registry import compile_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.task_names import environment_id
from thousandfold.envs.tasks import ant, ant_objects, humanoid

REPRESENTATIVE = ("ant_u_maze", "ant_push", "humanoid")
TASKS = {task.name: task for module in (ant, ant_objects, humanoid) for task in module.tasks()}
EVERY_TASK = [pytest.param(name, marks=() if name in REPRESENTATIVE else pytest.mark.slow) for name in TASKS]
MAZES = [name for name, task in TASKS.items() if task.maze]


def test_every_task_of_the_suite_is_there() -> None:
    ants = {f"ant_{name}_maze" for name in ("u", "u2", "u3", "u4", "u5", "big", "hardest")}
    stitched = {f"ant_{name}_maze_stitch" for name in ("u", "u2", "u3", "u4", "u5")}
    humanoids = {"humanoid", "humanoid_u_maze", "humanoid_big_maze"}
    assert set(TASKS) == {"ant", "ant_ball", "ant_push", *ants, *stitched, *humanoids}


@pytest.mark.parametrize("name", TASKS)
def test_sizes_of_the_spaces(name: str) -> None:
    task = compile_task(name)
    sizes = {"humanoid": (272, 3, 17)}.get(name.split("_")[0], (29, 2, 8))
    if name in ("ant_ball", "ant_push"):
        sizes = (31, 2, 8)
    assert (task.observation_dim, task.goal_dim, task.action_dim) == sizes
    assert task.frame_skip == 5
    assert task.spec.control_dt_s == (0.015 if sizes[0] == 272 else 0.05)
    assert task.spec.episode_steps == 1000


@pytest.mark.parametrize("name", EVERY_TASK)
def test_check_env_passes(name: str) -> None:
    check_env_strictly(gymnasium.make(environment_id(name)).unwrapped)


@pytest.mark.parametrize("name", EVERY_TASK)
def test_random_play_is_stable_and_reads_the_achieved_goal(name: str) -> None:
    simulator = CpuSimulator(compile_task(name), 8, seed=1)
    rng = np.random.default_rng(1)
    ends = 0
    for step in range(1000):
        result = simulator.step(rng.uniform(-1, 1, (8, simulator.task.action_dim)))
        simulator.reset(result.terminated | result.truncated | result.unstable)
        ends += result.terminated.sum()
        assert np.isfinite(simulator.observation).all()
        if step % 100 == 0:
            columns = slice(29, 31) if name == "ant_ball" else slice(simulator.task.goal_dim)
            np.testing.assert_array_equal(simulator.achieved_goal, simulator.observation[:, columns])
    assert simulator.unstable_count == 0
    assert ends > 10  # and random play falls, or jumps too high


@pytest.mark.parametrize("name", EVERY_TASK)
def test_goal_never_enters_the_state(name: str) -> None:
    task = compile_task(name)
    one, two = (CpuSimulator(task, 2, seed=4) for _ in range(2))
    two.set_goal(one.desired_goal + 3.0)
    for action in np.random.default_rng(0).uniform(-1, 1, (5, 2, task.action_dim)):
        one.step(action)
        two.step(action)
        np.testing.assert_array_equal(one.observation, two.observation)


@pytest.mark.parametrize("name", MAZES)
def test_starts_and_goals_lie_in_free_cells(name: str) -> None:
    task = compile_task(name)
    maze = task.spec.maze
    assert maze is not None
    free = np.array(cells(maze.layout, FREE, maze.scale)) + maze.origin
    for distribution in task.spec.distributions:
        qpos, _, goals = task.sample_start(distribution, np.random.default_rng(0), 300)
        for positions in (qpos[:, :2], goals[:, :2]):
            offsets = np.abs(positions[:, None] - free).max(-1).min(1)
            assert offsets.max() <= 0.3 * maze.scale


@pytest.mark.parametrize("name", EVERY_TASK)
def test_no_start_touches_anything_but_the_floor(name: str) -> None:
    task = compile_task(name)
    for distribution in task.spec.distributions:
        simulator = CpuSimulator(task, 32, distribution=distribution)
        for world in range(32):
            data = simulator.world_data(world)
            met = {task.model.geom(int(geom)).name for geom in data.contact.geom.ravel()}
            assert not any(geom.startswith(("wall", "ball", "block")) for geom in met)
