"""A deployable policy as one ONNX graph, built node by node: dynamic batch, all weights inside.

A small network spends its time between nodes, so there are few: inputs are joined and clipped, the
normalisers live in the first Dense layer, and the map to actuators is one product. A layer is written as
Gemm, LayerNormalization, Sigmoid, Mul, of which ONNX Runtime makes Gemm, LayerNormalization, QuickGelu.

Dense layers between the stem and the head can be written in 8 bits: their inputs between a least and a
greatest number that the caller has seen, their kernels in 7 bits, so that no processor's 16-bit sums of two
products overflow and all give the same numbers.

Inputs that are not finite are not caught: infinity is clipped, NaN goes through. Whoever runs the policy
must refuse them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from thousandfold.models.block_stack import LAYERS_PER_BLOCK, BlockStack
from thousandfold.models.deployable_policy import DeployablePolicy, Dither, Normalizer
from thousandfold.models.goal_actor import LOG_STD_MAX, LOG_STD_MIN, GoalActor
from thousandfold.models.norm_swish import LAYER_NORM_EPS
from thousandfold.models.residual_mlp import PlainBlock

GraphPrecision = Literal["float32", "float16"]

# A protobuf message, and so an ONNX file that holds its own weights, ends at 2 GiB.
MAX_WEIGHT_BYTES = 2**31 - 2**24

# A mean inside the first bias is subtracted after the product, whose rounding grows with it: beyond so many
# standard deviations, where that takes four bits of 24, it is subtracted from the input by a node of its own.
MAX_FOLDED_MEAN = 16.0

_STEM, _HEAD, _CONTROL = "stem", "head", "control"
_STD_HEAD, _SWING = "std_head", "swing"
_LINEAR_CONTROL, _TARGET, _LAST_CONTROL = "linear_control", "target", "last_control"
_TARGET_SWING = "target_swing"
_LARGEST_INPUT, _LARGEST_WEIGHT = 255, 64
_LARGEST_BIAS = 2**30

InputRanges = Mapping[str, tuple[float, float]]
"""least and greatest input of Dense layers, by the layer's name"""

_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.int8: TensorProto.INT8,
    torch.uint8: TensorProto.UINT8,
    torch.int32: TensorProto.INT32,
}


def to_onnx(
    module: DeployablePolicy,
    opset: int,
    precision: GraphPrecision = "float32",
    input_ranges: InputRanges | None = None,
) -> onnx.ModelProto:
    """Return the graph of a policy: inputs ``observation`` and ``goal``, outputs ``action`` and ``control``.

    Args:
        module: the policy, on the CPU.
        opset: ONNX operator set.
        precision: of the layers between the stem and the head; inputs and outputs are float32 in any case.
        input_ranges: of the Dense layers to write in 8 bits; see `body_dense_inputs` for their names.

    Raises:
        ValueError: the weights do not fit into one ONNX file.
    """
    weight_bytes = sum(weight.nbytes for weight in module.parameters())
    if weight_bytes > MAX_WEIGHT_BYTES:
        raise ValueError(
            f"The network has {weight_bytes / 2**30:.1f} GiB of weights; one ONNX file holds less than 2."
        )
    graph = _Graph(torch.float16 if precision == "float16" else torch.float32, input_ranges or {})
    with torch.no_grad():
        inputs = _add_inputs(graph, module)
        action = _add_actor(graph, module, inputs)
        _add_control(graph, module, action, inputs)
    sizes = {
        "observation": len(module.observation_low),
        "goal": len(module.goal_low),
        "action": module.actor.actor.mean_head.out_features,
        "control": len(module.control_low),
    }
    signature = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in sizes.items()
    ]
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(
        helper.make_graph(graph.nodes, "policy", signature[:2], signature[2:], graph.constants),
        opset_imports=opsets,
        # The newest would shut out every runtime that is older than the onnx package here.
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="thousandfold",
    )


def body_dense_inputs(model: onnx.ModelProto) -> dict[str, str]:
    """Return, for the Dense layers between stem and head of a graph, which value each takes."""
    control = _CONTROL, _LINEAR_CONTROL, _TARGET, _TARGET_SWING, _LAST_CONTROL
    outside = (_STEM, _HEAD, _STD_HEAD, _SWING, *control)
    dense = [node for node in model.graph.node if node.op_type == "Gemm" and node.name not in outside]
    return {node.name: node.input[0] for node in dense}


