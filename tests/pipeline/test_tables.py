"""Tables and lines of any width: nothing is cut, and what fits stays a table."""

from __future__ import annotations

import io
import random
from typing import Any

import pytest
import rich.console

from tests.pipeline.narrow_terminal import WIDTHS, assert_whole, left_out, pretend_terminal
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.tables import Column, break_line, fit_columns, stack_columns


def drawn(columns: list[Column], width: int) -> str:
    """Return what is shown at a width: a table, or blocks."""
    console = rich.console.Console(file=io.StringIO(), width=width)
    table = fit_columns(columns, width)
    console.print(table or "\n".join(stack_columns(columns, width)), soft_wrap=table is None)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_cells_no_word_is_cut(seed: int) -> None:
    draw = random.Random(seed)

    def words() -> str:
        return " ".join(
            "".join(draw.choices("abcé機-_./", k=draw.randint(1, 12))) for _ in range(draw.randint(1, 6))
        )

    rows = draw.randint(1, 4)
    columns = [
        Column(f"c{index}", [words() for _ in range(rows)], False) for index in range(draw.randint(2, 6))
    ]
    cells = [cell for column in columns for cell in column.cells if cell != "-"]
    for width in (20, 60, 80, 100, 120):
        assert_whole(drawn(columns, width), cells, 10_000)


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (40, [" name     text", " abcdef   four words that wrap"]),
        (27, [" name     text", " abcdef   four words that", "          wrap"]),
        (25, [" name   text", " abcdef four words that", "        wrap"]),
        (24, ["abcdef  four words that", "        wrap"]),
        (20, ["abcdef", "    four words that", "    wrap"]),
    ],
)
def test_a_table_narrows_before_it_is_given_up(width: int, lines: list[str]) -> None:
    columns = [Column("name", ["abcdef"], False), Column("text", ["four words that wrap"], False)]
    shown = [line.rstrip() for line in drawn(columns, width).splitlines() if line.strip(" ─")]
    assert shown == lines


def test_a_row_becomes_a_block_without_what_it_has_not() -> None:
    columns = [
        Column("artifact", ["teacher-20261130-124129", "student-20261130-124201"], False),
        Column("p50", ["17.8", "-"], True),
        Column("from", ["dataset-20261130-124151, chain", "-"], False),
    ]
    assert fit_columns(columns, 40) is None
    assert stack_columns(columns, 40) == [
        "",
        "teacher-20261130-124129",
        "  p50   17.8",
        "  from  dataset-20261130-124151, chain",
        "",
        "student-20261130-124201",
        "",
    ]


@pytest.mark.parametrize(
    ("text", "label", "lines"),
    [
        ("short", "", ["short"]),
        ("", "", [""]),
        ("  an indented line of words", "", ["  an indented line", "  of words"]),
        ("a line /of/a/path/that/is/far/too/long/for/it here", "", [
            "a line", "/of/a/path/that/is/far/too/long/for/it", "here",
        ]),
        ("rate 12\xa0steps/s, ETA\xa00:00:05", "", ["rate 12\xa0steps/s,", "ETA\xa00:00:05"]),
        ("some words here", "key:  ", ["key:  some words", "      here"]),
    ],
)  # fmt: skip
def test_a_line_ends_at_words(text: str, label: str, lines: list[str]) -> None:
    assert break_line(text, 20, label) == lines


class TestConsole:
    ROWS: tuple[tuple[Any, ...], ...] = (
        ("teacher-20261130-124129", "point_hardest_maze", 1234567, None),
        ("student-20261130-124201", "a task of words", 7, "from teacher-20261130-124129"),
    )

    @pytest.mark.parametrize("width", WIDTHS)
    @pytest.mark.parametrize("spare", [(), ("from",)])
    def test_columns_are_left_out_and_named_or_stacked(
        self,
        width: int,
        spare: tuple[str, ...],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture,
    ) -> None:
        pretend_terminal(monkeypatch, width)
        columns = ("artifact", "task", "number of steps", "from")
        Console().table("Runs in a folder", columns, self.ROWS, spare)
        out = capsys.readouterr().out
        missing = {60: set(spare)}.get(width, set())
        assert left_out(out) == missing
        shown = [
            cell for row in self.ROWS for name, cell in zip(columns, row, strict=True) if name not in missing
        ]
        assert_whole(out, shown, width)

    @pytest.mark.parametrize("width", WIDTHS)
    def test_a_bar_has_its_figures_in_one_piece(
        self, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        pretend_terminal(monkeypatch, width)
        with Console().progress("generate-dataset", 200_000) as bar:
            bar.update(100_000, success=None, gradient_norm=0.123, exploration="not evaluated yet")
        out = capsys.readouterr().out
        assert_whole(
            out,
            ["generate-dataset", "100,000/200,000 steps,", "steps/s,", "gradient norm 0.123,", "ETA"],
            10_000,
        )
        assert "━" in out and "…" not in out and "success" not in out
