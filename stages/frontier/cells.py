"""What a frontier is made of: its settings, its cells, and the processes' work on one of them.

A frontier's folder:

    frontier-20260131-120000/
        manifest.json  frontier.json  frontier.png
        cells/4x64/runs/...     a workspace a student: the student, its policy and its benchmark
        cells/4x64/log.txt      what its process said
        teacher/runs/...        the teacher's own policy and benchmark
        episodes/               the teacher's closed-loop episodes, while students are being made

Cells lie in workspaces of their own, so that none of them is ever the newest student or policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic

from thousandfold.ground.errors import SettingsError
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.resume import find_unfinished, stored_settings
from thousandfold.pipeline.settings import StageSettings

CELLS_FOLDER, TEACHER_FOLDER, EPISODES_FOLDER = "cells", "teacher", "episodes"

Depth = Annotated[int, pydantic.Field(ge=1, le=1024)]
Width = Annotated[int, pydantic.Field(ge=1, le=8192)]


class FrontierSettings(StageSettings):
    """Settings of `pipeline frontier`. The students' own are those of `distill`."""

    depths: tuple[Depth, ...] = pydantic.Field(
        default=(1, 2, 4, 8), max_length=32, description="layers of the students"
    )
    widths: tuple[Width, ...] = pydantic.Field(
        default=(32, 64, 128, 256), max_length=32, description="units of the students' layers"
    )
    jobs: int = pydantic.Field(
        default=0, ge=0, le=256, description="processes that distil at a time; 0: one for each CPU"
    )
    runtime: Literal["onnxruntime", "c"] = pydantic.Field(
        default="onnxruntime",
        description="whose latency the students are compared and chosen by; c: as `to-c`",
    )

    @pydantic.field_validator("depths", "widths", mode="before")
    @classmethod
    def _read_sizes(cls, value: Any) -> Any:
        """Read `1,2,4`, and refuse what names no size or none that is whole."""
        if isinstance(value, str):
            value = [part for part in value.split(",") if part.strip()]
        sizes = value if isinstance(value, list | tuple) else [value]
        if not sizes:
            raise ValueError("must name at least one size, such as 1,2,4")
        try:
            return tuple(sorted({int(str(size)) for size in sizes}))
        except ValueError:
            raise ValueError("must be whole numbers, such as 1,2,4") from None


class FrontierPlan(FrontierSettings):
    """Everything that a frontier is made by, as its manifest keeps it: settings of stages for every cell."""

    distill: dict[str, Any]
    export_onnx: dict[str, Any]
    benchmark: dict[str, Any]


@dataclass(frozen=True, order=True)
class Cell:
    """A student of the grid."""

    depth: int
    width: int

    @property
    def name(self) -> str:
        """Depth and width, as in ``4x64``; also its folder's name."""
        return f"{self.depth}x{self.width}"

    @property
    def cost(self) -> int:
        """Grows with the time that it takes to distil."""
        return self.depth * self.width**2


def grid(settings: FrontierSettings) -> list[Cell]:
    """Return the cells, by depth and width."""
    return [Cell(depth, width) for depth in settings.depths for width in settings.widths]


def cell_workspace(frontier: Artifact, cell: Cell) -> Workspace:
    """Return the workspace of a cell."""
    return Workspace(frontier.file(CELLS_FOLDER) / cell.name)


def teacher_workspace(frontier: Artifact) -> Workspace:
    """Return the workspace of the teacher's own policy and benchmark."""
    return Workspace(frontier.file(TEACHER_FOLDER))


def require_work(frontier: Artifact) -> None:
    """Raise SettingsError where a frontier is completed and none of its students failed."""
    if frontier.is_completed and not frontier.results.get("failed"):
        raise SettingsError(f"Frontier {frontier.name} is completed: there is nothing to resume.")


def find_resumable(workspace: Workspace, reference: str | None) -> tuple[FrontierPlan, Artifact]:
    """Return the frontier to go on with, and its plan: an unfinished one, or one with students that failed.

    `reference` is its name or path; None: the newest unfinished one.

    Raises:
        SettingsError: there is none, or nothing is left to do for the one named.
        DamagedFileError: its manifest holds settings that this version does not read.
    """
    if reference is not None:
        artifact = workspace.find(reference, "frontier")
    else:
        artifact = find_unfinished(workspace, "frontier", None, saved=lambda _: True, trace="")
    require_work(artifact)
    return stored_settings(artifact, FrontierPlan), artifact
