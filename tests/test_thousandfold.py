from __future__ import annotations

import copy
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import gymnasium
import pytest
from gymnasium.envs.registration import EnvSpec

import thousandfold
from thousandfold.envs import registry
from thousandfold.envs.registry import task_names
from thousandfold.envs.task_names import environment_id

ROOT = Path(__file__).resolve().parents[1]


def test_version_is_the_distributions() -> None:
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())
    attribute = metadata["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    assert attribute == "thousandfold.__version__"
    assert re.fullmatch(r"\d+\.\d+\.\d+", thousandfold.__version__)


@pytest.mark.parametrize("name", task_names())
def test_every_task_is_registered_with_both_entry_points(name: str) -> None:
    spec = gymnasium.spec(environment_id(name))
    assert spec.entry_point == "thousandfold.envs.goal_env:GoalEnv"
    assert spec.vector_entry_point == "thousandfold.envs.goal_env:GoalVectorEnv"
    assert spec.kwargs == {"task": name}
    assert spec.max_episode_steps is None
    assert EnvSpec.from_json(spec.to_json()) == spec


def test_import_is_cheap() -> None:
    """No torch, no simulator, not even Gymnasium, which is told when it is imported itself."""
    script = (
        "import sys\n"
        "import thousandfold\n"
        "heavy = ('torch', 'warp', 'mujoco', 'matplotlib', 'mlflow', 'gymnasium', 'numpy', 'pydantic')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (outcome.stdout.strip(), outcome.returncode) == ("[]", 0), outcome.stderr


@pytest.mark.parametrize(
    "imports",
    [
        "import thousandfold, gymnasium",
        "import gymnasium, thousandfold",
        "import thousandfold, importlib.util; importlib.util.find_spec('gymnasium'); import gymnasium",
    ],
)
def test_environments_are_registered_in_whichever_order_both_are_imported(imports: str) -> None:
    script = f"{imports}; print(gymnasium.make('thousandfold/AntUMaze-v0').unwrapped.task.name)"
    outcome = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert outcome.stdout.strip() == "ant_u_maze", outcome.stderr


def test_the_names_that_are_registered_are_those_of_the_tasks() -> None:
    assert [task.name for module in registry._BUILT_IN for task in module.tasks()] == task_names()


def test_an_environment_of_an_earlier_versions_dataset_is_found() -> None:
    spec = copy.deepcopy(gymnasium.spec(environment_id("point_u_maze")))
    spec.entry_point = "envs.goal_env:GoalEnv"
    assert gymnasium.make(spec).unwrapped.task.name == "point_u_maze"  # pyright: ignore


def test_make_imports_it_by_the_name_in_front() -> None:
    script = (
        "import gymnasium\n"
        "print(gymnasium.make('thousandfold:thousandfold/PointBigMaze-v0').unwrapped.task.name)\n"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert outcome.stdout.strip() == "point_big_maze", outcome.stderr
