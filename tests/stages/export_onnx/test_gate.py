"""The gates of an export: how far a file may be off its network, in actions and in closed loop."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from tests.stages.policy_file.handmade_policy import write_policy
from tests.stages.untrained_networks import LIMITS, TASK, gate_states, make_actor
from thousandfold.envs.registry import compile_task
from thousandfold.ground.errors import UserError
from thousandfold.models import onnx_graph
from thousandfold.models.deployable_policy import DeployablePolicy, InputLimits
from thousandfold.models.onnx_graph import to_onnx
from thousandfold.stages.export_onnx import gate
from thousandfold.stages.export_onnx.gate import (
    act_in_same_episodes,
    compare_actions,
    compare_closed_loop,
    rounding_error,
)
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy, PolicyOutputs


class ShiftedPolicy:
    """Torch's own answers, with one action off by `shift`: of the batch, or of so many first steps."""

    def __init__(self, module: DeployablePolicy, shift: float, steps: int = 0) -> None:
        self.module, self.shift, self.in_batch, self.steps_left = module, shift, not steps, steps

    @torch.no_grad()
    def run(self, observation: np.ndarray, goal: np.ndarray) -> PolicyOutputs:
        action, control = self.module(torch.from_numpy(observation), torch.from_numpy(goal))
        action = action.numpy().copy()
        if self.in_batch:
            action[-1, -1] += self.shift
        return PolicyOutputs(action, control.numpy())

    @torch.no_grad()
    def step(self, observation: np.ndarray, goal: np.ndarray) -> PolicyOutputs:
        found = self.module(torch.from_numpy(observation[None]), torch.from_numpy(goal[None]))
        action, control = (part.numpy().copy() for part in found)
        action[0, 0] += self.shift * (self.steps_left > 0)
        self.steps_left -= 1
        return PolicyOutputs(action[0], control[0])


def compare(shift: float, depth: int, *, steps: int = 0, head: float = 1.0, usual: float = 1e-5) -> float:
    """Return what is allowed to a policy that is off by `shift`; raises UserError if that is less."""
    actor = make_actor(4, 8)
    with torch.no_grad():
        actor.actor.mean_head.weight.mul_(head)
        actor.actor.mean_head.bias.zero_()
    bounds = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 3.0])
    module = DeployablePolicy(actor, LIMITS, *bounds).eval()
    policy: Any = ShiftedPolicy(module, shift, steps)
    error = compare_actions(policy, module, gate_states(), depth=depth, max_action_error=usual)
    return error.allowed


def test_the_allowed_error_grows_with_the_root_of_the_depth():
    assert compare(0.9e-5, depth=4) == compare(0.9e-5, depth=16) == 1e-5
    assert compare(7e-5, depth=1024) == pytest.approx(8e-5)
    for depth, shift in ((16, 2e-5), (64, 3e-5), (1024, 2e-4)):
        with pytest.raises(UserError, match="that rounding explains"):
            compare(shift, depth=depth)


def test_a_rare_state_may_be_off_by_more(monkeypatch: pytest.MonkeyPatch):
    many = gate_states()
    many = dataclasses.replace(
        many, observation=np.tile(many.observation, (10, 1)), goal=np.tile(many.goal, (10, 1))
    )
    monkeypatch.setattr("tests.stages.export_onnx.test_gate.gate_states", lambda: many)
    assert compare(4e-5, depth=4) == pytest.approx(8e-5, rel=0.01)
    assert compare(9e-5, depth=4) == pytest.approx(1e-4)
    assert compare(4e-5, depth=4, steps=2) == pytest.approx(8e-5, rel=0.01)
    for shift, steps in ((1.1e-4, 0), (4e-5, 3)):
        with pytest.raises(UserError, match="that rounding explains"):
            compare(shift, depth=4, steps=steps)


def test_steps_are_compared_too_and_nan_is_no_agreement():
    with pytest.raises(UserError):
        compare(2e-5, depth=4, steps=64)
    with pytest.raises(UserError):
        compare(float("nan"), depth=4)


