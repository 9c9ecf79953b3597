"""Terms with their names resolved, and how they are read out of a simulator's arrays."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import mujoco
import numpy as np

from thousandfold.envs.object_names import as_written, find_object, nearest_hint
from thousandfold.envs.task import TaskError, Term, Transform

# -- The MuJoCo data fields that every simulator has, with one shape each, and whose numbers they are

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


# --------------------------------------------------------------------------------------------------

ONE_NUMBER = re.compile(r"(?P<object>.+)\[(?P<index>\d+)\]$")


@dataclass(frozen=True)
class TermColumns:
    """A term with its names resolved: which flat columns of which field, and where they go.

    Attributes:
        term: the term as written.
        source: flat columns of the field; a slice where they are contiguous (no copy).
        start: first column of the output; the term fills ``start:stop``.
        stop: one past the last column of the output.
        minus: flat columns of the subtracted term, for ``difference``.
    """

    term: Term
    source: slice | np.ndarray
    start: int
    stop: int
    minus: slice | np.ndarray | None = None
    _placed: dict[Any, tuple[Any, Any]] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle keeps: not what was placed on devices of this process."""
        return {**self.__dict__, "_placed": {}}

    def columns_on(self, xp: Any, device: Any) -> tuple[Any, Any]:
        """Return `source` and `minus` on `device`, where a NumPy index would be sent at each reading."""
        if (xp, device) not in self._placed:
            self._placed[xp, device] = (
                _place(self.source, xp, device),
                _place(self.minus, xp, device),
            )
        return self._placed[xp, device]


class TermResolver:
    """Finds what terms name in a compiled model.

    Args:
        model: the compiled model.
        owner: how errors begin, such as ``Task 'ant'``.
    """

    def __init__(self, model: mujoco.MjModel, owner: str) -> None:
        self._model, self._owner = model, owner

    def resolve(self, terms: Iterable[Term]) -> list[TermColumns]:
        """Return the terms with their columns, one after the other; raise TaskError for a wrong name."""
        resolved: list[TermColumns] = []
        start = 0
        for term in terms:
            self._check(term)
            columns = self.columns(term)
            minus = None if term.minus is None else self._subtracted(term.minus)
            if minus is not None and len(minus) != len(columns):
                raise TaskError(f"{self._owner}: a difference of {len(columns)} and {len(minus)} numbers.")
            stop = start + len(columns)
            resolved.append(TermColumns(term, as_slice(columns), start, stop, as_slice(minus)))
            start = stop
        if start == 0:
            raise TaskError(f"{self._owner} has an empty list of terms.")
        return resolved

    def _subtracted(self, term: Term) -> np.ndarray:
        try:
            return self.columns(term)
        except TaskError as error:
            raise error.within("minus") from None

    def _check(self, term: Term) -> None:
        if term.transform not in get_args(Transform):
            valid = ", ".join(get_args(Transform))
            raise TaskError(f"{self._owner}: unknown transform {term.transform!r}; valid: {valid}.")
        if term.minus is not None and term.minus.transform != "identity":
            raise TaskError(f"{self._owner}: the term that a difference subtracts has no transform.")
        if (term.transform == "difference") != (term.minus is not None):
            raise TaskError(f"{self._owner}: a term has `minus` exactly when it is a difference.")

    def columns(self, term: Term) -> np.ndarray:
        """Return the flat columns of the term's field that it reads."""
        if term.field not in FIELDS:
            valid = f"valid: {', '.join(FIELDS)}."
            raise TaskError(
                f"{self._owner}: unknown field {term.field!r}; {nearest_hint(term.field, FIELDS)}{valid}",
                ("field",),
            )
        field = FIELDS[term.field]
        if term.object is None:
            columns = np.arange(field.width(self._model))
        else:
            try:
                index = find_object(self._model, field.kind, term.object, self._owner)
            except TaskError as error:
                raise self._with_number(term, error).within("object") from None
            columns = np.arange(*field.columns(self._model, index))
        if term.columns is None:
            if len(columns) == 0:
                owner = "the model" if term.object is None else repr(term.object)
                raise TaskError(f"{self._owner}: {owner} has nothing that {term.field!r} reads.", ("field",))
            return columns
        whose = term.field if term.object is None else f"{term.field} of {term.object!r}"
        missing = [column for column in term.columns if not 0 <= column < len(columns)]
        if missing:
            raise TaskError(
                f"{self._owner}: {whose} has no number {missing[0]}: {_counted(len(columns))}.", ("columns",)
            )
        return columns[list(term.columns)]

    def _with_number(self, term: Term, error: TaskError) -> TaskError:
        """Return the error about an object; where that is ``root[2]``, it says how one number is read."""
        match = ONE_NUMBER.match(term.object or "")
        if match is None:
            return error
        try:
            find_object(self._model, FIELDS[term.field].kind, match["object"], self._owner)
        except TaskError:
            return error
        asked = f"object: {as_written(match['object'])}, columns: [{match['index']}]"
        return TaskError(f"{error} One of its numbers is read with `{asked}`.")


def _counted(numbers: int) -> str:
    """Return ``it has 7, from 0 to 6`` for so many numbers."""
    if numbers < 2:
        return "it has none" if numbers == 0 else "it has one, number 0"
    return f"it has {numbers}, from 0 to {numbers - 1}"


def as_slice(columns: np.ndarray | None) -> Any:
    """Return contiguous columns as a slice, which reads without a copy."""
    if columns is None or len(columns) == 0 or not (np.diff(columns) == 1).all():
        return columns
    return slice(int(columns[0]), int(columns[-1]) + 1)


def _place(columns: slice | np.ndarray | None, xp: Any, device: Any) -> Any:
    return xp.asarray(columns, device=device) if isinstance(columns, np.ndarray) else columns


def read_terms(terms: list[TermColumns], fields: Mapping[str, Any], out: Any, xp: Any) -> None:
    """Write the terms' numbers into `out`, (num_worlds, dim).

    Args:
        terms: resolved terms.
        fields: arrays (num_worlds, width) by field name.
        out: array to fill, of the kind that `xp` makes.
        xp: `numpy` or `torch`.
    """
    for columns in terms:
        term = columns.term
        source, minus = columns.columns_on(xp, fields[term.field].device)
        value = fields[term.field][:, source]
        if term.minus is not None:
            value = value - fields[term.minus.field][:, minus]
        elif term.transform != "identity":
            value = getattr(xp, term.transform)(value)
        out[:, columns.start : columns.stop] = value


def label_of(term: Term) -> str:
    """Return a term as people write it: ``cos(qpos:hinge)``."""
    name = f"{term.field}:{term.object}" if term.object else term.field
    if term.minus is not None:
        return f"{name} - {label_of(term.minus)}"
    return name if term.transform == "identity" else f"{term.transform}({name})"
