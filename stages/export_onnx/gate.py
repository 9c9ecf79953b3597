"""Does an exported policy do what its network does? Compared on states, and in the same episodes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.ground.errors import UserError
from thousandfold.models.deployable_policy import DeployablePolicy, InputLimits
from thousandfold.models.onnx_graph import fold_normalizers
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import seed_sequence
from thousandfold.replay.goal_dataset import load_goal_dataset
from thousandfold.stages.episodes import (
    LEAST_CHANCE,
    Episodes,
    Policy,
    chance_of_difference,
    run_episodes,
)
from thousandfold.stages.networks import TrainedActor, torch_policy
from thousandfold.stages.policy_file.golden import (
    LARGEST_FLOAT32_TOLERANCE,
    largest_tolerance,
    rounding_growth,
)
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy

_EPISODE_STREAM, _STATE_STREAM, _DATASET_STREAM = 51, 52, 53
_ROUNDING_MARGIN, _ROUNDING_CAP = 3.0, 10.0
_RARE, _RARE_MARGIN = 0.01, 2.0
_STATES_BEYOND_LIMITS = 32
_SINGLE_STEPS = 2 * _STATES_BEYOND_LIMITS
_RARE_STEPS = 2  # of so few steps, chance alone makes one in a hundred two
SWITCH_MARGIN = 1e-4  # an action this near to 0 may come out on the other side of it


@dataclass(frozen=True)
class GateStates:
    """States to compare on, (n, observation_dim) and (n, goal_dim) float32, and how many come from where."""

    observation: np.ndarray
    goal: np.ndarray
    counts: Mapping[str, int]

    def limits(self) -> InputLimits:
        """Return the limits of a policy that is checked on these states."""
        return InputLimits.around(*self.tensors())

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return observations and goals for torch."""
        return torch.from_numpy(self.observation), torch.from_numpy(self.goal)

    def rows(self, chosen: np.ndarray | slice) -> GateStates:
        """Return some of the states."""
        return GateStates(self.observation[chosen], self.goal[chosen], self.counts)

    def followed_by(self, other: GateStates) -> GateStates:
        """Return the states with those of another after them."""
        observation, goal = (self.observation, other.observation), (self.goal, other.goal)
        return GateStates(np.concatenate(observation), np.concatenate(goal), {**self.counts, **other.counts})


class ActionError(NamedTuple):
    """How far ONNX Runtime is from torch: the absolute difference of an action, or a control's share."""

    largest: float
    allowed: float


