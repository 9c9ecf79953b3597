"""Robots in the style of well-known collections, each with a page, pass the check and a training as they are.

An unnamed free joint with default classes and collision groups (quadruped), thrust at sites and unnamed
actuators (drone), tendons, cutoffs and centimetres (hand), a gripper coupled by an equality (arm), wheels
with blanks in their names, a body called 1 and hidden geoms (rover), ball joints and no floor, gravity or
body names (creature).
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from thousandfold.envs.checks.goal_judgement import judge_goals
from thousandfold.envs.checks.random_rollout import roll_out, rollout_warnings
from thousandfold.envs.checks.task_judgement import judge_task
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.control_map import ControlMap
from thousandfold.envs.registry import compile_task
from thousandfold.envs.task import Command, Term
from thousandfold.envs.term_columns import TermResolver
from thousandfold.pipeline.cli import cli

ROBOTS = sorted((Path(__file__).parent / "robots").glob("*.yaml"))
_ELEMENT = re.compile(r"(?P<field>\w+):(?P<object>.+)\[(?P<index>\d+)\]$")


def test_all_are_there() -> None:
    assert [page.stem for page in ROBOTS] == ["arm", "creature", "drone", "hand", "quadruped", "rover"]


@pytest.mark.parametrize("page", ROBOTS, ids=lambda page: page.stem)
class TestEvery:
    def task(self, page: Path) -> CompiledTask:
        return compile_task(str(page))

    def test_nothing_looks_wrong(self, page: Path) -> None:
        task = self.task(page)
        rollout = roll_out(task, 6, 0, steps=25)
        assert rollout_warnings(rollout, task) == []
        assert judge_task(task, 0) == []
        assert judge_goals(task, 0, goals=6, configurations=600).warnings == []

    def test_every_number_printed_is_read_again_by_its_name(self, page: Path) -> None:
        task = self.task(page)
        terms = [*task.spec.observation, *(Term(field) for field in ("qpos", "qvel", "ctrl", "xpos"))]
        everything = CompiledTask(replace(task.spec, observation=tuple(t for t in terms if t.minus is None)))
        resolver = TermResolver(task.model, "the task")
        columns = [
            (columns.term.field, column)
            for columns in resolver.resolve(everything.spec.observation)
            for column in np.r_[columns.source].tolist()
        ]
        for (field, column), element in zip(columns, everything.describe("observation"), strict=True):
            match = _ELEMENT.match(element["name"])
            assert match is not None and match["field"] == field, element
            term = Term(field, match["object"], columns=(int(match["index"]),))
            assert resolver.columns(term).tolist() == [column], element

    def test_every_actuator_printed_takes_a_command(self, page: Path) -> None:
        task = self.task(page)
        commands = tuple(Command(name, low=0.0, high=1.0) for name in reversed(task.control.actuators))
        assert ControlMap(task.model, commands, "the task", 0.1).actuators == task.control.actuators


@pytest.mark.slow
@pytest.mark.parametrize("page", ROBOTS, ids=lambda page: page.stem)
def test_check_and_chain(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in page.parent.glob(f"{page.stem}.*"):
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ["tasks", "check", page.name],
        ["train-teacher", "--preset", "smoke", "--task", page.name],
        *([stage, "--preset", "smoke"] for stage in ("generate-dataset", "distill", "export-onnx")),
    ):
        result = CliRunner().invoke(cli, ["--workspace", "ws", *arguments])
        assert result.exit_code == 0, result.output + repr(result.exception)
        # A training of seconds may warn of what it reached, not of the task.
        unexpected = "Warning" if "check" in arguments else "looks closer"
        assert unexpected not in result.stderr.replace("Warning: no picture: ", ""), result.stderr
    assert list((tmp_path / "ws/runs").glob("policy-*/policy.onnx"))
