"""The same network in torch and NumPy gives the same actions, in every form that it can have."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from thousandfold.models.deployable_policy import (
    DeployablePolicy,
    InputLimits,
    ModeratedControl,
    NormalizedActor,
)
from thousandfold.models.goal_actor import GoalActor
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.stages.benchmark.torch_runtimes import compiled_step, numpy_policy, one_thread, torch_step

OBSERVATIONS, GOALS, ACTIONS = 5, 3, 2
SHAPES: dict[str, NetworkShape] = {
    "residual": NetworkShape(8, 16),
    "scaled": NetworkShape(8, 16, residual_scale="inverse_sqrt_blocks", final_norm=True),
    "learned": NetworkShape(8, 16, residual_scale="learned_from_zero"),
    "without norms": NetworkShape(4, 16, layer_norm=False),
    "plain": NetworkShape(3, 16, kind="plain"),
    "relu": NetworkShape(8, 16, activation="relu"),
    "plain, relu, without norms": NetworkShape(3, 16, kind="plain", layer_norm=False, activation="relu"),
    "plain, one layer": NetworkShape(1, 16, kind="plain", layer_norm=False),
}


def policy(shape: NetworkShape, **actuators: Any) -> DeployablePolicy:
    """Return a policy whose every number is drawn, so that none can be left out unseen."""
    torch.manual_seed(0)
    actor = NormalizedActor.around(GoalActor(OBSERVATIONS, GOALS, ACTIONS, shape), OBSERVATIONS, GOALS)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    actor.observation_normalizer.fit(1.0 + 2.0 * torch.randn(64, OBSERVATIONS))
    actor.goal_normalizer.fit(3.0 * torch.randn(64, GOALS) - 1.0)
    low, high = torch.tensor([-2.0, 0.0, -1.0]), torch.tensor([2.0, 5.0, -1.0])
    columns = torch.tensor([1, 0, 0])
    limits = InputLimits.around(0.5 * torch.randn(4, OBSERVATIONS), 0.5 * torch.randn(4, GOALS))
    return DeployablePolicy(actor, limits, low, high, columns, **actuators).eval()


def states(count: int = 8) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    draw = rng.standard_normal
    return [(3 * draw(OBSERVATIONS, np.float32), 3 * draw(GOALS, np.float32)) for _ in range(count)]


def expected(module: DeployablePolicy, state: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    with torch.no_grad():
        return [output[0].numpy() for output in module(*(torch.from_numpy(part)[None] for part in state))]


@pytest.mark.parametrize("name", SHAPES)
def test_numpy_computes_what_torch_does(name: str):
    module = policy(SHAPES[name])
    in_numpy, in_torch = numpy_policy(module), torch_step(module)
    for state in states():
        wanted = expected(module, state)
        for outputs in (in_numpy.step(*state), in_torch(*state)):
            for found, right in zip(outputs, wanted, strict=True):
                np.testing.assert_allclose(found, right, atol=2e-6)
    assert np.std([expected(module, state)[0] for state in states()]) > 0.01  # the states make a difference


def test_switched_actuators_take_one_end():
    module = policy(SHAPES["residual"], switched=torch.tensor([False, True, False]))
    in_numpy = numpy_policy(module)
    for state in states():
        np.testing.assert_allclose(in_numpy.step(*state)[1], expected(module, state)[1], atol=1e-5)
    assert {float(in_numpy.step(*state)[1][1]) for state in states()} <= {0.0, 5.0}


def test_what_is_sent_follows_its_target():
    law = ModeratedControl(
        base=torch.tensor([0.5, 0.0, 1.0]),
        slope=torch.tensor([0.5, 0.1, 2.0]),
        swing=torch.tensor([[0.0, 0.0, 0.3], [0.0, 0.0, -0.4]]),
        carry=torch.tensor([0.0, 1.0, 0.0]),
        gain=torch.tensor([0.4, 1.0, 1.0]),
        step=torch.tensor([torch.inf, 0.1, 0.2]),
        stateful=torch.tensor([True, True, True]),
        last=torch.tensor([4, 0, 2]),
        clocks=torch.tensor([1, 3]),
    )
    module = policy(SHAPES["residual"], moderated=law)
    in_numpy = numpy_policy(module)
    for state in states():
        np.testing.assert_allclose(in_numpy.step(*state)[1], expected(module, state)[1], atol=1e-5)


def test_both_keep_to_one_thread_inside_the_block_alone():
    before = torch.get_num_threads(), [pool["num_threads"] for pool in threadpool_info()]
    with one_thread():
        assert torch.get_num_threads() == 1
        assert {pool["num_threads"] for pool in threadpool_info()} == {1}
    assert (torch.get_num_threads(), [pool["num_threads"] for pool in threadpool_info()]) == before


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")
def test_the_compiled_policy_computes_the_same(tmp_path: Path):
    module = policy(SHAPES["residual"])
    compiled = compiled_step(module, tmp_path)
    for state in states():
        for found, right in zip(compiled(*state), expected(module, state), strict=True):
            np.testing.assert_allclose(found, right, atol=1e-5)
