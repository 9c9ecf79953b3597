"""The hash over a whole policy file: recomputed by other means, and broken by every edit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.stages.policy_file.handmade_policy import edited, golden, metadata, tamper, write_policy
from thousandfold.ground.errors import DamagedFileError
from thousandfold.stages.policy_file.integrity import INTEGRITY_KEY, policy_sha256, with_hash
from thousandfold.stages.policy_file.onnx_bytes import ModelBytes, read_model
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_policy(tmp_path / "policy.onnx")


def hash_by_onnx(path: Path) -> str:
    """Return the hash as the page says it, by the onnx package."""
    model = onnx.load(path)
    texts = {entry.key: entry.value for entry in model.metadata_props}
    del model.metadata_props[:]
    whole = hashlib.sha256(hashlib.sha256(model.SerializeToString()).hexdigest().encode())
    for key in ("thousandfold", "thousandfold_golden"):
        whole.update(b"\n" + texts[key].encode())
    return whole.hexdigest()


def test_the_hash_is_what_the_page_says(path: Path) -> None:
    model = read_model(path)
    assert model.metadata[INTEGRITY_KEY] == policy_sha256(model) == hash_by_onnx(path)


def test_other_writers_may_put_the_metadata_in_another_order(path: Path) -> None:
    model = read_model(path)
    path.write_bytes(model.with_metadata(dict(reversed(model.metadata.items())) | {"note": "mine"}).joined())
    assert OnnxPolicy(path).metadata.task == "point_u_maze"


def widen(text: dict[str, Any]) -> None:
    text["inputs"]["goal"][0]["limit_high"] = 300.0


EDITS: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "limit": ("thousandfold", widen),
    "name": ("thousandfold", lambda text: text["inputs"]["observation"][0].update(name="qpos:y[0]")),
    "control range": ("thousandfold", lambda text: text["outputs"]["control"][0].update(high=99.0)),
    "success": ("thousandfold", lambda text: text["evaluation"].update(success=1.0)),
    "licence": ("thousandfold", lambda text: text.update(licence="MIT")),
    "tolerance": ("thousandfold_golden", lambda text: text.update(tolerance=1e-4)),
    "golden action": ("thousandfold_golden", lambda text: text["action"][0].__setitem__(0, 0.5)),
}


@pytest.mark.parametrize("what", EDITS)
def test_every_edit_of_the_texts_is_found(what: str, path: Path) -> None:
    edited(path, *EDITS[what])
    with pytest.raises(DamagedFileError, match="its description or golden rows differ from the recorded"):
        OnnxPolicy(path)
    assert OnnxPolicy(path, check_hash=False).metadata.task == "point_u_maze"


def test_a_changed_graph_is_named_as_such(path: Path) -> None:
    with pytest.raises(DamagedFileError, match="its graph differs from the recorded hash"):
        OnnxPolicy(tamper(path))


def test_a_file_without_the_hash_is_refused(path: Path) -> None:
    model = read_model(path)
    texts = {key: text for key, text in model.metadata.items() if key != INTEGRITY_KEY}
    path.write_bytes(model.with_metadata(texts).joined())
    with pytest.raises(DamagedFileError, match=f"it has no {INTEGRITY_KEY}"):
        OnnxPolicy(path)


def test_a_missing_text_counts_as_empty() -> None:
    description = json.dumps(metadata())
    bare = ModelBytes(b"graph", {"thousandfold": description})
    assert policy_sha256(bare) == policy_sha256(with_hash(bare, description, ""))
    assert policy_sha256(bare) != policy_sha256(with_hash(bare, description, json.dumps(golden())))
