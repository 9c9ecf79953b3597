"""Commands that are refused, in this process: one clear line, exit code 2, no traceback."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from tests.end_to_end.command_line import error_of
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.cli import cli

SMOKE = ("--preset", "smoke")


def invoke(workspace: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["--workspace", str(workspace), *arguments])


def refused(workspace: Path, *arguments: str) -> str:
    """Run a command that must fail as a user's mistake; return its one line without `Error: `."""
    result = invoke(workspace, *arguments)
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert not result.stdout.startswith("{"), "no result"
    return error_of(result.stderr).removeprefix("Error: ")


def newest(workspace: Path, kind: str) -> Artifact:
    return Workspace(workspace).artifacts(kind)[0]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def make_foreign(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 something else entirely")
