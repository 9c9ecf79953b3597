"""A policy file as C99: its graph node by node, its golden rows, and the runner around it.

Every node of the graph becomes one statement: a call of a function in the folder `c`, or a loop over an
expression. Nothing but the file counts, so that equal files give equal code. Names and other texts of a file
stand in string literals alone, with everything escaped that could end one.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np

from thousandfold.ground.errors import DamagedFileError, UserError
from thousandfold.stages.policy_file.golden import GoldenSet, control_bounds, parse_golden
from thousandfold.stages.policy_file.graph import Node, PolicyGraph, require_known_graph
from thousandfold.stages.policy_file.metadata import Element, InputElement, PolicyMetadata, parse_metadata
from thousandfold.stages.policy_file.onnx_bytes import EXPORT_AGAIN, GOLDEN_KEY, METADATA_KEY, ModelBytes
from thousandfold.stages.policy_file.policy_runner import RunnerPlan

HEADER, SOURCE = "policy.h", "policy.c"
C_BEGINNING = b"/* A policy in C99"
"""how both files begin"""

MOST_WEIGHTS = 2**24
"""A compiler takes a minute and a GiB for so many."""
LEAST_INT8_WEIGHTS = 256
"""A matrix of fewer saves nothing beside its scales."""

Weights = Literal["float32", "int8"]

_EXPRESSIONS: dict[str, Callable[..., str]] = {
    "Add": lambda a, b: f"{a} + {b}",
    "Sub": lambda a, b: f"{a} - {b}",
    "Mul": lambda a, b: f"{a} * {b}",
    "Greater": lambda a, b: f"{a} > {b} ? 1.0f : 0.0f",
    # NaN stays, as it does in ONNX.
    "Max": lambda a, b: f"{a} < {b} || {b} != {b} ? {b} : {a}",
    "Min": lambda a, b: f"{a} > {b} || {b} != {b} ? {b} : {a}",
    "Clip": lambda a, low, high: f"{a} < {low} ? {low} : {a} > {high} ? {high} : {a}",
    "Cast": lambda a: a,
    "Relu": lambda a: f"{a} < 0.0f ? 0.0f : {a}",
    "Exp": lambda a: f"expf({a})",
    "Tanh": lambda a: f"tanhf({a})",
}
_FUNCTIONS = ("Gemm", "GemmInt8", "LayerNormalization", "Sigmoid")  # files of the folder `c`
_FLOAT = 1  # a Cast's `to`
# What a node may say, and the only value that is known where there is one.
_ATTRIBUTES: dict[str, dict[str, float | None]] = {
    "Cast": {"to": _FLOAT},
    "Concat": {"axis": None},
    "Gemm": {"alpha": 1, "beta": 1, "transA": 0, "transB": None},
    "LayerNormalization": {"axis": -1, "epsilon": None, "stash_type": 1},
}
_DEFAULT_EPSILON = 1e-5
_TURN = 2**64  # a whole turn of a clock
_ESCAPES = {34: r"\"", 92: r"\\", 63: r"\?"}  # three ? may make a trigraph
_LINE, _LITERAL = 96, 2000  # characters; C99 promises 4,095 of a literal


def c_files(
    model: ModelBytes, path: Path, weights: Weights = "float32", own_golden: GoldenSet | None = None
) -> dict[str, str]:
    """Return the text of `policy.h` and `policy.c` by name.

    Args:
        model: the policy file, whole and with its own hashes.
        path: where it lies, for errors.
        weights: how matrices are stored. As int8, each column has a scale by which its largest weight is
            127; the first layer, the last and small matrices stay float32. All is computed in float32.
        own_golden: what the self-test compares with; None: the golden rows of the file.

    Raises:
        DamagedFileError: it is damaged, or was changed since it was exported.
        UserError: it computes something that has no C form, has more than `MOST_WEIGHTS`, or no matrix that
            int8 would make smaller.
    """
    metadata = parse_metadata(model.metadata.get(METADATA_KEY), path)
    if change := model.change_since_export(metadata.graph_sha256):
        raise DamagedFileError(
            f"{path} was changed since it was exported: {change}. Copy it anew, or {EXPORT_AGAIN}."
        )
    graph = require_known_graph(model, path)
    golden = own_golden or parse_golden(model.metadata.get(GOLDEN_KEY), metadata, path)
    plan = RunnerPlan.of(metadata)
    try:
        body = _Body(graph, metadata, "float32")
        if weights == "int8":  # of what has a C form
            body = _Body(graph, metadata, weights)
    except _NoForm as error:
        raise UserError(f"{path} has no C form: {error}. Give a float32 policy of `export-onnx`.") from None
    parts = [
        _part("head.c"),
        _texts("policy_description", model.metadata[METADATA_KEY]),
        *(
            _numbers_of(f"policy_{name}", elements)
            for name, elements in (
                ("observation", metadata.inputs.observation),
                ("goal", metadata.inputs.goal),
                ("control", metadata.outputs.control),
                ("readings", [each for each in metadata.inputs.observation if each.name in plan.readings]),
            )
        ),
        body.text(),
        _part("types.c"),
        *_runner_tables(metadata, golden, plan),
        _part("runner.c"),
    ]
    header = string.Template(_part(HEADER)).substitute(
        metadata.sizes(),
        sha256=model.policy_sha256,
        weights=weights,
        control_dt_s=repr(metadata.control_dt_s),
        readings=len(plan.readings),
        steps=plan.steps,
        clocks=len(plan.clocks),
    )
    return {HEADER: header, SOURCE: "\n".join(parts)}


def _runner_tables(metadata: PolicyMetadata, golden: GoldenSet, plan: RunnerPlan) -> list[str]:
    """Return what the runner and the self-test look up, in the types of `types.c`."""
    bounds = control_bounds(metadata)
    numbers = zip(plan.low, plan.high, plan.most, plan.gears, plan.starts, bounds, strict=True)
    actuators = [
        f"{{{', '.join(map(_bounded, facts))}, {reading}, {int(ask)}}}"
        for facts, reading, ask in zip(numbers, plan.joints, plan.asked, strict=True)
    ]
    clocks = [
        f"{{UINT64_C({_turns(metadata.control_dt_s, period)}), UINT64_C({number * _TURN // 4})}}"
        for period, number in plan.clocks
    ]
    rows = [
        "{" + ", ".join(f"{{{', '.join(map(_bounded, part))}}}" for part in row) + "}"
        for row in zip(*golden.arrays(), strict=True)
    ]
    return [
        _table("policy_actuator", "actuators", actuators),
        _table("policy_source", "sources", [f"{{{age}, {number}}}" for age, number in plan.sources]),
        *([_table("policy_clock", "clocks", clocks)] if clocks else []),
        f"#define GOLDEN_ROWS {len(rows)}",
        f"#define GOLDEN_TOLERANCE {_bounded(golden.tolerance)}\n",
        _table("golden_row", "golden_rows", rows),
    ]


class _NoForm(ValueError):
    """Something that no C code is written for; says what."""


class _Body:
    """`policy_run` of a graph, and the constants that it takes.

    Values are vectors: with one row of inputs there is nothing else. Results that are not needed any more
    give their place to others.
    """

    def __init__(self, graph: PolicyGraph, metadata: PolicyMetadata, weights: Weights) -> None:
        self._graph, self._lines = graph, list[str]()
        self._whole = self._whole_matrices() if weights == "int8" else set[str]()
        self._names = {name: name for name in ("observation", "goal")}
        self._constants = dict[tuple[bool, bytes], str]()
        self._definitions, self._used = list[str](), set[str]()
        self._taken, self._size = dict[str, tuple[int, int]](), 0
        sizes, outputs = metadata.sizes(), ("action", "control")
        last = {name: place for place, node in enumerate(graph.nodes) for name in node.inputs}
        for place, node in enumerate(graph.nodes):
            (result,) = node.outputs
            # Where a result lies is settled before its inputs are freed: none is written over another.
            self._names[result] = result if result in outputs else self._place(place, result)
            self._add(node, self._names[result])
            for name in {*node.inputs, result}:
                if last.get(name, place) == place:
                    self._taken.pop(name, None)
        for name in outputs:
            if name not in self._names or self._length(name) != sizes[name]:
                raise _NoForm(f"nothing in its graph gives {sizes[name]} numbers of {name}")

    def text(self) -> str:
        """Return constants, functions and `policy_run`."""
        functions = [_part(f"{name}.c") for name in _FUNCTIONS if name in self._used]
        lines = [f"float scratch[{max(self._size, 1)}];", *_RUN_CHECK, *self._lines, "return POLICY_OK;"]
        run = "\n".join(f"    {line}" for line in lines)
        return "\n".join([*self._definitions, *functions, f"{_RUN_HEAD}\n{{\n{run}\n}}\n"])

    def _place(self, place: int, name: str) -> str:
        """Return a pointer to room for a result, the first that is free."""
        at, size = 0, self._length(name)
        for start, end in sorted(self._taken.values()):
            if at + size <= start:
                break
            at = max(at, end)
        self._taken[name] = at, at + size
        self._size = max(self._size, at + size)
        self._lines.append(f"float *const v{place} = scratch + {at};")
        return f"v{place}"

    def _add(self, node: Node, result: str) -> None:
        """Add the statements of a node."""
        operator, length = node.operator, self._length(node.outputs[0])
        known = _ATTRIBUTES.get(operator, {})
        for name, value in node.attributes.items():
            if name not in known or known[name] not in (None, value):
                raise _NoForm(f"it has a node {operator} with {_quoted(name)} {value:g}")
        if operator == "Gemm":
            self._gemm(node, result)
        elif operator == "LayerNormalization":
            if len(node.inputs) not in (2, 3):
                raise _NoForm(f"it has a node {operator} with {len(node.inputs)} inputs")
            value, scale, *shift = node.inputs
            inputs = [self._vector(value, length), self._vector(scale, length)]
            inputs += [
                self._vector(shift[0], length) if shift else self._constant(np.zeros(length, np.float32))
            ]
            epsilon = _number(np.float32(node.attributes.get("epsilon", _DEFAULT_EPSILON)))
            self._used.add(operator)
            self._lines.append(f"layer_norm({length}, {', '.join(inputs)}, {epsilon}, {result});")
        elif operator == "Sigmoid":
            self._used.add(operator)
            self._lines.append(f"sigmoid({length}, {self._vector(node.inputs[0], length)}, {result});")
        elif operator == "Concat":
            at = 0
            for name in node.inputs:
                size = self._length(name)
                self._lines.append(f"copy({size}, {self._vector(name, size)}, {result} + {at});")
                at += size
        elif operator in _EXPRESSIONS:
            self._elementwise(node, length, result)
        else:
            raise _NoForm(f"it has the operator {operator}")

    def _gemm(self, node: Node, result: str) -> None:
        value, weight, *bias = node.inputs
        if weight not in self._graph.constants:
            raise _NoForm("it multiplies by a matrix that is no constant")
        kernel = self._array(weight)
        kernel = kernel.T if node.attributes.get("transB") else kernel
        inputs, outputs = kernel.shape
        offset = self._spread(bias[0], outputs) if bias else self._constant(np.zeros(outputs, np.float32))
        vector = self._vector(value, inputs)
        if weight in self._whole:
            scale = np.abs(kernel).max(0) / np.float32(127)
            scale = np.where(scale > 0, scale, np.float32(1))
            matrix = self._constant(np.rint(kernel / scale).astype(np.int8))
            arguments = (
                f"{inputs}, {vector}, {outputs}, {matrix}, {self._constant(scale)}, {offset}, {result}"
            )
            self._used.add("GemmInt8")
            self._lines.append(f"dense_int8({arguments});")
        else:
            arguments = f"{inputs}, {vector}, {outputs}, {self._constant(kernel)}, {offset}, {result}"
            self._used.add("Gemm")
            self._lines.append(f"dense({arguments});")

    def _whole_matrices(self) -> set[str]:
        """Return the names of the matrices that become whole numbers: of hidden layers beyond the first."""
        hidden = {
            name
            for node in self._graph.nodes
            if node.operator in ("LayerNormalization", "Sigmoid", "Relu")
            for name in node.inputs
        }
        layers = [node for node in self._graph.nodes if node.operator == "Gemm" and node.outputs[0] in hidden]
        inner = {
            weight
            for node in layers[1:]
            if math.prod(self._graph.shapes[weight := node.inputs[1]]) >= LEAST_INT8_WEIGHTS
        }
        if not inner:
            raise UserError(
                "int8 weights gain nothing here: between the first layer and the last no matrix has "
                f"{LEAST_INT8_WEIGHTS} weights. Leave out --weights int8."
            )
        return inner

    def _elementwise(self, node: Node, length: int, result: str) -> None:
        """Add a loop over an expression of the inputs, of which some have one number for all."""
        expression, operands = _EXPRESSIONS[node.operator], list[str]()
        for name in node.inputs:
            size = self._length(name)
            if size == 1 and name in self._graph.constants:
                operands.append(_number(np.float32(self._array(name).item())))
            elif size in (1, length):
                operands.append(f"{self._vector(name, size)}[{'i' if size > 1 else 0}]")
            else:
                raise _NoForm(f"it has a node {node.operator} of {size} and {length} numbers")
        if node.operator in ("Max", "Min") and len(operands) == 1:
            text = operands[0]
        else:
            wanted = expression.__code__.co_argcount
            if len(operands) != wanted:
                raise _NoForm(f"it has a node {node.operator} with {len(operands)} inputs")
            text = expression(*operands)
        self._lines.append(f"for (size_t i = 0; i < {length}; ++i) {result}[i] = {text};")

    def _length(self, name: str) -> int:
        shape = self._graph.shapes[name]
        if math.prod(shape[:-1]) != 1 or not math.prod(shape):
            raise _NoForm(f"it has {_quoted(name)}, which is no row of numbers")
        return shape[-1] if shape else 1

    def _vector(self, name: str, length: int) -> str:
        """Return a pointer to a value of so many numbers."""
        if self._length(name) != length:
            raise _NoForm(f"it has {_quoted(name)} of {self._length(name)} numbers, not {length}")
        if name in self._names:
            return self._names[name]
        if name not in self._graph.constants:
            raise _NoForm(f"it takes the input {_quoted(name)}")
        return self._constant(self._array(name))

    def _spread(self, name: str, length: int) -> str:
        """Return a pointer to so many numbers, of a constant that may have one for all."""
        if name in self._graph.constants and self._length(name) == 1:
            return self._constant(np.full(length, self._array(name).reshape(()), np.float32))
        return self._vector(name, length)

    def _array(self, name: str) -> np.ndarray:
        """Return a constant's numbers."""
        shape, kind, content = self._graph.constants[name]
        if kind != "float32":
            raise _NoForm(f"it has weights of {kind}")
        values = np.frombuffer(b"".join(content), "<f4")
        if values.size != math.prod(shape):
            raise _NoForm(f"it has {values.size} numbers of {_quoted(name)}, which says {math.prod(shape)}")
        if not np.isfinite(values).all():
            raise _NoForm("it has weights that are not finite")
        return values.reshape(shape)

    def _constant(self, values: np.ndarray) -> str:
        """Return the name of an array with these numbers, one for all that have the same."""
        whole = values.dtype == np.int8
        content = np.ascontiguousarray(values, "i1" if whole else "<f4").tobytes()
        if (whole, content) not in self._constants:
            if sum(len(known) for _, known in self._constants) + len(content) > 4 * MOST_WEIGHTS:
                raise _NoForm(f"it has more than {MOST_WEIGHTS:,} weights")
            self._constants[whole, content] = name = f"c{len(self._constants)}"
            numbers = _wrapped(map(str if whole else _number, values.ravel()))
            kind = "int8_t" if whole else "float"
            self._definitions.append(f"static const {kind} {name}[{values.size}] = {{\n{numbers}\n}};\n")
        return self._constants[whole, content]


