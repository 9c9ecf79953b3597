"""The exported graph: the module's numbers for any batch, shape and map of controls, in few nodes."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from thousandfold.models import onnx_graph
from thousandfold.models.deployable_policy import DeployablePolicy, InputLimits, NormalizedActor
from thousandfold.models.goal_actor import GoalActor
from thousandfold.models.onnx_graph import body_dense_inputs, fold_normalizers, to_onnx
from thousandfold.models.residual_mlp import NetworkShape

OBSERVATION, GOAL, ACTION = 4, 3, 2
SHAPE = NetworkShape(4, 8)
LOW, HIGH = torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 5.0])


def draw_states(mean: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        5 * torch.randn(200, OBSERVATION, generator=generator) + mean,
        torch.randn(200, GOAL, generator=generator),
    )


def make_module(shape: NetworkShape = SHAPE, mean: float = 3.0) -> DeployablePolicy:
    """Return a policy with fitted normalisers; gains and LayerNorms are not left at their start."""
    torch.manual_seed(0)
    actor = NormalizedActor.around(GoalActor(OBSERVATION, GOAL, ACTION, shape), OBSERVATION, GOAL)
    with torch.no_grad():
        for name, parameter in actor.named_parameters():
            if "norm" in name or "gain" in name or "bias" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    observation, goal = draw_states(mean)
    actor.observation_normalizer.fit(observation)
    actor.goal_normalizer.fit(goal)
    return DeployablePolicy(actor, InputLimits.around(observation, goal), LOW, HIGH).eval()


def open_graph(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def largest_difference(
    module: DeployablePolicy, model: onnx.ModelProto, states: tuple[Tensor, Tensor]
) -> float:
    """Return how far the graph is off the module, in action or control, as a batch and one by one."""
    session, found = open_graph(model), []
    with torch.no_grad():
        expected = [output.numpy() for output in module(*states)]
    for rows in (slice(None), slice(0, 1), slice(7, 8)):
        feeds = {"observation": states[0][rows].numpy(), "goal": states[1][rows].numpy()}
        outputs = [np.asarray(output) for output in session.run(["action", "control"], feeds)]
        found += [np.abs(ours - theirs[rows]).max() for ours, theirs in zip(outputs, expected, strict=True)]
    return float(np.max(found))


def beyond(states: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return states most of which lie outside their limits."""
    return 30 * states[0], 30 * states[1]


