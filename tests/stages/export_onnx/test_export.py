"""What is written behind a graph: golden rows that say whether a runtime computes rightly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.stages.untrained_networks import gate_states, make_actor
from thousandfold.ground.errors import UserError
from thousandfold.models.deployable_policy import DeployablePolicy
from thousandfold.stages.export_onnx.export import golden_rows
from thousandfold.stages.export_onnx.gate import GateStates, at_a_switch


def module_with_a_switch() -> DeployablePolicy:
    """Return a policy whose second actuator knows two ends alone."""
    actor = make_actor(4, 8)
    module = DeployablePolicy(
        actor,
        gate_states().limits(),
        torch.tensor([-1.0, 0.0]),
        torch.tensor([1.0, 3.0]),
        switched=torch.tensor([False, True]),
    )
    return module.eval()


def test_golden_rows_keep_away_from_switches():
    module, states = module_with_a_switch(), gate_states()
    with torch.no_grad():
        action = module(torch.from_numpy(states.observation), torch.from_numpy(states.goal)).action
        # The first state lies on the switch now.
        module.actor.actor.mean_head.bias[1] -= torch.atanh(action[0, 1])
    rows = golden_rows(module, states)
    with torch.no_grad():
        action = module(torch.from_numpy(rows.observation), torch.from_numpy(rows.goal)).action
    assert not at_a_switch(module, action).any() and len(action) == 16
    assert not (rows.observation == states.observation[0]).all(1).any()
    assert set(rows.control[:, 1].tolist()) <= {0.0, 3.0}


def test_a_policy_that_is_always_at_a_switch_cannot_be_checked():
    module = module_with_a_switch()
    with torch.no_grad():
        module.actor.actor.mean_head.weight.zero_()
        module.actor.actor.mean_head.bias.zero_()
    with pytest.raises(UserError, match="In every state the smallest rounding error switches"):
        golden_rows(module, gate_states())


def test_few_states_are_taken_several_times():
    module, states = module_with_a_switch(), gate_states()
    few = GateStates(states.observation[:3], states.goal[:3], {"closed_loop": 3})
    rows = golden_rows(module, few)
    assert len(rows.action) == 16 and len(np.unique(rows.observation[:12], axis=0)) == 3
