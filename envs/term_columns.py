"""Terms with their names resolved: how they are read out of a simulator's arrays, what their numbers are
called, and what these are measured in.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import mujoco
import numpy as np

from thousandfold.envs.object_names import as_written, find_object, nearest_hint, object_count, object_names
from thousandfold.envs.orientations import MATRIX_FIELDS, ORIENTATION_COLUMNS
from thousandfold.envs.task import TaskError, Term, Transform
from thousandfold.envs.term_frames import BodyFrame, frame_of

_OBJECT, _JOINT, _SENSOR = mujoco.mjtObj, mujoco.mjtJoint, mujoco.mjtSensor
LINEAR_AND_TURNING: Mapping[mujoco.mjtJoint, tuple[int, int]] = {
    _JOINT.mjJNT_FREE: (3, 3),
    _JOINT.mjJNT_BALL: (0, 3),
    _JOINT.mjJNT_SLIDE: (1, 0),
    _JOINT.mjJNT_HINGE: (0, 1),
}
"""How many velocities of a joint are linear and how many turn; three that turn are a quaternion in qpos."""
FACTORS_FIELD = "factors"
"""The field that holds what was drawn for a world's episode, beside those of MuJoCo."""
ONE_NUMBER = re.compile(r"(?P<object>.+)\[(?P<index>\d+)\]$")
"""One number of an object, as people write it: ``root[2]``."""


