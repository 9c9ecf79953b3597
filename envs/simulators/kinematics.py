"""The part of MuJoCo's forward pass that tells where bodies are and how they move, not what pushes them."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import mujoco

from thousandfold.envs.data_fields import FIELDS

_SENSOR, _DISABLE = mujoco.mjtSensor, mujoco.mjtDisableBit

_KINEMATIC_FIELDS = frozenset({"xpos", "xquat", "site_xpos", "cinert", "cvel", "sensordata"})
_KINEMATIC_SENSORS = frozenset(
    {
        _SENSOR.mjSENS_VELOCIMETER,
        _SENSOR.mjSENS_GYRO,
        _SENSOR.mjSENS_JOINTPOS,
        _SENSOR.mjSENS_JOINTVEL,
        _SENSOR.mjSENS_TENDONPOS,
        _SENSOR.mjSENS_TENDONVEL,
        _SENSOR.mjSENS_ACTUATORPOS,
        _SENSOR.mjSENS_ACTUATORVEL,
        _SENSOR.mjSENS_BALLQUAT,
        _SENSOR.mjSENS_BALLANGVEL,
        _SENSOR.mjSENS_FRAMEPOS,
        _SENSOR.mjSENS_FRAMEQUAT,
        _SENSOR.mjSENS_FRAMEXAXIS,
        _SENSOR.mjSENS_FRAMEYAXIS,
        _SENSOR.mjSENS_FRAMEZAXIS,
        _SENSOR.mjSENS_FRAMELINVEL,
        _SENSOR.mjSENS_FRAMEANGVEL,
        _SENSOR.mjSENS_SUBTREECOM,
    }
)
_FORCES = int(
    _DISABLE.mjDSBL_CONSTRAINT | _DISABLE.mjDSBL_CONTACT | _DISABLE.mjDSBL_SPRING | _DISABLE.mjDSBL_DAMPER
)


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
