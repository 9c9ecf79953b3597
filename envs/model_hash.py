"""The fingerprint of a compiled model, the same wherever the same model is compiled."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import mujoco
import numpy as np

_PLACES = ("mesh_pathadr", "hfield_pathadr", "tex_pathadr", "skin_pathadr", "npaths", "nbuffer", "paths")


def model_sha256(model: mujoco.MjModel) -> str:
    """Return the SHA-256 of the compiled model; where its meshes and pictures lie does not count."""
    digest = hashlib.sha256()
    if model.paths.strip(b"\0"):
        for name, content in _contents(model):
            digest.update(f"{name}:".encode() + content)
    else:
        buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
        mujoco.mj_saveModel(model, None, buffer)
        digest.update(buffer.tobytes())
    return digest.hexdigest()


def _contents(model: mujoco.MjModel) -> Iterator[tuple[str, bytes]]:
    """Yield every number, array and name of the model, but for the places of the files it was made from."""
    for name in sorted(dir(model)):
        value = None if name.startswith("_") or name in _PLACES else getattr(model, name)
        if isinstance(value, np.ndarray):
            yield name, value.tobytes()
        elif isinstance(value, int | float | bytes):
            yield name, repr(value).encode()
    for name in sorted(dir(model.opt)):
        value = None if name.startswith("_") else getattr(model.opt, name)
        if isinstance(value, np.ndarray):
            yield f"opt.{name}", value.tobytes()
        elif isinstance(value, int | float):
            yield f"opt.{name}", repr(value).encode()