class _Graph:
    """Nodes and constants of a graph that grows from its inputs on; `body` is what its middle computes in."""

    def __init__(self, body: torch.dtype, input_ranges: InputRanges) -> None:
        self.input_ranges = input_ranges
        self.dense_layers = 0
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self.body = body

    def constant(self, value: Tensor, name: str, dtype: torch.dtype = torch.float32) -> str:
        """Add a constant and return its name."""
        content = value.detach().to(dtype).contiguous().numpy().tobytes()
        self.constants.append(helper.make_tensor(name, _TYPES[dtype], value.shape, content, raw=True))
        return name

    def node(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add a node and return its output, which is called as the node is."""
        name = name or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def body_dense(self, value: str, weight: Tensor, bias: Tensor) -> str:
        """Add a Dense layer between stem and head, in 8 bits where the range of its input is known.

        The runtime makes one integer product of the latter. The input is (n − zero) · step with n in 0…255,
        the kernel n · step with n in −64…64, the bias whole multiples of both steps' product, as in Jacob et
        al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
        arXiv 1712.05877.
        """
        name = f"dense_{self.dense_layers}"
        self.dense_layers += 1
        if name not in self.input_ranges:
            return self.dense(value, weight, bias, name, self.body)
        low, high = self.input_ranges[name]
        low, high = min(low, 0.0), max(high, 0.0)  # zero must be one of the 256
        step = torch.tensor((high - low) / _LARGEST_INPUT or 1.0)
        zero = torch.round(-low / step).clamp(0, _LARGEST_INPUT)
        # The second keeps the bias within its 32 bits.
        largest, offset = weight.abs().max() / _LARGEST_WEIGHT, bias.abs().max() / _LARGEST_BIAS / step
        kernel_step = torch.maximum(largest, offset) if largest + offset > 0 else torch.ones(())
        input_scale = [
            self.constant(step, f"{name}.input_step"),
            self.constant(zero, f"{name}.input_zero", torch.uint8),
        ]
        quantized = self.node("QuantizeLinear", value, *input_scale)
        kernel = self.integers(weight, kernel_step, f"{name}.weight", torch.int8)
        offsets = self.integers(bias, step * kernel_step, f"{name}.bias", torch.int32)
        inputs = self.node("DequantizeLinear", quantized, *input_scale)
        return self.node("Gemm", inputs, kernel, offsets, name=name, transB=1)

    def integers(self, value: Tensor, step: Tensor, name: str, dtype: torch.dtype) -> str:
        """Add a constant as whole multiples of a step, and the node that multiplies them out."""
        multiples = torch.round(value.double() / step.double())
        parts = [
            self.constant(multiples, name, dtype),
            self.constant(step, f"{name}_step"),
            # Without this one, which means the same, ONNX Runtime makes no integer product of it.
            self.constant(torch.zeros(()), f"{name}_zero", dtype),
        ]
        return self.node("DequantizeLinear", *parts)

    def dense(self, value: str, weight: Tensor, bias: Tensor, name: str, dtype: torch.dtype) -> str:
        """Add value · weightᵀ + bias."""
        kernel = self.constant(weight, f"{name}.weight", dtype)
        offset = self.constant(bias, f"{name}.bias", dtype)
        return self.node("Gemm", value, kernel, offset, name=name, transB=1)

    def between(self, value: str, low: Tensor, high: Tensor, name: str, last: str | None = None) -> str:
        """Add min(max(value, low), high); its last node may be called `last`."""
        least, most = self.constant(low, f"{name}_low"), self.constant(high, f"{name}_high")
        return self.node("Min", self.node("Max", value, least), most, name=last)

    def layer_norm(self, value: str, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> str:
        """Add a LayerNorm over the last axis."""
        scale = self.constant(weight, f"{value}.norm_weight", dtype)
        offset = self.constant(bias, f"{value}.norm_bias", dtype)
        return self.node("LayerNormalization", value, scale, offset, epsilon=eps)

    def swish(self, value: str) -> str:
        """Add value · sigmoid(value)."""
        return self.node("Mul", value, self.node("Sigmoid", value))

    def add_branch(self, hidden: str, branch: str, factor: Tensor) -> str:
        """Add hidden + factor · branch."""
        if factor != 1.0:
            branch = self.node("Mul", branch, self.constant(factor, f"{branch}.factor", self.body))
        return self.node("Add", hidden, branch)

    def cast(self, value: str, given: torch.dtype, wanted: torch.dtype) -> str:
        """Add a conversion to another precision, where it is another."""
        return value if given == wanted else self.node("Cast", value, to=_TYPES[wanted])

    def module(self, value: str, module: nn.Module, dtype: torch.dtype | None = None) -> str:
        """Add the layers of a module in `dtype`, by default the body's.

        Raises:
            TypeError: no network here has such a layer.
        """
        dtype = dtype or self.body
        match module:
            case nn.Identity():
                return value
            case nn.Sequential():
                for child in module:
                    value = self.module(value, child, dtype)
                return value
            case nn.Linear():
                return self.body_dense(value, module.weight, module.bias)
            case nn.LayerNorm():
                return self.layer_norm(value, module.weight, module.bias, module.eps, dtype)
            case nn.SiLU():
                return self.swish(value)
            case nn.ReLU():
                return self.node("Relu", value)
            case PlainBlock():
                gain = torch.ones(()) if module.gain is None else module.gain
                return self.add_branch(value, self.module(value, module.layers), module.scale * gain)
            case BlockStack():
                return self.block_stack(value, module)
        raise TypeError(f"{type(module).__name__} has no ONNX form here")

    def block_stack(self, value: str, stack: BlockStack) -> str:
        """Add every block of a stack."""
        for block, gain in enumerate(torch.ones(stack.num_blocks) if stack.gain is None else stack.gain):
            branch = value
            for index in range(block * LAYERS_PER_BLOCK, (block + 1) * LAYERS_PER_BLOCK):
                branch = self.body_dense(branch, stack.weight[index], stack.bias[index])
                norm_weight, norm_bias = stack.norm_weight[index], stack.norm_bias[index]
                branch = self.layer_norm(branch, norm_weight, norm_bias, LAYER_NORM_EPS, self.body)
                branch = self.swish(branch)
            value = self.add_branch(value, branch, stack.scale * gain)
        return value


def _add_inputs(graph: _Graph, module: DeployablePolicy) -> str:
    """Add what joins the inputs and clips them to their limits; return its name."""
    value = graph.node("Concat", "observation", "goal", axis=1)
    low = torch.cat([module.observation_low, module.goal_low])
    high = torch.cat([module.observation_high, module.goal_high])
    return graph.between(value, low, high, "input")


def _add_actor(graph: _Graph, module: DeployablePolicy, inputs: str) -> str:
    """Add everything from the clipped inputs to ``action``; return its name."""
    value = inputs
    actor, trunk = module.actor.actor, module.actor.actor.trunk
    stem = cast(nn.Sequential, trunk.stem)
    normalizers = module.actor.observation_normalizer, module.actor.goal_normalizer
    shift, weight, bias = fold_normalizers(*normalizers, cast(nn.Linear, stem[0]))
    if shift.any():
        value = graph.node("Sub", value, graph.constant(shift, "input_mean"))
    value = graph.dense(value, weight, bias, _STEM, torch.float32)
    value = graph.module(value, stem[1:], torch.float32)
    value = graph.cast(value, torch.float32, graph.body)
    value = graph.module(graph.module(value, trunk.body), trunk.final_norm)
    hidden = graph.cast(value, graph.body, torch.float32)
    head = actor.mean_head
    value = graph.dense(hidden, head.weight, head.bias, _HEAD, torch.float32)
    if (dither := module.actor.dither) is not None:
        value = graph.node("Add", value, _add_swing(graph, actor, dither, hidden, inputs))
    return graph.node("Tanh", value, name="action")


def _add_swing(graph: _Graph, actor: GoalActor, dither: Dither, hidden: str, inputs: str) -> str:
    """Add what the clock adds to the mean, as `Dither` has it; return its name.

    The logarithm of the standard deviation is as in `GoalActor`.
    """
    half = 0.5 * (LOG_STD_MAX - LOG_STD_MIN)
    head = actor.log_std_head
    bounded = graph.node("Tanh", graph.dense(hidden, head.weight, head.bias, _STD_HEAD, torch.float32))
    scaled = graph.node("Mul", bounded, graph.constant(torch.tensor(half), "log_std_scale"))
    log_std = graph.node("Add", scaled, graph.constant(torch.tensor(LOG_STD_MIN + half), "log_std_middle"))
    stem = cast(nn.Linear, cast(nn.Sequential, actor.trunk.stem)[0])
    weight = torch.zeros(len(dither.weight), stem.in_features)
    weight[:, dither.clock] = dither.weight
    swing = graph.dense(inputs, weight, torch.zeros(len(weight)), _SWING, torch.float32)
    return graph.node("Mul", graph.node("Exp", log_std), swing)


def fold_normalizers(
    observation: Normalizer, goal: Normalizer, stem: nn.Linear
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what makes the first Dense layer normalise its inputs: kernel · (inputs − shift) + bias.

    Returns:
        shift, (inputs,): the means beyond `MAX_FOLDED_MEAN` standard deviations, 0 for the others; kernel
        and bias, in float64.
    """
    mean = torch.cat([observation.mean, goal.mean]).double()
    std = torch.cat([observation.std, goal.std]).double()
    weight = stem.weight.double() / std
    shift = torch.where(mean.abs() > MAX_FOLDED_MEAN * std, mean, 0.0)
    return shift, weight, stem.bias.double() - weight @ (mean - shift)


def _add_control(graph: _Graph, module: DeployablePolicy, action: str, inputs: str) -> None:
    """Add the map to actuators, and where what is sent follows its target slowly, how it does."""
    law = module.moderated
    if law is None:
        ends = module.control_low, module.control_high
        low, high = (end.double() for end in ends)
        _add_targets(graph, module, action, (low + high) / 2, (high - low) / 2, _CONTROL)
        return
    value = _add_targets(graph, module, action, law.base.double(), law.slope.double(), _TARGET)
    least, most = module.control_ends
    sizes = len(module.observation_low) + len(module.goal_low)
    if len(law.clocks):
        weight = torch.zeros(len(least), sizes)
        weight[:, law.clocks] = law.swing.T
        swung = graph.dense(inputs, weight, torch.zeros(len(least)), _TARGET_SWING, torch.float32)
        value = graph.node("Add", value, swung)
    if law.stateful.any():
        chosen = nn.functional.one_hot(law.last, sizes) * law.stateful[:, None]
        held = graph.dense(inputs, chosen.float(), torch.zeros(len(least)), _LAST_CONTROL, torch.float32)
        low, high = (torch.where(law.stateful, end, 0.0) for end in (least, most))
        held = graph.between(held, low, high, "held")
        if law.carry.any():
            value = graph.node("Add", value, graph.node("Mul", held, graph.constant(law.carry, "carry")))
        value = graph.node("Sub", value, held)
        if (law.gain < 1).any():
            value = graph.node("Mul", value, graph.constant(law.gain, "gain"))
        if law.step.isfinite().any():
            step = law.step.clamp(max=torch.finfo(torch.float32).max)
            value = graph.between(value, -step, step, "step")
        value = graph.node("Add", held, value)
    graph.between(value, least, most, _CONTROL, last=_CONTROL)


def _add_targets(
    graph: _Graph, module: DeployablePolicy, action: str, base: Tensor, slope: Tensor, name: str
) -> str:
    """Add base + slope · action: one product with a row for each actuator, and one more where some switch."""
    actuators, actions = len(base), module.actor.actor.mean_head.out_features
    columns = torch.arange(actuators) if module.columns is None else module.columns
    switched = torch.zeros(actuators, dtype=torch.bool) if module.switched is None else module.switched
    taken = nn.functional.one_hot(columns, actions).double()
    linear = taken * torch.where(switched, 0.0, slope)[:, None]
    offset = torch.where(switched, base - slope, base)
    if not switched.any():
        return graph.dense(action, linear, offset, name, torch.float32)
    value = graph.dense(action, linear, offset, _LINEAR_CONTROL, torch.float32)
    zero = graph.constant(torch.zeros(()), "zero")
    positive = graph.cast(graph.node("Greater", action, zero), torch.bool, torch.float32)
    step = graph.constant(taken * torch.where(switched, 2 * slope, 0.0)[:, None], "switch.weight")
    return graph.node("Gemm", positive, step, value, name=name, transB=1)