_RUN_HEAD = "int policy_run(const float *observation, const float *goal, float *action, float *control)"
_RUN_CHECK = (
    "if (!all_finite(POLICY_OBSERVATION, observation)) return POLICY_NOT_FINITE;",
    "if (!all_finite(POLICY_GOAL, goal)) return POLICY_NOT_FINITE;",
)


def _part(name: str) -> str:
    return (resources.files("thousandfold.stages.policy_file") / "c" / name).read_text(encoding="utf-8")


def _turns(step_s: float, period_s: float) -> int:
    """Return by how much of a turn a clock moves in a step, in units of 2^-64, whole turns left out."""
    return round(Fraction(step_s) / Fraction(period_s) * _TURN) % _TURN


def _bounded(value: float | np.floating) -> str:
    """Return a number as C has it, the largest of float32 for one beyond it, infinity included."""
    largest = float(np.finfo(np.float32).max)
    return _number(np.float32(min(max(float(value), -largest), largest)))


def _number(value: np.floating) -> str:
    """Return a float32 number as C has it, with the fewest digits that bring it back."""
    return f"{np.float32(value)!s}f"


def _wrapped(words: Iterable[str]) -> str:
    """Return words with commas between them, in lines."""
    lines, length = [list[str]()], 0
    for word in words:
        if length + len(word) > _LINE:
            lines.append([])
            length = 0
        lines[-1].append(word)
        length += len(word) + 2
    return ",\n".join("    " + ", ".join(line) for line in lines)


