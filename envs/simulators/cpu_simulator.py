"""The simulator on CPU threads: `mujoco.batch.Batch`, read into float32 NumPy arrays."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import mujoco
import numpy as np
from mujoco import batch as mujoco_batch

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.generator_state import pack_generator, unpack_generator
from thousandfold.envs.mujoco_log import quiet_mujoco
from thousandfold.envs.simulators.simulator import (
    Simulator,
    StepResult,
    checked_state,
)
from thousandfold.envs.term_columns import FACTORS_FIELD, FIELDS
from thousandfold.envs.varied_model import VariedModel
from thousandfold.ground.machine import usable_cpus

_COUNT = 1  # a warning is (last info, count)
_NO_STAGE = int(mujoco.mjtStage.mjSTAGE_NONE)
_VELOCITY_STAGE = int(mujoco.mjtStage.mjSTAGE_VEL)
_FORWARD_STAGE = int(mujoco.mjtStage.mjSTAGE_ACC)
# MuJoCo resets a world that diverged: state finite, status 0. These counters are the only trace. Contacts or
# constraints that found no room are lost physics just as well.
_WARNING = mujoco.mjtWarning
_OVERFLOWED = [int(each) for each in (_WARNING.mjWARN_CONTACTFULL, _WARNING.mjWARN_CNSTRFULL)]
_UNSTABLE = [*_OVERFLOWED, int(_WARNING.mjWARN_BADQPOS), int(_WARNING.mjWARN_BADQVEL)]
_UNSTABLE += [int(_WARNING.mjWARN_BADQACC), int(_WARNING.mjWARN_BADCTRL)]
# Fields and sensors that tell where bodies are and how they move, and the forces that these need not know.
_SENSOR, _DISABLE = mujoco.mjtSensor, mujoco.mjtDisableBit
_KINEMATIC_FIELDS = frozenset({
    "xpos", "xquat", "xmat", "site_xpos", "site_xmat", "geom_xpos", "geom_xmat", "cinert", "cvel",
    "sensordata",
})  # fmt: skip
_KINEMATIC_SENSORS = frozenset({
    _SENSOR.mjSENS_VELOCIMETER, _SENSOR.mjSENS_GYRO, _SENSOR.mjSENS_JOINTPOS, _SENSOR.mjSENS_JOINTVEL,
    _SENSOR.mjSENS_TENDONPOS, _SENSOR.mjSENS_TENDONVEL, _SENSOR.mjSENS_ACTUATORPOS,
    _SENSOR.mjSENS_ACTUATORVEL, _SENSOR.mjSENS_BALLQUAT, _SENSOR.mjSENS_BALLANGVEL, _SENSOR.mjSENS_FRAMEPOS,
    _SENSOR.mjSENS_FRAMEQUAT, _SENSOR.mjSENS_FRAMEXAXIS, _SENSOR.mjSENS_FRAMEYAXIS,
    _SENSOR.mjSENS_FRAMEZAXIS, _SENSOR.mjSENS_FRAMELINVEL, _SENSOR.mjSENS_FRAMEANGVEL,
    _SENSOR.mjSENS_SUBTREECOM,
})  # fmt: skip
_FORCES = int(
    _DISABLE.mjDSBL_CONSTRAINT | _DISABLE.mjDSBL_CONTACT | _DISABLE.mjDSBL_SPRING | _DISABLE.mjDSBL_DAMPER
)


class CpuSimulator(Simulator):
    """Worlds of one task on a thread pool; bit-identical at any number of threads.

    Args:
        task: the compiled task.
        num_worlds: how many worlds to run.
        seed: seed of the resets' generator.
        distribution: episode distribution that resets draw from.
        num_threads: threads to step on; 0 takes as many as this process may use.
        with_student: show what the student sees beside the task's own observation.
    """

    def __init__(
        self,
        task: CompiledTask,
        num_worlds: int,
        *,
        seed: int | np.random.SeedSequence = 0,
        distribution: str = "training",
        num_threads: int = 0,
        with_student: bool = False,
    ) -> None:
        super().__init__(task, num_worlds, seed, distribution, with_student=with_student, xp=np, device="cpu")
        self._num_threads = num_threads
        model = task.model if self.varied is None else self.varied.model
        self._batch = mujoco_batch.Batch(model, num_worlds, num_threads or usable_cpus())
        # Written to the rows of worlds that are reset, for which no thread need be woken.
        self._start_state = task.start_state(distribution)
        names = ("qpos", "qvel", "act", "ctrl")
        self._qpos, self._qvel, self._act, self._ctrl = (self._batch.bind(name) for name in names)
        bound = [name for name in self.fields if name != FACTORS_FIELD]
        self._fields = {name: self._batch.bind(name).reshape(num_worlds, -1) for name in bound}
        self._sent = self._ctrl
        if self._pending is not None:  # what was sent last is what the task reads and builds on
            self._fields["ctrl"] = self._sent = self._pending.newest
        self._kinematics = kinematic_model(model, self.fields)
        self._draws = np.zeros((num_worlds, 0 if self.varied is None else self.varied.width))
        self._model_fields = [
            self._batch.expand(name) for name in (self.varied.fields if self.varied else ())
        ]
        if self.varied is not None:
            self._push_steps = self.varied.push_steps(self._draws)
            if FACTORS_FIELD in self.fields:
                self._fields[FACTORS_FIELD] = self._draws[:, self.varied.told]
        self._disableflags: np.ndarray | None = None
        if self._kinematics is not None and self.varied is not None and self.varied.fields:
            self._disableflags = self._batch.expand("opt.disableflags")
        self.achieved_goal = np.zeros((num_worlds, task.goal_dim), np.float32)
        self.desired_goal = np.zeros((num_worlds, task.goal_dim), np.float32)
        self.later_goals = np.zeros((num_worlds, task.later_goals * task.goal_dim), np.float32)
        self.episode_step = np.zeros(num_worlds, np.int64)
        self.diverged_count = self.overflow_count = 0
        self._quarantined = np.zeros(num_worlds, bool)
        self.reset()

    def reset(self, worlds: np.ndarray | None = None) -> None:
        """Start a fresh episode, with a fresh goal, in the worlds of the mask (num_worlds,); None: in all."""
        ids = np.arange(self.num_worlds) if worlds is None else np.flatnonzero(np.asarray(worlds))
        if len(ids) == 0:
            return
        if worlds is None:
            self._begin_streams()
        qpos, qvel, goal = self.task.draw_start(self.distribution, self.rng, len(ids))
        later = self.task.draw_later_goals(self.distribution, self.rng, len(ids))
        self.later_goals[ids] = later.reshape(len(ids), self.later_goals.shape[1])
        self._batch.state[ids] = self._start_state
        self._qpos[ids], self._qvel[ids] = qpos, qvel
        self._ctrl[ids] = self.task.control.start(self._ctrl[ids], qpos)
        self._act[ids] = self.task.control.start_activation(self._act[ids], self._ctrl[ids])
        if self.varied is not None:
            self._draws[ids] = self._stream.take(len(ids))
            self._write_models(ids)
        self.episode_step[ids] = 0
        self._quarantined[ids] = False
        self._refresh(ids)
        self.desired_goal[ids] = self.task.goals_from(self.distribution, goal, self.achieved_goal[ids])

    def step(self, action: np.ndarray) -> StepResult:
        """Advance every world by one control step; see `Simulator.step`."""
        clocks = self.task.control.clocks(self._fields.get("time"))
        control = self.task.control(np.asarray(action), self._sent, clocks=clocks)
        self._ctrl[:] = control if self._pending is None else self._pending.send(control)
        if self.varied is not None:
            self._push(self.varied)
        lost = self._advance()
        if lost.any():  # hidden until they are reset; counted where they were not hidden yet
            fresh = lost & ~self._quarantined
            overflowed = fresh & (self._batch.warning[:, _OVERFLOWED, _COUNT] > 0).any(1)
            self.overflow_count += int(overflowed.sum())
            self.diverged_count += int((fresh & ~overflowed).sum())
            self._quarantined |= fresh
        unstable = self._quarantined.copy()
        self.episode_step += 1
        self._read()
        ended = self.task.ended_early(self._fields)
        terminated = np.zeros(self.num_worlds, bool) if ended is None else ended & ~unstable
        if self.task.later_goals:
            self.desired_goal[:] = self._goals_now(terminated | unstable, np)
        success = self.task.is_success(self.achieved_goal, self.desired_goal) & ~unstable
        return StepResult(success, terminated, self.episode_step >= self.task.spec.episode_steps, unstable)

    @property
    def qpos(self) -> np.ndarray:
        """The positions of the joints, (num_worlds, nq) float64; a copy."""
        return np.array(self._qpos)

    @property
    def qvel(self) -> np.ndarray:
        """The velocities of the joints, (num_worlds, nv) float64; a copy."""
        return np.array(self._qvel)

    def world_data(self, world: int) -> mujoco.MjData:
        """Return one world as an `MjData` of its own, with everything computed that a picture needs."""
        data = self._batch.get_data(world)
        with quiet_mujoco():
            mujoco.mj_forward(self.world_model(world), data)
        return data

    def world_model(self, world: int) -> mujoco.MjModel:
        """Return the model of one world: the task's, or a copy as it was drawn for its episode."""
        return self.task.model if self.varied is None else self._batch.get_model(world)

    def _push(self, varied: VariedModel) -> None:
        """Change the velocities of the worlds that are pushed before the control step that follows."""
        due = np.flatnonzero((self._push_steps == self.episode_step[:, None]).any(1))
        if len(due):
            kicks = varied.kicks(self._draws[due], self.episode_step[due])
            self._qvel[due[:, None], varied.pushed_dofs] += kicks

    def _write_models(self, ids: np.ndarray) -> None:
        """Give some worlds the models that were drawn for them."""
        assert self.varied is not None
        draws = self._draws[ids]
        self._push_steps[ids] = self.varied.push_steps(draws)
        for values, (columns, shape) in zip(self._model_fields, self.varied.fields.values(), strict=True):
            values[ids] = draws[:, columns].reshape(-1, *shape)

    def _advance(self) -> np.ndarray:
        """Run the physics of one control step; return in which worlds they were lost, (num_worlds,) bool."""
        # MuJoCo zeroes a world's counters as it resets it, then counts to 1: only counts from zero tell.
        self._batch.warning.fill(0)
        with quiet_mujoco():
            failed = self._step_physics()
        lost = np.zeros(self.num_worlds, bool)
        if self._batch.warning.any():
            lost = (self._batch.warning[:, _UNSTABLE, _COUNT] > 0).any(1)
        lost[failed] = True
        return lost

    def _step_physics(self) -> np.ndarray | list[int]:
        """Make the substeps, and bring derived fields up to the state; return the worlds that failed.

        A substep leaves derived fields as they were before it.
        """
        failed: np.ndarray | list[int] = []
        own_stage = self.needs_derived_fields and self._kinematics is None
        try:
            self._batch.step(nstep=self.task.frame_skip, stage=_VELOCITY_STAGE if own_stage else _NO_STAGE)
        except mujoco_batch.SimulationError as error:
            failed = error.ids
        if self._kinematics is not None:
            self._move_bodies(None)
        return failed

    def _move_bodies(self, ids: np.ndarray | None) -> None:
        """Compute where bodies are and how they move, for fields that need no more."""
        if self._disableflags is not None:  # models that vary cannot be replaced, but for what they vary in
            self._disableflags[:] |= _FORCES
        else:
            self._batch.set_models(self._kinematics)
        try:
            self._batch.forward(ids, stage=_VELOCITY_STAGE)
        finally:
            if self._disableflags is not None:
                self._disableflags[:] = self._batch.model.opt.disableflags
            else:
                self._batch.set_models(None)

    def set_goal(self, goal: np.ndarray, worlds: np.ndarray | None = None) -> None:
        """Command goals in the worlds of the mask; see `Simulator.set_goal`."""
        chosen = slice(None) if worlds is None else worlds
        self.desired_goal[chosen] = np.broadcast_to(goal, self.desired_goal.shape)[chosen]
        self.later_goals[chosen] = np.nan

    def set_state(self, qpos: np.ndarray, qvel: np.ndarray) -> None:
        """Put every world into a state; see `Simulator.set_state`."""
        self._batch.state[:] = self._start_state
        self._qpos[:], self._qvel[:] = qpos, qvel
        self._ctrl[:] = self.task.control.start(self._ctrl, self._qpos)
        self._act[:] = self.task.control.start_activation(self._act, self._ctrl)
        self._quarantined[:] = False
        self._refresh(np.arange(self.num_worlds))

    def _refresh(self, ids: np.ndarray) -> None:
        """Bring what is read of some worlds up to their states, and leave the others alone.

        They are about to begin an episode.
        """
        begun = np.zeros(self.num_worlds, bool)
        begun[ids] = True
        if self._pending is not None:
            self._pending.begin(self._ctrl, begun)
        with quiet_mujoco():
            if self._kinematics is not None:
                self._move_bodies(ids)
            elif self.needs_derived_fields:
                # All of mj_forward: a field that the call left out would hold another world's numbers.
                self._batch.forward(ids, stage=_FORWARD_STAGE)
        self._read(ids, begun)

    def _read(self, ids: np.ndarray | None = None, begun: np.ndarray | None = None) -> None:
        """Read what the task shows of some worlds, of all where none are given; zeros in quarantine.

        Args:
            ids: of the worlds.
            begun: (num_worlds,) bool, the worlds where they begin an episode; None after a step.
        """
        fields = self._fields if ids is None else {name: rows[ids] for name, rows in self._fields.items()}
        for shown, read in (
            *((view.readings, view.task.read_observation) for view in self._views),
            (self.achieved_goal, self.task.read_achieved_goal),
        ):
            rows = shown if ids is None else shown[ids]
            read(fields, rows)
            if ids is not None:
                shown[ids] = rows
        for view in self._views:
            view.update(begun)
        if self._quarantined.any():
            for shown in (self.achieved_goal, *(view.shown for view in self._views)):
                shown[self._quarantined] = 0.0

    # -- the state as a whole ---------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle and copy make another of, which goes on as this one would."""
        made_with = {name: getattr(self, name) for name in ("task", "num_worlds", "distribution", "rng")}
        more = {"num_threads": self._num_threads, "with_student": len(self._views) > 1}
        return {**made_with, **more, "state": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Become the simulator that `__getstate__` was told of."""
        self.__init__(
            state["task"], state["num_worlds"],
            distribution=state["distribution"], num_threads=state["num_threads"],
            with_student=state["with_student"],
        )  # fmt: skip
        self.load_state_dict(state["state"])
        self.rng = state["rng"]  # whoever shares it goes on sharing it
        self._load_stream(state["state"])

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return everything that the next step depends on."""
        return {
            "state": self._batch.state.copy(),
            **{name: getattr(self, name).copy() for name in self.shown},
            "quarantined": self._quarantined.copy(),
            "unstable_count": np.array(self.unstable_count),
            "overflow_count": np.array(self.overflow_count),
            "generator": pack_generator(self.rng),
            **self._senses_state(),
            **self._draws_state(),
        }

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Restore what `state_dict` returned."""
        state = checked_state(self.state_dict(), state)
        self._batch.state[:] = state["state"]
        for name in self.shown:
            getattr(self, name)[:] = state[name]
        self._quarantined[:] = state["quarantined"]
        self.overflow_count = int(state["overflow_count"])
        self.diverged_count = int(state["unstable_count"]) - self.overflow_count
        self.rng = unpack_generator(state["generator"])
        self._load_senses(state)
        if self.varied is not None:
            self._draws[:] = state["draws"]
            self._write_models(np.arange(self.num_worlds))
        self._load_stream(state)


def kinematic_model(model: mujoco.MjModel, fields: Iterable[str]) -> mujoco.MjModel | None:
    """Return the model without collisions, constraints and passive forces.

    Up to mjSTAGE_VEL it computes the same numbers for the fields in about half the time.

    Args:
        model: the model that is simulated.
        fields: names of the data fields that are read.

    Returns:
        A copy that differs in its options; None where a field, or a sensor behind it, knows of forces, or
        where nothing is to be computed.
    """
    derived = {name for name in fields if not FIELDS[name].in_state}
    kinematic = derived <= _KINEMATIC_FIELDS
    if "sensordata" in derived:
        kinematic &= all(kind in _KINEMATIC_SENSORS for kind in map(_SENSOR, model.sensor_type))
    if not derived or not kinematic:
        return None
    without_forces = copy.copy(model)
    without_forces.opt.disableflags |= _FORCES
    return without_forces
