"""Built-in tasks with other physics than they come with, for comparisons."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import mujoco

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import get_task
from thousandfold.envs.tasks.gymnasium_models import load_gymnasium_model

RK4 = mujoco.mjtIntegrator.mjINT_RK4


def with_integrator(task_name: str, integrator: mujoco.mjtIntegrator, finer: int = 1) -> CompiledTask:
    """Return a task with another integrator, and its timestep divided by `finer`."""

    def change(spec: mujoco.MjSpec) -> None:
        spec.option.integrator = integrator
        spec.option.timestep /= finer

    return _changed(task_name, change)


def as_shipped(task_name: str) -> CompiledTask:
    """Return a task with the integrator, solver and contacts of the model that Gymnasium ships.

    Args:
        task_name: a task named like the model.
    """
    shipped = load_gymnasium_model(task_name)

    def change(spec: mujoco.MjSpec) -> None:
        for name in ("integrator", "solver", "iterations"):
            setattr(spec.option, name, getattr(shipped.option, name))
        for geom in spec.geoms:
            theirs = shipped.geom(geom.name)
            geom.contype, geom.conaffinity = theirs.contype, theirs.conaffinity

    return _changed(task_name, change)


def _changed(task_name: str, change: Callable[[mujoco.MjSpec], None]) -> CompiledTask:
    task = get_task(task_name)

    def build_spec() -> mujoco.MjSpec:
        spec = task.build_spec()
        change(spec)
        return spec

    return CompiledTask(dataclasses.replace(task, build_spec=build_spec))
