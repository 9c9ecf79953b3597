"""The simulator on MuJoCo Warp: torch tensors that share the memory of the physics, on its device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, cast

import mujoco
import numpy as np
import torch
import warp as wp

# Warp prints a banner and every kernel module that it loads on standard output, where scripts read JSON, and
# warns where there is no CUDA driver. Errors still come through.
wp.config.log_level = max(wp.config.log_level, wp.LOG_ERROR)

import mujoco_warp  # noqa: E402

from envs.compiled_task import CompiledTask  # noqa: E402
from envs.data_fields import FIELDS  # noqa: E402
from envs.mujoco_log import quiet_mujoco  # noqa: E402
from envs.simulator import Simulator, StepResult, check_state, pack_generator, unpack_generator  # noqa: E402

Array = torch.Tensor | np.ndarray

# Contacts or constraints that found no room. The other bits say that a solver stopped at its iteration limit.
_LOST_PHYSICS = int(
    mujoco_warp.OverflowType.ALL
    & ~(mujoco_warp.OverflowType.ITERATIONS | mujoco_warp.OverflowType.LS_ITERATIONS)
)
_LARGEST_STATE = 1e10  # MuJoCo's own bound (mjMAXVAL): beyond it, or not a number, a world has diverged
_STATE = int(mujoco.mjtState.mjSTATE_INTEGRATION)
_SMALLEST_NCONMAX, _SMALLEST_NJMAX = 48, 64  # what mujoco_warp takes for small models
_WARM_UP_WORLDS, _WARM_UP_STEPS = 8, 50
_SHORTEST_EPISODE = 4  # steps that episodes which can end early are taken to last, on average over an unroll


class WarpSimulator(Simulator):
    """Worlds of one task on MuJoCo Warp; every array is a torch tensor on `device`.

    What goes in may be NumPy's too. On CUDA a control step is one captured graph, launched on torch's current
    stream, and so is a reset; inside `unroll` neither waits for the device. A world that diverged or
    overflowed shows zeros until it is reset; no world resets itself.

    Attributes:
        reused_starts: starts that served twice, because more worlds were reset in an unroll than it had drawn
            starts for.

    Args:
        task: the compiled task.
        num_worlds: how many worlds to run.
        device: ``cpu`` or ``cuda:<index>``.
        seed: seed of the resets' generator.
        distribution: episode distribution that resets draw from.
        nconmax: contacts to make room for, per world; None takes twice what a short warm-up saw.
        njmax: constraints to make room for, per world; None takes twice what a short warm-up saw.

    Raises:
        TaskError: the task has no such distribution.
        ValueError: fewer than one world.
    """

    def __init__(
        self,
        task: CompiledTask,
        num_worlds: int,
        *,
        device: str = "cpu",
        seed: int | np.random.SeedSequence = 0,
        distribution: str = "training",
        nconmax: int | None = None,
        njmax: int | None = None,
    ) -> None:
        task.task.distribution(distribution)
        if num_worlds < 1:
            raise ValueError(f"num_worlds must be at least 1, not {num_worlds}")
        self.task, self.num_worlds, self.distribution = task, num_worlds, distribution
        self.device = torch.device(device)
        self.rng = np.random.Generator(np.random.PCG64(seed))
        self._make_worlds(nconmax, njmax)
        self._make_arrays()
        self.reused_starts = 0
        self._pool: StartPool | None = None
        self._launch_step = self._replayable(self._control_step)
        self._launch_reset = self._replayable(self._reset_data)
        self._launch_refresh = self._replayable(self._compute_fresh_fields) if self._derived else _nothing
        self.reset()

    def _make_worlds(self, nconmax: int | None, njmax: int | None) -> None:
        if nconmax is None or njmax is None:
            contacts, constraints = constraint_sizes(self.task)
            nconmax, njmax = nconmax or contacts, njmax or constraints
        data = mujoco.MjData(self.task.model)
        with wp.ScopedDevice(str(self.device)):
            self._model = mujoco_warp.put_model(self.task.model)
            self._model.opt.warn_overflow = 0  # read from Data.overflow instead of printed by the kernels
            on_cuda = self.device.type == "cuda"
            self._model.opt.graph_conditional = on_cuda and wp.is_conditional_graph_supported()
            self._data = mujoco_warp.put_data(
                self.task.model, data, nworld=self.num_worlds, nconmax=nconmax, njmax=njmax
            )

    def _make_arrays(self) -> None:
        worlds, device = self.num_worlds, self.device
        self._qpos, self._qvel = wp.to_torch(self._data.qpos), wp.to_torch(self._data.qvel)
        self._ctrl, self._overflow = wp.to_torch(self._data.ctrl), wp.to_torch(self._data.overflow)
        self._fields = {
            name: wp.to_torch(getattr(self._data, name)).view(worlds, -1) for name in self.task.fields
        }
        self._derived = [field for name, field in self._fields.items() if not FIELDS[name].in_state]
        self.observation = torch.zeros(worlds, self.task.observation_dim, device=device)
        self.achieved_goal = torch.zeros(worlds, self.task.goal_dim, device=device)
        self.desired_goal = torch.zeros(worlds, self.task.goal_dim, device=device)
        self.episode_step = torch.zeros(worlds, dtype=torch.int64, device=device)
        self._unstable_count = torch.zeros((), dtype=torch.int64, device=device)
        self._reset_mask = torch.zeros(worlds, dtype=torch.bool, device=device)

    @property
    def unstable_count(self) -> int:
        """Worlds that diverged or overflowed since the simulator was made; waits for the device."""
        return int(self._unstable_count)

    @contextmanager
    def unroll(self, steps: int) -> Iterator[None]:
        """Draw the starts of an unroll at once, so that resets take them from the device.

        Where more worlds are reset than starts were drawn, the first starts are used again; `reused_starts`
        counts them. Waits for the device at the end.
        """
        self._pool = pool = StartPool(self._draw(self._pool_size(steps)))
        try:
            yield
            self.reused_starts += pool.reused
        finally:
            self._pool = None

    def _pool_size(self, steps: int) -> int:
        """Return how many starts an unroll may need: one more for each world than episodes that can end."""
        episodes = steps // self.task.task.episode_steps + 2
        if self.task.task.early_end:
            episodes = max(episodes, steps // _SHORTEST_EPISODE)
        return episodes * self.num_worlds

    def _draw(self, count: int) -> torch.Tensor:
        """Return fresh starts on the device: qpos, qvel and goal side by side, a start a row."""
        starts = np.hstack(self.task.sample_start(self.distribution, self.rng, count))
        host = torch.from_numpy(starts.astype(np.float32))
        if self.device.type == "cuda":
            host = host.pin_memory()  # from other memory the copy would wait for the device
        return host.to(self.device, non_blocking=True)

    def reset(self, worlds: Array | None = None) -> None:
        """Start a fresh episode, with a fresh goal, in the worlds of the mask (num_worlds,); None: in all."""
        if worlds is None:
            worlds = np.ones(self.num_worlds, bool)
        if not isinstance(worlds, torch.Tensor):
            worlds = torch.from_numpy(np.array(worlds, bool))
        pool = self._pool
        if pool is None:
            count = int(worlds.sum())
            if count == 0:
                return
            pool = StartPool(self._draw(count))
        self._reset_mask.copy_(worlds)
        self._restart(pool.take(self._reset_mask))

    def _restart(self, starts: torch.Tensor) -> None:
        """Put the worlds of the reset mask into their rows of `starts`, and leave the others alone."""
        before = [field.clone() for field in self._derived]
        chosen = self._reset_mask[:, None]
        with self._on_device():
            self._launch_reset()
        targets = (self._qpos, self._qvel, self.desired_goal)
        parts = starts.split([target.shape[1] for target in targets], dim=1)
        for target, part in zip(targets, parts, strict=True):
            target.copy_(torch.where(chosen, part, target))
        self.episode_step.masked_fill_(self._reset_mask, 0)
        with self._on_device():
            self._launch_refresh()
        for field, old in zip(self._derived, before, strict=True):
            field.copy_(torch.where(chosen, field, old))
        self._read(self._unstable())

    def step(self, action: Array) -> StepResult:
        """Advance every world by one control step; see `Simulator.step`."""
        action = torch.as_tensor(action, dtype=torch.float32, device=self.device)
        self._ctrl.copy_(self.task.control(action, xp=torch))
        self._overflow.zero_()
        with self._on_device():
            self._launch_step()
        self.episode_step += 1
        unstable = self._unstable()
        self._unstable_count += unstable.sum()
        ended = self.task.ended_early(self._fields, xp=torch)
        self._read(unstable)
        success = self.task.is_success(self.achieved_goal, self.desired_goal) & ~unstable
        terminated = torch.zeros_like(unstable) if ended is None else ended & ~unstable
        return StepResult(success, terminated, self.episode_step >= self.task.task.episode_steps, unstable)

    def set_goal(self, goal: Array, worlds: Array | None = None) -> None:
        """Command goals in the worlds of the mask; see `Simulator.set_goal`."""
        goal = torch.as_tensor(goal, dtype=torch.float32, device=self.device).expand_as(self.desired_goal)
        if worlds is not None:
            chosen = torch.as_tensor(worlds, dtype=torch.bool, device=self.device)
            goal = torch.where(chosen[:, None], goal, self.desired_goal)
        self.desired_goal.copy_(goal)

    def set_state(self, qpos: Array, qvel: Array) -> None:
        """Put every world into a state and refresh the observation."""
        self._qpos.copy_(torch.as_tensor(qpos))
        self._qvel.copy_(torch.as_tensor(qvel))
        self._refresh()

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return everything that the next step depends on, on the host. Raises RuntimeError in an unroll."""
        if self._pool is not None:
            raise RuntimeError("inside an unroll a simulator has no state to save")
        size = mujoco.mj_stateSize(self.task.model, _STATE)
        state = torch.zeros(self.num_worlds, size, device=self.device)
        with self._on_device():
            mujoco_warp.get_state(self._model, self._data, cast(Any, wp.from_torch(state)), _STATE)
        names = ("observation", "achieved_goal", "desired_goal", "episode_step")
        return {
            "state": _to_numpy(state),
            **{name: _to_numpy(getattr(self, name)).copy() for name in names},
            "unstable_count": np.array(self.unstable_count),
            "generator": pack_generator(self.rng),
        }

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Restore what `state_dict` returned."""
        check_state(self.state_dict(), state)
        rows = torch.as_tensor(state["state"], dtype=torch.float32).to(self.device).contiguous()
        with self._on_device():
            mujoco_warp.reset_data(self._model, self._data)
            mujoco_warp.set_state(self._model, self._data, cast(Any, wp.from_torch(rows)), _STATE)
        self._refresh()
        for name in ("observation", "achieved_goal", "desired_goal", "episode_step"):
            getattr(self, name).copy_(torch.as_tensor(state[name]))
        self._unstable_count.fill_(int(state["unstable_count"]))
        self.rng = unpack_generator(state["generator"])

    # -- physics ----------------------------------------------------------------------------------

    def _on_device(self) -> AbstractContextManager:
        """Launch Warp's kernels on the device, on CUDA in the order of torch's current stream."""
        if self.device.type == "cuda":
            return wp.ScopedStream(wp.stream_from_torch(torch.cuda.current_stream(self.device)))
        return wp.ScopedDevice("cpu")

    def _control_step(self) -> None:
        for _ in range(self.task.frame_skip):
            mujoco_warp.step(self._model, self._data)
        self._compute_derived_fields()

    def _compute_derived_fields(self) -> None:
        """Bring the fields that follow from the state up to it: a step leaves them one substep behind."""
        if not self.task.needs_derived_fields:
            return
        # The stages one by one: `step1` would zero the acceleration sensors.
        for stage in (
            mujoco_warp.fwd_position,
            mujoco_warp.sensor_pos,
            mujoco_warp.fwd_velocity,
            mujoco_warp.sensor_vel,
        ):
            stage(self._model, self._data)

    def _compute_fresh_fields(self) -> None:
        """Compute what the task reads of a state that was set, not stepped to."""
        if _reads_forces(self.task):
            mujoco_warp.forward(self._model, self._data)
        else:
            self._compute_derived_fields()

    def _reset_data(self) -> None:
        mujoco_warp.reset_data(self._model, self._data, wp.from_torch(self._reset_mask))

    def _replayable(self, launches: Callable[[], None]) -> Callable[[], None]:
        """Return what does the same launches; on CUDA as one graph, which saves launching them one by one.

        To capture them it runs them once: reset every world afterwards.
        """
        if not _captures(self.device):
            return launches
        with self._on_device():
            launches()  # loads the kernels: older drivers load none during a capture
        device = str(self.device)
        stream = wp.Stream(device) if self.device.type == "cuda" else None  # torch's default has no captures
        with (
            wp.ScopedDevice(device),
            wp.ScopedStream(stream),
            wp.ScopedCapture(device, stream) as capture,
        ):
            launches()
        assert capture.graph is not None
        return partial(wp.capture_launch, capture.graph)

    def _refresh(self) -> None:
        with self._on_device():
            self._launch_refresh()
        self._read(self._unstable())

    def _unstable(self) -> torch.Tensor:
        """Return which worlds diverged or lost contacts or constraints, (num_worlds,) bool."""
        in_bounds = (self._qpos.abs() < _LARGEST_STATE).all(1) & (self._qvel.abs() < _LARGEST_STATE).all(1)
        # Warp's clamp turns a control that is not a number into one end of its range, and goes on.
        in_bounds &= self._ctrl.isfinite().all(1)
        return ~in_bounds | ((self._overflow & _LOST_PHYSICS) != 0)

    def _read(self, unstable: torch.Tensor) -> None:
        self.task.read_observation(self._fields, self.observation, xp=torch)
        self.task.read_achieved_goal(self._fields, self.achieved_goal, xp=torch)
        self.observation.masked_fill_(unstable[:, None], 0.0)
        self.achieved_goal.masked_fill_(unstable[:, None], 0.0)


class StartPool:
    """Starts drawn in advance, on the device, where resets take one after the other without waiting for it.

    Args:
        starts: (size, width), a start a row.
    """

    def __init__(self, starts: torch.Tensor) -> None:
        self._starts = starts
        self._taken = torch.zeros((), dtype=torch.int64, device=starts.device)

    def take(self, worlds: torch.Tensor) -> torch.Tensor:
        """Return (num_worlds, width): the next starts for the worlds of the mask; other rows mean nothing.

        After the last start comes the first again.
        """
        place = (self._taken + worlds.cumsum(0) - 1) % len(self._starts)
        self._taken += worlds.sum()
        return self._starts[place]

    @property
    def reused(self) -> int:
        """How many starts were taken that had been taken before; waits for the device."""
        return max(int(self._taken) - len(self._starts), 0)


def _captures(device: torch.device) -> bool:
    """Tell whether replaying a graph pays: on CUDA, where it saves the launches one by one."""
    return device.type == "cuda"


def _nothing() -> None:
    """Launch nothing."""


def _reads_forces(task: CompiledTask) -> bool:
    """Tell whether the task reads what only the whole of MuJoCo's forward pass computes."""
    accelerations = task.model.sensor_needstage == mujoco.mjtStage.mjSTAGE_ACC
    return "qfrc_actuator" in task.fields or ("sensordata" in task.fields and bool(accelerations.any()))


def constraint_sizes(task: CompiledTask) -> tuple[int, int]:
    """Return how many contacts and constraints to make room for, per world: twice the most that were seen.

    Seen by MuJoCo itself, in a few worlds from training starts under uniform random actions.
    """
    rng, data = np.random.default_rng(0), mujoco.MjData(task.model)
    contacts = constraints = 0
    with quiet_mujoco():
        for qpos, qvel, _ in zip(*task.sample_start("training", rng, _WARM_UP_WORLDS), strict=True):
            mujoco.mj_resetData(task.model, data)
            data.qpos[:], data.qvel[:] = qpos, qvel
            for _ in range(_WARM_UP_STEPS):
                data.ctrl[:] = task.control(rng.uniform(-1, 1, task.action_dim))
                mujoco.mj_step(task.model, data, nstep=task.frame_skip)
                contacts, constraints = max(contacts, data.ncon), max(constraints, data.nefc)
    return max(2 * contacts, _SMALLEST_NCONMAX), max(2 * constraints, _SMALLEST_NJMAX)


def _to_numpy(array: Array) -> np.ndarray:
    return array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)
