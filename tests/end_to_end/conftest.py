"""A chain of artifacts that tests of bad input share, and an environment without the user's own settings."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.end_to_end.refusals import SMOKE, invoke


@pytest.fixture(autouse=True)
def without_outer_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("THOUSANDFOLD_WORKSPACE", "MLFLOW_TRACKING_URI", "THOUSANDFOLD_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with one artifact of every kind; not to be changed."""
    workspace = tmp_path_factory.mktemp("chain")
    quick = ("compare=false", "cold_starts=0", "busy_processes=0", "back_to_back_s=0.05", "paced_s=0.05")
    result = invoke(workspace, "run", *SMOKE, *(f"--set=benchmark.{value}" for value in quick))
    assert result.exit_code == 0, result.output
    return workspace


@pytest.fixture
def copied(chain: Path, tmp_path: Path) -> Path:
    """A copy of that workspace, to be damaged."""
    shutil.copytree(chain / "runs", tmp_path / "copy" / "runs")
    (tmp_path / "copy" / "mlflow").mkdir()
    shutil.copy(chain / "mlflow" / "mlflow.db", tmp_path / "copy" / "mlflow")  # a new one takes a second
    return tmp_path / "copy"
