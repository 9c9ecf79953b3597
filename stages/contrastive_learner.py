"""The contrastive goal-conditioned learner: networks, optimisers and one update.

Source: arXiv 2503.14858. An update trains the actor and α against the critic as it stands, then the critic.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal

import pydantic
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from envs.compiled_task import CompiledTask
from models.contrastive_critic import (
    ContrastiveCritic,
    Energy,
    InfoNCE,
    actor_loss,
    alpha_loss,
    contrastive_loss,
    paired_energy,
    pairwise_energy,
)
from models.goal_actor import GoalActor, sample_action
from models.residual_mlp import NetworkShape, ResidualScale, parameter_count
from pipeline.core.runtime import torch_seed
from pipeline.core.settings import StageSettings
from replay.trajectory_buffer import TransitionBatch

_INITIALISATION_STREAM = 1


class LearnerSettings(StageSettings):
    """What shapes the networks and an update."""

    depth: int = pydantic.Field(
        default=16, ge=4, le=4096, description="Dense layers in blocks, a multiple of 4"
    )
    width: int = pydantic.Field(default=256, ge=1, le=8192, description="units of a layer")
    residual_scale: ResidualScale = "none"
    final_norm: bool = False
    energy: Energy = "norm"
    info_nce: InfoNCE = "forward"
    actor_goals: Literal["hindsight", "random", "mixed"] = "random"
    batch_size: int = pydantic.Field(default=256, ge=2)
    discount: float = pydantic.Field(default=0.99, gt=0, le=1)
    actor_learning_rate: float = pydantic.Field(default=3e-4, gt=0)
    critic_learning_rate: float = pydantic.Field(default=3e-4, gt=0)
    alpha_learning_rate: float = pydantic.Field(default=3e-4, gt=0)
    initial_alpha: float = pydantic.Field(default=1.0, gt=0, description="entropy temperature at the start")
    target_entropy_per_action: float = pydantic.Field(
        default=-0.5, description="nats for each action dimension"
    )
    average_decay: float = pydantic.Field(
        default=0.0,
        ge=0,
        lt=1,
        description="of the running average of the actor, evaluated beside it; 0: none",
    )
    threads: int = pydantic.Field(default=0, ge=0, description="CPU threads of torch; 0: every CPU")
    max_gradient_norm: float | None = pydantic.Field(default=None, gt=0, description="clipping; null: none")

    @pydantic.field_validator("depth")
    @classmethod
    def _depth_in_blocks(cls, depth: int) -> int:
        NetworkShape(depth, 1)
        return depth

    @property
    def shape(self) -> NetworkShape:
        """The form of all three networks."""
        return NetworkShape(
            self.depth, self.width, residual_scale=self.residual_scale, final_norm=self.final_norm
        )


class ContrastiveLearner:
    """Actor, critic, entropy temperature and their optimisers.

    Args:
        task: gives the sizes of the spaces.
        settings: networks and update.
        device: where everything lies.
    """

    def __init__(self, task: CompiledTask, settings: LearnerSettings, device: str) -> None:
        self.settings, self.device = settings, torch.device(device)
        dims = task.observation_dim, task.goal_dim, task.action_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(settings.seed, _INITIALISATION_STREAM))
            self.actor = GoalActor(*dims, settings.shape).to(self.device)
            self.critic = ContrastiveCritic(*dims, settings.shape).to(self.device)
        self.log_alpha = torch.tensor(settings.initial_alpha, device=self.device).log().requires_grad_()
        self._move_average = get_ema_multi_avg_fn(settings.average_decay)
        self.averaged_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.target_entropy = settings.target_entropy_per_action * task.action_dim
        self._optimizers = {
            "actor": self._adam(self.actor.parameters(), settings.actor_learning_rate),
            "critic": self._adam(self.critic.parameters(), settings.critic_learning_rate),
            "alpha": self._adam([self.log_alpha], settings.alpha_learning_rate),
        }

    @staticmethod
    def _adam(parameters: object, learning_rate: float) -> torch.optim.Adam:
        return torch.optim.Adam(parameters, lr=learning_rate, fused=True)  # pyright: ignore[reportArgumentType]

    def parameter_counts(self) -> dict[str, int]:
        """Return how many numbers each network learns."""
        return {
            "actor_parameters": parameter_count(self.actor),
            "critic_parameters": parameter_count(self.critic),
        }

    @torch.no_grad()
    def act(self, observation: Tensor, goal: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return actions (batch, action_dim): sampled, or tanh(mean) without a generator."""
        gaussian = self.actor(observation, goal)
        if generator is None:
            return torch.tanh(gaussian.mean)
        return sample_action(gaussian, self._noise(gaussian.mean.shape, generator))[0]

    def update(self, batch: TransitionBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Take one gradient step with each optimiser; return metrics as scalar tensors."""
        # ψ(g) serves both losses: the critic does not change before its own step.
        goal_embedding = self.critic.encode_goal(batch.goal)
        metrics = self._update_actor(batch, goal_embedding.detach(), generator)
        self._average_actor()
        return metrics | self._update_critic(batch, goal_embedding)

    def _update_actor(
        self, batch: TransitionBatch, goal_embedding: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        order = self._goal_order(len(batch.goal), generator)
        goal, goal_embedding = batch.goal[order], goal_embedding[order]
        gaussian = self.actor(batch.observation, goal)
        action, log_prob = sample_action(gaussian, self._noise(gaussian.mean.shape, generator))
        with _frozen(self.critic):
            state_action = self.critic.encode_state_action(batch.observation, action)
        energy = paired_energy(state_action, goal_embedding, self.settings.energy)
        alpha = self.log_alpha.exp()
        loss, metrics = actor_loss(energy, log_prob, alpha.detach())
        metrics["actor_gradient_norm"] = self._step("actor", loss, list(self.actor.parameters()))
        self._step("alpha", alpha_loss(self.log_alpha, log_prob, self.target_entropy), [self.log_alpha])
        saturated = (gaussian.mean.detach().tanh().abs() > 0.99).float().mean()
        return metrics | {
            "actor_loss": loss.detach(),
            "alpha": alpha.detach(),
            "saturated_actions": saturated,
        }

    @torch.no_grad()
    def _average_actor(self) -> None:
        average: list[Tensor] = list(self.averaged_actor.parameters())
        current: list[Tensor] = list(self.actor.parameters())
        self._move_average(average, current, None)

    def _update_critic(self, batch: TransitionBatch, goal_embedding: Tensor) -> dict[str, Tensor]:
        state_action = self.critic.encode_state_action(batch.observation, batch.action)
        logits = pairwise_energy(state_action, goal_embedding, self.settings.energy)
        loss, metrics = contrastive_loss(logits, self.settings.info_nce)
        metrics["critic_gradient_norm"] = self._step("critic", loss, list(self.critic.parameters()))
        for name in ("state_action_encoder", "goal_encoder"):
            metrics[f"{name}_gradient_norm"] = _gradient_norm(getattr(self.critic, name))
        return metrics | {"critic_loss": loss.detach()}

    def _step(self, name: str, loss: Tensor, parameters: list[Tensor]) -> Tensor:
        """Descend `loss` with one optimiser; return the gradient's norm before clipping."""
        optimizer = self._optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        limit = None if name == "alpha" else self.settings.max_gradient_norm
        norm = nn.utils.clip_grad_norm_(parameters, torch.inf if limit is None else limit)
        optimizer.step()
        return norm.detach()

    def _goal_order(self, batch: int, generator: torch.Generator) -> Tensor:
        """Return which goal of the batch the actor is given with each state."""
        order = torch.arange(batch, device=self.device)
        shuffled = {"hindsight": 0, "mixed": batch // 2, "random": batch}[self.settings.actor_goals]
        if shuffled:
            order[:shuffled] = torch.randperm(batch, generator=generator, device=self.device)[:shuffled]
        return order

    def _noise(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator, device=self.device)

    # -- saving -----------------------------------------------------------------------------------

    @property
    def candidates(self) -> list[GoalActor]:
        """The actors that may become the teacher: the averaged one, and the current one where they differ."""
        return [self.averaged_actor, self.actor] if self.settings.average_decay else [self.averaged_actor]

    def weights(self, actor: GoalActor) -> dict[str, Tensor]:
        """Return copies of what a teacher is made of: ``actor.*``, a candidate, and ``critic.*``."""
        return self._copy({"actor": actor, "critic": self.critic})

    @staticmethod
    def _copy(networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": value.detach().clone()
            for name, network in networks.items()
            for key, value in network.state_dict().items()
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Return networks, temperature and optimiser moments as flat tensors."""
        networks = {"actor": self.actor, "averaged_actor": self.averaged_actor, "critic": self.critic}
        state = self._copy(networks) | {"log_alpha": self.log_alpha.detach().clone()}
        for name, optimizer in self._optimizers.items():
            for index, moments in optimizer.state_dict()["state"].items():
                state |= {f"optimizer.{name}.{index}.{key}": value.clone() for key, value in moments.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.actor.load_state_dict(strip_prefix(state, "actor."))
        self.averaged_actor.load_state_dict(strip_prefix(state, "averaged_actor."))
        self.critic.load_state_dict(strip_prefix(state, "critic."))
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])
        for name, optimizer in self._optimizers.items():
            moments: dict[int, dict[str, Tensor]] = {}
            for key, value in strip_prefix(state, f"optimizer.{name}.").items():
                index, moment = key.split(".")
                moments.setdefault(int(index), {})[moment] = value
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": moments, "param_groups": groups})


def strip_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries whose name starts with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _gradient_norm(module: nn.Module) -> Tensor:
    """Return the norm of a module's gradient as it was stepped with, after any clipping."""
    return nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])


class _frozen:
    """Within this context a module's parameters take no gradient, so none is computed for them."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __enter__(self) -> None:
        self._module.requires_grad_(False)

    def __exit__(self, *exception: object) -> None:
        self._module.requires_grad_(True)
