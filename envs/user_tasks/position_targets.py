"""Actions that are targets of position servos, over the ranges of what they move."""

from __future__ import annotations

import mujoco
import numpy as np

from thousandfold.envs.object_names import object_name
from thousandfold.envs.task import Command, TaskError


def position_targets(model: mujoco.MjModel) -> tuple[Command, ...]:
    """Return a command for each actuator of the model: its target, over the range of its joint or tendon.

    Raises:
        TaskError: an actuator that is no position servo, or whose joint has no range.
    """
    return tuple(_position_target(model, index) for index in range(model.nu))


def _position_target(model: mujoco.MjModel, index: int) -> Command:
    name = object_name(model, mujoco.mjtObj.mjOBJ_ACTUATOR, index)
    if not _is_position_servo(model, index):
        raise TaskError(
            f"position_target needs position servos, and actuator {name!r} is none: list the actuators, each "
            "with its low and high"
        )
    target = int(model.actuator_trnid[index, 0])
    transmission = mujoco.mjtTrn(model.actuator_trntype[index])  # a NumPy integer is in no tuple of these
    if transmission in (mujoco.mjtTrn.mjTRN_JOINT, mujoco.mjtTrn.mjTRN_JOINTINPARENT):
        kind, limited, bounds = "joint", model.jnt_limited[target], model.jnt_range[target]
        what = object_name(model, mujoco.mjtObj.mjOBJ_JOINT, target)
    elif transmission == mujoco.mjtTrn.mjTRN_TENDON:
        kind, limited, bounds = "tendon", model.tendon_limited[target], model.tendon_range[target]
        what = object_name(model, mujoco.mjtObj.mjOBJ_TENDON, target)
    else:
        raise TaskError(f"position_target: actuator {name!r} moves neither a joint nor a tendon")
    if not limited:
        low, high = map(float, bounds)
        has = f'has the range {low:g} to {high:g}, but limited="false"' if low < high else "has no range"
        raise TaskError(
            f"position_target: actuator {name!r} moves {kind} {what!r}, which {has}: mend it in the model, "
            "or list the actuators in `action`, each with its `low` and `high`"
        )
    low, high = np.sort(bounds * model.actuator_gear[index, 0])
    return Command(name, "range", float(low), float(high))


def _is_position_servo(model: mujoco.MjModel, index: int) -> bool:
    """Return whether the force is gain · (control − length), with damping or without."""
    gain, bias = model.actuator_gainprm[index], model.actuator_biasprm[index]
    return bool(
        model.actuator_gaintype[index] == mujoco.mjtGain.mjGAIN_FIXED
        and model.actuator_biastype[index] == mujoco.mjtBias.mjBIAS_AFFINE
        and gain[0] != 0
        and bias[0] == 0
        and bias[1] == -gain[0]
    )
