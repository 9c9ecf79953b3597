"""The command `report`: a page about a whole chain."""

from __future__ import annotations

from pathlib import Path

import click

from thousandfold.pipeline.session import CommonOptions, Session, one_of_three, stage_command
from thousandfold.pipeline.ui import show_page


@click.command()
@one_of_three("Report on the chain of")
@click.option("--output", metavar="FILE", help="Also write a copy of the page to this file.")
@click.option("--open", "open_page", is_flag=True, help="Show the page in the web browser.")
@stage_command
def report(
    session: Session,
    common: CommonOptions,
    policy: str | None,
    student: str | None,
    teacher: str | None,
    output: str | None,
    open_page: bool,
) -> None:
    """Write one self-contained HTML page about a whole chain, from its teacher to its benchmark."""
    from thousandfold.stages.report import report as stage
    from thousandfold.stages.stage_settings import settings_by_kind

    settings = common.resolve(stage.ReportSettings, "report")
    if not session.starts(common, "report", settings):
        return
    source = session.take_one_of({"policy": policy, "student": student, "teacher": teacher})
    copy = None if output is None else Path(output).expanduser()
    made = stage.run(settings, session.context, source, settings_by_kind(), copy)
    session.report(made)
    if open_page:
        show_page(copy or made.file(stage.REPORT_FILE), session.console)
