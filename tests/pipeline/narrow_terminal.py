"""A terminal of a given width, and what is whole in what it shows."""

from __future__ import annotations

from collections.abc import Iterable

import click
import pytest
from rich.cells import cell_len

from thousandfold.pipeline.console import short

WIDTHS = (60, 80, 200)


def pretend_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Let rich write as to a terminal of this width, whatever the stream is."""
    for name, value in {
        "TTY_COMPATIBLE": 1,
        "NO_COLOR": 1,
        "TERM": "xterm",
        "COLUMNS": width,
        "LINES": 50,
    }.items():
        monkeypatch.setenv(name, str(value))


def assert_whole(output: str, values: Iterable[object], width: int) -> None:
    """Every word and number of the values is there in one piece, and no line of several is too long."""
    text = click.unstyle(output)
    words = {word for value in values if value is not None for word in short(value).split()}
    assert words - set(text.split()) == set()
    assert [line for line in text.splitlines() if cell_len(line) > width and len(line.split()) > 1] == []


def left_out(output: str) -> set[str]:
    """Return the names of the columns that a table says it left out."""
    _, found, names = " ".join(click.unstyle(output).split()).partition("Not shown, for want of room: ")
    return set(names.partition(". --json")[0].split(", ")) if found else set()