def _table(kind: str, name: str, rows: Sequence[str]) -> str:
    lines = ",\n".join("    " + row for row in rows)
    return f"static const {kind} {name}[{len(rows)}] = {{\n{lines}\n}};\n"


def _numbers_of(name: str, elements: Iterable[Element | InputElement]) -> str:
    """Return a table of `policy_number`, ended by one without a name."""
    rows = [
        f"    {{{_literal(each.name)}, {_literal(each.unit)}, {_bounded(min(each.low, each.high))}, "
        f"{_bounded(max(each.low, each.high))}}},\n"
        for each in elements
    ]
    return f"const policy_number {name}[] = {{\n{''.join(rows)}    {{NULL, NULL, 0.0f, 0.0f}}\n}};\n"


def _texts(name: str, text: str) -> str:
    """Return an array of literals that follow one another, ended by NULL."""
    content, half = text.encode(), _LINE // 2
    literals = []
    for start in range(0, len(content), _LITERAL):
        piece = content[start : start + _LITERAL]
        literals.append(
            "\n".join("    " + _literal(piece[at : at + half]) for at in range(0, len(piece), half))
        )
    return f"const char *const {name}[] = {{\n" + ",\n\n".join([*literals, "    NULL"]) + "\n};\n"


def _literal(text: str | bytes) -> str:
    """Return a string literal of a text in UTF-8, in ASCII; no text ends it or is taken for anything else."""
    content = text.encode() if isinstance(text, str) else text
    signs = (_ESCAPES.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}") for byte in content)
    return f'"{"".join(signs)}"'


def _quoted(name: str) -> str:
    return repr(name if len(name) <= 40 else f"{name[:40]}…")
