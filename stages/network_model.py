"""A teacher or a student in MLflow's registry, and what `mlflow.pyfunc.load_model` makes of it there."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.goal_env import GoalVectorEnv
from thousandfold.models.deployable_policy import NormalizedActor
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.model_registry import ARTIFACT_TAG, write_network_model
from thousandfold.pipeline.tracking import StageRun
from thousandfold.stages.networks import NETWORK_FILE, read_actor, torch_policy

_EXAMPLE_ROWS = 2


def register_network(
    run: StageRun, artifact: Artifact, task: CompiledTask, tags: Mapping[str, object] | None = None
) -> None:
    """Register the network of a teacher's or a student's artifact as its newest version.

    Args:
        run: the stage's.
        artifact: of the network.
        task: as the network sees it.
        tags: more of the version.
    """
    if run.run_id is None:
        return
    # A store that was given up on may still be writing there.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary) / "model"

        def write() -> Path:
            outputs = {"action": task.action_dim}
            write_network_model(folder, artifact.file(NETWORK_FILE), __name__, outputs, _starts(task))
            return folder

        run.register_model(
            f"{artifact.kind}-{artifact.manifest.task}",
            write,
            {ARTIFACT_TAG: artifact.name, **(tags or {})},
            description=f"`{artifact.name}`: success {artifact.manifest.results['success']:.3f}.",
            about=(
                f"Each version is a {artifact.kind} of task {artifact.manifest.task}: it takes rows of "
                "`observation` and `goal`, and gives `action` in [-1, 1]. What runs on a robot is "
                f"`policy-{artifact.manifest.task}`."
            ),
        )


def _starts(task: CompiledTask) -> dict[str, np.ndarray]:
    """Return what an actor is given at the start of episodes, rows of float32."""
    with contextlib.closing(GoalVectorEnv(_EXAMPLE_ROWS, task=task)) as env:
        seen = env.reset(seed=0)[0]
    observation, goal = (np.asarray(seen[key], np.float32) for key in ("observation", "desired_goal"))
    return {"observation": observation, "goal": goal}


class NetworkModel:
    """What pyfunc calls: the actor's mean action, without noise."""

    def __init__(self, actor: NormalizedActor) -> None:
        self._act = torch_policy(actor)

    def predict(self, model_input: Mapping[str, np.ndarray], params: dict[str, Any] | None = None) -> Any:
        """Return ``action`` of rows of ``observation`` and ``goal``, (n, size) float32 each."""
        return {"action": self._act(model_input["observation"], model_input["goal"])}


def _load_pyfunc(path: str) -> NetworkModel:
    """Return the model of a network file; MLflow calls this by name."""
    return NetworkModel(read_actor(Path(path)))
