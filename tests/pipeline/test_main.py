"""The entry point as a real process: what it imports, what lies beside it, and a robot's installation."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from tests.stages.policy_file.handmade_policy import policy_artifact

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "mlflow", "matplotlib", "minari", "onnx", "onnxruntime", "mujoco", "gymnasium", "h5py")
EXTRA_PACKAGES = ("torch", "mlflow", "matplotlib", "onnx", "minari", "safetensors", "imageio")


def process(
    *arguments: str, folder: Path, path: tuple[Path, ...] = (), code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run Python on `arguments` in a folder, with `path` and the repository importable."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("THOUSANDFOLD")}
    environment["PYTHONPATH"] = os.pathsep.join(str(place) for place in (*path, ROOT))
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stderr
    return done


def pipeline(*arguments: str, **where: Any) -> subprocess.CompletedProcess[str]:
    return process("-m", "thousandfold.pipeline", *arguments, **where)


class TestHelp:
    @pytest.mark.parametrize(
        "command",
        ["--help", "run --help", "train-teacher --help", "presets", "presets cpu", "settings", "runs"],
    )
    def test_imports_nothing_heavy(self, tmp_path: Path, command: str) -> None:
        script = f"""
            import atexit, sys
            atexit.register(lambda: print("loaded:", [n for n in {HEAVY!r} if n in sys.modules]))
            sys.argv = ["pipeline", *{command.split()!r}]
            from thousandfold.pipeline.__main__ import main
            main()
        """
        done = process("-c", textwrap.dedent(script), folder=tmp_path)
        assert done.stdout.splitlines()[-1] == "loaded: []"

    def test_is_quick(self, tmp_path: Path) -> None:
        def seconds() -> float:
            started = time.perf_counter()
            pipeline("--help", folder=tmp_path)
            return time.perf_counter() - started

        # The limit is for a quiet machine; the fastest of a few may still be slowed by neighbours.
        assert min(seconds() for _ in range(3)) < 0.6 * max(1.0, os.getloadavg()[0])


class TestBesideTheUsersOwn:
    """A robot project has its own `models/` or `envs.py`: neither is imported for ours, nor ours for it."""

    @pytest.fixture
    def project(self, tmp_path: Path) -> Path:
        for name in ("stages", "models", "replay", "pipeline"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text("raise ImportError('the user's own')")
        for name in ("envs", "ground", "mlflow_settings"):
            (tmp_path / f"{name}.py").write_text("raise ImportError('the user's own')")
        return tmp_path

    @pytest.mark.parametrize("path", [False, True])
    def test_the_command_line_runs(self, project: Path, path: bool) -> None:
        listed = pipeline("tasks", folder=project, path=(project,) * path)
        assert "point_u_maze" in listed.stdout

    @pytest.mark.parametrize("path", [False, True])
    def test_an_environment_is_made(self, project: Path, path: bool) -> None:
        script = "import gymnasium, thousandfold; print(gymnasium.make('thousandfold/PointUMaze-v0').spec.id)"
        made = process("-c", script, folder=project, path=(project,) * path)
        assert made.stdout.strip() == "thousandfold/PointUMaze-v0"


@pytest.fixture(scope="module")
def blocker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that, when importable, hides every package of the extra `train`."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "sitecustomize.py").write_text(
        textwrap.dedent(f"""
            import sys
            from importlib.machinery import PathFinder

            class WithoutExtra(PathFinder):
                @classmethod
                def find_spec(cls, name, path=None, target=None):
                    hidden = name.partition(".")[0] in {EXTRA_PACKAGES!r}
                    return None if hidden else super().find_spec(name, path, target)

            sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutExtra
        """)
    )
    return folder


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return policy_artifact(tmp_path_factory.mktemp("robot")).path.parents[1]


class TestBaseInstallation:
    """A robot's installation: none of what the extra `train` brings can be imported."""

    def test_the_packages_are_blocked(self, blocker: Path, tmp_path: Path) -> None:
        done = process("-c", "import torch", folder=tmp_path, path=(blocker,), code=1)
        assert "No module named 'torch'" in done.stderr

    @pytest.mark.parametrize("command", ["tasks", "presets", "runs", "info"])
    def test_lists_work(self, blocker: Path, workspace: Path, command: str) -> None:
        done = pipeline(command, folder=workspace, path=(blocker,))
        assert len(done.stdout.splitlines()) >= 4
        assert done.stderr == ""

    def test_a_policy_is_timed_and_evaluated(self, blocker: Path, workspace: Path) -> None:
        arguments = ("--preset", "smoke", "--set", "back_to_back_s=0.02", "--set", "paced_s=0.1")
        done = process(
            "-m", "thousandfold.pipeline", "benchmark", *arguments, folder=workspace, path=(blocker,)
        )
        assert "p50" in done.stdout
        done = process(
            "-m", "thousandfold.pipeline", "evaluate", "--episodes", "2", folder=workspace, path=(blocker,)
        )
        assert "over 2 episodes" in done.stdout
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("command", ["train-teacher", "run", "distill", "ui"])
    def test_training_says_which_extra_to_install(self, blocker: Path, workspace: Path, command: str) -> None:
        done = pipeline(command, folder=workspace, path=(blocker,), code=2)
        (line,) = done.stderr.splitlines()
        assert line.startswith("Error: ")
        assert 'pip install "thousandfold[train]"' in line
