"""Tables of which a terminal cuts no name and no number, however narrow it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import rich.box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

_LEAST_TEXT = 16
"""characters that a column of text is left at least, so that it reads as text"""


@dataclass(frozen=True)
class Column:
    """A column as it is shown: its name, its cells from top to bottom, and whether they are numbers."""

    name: str
    cells: Sequence[str]
    is_numeric: bool

    @property
    def width(self) -> int:
        """Characters that nothing of it needs to be wrapped in."""
        return max(map(cell_len, (self.name, *self.cells)))

    @property
    def least_width(self) -> int:
        """Characters in which no word of it is broken."""
        text = min(max(map(cell_len, self.cells), default=0), _LEAST_TEXT)
        return max(text, *(cell_len(word) for cell in ("-", self.name, *self.cells) for word in _words(cell)))


def fit_columns(columns: Sequence[Column], width: int) -> Table | None:
    """Return a table that is at most so wide, with its text wrapped at words; None where there is none."""
    wanted, least = [column.width for column in columns], [column.least_width for column in columns]
    for padding in (1, 0):
        room = width - 2 - (2 * padding + 1) * (len(columns) - 1)
        if sum(least) <= room:
            break
    else:
        return None
    # The narrowest wish is met first, and what is left is shared by those that wish for more.
    widths, spare = list(least), room - sum(least)
    by_wish = sorted(range(len(columns)), key=lambda index: wanted[index] - least[index])
    for others, index in zip(reversed(range(len(columns))), by_wish, strict=True):
        more = min(wanted[index] - least[index], spare // (others + 1))
        widths[index] += more
        spare -= more
    table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, padding=(0, padding))
    for column, room in zip(columns, widths, strict=True):
        table.add_column(
            Text("\n".join(break_line(column.name, room))),
            justify="right" if column.is_numeric else "left",
            width=room,
        )
    cells = [
        ["\n".join(break_line(cell, room)) for cell in column.cells]
        for column, room in zip(columns, widths, strict=True)
    ]
    for row in zip(*cells, strict=True):
        table.add_row(*map(Text, row))
    return table


def stack_columns(columns: Sequence[Column], width: int) -> list[str]:
    """Return the rows as lines: of two columns a row is a line, of more it is a block with a line a column.

    Cells of nothing, which a table shows as a dash, have no line in a block.
    """
    head, *others = columns
    lines: list[str] = []
    if len(others) == 1:
        for name, cell in zip(head.cells, others[0].cells, strict=True):
            lines += _labelled(name, cell, head.width, width)
        return ["", *lines, ""]
    names = max(cell_len(column.name) for column in others)
    for index, name in enumerate(head.cells):
        lines += ["", f"{head.name} {name}" if head.is_numeric else name]
        for column in others:
            if column.cells[index] not in ("", "-"):
                lines += _labelled(f"  {column.name}", column.cells[index], names + 2, width)
    return [*lines, ""]


def _labelled(name: str, text: str, names: int, width: int) -> list[str]:
    """Return text beside its name, of which the longest has `names` characters; below it where it is long."""
    indent = min(names, width - 2 - _LEAST_TEXT) + 2
    longest = max(map(cell_len, _words(text)), default=0)
    if indent + longest > width:
        return [name, *break_line(text, width, "    ")]
    if cell_len(name) + 2 > indent:
        return [name, *break_line(text, width, " " * indent)]
    return break_line(text, width, name + " " * (indent - cell_len(name)))


def break_line(text: str, width: int, label: str = "") -> list[str]:
    """Return text in lines that end at words, beside a label; a word that is longer than a line stays whole.

    Lines after the first begin below the beginning of the text.
    """
    if cell_len(label + text) <= width or not _words(text):
        return [label + text]
    first = label or " " * (len(text) - len(text.lstrip()))
    indent = " " * cell_len(first)
    start, *words = _words(text)
    lines = [first + start]
    for word in words:
        if cell_len(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(indent + word)
    return lines


def _words(text: str) -> list[str]:
    """Return what stands between spaces; one that is not to be broken (U+00A0) is part of a word."""
    return [word for word in text.split(" ") if word]
