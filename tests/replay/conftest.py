"""A dataset of made-up episodes, and a copy of it to be damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.replay.made_up_episodes import TASK, make_episodes, write


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes in a first shard, one in a second."""
    root = tmp_path_factory.mktemp("dataset") / "minari"
    write(root, TASK, make_episodes(), {"teacher": {"name": "teacher-1", "hash": "ab"}})
    return root


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    shutil.copytree(written, tmp_path / "copy")
    return tmp_path / "copy"
