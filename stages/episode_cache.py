"""Closed-loop episodes of a teacher, kept for whoever would run the same ones again.

Students of one teacher are measured against the same episodes of it. A deep teacher takes longer over these
than a student takes to learn, so a grid of students runs them once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.core.artifacts import Artifact
from pipeline.core.atomic import json_sha256
from pipeline.core.checkpoint import load_tensors, save_tensors
from pipeline.core.runtime import StageContext
from stages.evaluate import Episodes

_PATH_PREFIX = "path."


def episodes_of_teacher(
    teacher: Artifact, context: StageContext, run: Callable[[], Episodes], **facts: Any
) -> Episodes:
    """Return what `run` returns, from the context's cache where it was run before.

    Args:
        teacher: whose episodes they are.
        context: names the cache; without one the episodes are run.
        run: runs them.
        facts: what tells these episodes from others of the teacher, such as seed and count; fit into JSON.

    Raises:
        DamagedFileError: the cached file is truncated or foreign.
    """
    if context.episode_cache is None:
        return run()
    key = json_sha256({"teacher": teacher.manifest.hash, **facts})
    path = context.episode_cache / f"{key[:32]}.safetensors"
    if path.is_file():
        return read_episodes(path)
    episodes = run()
    write_episodes(path, episodes)
    return episodes


def write_episodes(path: Path, episodes: Episodes) -> None:
    """Write episodes as one safetensors file, atomically."""
    columns = {field.name: getattr(episodes, field.name) for field in fields(episodes)}
    arrays = {name: value for name, value in columns.items() if isinstance(value, np.ndarray)}
    arrays |= {f"{_PATH_PREFIX}{index:06d}": walked for index, walked in enumerate(episodes.paths)}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    save_tensors(path, tensors, {"other_radii": dict(episodes.other_radii)})


def read_episodes(path: Path) -> Episodes:
    """Return the episodes of a file. Raises DamagedFileError where it is truncated or foreign."""
    tensors, header = load_tensors(path)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    paths = [arrays.pop(name) for name in sorted(arrays) if name.startswith(_PATH_PREFIX)]
    return Episodes(**arrays, paths=paths, other_radii=header["other_radii"])
