"""The contrastive goal-conditioned learner: networks, optimisers and one update.

Source: arXiv 2503.14858. An update trains the actor and α against the critic as it stands, then the critic.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from typing import Any, Literal

import pydantic
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.models.block_stack import BlockStack, Compute, Precision
from thousandfold.models.contrastive_critic import (
    ContrastiveCritic,
    Energy,
    InfoNCE,
    Metrics,
    actor_loss,
    alpha_loss,
    contrastive_loss,
    contrastive_metrics,
    paired_energy,
    pairwise_energy,
    penalised_info_nce,
)
from thousandfold.models.goal_actor import GoalActor, sample_action
from thousandfold.models.residual_mlp import NetworkShape, ResidualScale, centre_kernels, parameter_count
from thousandfold.models.tensor_state import load_moments, moments_of, strip_prefix
from thousandfold.pipeline.distributed import Ranks
from thousandfold.pipeline.runtime import torch_seed
from thousandfold.pipeline.settings import MOST_THREADS, StageSettings
from thousandfold.replay.trajectory_buffer import TransitionBatch

DEEPEST_PUBLISHED_FORM = 64
"""layers up to which plain residual sums are the default"""
DEEP_FORM: dict[str, Any] = {
    "residual_scale": "learned_from_zero",
    "final_norm": True,
    "max_gradient_norm": 10.0,
}
"""what is the default beyond"""

_INITIALISATION_STREAM = 1


class LearnerSettings(StageSettings):
    """What shapes the networks and an update."""

    depth: int = pydantic.Field(
        default=16, ge=4, le=4096, description="Dense layers in blocks, a multiple of 4"
    )
    width: int = pydantic.Field(default=256, ge=1, le=8192, description="units of a layer")
    residual_scale: ResidualScale = pydantic.Field(
        default="none",
        description="of the blocks' branches; learned_from_zero where not set beyond 64 layers",
    )
    final_norm: bool = pydantic.Field(
        default=False, description="LayerNorm before the heads; true where not set beyond 64 layers"
    )
    centred_kernels: bool = pydantic.Field(
        default=False, description="start with kernels that do not see the mean of the activations"
    )
    precision: Precision = pydantic.Field(
        default="float32", description="of the blocks' matrix products; losses are always float32"
    )
    checkpoint_activations: bool = pydantic.Field(
        default=False, description="keep every √blocks-th block's input alone: less memory, a third more time"
    )
    energy: Energy = "norm"
    info_nce: InfoNCE = "forward"
    actor_goals: Literal["hindsight", "random", "mixed"] = "random"
    batch_size: int = pydantic.Field(
        default=256, ge=2, le=2**20, description="transitions of an update, over all ranks"
    )
    global_negatives: bool = pydantic.Field(
        default=False,
        description="contrast with the goals of all ranks, not with those of the rank's own batch",
    )
    discount: float = pydantic.Field(default=0.99, gt=0, le=1)
    actor_learning_rate: float = pydantic.Field(default=3e-4, gt=0)
    critic_learning_rate: float = pydantic.Field(default=3e-4, gt=0)
    alpha_learning_rate: float = pydantic.Field(default=3e-4, gt=0)
    initial_alpha: float = pydantic.Field(
        default=1.0, gt=0, le=1e6, description="entropy temperature at the start"
    )
    target_entropy_per_action: float = pydantic.Field(
        default=-0.5, ge=-1000, le=1000, description="nats for each action dimension"
    )
    average_decay: float = pydantic.Field(
        default=0.0,
        ge=0,
        lt=1,
        description="of the running average of the actor, evaluated beside it; 0: none",
    )
    threads: int = pydantic.Field(
        default=0,
        ge=0,
        le=MOST_THREADS,
        description="CPU threads of torch in each process; 0: every CPU, shared evenly",
    )
    max_gradient_norm: float | None = pydantic.Field(
        default=None, gt=0, le=1e12, description="clipping; null: none; 10 where not set beyond 64 layers"
    )
    warmup_updates: int = pydantic.Field(
        default=0, ge=0, le=10**9, description="updates over which the learning rates rise linearly from 0"
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _deep_defaults(cls, values: Any) -> Any:
        """Give deep networks the form that learns where the user says nothing about it (docs/depth.md)."""
        with contextlib.suppress(TypeError, ValueError, AttributeError, OverflowError):
            if int(values.get("depth", 0)) > DEEPEST_PUBLISHED_FORM:
                return DEEP_FORM | values
        return values

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
        ranks: the processes that learn the same networks together, each from its part of the batch.
    """

    def __init__(
        self, task: CompiledTask, settings: LearnerSettings, device: str, ranks: Ranks | None = None
    ) -> None:
        self.settings, self.device, self.ranks = settings, torch.device(device), ranks or Ranks()
        dims = task.observation_dim, task.goal_dim, task.action_dim
        compute = Compute(settings.precision, settings.checkpoint_activations)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(settings.seed, _INITIALISATION_STREAM))
            self.actor = GoalActor(*dims, settings.shape, compute).to(self.device)
            self.critic = ContrastiveCritic(*dims, settings.shape, compute).to(self.device)
        if settings.centred_kernels:
            centre_kernels(self.actor)
            centre_kernels(self.critic)
        self.log_alpha = torch.tensor(settings.initial_alpha, device=self.device).log().requires_grad_()
        self._move_average = get_ema_multi_avg_fn(settings.average_decay)
        averages = bool(settings.average_decay)
        self.averaged_actor = copy.deepcopy(self.actor).requires_grad_(False) if averages else self.actor
        self.target_entropy = settings.target_entropy_per_action * task.action_dim
        self.updates = torch.zeros((), device=self.device)
        self._optimizers = {
            "actor": self._adam(self.actor.parameters(), settings.actor_learning_rate),
            "critic": self._adam(self.critic.parameters(), settings.critic_learning_rate),
            "alpha": self._adam([self.log_alpha], settings.alpha_learning_rate),
        }

    def _adam(self, parameters: object, learning_rate: float) -> torch.optim.Adam:
        # A tensor, so that the warm-up can change it where it lies.
        rate = torch.tensor(learning_rate, device=self.device)
        return torch.optim.Adam(parameters, lr=rate, fused=True)  # pyright: ignore[reportArgumentType]

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
        order = self._goal_order(len(batch.goal), generator)
        noise = self._noise(batch.action.shape, generator)
        loss, metrics = self.loss(batch, order, noise)
        for optimizer in self._optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._average_gradients()
        metrics |= self._step()
        self._average_actor()
        return metrics

    def loss(self, batch: TransitionBatch, order: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the actor's, the critic's and α's loss, and metrics.

        No parameter is in two of them: the actor is held against the critic as it stands, so one backward
        pass serves all three. ψ(g) and the pass of φ over both actions are shared.

        Args:
            batch: transitions with hindsight goals.
            order: which goal of the batch the actor is given with each state, (batch,).
            noise: standard normal, (batch, action_dim).
        """
        goal_embedding = self.critic.encode_goal(batch.goal)
        gaussian = self.actor(batch.observation, batch.goal[order])
        action, log_prob = sample_action(gaussian, noise)
        proposed, taken = self.critic.encode_both_actions(batch.observation, action, batch.action)
        energy = paired_energy(proposed, goal_embedding.detach()[order], self.settings.energy)
        alpha = self.log_alpha.detach().exp()
        for_actor, metrics = actor_loss(energy, log_prob, alpha)
        for_alpha = alpha_loss(self.log_alpha, log_prob, self.target_entropy)
        for_critic, contrast = self._contrast(taken, goal_embedding)
        saturated = (gaussian.mean.detach().tanh().abs() > 0.99).float().mean()
        metrics |= contrast | {
            "actor_loss": for_actor.detach(),
            "critic_loss": for_critic.detach(),
            "alpha": alpha,
            "saturated_actions": saturated,
        }
        return for_actor + for_alpha + for_critic, metrics

    def _contrast(self, taken: Tensor, goal_embedding: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the critic's loss and its metrics for φ(s, taken) and ψ(g), (batch, 64) each."""
        energy, variant = self.settings.energy, self.settings.info_nce
        if self.settings.global_negatives and self.ranks.size > 1:
            return global_contrastive_loss(taken, goal_embedding, energy, variant, self.ranks)
        return contrastive_loss(pairwise_energy(taken, goal_embedding, energy), variant)

    def _average_gradients(self) -> None:
        """Put the mean over the ranks in place of every gradient."""
        parameters = [*self.actor.parameters(), *self.critic.parameters(), self.log_alpha]
        self.ranks.average_([p.grad for p in parameters if p.grad is not None])

    def _step(self) -> dict[str, Tensor]:
        """Step every optimiser; return the gradients' norms, before clipping."""
        encoders = ("state_action_encoder", "goal_encoder")
        norms = {f"{name}_gradient_norm": _gradient_norm(getattr(self.critic, name)) for name in encoders}
        norms["critic_gradient_norm"] = torch.stack(list(norms.values())).norm()
        norms["actor_gradient_norm"] = _gradient_norm(self.actor)
        self._warm_up()
        limit = self.settings.max_gradient_norm
        for name, optimizer in self._optimizers.items():
            if limit is not None and name != "alpha":
                # The fused optimisers divide by it on their way through the gradients.
                optimizer.grad_scale = (norms[f"{name}_gradient_norm"] / limit).clamp_min(1.0)  # pyright: ignore[reportAttributeAccessIssue]
            optimizer.step()
        return norms

    @torch.no_grad()
    def _warm_up(self) -> None:
        """Count the update and set the learning rates that belong to it."""
        self.updates += 1
        if not self.settings.warmup_updates:
            return
        factor = (self.updates / self.settings.warmup_updates).clamp(max=1.0)
        for name, optimizer in self._optimizers.items():
            for group in optimizer.param_groups:
                group["lr"].copy_(factor * getattr(self.settings, f"{name}_learning_rate"))

    @torch.no_grad()
    def _average_actor(self) -> None:
        if self.averaged_actor is self.actor:
            return
        average: list[Tensor] = list(self.averaged_actor.parameters())
        current: list[Tensor] = list(self.actor.parameters())
        self._move_average(average, current, None)

    def _goal_order(self, batch: int, generator: torch.Generator) -> Tensor:
        """Return which goal of the batch the actor is given with each state."""
        order = torch.arange(batch, device=self.device)
        shuffled = {"hindsight": 0, "mixed": batch // 2, "random": batch}[self.settings.actor_goals]
        if shuffled:
            order[:shuffled] = torch.randperm(batch, generator=generator, device=self.device)[:shuffled]
        return order

    def _noise(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator, device=self.device)

    def prepare_capture(self) -> None:
        """Get ready for an update to be captured in a CUDA graph, which then has gradients of its own."""
        for optimizer in self._optimizers.values():
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["capturable"] = True  # as fused optimisers are anyway; it silences their check

    def gradient_by_block(self) -> dict[str, Tensor]:
        """Return the norm of the last update's gradient of each block's kernels, (blocks,) a network."""
        trunks = {
            "actor": self.actor.trunk,
            "state_action_encoder": self.critic.state_action_encoder.trunk,
            "goal_encoder": self.critic.goal_encoder.trunk,
        }
        return {
            name: trunk.body.weight.grad.reshape(self.settings.shape.num_blocks, -1).norm(dim=1)
            for name, trunk in trunks.items()
            if isinstance(trunk.body, BlockStack) and trunk.body.weight.grad is not None
        }

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
        state = self._copy(networks) | {
            "log_alpha": self.log_alpha.detach().clone(),
            "updates": self.updates.clone(),
        }
        for name, optimizer in self._optimizers.items():
            state |= {f"optimizer.{name}.{key}": value for key, value in moments_of(optimizer).items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned, in the tensors that are there: a captured update goes on."""
        self.actor.load_state_dict(strip_prefix(state, "actor."))
        self.averaged_actor.load_state_dict(strip_prefix(state, "averaged_actor."))
        self.critic.load_state_dict(strip_prefix(state, "critic."))
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])
            self.updates.copy_(state["updates"])
        for name, optimizer in self._optimizers.items():
            load_moments(optimizer, strip_prefix(state, f"optimizer.{name}."))


def _gradient_norm(module: nn.Module) -> Tensor:
    """Return the norm of a module's gradient."""
    return nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])


# -- InfoNCE over the batches of all ranks: each contrasts its own rows with everybody's columns ---
# With N ranks of b transitions, rank r holds rows r·b … r·b + b of the N·b energies of the whole batch:
#
#                  ψ of rank 0   ψ of rank 1
#     φ of rank 0 [ +             .           ]  rank 0's rows, for the forward loss
#     φ of rank 1 [ .             +           ]  rank 1's rows;  + marks where the positives lie
#
# A rank's loss is the mean over its own rows, so the mean of the ranks' losses is the loss of one process on
# the whole batch, and so are the gradients once they are averaged over the ranks.


class _GatherRows(torch.autograd.Function):
    """All ranks' rows, one rank after the other; a row's gradient is the sum of what every rank sends back.

    `torch.distributed.nn.all_gather` multiplies the gradient by the number of ranks on top.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.gather(rows).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        total = ctx.ranks.sum_(gradients[0].clone(memory_format=torch.contiguous_format))
        return total.chunk(ctx.ranks.size)[ctx.ranks.rank], None


def gather_rows(rows: Tensor, ranks: Ranks) -> Tensor:
    """Return the rows (b, n) of all ranks, (size · b, n), in order of rank; gradients find their way back."""
    gathered = _GatherRows.apply(rows, ranks)
    assert isinstance(gathered, Tensor)
    return gathered


def global_contrastive_loss(
    state_action: Tensor, goal: Tensor, energy: Energy, variant: InfoNCE, ranks: Ranks
) -> tuple[Tensor, Metrics]:
    """Return this rank's part of `contrastive_loss` over the whole batch, and the metrics of its rows.

    Args:
        state_action, goal: φ and ψ of this rank's transitions, (b, 64); every rank has b.
        energy: the energy of a pair.
        variant: of InfoNCE; ``backward`` contrasts this rank's goals with every rank's states and actions.
        ranks: the processes that share the batch; all must call this together.
    """
    first = ranks.rank * len(goal)
    sides = []
    if variant in ("forward", "symmetric"):
        sides.append(pairwise_energy(state_action, gather_rows(goal, ranks), energy))
    if variant in ("backward", "symmetric"):
        sides.append(pairwise_energy(gather_rows(state_action, ranks), goal, energy).T)
    loss, info_nce = penalised_info_nce(sides, first)
    rows = sides[0].detach()
    if variant == "backward":  # what is reported is about the goal of each state and action all the same
        rows = pairwise_energy(state_action.detach(), ranks.gather(goal).flatten(0, 1), energy)
    return loss, contrastive_metrics(rows, info_nce.detach(), first)
