"""The fingerprint of a compiled model, the same wherever the same model is compiled.

Two processors do not compile a model to the same bytes: an inertia or a joint's inverse weight is a sum, and
its last bits depend on the instructions at hand. So numbers are rounded before they are hashed, far above
that noise and far below what anybody changes on purpose, and what the compiler only looks up later is left
out. Two models whose numbers differ by less than the grid have one fingerprint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import mujoco
import numpy as np

# Where files lay, and how much memory is taken.
_PLACES = ("mesh_pathadr", "hfield_pathadr", "tex_pathadr", "skin_pathadr", "npaths", "nbuffer", "paths")
# Search trees, convex hulls and short cuts: made of the rest, by comparing numbers with their last bits.
_LOOKED_UP = (
    "bvh", "nbvh", "oct", "noct", "body_bvh", "flex_bvh", "mesh_bvh", "mesh_oct", "mesh_graph",
    "nmeshgraph", "mesh_poly", "nmeshpoly", "mesh_extrema", "body_simple", "dof_simplenum",
)  # fmt: skip
_SAME_FRAME = "_sameframe"
# Principal axes: any will do where two moments are equal. The tensor that they stand for is hashed.
_PRINCIPAL = ("body_inertia", "body_iquat")
# Bits behind the point of numbers up to 1; of larger ones as many significant bits.
_BITS = {np.dtype(np.float64): 26, np.dtype(np.float32): 18}


def model_sha256(model: mujoco.MjModel) -> str:
    """Return the SHA-256 of the compiled model, with its numbers rounded.

    Where its meshes and pictures lie does not count, nor which processor compiled it. Another version of
    MuJoCo, whose models have other fields, gives another.
    """
    digest = hashlib.sha256()
    for name, content in _contents(model):
        digest.update(f"{name}:".encode() + content)
    return digest.hexdigest()


def rounded(values: np.ndarray) -> np.ndarray:
    """Return numbers on a grid that is coarse beside what two processors differ by.

    Args:
        values: float64 or float32, of any shape.

    Returns:
        float64 of the same shape: multiples of 2^-26 (of 2^-18 for float32) up to 1, of 2^-26 (2^-18) times
        the next power of two above. Zero has no sign.
    """
    wide = np.asarray(values, np.float64)
    exponent = np.maximum(np.frexp(wide)[1], 0) - _BITS[values.dtype]
    on_grid = np.ldexp(np.rint(np.ldexp(wide, -exponent)), exponent)
    return np.where(np.isfinite(wide), on_grid, wide) + 0.0


def _contents(model: mujoco.MjModel) -> Iterator[tuple[str, bytes]]:
    """Yield every number, array and name of the model that counts."""
    for name in sorted(dir(model)):
        if not (name.startswith(("_", *_LOOKED_UP)) or name.endswith(_SAME_FRAME) or name in _PLACES):
            yield from _content(name, getattr(model, name))
    yield from _content("inertia", _inertia(model))
    for name in sorted(dir(model.opt)):
        if not name.startswith("_"):
            yield from _content(f"opt.{name}", getattr(model.opt, name))


def _content(name: str, value: object) -> Iterator[tuple[str, bytes]]:
    """Yield a name with its bytes; nothing for a method, or for what is hashed otherwise."""
    if name in _PRINCIPAL:
        return
    if isinstance(value, float):
        value = np.array(value)
    if isinstance(value, np.ndarray):
        exact = rounded(value).astype("<f8") if value.dtype in _BITS else value
        yield name, exact.tobytes()
    elif isinstance(value, int | bytes):
        yield name, repr(value).encode()


def _inertia(model: mujoco.MjModel) -> np.ndarray:
    """Return the inertia of each body about its centre of mass, in its own frame, (bodies, 3, 3), kg·m²."""
    axes = np.empty((model.nbody, 9))
    for body in range(model.nbody):
        mujoco.mju_quat2Mat(axes[body], model.body_iquat[body])
    rotation = axes.reshape(-1, 3, 3)
    return np.einsum("bij,bj,bkj->bik", rotation, model.body_inertia, rotation)
