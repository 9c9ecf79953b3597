"""The command line: a table of commands and of the modules in which they lie, imported when called."""

from __future__ import annotations

import importlib
from typing import Any

import click

from thousandfold.pipeline.command_help import PlainGroup, nearest_options, write_commands
from thousandfold.pipeline.console import printable
from thousandfold.pipeline.session import Session

COMMANDS = {
    "run": "thousandfold.stages.chain.command",
    "train-teacher": "thousandfold.stages.train_teacher.command",
    "generate-dataset": "thousandfold.stages.dataset.command",
    "distill": "thousandfold.stages.distill.command",
    "export-onnx": "thousandfold.stages.export_onnx.command",
    "benchmark": "thousandfold.stages.benchmark.command",
    "evaluate": "thousandfold.stages.closed_loop.command",
    "render": "thousandfold.stages.closed_loop.command",
    "play": "thousandfold.stages.closed_loop.command",
    "run-policy": "thousandfold.stages.closed_loop.command",
    "policy": "thousandfold.stages.policy_file.command",
    "report": "thousandfold.stages.report.command",
    "dataset": "thousandfold.stages.dataset.command",
    "frontier": "thousandfold.stages.frontier.command",
    "study": "thousandfold.stages.study.command",
    "tasks": "thousandfold.stages.tasks.command",
    "presets": "thousandfold.pipeline.listing",
    "settings": "thousandfold.pipeline.setting_reference",
    "runs": "thousandfold.pipeline.runs",
    "info": "thousandfold.pipeline.listing",
    "ui": "thousandfold.pipeline.ui",
}
"""In the order of the chain; a command's function has its name, with underscores."""
GROUPS = {
    "The chain": ("run", "train-teacher", "generate-dataset", "distill", "export-onnx", "benchmark"),
    "A policy at work": ("evaluate", "render", "play", "run-policy", "policy", "report"),
    "Datasets, comparisons and studies": ("dataset", "frontier", "study"),
    "Overviews": ("tasks", "presets", "settings", "runs", "info", "ui"),
}
EXAMPLES = {
    "run": "run --task robot.yaml --set distill.student_width=64",
    "train-teacher": "train-teacher --task reacher --set env_steps=2000000",
    "generate-dataset": "generate-dataset --episodes 500 --noise-levels 0,0.2",
    "distill": "distill --student-depth 2 --student-width 64",
    "export-onnx": "export-onnx --student newest",
    "benchmark": "benchmark --policy policy.onnx --rate 500",
    "evaluate": "evaluate --episodes 4096 --distribution training",
    "render": "render --policy newest --episodes 5",
    "play": "play --student newest",
    "run-policy": "run-policy --policy policy.onnx --rate 50 --seconds 20",
    "policy": "policy verify policy.onnx",
    "report": "report --open",
    "dataset": "dataset info newest",
    "frontier": "frontier --depths 1,2 --widths 32,64",
    "study": "study studies/depth.yaml --jobs 2",
    "tasks": "tasks check robot.yaml",
    "presets": "presets cpu/mazes",
    "settings": "settings train-teacher",
    "runs": "runs --kind teacher --status completed",
    "info": "info newest",
    "ui": "ui",
}
"""A line to try of every command, as it is typed behind `pipeline`."""


class CommandTable(PlainGroup):
    """The commands of `COMMANDS`; errors that repeat what was typed steer no terminal."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None where the table has no such name."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(COMMANDS[cmd_name]), cmd_name.replace("-", "_"))
        command.epilog = f"Example: pipeline {EXAMPLES[cmd_name]}"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, group by group."""
        for title, names in GROUPS.items():
            write_commands(self, ctx, formatter, title, names)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error of its arguments, which click repeats as they are, is made printable."""
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as error:
            meant = " or ".join(repr(option) for option in nearest_options(error))
            hint = f" Did you mean {meant}?" if meant else ""
            said = f"No such option {error.option_name!r}.{hint}"
            raise click.UsageError(printable(said), error.ctx) from None
        except click.ClickException as error:
            error.message = printable(error.message)  # pyright: ignore[reportAttributeAccessIssue]
            raise


@click.group(cls=CommandTable, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--workspace",
    metavar="DIR",
    help="Folder of artifacts and tracking [default: THOUSANDFOLD_WORKSPACE, or the current folder].",
)
@click.option("--json", "as_json", is_flag=True, help="Print results as JSON on the last line.")
@click.version_option(package_name="thousandfold", prog_name="pipeline")
@click.pass_context
def cli(context: click.Context, workspace: str | None, as_json: bool) -> None:
    """Thousandfold: train a very deep goal-reaching teacher, distil it, and deploy it as one ONNX file.

    The chain is train-teacher → generate-dataset → distill → export-onnx → benchmark. Each command takes the
    newest result of the one before; `run` runs them all.
    """
    context.obj = Session(workspace, as_json)
