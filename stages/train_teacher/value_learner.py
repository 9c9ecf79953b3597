"""The learner with a critic of temporal differences: soft actor-critic with hindsight goals.

Everything else is the contrastive learner's: actor, entropy temperature, normalisers, replay and optimisers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.models.block_stack import Compute
from thousandfold.models.contrastive_critic import actor_loss, alpha_loss
from thousandfold.models.goal_actor import sample_action
from thousandfold.models.tensor_state import copy_of, strip_prefix
from thousandfold.models.value_critic import ValueCritic, temporal_difference_loss
from thousandfold.pipeline.distributed import Ranks
from thousandfold.replay.trajectory_buffer import TransitionBatch
from thousandfold.stages.train_teacher.learner import ContrastiveLearner, saturated_share
from thousandfold.stages.train_teacher.settings import LearnerSettings

TARGET_STEP = 0.005
"""the share of the way to the critic that its slow copy goes at every update, as published"""
OTHER_GOALS = 5
"""one row in so many teaches the critic about another row's goal"""


class ValueLearner(ContrastiveLearner):
    """Actor, a critic of two value networks with a slow copy, entropy temperature and their optimisers."""

    critic: ValueCritic
    curve_metrics: ClassVar[tuple[str, ...]] = ("value", "value_error")

    def __init__(
        self, task: CompiledTask, settings: LearnerSettings, device: str, ranks: Ranks | None = None
    ) -> None:
        super().__init__(task, settings, device, ranks)
        self._is_success = task.is_success
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)

    def _make_critic(self, dims: tuple[int, int, int], compute: Compute) -> ValueCritic:
        return ValueCritic(*dims, self.settings.critic_shape, compute)

    def loss(self, batch: TransitionBatch, order: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the actor's, the critic's and α's loss, and metrics.

        A step that ends within the success region of its goal is worth 1, any other 0, and nothing is worth
        anything after an early end: beside the entropy, Q is the discounted time at the goal.

        Args:
            batch: transitions with hindsight goals, and what followed them.
            order: which goal of the batch the actor is given with each state, (batch,). The critic learns
                from the hindsight goals, but for a fifth of the rows, which get another row's: as many as
                have the commanded goal beside four of the future (arXiv 1707.01495).
            noise: standard normal, (batch, 2 · action_dim): of the action here and of that at the next step.
        """
        assert batch.next_observation is not None and batch.next_achieved_goal is not None
        assert batch.ended_early is not None
        here, there = noise.chunk(2, dim=-1)
        others = len(batch.goal) // OTHER_GOALS
        learned = torch.cat([batch.goal[:others].roll(1, 0), batch.goal[others:]])
        commanded = batch.goal[order]
        goal, wanted = (
            self._critic_goal(learned, batch.achieved_goal),
            self._critic_goal(commanded, batch.achieved_goal),
        )
        alpha = self.log_alpha.detach().exp()
        observation = self.observation_normalizer(batch.observation)
        with torch.no_grad():
            reward = self._is_success(batch.next_achieved_goal, learned).float()
            following = self.observation_normalizer(batch.next_observation)
            next_gaussian = self.actor(following, self.goal_normalizer(learned))
            next_action, next_log_prob = sample_action(next_gaussian, there)
            next_goal = self._critic_goal(learned, batch.next_achieved_goal)
            next_value = self.target_critic(following, next_action, next_goal).amin(0) - alpha * next_log_prob
            target = reward + self.settings.discount * next_value * ~batch.ended_early
        gaussian = self.actor(observation, self.goal_normalizer(commanded))
        action, log_prob = sample_action(gaussian, here)
        proposed, taken = self.critic.of_both_actions(observation, (action, wanted), (batch.action, goal))
        for_actor, metrics = actor_loss(proposed.amin(0), log_prob, alpha)
        for_alpha = alpha_loss(self.log_alpha, log_prob, self.target_entropy)
        for_critic, error = temporal_difference_loss(taken, target)
        metrics |= error | {
            "reward": reward.mean(),
            "actor_loss": for_actor.detach(),
            "critic_loss": for_critic.detach(),
            "alpha": alpha,
            "saturated_actions": saturated_share(gaussian.mean),
        }
        return for_actor + for_alpha + for_critic, metrics

    def _draw_noise(self, batch: TransitionBatch, generator: torch.Generator) -> Tensor:
        rows, actions = batch.action.shape
        return self._noise(torch.Size((rows, 2 * actions)), generator)

    @torch.no_grad()
    def _step(self) -> dict[str, Tensor]:
        norms = super()._step()
        slow: list[Tensor] = list(self.target_critic.parameters())
        torch._foreach_lerp_(slow, list(self.critic.parameters()), TARGET_STEP)  # pyright: ignore[reportPrivateImportUsage]
        return norms

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the contrastive learner does, and the slow copy of the critic."""
        return super().state_dict() | copy_of({"target_critic": self.target_critic})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self.target_critic.load_state_dict(strip_prefix(state, "target_critic."))
