"""What all studies share: cells are made once, sides take turns, options are checked, workers given up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from benchmarks import harness
from benchmarks.harness import Cell, CellBook, Side, SideFailed, StudyParser, Worker, run_once, run_study


class Clock:
    """Stands in for the module `time`: only what works or sleeps takes time."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(harness, "time", made)
    return made


def working(clock: Clock, seconds: float, worlds: int = 1) -> Side:
    return Side(lambda count: clock.sleep(count * seconds), worlds)


def test_a_rate_counts_every_world(clock: Clock) -> None:
    assert working(clock, 0.01, worlds=6).rate(3) == pytest.approx(600)


def test_a_round_takes_as_long_as_asked(clock: Clock) -> None:
    assert harness.calls_for(working(clock, 0.001), seconds=0.5) == 500
    assert harness.calls_for(working(clock, 0.05), seconds=0.01) == 1


def test_sides_take_turns(clock: Clock) -> None:
    order: list[str] = []

    def noting(name: str, seconds: float) -> Side:
        def advance(count: int) -> None:
            clock.sleep(count * seconds)
            order.append(f"{name} {count}")

        return Side(advance, worlds=2)

    rates = harness.take_turns({"a": noting("a", 0.1), "b": noting("b", 0.5)}, rounds=3, round_s=1.0)
    assert order[-6:] == ["a 10", "b 2"] * 3
    assert rates == {"a": [20.0] * 3, "b": [4.0] * 3}


def test_ratios_are_taken_round_by_round() -> None:
    assert harness.ratios([10.0, 30.0, 20.0], [5.0, 5.0, 20.0]) == {"median": 2.0, "min": 1.0, "max": 6.0}


def test_the_fastest_candidate_is_chosen_and_all_are_closed(clock: Clock) -> None:
    closed: list[str] = []

    def candidate(name: str, seconds: float) -> Side:
        return Side(lambda count: clock.sleep(count * seconds), 1, lambda: closed.append(name))

    makers = {"slow": lambda: candidate("slow", 0.02), "quick": lambda: candidate("quick", 0.001)}
    name, medians = harness.fastest(makers, rounds=3, round_s=0.02)
    assert name == "quick" and medians == {"slow": 50.0, "quick": 1000.0}
    assert closed == ["slow", "quick"]


def study(output: Path, made: list[str], *arguments: str) -> None:
    """Run a study of three cells, the second of which fails the first time."""

    def make(name: str) -> Cell:
        made.append(name)
        if made == ["a", "b"]:
            raise KeyboardInterrupt
        return {"value": len(made)}

    def table(cells: Mapping[str, Cell]) -> str:
        return harness.markdown_table(
            ["of", "value"], [[name, cell["value"]] for name, cell in cells.items()]
        )

    options = StudyParser("", "some_study").parse([f"--output={output}", *arguments])
    run_study(options, ((name, partial(make, name)) for name in "abc"), table)


def test_cells_are_recorded_one_by_one_and_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output, made = tmp_path / "results/study.json", []
    with pytest.raises(KeyboardInterrupt):
        study(output, made)
    assert json.loads(output.read_text())["cells"] == {"a": {"value": 1}}
    study(output, made)
    study(output, made, "--table")
    assert made == ["a", "b", "b", "c"]
    table = ["| of | value |", "|---|---|", "| a | 1 |", "| b | 3 |", "| c | 4 |"]
    assert capsys.readouterr().out.splitlines()[-10:] == table * 2
    recorded = json.loads(output.read_text())
    assert recorded["host"]["usable_cpus"] >= 1 and recorded["versions"]["thousandfold"] and recorded["date"]
    study(output, made, "--again")
    assert made[4:] == ["a", "b", "c"]


def test_what_has_no_cells_is_measured_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = f"--output={tmp_path / 'once.json'}"
    for value, arguments in ((1, [output]), (2, [output, "--table"])):
        options = StudyParser("", "once").parse(arguments)
        found = run_once(
            options, lambda value=value: {"value": value}, lambda result: f"is {result['value']}"
        )
        assert found["value"] == 1 and found["host"]["cpu"]
    assert capsys.readouterr().out == "is 1\n" * 2


def test_cells_may_stand_at_the_top_of_their_file_each_with_its_facts(tmp_path: Path) -> None:
    path = tmp_path / "cells.json"
    path.write_text('{"old": {"value": 1}}')
    CellBook(path, within=None).cell("new", lambda: {"value": 2})
    cells = CellBook(path, within=None).cells
    assert cells["old"] == {"value": 1} and cells["new"]["value"] == 2 and cells["new"]["host"]["cpu"]


def test_a_list_of_cells_is_read_by_seed(tmp_path: Path) -> None:
    path = tmp_path / "cells.json"
    path.write_text('{"cells": [{"seed": 3}]}')
    assert CellBook(path).cells == {"seed 3": {"seed": 3}}


def test_cells_of_another_study_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "cells.json"
    CellBook(path, {"width": 8}).record("a", {})
    assert CellBook(path, {"width": 8}).cells == {"a": {}}
    with pytest.raises(SystemExit, match=r"cells\.json is of another width \(8\): give another --output"):
        CellBook(path, {"width": 16})


def test_cells_recorded_at_once_are_all_kept(tmp_path: Path) -> None:
    def record(worker: int) -> None:
        for index in range(5):
            CellBook(tmp_path / "study.json").record(f"{worker} {index}", {})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(record, range(6)))
    assert len(CellBook(tmp_path / "study.json").cells) == 30


def test_values_are_given_together_or_one_option_each() -> None:
    parser = StudyParser("", "some_study")
    parser.seeds()
    assert parser.parse([]).seeds == [0, 1, 2]
    assert parser.parse(["--seeds", "4", "5"]).seeds == parser.parse(["--seed=4", "--seed=5"]).seeds == [4, 5]
    assert parser.parse([]).seeds == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teacher=t", "--rounds=4"], "argument --rounds: must be at least 5"),
        (["--teacher=t", "--rounds=few"], "argument --rounds: invalid int value: 'few'"),
        ([], "give --teacher, or --table"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = StudyParser("", "some_study")
    parser.rounds(7, 1.0)
    parser.add_argument("--teacher")
    with pytest.raises(SystemExit) as left:
        parser.parse(arguments, needs="teacher")
    assert left.value.code == 2 and message in capsys.readouterr().err
    assert parser.parse(["--table"], needs="teacher").rounds == 7


def test_a_side_that_takes_too_long_is_given_up() -> None:
    worker = Worker("learner_speed", "--serve", "torch-plain", "{}", give_up_s=0.05)
    try:
        with pytest.raises(SideFailed, match=r"given up after 0\.05 s"):
            worker.answer()
    finally:
        worker.close()