@dataclass(frozen=True)
class Field:
    """A data field that every simulator has, with one shape, and whose numbers it holds.

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


def _joint_qpos(model: mujoco.MjModel, joint: int) -> tuple[int, int]:
    start, (linear, turning) = (
        int(model.jnt_qposadr[joint]),
        LINEAR_AND_TURNING[_JOINT(model.jnt_type[joint])],
    )
    return start, start + linear + turning + (turning == 3)


def _joint_qvel(model: mujoco.MjModel, joint: int) -> tuple[int, int]:
    start = int(model.jnt_dofadr[joint])
    return start, start + sum(LINEAR_AND_TURNING[_JOINT(model.jnt_type[joint])])


def _activation(model: mujoco.MjModel, actuator: int) -> tuple[int, int]:
    start = int(model.actuator_actadr[actuator])
    return start, start + int(model.actuator_actnum[actuator])


def _sensor(model: mujoco.MjModel, sensor: int) -> tuple[int, int]:
    start = int(model.sensor_adr[sensor])
    return start, start + int(model.sensor_dim[sensor])


def _per_object(size: int, count: str, kind: mujoco.mjtObj) -> Field:
    """Return a field with `size` numbers for each object, `count` naming how many there are."""
    return Field(
        kind,
        False,
        lambda _, index: (size * index, size * (index + 1)),
        lambda model: size * getattr(model, count),
    )


FIELDS: Mapping[str, Field] = {
    "time": Field(_OBJECT.mjOBJ_UNKNOWN, True, lambda model, i: (0, 1), lambda model: 1),
    FACTORS_FIELD: Field(_OBJECT.mjOBJ_UNKNOWN, True, lambda model, i: (i, i + 1), lambda model: 0),
    "qpos": Field(_OBJECT.mjOBJ_JOINT, True, _joint_qpos, lambda model: model.nq),
    "qvel": Field(_OBJECT.mjOBJ_JOINT, True, _joint_qvel, lambda model: model.nv),
    "ctrl": Field(_OBJECT.mjOBJ_ACTUATOR, True, lambda model, i: (i, i + 1), lambda model: model.nu),
    "act": Field(_OBJECT.mjOBJ_ACTUATOR, True, _activation, lambda model: model.na),
    "xpos": _per_object(3, "nbody", _OBJECT.mjOBJ_BODY),
    "xquat": _per_object(4, "nbody", _OBJECT.mjOBJ_BODY),
    "site_xpos": _per_object(3, "nsite", _OBJECT.mjOBJ_SITE),
    "geom_xpos": _per_object(3, "ngeom", _OBJECT.mjOBJ_GEOM),
    "xmat": _per_object(9, "nbody", _OBJECT.mjOBJ_BODY),
    "site_xmat": _per_object(9, "nsite", _OBJECT.mjOBJ_SITE),
    "geom_xmat": _per_object(9, "ngeom", _OBJECT.mjOBJ_GEOM),
    "cinert": _per_object(10, "nbody", _OBJECT.mjOBJ_BODY),
    "cvel": _per_object(6, "nbody", _OBJECT.mjOBJ_BODY),
    "qfrc_actuator": Field(_OBJECT.mjOBJ_JOINT, False, _joint_qvel, lambda model: model.nv),
    "sensordata": Field(_OBJECT.mjOBJ_SENSOR, False, _sensor, lambda model: model.nsensordata),
}

_NAMED = [name for name in FIELDS if name not in ("time", FACTORS_FIELD)]  # which keys of their own read


def quaternion_starts(model: mujoco.MjModel) -> list[int]:
    """Return where in qpos the quaternions of free and ball joints begin."""
    return [
        int(start) + LINEAR_AND_TURNING[_JOINT(kind)][0]
        for start, kind in zip(model.jnt_qposadr, model.jnt_type, strict=True)
        if LINEAR_AND_TURNING[_JOINT(kind)][1] == 3
    ]


def quaternion_columns(model: mujoco.MjModel, field: str) -> np.ndarray:
    """Return which numbers of a field belong to quaternions, (width,) bool."""
    found = np.full(FIELDS[field].width(model), field == "xquat")
    if field == "qpos":
        for start in quaternion_starts(model):
            found[start : start + 4] = True
    elif field == "sensordata":
        for sensor in np.flatnonzero(
            np.isin(model.sensor_type, [_SENSOR.mjSENS_FRAMEQUAT, _SENSOR.mjSENS_BALLQUAT])
        ):
            found[slice(*_sensor(model, int(sensor)))] = True
    return found


@dataclass(frozen=True)
class TermColumns:
    """A term with its names resolved: which flat columns of which field, and where they go.

    Attributes:
        term: the term as written.
        source: flat columns of the field; a slice where they are contiguous (no copy).
        start: first column of the output; the term fills ``start:stop``.
        stop: one past the last column of the output.
        minus: flat columns of the subtracted term, for ``difference``.
        frame: how the numbers are told in a body's frame; None: they are left in the world's axes.
        picked: which of the numbers in that frame are kept; None: all.
        factors: name and unit of each number where these are factors, of which the model says neither.
    """

    term: Term
    source: slice | np.ndarray
    start: int
    stop: int
    minus: slice | np.ndarray | None = None
    frame: BodyFrame | None = None
    picked: slice | np.ndarray | None = None
    factors: tuple[tuple[str, str], ...] = ()
    _placed: dict[Any, tuple[Any, ...]] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle keeps: not what was placed on devices of this process."""
        return {**self.__dict__, "_placed": {}}

    @property
    def fields(self) -> tuple[str, ...]:
        """The data fields that are read."""
        minus = () if self.term.minus is None else (self.term.minus.field,)
        return (self.term.field, *minus, *(() if self.frame is None else self.frame.fields))

    def columns_on(self, xp: Any, device: Any) -> tuple[Any, ...]:
        """Return `source`, `minus` and `picked` on `device`: a NumPy index would be sent at each reading."""
        if (xp, device) not in self._placed:
            self._placed[xp, device] = tuple(
                xp.asarray(columns, device=device) if isinstance(columns, np.ndarray) else columns
                for columns in (self.source, self.minus, self.picked)
            )
        return self._placed[xp, device]


