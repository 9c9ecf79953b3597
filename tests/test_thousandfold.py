from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import gymnasium
import pytest
from gymnasium.envs.registration import EnvSpec

import thousandfold
from envs.registry import environment_id, task_names

ROOT = Path(__file__).resolve().parents[1]


def test_version_is_the_distributions() -> None:
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())
    attribute = metadata["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    assert attribute == "thousandfold.__version__"
    assert re.fullmatch(r"\d+\.\d+\.\d+", thousandfold.__version__)


@pytest.mark.parametrize("name", task_names())
def test_every_task_is_registered_with_both_entry_points(name: str) -> None:
    spec = gymnasium.spec(environment_id(name))
    assert spec.entry_point == "envs.goal_env:GoalEnv"
    assert spec.vector_entry_point == "envs.goal_env:GoalVectorEnv"
    assert spec.kwargs == {"task": name}
    assert spec.max_episode_steps is None
    assert EnvSpec.from_json(spec.to_json()) == spec


def test_import_is_cheap() -> None:
    """No torch, no simulator, no compiled model; registration finds the classes when they are made."""
    script = (
        "import sys, mujoco\n"
        "def refuse(*_): raise SystemExit('a model was compiled')\n"
        "mujoco.MjSpec.compile = refuse\n"
        "import thousandfold\n"
        "print([m for m in ('torch', 'warp', 'matplotlib', 'mlflow', 'envs.goal_env') if m in sys.modules])\n"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (outcome.stdout.strip(), outcome.returncode) == ("[]", 0), outcome.stderr


def test_make_imports_it_by_the_name_in_front() -> None:
    script = (
        "import gymnasium\n"
        "print(gymnasium.make('thousandfold:thousandfold/PointBigMaze-v0').unwrapped.task.name)\n"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert outcome.stdout.strip() == "point_big_maze", outcome.stderr
