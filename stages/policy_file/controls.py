"""What a policy file says of the actuators of its task, and whether a task still has these."""

from __future__ import annotations

import mujoco
import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.object_names import object_name
from thousandfold.envs.position_servos import is_position_servo, servo_joint
from thousandfold.ground.errors import UserError
from thousandfold.stages.policy_file.golden import GoldenSet, control_bounds
from thousandfold.stages.policy_file.metadata import ControlElement, PolicyMetadata, shortest

ACTUATOR_UNIT = "actuator"
_LAW_TOLERANCE = 1e-4  # share of a control's bound; rounding is a hundredth of it


def describe_controls(task: CompiledTask) -> tuple[ControlElement, ...]:
    """Return what a policy file says of each actuator, in the model's order."""
    model, control, start = task.model, task.control, task.start_data("evaluation")
    found = []
    for index, (name, command) in enumerate(zip(control.actuators, control.commands, strict=True)):
        servo = servo_joint(model, index)
        facts = {"start": float(start.ctrl[index])}
        if command.max_rate is not None:
            facts["max_rate"] = command.max_rate
        if is_position_servo(model, index):
            facts["kp"] = float(model.actuator_gainprm[index, 0])
            facts["kd"] = 0.0 - float(model.actuator_biasprm[index, 2])
        if servo is not None:
            facts |= {"gear": servo.gear, "start": servo.gear * float(start.qpos[servo.column])}
            if model.jnt_limited[servo.joint]:
                facts |= dict(zip(("joint_low", "joint_high"), model.jnt_range[servo.joint], strict=True))
        found.append(
            ControlElement(
                name=name,
                unit=(servo and servo.unit) or ACTUATOR_UNIT,
                # A gripper may open at -1 and close at +1: who clips to the range needs its least first.
                low=shortest(control.least[index]),
                high=shortest(control.most[index]),
                joint=servo and object_name(model, mujoco.mjtObj.mjOBJ_JOINT, servo.joint),
                **{key: shortest(value) for key, value in facts.items()},
            )
        )
    return tuple(found)


def require_same_controls(metadata: PolicyMetadata, golden: GoldenSet, task: CompiledTask, name: str) -> None:
    """Raise UserError unless a task's actions still become the controls that they become in the file.

    Ends and rates are compared as they are written; the rest, such as the kind of an action or its filter, by
    the golden rows, which hold actions and the controls that they became.

    Args:
        metadata, golden: of the file, which fits the task otherwise.
        task: the task at hand.
        name: of the file, for the error.
    """
    described = describe_controls(task)
    for written, here in zip(metadata.outputs.control, described, strict=True):
        differing = [
            f"{key} {ours:g}, not {theirs:g}"
            for key, theirs, ours in (
                ("low", min(written.low, written.high), here.low),
                ("high", max(written.low, written.high), here.high),
            )
            if not np.isclose(theirs, ours, rtol=1e-5, atol=1e-9)
        ]
        if "max_rate" in written.model_fields_set and written.max_rate != here.max_rate:
            differing.append(f"max_rate {_said(here.max_rate)}, not {_said(written.max_rate)}")
        if differing:
            raise _other_law(name, task, f"actuator {here.name!r} has {', '.join(differing)}")
    rows = golden.arrays()
    inputs = metadata.inputs.observation
    limits = ([getattr(element, end) for element in inputs] for end in ("limit_low", "limit_high"))
    seen = rows.observation.clip(*(np.array(each, np.float32) for each in limits))
    clocks = seen[:, task.swing_clocks()] if task.control.periods else None
    last = np.zeros((len(rows.action), len(described)), np.float32)
    for place, element in enumerate(inputs):
        for index, here in enumerate(described):
            if element.name == f"ctrl:{here.name}[0]":
                last[:, index] = seen[:, place]
    error = np.abs(task.control(rows.action, last, clocks=clocks) - rows.control) / control_bounds(metadata)
    if not (error <= _LAW_TOLERANCE).all():
        index = int(error.max(0).argmax())
        raise _other_law(name, task, f"actuator {described[index].name!r} is sent something else")


def _said(rate: float | None) -> str:
    return "none" if rate is None else f"{rate:g}"


def _other_law(name: str, task: CompiledTask, what: str) -> UserError:
    return UserError(
        f"{name} does not fit task {task.name!r} as it is here: {what} for the same action. Its `action` was "
        "changed since: give the task that the policy was trained for with --task."
    )