def roll_out(
    trained: TrainedActor, *, episodes: int, num_states: int, seed: int, device: str
) -> tuple[Episodes, GateStates]:
    """Let torch act in closed loop; return the outcome, and at most `num_states` that it passed through.

    The network is on the CPU afterwards; `compare_closed_loop` runs the same episodes.
    """
    act = torch_policy(trained.actor.to(device), device)
    rng = np.random.default_rng(seed_sequence(seed, _STATE_STREAM))
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    # A few worlds of every step, so that the states spread over the whole episode.
    per_step = math.ceil(num_states / trained.task.spec.episode_steps)

    def policy(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        chosen = rng.choice(len(observation), min(per_step, len(observation)), replace=False)
        seen.append((observation[chosen], goal[chosen]))
        return act(observation, goal)

    outcome = act_in_same_episodes(policy, trained.task, episodes=episodes, seed=seed)
    trained.actor.to("cpu")
    observation, goal = (np.concatenate(part) for part in zip(*seen, strict=True))
    chosen = rng.permutation(len(observation))[:num_states]
    return outcome, GateStates(observation[chosen], goal[chosen], {"closed_loop": len(chosen)})


def add_dataset_states(
    states: GateStates, dataset: Artifact, task: CompiledTask, *, num_states: int, seed: int
) -> GateStates:
    """Return the states with `num_states` of a dataset beside them, or all of a smaller one.

    Raises:
        UserError: the dataset is damaged or of another version of the task.
    """
    dataset.verify()
    rows = load_goal_dataset(dataset.path)
    seen = rows.seen_by_student if task.is_student_view else rows.observation
    if (seen.shape[1], rows.desired_goal.shape[1]) != (task.observation_dim, task.goal_dim):
        raise UserError(f"{dataset.path} is of another version of task {task.name!r}: sizes differ.")
    rng = np.random.default_rng(seed_sequence(seed, _DATASET_STREAM))
    chosen = rng.permutation(len(seen))[:num_states]
    counts = {"dataset": len(chosen)}
    return states.followed_by(GateStates(seen[chosen], rows.desired_goal[chosen], counts))


def compare_actions(
    policy: OnnxPolicy, module: DeployablePolicy, states: GateStates, *, depth: int, max_action_error: float
) -> ActionError:
    """Compare both outputs of ONNX Runtime with torch's, as a batch and step by step.

    Allowed is `max_action_error` up to depth 16, and √(depth / 16) times that beyond. A network with large
    outputs before the tanh is steeper still: where its own `rounding_error` is as large, three times that is
    allowed. And a LayerNorm over numbers that are nearly the same makes more of the last bits in a state now
    and then: where no more than one state in a hundred is off by more, twice the largest difference is
    allowed. But never more than ten times what the depth allows, nor more than golden rows may be off by.

    Raises:
        UserError: they differ by more.
    """
    states = _with_states_beyond_limits(states, module)
    with torch.no_grad():
        expected = module(*states.tensors())
    bound = torch.maximum(module.control_low.abs(), module.control_high.abs()).numpy()
    bound[bound == 0] = 1.0  # held at 0

    def off(action: np.ndarray, control: np.ndarray) -> np.ndarray:
        """Return the largest difference from torch of each of the first states, (n,); NaN where either is."""
        rows = slice(len(action))
        share = np.abs((control - expected.control.numpy()[rows]) / bound)
        share[at_a_switch(module, expected.action)[rows]] = 0.0
        return np.maximum(np.abs(action - expected.action.numpy()[rows]).max(1), share.max(1))

    batch = off(*policy.run(states.observation, states.goal))
    pairs = zip(states.observation[:_SINGLE_STEPS], states.goal[:_SINGLE_STEPS], strict=True)
    action, control = zip(*(policy.step(*pair) for pair in pairs), strict=True)
    steps = off(np.stack(action), np.stack(control))
    largest = float(np.max([batch.max(), steps.max()]))
    allowed = max_action_error * rounding_growth(depth)
    if not largest <= allowed:  # NaN is not
        explained = _ROUNDING_MARGIN * rounding_error(module, states, expected.action)
        if (batch > allowed).mean() <= _RARE and (steps > allowed).sum() <= _RARE_STEPS:
            explained = max(explained, _RARE_MARGIN * largest)
        most = min(_ROUNDING_CAP * allowed, largest_tolerance("float32", depth))
        allowed = min(max(allowed, explained), most)
    if not largest <= allowed:
        remedy = (
            "ONNX Runtime computes it wrongly: try another version of onnxruntime, or another --set opset=."
        )
        if largest <= largest_tolerance("float32", depth):
            setting = min(1.05 * largest / rounding_growth(depth), LARGEST_FLOAT32_TOLERANCE)
            remedy = f"Where that is little enough for the robot: --set max_action_error={setting:.2g}."
        raise UserError(
            f"The exported file differs from the network by {largest:.2g} in an action, more than the "
            f"{allowed:.2g} that rounding explains: it was not kept. {remedy}"
        )
    return ActionError(largest, allowed)


def beyond_limits(states: GateStates, module: DeployablePolicy) -> GateStates:
    """Return the states with every other number beyond its limits, above and below in turns."""
    moved = []
    for rows, low, high in (
        (states.observation, module.observation_low.numpy(), module.observation_high.numpy()),
        (states.goal, module.goal_low.numpy(), module.goal_high.numpy()),
    ):
        place, width = np.add.outer(np.arange(len(rows)), np.arange(rows.shape[1])), high - low
        outside = np.where(place % 4 == 0, high + width, low - width)
        moved.append(np.where(place % 2 == 0, outside, rows).astype(np.float32))
    return GateStates(moved[0], moved[1], states.counts)


def _with_states_beyond_limits(states: GateStates, module: DeployablePolicy) -> GateStates:
    """Return the states with a few more in front, of which every other number is beyond its limits."""
    return beyond_limits(states.rows(slice(0, _STATES_BEYOND_LIMITS)), module).followed_by(states)


@torch.no_grad()
def largest_action_error(policy: OnnxPolicy, module: DeployablePolicy, states: GateStates) -> float:
    """Return the largest difference of an action from torch's, within the limits and beyond; NaN for NaN."""
    states = _with_states_beyond_limits(states, module)
    expected = module(*states.tensors()).action
    return float(np.abs(policy.run(states.observation, states.goal).action - expected.numpy()).max())


def at_a_switch(module: DeployablePolicy, action: Tensor, margin: float = SWITCH_MARGIN) -> np.ndarray:
    """Return where an action that is off by `margin` turns a switch over, (states, num_actuators) bool."""
    taken = action if module.columns is None else action[:, module.columns]
    near = taken.abs() < margin
    return (near & module.switched if module.switched is not None else torch.zeros_like(near)).numpy()


@torch.no_grad()
def rounding_error(module: DeployablePolicy, states: GateStates, single: Tensor) -> float:
    """Return how far float32 actions at the states are off float64 ones, at most.

    Those are torch's own, `single`, and torch's with the normalisers inside the first Dense layer, where the
    graph has them: it subtracts a mean of many standard deviations after the product, which rounds more.
    """
    stem = cast(nn.Linear, cast(nn.Sequential, module.actor.actor.trunk.stem)[0])
    normalizers = module.actor.observation_normalizer, module.actor.goal_normalizer
    shift, weight, bias = fold_normalizers(*normalizers, stem)
    numbers = {"actor.actor.trunk.stem.0.weight": weight, "actor.actor.trunk.stem.0.bias": bias}
    means = shift.split([len(normalizer.mean) for normalizer in normalizers])
    for name, mean in zip(("observation", "goal"), means, strict=True):
        numbers[f"actor.{name}_normalizer.mean"] = mean
        numbers[f"actor.{name}_normalizer.std"] = torch.ones_like(mean)
    observation, goal = states.tensors()
    folded = functional_call(
        module, {name: value.float() for name, value in numbers.items()}, (observation, goal)
    ).action
    exact = module.double()(observation.double(), goal.double()).action
    module.float()  # every weight was float32 before, and is the same again
    return float(torch.maximum((single - exact).abs(), (folded - exact).abs()).max())


def compare_closed_loop(
    policy: Policy, task: CompiledTask, reference: Episodes, *, seed: int, max_difference: float
) -> Episodes:
    """Let a policy act in the episodes that torch acted in, as `roll_out` returned them; return its outcome.

    Raises:
        UserError: the success differs by more, and chance does not explain it.
    """
    outcome = act_in_same_episodes(policy, task, episodes=len(reference.success), seed=seed)
    ours, theirs = float(outcome.success.mean()), float(reference.success.mean())
    chance = chance_of_difference(outcome.success, reference.success)
    if abs(ours - theirs) > max_difference and chance < LEAST_CHANCE:
        raise UserError(
            f"The exported file reaches {ours:.3f} of the goals where torch reaches {theirs:.3f}, over the "
            f"same {len(outcome.success)} episodes (by chance in {chance:.1g} of all cases): it was not "
            "kept. Compare over more episodes with --set closed_loop_episodes=, or allow a larger difference "
            "with --set max_success_difference=."
        )
    return outcome


def act_in_same_episodes(policy: Policy, task: CompiledTask, *, episodes: int, seed: int) -> Episodes:
    """Return the outcome of a policy; equal numbers of episodes and seeds give the same episodes."""
    return run_episodes(task, policy, episodes=episodes, seed=seed_sequence(seed, _EPISODE_STREAM))
