"""Manifests and chain records that were changed in any way are read, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("jinja2")
from tests.fuzz.manifest import cases
from tests.fuzz.runner import FAULTS, fuzz


def test_changed_manifests_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    found = fuzz("tests.fuzz.manifest:read", cases(), ".json", examples=80, keep=tmp_path)
    assert found["refused"] > 30
    assert {fault: found[fault] for fault in FAULTS} == dict.fromkeys(FAULTS, 0), list(tmp_path.iterdir())
