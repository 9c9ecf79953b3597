"""What a robot installs: `benchmark` and `run-policy` without torch, MLflow, ONNX and the other extras."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.command_line import clean_environment, pipeline, result_of
from tests.stages.policy_file.handmade_policy import policy_artifact

ROOT = Path(__file__).resolve().parents[2]
ABSENT = (
    "h5py", "imageio", "imageio_ffmpeg", "llvmlite", "matplotlib", "minari", "mlflow", "mujoco_warp", "onnx",
    "PIL", "safetensors", "torch", "warp",
)  # fmt: skip

WITHOUT = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        absent = name.partition(".")[0] in {absent!r}
        return None if absent else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from thousandfold.pipeline.__main__ import main

main()
"""


def without(absent: tuple[str, ...], workspace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process for which some packages are not installed."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.format(absent=absent), *arguments],
        cwd=workspace,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("benchmark", "--set", "warmup_s=0", "--set", "back_to_back_s=0.05", "--set", "paced_s=0.05"),
        ("run-policy", "--fast", "--episodes", "2"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_the_extras_are_not_needed(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    policy = policy_artifact(tmp_path, teacher=False)
    done = without(ABSENT, tmp_path, *arguments, "--policy", policy.name, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["task" if arguments[0] == "benchmark" else "success"] is not None


def test_a_missing_runtime_is_named(tmp_path: Path) -> None:
    policy = policy_artifact(tmp_path, teacher=False)
    done = without(("onnxruntime",), tmp_path, "run-policy", "--policy", policy.name)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "Error: This command needs onnxruntime, which is not installed: pip install thousandfold"
    )


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the commands of an environment with the base install alone, in the pinned versions."""
    folder = tmp_path_factory.mktemp("robot")
    source = folder / "source"
    source.mkdir()
    # A copy, because a build leaves files behind; of links it has what they point to.
    without_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "thousandfold", source / "thousandfold", ignore=without_caches)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    install = [folder / "venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*install, "-c", ROOT / "constraints.txt", source], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "venv/bin"


@pytest.mark.slow
def test_the_base_install_runs_and_times_a_policy(robot: Path, tmp_path: Path) -> None:
    made = result_of(pipeline(tmp_path / "desk", "run", "--preset", "smoke", "--json"))
    exported = Path(made["export_onnx"]["path"])
    (tmp_path / "robot/runs").mkdir(parents=True)
    shutil.copytree(exported, tmp_path / "robot/runs" / exported.name)
    shutil.copyfile(exported / "policy.onnx", tmp_path / "robot/alone.onnx")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH",)}

    def run(*arguments: str) -> dict[str, object]:
        done = subprocess.run(
            [robot / "pipeline", *arguments, "--json"],
            cwd=tmp_path / "robot",
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    listed = subprocess.run(
        [robot / "python", "-m", "pip", "list"], capture_output=True, text=True, check=True
    )
    assert not {line.split()[0].lower() for line in listed.stdout.splitlines()} & {"torch", "mlflow", "onnx"}
    alone = run("run-policy", "--policy", "alone.onnx", "--fast", "--episodes", "3")
    assert (alone["episodes"], alone["task"]) == (3, made["export_onnx"]["task"])
    assert run("run-policy", "--fast", "--episodes", "3")["success"] == alone["success"]
    timed = run("benchmark", "--set", "warmup_s=0", "--set", "back_to_back_s=0.1", "--set", "paced_s=0.1")
    assert timed["kind"] == "benchmark"
