"""Where the tasks of the ant and the humanoid start, and where their goals lie."""

from __future__ import annotations

import numpy as np
import pytest

from thousandfold.envs.mazes import FREE, cells
from thousandfold.envs.registry import compile_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.tasks import ant, ant_objects, humanoid

REPRESENTATIVE = ("ant_u_maze", "ant_push", "humanoid")
TASKS = {task.name: task for module in (ant, ant_objects, humanoid) for task in module.tasks()}
EVERY_TASK = [pytest.param(name, marks=() if name in REPRESENTATIVE else pytest.mark.slow) for name in TASKS]
MAZES = [name for name, task in TASKS.items() if task.maze]


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
