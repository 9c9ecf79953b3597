"""The MuJoCo models that Gymnasium ships, loaded for editing."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import mujoco

from thousandfold.envs.task import TaskError


def load_gymnasium_model(name: str) -> mujoco.MjSpec:
    """Return Gymnasium's ``<name>.xml`` as a fresh spec; raise TaskError where this Gymnasium has none."""
    path = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / f"{name}.xml"
    if not path.is_file():
        raise TaskError(f"Gymnasium {gymnasium.__version__} ships no model {name}.xml: install gymnasium<2.")
    return mujoco.MjSpec.from_file(str(path))
