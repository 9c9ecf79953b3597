"""What one process of a frontier does: distils and exports one student, or exports the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thousandfold.ground.errors import DamagedFileError
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.jobs import begun, finished, remove_unfinished
from thousandfold.pipeline.runtime import StageContext
from thousandfold.pipeline.tracking import NullTracker


def run_job(job: dict[str, Any]) -> None:
    """Make what is missing of a cell; a student that was stopped goes on from its checkpoint.

    Args:
        job: the folders ``workspace``, ``cache`` (of the workspace around it), ``teacher``, ``dataset`` and
            ``episode_cache``, and the settings ``distill`` (None: export the teacher itself) and
            ``export_onnx``.

    Raises:
        UserError: as the stages do.
    """
    teacher, dataset = Artifact.load(Path(job["teacher"])), Artifact.load(Path(job["dataset"]))
    workspace = Workspace(Path(job["workspace"]), Path(job["cache"]))
    unfinished = begun(workspace, "student")
    remove_unfinished(workspace, but=unfinished)
    context = StageContext(workspace, Console(), NullTracker(), episode_cache=Path(job["episode_cache"]))

    from thousandfold.stages.distill import distill
    from thousandfold.stages.export_onnx import export_onnx

    source = teacher
    if job["distill"] is not None:
        source = finished(workspace, "student")
        settings = distill.DistillSettings(**job["distill"])
        if source is None and unfinished is not None:
            try:
                source = distill.run(settings, context, teacher, dataset, unfinished)
            except DamagedFileError as error:
                context.console.warn(f"{error} Another student is made.")
                remove_unfinished(workspace)
        if source is None:
            source = distill.run(settings, context, teacher, dataset)
    if finished(workspace, "policy") is None:
        exporting = export_onnx.ExportOnnxSettings(**job["export_onnx"])
        export_onnx.run(exporting, context, source, dataset=dataset)
