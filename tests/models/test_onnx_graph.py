"""The exported graph: the module's numbers for any batch, in one file, made quietly."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from models import onnx_graph
from models.deployable_policy import DeployablePolicy, InputLimits, NormalizedActor
from models.goal_actor import GoalActor
from models.onnx_graph import to_onnx
from models.residual_mlp import NetworkShape

SHAPE = NetworkShape(4, 8)
LOW, HIGH = torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 5.0])
LIMITS = InputLimits(torch.full((4,), -10.0), torch.full((4,), 14.0), -2 * torch.ones(3), 2 * torch.ones(3))


def make_module(shape: NetworkShape = SHAPE) -> DeployablePolicy:
    torch.manual_seed(0)
    actor = NormalizedActor(GoalActor(4, 3, 2, shape), 4, 3)
    actor.observation_normalizer.fit(5 * torch.randn(100, 4) + 3)
    return DeployablePolicy(actor, LIMITS, LOW, HIGH).eval()


@pytest.mark.parametrize(
    "shape",
    [SHAPE, NetworkShape(4, 8, layer_norm=False), NetworkShape(2, 8, kind="plain", layer_norm=False)],
    ids=["residual", "residual without norm", "plain without norm"],
)
def test_the_graph_is_the_module(shape: NetworkShape, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    module = make_module(shape)
    before = [weight.clone() for weight in module.state_dict().values()]
    (tmp_path / "policy.onnx").write_bytes(to_onnx(module, opset=20).SerializeToString())
    assert capfd.readouterr() == ("", "")
    assert all(map(torch.equal, before, module.state_dict().values()))
    assert os.listdir(tmp_path) == ["policy.onnx"]

    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx", providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_inputs()] == ["observation", "goal"]
    assert [node.name for node in session.get_outputs()] == ["action", "control"]
    for count in (1, 2, 33):
        observation, goal = 5 * torch.randn(count, 4) + 3, torch.randn(count, 3)
        feeds = {"observation": observation.numpy(), "goal": goal.numpy()}
        action, control = (np.asarray(output) for output in session.run(None, feeds))
        expected = module(observation, goal)
        np.testing.assert_allclose(action, expected.action.detach().numpy(), atol=1e-6)
        np.testing.assert_allclose(control, expected.control.detach().numpy(), atol=1e-5)
        low, high = LOW.numpy(), HIGH.numpy()
        np.testing.assert_allclose(control, low + (action + 1) / 2 * (high - low), atol=1e-5)

    model = onnx.load(tmp_path / "policy.onnx")
    assert shape.layer_norm == any("LayerNorm" in node.op_type for node in model.graph.node)
    assert model.opset_import[0].version == 20
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert str(Path(onnx_graph.__file__).parent).encode() not in (tmp_path / "policy.onnx").read_bytes()


def test_a_network_that_fits_into_no_file_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onnx_graph, "MAX_WEIGHT_BYTES", 1000)
    with pytest.raises(ValueError, match="GiB of weights"):
        to_onnx(make_module(), opset=20)
