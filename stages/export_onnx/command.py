"""`pipeline export-onnx`."""

from __future__ import annotations

import click

from thousandfold.pipeline.completion import complete_artifacts
from thousandfold.pipeline.session import CommonOptions, Session, stage_command


@click.command("export-onnx")
@click.option(
    "--student",
    metavar="STUDENT",
    shell_complete=complete_artifacts("student"),
    help="Name or path of a student [default: the newest].",
)
@click.option(
    "--teacher",
    metavar="TEACHER",
    shell_complete=complete_artifacts("teacher"),
    help="Export a teacher instead.",
)
@stage_command
def export_onnx(session: Session, common: CommonOptions, student: str | None, teacher: str | None) -> None:
    """Export a student as one ONNX file, and check the file against torch."""
    from thousandfold.stages.export_onnx import export_onnx as stage

    settings = common.resolve(stage.ExportOnnxSettings, "export_onnx")
    if not session.starts(common, "export_onnx", settings):
        return
    if teacher is not None:
        source = session.take_one_of({"student": student, "teacher": teacher})
    else:
        source = session.take("student", student)
    session.report(stage.run(settings, session.context, source))
