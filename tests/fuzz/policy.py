"""Fuzzing of policy files: `python -m tests.fuzz.policy --minutes 20`.

A case is a valid policy that was changed: in its description or golden rows, in its graph, or in its bytes,
with or without hashes that fit. Each is opened by all that opens a policy from anywhere.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from onnx import helper

from tests.fuzz.runner import damaged, main
from tests.stages.policy_file import handmade_policy
from thousandfold.stages.policy_file.onnx_bytes import ModelBytes, read_model, split_model

_OPERATORS = (
    *(
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Max",
        "Min",
        "Greater",
        "Concat",
        "Gemm",
        "Cast",
        "Clip",
        "Sigmoid",
        "Tanh",
        "Relu",
    ),
    *("LayerNormalization", "QuantizeLinear", "DequantizeLinear", "Loop", "If", "Scan", "RandomNormal"),
    *("Expand", "ConstantOfShape"),
)
_NAMES = (
    *("observation", "goal", "state", "clipped", "mean", "action", "control", "weight", "bias", "one"),
    *("", "x"),
)
_CHANGES = (
    *("operator", "input", "output", "new", "attribute", "dims", "type", "value", "port", "opset"),
    "domain",
)
_SIZES = st.sampled_from([0, 1, 2, 3, 6, 2**16, 2**31, 2**40, 2**63 - 1, -1])

_odd: SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(
        [10**400, 10**4200, -1, 2**63, 1e308, 5e-324, -0.0, 3.5e38, "", "\x1b[31m", "a\0b", "../.."]
    ),
    st.sampled_from(
        ["x" * 5000, "point_u_maze", "float16", "int8", "\ud800", "a\nb", "\u2028", [], {}, [[]]]
    ),
    st.text(max_size=8),
    st.recursive(
        st.integers(0, 3) | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=6,
    ),
)


@functools.cache
def _seed() -> tuple[ModelBytes, dict[str, Any], dict[str, Any]]:
    return handmade_policy.graph(), handmade_policy.metadata(), handmade_policy.golden()


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value inside of a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
    return [found for key, item in items for found in [(*path, key), *_places(item, (*path, key))]]


@st.composite
def _texts(draw: st.DrawFn, whole: dict[str, Any]) -> str:
    """Draw a JSON text of which some values are others, gone, twice or more deeply nested."""
    content = copy.deepcopy(whole)
    for _ in range(draw(st.sampled_from([0, 1, 1, 2, 3]))):
        places = _places(content)
        if not places:
            break
        *way, last = draw(st.sampled_from(places))
        inside: Any = content
        for key in way:
            inside = inside[key]
        match draw(st.sampled_from(["other", "other", "gone", "twice"])):
            case "other":
                inside[last] = copy.deepcopy(draw(_odd))
            case "gone":
                del inside[last]
            case "twice" if isinstance(inside, list):
                inside.insert(last, copy.deepcopy(inside[last]))
    text = json.dumps(content)
    match draw(st.integers(0, 19)):
        case 0:
            text = text.replace(
                "0.1", draw(st.sampled_from(["1e999", "NaN", "-Infinity", "0.1.1", "1" * 9000]))
            )
        case 1:
            at, depth = draw(st.integers(0, len(text))), draw(st.sampled_from([100, 900, 100_000]))
            text = text[:at] + draw(st.sampled_from(["[", '{"a":'])) * depth + text[at:]
        case 2:
            at = draw(st.integers(0, len(text)))
            text = text[:at] + draw(st.text(max_size=8)) + text[at:]
        case _:
            pass
    return text.encode("utf-8", "replace").decode()


@st.composite
def _graphs(draw: st.DrawFn) -> ModelBytes:
    """Draw a graph with some nodes, attributes, shapes and weights changed."""
    model = onnx.load_model_from_string(_seed()[0].graph)
    for _ in range(draw(st.integers(1, 4))):
        node = draw(st.sampled_from(list(model.graph.node)))
        tensor = draw(st.sampled_from(list(model.graph.initializer)))
        names = st.sampled_from(_NAMES)
        match draw(st.sampled_from(_CHANGES)):
            case "operator":
                node.op_type = draw(st.sampled_from(_OPERATORS))
            case "input" if node.input:
                node.input[draw(st.integers(0, len(node.input) - 1))] = draw(names)
            case "output":
                node.output[0] = draw(names)
            case "new":
                inputs = draw(st.lists(names, max_size=3))
                made = helper.make_node(draw(st.sampled_from(_OPERATORS)), inputs, [draw(names)])
                model.graph.node.insert(draw(st.integers(0, 7)), made)
            case "attribute":
                name = draw(
                    st.sampled_from(["axis", "transA", "transB", "to", "epsilon", "alpha", "saturate", "x"])
                )
                value = draw(
                    st.integers(-3, 20) | st.floats(width=32) | st.lists(st.integers(0, 3), min_size=1)
                )
                node.attribute.append(helper.make_attribute(name, value))
            case "dims":
                del tensor.dims[:]
                tensor.dims.extend(draw(st.lists(_SIZES, max_size=3)))
            case "type":
                tensor.data_type = draw(st.integers(0, 24))
            case "value":
                tensor.raw_data = draw(damaged(st.just(tensor.raw_data)))
            case "port":
                port = draw(st.sampled_from([*model.graph.input, *model.graph.output]))
                port.type.tensor_type.elem_type = draw(st.integers(0, 20))
                for dim in port.type.tensor_type.shape.dim:
                    dim.dim_value = draw(_SIZES)
            case "opset":
                model.opset_import[0].version = draw(st.sampled_from([1, 9, 13, 18, 21, 99, -1, 2**40]))
            case "domain":
                node.domain = draw(st.sampled_from(["", "ai.onnx", "ai.onnx.ml", "com.microsoft", "x"]))
    return split_model(model.SerializeToString())


@st.composite
def cases(draw: st.DrawFn) -> bytes:
    """Draw the bytes of a changed policy file."""
    graph, description, golden = _seed()
    changed = draw(st.sampled_from(["description", "description", "golden", "graph", "graph bytes", "file"]))
    if changed == "graph":
        graph = draw(_graphs())
    elif changed == "graph bytes":
        with contextlib.suppress(ValueError):
            graph = split_model(draw(damaged(st.just(graph.graph))))
    description = description | {"graph_sha256": graph.graph_sha256}
    texts = [json.dumps(description), json.dumps(golden)]
    if changed == "description":
        texts[0] = draw(_texts(description))
    elif changed == "golden":
        texts[1] = draw(_texts(golden))
    whole = graph.sealed(*texts)
    if draw(st.integers(0, 9)) == 0:
        whole = whole.with_metadata(whole.metadata | {"thousandfold_sha256": draw(st.text(max_size=70))})
    content = whole.joined()
    return draw(damaged(st.just(content))) if changed == "file" else content


def read(path: Path) -> None:
    """Open a file as inspect, verify, run-policy and the benchmark do; raise the first error of a user.

    The closed loop is left out: it takes as long as the episodes that the file names.
    """
    import numpy as np

    from thousandfold.ground.errors import UserError
    from thousandfold.pipeline.artifacts import Workspace
    from thousandfold.pipeline.console import Console
    from thousandfold.stages.benchmark.benchmark import draw_states
    from thousandfold.stages.policy_file import verification
    from thousandfold.stages.policy_file.c_code import c_files
    from thousandfold.stages.policy_file.command import show_policy
    from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy
    from thousandfold.stages.policy_file.source import find_policy, open_source

    verification._check_closed_loop = lambda *_: None
    workspace = Workspace(path.parent)
    place = find_policy(workspace, str(path))

    def step() -> None:
        policy = OnnxPolicy(path, check_hash=False)
        for state in draw_states(policy, np.random.default_rng(0))[:2]:
            policy.step(*state)

    def verify() -> None:
        for check in verification.verify_policy(place, episodes=1).checks:
            if check.passed is False:
                raise UserError(check.detail)

    readers: list[Callable[[], object]] = [
        lambda: show_policy(Console(silent=True), place),
        lambda: open_source(workspace, str(path)),
        lambda: c_files(read_model(path), path),
        verify,
        step,
    ]
    errors: list[UserError] = []
    for reader in readers:
        try:
            reader()
        except UserError as error:
            errors.append(error)
    for error in sorted(errors, key=lambda error: "\n" not in str(error)):
        raise error  # one of several lines, if any, is seen


CASES = cases()

if __name__ == "__main__":
    main("tests.fuzz.policy:read", CASES, ".onnx")
