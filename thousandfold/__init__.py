"""Thousandfold: teachers of up to a thousand layers reach goals in MuJoCo, and leave as small policies.

    import thousandfold

    teacher = thousandfold.train_teacher("point_u_maze")
    student = thousandfold.distill(teacher)
    policy = thousandfold.load(student)
    action = policy.predict(observation, goal)

``import thousandfold`` also registers every built-in task with Gymnasium, and one environment for tasks of
your own::

    gymnasium.make("thousandfold/PointUMaze-v0")
    gymnasium.make_vec("thousandfold/PointUMaze-v0", num_envs=64)
    gymnasium.make("thousandfold/UserTask-v0", task="robot.yaml")
    gymnasium.make("thousandfold/PointUMaze-v0", episode_steps=50, distribution="evaluation")

Nothing is imported before it is used: neither torch nor MuJoCo, MLflow or Gymnasium.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from thousandfold.registration import USER_TASK_ID, register_environments_with_gymnasium

if TYPE_CHECKING:
    from thousandfold.api import (
        Policy,
        benchmark,
        distill,
        evaluate,
        export_onnx,
        generate_dataset,
        load,
        make,
        make_vec,
        tasks,
        train_teacher,
    )
    from thousandfold.envs.task import TaskError
    from thousandfold.ground.errors import (
        DamagedFileError,
        MissingArtifactError,
        NonFiniteError,
        SettingsError,
        StoppedByUser,
        UserError,
        WorkspaceError,
    )
    from thousandfold.pipeline.artifacts import Artifact

__version__ = "0.1.0"
# What lies elsewhere than in `thousandfold.api`.
_PLACES = {
    "Artifact": "pipeline.artifacts",
    "DamagedFileError": "ground.errors",
    "MissingArtifactError": "ground.errors",
    "NonFiniteError": "ground.errors",
    "SettingsError": "ground.errors",
    "StoppedByUser": "ground.errors",
    "TaskError": "envs.task",
    "UserError": "ground.errors",
    "WorkspaceError": "ground.errors",
}
__all__ = [
    "USER_TASK_ID",
    "Artifact",
    "DamagedFileError",
    "MissingArtifactError",
    "NonFiniteError",
    "Policy",
    "SettingsError",
    "StoppedByUser",
    "TaskError",
    "UserError",
    "WorkspaceError",
    "__version__",
    "benchmark",
    "distill",
    "evaluate",
    "export_onnx",
    "generate_dataset",
    "load",
    "make",
    "make_vec",
    "tasks",
    "train_teacher",
]


def __getattr__(name: str) -> Any:
    """Import what a name stands for when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PLACES.get(name, 'api')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_environments_with_gymnasium()
