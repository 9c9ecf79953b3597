"""What the shell completes, through click's own interface, and that nothing heavy is imported for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from thousandfold.pipeline.artifacts import Workspace
from thousandfold.pipeline.cli import cli

HEAVY = ("torch", "mlflow", "mujoco", "matplotlib", "minari", "gymnasium")


def completed(line: str, begun: str) -> list[str]:
    found = ShellComplete(cli, {}, "pipeline", "_PIPELINE_COMPLETE").get_completions(line.split(), begun)
    return [item.value for item in found if item.type == "plain"]


@pytest.mark.parametrize(
    ("line", "begun", "expected"),
    [
        ("", "gen", {"generate-dataset"}),
        ("run --task", "reach", {"reacher"}),
        ("tasks check", "point_b", {"point_big_maze"}),
        ("train-teacher --preset", "cpu/m", {"cpu/mazes"}),
        ("presets", "quick", {"quickstart"}),
        ("train-teacher --set", "actor_learn", {"actor_learning_rate="}),
        ("run --set", "distill.student_w", {"distill.student_width="}),
        ("frontier --set", "frontier.jo", {"frontier.jobs="}),
        ("evaluate --set", "num_p", {"num_paths="}),
        ("dataset import x --set", "goal_c", {"goal_columns="}),
        ("settings", "train", {"train-teacher"}),
        ("runs --kind", "teach", {"teacher"}),
    ],
)
def test_names_that_begin_so(line: str, begun: str, expected: set[str]) -> None:
    assert set(completed(line, begun)) == expected


@pytest.mark.parametrize(
    ("command", "kinds"),
    [
        ("info", {"teacher", "student"}),
        ("runs compare", {"teacher", "student"}),
        ("runs rm", {"teacher", "student"}),
        ("evaluate --teacher", {"teacher"}),
        ("distill --resume", {"student"}),
        ("export-onnx --student", {"student"}),
        ("benchmark --policy", set()),
    ],
)
def test_artifacts_of_the_right_kind(tmp_path: Path, command: str, kinds: set[str]) -> None:
    made = {
        kind: Workspace(tmp_path).create(kind, task="reacher", settings={}).name
        for kind in ("teacher", "student")
    }
    found = completed(f"--workspace {tmp_path} {command}", "")
    assert set(found) >= {"newest", *(made[kind] for kind in kinds)}
    assert not {name for kind, name in made.items() if kind not in kinds} & set(found)


def test_a_shell_gets_them_without_what_is_slow_to_import(tmp_path: Path) -> None:
    teacher = Workspace(tmp_path).create("teacher", task="reacher", settings={}).name
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('loaded', [n for n in {HEAVY!r} if n in sys.modules]))\n"
        "from thousandfold.pipeline.__main__ import main\n"
        "main()"
    )
    for words, expected in (
        ("train-teacher --set critic_l", "critic_learning_rate="),
        ("info teach", teacher),
    ):
        environment = os.environ | {
            "_PIPELINE_COMPLETE": "bash_complete",
            "THOUSANDFOLD_WORKSPACE": str(tmp_path),
            "COMP_WORDS": f"pipeline {words}",
            "COMP_CWORD": str(len(words.split())),
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        }
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.stdout.splitlines() == [f"plain,{expected}", "loaded []"], done.stderr
