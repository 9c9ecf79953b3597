"""The outer layer of a policy file: its parts, what is no such file, and hashes that every edit breaks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.stages.policy_file.handmade_policy import edited, golden, graph, metadata, tamper, write_policy
from thousandfold.ground.errors import DamagedFileError
from thousandfold.stages.policy_file.onnx_bytes import POLICY_HASH_KEY, ModelBytes, read_model, split_model
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_policy(tmp_path / "policy.onnx")


def test_the_hash_is_that_of_the_model_without_its_metadata(path: Path) -> None:
    model = onnx.load(path)
    assert [entry.key for entry in model.metadata_props] == [
        "thousandfold_golden",
        "thousandfold_sha256",
        "thousandfold",
    ]
    del model.metadata_props[:]
    assert read_model(path).graph_sha256 == hashlib.sha256(model.SerializeToString()).hexdigest()


def test_the_parts_are_those_that_onnx_reads(path: Path) -> None:
    model, parts = onnx.load(path), read_model(path)
    assert parts.metadata == {entry.key: entry.value for entry in model.metadata_props}
    assert parts.joined() == path.read_bytes()


def test_metadata_that_others_added_anywhere_does_not_count(path: Path) -> None:
    model = onnx.load(path)
    model.metadata_props.add(key="note", value="é" * 300)
    model.training_info.add()  # field 20, which follows the metadata in the file
    path.write_bytes(model.SerializeToString())
    found = read_model(path)
    assert found.metadata["note"] == "é" * 300
    del model.metadata_props[:]
    assert found.graph == model.SerializeToString()


def test_a_changed_weight_shows(path: Path) -> None:
    before, model = read_model(path).graph_sha256, onnx.load(path)
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[0, 0] = np.nextafter(weight[0, 0], np.float32(1))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "weight"))
    path.write_bytes(model.SerializeToString())
    assert read_model(path).graph_sha256 != before


def test_other_metadata_leaves_the_graph_as_it_is() -> None:
    made = graph()
    other = split_model(made.with_metadata({"a": "1", "b": "x" * 200, "": ""}).joined())
    assert other.graph == made.graph and other.metadata == {"a": "1", "b": "x" * 200, "": ""}


def test_a_file_cut_off_anywhere_is_refused_or_without_its_description(path: Path) -> None:
    whole = path.read_bytes()
    kept = 0
    for length in range(len(whole)):
        try:
            kept += "thousandfold" in split_model(whole[:length]).metadata
        except ValueError:
            continue
    assert kept == 0


@pytest.mark.parametrize(
    "content",
    [b"not a graph at all", b"\x08", b"\x0a" + b"\xff" * 10 + b"\x01", b"\x0b\x0c", b"\x72\x02\x0a\xff"],
)
def test_what_is_no_protobuf_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.onnx"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"notes\.onnx is truncated or no ONNX file: export"):
        read_model(path)


@pytest.mark.parametrize("number", [b"\x08\x96\x01", b"\x09" + b"\0" * 8, b"\x0d" + b"\0" * 4])
def test_numbers_of_every_width_belong_to_the_graph(number: bytes) -> None:
    assert split_model(number + ModelBytes(b"", {"key": "text"}).joined()) == ModelBytes(
        number, {"key": "text"}
    )


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(DamagedFileError, match=r"empty\.onnx is empty: export"):
        read_model(tmp_path / "empty.onnx")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.onnx", tmp_path):
        with pytest.raises(DamagedFileError, match="is missing"):
            read_model(path)


# -- hashes ----------------------------------------------------------------------------------------


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
    assert model.metadata[POLICY_HASH_KEY] == model.policy_sha256 == hash_by_onnx(path)


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
    texts = {key: text for key, text in model.metadata.items() if key != POLICY_HASH_KEY}
    path.write_bytes(model.with_metadata(texts).joined())
    with pytest.raises(DamagedFileError, match=f"it has no {POLICY_HASH_KEY}"):
        OnnxPolicy(path)


def test_a_missing_text_counts_as_empty() -> None:
    description = json.dumps(metadata())
    bare = ModelBytes(b"graph", {"thousandfold": description})
    assert bare.policy_sha256 == bare.sealed(description, "").policy_sha256
    assert bare.policy_sha256 != bare.sealed(description, json.dumps(golden())).policy_sha256
