"""Pictures of a task for its report: starts with their goals, in the scene or as arrows from above."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.pictures.opengl import NoOpenGLError
from thousandfold.envs.pictures.rendering import draw_arrows
from thousandfold.pipeline.artifact_task import load_task
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.errors import UserError
from thousandfold.stages.report.files import inline_figure
from thousandfold.stages.report.page import Figure, Figures

_SCENES, _ARROWS = 3, 48
_WIDTH, _HEIGHT = 480, 360
_DISTRIBUTION = "evaluation"


def task_figures(source: Artifact) -> Figures | None:
    """Return pictures of the commands that episodes are evaluated on; None where the task cannot be read.

    Args:
        source: an artifact of the task, with its copy of it where it is a user's.
    """
    try:
        task = load_task(source)
    except UserError:
        return None  # the section on the task says so
    try:
        caption = "Commands that episodes are evaluated on: from a start to a goal, drawn in yellow-green."
        return Figures(_scenes(task), "small", caption)
    except NoOpenGLError:
        return Figures([_arrows(task)])


def _scenes(task: CompiledTask) -> list[Figure]:
    """Draw the starts of a few episodes with their goals. Raises NoOpenGLError."""
    from PIL import Image

    from thousandfold.envs.pictures.scene_rendering import SceneRenderer

    qpos, _, goals = task.sample_start(_DISTRIBUTION, np.random.default_rng(0), _SCENES)
    figures = []
    with SceneRenderer(task, _WIDTH, _HEIGHT) as renderer:
        for index, (start, goal) in enumerate(zip(qpos, goals, strict=True), 1):
            file = io.BytesIO()
            Image.fromarray(renderer.draw(start, goal)).save(file, "PNG", optimize=True)
            alt = f"Start {index} of {task.task.name} with its goal marked"
            figures.append(inline_figure(file.getvalue(), ".png", alt=alt, caption=""))
    return figures


def _arrows(task: CompiledTask) -> Figure:
    """Draw an arrow from the start of each of many episodes to its goal."""
    from thousandfold.envs.simulators.cpu_simulator import CpuSimulator

    simulator = CpuSimulator(task, _ARROWS, seed=0, distribution=_DISTRIBUTION)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "commands.png"
        draw_arrows(path, task, simulator.achieved_goal, simulator.desired_goal, "")
        content = path.read_bytes()
    alt = f"Arrows from start to goal of {_ARROWS} episodes of {task.task.name}"
    return inline_figure(
        content, ".png", alt=alt, caption="Commands that episodes are evaluated on: from start to goal."
    )
