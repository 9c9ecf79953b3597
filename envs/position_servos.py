"""Position servos: actuators whose control is the place that a joint or tendon is to take."""

from __future__ import annotations

from typing import NamedTuple

import mujoco
import numpy as np

from thousandfold.envs.object_names import object_name
from thousandfold.envs.task import Command, TaskError

_OBJECT, _JOINT = mujoco.mjtObj, mujoco.mjtJoint
_FOLLOWS = (mujoco.mjtDyn.mjDYN_NONE, mujoco.mjtDyn.mjDYN_FILTER, mujoco.mjtDyn.mjDYN_FILTEREXACT)
# A NumPy integer is in no tuple of these.
_JOINT_TRANSMISSIONS = (mujoco.mjtTrn.mjTRN_JOINT, mujoco.mjtTrn.mjTRN_JOINTINPARENT)


class ServoJoint(NamedTuple):
    """The slide or hinge joint that a position servo moves."""

    joint: int
    """Its number in the model."""
    column: int
    """Which number of qpos it is."""
    gear: float
    """The control is the joint's position times this."""
    unit: str
    """Of the control: of the joint where the gear is 1, else empty."""


def is_position_servo(model: mujoco.MjModel, actuator: int) -> bool:
    """Return whether an actuator's force is gain · (control − length), with damping or a filter or without.

    One that integrates its control has a force of the same form, but is told a velocity.
    """
    gain, bias = model.actuator_gainprm[actuator], model.actuator_biasprm[actuator]
    return bool(
        model.actuator_gaintype[actuator] == mujoco.mjtGain.mjGAIN_FIXED
        and model.actuator_biastype[actuator] == mujoco.mjtBias.mjBIAS_AFFINE
        and bias[1] == -gain[0] != 0 == bias[0]
        and mujoco.mjtDyn(model.actuator_dyntype[actuator]) in _FOLLOWS
    )


def servo_joint(model: mujoco.MjModel, actuator: int) -> ServoJoint | None:
    """Return the joint of a position servo; None where it moves something else, or is none."""
    transmission = mujoco.mjtTrn(model.actuator_trntype[actuator])
    if not is_position_servo(model, actuator) or transmission not in _JOINT_TRANSMISSIONS:
        return None
    joint, gear = int(model.actuator_trnid[actuator, 0]), float(model.actuator_gear[actuator, 0])
    units = {int(_JOINT.mjJNT_HINGE): "rad", int(_JOINT.mjJNT_SLIDE): "m"}
    kind = int(model.jnt_type[joint])
    if kind not in units:
        return None
    return ServoJoint(joint, int(model.jnt_qposadr[joint]), gear, units[kind] if gear == 1 else "")


def position_targets(model: mujoco.MjModel) -> tuple[Command, ...]:
    """Return a command for each actuator: its target, over the range of the joint or tendon that it moves.

    Raises:
        TaskError: an actuator that is no position servo, or whose joint has no range.
    """
    return tuple(
        Command(object_name(model, _OBJECT.mjOBJ_ACTUATOR, index), "range", *target_range(model, index))
        for index in range(model.nu)
    )


def target_range(model: mujoco.MjModel, actuator: int) -> tuple[float, float]:
    """Return the range of the joint or tendon that a position servo moves, as its control takes it.

    Raises:
        TaskError: it is no position servo, or what it moves has no range.
    """
    name = object_name(model, _OBJECT.mjOBJ_ACTUATOR, actuator)
    if not is_position_servo(model, actuator):
        raise TaskError(
            f"position_target needs position servos, and actuator {name!r} is not one: list the actuators, "
            "each with its low and high"
        )
    target = int(model.actuator_trnid[actuator, 0])
    transmission = mujoco.mjtTrn(model.actuator_trntype[actuator])
    if transmission in _JOINT_TRANSMISSIONS:
        kind, limited, bounds = "joint", model.jnt_limited[target], model.jnt_range[target]
        what = object_name(model, _OBJECT.mjOBJ_JOINT, target)
    elif transmission == mujoco.mjtTrn.mjTRN_TENDON:
        kind, limited, bounds = "tendon", model.tendon_limited[target], model.tendon_range[target]
        what = object_name(model, _OBJECT.mjOBJ_TENDON, target)
    else:
        raise TaskError(f"position_target: actuator {name!r} moves neither a joint nor a tendon")
    if not limited:
        low, high = map(float, bounds)
        has = f'has the range {low:g} to {high:g}, but limited="false"' if low < high else "has no range"
        raise TaskError(
            f"position_target: actuator {name!r} moves {kind} {what!r}, which {has}: change it in the model, "
            "or list the actuators in `action`, each with its `low` and `high`"
        )
    low, high = np.sort(bounds * model.actuator_gear[actuator, 0])
    return float(low), float(high)
