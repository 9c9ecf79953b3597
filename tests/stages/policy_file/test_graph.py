"""Correctly sealed files whose graph is no policy's: refused by every command, before anything runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.end_to_end.refusals import refused
from tests.models.test_onnx_graph import make_module
from tests.stages.policy_file.handmade_policy import golden, graph, metadata, policy_artifact
from thousandfold.ground.errors import DamagedFileError
from thousandfold.models.onnx_graph import body_dense_inputs, to_onnx
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.stages.policy_file.graph import require_known_graph
from thousandfold.stages.policy_file.onnx_bytes import ModelBytes, split_model
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy


def node(operator: str, *inputs: str, to: str = "extra", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [to], **attributes)


def constant(name: str, values: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(values, name)


def endless_body() -> onnx.GraphProto:
    """Return a loop's body that always goes on."""
    inputs = [helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", 7), ("go", 9))]
    outputs = [helper.make_tensor_value_info("on", TensorProto.BOOL, [])]
    return helper.make_graph([node("Identity", "go", to="on")], "body", inputs, outputs)


def with_loop(model: onnx.ModelProto) -> None:
    """The loop has no limit and an input that says that it goes on; it needs no input of the policy."""
    model.graph.initializer.append(constant("always", np.array(True)))
    model.graph.node.insert(0, helper.make_node("Loop", ["", "always"], [], body=endless_body()))


def with_branch(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(constant("always", np.array(1, np.uint8)))
    branch = helper.make_graph([], "branch", [], [helper.make_tensor_value_info("always", 2, [])])
    model.graph.node.append(node("If", "always", then_branch=branch, else_branch=branch))


def with_a_graph_in_a_known_operator(model: onnx.ModelProto) -> None:
    model.graph.node[3].attribute.append(helper.make_attribute("body", endless_body()))


def with_a_tensor_in_a_known_operator(model: onnx.ModelProto) -> None:
    model.graph.node[3].attribute.append(
        helper.make_attribute("value", constant("v", np.ones(1, np.float32)))
    )


def with_a_function(model: onnx.ModelProto) -> None:
    opset = [helper.make_opsetid("", 20)]
    model.functions.append(
        helper.make_function("mine", "Tanh", ["x"], ["y"], [node("Sin", "x", to="y")], opset)
    )


def with_a_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def with_an_operator_of_a_domain(model: onnx.ModelProto) -> None:
    model.graph.node[3].domain = "com.microsoft"


def with_training(model: onnx.ModelProto) -> None:
    model.training_info.add()


def with_weights_elsewhere(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    tensor.ClearField("raw_data")


def with_weights_that_are_not_there(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="huge", data_type=TensorProto.FLOAT, dims=[2**20, 2**20]))


def with_weights_of_many_dimensions(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(constant("cube", np.ones((2, 2, 2), np.float32)))


def with_sparse_weights(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add(dims=[2**20, 2**20])


def with_texts(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(
        TensorProto(name="text", data_type=TensorProto.STRING, dims=[1], string_data=[b"text"])
    )


def with_another_operator(model: onnx.ModelProto) -> None:
    model.graph.node.append(node("RandomNormal", shape=[2**20, 2**20]))


def with_doubling(model: onnx.ModelProto) -> None:
    last = "state"
    for index in range(40):
        model.graph.node.append(node("Concat", last, last, to=f"twice_{index}", axis=1))
        last = f"twice_{index}"


def with_an_outer_sum(model: onnx.ModelProto) -> None:
    """Two constants of 64 kB give one of 1 GB, which ONNX Runtime computes as it makes the session."""
    row = np.ones((1, 2**14), np.float32)
    model.graph.initializer.extend([constant("row", row), constant("column", row.T)])
    model.graph.node.append(node("Add", "row", "column"))


def with_one_weight_over_and_over(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(constant("square", np.ones((256, 256), np.float32)))
    model.graph.initializer.append(constant("start", np.ones((1, 256), np.float32)))
    last = "start"
    for index in range(300):
        model.graph.node.append(node("Gemm", last, "square", to=f"step_{index}"))
        last = f"step_{index}"


def with_a_wide_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("wide", TensorProto.FLOAT, ["batch", 2**40]))
    model.graph.node.append(node("Tanh", "wide"))


def with_a_node_of_nothing(model: onnx.ModelProto) -> None:
    model.graph.node.append(node("Tanh", "absent"))


def with_an_input_left_out(model: onnx.ModelProto) -> None:
    model.graph.node.append(node("Min", "action", ""))


HOSTILE: dict[Callable[[onnx.ModelProto], None], str] = {
    with_loop: "the operator 'Loop'",
    with_branch: "the operator 'If'",
    with_a_graph_in_a_known_operator: "an attribute of a node that no policy has (field 6)",
    with_a_tensor_in_a_known_operator: "an attribute of a node that no policy has (field 5)",
    with_a_function: "a part of the model that no policy has (field 25)",
    with_training: "a part of the model that no policy has (field 20)",
    with_a_domain: "operators of the domain 'com.microsoft'",
    with_an_operator_of_a_domain: "an operator of the domain 'com.microsoft'",
    with_weights_elsewhere: "weights",
    with_weights_that_are_not_there: "1048576 x 1048576, which are not there",
    with_weights_of_many_dimensions: "more than 2 dimensions",
    with_sparse_weights: "a part that no policy has (field 15)",
    with_texts: "weights",
    with_another_operator: "the operator 'RandomNormal'",
    with_doubling: "much more to compute",
    with_an_outer_sum: "much more to compute",
    with_one_weight_over_and_over: "much more to compute",
    with_a_wide_input: "much more to compute",
    with_a_node_of_nothing: "takes 'absent', which no node before it gives",
    with_an_input_left_out: "a node Min that leaves an input out",
}


def sealed(path: Path, change: Callable[[onnx.ModelProto], None] = lambda model: None) -> Path:
    """Write the handmade policy with its graph changed, and every hash as it should be."""
    model = onnx.load_model_from_string(graph().joined())
    change(model)
    parts = split_model(model.SerializeToString())
    text = json.dumps(metadata(graph_sha256=parts.graph_sha256))
    path.write_bytes(parts.sealed(text, json.dumps(golden())).joined())
    return path


@pytest.fixture
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a session was made")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)


@pytest.mark.usefixtures("no_session")
@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: change.__name__)
def test_it_is_refused_before_there_is_a_session(
    change: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    path = sealed(tmp_path / "policy.onnx", change)
    for check_hash in (True, False):
        with pytest.raises(DamagedFileError) as told:
            OnnxPolicy(path, check_hash=check_hash)
        assert HOSTILE[change] in str(told.value) and "\n" not in str(told.value)


@pytest.mark.usefixtures("no_session")
def test_every_command_that_opens_a_file_refuses_a_loop(tmp_path: Path) -> None:
    path = str(sealed(tmp_path / "policy.onnx", with_loop))
    for command in (
        ("policy", "verify", path),
        ("policy", "inspect", path),
        ("run-policy", "--policy", path, "--fast"),
        ("benchmark", "--policy", path),
    ):
        assert "the operator 'Loop'" in refused(tmp_path / "workspace", *command), command


@pytest.mark.usefixtures("no_session")
def test_an_artifact_with_a_loop_is_neither_promoted_nor_evaluated(tmp_path: Path) -> None:
    artifact: Artifact = policy_artifact(tmp_path)
    sealed(artifact.file("policy.onnx"), with_loop)
    artifact.complete({})
    for command in ("policy promote", "evaluate --policy"):
        said = refused(tmp_path, *command.split(), artifact.name)
        assert "the operator 'Loop'" in said, command


def test_two_graphs_in_one_file_are_refused() -> None:
    """A protobuf reader would join them."""
    parts = graph()
    twice = ModelBytes(parts.graph + parts.graph, {})
    with pytest.raises(DamagedFileError, match="2 graphs"):
        require_known_graph(twice, Path("policy.onnx"))


def test_what_is_written_is_taken(tmp_path: Path) -> None:
    assert OnnxPolicy(sealed(tmp_path / "policy.onnx")).metadata.task == "point_u_maze"
    module = make_module()
    ranges = dict.fromkeys(body_dense_inputs(to_onnx(module, 20)), (-1.0, 8.0))
    for opset in (18, 21):
        for model in (
            to_onnx(module, opset),
            to_onnx(module, opset, "float16"),
            to_onnx(module, 20, "float32", ranges),
        ):
            require_known_graph(split_model(model.SerializeToString()), Path("policy.onnx"))


def with_a_bias_of_three(model: onnx.ModelProto) -> None:
    """The product has two columns: whether they fit is known when it is computed."""
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "bias")
    bias.CopyFrom(constant("bias", np.ones(3, np.float32)))


def test_what_the_runtime_cannot_compute_is_told(tmp_path: Path) -> None:
    path = sealed(tmp_path / "policy.onnx", with_a_bias_of_three)
    with pytest.raises(DamagedFileError, match="policy"):
        policy = OnnxPolicy(path)
        policy.step(np.zeros(4), np.zeros(2))


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    parts = graph()
    broken = ModelBytes(parts.graph.replace(b"batch", b"b\xe2tch"), {})
    with pytest.raises(DamagedFileError, match="truncated or no ONNX file"):
        require_known_graph(broken, Path("policy.onnx"))
