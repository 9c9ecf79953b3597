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

from thousandfold.envs.compiled_task import CompiledTask  # noqa: E402
from thousandfold.envs.generator_state import pack_generator, unpack_generator  # noqa: E402
from thousandfold.envs.simulators.simulator import (  # noqa: E402
    Simulator,
    StepResult,
    checked_state,
)
from thousandfold.envs.simulators.warp_contacts import match_contacts  # noqa: E402
from thousandfold.envs.simulators.warp_sizes import WarpSizes, warm_up_sizes  # noqa: E402
from thousandfold.envs.start_states import STATE  # noqa: E402
from thousandfold.envs.task import TaskError  # noqa: E402
from thousandfold.envs.term_columns import FACTORS_FIELD  # noqa: E402
from thousandfold.envs.varied_model import VariedModel  # noqa: E402
from thousandfold.ground.between_graphs import launch_between_graphs  # noqa: E402

Array = torch.Tensor | np.ndarray

# Contacts or constraints that found no room. The other bits say that a solver stopped at its iteration limit.
_LOST_PHYSICS = int(
    mujoco_warp.OverflowType.ALL
    & ~(mujoco_warp.OverflowType.ITERATIONS | mujoco_warp.OverflowType.LS_ITERATIONS)
)
_LARGEST_STATE = 1e10  # MuJoCo's own bound (mjMAXVAL): beyond it, or not a number, a world has diverged
# Of the solver. MuJoCo Warp takes no less than 1e-6, which leaves errors where many limits hold at once; this
# costs an iteration in a hundred steps.
_LEAST_TOLERANCE = 1e-7
# Constants that vary and that no physics step reads, but for worlds that sleep.
_UNREAD = ("dof_length",)
_SHORTEST_EPISODE = 4  # steps that episodes which can end early are taken to last, on average over an unroll


class StartPool:
    """Starts (size, width) drawn in advance, on the device: resets take them one by one without waiting.

    Nothing of it moves in memory, so that resets can be recorded.
    """

    def __init__(self, starts: torch.Tensor) -> None:
        self._starts = starts
        self._taken = torch.zeros((), dtype=torch.int64, device=starts.device)

    def __len__(self) -> int:
        return len(self._starts)

    def take(self, worlds: torch.Tensor) -> torch.Tensor:
        """Return (num_worlds, width): the next starts for the worlds of the mask; other rows mean nothing.

        After the last start comes the first again.
        """
        place = (self._taken + worlds.cumsum(0) - 1) % len(self._starts)
        self._taken += worlds.sum()
        return self._starts[place]

    def refill(self, starts: torch.Tensor) -> None:
        """Put as many other starts in the place of these."""
        self._starts.copy_(starts)
        self._taken.zero_()

    @property
    def reused(self) -> int:
        """How many starts were taken that had been taken before; waits for the device."""
        return max(int(self._taken) - len(self._starts), 0)


