"""What terms read in the world's axes, told in the frame of a body."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import mujoco

from thousandfold.envs.object_names import find_object
from thousandfold.envs.orientations import MATRIX_FIELDS
from thousandfold.envs.task import TaskError, Term

_OBJECT, _SENSOR = mujoco.mjtObj, mujoco.mjtSensor
_POSITIONS = ("xpos", "site_xpos", "geom_xpos")
# Sensors of three numbers in the world's axes, where they have no frame of reference of their own.
_POSITION_SENSORS = (_SENSOR.mjSENS_FRAMEPOS, _SENSOR.mjSENS_SUBTREECOM)
_VECTOR_SENSORS = (
    _SENSOR.mjSENS_FRAMEXAXIS, _SENSOR.mjSENS_FRAMEYAXIS, _SENSOR.mjSENS_FRAMEZAXIS,
    _SENSOR.mjSENS_FRAMELINVEL, _SENSOR.mjSENS_FRAMEANGVEL, _SENSOR.mjSENS_FRAMELINACC,
    _SENSOR.mjSENS_FRAMEANGACC, _SENSOR.mjSENS_SUBTREELINVEL, _SENSOR.mjSENS_SUBTREEANGMOM,
)  # fmt: skip


@dataclass(frozen=True)
class BodyFrame:
    """How some numbers are told in the frame of a body.

    Attributes:
        body: its id.
        kind: ``position``: points, told from the body's origin; ``vector``: directions, velocities and
            differences of points; ``matrix``: orientations; ``free_velocity``: the velocities of the body's
            own free joint, of which MuJoCo tells the turning ones in the body's frame already.
    """

    body: int
    kind: Literal["position", "vector", "matrix", "free_velocity"]

    @property
    def fields(self) -> tuple[str, ...]:
        """The data fields that must be there beside the term's own."""
        return ("xmat", "xpos") if self.kind == "position" else ("xmat",)

    def tell(self, numbers: Any, fields: Mapping[str, Any], xp: Any) -> Any:
        """Return the numbers (num_worlds, n) in the body's frame: Rᵀ v, with R the body's `xmat`.

        Args:
            numbers: in the world's axes.
            fields: arrays (num_worlds, width) by field name.
            xp: the module of the arrays, `numpy` or `torch`.
        """
        worlds = numbers.shape[0]
        # Summed by hand: a product of matrices may run in lower precision on a GPU.
        rotation = fields["xmat"][:, 9 * self.body : 9 * self.body + 9].reshape(worlds, 1, 3, 3)
        if self.kind == "matrix":
            matrices = numbers.reshape(worlds, -1, 3, 3)
            turned = (rotation[..., :, :, None] * matrices[..., :, None, :]).sum(-3)
            return turned.reshape(worlds, -1)
        vectors = numbers.reshape(worlds, -1, 3)
        if self.kind == "position":
            vectors = vectors - fields["xpos"][:, None, 3 * self.body : 3 * self.body + 3]
        turned = (rotation * vectors[..., :, None]).sum(-2).reshape(worlds, -1)
        return xp.concatenate([turned[:, :3], numbers[:, 3:]], 1) if self.kind == "free_velocity" else turned


def frame_of(model: mujoco.MjModel, term: Term, owner: str) -> BodyFrame:
    """Return how a term is told in its frame.

    Raises:
        TaskError: the model has no such body, or what the term reads has no direction in the world.
    """
    assert term.frame is not None
    try:
        body = find_object(model, _OBJECT.mjOBJ_BODY, term.frame, owner)
    except TaskError as error:
        raise error.within("in") from None
    kind = _kind(model, term, body, owner)
    if term.transform not in ("identity", "difference"):
        raise TaskError(f"{owner}: a term in a body's frame has no {term.transform!r}.", ("transform",))
    if term.minus is None:
        return BodyFrame(body, kind)
    if term.minus.frame is not None:
        raise TaskError(
            f"{owner}: a difference is expressed in one frame: leave `in` out of what is subtracted.",
            ("minus",),
        )
    if kind not in ("position", "vector") or kind != _kind(model, term.minus, body, owner):
        raise TaskError(
            f"{owner}: a difference in a body's frame is one of two positions or of two vectors.", ("minus",)
        )
    if term.minus.columns not in (None, term.columns):
        raise TaskError(
            f"{owner}: the columns of a difference in a body's frame are the term's: leave out those of what "
            "is subtracted.",
            ("minus", "columns"),
        )
    return BodyFrame(body, "vector")


def _kind(
    model: mujoco.MjModel, term: Term, body: int, owner: str
) -> Literal["position", "vector", "matrix", "free_velocity"]:
    if term.field in _POSITIONS:
        return "position"
    if term.field in MATRIX_FIELDS:
        return "matrix"
    if term.field == "cvel":
        return "vector"
    if term.field == "qvel" and term.object is not None:
        joint = find_object(model, _OBJECT.mjOBJ_JOINT, term.object, owner)
        if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE and model.jnt_bodyid[joint] == body:
            return "free_velocity"
    if term.field == "sensordata" and term.object is not None:
        sensor = find_object(model, _OBJECT.mjOBJ_SENSOR, term.object, owner)
        in_world = model.sensor_refid[sensor] < 0
        if in_world and _SENSOR(model.sensor_type[sensor]) in _POSITION_SENSORS:
            return "position"
        if in_world and _SENSOR(model.sensor_type[sensor]) in _VECTOR_SENSORS:
            return "vector"
    what = term.field if term.object is None else f"{term.field} of {term.object!r}"
    raise TaskError(
        f"{owner}: {what} cannot be expressed in a body's frame; possible are positions (xpos, site_xpos, "
        "geom_xpos), orientations, cvel, qvel of the body's own free joint, and one sensor of a position, an "
        "axis or a velocity in the world's frame.",
        ("in",),
    )
