"""What looks wrong in how a task is sensed: readings that no sensor gives, controls that act late unseen."""

from __future__ import annotations

from collections.abc import Iterator

import mujoco
import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.object_names import object_names
from thousandfold.envs.task import Sensor, Term
from thousandfold.envs.term_columns import FACTORS_FIELD, FIELDS, TermResolver, label_of
from thousandfold.envs.user_tasks.task_yaml import task_place

_SENSOR = mujoco.mjtSensor
_PLACES = (_SENSOR.mjSENS_FRAMEPOS, _SENSOR.mjSENS_FRAMELINVEL)
_TREES = (_SENSOR.mjSENS_SUBTREECOM, _SENSOR.mjSENS_SUBTREELINVEL, _SENSOR.mjSENS_SUBTREEANGMOM)
_TRACKER = "on a robot that takes a tracker outside of it, such as motion capture"


def judge_senses(task: CompiledTask) -> list[str]:
    """Return a line for each thing that looks wrong, with its place on the page of a user's task."""
    return [*_judge_readings(task), *_judge_factors(task), *_judge_late_controls(task)]


def _judge_readings(task: CompiledTask) -> Iterator[str]:
    """Yield a line for each term of the student's observation that no sensor of a robot gives."""
    resolver = TermResolver(task.model, f"Task {task.name!r}")
    for index, term in enumerate(task.spec.student_observation or ()):
        if term.field == FACTORS_FIELD:
            place = task_place(task.spec.file, ("student_observation", index))
            yield f"{place}: {label_of(term)} is what no sensor gives a student: the simulator draws it."
            continue
        (columns,) = resolver.resolve((term,))
        read = np.arange(FIELDS[term.field].width(task.model))[columns.source]
        if reason := _not_sensed(task.model, term, read):
            place = task_place(task.spec.file, ("student_observation", index))
            yield f"{place}: {label_of(term)} is what no sensor gives a student: {reason}."


def _judge_factors(task: CompiledTask) -> Iterator[str]:
    """Yield a line for each factor that is observed where students have no senses of their own."""
    for index, term in enumerate(task.spec.observation):
        if term.field == FACTORS_FIELD and task.student_view is task:
            place = task_place(task.spec.file, ("observation", index))
            yield (
                f"{place}: {label_of(term)} is what the simulator draws, and no robot can give a policy: "
                "leave it to a teacher, and give students a student_observation without it."
            )


def _not_sensed(model: mujoco.MjModel, term: Term, read: np.ndarray) -> str:
    """Return why no sensor on board gives some numbers of a field; nothing where one may.

    Where a body hangs on hinges and slides alone, encoders and the model tell where it is and how it moves.
    """
    floating = _floating_bodies(model)
    if term.field in ("cinert", "cvel"):
        return "the simulator computes it about a centre of mass; leave it to `observation`"
    if term.field == "qfrc_actuator":
        exact = term.sensor is None or not (term.sensor.noise or term.sensor.bias)
        return "motor currents tell it roughly, so give it noise or bias" if exact else ""
    if term.field in ("qpos", "qvel"):
        starts = model.jnt_qposadr if term.field == "qpos" else model.jnt_dofadr
        free = starts[model.jnt_type == mujoco.mjtJoint.mjJNT_FREE]
        if np.isin(read, (free[:, None] + np.arange(3)).ravel()).any():
            what = "where a free body is" if term.field == "qpos" else "how fast a free body travels"
            return f"{what}; {_TRACKER}; `object` and `columns` leave it out"
        return ""
    if term.field in ("xpos", "xquat", "site_xpos", "geom_xpos"):
        if term.minus is not None and term.minus.field == term.field:
            return ""  # how two things lie to one another a camera on board may tell
        size = 4 if term.field == "xquat" else 3
        owners = np.unique(read // size)
        of = {"site_xpos": model.site_bodyid, "geom_xpos": model.geom_bodyid}
        bodies = of[term.field][owners] if term.field in of else owners
        if term.field != "xquat" and floating[bodies].any():
            return f"the place in the world of what is on a free joint; {_TRACKER}"
        return ""
    if term.field == "sensordata":
        for sensor in range(model.nsensor):
            start = int(model.sensor_adr[sensor])
            if not np.isin(read, np.arange(start, start + int(model.sensor_dim[sensor]))).any():
                continue
            name = object_names(model, mujoco.mjtObj.mjOBJ_SENSOR)[sensor]
            if _SENSOR(model.sensor_type[sensor]) in _TREES:
                return f"sensor {name!r} computes what all bodies of a tree do together"
            in_world = _SENSOR(model.sensor_type[sensor]) in _PLACES and model.sensor_refid[sensor] < 0
            if in_world and floating[_body_of(model, sensor)]:
                return f"sensor {name!r} measures a place or a speed in the world; {_TRACKER}"
    return ""


def _floating_bodies(model: mujoco.MjModel) -> np.ndarray:
    """Return which bodies have a free joint between them and the world, (nbody,) bool."""
    floating = np.zeros(model.nbody, bool)
    floating[model.jnt_bodyid[model.jnt_type == mujoco.mjtJoint.mjJNT_FREE]] = True
    for body in range(1, model.nbody):  # a parent comes before its children
        floating[body] |= floating[model.body_parentid[body]]
    return floating


def _body_of(model: mujoco.MjModel, sensor: int) -> int:
    kind, index = mujoco.mjtObj(model.sensor_objtype[sensor]), int(model.sensor_objid[sensor])
    owners = {
        mujoco.mjtObj.mjOBJ_SITE: model.site_bodyid,
        mujoco.mjtObj.mjOBJ_GEOM: model.geom_bodyid,
        mujoco.mjtObj.mjOBJ_CAMERA: model.cam_bodyid,
    }
    return int(owners[kind][index]) if kind in owners else index


def _judge_late_controls(task: CompiledTask) -> Iterator[str]:
    """Yield a line for each observation that does not tell the controls that were sent and do not show yet.

    They show once they act and the first reading of it arrives.
    """
    for view, part in ((task, "observation"), (task.student_view, "student_observation")):
        terms = getattr(task.spec, part) or ()
        read = [
            term.sensor or Sensor() for term in terms if term.field not in (FACTORS_FIELD, "ctrl", "time")
        ]
        late = task.spec.action_delay[1] + min((sensor.delay[1] for sensor in read), default=0)
        if late == 0 or not terms:
            continue
        seen = {element["name"] for element in view.describe("observation")}
        told = [f"ctrl:{name}[0]" + (f"@-{late - 1}" if late > 1 else "") for name in task.control.actuators]
        held = [command.kind == "hold" for command in task.control.commands]
        if any(name not in seen and not is_held for name, is_held in zip(told, held, strict=True)):
            yield (
                f"{task_place(task.spec.file, (part,))}: what was sent in the last {late} control "
                f"steps may not show in it yet: add {{field: ctrl, history: {late}}}."
            )
