"""The outer layer of an ONNX file: its parts, its hash, and what is no such file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.stages.policy_file.handmade_policy import graph, write_policy
from thousandfold.ground.errors import DamagedFileError
from thousandfold.stages.policy_file.onnx_bytes import ModelBytes, graph_sha256, read_model, split_model


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
    assert graph_sha256(path) == hashlib.sha256(model.SerializeToString()).hexdigest()


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
    before, model = graph_sha256(path), onnx.load(path)
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[0, 0] = np.nextafter(weight[0, 0], np.float32(1))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "weight"))
    path.write_bytes(model.SerializeToString())
    assert graph_sha256(path) != before


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
        graph_sha256(path)


@pytest.mark.parametrize("number", [b"\x08\x96\x01", b"\x09" + b"\0" * 8, b"\x0d" + b"\0" * 4])
def test_numbers_of_every_width_belong_to_the_graph(number: bytes) -> None:
    assert split_model(number + ModelBytes(b"", {"key": "text"}).joined()) == ModelBytes(
        number, {"key": "text"}
    )


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(DamagedFileError, match=r"empty\.onnx is empty: export"):
        graph_sha256(tmp_path / "empty.onnx")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.onnx", tmp_path):
        with pytest.raises(DamagedFileError, match="is missing"):
            graph_sha256(path)
