"""A short turn of every fuzzer, the same cases each time; `python -m tests.fuzz.npz --minutes 10` is long."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("the runner needs setrlimit", allow_module_level=True)

from tests.fuzz.runner import FAULTS, fuzz


@pytest.mark.parametrize("name", ["npz", "hdf5", "policy", "checkpoint", "task_yaml"])
def test_whatever_a_file_holds_a_reader_returns_or_refuses_in_one_line(name: str, tmp_path: Path):
    module = importlib.import_module(f"tests.fuzz.{name}")
    found = fuzz(f"tests.fuzz.{name}:read", module.CASES, f".{name}", examples=150, keep=tmp_path / "faults")
    assert not any(found[fault] for fault in FAULTS), found
    assert found["read"] > 10 and found["refused"] > 10, found
