"""Help of commands that cuts no sentence, and the nearest name for what was mistyped."""

from __future__ import annotations

from collections.abc import Sequence

import click

from thousandfold.ground.errors import nearest_name
from thousandfold.pipeline.completion import settable

_MEANT = {
    "ls": "runs", "list": "runs", "rm": "runs rm", "compare": "runs compare", "show": "info",
    "train": "train-teacher", "teacher": "train-teacher", "export": "export-onnx", "eval": "evaluate",
    "bench": "benchmark", "video": "render", "watch": "play", "verify": "policy verify",
    "config": "settings",
}  # fmt: skip
"""What people type who know other programs."""


class PlainGroup(click.Group):
    """Commands whose first sentences are shown whole; a mistyped name is answered with the nearest."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands with their first sentences."""
        write_commands(self, ctx, formatter, "Commands", self.list_commands(ctx))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command. Raises UsageError for an unknown one, with the nearest."""
        name = args[0]
        if self.get_command(ctx, name) is None and not ctx.resilient_parsing and not name.startswith("-"):
            known = self.list_commands(ctx)
            others = _MEANT if ctx.parent is None else {}
            meanings = (
                {each.partition("-")[0]: each for each in known} | others | {each: each for each in known}
            )
            said = next((each for each in meanings if each.startswith(name)), None)
            said = said or nearest_name(name, list(meanings))
            meant = None if said is None else meanings[said]
            hint = f"Did you mean {meant!r}?" if meant else f"There are: {', '.join(known)}."
            raise click.UsageError(f"No such command {name!r}. {hint}", ctx)
        return super().resolve_command(ctx, args)


def write_commands(
    group: click.Group, ctx: click.Context, formatter: click.HelpFormatter, title: str, names: Sequence[str]
) -> None:
    """Write some commands of a group with the first sentence of each, whole."""
    commands = [(name, group.get_command(ctx, name)) for name in names]
    rows = [(name, command.get_short_help_str(limit=1000)) for name, command in commands if command]
    with formatter.section(title):
        formatter.write_dl(rows)


def nearest_options(error: click.NoSuchOption) -> list[str]:
    """Return what may have been meant by an unknown option: a setting of the stage, or another option."""
    assert error.ctx is not None
    name = error.option_name.lstrip("-").replace("-", "_")
    keys = settable(str(error.ctx.info_name))
    own = {key: key.rpartition(".")[2] for key in keys}
    meant = [key for key, end in own.items() if end == name]
    if not meant and len(name) > 1:  # as lr for actor_learning_rate
        meant = [
            key for key, end in own.items() if "".join(part[:1] for part in end.split("_")).endswith(name)
        ]
    if meant:
        return [f"--set {key}=VALUE" for key in meant]
    options = [option for parameter in error.ctx.command.params for option in parameter.opts]
    nearest = nearest_name(error.option_name, [option for option in options if option.startswith("--")])
    return [nearest] if nearest else []
