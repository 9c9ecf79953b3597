"""What the objects of a model are called, those without a name too, and how a name finds them again.

`object_names` is the one function that names, `find_object` the one that resolves: what the first prints, the
second takes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

import mujoco

from thousandfold.envs.task import TaskError
from thousandfold.ground.errors import nearest_name

_OBJECT = mujoco.mjtObj


# What the objects of a kind are called, and the model's count of them.
_KINDS: Mapping[mujoco.mjtObj, tuple[str, str]] = {
    _OBJECT.mjOBJ_JOINT: ("joint", "njnt"),
    _OBJECT.mjOBJ_ACTUATOR: ("actuator", "nu"),
    _OBJECT.mjOBJ_BODY: ("body", "nbody"),
    _OBJECT.mjOBJ_SITE: ("site", "nsite"),
    _OBJECT.mjOBJ_SENSOR: ("sensor", "nsensor"),
    _OBJECT.mjOBJ_GEOM: ("geom", "ngeom"),
    _OBJECT.mjOBJ_TENDON: ("tendon", "ntendon"),
    _OBJECT.mjOBJ_EQUALITY: ("equality", "neq"),
    _OBJECT.mjOBJ_KEY: ("keyframe", "nkey"),
    _OBJECT.mjOBJ_CAMERA: ("camera", "ncam"),
}


def object_count(model: mujoco.MjModel, kind: mujoco.mjtObj) -> int:
    """Return how many objects of a kind the model has."""
    return int(getattr(model, _KINDS[kind][1]))


def object_names(model: mujoco.MjModel, kind: mujoco.mjtObj) -> list[str]:
    """Return what the model's objects of a kind are called, in the model's order; no name is there twice.

    An object without a name is called by its kind and its number, as ``actuator_0``. A joint without one
    goes by the name of its body where it is that body's only joint, as a free joint always is. Names that the
    model gives come first: where one of another object looks like that, `_unnamed` is added.
    """
    given = [mujoco.mj_id2name(model, kind, index) or "" for index in range(object_count(model, kind))]
    names, taken = list(given), set(given)
    for index, name in enumerate(given):
        if name:
            continue
        if kind == _OBJECT.mjOBJ_JOINT and model.body_jntnum[model.jnt_bodyid[index]] == 1:
            name = mujoco.mj_id2name(model, _OBJECT.mjOBJ_BODY, int(model.jnt_bodyid[index]))
        if not name or name in taken:
            name = f"{_KINDS[kind][0]}_{index}"
        while name in taken:
            name += "_unnamed"
        names[index] = name
        taken.add(name)
    return names


def object_name(model: mujoco.MjModel, kind: mujoco.mjtObj, index: int) -> str:
    """Return what an object of the model is called; see `object_names`."""
    return mujoco.mj_id2name(model, kind, index) or object_names(model, kind)[index]


def find_object(model: mujoco.MjModel, kind: mujoco.mjtObj, name: str, owner: str) -> int:
    """Return the id of the object that `object_names` calls so.

    Raises:
        TaskError: the model has none; the message begins with `owner` and says what it has instead.
    """
    names = object_names(model, kind)
    if name in names:
        return names.index(name)
    label, _ = _KINDS[kind]
    valid = f"it has {', '.join(names[:12])}{', …' if len(names) > 12 else ''}." if names else "it has none."
    hint = _other_kinds(model, kind, name) or nearest_hint(name, names)
    raise TaskError(f"{owner}: the model has no {label} named {name!r}; {hint}{valid}")


def _other_kinds(model: mujoco.MjModel, kind: mujoco.mjtObj, name: str) -> str:
    """Return ``'arm' is a body, whose joint is 'root'; `` for a name that objects of other kinds have."""
    labels = [
        label for each, (label, _) in _KINDS.items() if each != kind and name in object_names(model, each)
    ]
    if not labels:
        return ""
    kinds = (f"{'an' if label[0] in 'aeiou' else 'a'} {label}" for label in labels)
    text = f"{name!r} is {' and '.join(kinds)}"
    if kind == _OBJECT.mjOBJ_JOINT and "body" in labels:
        body = object_names(model, _OBJECT.mjOBJ_BODY).index(name)
        first, count = int(model.body_jntadr[body]), int(model.body_jntnum[body])
        own = object_names(model, kind)[first : first + count] if count else []
        text += f" with the joint{'s' if count > 1 else ''} {', '.join(own)}" if own else " without a joint"
    return f"{text}; "


def as_written(name: str) -> str:
    """Return a name as a page of YAML has it: in quotes where it would be taken for something else."""
    plain = re.fullmatch(r"[A-Za-z_][\w./-]*( [\w./-]+)*", name)
    words = name.lower() not in ("null", "true", "false")
    return name if plain and words else json.dumps(name, ensure_ascii=False)


def nearest_hint(name: str, valid: Iterable[str]) -> str:
    """Return ``did you mean 'x'? `` for the nearest valid name; nothing where none is near."""
    nearest = nearest_name(name, valid)
    return f"did you mean {nearest!r}? " if nearest else ""
