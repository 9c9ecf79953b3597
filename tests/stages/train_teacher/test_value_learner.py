"""Soft actor-critic with hindsight goals: an update written out, and a training that goes through."""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from tests.models.plain_blocks import unroll_blocks
from thousandfold.envs.registry import compile_task
from thousandfold.models.goal_actor import sample_action
from thousandfold.replay.trajectory_buffer import TransitionBatch
from thousandfold.stages.train_teacher.settings import LearnerSettings, TrainTeacherSettings
from thousandfold.stages.train_teacher.training import TeacherTraining
from thousandfold.stages.train_teacher.value_learner import TARGET_STEP, ValueLearner

TASK = compile_task("point_u_maze")
SMALL: dict[str, Any] = {"depth": 4, "width": 16, "batch_size": 8, "critic": "temporal_difference"}


def make_learner(**settings: Any) -> ValueLearner:
    return ValueLearner(TASK, LearnerSettings(**(SMALL | settings)), "cpu")


def make_batch() -> TransitionBatch:
    generator = torch.Generator().manual_seed(0)
    observation, following = (torch.randn(8, 4, generator=generator) for _ in range(2))
    action, goal = torch.randn(8, 2, generator=generator).tanh(), torch.randn(8, 2, generator=generator)
    # Half of the steps end where they were to.
    reached = torch.where(torch.arange(8)[:, None] < 4, goal, goal + 10.0)
    achieved = torch.randn(8, 2, generator=generator)
    return TransitionBatch(
        observation,
        action,
        goal,
        achieved,
        next_observation=following,
        next_achieved_goal=reached,
        ended_early=torch.arange(8) % 4 == 0,
    )


@pytest.mark.parametrize("critic_goals", ["absolute", "relative"])
def test_update_is_soft_actor_critic_written_out(critic_goals: str) -> None:
    learner = make_learner(actor_goals="hindsight", discount=0.9, critic_goals=critic_goals)
    parts = learner.actor, learner.critic, learner.target_critic
    actor, critic, slow = (unroll_blocks(copy.deepcopy(part)) for part in parts)
    log_alpha = learner.log_alpha.detach().clone().requires_grad_()
    batch = make_batch()
    noise = torch.randn(8, 4, generator=torch.Generator().manual_seed(5))
    for _ in range(3):
        metrics = learner.update(batch, torch.Generator().manual_seed(5))
    assert metrics["reward"].item() == 0.5

    here, there = batch.goal, batch.goal
    if critic_goals == "relative":
        assert batch.achieved_goal is not None and batch.next_achieved_goal is not None
        here, there = batch.goal - batch.achieved_goal, batch.goal - batch.next_achieved_goal
    learned = {"actor": actor.parameters(), "alpha": [log_alpha], "critic": critic.parameters()}
    optimizers = {name: torch.optim.Adam(parameters, lr=3e-4) for name, parameters in learned.items()}
    for _ in range(3):
        alpha = log_alpha.exp().detach()
        with torch.no_grad():
            action, log_prob = sample_action(actor(batch.next_observation, batch.goal), noise[:, 2:])
            following = torch.minimum(*slow(batch.next_observation, action, there)) - alpha * log_prob
            target = (torch.arange(8) < 4).float() + 0.9 * following * (torch.arange(8) % 4 != 0)
        action, log_prob = sample_action(actor(batch.observation, batch.goal), noise[:, :2])
        worth = torch.minimum(*critic(batch.observation, action, here))
        values = critic(batch.observation, batch.action, here)
        losses = {
            "actor": (alpha * log_prob - worth).mean(),
            "alpha": log_alpha.exp() * (-log_prob.detach() + 0.5 * 2).mean(),
            "critic": sum(0.5 * (value - target).square().mean() for value in values),
        }
        for name, loss in losses.items():
            for parameter, gradient in zip(
                optimizers[name].param_groups[0]["params"],
                torch.autograd.grad(loss, optimizers[name].param_groups[0]["params"], retain_graph=True),
                strict=True,
            ):
                parameter.grad = gradient
        for optimizer in optimizers.values():
            optimizer.step()
        with torch.no_grad():
            for behind, ahead in zip(slow.parameters(), critic.parameters(), strict=True):
                behind.lerp_(ahead, TARGET_STEP)
    for ours, reference in zip(parts, (actor, critic, slow), strict=True):
        for a, b in zip(unroll_blocks(ours).parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(learner.log_alpha, log_alpha)


@pytest.mark.parametrize("actor_goals", ["hindsight", "random", "mixed"])
def test_the_critic_learns_from_hindsight_but_for_a_fifth(actor_goals: str) -> None:
    batch = replace(make_batch(), next_achieved_goal=make_batch().goal, ended_early=torch.zeros(8).bool())
    columns = {field.name: getattr(batch, field.name) for field in fields(batch)}
    batch = TransitionBatch(**{k: torch.cat([v] * 5) for k, v in columns.items() if v is not None})
    apart = torch.arange(40.0)[:, None].expand(40, 2)  # every row's goal is its own
    batch = replace(batch, goal=apart, next_achieved_goal=apart)
    metrics = make_learner(actor_goals=actor_goals).update(batch, torch.Generator().manual_seed(1))
    assert metrics["reward"].item() == pytest.approx(0.8)


def test_it_goes_on_from_its_state_bit_for_bit() -> None:
    whole, batch = make_learner(average_decay=0.9), make_batch()
    whole.update(batch, torch.Generator().manual_seed(1))
    state = whole.state_dict()
    resumed = make_learner(average_decay=0.9, seed=3)
    resumed.load_state_dict(state)
    for learner in (whole, resumed):
        learner.update(batch, torch.Generator().manual_seed(2))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_training_draws_what_followed_each_step() -> None:
    settings = TrainTeacherSettings(**SMALL, num_worlds=4, unroll_steps=60, min_rows_per_world=50)
    training = TeacherTraining(settings, TASK, "cpu")
    training.collect()
    batch = next(iter(training.relabel()))
    assert batch.next_observation is not None and batch.next_achieved_goal is not None
    # The goal is the place, which moves by less than a step's length.
    assert torch.equal(batch.next_achieved_goal, batch.next_observation[:, :2])
    moved = (batch.next_observation[:, :2] - batch.observation[:, :2]).norm(dim=1)
    assert 0 < moved.max() < 0.5
    training.update(batch)
    assert {"value", "value_error", "first_value_gradient_norm"} <= training.take_metrics().keys()


@pytest.mark.parametrize("change", [{"energy": "dot"}, {"info_nce": "symmetric"}, {"global_negatives": True}])
def test_what_only_the_contrastive_critic_reads_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="discount 1 leaves"):
        LearnerSettings(**SMALL, discount=1)
    with pytest.raises(ValueError, match=f"{next(iter(change))} .* is for critic=contrastive alone"):
        LearnerSettings(**SMALL, **change)
