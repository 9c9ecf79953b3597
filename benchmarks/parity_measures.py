"""How far apart the two simulators are: after one physics step, and after many control steps.

Both get the same numbers, rounded to float32. CPU threads then compute in float64, MuJoCo Warp in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import mujoco
import numpy as np
from mujoco.batch import Batch

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.simulators.simulator import Simulator
from thousandfold.envs.simulators.warp_simulator import WarpSimulator
from thousandfold.envs.task import Term

FREE_BOUND = 1e-4  # of the largest |difference| / (1 + |x|) after one physics step, where nothing touches
TOUCHING_MEDIAN = 1e-3  # of the same, the median over states in contact
LEAST_P = 0.01  # of the Kolmogorov-Smirnov tests
_VISITING_WORLDS, _VISITED_STEPS = 64, 200
_HAIR = 1e-6
_LIFTS_M = (0.6, 1.6)  # above a table and what an arm reaches beside it


@dataclass(frozen=True)
class States:
    """States and actions, one a row.

    Attributes:
        qpos, qvel: (count, nq) and (count, nv), float64 holding float32 numbers.
        action: (count, action_dim).
        touching: (count,) bool, whether anything touches anything.
        undecided: (count,) bool, whether a constraint is within 1 µm or 1 µrad of its threshold, so that
            rounding decides whether there is one.
    """

    qpos: np.ndarray
    qvel: np.ndarray
    action: np.ndarray
    touching: np.ndarray
    undecided: np.ndarray

    def __len__(self) -> int:
        return len(self.qpos)


def visited_states(task: CompiledTask, count: int, seed: int) -> States:
    """Return states that worlds pass through from training starts: in half of them whatever becomes of them.

    Every second world is reset when its episode ends early, the others lie where they fell. Every fourth
    world holds one extreme action, which drives it into walls and limits; the rest draw anew at every step.
    In every fourth state what lies about loose, a cube or a ball, is lifted off the ground: it touches
    something in nearly all the others.
    """
    rng = np.random.default_rng((seed, 0))
    simulator = CpuSimulator(task, _VISITING_WORLDS, seed=seed)
    rounds = -(-count // _VISITING_WORLDS)
    chosen = np.linspace(0, _VISITED_STEPS, rounds, dtype=int)
    world = np.arange(_VISITING_WORLDS)
    extreme = rng.choice([-1.0, 1.0], (_VISITING_WORLDS, task.action_dim))
    held = (world % 4 == 3)[:, None]
    qpos, qvel = [], []
    for step in range(_VISITED_STEPS + 1):
        for _ in range(int((chosen == step).sum())):
            for rows, part in zip((qpos, qvel), _positions_and_velocities(simulator), strict=True):
                rows.append(part)
        result = simulator.step(np.where(held, extreme, rng.uniform(-1, 1, extreme.shape)))
        simulator.reset(result.unstable | (result.terminated & (world % 2 == 0)))
    qpos, qvel = (np.concatenate(rows)[:count] for rows in (qpos, qvel))
    for height in _heights_of_loose_bodies(task.model):
        qpos[1::4, height] = np.float32(qpos[1::4, height] + rng.uniform(*_LIFTS_M, len(qpos[1::4])))
    action = rng.uniform(-1, 1, (count, task.action_dim)).astype(np.float32)
    contacts, _ = _constraints(task.model, qpos)
    near, far = (_constraints(_with_margin(task.model, margin), qpos) for margin in (_HAIR, -_HAIR))
    undecided = (near[0] != far[0]) | (near[1] != far[1])
    return States(qpos, qvel, action, contacts > 0, undecided)


def _heights_of_loose_bodies(model: mujoco.MjModel) -> list[int]:
    """Return which numbers of qpos are heights of bodies that move by a free joint alone."""
    free = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)
    alone = [joint for joint in free if model.tree_dofnum[model.dof_treeid[model.jnt_dofadr[joint]]] == 6]
    return [int(model.jnt_qposadr[joint]) + 2 for joint in alone]


def _positions_and_velocities(simulator: CpuSimulator) -> tuple[np.ndarray, np.ndarray]:
    model = simulator.task.model
    state = simulator.state_dict()["state"][:, 1 : 1 + model.nq + model.nv]  # after the time
    rounded = state.astype(np.float32).astype(np.float64)
    return rounded[:, : model.nq], rounded[:, model.nq :]


def _constraints(model: mujoco.MjModel, qpos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of contacts and of constraints at each position, (count,) each."""
    batch = Batch(model, len(qpos), 1)
    counts = [batch.bind(name) for name in ("ncon", "nefc")]
    batch.bind("qpos")[:] = qpos
    batch.forward()
    return counts[0].reshape(-1).copy(), counts[1].reshape(-1).copy()