SHAPES = {
    "residual": SHAPE,
    "deep": NetworkShape(64, 16),
    "scaled": NetworkShape(16, 8, residual_scale="inverse_sqrt_blocks"),
    "learned": NetworkShape(16, 8, residual_scale="learned_from_zero"),
    "final norm": NetworkShape(8, 8, final_norm=True),
    "relu": NetworkShape(8, 8, activation="relu", residual_scale="learned_from_zero"),
    "relu, plain, no norm": NetworkShape(3, 8, kind="plain", layer_norm=False, activation="relu"),
    "no norm": NetworkShape(8, 8, layer_norm=False, residual_scale="inverse_sqrt_blocks"),
    "no norm, learned": NetworkShape(8, 8, layer_norm=False, residual_scale="learned_from_zero"),
    "plain": NetworkShape(6, 8, kind="plain"),
    "plain, one layer": NetworkShape(1, 8, kind="plain"),
    "plain, no norm, final norm": NetworkShape(3, 8, kind="plain", layer_norm=False, final_norm=True),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_the_graph_is_the_module(shape: NetworkShape):
    module = make_module(shape)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    model = to_onnx(module, opset=20)
    allowed = 1e-5 * math.sqrt(max(1.0, shape.depth / 16))
    assert largest_difference(module, model, draw_states()) <= allowed
    assert largest_difference(module, model, beyond(draw_states())) <= allowed
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("opset", [18, 19, 20, 21])
def test_every_opset_gives_the_same_numbers(opset: int):
    module = make_module()
    model = to_onnx(module, opset)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert model.ir_version == {18: 8, 19: 9, 20: 9, 21: 10}[opset]
    assert largest_difference(module, model, draw_states()) <= 1e-5


def test_the_interface_is_named_and_open_in_the_batch():
    session = open_graph(to_onnx(make_module(), opset=20))
    found = [(node.name, node.shape, node.type) for node in (*session.get_inputs(), *session.get_outputs())]
    sizes = {"observation": OBSERVATION, "goal": GOAL, "action": ACTION, "control": 2}
    assert found == [(name, ["batch", size], "tensor(float)") for name, size in sizes.items()]


def test_the_runtime_makes_three_nodes_of_a_layer(tmp_path: Path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    content = to_onnx(make_module(), opset=20).SerializeToString()
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    layers = 5  # the stem and four of a block
    assert Counter(node.op_type for node in nodes) == {
        "Concat": 1, "Max": 1, "Min": 1, "Gemm": layers + 1, "LayerNormalization": layers,
        "QuickGelu": layers, "Add": 1, "FusedGemm": 1,
    }  # fmt: skip


# -- inputs -----------------------------------------------------------------------------------------


def run_one(model: onnx.ModelProto, observation: list[float], goal: list[float]) -> np.ndarray:
    feeds = {"observation": np.array([observation], np.float32), "goal": np.array([goal], np.float32)}
    return np.asarray(open_graph(model).run(["action"], feeds)[0])[0]


def test_inputs_are_clipped_and_nan_is_not_hidden():
    module = make_module()
    model, goal = to_onnx(module, opset=20), [0.0, 0.0, 0.0]
    at_limit = module.observation_high.tolist()
    far, infinite, unknown = (list(at_limit) for _ in range(3))
    far[1], infinite[1], unknown[1] = 1e9, math.inf, math.nan
    np.testing.assert_array_equal(run_one(model, far, goal), run_one(model, at_limit, goal))
    np.testing.assert_array_equal(run_one(model, infinite, goal), run_one(model, at_limit, goal))
    assert np.isnan(run_one(model, unknown, goal)).all()


@pytest.mark.parametrize(("mean", "folded"), [(0.0, True), (60.0, True), (1e4, False)])
def test_a_mean_far_from_zero_is_subtracted_before_the_product(mean: float, folded: bool):
    states = draw_states(mean)
    module = make_module(mean=mean)
    model = to_onnx(module, opset=20)
    assert folded == all(node.op_type != "Sub" for node in model.graph.node)
    assert largest_difference(module, model, states) <= 1e-5


def test_folding_every_mean_would_lose_what_the_bound_keeps(monkeypatch: pytest.MonkeyPatch):
    module, states = make_module(mean=1e4), draw_states(1e4)
    monkeypatch.setattr(onnx_graph, "MAX_FOLDED_MEAN", math.inf)
    assert largest_difference(module, to_onnx(module, opset=20), states) > 3e-5


def test_only_the_means_beyond_the_bound_are_shifted():
    module = make_module()
    normalizer = module.actor.observation_normalizer
    normalizer.mean.copy_(torch.tensor([1.0, -17.0, 15.0, 1e6]))
    normalizer.std.copy_(torch.tensor([1e-3, 1.0, 1.0, 1e5]))
    stem = cast(nn.Sequential, module.actor.actor.trunk.stem)[0]
    assert isinstance(stem, nn.Linear)
    shift, weight, bias = fold_normalizers(normalizer, module.actor.goal_normalizer, stem)
    assert shift.tolist() == [1.0, -17.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    observation, goal = (part.double() for part in draw_states())
    module.double()
    normalized = torch.cat([normalizer(observation), module.actor.goal_normalizer(goal)], 1)
    inputs = torch.cat([observation, goal], 1)
    torch.testing.assert_close((inputs - shift) @ weight.T + bias, stem(normalized))


# -- controls ---------------------------------------------------------------------------------------


def with_controls(
    low: list[float], high: list[float], columns: list[int], switched: list[bool] | None = None
) -> DeployablePolicy:
    module = make_module()
    limits = InputLimits(*(getattr(module, name) for name in InputLimits._fields))
    switches = None if switched is None else torch.tensor(switched)
    ranges = torch.tensor(low), torch.tensor(high)
    return DeployablePolicy(module.actor, limits, *ranges, torch.tensor(columns), switches).eval()


@pytest.mark.parametrize(
    ("module", "operators"),
    [
        (with_controls([-1.0, 0.0, -3.0], [1.0, 5.0, 3.0], [1, 0, 1]), ["Gemm"]),
        (with_controls([-1.0, 0.7, 0.0], [1.0, 0.7, 2.0], [0, 0, 1]), ["Gemm"]),  # the second is held
        (
            with_controls([-1.0, 0.7, 0.0], [1.0, 0.7, 255.0], [0, 0, 1], [False, False, True]),
            ["Gemm", "Greater", "Cast", "Gemm"],
        ),
        (
            with_controls([0.0, -1.0], [255.0, 1.0], [1, 0], [True, True]),
            ["Gemm", "Greater", "Cast", "Gemm"],
        ),
        # A gripper that closes at actions above 0, and a joint that runs backwards.
        (
            with_controls([0.08, 1.0], [0.0, -1.0], [1, 0], [True, False]),
            ["Gemm", "Greater", "Cast", "Gemm"],
        ),
    ],
    ids=["reordered", "held", "one switch", "switches alone", "backwards"],
)
def test_controls_follow_columns_held_actuators_and_switches(module: DeployablePolicy, operators: list[str]):
    model, states = to_onnx(module, opset=20), draw_states()
    operators_after_tanh = [node.op_type for node in model.graph.node]
    assert operators_after_tanh[operators_after_tanh.index("Tanh") + 1 :] == operators
    with torch.no_grad():
        action, control = module(*states)
    assert (action > 0).any() and (action < 0).any() and action.abs().min() > 1e-5  # no switch is in doubt
    bound = torch.maximum(module.control_low.abs(), module.control_high.abs()).numpy()
    feeds = {"observation": states[0].numpy(), "goal": states[1].numpy()}
    found = np.asarray(open_graph(model).run(["control"], feeds)[0])
    assert np.abs((found - control.numpy()) / bound).max() <= 1e-5


@pytest.mark.parametrize("switches", [None, [True, True]])
@pytest.mark.parametrize("ends", [([-0.1, 0.0], [0.3, 5.0]), ([0.3, 0.08], [-0.1, 0.0])])
def test_saturated_actions_end_at_the_actuator_range(
    ends: tuple[list[float], list[float]], switches: list[bool] | None
):
    module = with_controls(*ends, [0, 1], switches)
    for bias, end in ((100.0, module.control_high), (-100.0, module.control_low)):
        nn.init.constant_(module.actor.actor.mean_head.bias, bias)
        feeds = {"observation": np.zeros((1, 4), np.float32), "goal": np.zeros((1, 3), np.float32)}
        for graph in (to_onnx(module, opset=20), to_onnx(module, 20, "float16"), in_eight_bits(module)):
            control = np.asarray(open_graph(graph).run(["control"], feeds)[0])[0]
            np.testing.assert_allclose(control, end.numpy(), rtol=1e-6, atol=1e-8)


# -- precision and size -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [SHAPE, SHAPES["learned"], SHAPES["plain"]])
def test_in_float16_the_layers_between_stem_and_head_are_half_as_large(shape: NetworkShape):
    module = make_module(shape)
    single, half = to_onnx(module, opset=20), to_onnx(module, 20, "float16")
    types = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    outside = {name for name, kind in types.items() if kind == onnx.TensorProto.FLOAT}
    assert outside == {
        "input_low", "input_high", "stem.weight", "stem.bias", "stem.norm_weight", "stem.norm_bias",
        "head.weight", "head.bias", "control.weight", "control.bias",
    }  # fmt: skip
    sizes = {tensor.name: len(tensor.raw_data) for tensor in single.graph.initializer}
    assert all(
        len(tensor.raw_data) == sizes[tensor.name] // (1 if tensor.name in outside else 2)
        for tensor in half.graph.initializer
        if tensor.name in sizes
    )
    assert 1e-6 < largest_difference(module, half, draw_states()) < 2e-2


def in_eight_bits(module: DeployablePolicy, low: float = -1.0, high: float = 8.0) -> onnx.ModelProto:
    layers = body_dense_inputs(to_onnx(module, opset=20))
    return to_onnx(module, 20, input_ranges=dict.fromkeys(layers, (low, high)))


def test_the_layers_of_the_body_are_named_with_what_they_take():
    model = to_onnx(make_module(), opset=20)
    layers = body_dense_inputs(model)
    assert list(layers) == ["dense_0", "dense_1", "dense_2", "dense_3"]
    assert all(name in {node.output[0] for node in model.graph.node} for name in layers.values())
    switched = with_controls([0.0, 0.0], [1.0, 1.0], [0, 1], [False, True])
    assert list(body_dense_inputs(to_onnx(switched, opset=20))) == list(layers)


@pytest.mark.parametrize("opset", [18, 20])
def test_in_eight_bits_the_runtime_multiplies_integers(opset: int, tmp_path: Path):
    shape = NetworkShape(8, 32)
    module, states = make_module(shape), draw_states()
    names = body_dense_inputs(to_onnx(module, opset))
    model = to_onnx(module, opset, input_ranges=dict.fromkeys(names, (-0.5, 6.0)))
    assert 1e-4 < largest_difference(module, model, states) < 0.1
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert operators["QGemm"] == operators["QuantizeLinear"] == 8 and operators["DequantizeLinear"] == 0


def test_kernels_in_eight_bits_leave_room_for_sums_of_two_products():
    constants = {tensor.name: tensor for tensor in in_eight_bits(make_module()).graph.initializer}
    kernels = [numpy_helper.to_array(constants[f"dense_{layer}.weight"]) for layer in range(4)]
    assert all(kernel.dtype == np.int8 and np.abs(kernel.astype(int)).max() == 64 for kernel in kernels)
    assert 2 * 64 * 255 < 2**15
    assert numpy_helper.to_array(constants["dense_0.input_zero"]) == round(255 / 9)


def test_one_dense_layer_in_eight_bits_is_as_exact_as_its_steps():
    """A plain network of two layers without LayerNorm: what the body's one layer gives can be written out."""
    module = make_module(NetworkShape(2, 8, kind="plain", layer_norm=False))
    trunk, states = module.actor.actor.trunk, draw_states()
    seen: list[Tensor] = []
    layer = cast(nn.Linear, trunk.get_submodule("body.0.0"))
    layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    with torch.no_grad():
        module(*states)
    low, high = float(seen[0].min()), float(seen[0].max())
    model = in_eight_bits(module, low, high)
    model.graph.output.append(onnx.helper.make_tensor_value_info("dense_0", 1, ["batch", 8]))
    feeds = {"observation": states[0].numpy(), "goal": states[1].numpy()}
    found = np.asarray(open_graph(model).run(["dense_0"], feeds)[0])
    step, kernel_step = (high - low) / 255, float(layer.weight.detach().abs().max()) / 64
    weights, inputs = layer.weight.detach().abs().sum(1), seen[0].abs().sum(1)
    allowed = step * weights[None, :] + kernel_step / 2 * (inputs[:, None] + 8 * step) + step * kernel_step
    expected = layer(seen[0]).detach()
    assert (np.abs(found - expected.numpy()) <= allowed.numpy()).all()
    assert np.abs(found - expected.numpy()).max() > 0


def test_a_kernel_of_zeros_and_a_large_bias_survive_eight_bits():
    module = make_module(NetworkShape(2, 8, kind="plain", layer_norm=False))
    layer = cast(nn.Linear, module.actor.actor.trunk.get_submodule("body.0.0"))
    for weight, bias in ((0.0, 0.0), (0.0, 3.0), (1e-9, 3.0)):
        nn.init.constant_(layer.weight, weight)
        nn.init.constant_(layer.bias, bias)
        assert largest_difference(module, in_eight_bits(module), draw_states()) < 1e-5


def test_a_network_that_fits_into_no_file_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onnx_graph, "MAX_WEIGHT_BYTES", 1000)
    with pytest.raises(ValueError, match="GiB of weights"):
        to_onnx(make_module(), opset=20)


def test_a_layer_that_no_network_here_has_is_refused():
    module = make_module()
    module.actor.actor.trunk.body = nn.GELU()
    with pytest.raises(TypeError, match="GELU has no ONNX form"):
        to_onnx(module, opset=20)