class TermResolver:
    """Finds what terms name in a compiled model.

    Args:
        model: the compiled model.
        owner: how errors begin, such as ``Task 'ant'``.
        factors: name and unit of every number that training draws, for terms of an observation; None for
            other terms, which may not read them.
    """

    def __init__(
        self, model: mujoco.MjModel, owner: str, factors: Sequence[tuple[str, str]] | None = None
    ) -> None:
        self._model, self._owner, self._factors = model, owner, factors

    def resolve(self, terms: Iterable[Term]) -> list[TermColumns]:
        """Return the terms with their columns, one after the other; raise TaskError for a wrong name."""
        resolved: list[TermColumns] = []
        start = 0
        for term in terms:
            if term.transform not in get_args(Transform):
                valid = ", ".join(get_args(Transform))
                raise TaskError(f"{self._owner}: unknown transform {term.transform!r}; valid: {valid}.")
            if term.minus is not None and term.minus.transform != "identity":
                raise TaskError(f"{self._owner}: the term that a difference subtracts has no transform.")
            if (term.transform == "difference") != (term.minus is not None):
                raise TaskError(f"{self._owner}: a term has `minus` exactly when it is a difference.")
            columns, minus, frame, picked = self.columns(term), None, None, None
            stop = start + (2 if term.period_s is not None else len(columns))
            if term.frame is not None:
                frame, picked = frame_of(self._model, term, self._owner), term.columns
                columns = self.columns(replace(term, columns=None))
            if term.minus is not None:
                alone = TermResolver(self._model, self._owner)  # factors are subtracted from nothing
                try:
                    minus = alone.columns(term.minus if frame is None else replace(term.minus, columns=None))
                except TaskError as error:
                    raise error.within("minus") from None
                if len(minus) != len(columns):
                    raise TaskError(
                        f"{self._owner}: a difference of {len(columns)} and {len(minus)} numbers."
                    )
            picked = None if picked is None else as_slice(np.array(picked))
            drawn = [] if term.field != FACTORS_FIELD or self._factors is None else self._factors
            factors = tuple(drawn[column] for column in columns) if drawn else ()
            resolved.append(
                TermColumns(term, as_slice(columns), start, stop, as_slice(minus), frame, picked, factors)
            )
            start = stop
        if start == 0:
            raise TaskError(f"{self._owner} has an empty list of terms.")
        return resolved

    def columns(self, term: Term) -> np.ndarray:
        """Return the flat columns of the term's field that it reads."""
        if term.field == FACTORS_FIELD:
            return self._factor_columns(term)
        period = 1.0 if term.period_s is None else term.period_s
        if (term.field == "time") != (term.period_s is not None) or not 0 < period < math.inf:
            raise TaskError(f"{self._owner}: a clock needs a finite period above 0 s.", ("field",))
        if term.field not in FIELDS:
            hint = nearest_hint(term.field, FIELDS)
            raise TaskError(
                f"{self._owner}: unknown field {term.field!r}; {hint}valid: {', '.join(_NAMED)}.", ("field",)
            )
        field = FIELDS[term.field]
        if term.object is None:
            columns = np.arange(field.width(self._model))
        else:
            try:
                index = find_object(self._model, field.kind, term.object, self._owner)
            except TaskError as error:
                raise TaskError(f"{error}{self._read_one_number(term)}", ("object",)) from None
            columns = np.arange(*field.columns(self._model, index))
        if term.columns is None:
            if len(columns) == 0:
                owner = "the model" if term.object is None else repr(term.object)
                raise TaskError(f"{self._owner}: {owner} has nothing that {term.field!r} reads.", ("field",))
            return columns
        count = len(columns)
        missing = [column for column in term.columns if not 0 <= column < count]
        if missing:
            whose = term.field if term.object is None else f"{term.field} of {term.object!r}"
            has = {0: "none", 1: "one, number 0"}.get(count, f"{count}, from 0 to {count - 1}")
            raise TaskError(f"{self._owner}: {whose} has no number {missing[0]}: it has {has}.", ("columns",))
        return columns[list(term.columns)]

    def _factor_columns(self, term: Term) -> np.ndarray:
        """Return which factors a term reads: those that its object names, by kind or by pattern too."""
        pattern, names = term.object or "", [name for name, _ in self._factors or ()]
        if self._factors is None or term != Term(
            FACTORS_FIELD, term.object, unit=term.unit, sensor=term.sensor
        ):
            raise TaskError(
                f"{self._owner}: factors are read by terms of an observation alone, as they were drawn."
            )
        if not names:
            raise TaskError(
                f"{self._owner}: training draws no factors: say in `randomize` what varies.", ("factors",)
            )
        chosen = [
            index
            for index, name in enumerate(names)
            if pattern in (name, name.partition(":")[0]) or fnmatch.fnmatchcase(name, pattern)
        ]
        if not chosen:
            hint = nearest_hint(pattern, names)
            raise TaskError(
                f"{self._owner}: training draws no factor {pattern!r}; {hint}valid: {', '.join(names)}.",
                ("factors",),
            )
        return np.array(chosen)

    def _read_one_number(self, term: Term) -> str:
        """Return how a page reads one number of an object, where the term's object is such as ``root[2]``."""
        match = ONE_NUMBER.match(term.object or "")
        if match is None or match["object"] not in object_names(self._model, FIELDS[term.field].kind):
            return ""
        entry = f"object: {as_written(match['object'])}, columns: [{match['index']}]"
        return f" One of its numbers is read with `{entry}`."


