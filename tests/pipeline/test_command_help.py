"""Help that is whole at 80 columns, and answers to what was mistyped."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from thousandfold.pipeline.cli import COMMANDS, EXAMPLES, GROUPS, cli


def error(*arguments: str) -> str:
    result = CliRunner().invoke(cli, [*arguments])
    assert result.exit_code == 2
    return " ".join(result.stderr.split())


class TestHelp:
    def test_every_command_is_in_one_group_with_its_sentence_whole(self) -> None:
        assert sorted(name for names in GROUPS.values() for name in names) == sorted(COMMANDS)
        text = CliRunner().invoke(cli, ["--help"]).stdout
        assert "..." not in text.replace("[ARGS]...", "") and max(map(len, text.splitlines())) <= 80
        flat = " ".join(text.split())
        for name in COMMANDS:
            command = cli.get_command(click.Context(cli), name)
            assert command is not None and command.help
            assert " ".join(command.help.split("\n\n")[0].split()).split(". ")[0].rstrip(".") in flat

    @pytest.mark.parametrize("name", COMMANDS)
    def test_has_an_example_that_the_command_understands(self, name: str) -> None:
        text = CliRunner().invoke(cli, [name, "--help"]).stdout
        assert f"  Example: pipeline {EXAMPLES[name]}" in text.splitlines()
        assert max(map(len, text.splitlines())) <= 80
        own, *words = EXAMPLES[name].split()
        command = cli.get_command(click.Context(cli), own)
        assert command is not None
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            command = command.commands[words.pop(0)]
        command.make_context(own, words)  # refuses what it does not know

    def test_of_a_group_cuts_nothing(self) -> None:
        assert "..." not in CliRunner().invoke(cli, ["policy", "--help"]).stdout.replace("[ARGS]...", "")


class TestMistyped:
    @pytest.mark.parametrize(
        ("typed", "meant"),
        [
            ("train", "train-teacher"), ("ls", "runs"), ("evalute", "evaluate"), ("gen", "generate-dataset"),
            ("distil", "distill"), ("export", "export-onnx"), ("trian", "train-teacher"),
        ],
    )  # fmt: skip
    def test_command(self, typed: str, meant: str) -> None:
        assert f"No such command '{typed}'. Did you mean '{meant}'?" in error(typed)

    def test_command_of_a_group(self) -> None:
        assert "Did you mean 'verify'?" in error("policy", "verfy")

    def test_command_that_is_near_to_none(self) -> None:
        assert "There are: run, train-teacher" in error("xyzzy")

    @pytest.mark.parametrize(
        ("arguments", "meant"),
        [
            (["train-teacher", "--lr", "1e-3"], "--set actor_learning_rate=VALUE"),
            (["distill", "--lr", "1e-3"], "--set learning_rate=VALUE"),
            (["train-teacher", "--batch-size", "8"], "--set batch_size=VALUE"),
            (["run", "--student-width", "8"], "--set distill.student_width=VALUE"),
            (["distill", "--techer", "x"], "--teacher"),
            (["runs", "--kinds", "teacher"], "--kind"),
        ],
    )
    def test_option(self, arguments: list[str], meant: str) -> None:
        said = error(*arguments)
        assert arguments[1] in said
        assert f"'{meant}'" in said

    def test_benchmark_takes_a_rate_as_run_policy_does(self) -> None:
        result = CliRunner().invoke(cli, ["benchmark", "--rate", "500", "--dry-run"])
        assert "rate_hz: 500.0" in result.stdout
