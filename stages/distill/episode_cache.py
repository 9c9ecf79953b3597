"""Closed-loop episodes of a teacher, kept for whoever would run the same ones again.

Students of one teacher are measured against the same episodes of it. A deep teacher takes longer over these
than a student takes to learn, so a grid of students runs them once.
"""

from __future__ import annotations

import contextlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.checkpoint import load_tensors, save_tensors
from thousandfold.pipeline.errors import DamagedFileError
from thousandfold.pipeline.files import json_sha256
from thousandfold.pipeline.runtime import StageContext
from thousandfold.stages.episodes import Episodes, EpisodeStream, Policy


class TeacherEpisodes(EpisodeStream):
    """Episodes of a teacher, round by round from the context's cache where they were run before.

    A round that is read is not run; one whose file is damaged is run, and its file written, again. What comes
    after a round that was read is the same all the same: a reset draws the starts of all worlds anew, and
    nothing else draws from its generator.

    Args:
        teacher: whose episodes they are.
        context: names the cache; without one all rounds are run.
        task: the teacher's task.
        policy: the teacher's.
        seed: of starts and goals.
    """

    def __init__(
        self,
        teacher: Artifact,
        context: StageContext,
        task: CompiledTask,
        policy: Policy,
        *,
        seed: np.random.SeedSequence,
    ) -> None:
        super().__init__(task, policy, seed=seed)
        self._cache = context.episode_cache
        self._facts: dict[str, Any] = {
            "teacher": teacher.manifest.hash,
            "seed": [str(seed.entropy), *seed.spawn_key],
        }

    def _round(self, simulator: CpuSimulator, num_paths: int) -> Episodes:
        if self._cache is None:
            return super()._round(simulator, num_paths)
        facts = self._facts | {"worlds": simulator.num_worlds, "round": len(self._rounds)}
        path = self._cache / f"{json_sha256(facts)[:32]}.safetensors"
        if path.is_file():
            with contextlib.suppress(DamagedFileError):  # it is written anew
                return read_episodes(path)
        episodes = super()._round(simulator, num_paths)
        write_episodes(path, episodes)
        return episodes


def write_episodes(path: Path, episodes: Episodes) -> None:
    """Write the outcomes of episodes, without their paths, as one safetensors file, atomically."""
    columns = {field.name: getattr(episodes, field.name) for field in fields(episodes)}
    arrays = {name: value for name, value in columns.items() if isinstance(value, np.ndarray)}
    save_tensors(path, {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, {})


def read_episodes(path: Path) -> Episodes:
    """Return the episodes of a file. Raises DamagedFileError where it is truncated or foreign."""
    tensors, _ = load_tensors(path)
    columns: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    try:
        return Episodes(**columns)
    except TypeError as error:
        raise DamagedFileError(f"{path} holds no episodes of this version.") from error