def as_slice(columns: np.ndarray | None) -> Any:
    """Return contiguous columns as a slice, which reads without a copy."""
    if columns is None or len(columns) == 0 or not (np.diff(columns) == 1).all():
        return columns
    return slice(int(columns[0]), int(columns[-1]) + 1)


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
        source, minus, picked = columns.columns_on(xp, fields[term.field].device)
        value = fields[term.field][:, source]
        if term.period_s is not None:
            turn = (2 * math.pi / term.period_s) * value
            out[:, columns.start : columns.stop] = xp.concatenate([xp.cos(turn), xp.sin(turn)], 1)
            continue
        if term.minus is not None:
            value = value - fields[term.minus.field][:, minus]
        elif term.transform != "identity":
            value = getattr(xp, term.transform)(value)
        if columns.frame is not None:
            value = columns.frame.tell(value, fields, xp)
            value = value if picked is None else value[:, picked]
        out[:, columns.start : columns.stop] = value


def leave_bounds(
    columns: Sequence[TermColumns], low: float, high: float, fields: Mapping[str, Any], xp: Any = np
) -> Any:
    """Return (num_worlds,) bool, true where a number of the terms is below `low` or above `high`."""
    out = xp.zeros_like(fields[columns[0].term.field][:, : columns[-1].stop])
    read_terms(list(columns), fields, out, xp)
    return ((out < low) | (out > high)).any(1)


def is_orientation(term: Term) -> bool:
    """Tell whether a term reads the six numbers of one orientation."""
    return (
        term.field in MATRIX_FIELDS
        and term.object is not None
        and term.columns == ORIENTATION_COLUMNS
        and term.transform == "identity"
    )


def label_of(term: Term) -> str:
    """Return a term as people write it: ``cos(qpos:hinge)``, ``clock:0.25``."""
    if term.period_s is not None:  # with every digit: a robot's clock knows it from the name alone
        return f"clock:{np.format_float_positional(term.period_s, trim='-')}"
    name = f"{term.field}:{term.object}" if term.object else term.field
    if term.frame is not None:
        return f"({label_of(replace(term, frame=None))} in {term.frame})"
    if term.minus is not None:
        return f"{name} - {label_of(term.minus)}"
    return name if term.transform == "identity" else f"{term.transform}({name})"


# -- names and units of single numbers -------------------------------------------------------------

_OF_OBJECT: Mapping[str, tuple[str, ...]] = {
    "xpos": ("m",) * 3,
    "xquat": ("1",) * 4,
    "site_xpos": ("m",) * 3,
    "geom_xpos": ("m",) * 3,
    "xmat": ("1",) * 9,
    "site_xmat": ("1",) * 9,
    "geom_xmat": ("1",) * 9,
    "cinert": ("kg m²",) * 6 + ("kg m",) * 3 + ("kg",),
    "cvel": ("rad/s",) * 3 + ("m/s",) * 3,
}
_OF_JOINT = {"qpos": ("m", "rad"), "qvel": ("m/s", "rad/s"), "qfrc_actuator": ("N", "N m")}  # linear, turning
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
    if term.period_s is not None:
        return [{"name": f"{label_of(term)}[{number}]", "unit": "1"} for number in range(2)]
    if columns.factors:
        return [
            {"name": f"{FACTORS_FIELD}:{name}[0]", "unit": term.unit or unit}
            for name, unit in columns.factors
        ]
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
    if term.period_s is not None or columns.factors:
        return [element["name"] for element in describe_elements(model, columns)]
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
    if columns.picked is not None:
        flat = flat[columns.picked]
    field = FIELDS[term.field]
    spans = [field.columns(model, index) for index in range(object_count(model, field.kind))]
    for number, column in zip(term.columns or range(len(flat)), flat.tolist(), strict=True):
        owner = next(index for index, (start, stop) in enumerate(spans) if start <= column < stop)
        start, stop = spans[owner]
        yield number, owner, column - start, stop - start


def _unit(model: mujoco.MjModel, field: str, owner: int, offset: int) -> str:
    """Return the unit of one of an object's numbers; empty where the field alone does not tell."""
    if field in _OF_OBJECT:
        return _OF_OBJECT[field][offset]
    if field == "sensordata":
        kind = _SENSOR(model.sensor_type[owner])
        if kind not in _OF_SENSED_JOINT:
            return _OF_SENSOR.get(kind, "")
        field, owner = _OF_SENSED_JOINT[kind], int(model.sensor_objid[owner])
    if field in ("ctrl", "act"):
        return ""
    linear, turning = LINEAR_AND_TURNING[_JOINT(model.jnt_type[owner])]
    if offset >= linear and turning == 3 and field == "qpos":
        return "1"
    return _OF_JOINT[field][offset >= linear]
