"""Initial states of episodes: a whole state of the model, positions that are drawn, and noise."""

from __future__ import annotations

import mujoco
import numpy as np

from thousandfold.envs.object_names import find_object, object_names
from thousandfold.envs.task import Reset, TaskError, Term
from thousandfold.envs.term_columns import FIELDS, ONE_NUMBER, TermResolver, as_slice, quaternion_starts

_TRIAL_DRAWS = 256
_JOINT, _KEY = mujoco.mjtObj.mjOBJ_JOINT, mujoco.mjtObj.mjOBJ_KEY
STATE = int(mujoco.mjtState.mjSTATE_INTEGRATION)
"""All that the next physics step depends on; what the rows of `mujoco.batch.Batch` hold."""
_OUTSIDE_THE_STATE = {mujoco.mjtEnableBit.mjENBL_SLEEP: "sleep", mujoco.mjtEnableBit.mjENBL_IPC: "ipc"}


def require_whole_state(model: mujoco.MjModel, owner: str) -> None:
    """Raise TaskError where the model enables what keeps books outside MuJoCo's state."""
    for bit, flag in _OUTSIDE_THE_STATE.items():
        if model.opt.enableflags & bit:
            raise TaskError(
                f"{owner}: the model enables {flag!r}, whose bookkeeping is no part of MuJoCo's state, so "
                f'that neither a reset nor a checkpoint brings it back: leave out <flag {flag}="enable"/>.'
            )


class StartStates:
    """Draws the states that a `Reset` describes, for one model.

    Attributes:
        base: (state size,) float64, MuJoCo's integration state before positions are drawn and noise is added:
            the keyframe's, as MuJoCo resets to it, with its activations, bodies moved from outside, controls
            and clock; without a keyframe the model's initial state.

    Args:
        model: the compiled model.
        reset: the description.
        owner: how errors begin.
        has_clock: whether a clock is observed, which tells the time since the start.

    Raises:
        TaskError: a joint or keyframe that the model does not have, a keyframe that a clock cannot begin at,
            or draws that do not fit the joints or give a quaternion of length 0.
    """

    def __init__(self, model: mujoco.MjModel, reset: Reset, owner: str, has_clock: bool = False) -> None:
        self._model, self._reset, self._owner = model, reset, owner
        self._resolver = TermResolver(model, owner)
        data = mujoco.MjData(model)
        if reset.keyframe is not None:
            try:
                key = find_object(model, _KEY, reset.keyframe, owner)
            except TaskError as error:
                raise error.within("keyframe") from None
            mujoco.mj_resetDataKeyframe(model, data, key)
        if has_clock and data.time:
            raise TaskError(
                f"{owner}: keyframe {reset.keyframe!r} begins at time {data.time:g}, and a clock at 0: leave "
                "out the keyframe's time.",
                ("keyframe",),
            )
        self._qpos, self._qvel = data.qpos.copy(), data.qvel.copy()
        self.base = np.empty(mujoco.mj_stateSize(model, STATE))
        mujoco.mj_getState(model, data, self.base, STATE)
        if not np.isfinite(self.base).all():
            start = "the initial state" if reset.keyframe is None else f"keyframe {reset.keyframe!r}"
            raise TaskError(f"{owner}: {start} holds NaN or infinity.")
        columns = [self._column(index, name) for index, name in enumerate(reset.joints)]
        twice = [index for index, column in enumerate(columns) if column in columns[:index]]
        if twice:
            raise TaskError(f"{owner}: {reset.joints[twice[0]]!r} is drawn twice.", ("joints", twice[0]))
        self._drawn = np.array(columns, int)
        drawn = reset.sample(np.random.default_rng(0), _TRIAL_DRAWS)
        if drawn.shape[1] != len(columns):
            raise TaskError(
                f"{owner}: starts draw {drawn.shape[1]} numbers for {len(columns)} joints.", ("positions",)
            )
        self._noisy_qpos, self._noisy_qvel = self._noisy("qpos"), self._noisy("qvel")
        self._quaternions = quaternion_starts(model)
        qpos = np.tile(self._qpos, (len(drawn), 1))
        qpos[:, self._drawn] = drawn
        for start in self._quaternions:
            if not qpos[:, start : start + 4].any(1).all():
                raise TaskError(
                    f"{owner}: starts draw zeros for all four numbers of a quaternion, which is no "
                    "orientation; (1, 0, 0, 0) leaves the body as the model has it."
                )

    def _column(self, place: int, name: str) -> int:
        """Return the column of qpos that ``joint`` or ``joint[index]`` names, the `place`-th to draw."""
        term, match = Term("qpos", name), ONE_NUMBER.match(name)
        if match and name not in object_names(self._model, _JOINT):
            term = Term("qpos", match["object"], columns=(int(match["index"]),))
        try:
            columns = self._resolver.columns(term)
        except TaskError as error:
            raise TaskError(str(error), ("joints", place)) from None
        if len(columns) != 1:
            raise TaskError(
                f"{self._owner}: joint {name!r} has {len(columns)} numbers; draw them one by one: {name}[0].",
                ("joints", place),
            )
        return int(columns[0])

    def _noisy(self, field: str) -> np.ndarray | slice:
        if self._reset.noise_joints is None:
            return slice(None)
        columns = [np.zeros(0, int)]
        for place, joint in enumerate(self._reset.noise_joints):
            try:
                index = find_object(self._model, _JOINT, joint, self._owner)
            except TaskError as error:
                raise error.within("noise_joints", place) from None
            columns.append(np.arange(*FIELDS[field].columns(self._model, index)))
        return as_slice(np.concatenate(columns))

    def sample(self, rng: np.random.Generator, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return qpos (count, nq) and qvel (count, nv), float64.

        Args:
            rng: draws the noise.
            positions: (count, drawn), what the reset drew for its joints.
        """
        qpos, qvel = (np.empty((len(positions), len(base))) for base in (self._qpos, self._qvel))
        qpos[:], qvel[:] = self._qpos, self._qvel
        qpos[:, self._drawn] = positions
        if self._reset.qpos_noise:
            noise = self._reset.qpos_noise
            qpos[:, self._noisy_qpos] += rng.uniform(-noise, noise, size=qpos[:, self._noisy_qpos].shape)
        if self._reset.qvel_noise:
            shape = qvel[:, self._noisy_qvel].shape
            qvel[:, self._noisy_qvel] += self._reset.qvel_noise * rng.standard_normal(shape)
        for start in self._quaternions:
            quaternion = qpos[:, start : start + 4]
            quaternion[~quaternion.any(1)] = (1.0, 0.0, 0.0, 0.0)  # noise or rare draws may cancel it
            quaternion /= np.sqrt((quaternion * quaternion).sum(1, keepdims=True))
        return qpos, qvel
