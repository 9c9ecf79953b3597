"""The memory benchmark counts an update's activations and not what libraries take when they are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import learner_memory

MIB = 2**20


@pytest.mark.slow
def test_activations_are_what_an_update_needs_beside_its_parameters():
    shallow, deep = (learner_memory.run_cell(depth, "float32", width=64, batch=256) for depth in (4, 64))
    # 60 layers, each two matrices of 4 · 256 rows; what is held for a moment comes on top at both depths.
    more = 60 * 2 * 4 * 256 * 64 * 4
    found = deep["activation_bytes"] - shallow["activation_bytes"]
    assert 0.8 * more < found < 1.6 * more
    assert shallow["activation_bytes"] < 16 * MIB
    assert deep["parameters"] > shallow["parameters"]


@pytest.mark.pictures
def test_what_was_measured_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(learner_memory, "PICTURE", tmp_path / "memory.png")
    learner_memory.main(["--figure"])
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")
