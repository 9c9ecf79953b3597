"""One process of a frontier: distils and exports one student, or exports the teacher.

It reads its job as one line of JSON on standard input, and ends when that input ends: whatever becomes of the
process that started it, none is left behind.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from thousandfold.ground.errors import DamagedFileError
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.console import Console, error_boundary
from thousandfold.pipeline.output import guard_output
from thousandfold.pipeline.runtime import StageContext
from thousandfold.pipeline.tracking import NullTracker
from thousandfold.stages.frontier.cells import begun_student, finished, remove_unfinished

_STOPPED = 130


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
    begun = begun_student(workspace)
    remove_unfinished(workspace, but=begun)
    context = StageContext(workspace, Console(), NullTracker(), episode_cache=Path(job["episode_cache"]))

    from thousandfold.stages.distill import distill
    from thousandfold.stages.export_onnx import export_onnx

    source = teacher
    if job["distill"] is not None:
        source = finished(workspace, "student")
        settings = distill.DistillSettings(**job["distill"])
        if source is None and begun is not None:
            try:
                source = distill.run(settings, context, teacher, dataset, begun)
            except DamagedFileError as error:
                context.console.warn(f"{error} Another student is made.")
                remove_unfinished(workspace)
        if source is None:
            source = distill.run(settings, context, teacher, dataset)
    if finished(workspace, "policy") is None:
        exporting = export_onnx.ExportOnnxSettings(**job["export_onnx"])
        export_onnx.run(exporting, context, source, dataset=dataset)


def _end_with_starter() -> None:
    # Not through sys.stdin: a thread that waits in it would hold its lock when the interpreter ends.
    while os.read(0, 1):
        pass
    os._exit(_STOPPED)


def main() -> None:
    """Run the job of standard input."""
    guard_output()
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_starter, daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        # Torch and the simulators make as many threads as a process may use.
        os.sched_setaffinity(0, job["cpus"])
    with error_boundary(Path(job["workspace"])):
        run_job(job)


if __name__ == "__main__":
    main()
