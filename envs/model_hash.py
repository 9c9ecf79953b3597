"""The fingerprint of a compiled model, the same wherever the same model is compiled.

Two processors do not compile a model to the same bytes: an inertia or a joint's inverse weight is a sum, and
its last bits depend on the instructions at hand. So numbers are rounded before they are hashed, far above
that noise and far below what anybody changes on purpose, and what the compiler only looks up later is left
out. Two models whose numbers differ by less than the grid have one fingerprint.
"""

from __future__ import annotations

import hashlib

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
_LEFT_OUT = ("body_inertia", "body_iquat", *_PLACES)
# Bits behind the point of numbers up to 1; of larger ones as many significant bits.
_BITS = {np.dtype(np.float64): 26, np.dtype(np.float32): 18}


def model_sha256(model: mujoco.MjModel) -> str:
    """Return the SHA-256 of the compiled model, with its numbers rounded.

    Where its meshes and pictures lie does not count, nor which processor compiled it. Another version of
    MuJoCo, whose models have other fields, gives another.
    """
    axes = np.empty((model.nbody, 9))
    for body in range(model.nbody):
        mujoco.mju_quat2Mat(axes[body], model.body_iquat[body])
    axes = axes.reshape(-1, 3, 3)
    counted: list[tuple[str, object]] = [
        (name, getattr(model, name))
        for name in sorted(dir(model))
        if not (name.startswith(("_", *_LOOKED_UP)) or name.endswith(_SAME_FRAME) or name in _LEFT_OUT)
    ]
    counted += [("inertia", np.einsum("bij,bj,bkj->bik", axes, model.body_inertia, axes))]
    counted += [
        (f"opt.{name}", getattr(model.opt, name)) for name in sorted(dir(model.opt)) if name[0] != "_"
    ]
    digest = hashlib.sha256()
    for name, value in counted:
        if isinstance(value, float):
            value = np.array(value)
        if isinstance(value, np.ndarray):
            exact = rounded(value).astype("<f8") if value.dtype in _BITS else value
            digest.update(f"{name}:".encode() + exact.tobytes())
        elif isinstance(value, int | bytes):
            digest.update(f"{name}:{value!r}".encode())
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
