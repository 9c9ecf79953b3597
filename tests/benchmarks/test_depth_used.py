"""Bypassing blocks leaves the others alone, and the contributions are those of the blocks."""

import torch

from benchmarks.depth_used import blocks_of, bypass, contributions
from thousandfold.models.goal_actor import GoalActor
from thousandfold.models.residual_mlp import NetworkShape


def make_actor(scale="learned_from_zero"):
    torch.manual_seed(0)
    actor = GoalActor(4, 2, 2, NetworkShape(16, 8, residual_scale=scale, final_norm=True))
    if (gain := blocks_of(actor).gain) is not None:
        torch.nn.init.constant_(gain, 0.5)
    return actor


def test_bypassed_blocks_pass_the_stream_unchanged():
    for scale in ("none", "inverse_sqrt_blocks", "learned_from_zero"):
        actor = make_actor(scale)
        hidden = torch.randn(5, 8)
        whole = blocks_of(actor).stream(hidden)
        part = blocks_of(bypass(actor, slice(2, None))).stream(hidden)
        assert all(torch.equal(a, b) for a, b in zip(whole[:3], part[:3], strict=True))
        assert torch.equal(part[2], part[4]) and not torch.equal(whole[2], whole[4])


def test_contributions_are_those_of_single_blocks():
    actor = make_actor()
    with torch.no_grad():
        blocks_of(actor).gain[2] = 0.0
    observation, goal = torch.randn(32, 4), torch.randn(32, 2)
    found = contributions(actor, observation, goal)
    for values in found.values():
        assert len(values) == 4
        assert values[2] == 0.0 and min(values[0], values[1], values[3]) > 1e-4
    hidden = actor.trunk.stem(torch.cat([observation, goal], -1)).detach()
    before, after = blocks_of(actor).stream(hidden)[:2]
    expected = ((after - before).norm(dim=1) / before.norm(dim=1)).mean().item()
    assert abs(found["branch_over_stream"][0] - expected) < 1e-6
