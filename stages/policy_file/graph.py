"""What the graph of a policy file may compute: what `export-onnx` writes, and no more than its size tells.

A policy may come from anywhere, and its hash is no signature. ONNX Runtime runs whatever a graph says: a loop
without end, or a few bytes that ask for terabytes, some of it as soon as a session is made. So the graph is
read here first, without the onnx package, and anything else is refused.

Message and field numbers: onnx.proto of ONNX (https://github.com/onnx/onnx).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn

from thousandfold.ground.errors import DamagedFileError
from thousandfold.stages.policy_file.onnx_bytes import EXPORT_AGAIN, MAX_FIELDS, ModelBytes, fields, varint

Shape = tuple[int, ...]

_BROADCAST = frozenset({"Add", "Sub", "Mul", "Max", "Min", "Greater"})
_LIKE_FIRST = frozenset(
    {
        "Cast",
        "Clip",
        "Exp",
        "Sigmoid",
        "Tanh",
        "Relu",
        "LayerNormalization",
        "QuantizeLinear",
        "DequantizeLinear",
    }
)
OPERATORS = frozenset({"Concat", "Gemm"}) | _BROADCAST | _LIKE_FIRST
"""What `thousandfold.models.onnx_graph` writes for float32, float16 and int8, and Clip."""

_OWN_DOMAINS = frozenset({"", "ai.onnx"})
_NUMBER_TYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 10: "float16"}
_LISTS = ("floats", "ints", "longs", "raw")  # of a tensor's parts, those that may hold its numbers
_LARGEST_RANK = 2
_WORK_PER_NUMBER, _FREE_WORK = 16, 2**20

# Field numbers that a policy's messages may have.
_MODEL_PARTS = {
    1: "ir_version", 2: "producer", 3: "version", 4: "domain", 5: "model_version", 6: "text", 7: "graph",
    8: "opset_import",
}  # fmt: skip
_GRAPH_PARTS = {
    1: "node", 2: "name", 5: "initializer", 10: "text", 11: "input", 12: "output", 13: "value_info",
    16: "metadata",
}  # fmt: skip
_NODE_PARTS = {
    1: "input", 2: "output", 3: "name", 4: "op_type", 5: "attribute", 6: "text", 7: "domain", 9: "metadata",
}  # fmt: skip
_ATTRIBUTE_PARTS = {
    1: "name", 2: "float", 3: "int", 4: "text", 7: "floats", 8: "ints", 13: "text", 20: "type",
}  # fmt: skip
_TENSOR_PARTS = {
    1: "dims", 2: "type", 4: "floats", 5: "ints", 7: "longs", 8: "name", 9: "raw", 12: "text",
    14: "location", 16: "metadata",
}  # fmt: skip


@dataclass
class Node:
    """One operator of the graph, with its attributes; one that is no number counts as 0."""

    operator: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: dict[str, float] = field(default_factory=dict)


class Constant(NamedTuple):
    """Numbers that a graph holds."""

    shape: Shape
    kind: str
    """such as `float32`"""
    content: list[memoryview]
    """the numbers as the file has them, one after the other, of little end first"""


@dataclass
class PolicyGraph:
    """What a policy file computes.

    Attributes:
        nodes: in the order in which they are computed.
        constants: by name.
        shapes: of inputs, constants and results by name, with one row of inputs.
    """

    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Constant] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)


class _Unknown(ValueError):
    """Something that no policy file has; says what."""


def require_known_graph(model: ModelBytes, path: Path) -> PolicyGraph:
    """Return what a file computes, if it does so as `export-onnx` writes it; call it before a session.

    Refused are other operators than `OPERATORS`, graphs within graphs, functions, other domains, weights in
    other files, tensors that say that they are larger than what is there, and graphs that compute much more
    than their weights account for.

    Raises:
        DamagedFileError: it computes otherwise.
    """
    reader, graphs, found = _Reader(), [], PolicyGraph()
    try:
        for part, payload in reader.parts(memoryview(model.graph), _MODEL_PARTS, "a part of the model"):
            if part == "graph":
                graphs.append(payload)
            elif part == "opset_import":
                for domain in reader.within(payload, 1):
                    if _text(domain) not in _OWN_DOMAINS:
                        raise _Unknown(f"operators of the domain {_quoted(_text(domain))}")
        if len(graphs) != 1:
            raise _Unknown(f"{len(graphs)} graphs")
        for part, payload in reader.parts(graphs[0], _GRAPH_PARTS, "a part"):
            if part == "node":
                found.nodes.append(reader.node(payload))
            elif part == "initializer":
                name, constant = reader.constant(payload)
                found.constants[name], found.shapes[name] = constant, constant.shape
            elif part in ("input", "output"):
                name, shape = reader.port(payload)
                if part == "input":
                    found.shapes[name] = shape
        _require_bounded_work(found)
    except _Unknown as error:
        raise DamagedFileError(
            f"{path} is no policy that this version writes: its graph has {error}. Take it from its maker "
            f"anew, or {EXPORT_AGAIN}."
        ) from None
    except ValueError:  # no protobuf within
        raise DamagedFileError(f"{path} is truncated or no ONNX file: {EXPORT_AGAIN}.") from None
    return found


class _Reader:
    """Reads the messages of one file, so many fields of them all."""

    _count = 0

    def counted(self, message: memoryview) -> Iterator[tuple[int, memoryview]]:
        """Yield number and payload of the fields of a message; raise _Unknown where a file has too many."""
        for number, payload, _ in fields(message):
            self._count += 1
            if self._count > MAX_FIELDS:
                raise _Unknown(f"more than {MAX_FIELDS:,} parts")
            yield number, payload

    def parts(
        self, message: memoryview, known: Mapping[int, str], what: str
    ) -> Iterator[tuple[str, memoryview]]:
        """Yield name and payload of the fields of a message; raise _Unknown for one that is not known."""
        for number, payload in self.counted(message):
            if number not in known:
                raise _Unknown(f"{what} that no policy has (field {number})")
            yield known[number], payload

    def within(self, message: memoryview, *path: int) -> Iterator[memoryview]:
        """Yield the payloads that a path of field numbers leads to."""
        first, *rest = path
        for number, payload in self.counted(message):
            if number == first:
                yield from self.within(payload, *rest) if rest else (payload,)

    def node(self, message: memoryview) -> Node:
        """Return a node without anything but an operator of a policy."""
        node, attributes = Node(), []
        for part, payload in self.parts(message, _NODE_PARTS, "a part of a node"):
            if part == "domain" and _text(payload) not in _OWN_DOMAINS:
                raise _Unknown(f"an operator of the domain {_quoted(_text(payload))}")
            if part == "op_type":
                node.operator = _text(payload)
                if node.operator not in OPERATORS:
                    raise _Unknown(f"the operator {_quoted(node.operator)}")
            elif part == "input":
                node.inputs.append(_text(payload))
            elif part == "output":
                node.outputs.append(_text(payload))
            elif part == "attribute":
                attributes.append(payload)
        for attribute in attributes:
            name, number = "", 0.0
            for part, payload in self.parts(attribute, _ATTRIBUTE_PARTS, "an attribute of a node"):
                if part == "name":
                    name = _text(payload)
                elif part == "int":
                    number = varint(payload, 0)[0]
                    number -= 2**64 if number >= 2**63 else 0
                elif part == "float" and len(payload) == 4:
                    (number,) = struct.unpack("<f", payload)
            node.attributes[name] = number
        return node

    def constant(self, message: memoryview) -> tuple[str, Constant]:
        """Return name and content of an initializer whose numbers are in the file."""
        name, shape, kind, content = "", [], 0, []
        for part, payload in self.parts(message, _TENSOR_PARTS, "weights with a part"):
            if part == "name":
                name = _text(payload)
            elif part == "dims":
                at = 0  # one number, or several in a row
                while at < len(payload) and len(shape) <= _LARGEST_RANK:
                    size, at = varint(payload, at)
                    shape.append(size)
            elif part == "type":
                kind = varint(payload, 0)[0]
            elif part in _LISTS:
                content.append(payload)
            elif part == "location" and varint(payload, 0)[0]:
                raise _Unknown("weights in another file")
        if len(shape) > _LARGEST_RANK:
            raise _Unknown(f"weights of more than {_LARGEST_RANK} dimensions")
        if kind not in _NUMBER_TYPES:
            raise _Unknown(f"weights of type {kind}")
        if math.prod(shape) > len(message):  # a number takes a byte at least
            said = " x ".join(map(str, shape))
            raise _Unknown(f"weights that say that they are {said}, which are not there")
        return name, Constant(tuple(shape), _NUMBER_TYPES[kind], content)

    def port(self, message: memoryview) -> tuple[str, Shape]:
        """Return name and shape of an input or output, with one row where the batch may have any size."""
        shape = []
        for dim in self.within(message, 2, 1, 2, 1):
            for name in self.within(dim, 2):
                _text(name)  # such as `batch`; the session hands it out as text
            shape.append(max([varint(size, 0)[0] for size in self.within(dim, 1)], default=1))
        return "".join(_text(name) for name in self.within(message, 1)), tuple(shape[:8])


def _require_bounded_work(graph: PolicyGraph) -> None:
    """Raise _Unknown where one row of inputs takes many more products and results than there are constants.

    `graph` has the shapes of inputs and constants; those of results are added.
    """
    shapes, constants = graph.shapes, sum(math.prod(each.shape) for each in graph.constants.values())
    work, most = 0, _WORK_PER_NUMBER * constants + _FREE_WORK
    for node in graph.nodes:
        taken = []
        for name in node.inputs:
            if not name:  # ONNX Runtime reads what is not there, and dies
                raise _Unknown(f"a node {node.operator} that leaves an input out")
            if name not in shapes:
                raise _Unknown(
                    f"a node {node.operator} that takes {_quoted(name)}, which no node before it gives"
                )
            taken.append(shapes[name])
        if not taken or len(node.outputs) != 1:
            raise _Unknown(f"a node {node.operator or 'without an operator'} with other inputs and outputs")
        shape = _shape_of(node, taken)
        shapes[node.outputs[0]] = shape
        work += math.prod(shape) + (math.prod(taken[1]) if node.operator == "Gemm" else 0)
        if work > most:
            raise _Unknown(f"much more to compute than its {constants:,} weights account for")


def _shape_of(node: Node, taken: list[Shape]) -> Shape:
    """Return the shape of a node's result, with one row of inputs."""

    def refuse() -> NoReturn:
        raise _Unknown(f"a node {node.operator} whose inputs do not fit together")

    if node.operator in _BROADCAST:
        rank = max(map(len, taken))
        columns = zip(*((1,) * (rank - len(shape)) + shape for shape in taken), strict=True)
        widths = [set(sizes) - {1} for sizes in columns]
        if any(len(sizes) > 1 for sizes in widths):
            refuse()
        return tuple(next(iter(sizes), 1) for sizes in widths)
    if node.operator == "Gemm":
        if len(taken) < 2 or len(taken[0]) != 2 or len(taken[1]) != 2 or node.attributes.get("transA"):
            refuse()
        (rows, inner), weight = taken[0], taken[1]
        own, columns = reversed(weight) if node.attributes.get("transB") else weight
        if own != inner:
            refuse()
        return rows, columns
    if node.operator == "Concat":
        if any(len(shape) != 2 for shape in taken) or node.attributes.get("axis") not in (1, -1):
            refuse()
        return taken[0][0], sum(columns for _, columns in taken)
    return taken[0]


def _text(payload: memoryview) -> str:
    return bytes(payload).decode()


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")