class WarpSimulator(Simulator):
    """Worlds of one task on MuJoCo Warp; every array is a torch tensor on `device`.

    What goes in may be NumPy's too. The physics of a control step is one recorded graph of kernels, which is
    replayed, on CUDA on torch's current stream, and so is that of a reset; inside `unroll` neither waits for
    the device. A recording of torch's leaves these graphs as they are (`ground.between_graphs`). Unrolls of
    one length take their starts from one place in memory.

    Attributes:
        sizes: the room made for contacts and constraints.
        reused_starts: starts that served twice, because more worlds were reset in an unroll than it had drawn
            starts for.

    Args:
        task: the compiled task.
        num_worlds: how many worlds to run.
        device: ``cpu`` or ``cuda:<index>``.
        seed: seed of the resets' generator.
        distribution: episode distribution that resets draw from.
        nconmax: contacts to make room for, per world; None takes twice what a warm-up saw.
        njmax: constraints to make room for, per world; None takes twice what a warm-up saw.
        deterministic: add up in a fixed order on CUDA, which is slower. MuJoCo Warp 4.0 orders no contacts
            and no constraints yet: only worlds without any repeat bit for bit. On the CPU all do.
        record: launch the kernels of a step once and replay them; without, one by one, which is slower.
        with_student: show what the student sees beside the task's own observation.

    Raises:
        TaskError: the task has no such distribution, or its model is none for MuJoCo Warp.
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
        deterministic: bool = False,
        record: bool = True,
        with_student: bool = False,
    ) -> None:
        self.device = torch.device(device)
        super().__init__(
            task, num_worlds, seed, distribution, with_student=with_student, xp=torch, device=self.device
        )
        with wp.ScopedDevice(device):
            self._make_worlds(nconmax, njmax, deterministic)
        self._make_arrays()
        self.reused_starts = 0
        self._pool: StartPool | None = None
        self._last_pool: StartPool | None = None
        launcher = partial(self._launcher, record=record)
        self._launch_step = launcher(self._control_step)
        self._launch_reset = launcher(self._reset_data)
        derives = self.needs_derived_fields
        self._launch_refresh = launcher(self._compute_fresh_fields) if derives else lambda: None
        self.reset()

    def _make_worlds(self, nconmax: int | None, njmax: int | None, deterministic: bool) -> None:
        model = self.task.model if self.varied is None else self.varied.model
        start = mujoco.MjData(model)
        mujoco.mj_setState(model, start, self.task.start_state(self.distribution), STATE)
        try:
            self._model = mujoco_warp.put_model(model)
        except NotImplementedError as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise TaskError(
                f"Task {self.task.name!r}: MuJoCo Warp does not run the model: {reason}. "
                "Change the model, or run it with device cpu."
            ) from error
        self.sizes = (
            WarpSizes(nconmax, njmax)
            if nconmax is not None and njmax is not None
            else warm_up_sizes(self.task).overridden(nconmax, njmax)
        )
        match_contacts(model, self._model)
        option = self._model.opt
        option.warn_overflow = 0  # read from Data.overflow instead of printed by the kernels
        option.tolerance.fill_(max(model.opt.tolerance, _LEAST_TOLERANCE))
        option.deterministic = deterministic
        option.graph_conditional = self.device.type == "cpu" or wp.is_conditional_graph_supported()
        self._data = mujoco_warp.put_data(
            model,
            start,
            nworld=self.num_worlds,
            nconmax=self.sizes.nconmax,
            naconmax=self.sizes.naconmax(self.num_worlds),
            njmax=self.sizes.njmax,
        )
        self._varied_fields = {} if self.varied is None else self._expand_fields(self.varied)

    def _expand_fields(self, varied: VariedModel) -> dict[str, torch.Tensor]:
        """Give each world fields of its own for those of the model that vary; return them, (num_worlds, …).

        They are made before anything is recorded, which knows arrays by their place in memory.
        """
        found = {}
        for name, field in varied.fields.items():
            owner, own = (self._model.opt, name[4:]) if name.startswith("opt.") else (self._model, name)
            shared = getattr(owner, own, None)
            if name in _UNREAD or not isinstance(shared, wp.array):
                continue
            values = shared.numpy()
            if len(values) != 1 or values.ndim <= len(field.shape):
                raise TaskError(
                    f"Task {self.task.name!r}: MuJoCo Warp has one {own} for all environments, so it "
                    "cannot vary: leave the factor out, or run it with device cpu."
                )
            rows = np.repeat(values, self.num_worlds, axis=0)
            setattr(owner, own, wp.array(rows, dtype=shared.dtype, device=str(self.device)))
            found[name] = wp.to_torch(getattr(owner, own)).view(self.num_worlds, -1)
        return found

    def _make_arrays(self) -> None:
        worlds, device = self.num_worlds, self.device
        names = ("qpos", "qvel", "qacc", "act", "ctrl", "overflow")
        self._qpos, self._qvel, self._qacc, self._act, self._ctrl, self._overflow = (
            wp.to_torch(getattr(self._data, name)) for name in names
        )
        start = self.task.start_state(self.distribution).astype(np.float32)
        self._start_state = wp.array(np.tile(start, (worlds, 1)), dtype=float, device=str(device))
        bound = [name for name in self.fields if name != FACTORS_FIELD]
        self._fields = {name: wp.to_torch(getattr(self._data, name)).view(worlds, -1) for name in bound}
        self._sent = self._ctrl
        if self._pending is not None:  # what was sent last is what the task reads and builds on
            self._fields["ctrl"] = self._sent = self._pending.newest
        self.achieved_goal = torch.zeros(worlds, self.task.goal_dim, device=device)
        self.desired_goal = torch.zeros(worlds, self.task.goal_dim, device=device)
        self.later_goals = torch.zeros(worlds, self.task.later_goals * self.task.goal_dim, device=device)
        self.episode_step = torch.zeros(worlds, dtype=torch.int64, device=device)
        self._quarantined = torch.zeros(worlds, dtype=torch.bool, device=device)
        self._counts = torch.zeros(2, dtype=torch.int64, device=device)  # diverged, overflowed
        self._reset_mask = torch.zeros(worlds, dtype=torch.bool, device=device)
        self._draws = torch.zeros(worlds, 0 if self.varied is None else self.varied.width, device=device)
        if self.varied is not None:
            self._pushed_dofs = torch.from_numpy(self.varied.pushed_dofs).to(device)
            if FACTORS_FIELD in self.fields:
                self._fields[FACTORS_FIELD] = self._draws[:, self.varied.told]

    @property
    def diverged_count(self) -> int:
        """Worlds that diverged since the simulator was made; waits for the device."""
        return int(self._counts[0])

    @property
    def overflow_count(self) -> int:
        """Worlds that lost contacts or constraints since the simulator was made; waits for the device."""
        return int(self._counts[1])

    @contextmanager
    def unroll(self, steps: int) -> Iterator[None]:
        """Draw the starts of an unroll at once, so that resets take them from the device.

        Where more worlds are reset than starts were drawn, the first starts are used again; `reused_starts`
        counts them. Waits for the device at the end.
        """
        starts, pool = self._draw(self._pool_size(steps)), self._last_pool
        if pool is None or len(pool) != len(starts):
            pool = StartPool(starts)
        else:
            pool.refill(starts)
        self._pool = self._last_pool = pool
        try:
            yield
            self.reused_starts += pool.reused
        finally:
            self._pool = None

    def _pool_size(self, steps: int) -> int:
        """Return how many starts an unroll may need: one more for each world than episodes that can end."""
        episodes = steps // self.task.spec.episode_steps + 2
        if self.task.spec.early_end:
            episodes = max(episodes, steps // _SHORTEST_EPISODE)
        return episodes * self.num_worlds

    def _draw(self, count: int) -> torch.Tensor:
        """Return fresh starts on the device, a start a row.

        Side by side lie qpos, qvel, goal, later goals, and what varies.
        """
        parts = list(self.task.draw_start(self.distribution, self.rng, count))
        later = self.task.draw_later_goals(self.distribution, self.rng, count)
        parts.append(later.reshape(count, self.later_goals.shape[1]))
        if self.varied is not None:
            # Two models a world do for an unroll; episodes that end sooner have new starts, and models again.
            draws = self._stream.take(min(count, 2 * self.num_worlds))
            parts.append(draws[np.arange(count) % len(draws)])
        starts = np.hstack(parts)
        host = torch.from_numpy(starts.astype(np.float32))
        if self.device.type == "cuda":
            host = host.pin_memory()  # from other memory the copy would wait for the device
        return host.to(self.device, non_blocking=True)

    def reset(self, worlds: Array | None = None) -> None:
        """Start a fresh episode, with a fresh goal, in the worlds of the mask (num_worlds,); None: in all."""
        if worlds is None:
            self._begin_streams()
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
        chosen = self._reset_mask[:, None]
        self._launch_reset()
        targets = (self._qpos, self._qvel, self.desired_goal, self.later_goals, self._draws)
        parts = starts.split([target.shape[1] for target in targets], dim=1)
        for target, part in zip(targets, parts, strict=True):
            target.copy_(torch.where(chosen, part, target))
        self._write_models()
        start = self.task.control.start(self._ctrl, self._qpos, xp=torch)
        self._ctrl.copy_(torch.where(chosen, start, self._ctrl))
        settled = self.task.control.start_activation(self._act, self._ctrl, xp=torch)
        self._act.copy_(torch.where(chosen, settled, self._act))
        if self._pending is not None:
            self._pending.begin(self._ctrl, self._reset_mask)
        self.episode_step.masked_fill_(self._reset_mask, 0)
        self._quarantined.masked_fill_(self._reset_mask, False)
        self._launch_refresh()
        self._read(self._quarantined, self._reset_mask, begun=self._reset_mask)
        goal = self.task.goals_from(self.distribution, self.desired_goal, self.achieved_goal, xp=torch)
        if goal is not self.desired_goal:
            self.desired_goal.copy_(torch.where(chosen, goal, self.desired_goal))

    def _write_models(self) -> None:
        """Give the worlds the models that were drawn for them."""
        for name, values in self._varied_fields.items():
            assert self.varied is not None
            values.copy_(self._draws[:, self.varied.fields[name].columns])

    def step(self, action: Array) -> StepResult:
        """Advance every world by one control step; see `Simulator.step`."""
        action = torch.as_tensor(action, dtype=torch.float32, device=self.device)
        clocks = self.task.control.clocks(self._fields.get("time"), xp=torch)
        control = self.task.control(action, self._sent, xp=torch, clocks=clocks)
        self._ctrl.copy_(control if self._pending is None else self._pending.send(control))
        if self.varied is not None and len(self.varied.pushed_dofs):
            kicks = self.varied.kicks(self._draws, self.episode_step, xp=torch)
            self._qvel.index_add_(1, self._pushed_dofs, kicks)
        self._overflow.zero_()
        self._launch_step()
        self.episode_step += 1
        self._quarantine()
        unstable = self._quarantined.clone()
        ended = self.task.ended_early(self._fields, xp=torch)
        self._read(unstable)
        terminated = torch.zeros_like(unstable) if ended is None else ended & ~unstable
        if self.task.later_goals:
            self.desired_goal.copy_(self._goals_now(terminated | unstable, torch))
        success = self.task.is_success(self.achieved_goal, self.desired_goal) & ~unstable
        return StepResult(success, terminated, self.episode_step >= self.task.spec.episode_steps, unstable)

    def set_goal(self, goal: Array, worlds: Array | None = None) -> None:
        """Command goals in the worlds of the mask; see `Simulator.set_goal`."""
        goal = torch.as_tensor(goal, dtype=torch.float32, device=self.device).expand_as(self.desired_goal)
        later = torch.full_like(self.later_goals, torch.nan)
        if worlds is not None:
            chosen = torch.as_tensor(worlds, dtype=torch.bool, device=self.device)
            goal = torch.where(chosen[:, None], goal, self.desired_goal)
            later = torch.where(chosen[:, None], later, self.later_goals)
        self.desired_goal.copy_(goal)
        self.later_goals.copy_(later)

    def set_state(self, qpos: Array, qvel: Array) -> None:
        """Put every world into a state; see `Simulator.set_state`."""
        self._reset_mask.fill_(True)
        self._launch_reset()
        self._qpos.copy_(torch.as_tensor(qpos))
        self._qvel.copy_(torch.as_tensor(qvel))
        self._ctrl.copy_(self.task.control.start(self._ctrl, self._qpos, xp=torch))
        self._act.copy_(self.task.control.start_activation(self._act, self._ctrl, xp=torch))
        if self._pending is not None:
            self._pending.begin(self._ctrl, self._reset_mask)
        self._quarantined.zero_()
        self._refresh()

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return everything that the next step depends on, on the host. Raises RuntimeError in an unroll."""
        if self._pool is not None:
            raise RuntimeError("inside an unroll a simulator has no state to save")
        size = mujoco.mj_stateSize(self.task.model, STATE)
        state = torch.zeros(self.num_worlds, size, device=self.device)
        with self._on_device():
            mujoco_warp.get_state(self._model, self._data, cast(Any, wp.from_torch(state)), STATE)
        return {
            "state": _to_numpy(state),
            **{name: _to_numpy(getattr(self, name)).copy() for name in self.shown},
            "quarantined": _to_numpy(self._quarantined).copy(),
            "unstable_count": np.array(self.unstable_count),
            "overflow_count": np.array(self.overflow_count),
            "generator": pack_generator(self.rng),
            **self._senses_state(),
            **self._draws_state(),
        }

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Restore what `state_dict` returned."""
        state = checked_state(self.state_dict(), state)
        if self.varied is not None:
            self._draws.copy_(torch.as_tensor(state["draws"]))
            self._write_models()
        rows = torch.as_tensor(state["state"], dtype=torch.float32).to(self.device).contiguous()
        with self._on_device():
            mujoco_warp.reset_data(self._model, self._data)
            mujoco_warp.set_state(self._model, self._data, cast(Any, wp.from_torch(rows)), STATE)
        self._refresh()
        self._load_senses(state)
        for name in self.shown:
            getattr(self, name).copy_(torch.as_tensor(state[name]))
        self._quarantined.copy_(torch.as_tensor(state["quarantined"]))
        overflowed = int(state["overflow_count"])
        self._counts.copy_(torch.tensor([int(state["unstable_count"]) - overflowed, overflowed]))
        self.rng = unpack_generator(state["generator"])
        self._load_stream(state)

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
        if not self.needs_derived_fields:
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
        if _reads_forces(self.task, self.fields):
            mujoco_warp.forward(self._model, self._data)
        else:
            self._compute_derived_fields()

    def _reset_data(self) -> None:
        """Put the worlds of the reset mask into the state that episodes start in."""
        worlds = wp.from_torch(self._reset_mask)
        mujoco_warp.reset_data(self._model, self._data, worlds)
        mujoco_warp.set_state(self._model, self._data, cast(Any, self._start_state), STATE, worlds)

    def _launcher(self, launches: Callable[[], None], record: bool) -> Callable[[], None]:
        """Return what does launches on the device, recorded as one graph, which saves doing them one by one.

        To record them it runs them once: reset every world afterwards.
        """

        def launch() -> None:
            with self._on_device():
                replay()

        replay = self._replay_of(launches) if record else launches
        return partial(launch_between_graphs, launch)

    def _replay_of(self, launches: Callable[[], None]) -> Callable[[], None]:
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
        self._launch_refresh()
        begun = torch.ones_like(self._quarantined)
        self._read(self._quarantined | ~_in_bounds(self._qpos, self._qvel), begun=begun)

    def _quarantine(self) -> None:
        """Note and count which worlds the last step left diverged, or without contacts or constraints."""
        overflowed = (self._overflow & _LOST_PHYSICS) != 0
        # Warp's clamp turns a control that is not a number into one end of its range, and goes on.
        diverged = ~_in_bounds(self._qpos, self._qvel, self._qacc) | ~self._ctrl.isfinite().all(1)
        fresh = (diverged | overflowed) & ~self._quarantined
        self._counts += torch.stack([(fresh & ~overflowed).sum(), (fresh & overflowed).sum()])
        self._quarantined |= fresh

    def _read(
        self, hidden: torch.Tensor, worlds: torch.Tensor | None = None, begun: torch.Tensor | None = None
    ) -> None:
        """Read what the task shows of some worlds, of all for None; zeros in hidden ones.

        Args:
            hidden, worlds: masks, (num_worlds,).
            begun: the worlds where they begin an episode; None after a step.
        """
        for shown, read in (
            *((view.readings, view.task.read_observation) for view in self._views),
            (self.achieved_goal, self.task.read_achieved_goal),
        ):
            out = shown if worlds is None else torch.zeros_like(shown)
            read(self._fields, out, xp=torch)
            if worlds is not None:
                shown.copy_(torch.where(worlds[:, None], out, shown))
        for view in self._views:
            view.update(begun)
        for shown in (self.achieved_goal, *(view.shown for view in self._views)):
            shown.masked_fill_(hidden[:, None], 0.0)


def _reads_forces(task: CompiledTask, fields: tuple[str, ...]) -> bool:
    """Return whether one of the fields is what only the whole of MuJoCo's forward pass computes."""
    accelerations = task.model.sensor_needstage == mujoco.mjtStage.mjSTAGE_ACC
    return "qfrc_actuator" in fields or ("sensordata" in fields and bool(accelerations.any()))


def _in_bounds(*arrays: torch.Tensor) -> torch.Tensor:
    """Return (num_worlds,) bool: every number of every array (num_worlds, …) is finite and not too large."""
    return torch.stack([(array.abs() < _LARGEST_STATE).all(1) for array in arrays]).all(0)


def _to_numpy(array: Array) -> np.ndarray:
    return array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)
