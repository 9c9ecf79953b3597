"""What the single numbers of a task's terms are called, and what they are measured in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import mujoco
import numpy as np

from thousandfold.envs.object_names import object_count, object_names
from thousandfold.envs.term_columns import FIELDS, TermColumns, label_of

_JOINT, _SENSOR = mujoco.mjtJoint, mujoco.mjtSensor
_PER_OBJECT: Mapping[str, tuple[str, ...]] = {
    "xpos": ("m",) * 3,
    "xquat": ("1",) * 4,
    "site_xpos": ("m",) * 3,
    "cinert": ("kg m²",) * 6 + ("kg m",) * 3 + ("kg",),
    "cvel": ("rad/s",) * 3 + ("m/s",) * 3,
}
_OF_JOINT: Mapping[tuple[str, mujoco.mjtJoint], tuple[str, ...]] = {
    ("qpos", _JOINT.mjJNT_FREE): ("m",) * 3 + ("1",) * 4,
    ("qpos", _JOINT.mjJNT_BALL): ("1",) * 4,
    ("qpos", _JOINT.mjJNT_SLIDE): ("m",),
    ("qpos", _JOINT.mjJNT_HINGE): ("rad",),
    ("qvel", _JOINT.mjJNT_FREE): ("m/s",) * 3 + ("rad/s",) * 3,
    ("qvel", _JOINT.mjJNT_BALL): ("rad/s",) * 3,
    ("qvel", _JOINT.mjJNT_SLIDE): ("m/s",),
    ("qvel", _JOINT.mjJNT_HINGE): ("rad/s",),
    ("qfrc_actuator", _JOINT.mjJNT_FREE): ("N",) * 3 + ("N m",) * 3,
    ("qfrc_actuator", _JOINT.mjJNT_BALL): ("N m",) * 3,
    ("qfrc_actuator", _JOINT.mjJNT_SLIDE): ("N",),
    ("qfrc_actuator", _JOINT.mjJNT_HINGE): ("N m",),
}
_OF_SENSOR: Mapping[mujoco.mjtSensor, str] = {
    _SENSOR.mjSENS_TOUCH: "N",
    _SENSOR.mjSENS_ACCELEROMETER: "m/s²",
    _SENSOR.mjSENS_VELOCIMETER: "m/s",
    _SENSOR.mjSENS_GYRO: "rad/s",
    _SENSOR.mjSENS_FORCE: "N",
    _SENSOR.mjSENS_TORQUE: "N m",
    _SENSOR.mjSENS_RANGEFINDER: "m",
    _SENSOR.mjSENS_BALLQUAT: "1",
    _SENSOR.mjSENS_BALLANGVEL: "rad/s",
    _SENSOR.mjSENS_FRAMEPOS: "m",
    _SENSOR.mjSENS_FRAMEQUAT: "1",
    _SENSOR.mjSENS_FRAMEXAXIS: "1",
    _SENSOR.mjSENS_FRAMEYAXIS: "1",
    _SENSOR.mjSENS_FRAMEZAXIS: "1",
    _SENSOR.mjSENS_FRAMELINVEL: "m/s",
    _SENSOR.mjSENS_FRAMEANGVEL: "rad/s",
    _SENSOR.mjSENS_FRAMELINACC: "m/s²",
    _SENSOR.mjSENS_FRAMEANGACC: "rad/s²",
    _SENSOR.mjSENS_SUBTREECOM: "m",
    _SENSOR.mjSENS_SUBTREELINVEL: "m/s",
    _SENSOR.mjSENS_SUBTREEANGMOM: "kg m²/s",
    _SENSOR.mjSENS_GEOMDIST: "m",
    _SENSOR.mjSENS_CLOCK: "s",
}
_OF_SENSED_JOINT: Mapping[mujoco.mjtSensor, str] = {
    _SENSOR.mjSENS_JOINTPOS: "qpos",
    _SENSOR.mjSENS_JOINTVEL: "qvel",
    _SENSOR.mjSENS_JOINTACTFRC: "qfrc_actuator",
    _SENSOR.mjSENS_JOINTLIMITPOS: "qpos",
    _SENSOR.mjSENS_JOINTLIMITVEL: "qvel",
    _SENSOR.mjSENS_JOINTLIMITFRC: "qfrc_actuator",
}


def describe_elements(model: mujoco.MjModel, columns: TermColumns) -> list[dict[str, str]]:
    """Return name and unit of every number of a term, in order.

    A number is called by its field, its object, as `object_names` calls it, and its place among that object's
    numbers, whether the term names the object or reads them all: ``qpos:elbow[0]``, ``site_xpos:tip[2]``,
    ``cos(qpos:elbow)[0]``. A difference over all objects gives the place in the whole field. The unit is the
    term's own, else the one that MuJoCo's convention gives the field; empty where it gives none, as for
    controls.
    """
    term, found = columns.term, []
    names = object_names(model, FIELDS[term.field].kind)
    for number, owner, offset, _ in _numbers(model, columns):
        own, place = term, number
        if term.object is None and term.minus is None:
            own, place = replace(term, object=names[owner]), offset
        unit = "1" if term.transform in ("cos", "sin") else _unit(model, term.field, owner, offset)
        found.append({"name": f"{label_of(own)}[{place}]", "unit": term.unit or unit})
    return found


def earlier_names(model: mujoco.MjModel, columns: TermColumns) -> list[str]:
    """Return how files of earlier versions call every number of a term, in order.

    They begin with the place in the whole field where the term reads all objects: ``qpos[7] elbow``,
    ``qpos[2] root[2]``, and ``qpos[9]`` for an object without a name.
    """
    term, found = columns.term, []
    for number, owner, offset, size in _numbers(model, columns):
        name = f"{label_of(term)}[{number}]"
        own = mujoco.mj_id2name(model, FIELDS[term.field].kind, owner)
        if term.object is None and term.minus is None and own:
            name += f" {own}[{offset}]" if size > 1 else f" {own}"
        found.append(name)
    return found


def _numbers(model: mujoco.MjModel, columns: TermColumns) -> Iterator[tuple[int, int, int, int]]:
    """Yield, of every number of a term, its place as the term counts it, its object's id, and which of the
    object's numbers it is, of how many.
    """
    source, term = columns.source, columns.term
    flat = np.arange(source.start, source.stop) if isinstance(source, slice) else source
    for number, column in zip(term.columns or range(len(flat)), flat, strict=True):
        yield number, *_owner(model, term.field, int(column))


def _owner(model: mujoco.MjModel, name: str, column: int) -> tuple[int, int, int]:
    """Return the id of the object that a flat column belongs to, which of its numbers it is, of how many."""
    field = FIELDS[name]
    for index in range(object_count(model, field.kind)):
        start, stop = field.columns(model, index)
        if start <= column < stop:
            return index, column - start, stop - start
    raise ValueError(f"no object has column {column} of {name}")


def _unit(model: mujoco.MjModel, field: str, owner: int, offset: int) -> str:
    """Return the unit of one of an object's numbers; empty where the field alone does not tell."""
    if field in _PER_OBJECT:
        return _PER_OBJECT[field][offset]
    if field == "sensordata":
        kind = mujoco.mjtSensor(model.sensor_type[owner])
        if kind not in _OF_SENSED_JOINT:
            return _OF_SENSOR.get(kind, "")
        field, owner = _OF_SENSED_JOINT[kind], int(model.sensor_objid[owner])
    if field in ("ctrl", "act"):
        return ""
    return _OF_JOINT[field, mujoco.mjtJoint(model.jnt_type[owner])][offset]
