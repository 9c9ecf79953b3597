"""The MuJoCo data fields that every simulator has, with one shape each, and whose numbers they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mujoco
import numpy as np

_OBJECT = mujoco.mjtObj


@dataclass(frozen=True)
class Field:
    """A MuJoCo data field that every simulator has, and how its numbers belong to named objects.

    Attributes:
        kind: the MuJoCo object type of the names a term may give.
        in_state: whether the field is part of the integration state, hence current after a step.
        columns: (model, object id) -> flat columns (start, stop) of that object.
        width: model -> how many numbers the field has for one world.
    """

    kind: mujoco.mjtObj
    in_state: bool
    columns: Callable[[mujoco.MjModel, int], tuple[int, int]]
    width: Callable[[mujoco.MjModel], int]


def _per_object(size: int, count: str, kind: mujoco.mjtObj) -> Field:
    """Return a field with `size` numbers for each object, `count` naming how many there are."""
    return Field(
        kind=kind,
        in_state=False,
        columns=lambda model, index: (size * index, size * (index + 1)),
        width=lambda model: size * getattr(model, count),
    )


_JOINT_QPOS = {mujoco.mjtJoint.mjJNT_FREE: 7, mujoco.mjtJoint.mjJNT_BALL: 4}
_JOINT_QVEL = {mujoco.mjtJoint.mjJNT_FREE: 6, mujoco.mjtJoint.mjJNT_BALL: 3}


def _joint_qpos(model: mujoco.MjModel, joint: int) -> tuple[int, int]:
    start = int(model.jnt_qposadr[joint])
    return start, start + _JOINT_QPOS.get(mujoco.mjtJoint(model.jnt_type[joint]), 1)


def _joint_qvel(model: mujoco.MjModel, joint: int) -> tuple[int, int]:
    start = int(model.jnt_dofadr[joint])
    return start, start + _JOINT_QVEL.get(mujoco.mjtJoint(model.jnt_type[joint]), 1)


def _activation(model: mujoco.MjModel, actuator: int) -> tuple[int, int]:
    start = int(model.actuator_actadr[actuator])
    return start, start + int(model.actuator_actnum[actuator])


def _sensor(model: mujoco.MjModel, sensor: int) -> tuple[int, int]:
    start = int(model.sensor_adr[sensor])
    return start, start + int(model.sensor_dim[sensor])


FIELDS: Mapping[str, Field] = {
    "qpos": Field(_OBJECT.mjOBJ_JOINT, True, _joint_qpos, lambda model: model.nq),
    "qvel": Field(_OBJECT.mjOBJ_JOINT, True, _joint_qvel, lambda model: model.nv),
    "ctrl": Field(_OBJECT.mjOBJ_ACTUATOR, True, lambda model, i: (i, i + 1), lambda model: model.nu),
    "act": Field(_OBJECT.mjOBJ_ACTUATOR, True, _activation, lambda model: model.na),
    "xpos": _per_object(3, "nbody", _OBJECT.mjOBJ_BODY),
    "xquat": _per_object(4, "nbody", _OBJECT.mjOBJ_BODY),
    "site_xpos": _per_object(3, "nsite", _OBJECT.mjOBJ_SITE),
    "cinert": _per_object(10, "nbody", _OBJECT.mjOBJ_BODY),
    "cvel": _per_object(6, "nbody", _OBJECT.mjOBJ_BODY),
    "qfrc_actuator": Field(_OBJECT.mjOBJ_JOINT, False, _joint_qvel, lambda model: model.nv),
    "sensordata": Field(_OBJECT.mjOBJ_SENSOR, False, _sensor, lambda model: model.nsensordata),
}


def quaternion_columns(model: mujoco.MjModel, field: str) -> np.ndarray:
    """Return which numbers of a field belong to quaternions, (width,) bool."""
    found = np.zeros(FIELDS[field].width(model), bool)
    if field == "xquat":
        found[:] = True
    elif field == "qpos":
        for joint, kind in enumerate(map(mujoco.mjtJoint, model.jnt_type)):
            start, stop = _joint_qpos(model, joint)
            if stop - start > 1:
                found[start + (3 if kind == mujoco.mjtJoint.mjJNT_FREE else 0) : stop] = True
    elif field == "sensordata":
        for sensor, kind in enumerate(map(mujoco.mjtSensor, model.sensor_type)):
            if kind in (mujoco.mjtSensor.mjSENS_FRAMEQUAT, mujoco.mjtSensor.mjSENS_BALLQUAT):
                found[slice(*_sensor(model, sensor))] = True
    return found