def test_a_steep_network_may_differ_by_what_its_own_rounding_leaves_open():
    steep = compare(1.2e-5, depth=4, head=300.0)
    assert 1.2e-5 <= steep <= 1e-4
    with pytest.raises(UserError):
        compare(1.1e-4, depth=4, head=1e5)


@pytest.mark.parametrize(("depth", "largest"), [(4, 1e-3), (1024, 8e-3)])
def test_no_more_is_allowed_than_golden_rows_may_be_off_by(
    depth: int, largest: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gate, "rounding_error", lambda *_: 1.0)
    assert compare(0.95 * largest, depth, usual=9e-4) == pytest.approx(largest)
    with pytest.raises(UserError, match="that rounding explains"):
        compare(1.05 * largest, depth, usual=9e-4)


def test_measuring_the_rounding_leaves_the_network_as_it_was():
    module = DeployablePolicy(make_actor(4, 8), LIMITS, -torch.ones(2), torch.ones(2)).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    states = gate_states()
    with torch.no_grad():
        single = module(torch.from_numpy(states.observation), torch.from_numpy(states.goal)).action
    assert 0 < rounding_error(module, states, single) < 1e-5
    after = module.state_dict()
    assert all(
        after[name].dtype == value.dtype and torch.equal(after[name], value) for name, value in before.items()
    )


def test_a_policy_that_acts_worse_is_held_back(tmp_path: Path):
    task = compile_task(TASK)

    def rest(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        return np.zeros((len(goal), 2))

    reference = act_in_same_episodes(rest, task, episodes=32, seed=0)
    policy = OnnxPolicy(write_policy(tmp_path / "policy.onnx"))
    compare_closed_loop(policy, task, reference, seed=0, max_difference=0.02)
    perfect = dataclasses.replace(reference, success=np.ones(32, bool))
    with pytest.raises(UserError, match=r"reaches 0\.\d+ .* torch reaches 1\.000, over the same 32 ") as told:
        compare_closed_loop(policy, task, perfect, seed=0, max_difference=0.02)
    assert "closed_loop_episodes=" in str(told.value) and "opset" not in str(told.value)
    compare_closed_loop(policy, task, perfect, seed=0, max_difference=1.0)
    one_more = reference.success.copy()
    one_more[np.flatnonzero(~one_more)[0]] = True
    assert one_more.mean() - reference.success.mean() > 0.02
    other = dataclasses.replace(reference, success=one_more)
    compare_closed_loop(policy, task, other, seed=0, max_difference=0.02)


def test_means_inside_the_first_layer_explain_more_rounding(monkeypatch: pytest.MonkeyPatch):
    # Far beyond what is folded in use, so that it outweighs what processors differ by.
    monkeypatch.setattr(onnx_graph, "MAX_FOLDED_MEAN", 1000.0)
    limits = InputLimits(*(torch.full((size,), limit) for size in (4, 2) for limit in (-600.0, 600.0)))
    actor = make_actor(4, 8)
    module = DeployablePolicy(actor, limits, -torch.ones(2), torch.ones(2)).eval()
    actor.observation_normalizer.std.fill_(1.0)
    actor.observation_normalizer.mean.fill_(500.0)
    states = gate_states()
    states.observation[:] += 500.0
    observation, goal = states.tensors()
    with torch.no_grad():
        single = module(observation, goal).action
        exact = module.double()(observation.double(), goal.double()).action
    module.float()
    explained, of_torch = rounding_error(module, states, single), float((single - exact).abs().max())
    assert explained > 2 * of_torch > 0
    graph = to_onnx(module, 20)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"observation": states.observation, "goal": states.goal}
    found = np.asarray(session.run(["action"], feeds)[0])
    assert np.abs(found - exact.numpy()).max() < 3 * explained


def test_what_to_do_about_a_difference_depends_on_its_size():
    with pytest.raises(UserError, match=r"--set max_action_error=0\.00021\b"):
        compare(2e-4, depth=4)
    with pytest.raises(UserError, match="another version of onnxruntime"):
        compare(0.1, depth=4)