def _with_margin(model: mujoco.MjModel, margin: float) -> mujoco.MjModel:
    """Return the model with every threshold of contacts and limits moved outwards."""
    moved = copy.copy(model)
    for thresholds in (moved.geom_margin, moved.pair_margin, moved.jnt_margin, moved.tendon_margin):
        thresholds += margin
    return moved


def one_step_errors(task: CompiledTask, states: States, device: str) -> tuple[np.ndarray, list[str]]:
    """Return |difference| / (1 + |x|) after one physics step, and the names of the numbers.

    Returns:
        (count, nq + nv + observation_dim): all of qpos and qvel, then what the task observes; and the names,
        in the same order.
    """
    described = replace(
        task.spec,
        observation=(Term("qpos"), Term("qvel"), *task.spec.observation),
        control_dt_s=task.model.opt.timestep,
        early_end=(),
    )
    single = CompiledTask(described)
    shown = []
    for make in makers(device).values():
        simulator = make(single, len(states), seed=0)
        simulator.set_state(states.qpos, states.qvel)
        simulator.step(states.action)
        shown.append(_numpy(simulator.observation).astype(np.float64))
    on_cpu, on_warp = shown
    names = [number["name"] for number in single.describe("observation")]
    return np.abs(on_warp - on_cpu) / (1 + np.abs(on_cpu)), names


@dataclass(frozen=True)
class Outcomes:
    """How the worlds of one simulator fared under given actions; each (num_worlds,).

    Attributes:
        displacement: how far the achieved goal ended from where it began.
        closest_distance: the shortest distance to the goal after any control step.
        at_goal: control steps within the success region.
        unstable: whether the world went into quarantine, and shows nothing.
    """

    displacement: np.ndarray
    closest_distance: np.ndarray
    at_goal: np.ndarray
    unstable: np.ndarray


def play(simulator: Simulator, steps: int, seed: int) -> Outcomes:
    """Take random control steps, the same for the same seed, from where the worlds are; nothing is reset."""
    rng, task, worlds = np.random.default_rng((seed, 1)), simulator.task, simulator.num_worlds
    start, goal = _numpy(simulator.achieved_goal), _numpy(simulator.desired_goal)
    closest, at_goal, unstable = np.full(worlds, np.inf), np.zeros(worlds), np.zeros(worlds, bool)
    achieved = start
    for _ in range(steps):
        action = rng.uniform(-1, 1, (worlds, task.action_dim)).astype(np.float32)
        result = simulator.step(action)
        achieved = _numpy(simulator.achieved_goal)
        closest = np.minimum(closest, task.goal_distance(achieved, goal))
        at_goal += _numpy(result.success)
        unstable |= _numpy(result.unstable)
    return Outcomes(np.linalg.norm(achieved - start, axis=1), closest, at_goal, unstable)


def reachable_goals(task: CompiledTask, worlds: int, steps: int, seed: int) -> np.ndarray:
    """Return goals that random actions can meet, (worlds, goal_dim): where others than `play`'s lead.

    From the same starts, with half the steps. The task's own goals are out of a random policy's reach in
    most tasks, and two simulators that never succeed are alike whatever they do.
    """
    simulator, rng = CpuSimulator(task, worlds, seed=seed), np.random.default_rng((seed, 2))
    for _ in range(steps // 2):
        simulator.step(rng.uniform(-1, 1, (worlds, task.action_dim)).astype(np.float32))
    return simulator.achieved_goal.copy()


def makers(device: str) -> dict[str, Callable[..., Simulator]]:
    """Return what makes each simulator: of a task, a number of worlds and a seed."""

    def on_cpu(task: CompiledTask, worlds: int, seed: int) -> Simulator:
        return CpuSimulator(task, worlds, seed=seed)

    def on_warp(task: CompiledTask, worlds: int, seed: int) -> Simulator:
        return WarpSimulator(task, worlds, seed=seed, device=device)

    return {"cpu": on_cpu, "warp": on_warp}


def _numpy(array: Any) -> np.ndarray:
    return array.copy() if isinstance(array, np.ndarray) else array.cpu().numpy().copy()
