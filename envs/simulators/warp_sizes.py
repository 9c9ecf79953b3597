"""How much room MuJoCo Warp must make for contacts and constraints, found in a warm-up.

MuJoCo finds room as it goes; MuJoCo Warp has limits, fixed when its data are made. Contacts, and the pairs of
geoms that may touch, lie in one array that all worlds share; each world has its own rows for constraints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import mujoco
import mujoco_warp
import numpy as np
from mujoco.batch import Batch

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.mujoco_log import quiet_mujoco

_MARGIN = 2  # times what the warm-up saw
_SMALLEST_NCONMAX, _SMALLEST_NJMAX = 48, 64  # what mujoco_warp takes for small models
# With few worlds, one that needs more than the mean finds less room to borrow: as much as for so many.
_LEAST_WORLDS = 8
_WORLDS, _STEPS, _STEPS_BETWEEN_SNAPSHOTS = 32, 200, 20


@dataclass(frozen=True)
class WarpSizes:
    """Room to make for each world.

    Attributes:
        nconmax: contacts, and pairs of geoms that may touch.
        njmax: rows of constraints.

    Raises:
        ValueError: no room at all, in which MuJoCo Warp would look for nothing.
    """

    nconmax: int
    njmax: int

    def __post_init__(self) -> None:
        for name in ("nconmax", "njmax"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    def overridden(self, nconmax: int | None, njmax: int | None) -> WarpSizes:
        """Return these sizes, but for those that are given."""
        return WarpSizes(self.nconmax if nconmax is None else nconmax, self.njmax if njmax is None else njmax)

    def naconmax(self, num_worlds: int) -> int:
        """Return the contacts to make room for over all worlds, which share it."""
        return self.nconmax * max(num_worlds, _LEAST_WORLDS)


@lru_cache(maxsize=16)
def warm_up_sizes(task: CompiledTask) -> WarpSizes:
    """Return twice the contacts, the pairs that may touch and the constraints that a warm-up sees.

    Worlds from starts of every episode distribution go on for 200 control steps whatever becomes of them:
    half of them under fresh random actions, half under one extreme action each, which drives them into walls
    and limits and lets them fall. Contacts and constraints are MuJoCo's, the most of any world; pairs that
    may touch are those that MuJoCo Warp's broad phase lets pass in the same states, the worlds' mean.
    """
    contacts, constraints, snapshots = _play(task)
    pairs = _most_pairs(task, snapshots)
    return WarpSizes(
        nconmax=max(_MARGIN * contacts, math.ceil(_MARGIN * pairs), _SMALLEST_NCONMAX),
        njmax=max(_MARGIN * constraints, _SMALLEST_NJMAX),
    )


def _play(task: CompiledTask) -> tuple[int, int, list[dict[str, np.ndarray]]]:
    """Return the most contacts and constraints of a world, and where everything was at some steps."""
    rng = np.random.default_rng(0)
    batch = Batch(task.model, _WORLDS, 1)
    _put_into_starts(batch, task, rng)
    ctrl, ncon, nefc = (batch.bind(name) for name in ("ctrl", "ncon", "nefc"))
    extreme = rng.choice([-1.0, 1.0], (_WORLDS, task.action_dim))
    held = (np.arange(_WORLDS) % 2 == 1)[:, None]
    contacts = constraints = 0
    snapshots = [_places(batch)]
    with quiet_mujoco():
        for step in range(1, _STEPS + 1):
            action = np.where(held, extreme, rng.uniform(-1, 1, extreme.shape))
            time_s = np.full((_WORLDS, 1), (step - 1) * task.spec.control_dt_s)
            ctrl[:] = task.control(action, ctrl, clocks=task.control.clocks(time_s))
            batch.step(nstep=task.frame_skip)
            contacts, constraints = max(contacts, int(ncon.max())), max(constraints, int(nefc.max()))
            if step % _STEPS_BETWEEN_SNAPSHOTS == 0:
                snapshots.append(_places(batch))
    return contacts, constraints, snapshots


def _put_into_starts(batch: Batch, task: CompiledTask, rng: np.random.Generator) -> None:
    """Put the worlds into starts of every episode distribution, in turn."""
    qpos, qvel, ctrl = (batch.bind(name) for name in ("qpos", "qvel", "ctrl"))
    names = list(task.spec.distributions)
    for first, name in enumerate(names):
        worlds = slice(first, None, len(names))
        batch.state[worlds] = task.start_state(name)
        count = len(qpos[worlds])
        qpos[worlds], qvel[worlds] = task.sample_start(name, rng, count)[:2]
        if (varied := task.varied_model(name)) is not None:
            draws = varied.sample(rng, count)
            for field, (columns, shape) in varied.fields.items():
                batch.expand(field)[worlds] = draws[:, columns].reshape(-1, *shape)
        ctrl[worlds] = task.control.start(ctrl[worlds], qpos[worlds])


def _places(batch: Batch) -> dict[str, np.ndarray]:
    """Return what says where the bodies of all worlds are, float32."""
    names = ("qpos", "mocap_pos", "mocap_quat")
    return {name: batch.bind(name).astype(np.float32) for name in names if batch.bind(name).size}


def _most_pairs(task: CompiledTask, snapshots: list[dict[str, np.ndarray]]) -> float:
    """Return the most pairs of geoms that pass Warp's broad phase at one time, the mean over the worlds."""
    model = mujoco_warp.put_model(task.model)
    # Pairs are counted whether or not there is room for them, and what touches need not be known here.
    data = mujoco_warp.put_data(
        task.model, mujoco.MjData(task.model), nworld=_WORLDS, naconmax=1, njmax=1, njmax_nnz=1
    )
    most = 0
    for places in snapshots:
        for name, place in places.items():
            getattr(data, name).assign(place)
        mujoco_warp.kinematics(model, data)
        mujoco_warp.collision(model, data)
        most = max(most, int(data.ncollision.numpy()[0]))
    return most / _WORLDS
