"""The critic of temporal differences: what an action is worth for a goal, learned from the step after it.

It is what most goal-conditioned learners have: soft actor-critic (Haarnoja et al., arXiv 1812.05905) with
goals relabelled in hindsight (Andrychowicz et al., arXiv 1707.01495). It stands here to be compared with the
contrastive critic on the same networks and the same simulator.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thousandfold.models.block_stack import Compute
from thousandfold.models.contrastive_critic import Encoder, Metrics
from thousandfold.models.residual_mlp import NetworkShape


class ValueCritic(nn.Module):
    """Two networks Q(s, a, g), of which the lesser is believed (Fujimoto et al., arXiv 1802.09477).

    Args:
        observation_dim, goal_dim, action_dim: sizes of the three spaces.
        shape: size and form of both networks.
        compute: precision and memory of their blocks.
    """

    def __init__(
        self,
        observation_dim: int,
        goal_dim: int,
        action_dim: int,
        shape: NetworkShape,
        compute: Compute | None = None,
    ) -> None:
        super().__init__()
        inputs = observation_dim + action_dim + goal_dim
        self.first_value, self.second_value = (Encoder(inputs, shape, compute, outputs=1) for _ in range(2))

    @property
    def networks(self) -> dict[str, Encoder]:
        """Both networks by name."""
        return {"first_value": self.first_value, "second_value": self.second_value}

    def forward(self, observation: Tensor, action: Tensor, goal: Tensor) -> Tensor:
        """Return both values, (2, batch)."""
        return self._values(torch.cat([observation, action, goal], dim=-1))

    def of_both_actions(
        self, observation: Tensor, proposed: tuple[Tensor, Tensor], taken: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return both values of each action, (2, batch) for the proposed and the taken one, from one pass.

        The gradient of the first reaches what is proposed and no parameter. That of the second reaches the
        parameters.

        Args:
            observation: (batch, observation_dim).
            proposed, taken: an action and the goal that it is for, (batch, …) each.
        """
        rows = len(observation)
        inputs = torch.cat([torch.cat([observation, *pair], dim=-1) for pair in (proposed, taken)])
        values = self._values(inputs, frozen_rows=rows)
        return values[:, :rows], values[:, rows:]

    def _values(self, inputs: Tensor, frozen_rows: int = 0) -> Tensor:
        return torch.stack([value(inputs, frozen_rows).squeeze(-1) for value in self.networks.values()])


def temporal_difference_loss(values: Tensor, target: Tensor) -> tuple[Tensor, Metrics]:
    """Return the sum over both networks of mean((Q − target)²) / 2, and its metrics.

    Args:
        values: of both networks, (2, batch).
        target: (batch,), no gradient.
    """
    error = values - target
    loss = 0.5 * error.square().mean(1).sum()
    return loss, {"value": values.detach().mean(), "value_error": error.detach().abs().mean()}
