"""The contrastive goal-conditioned learner: networks, optimisers and one update.

Source: arXiv 2503.14858. An update trains the actor and α against the critic as it stands, then the critic.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.ground.between_graphs import launch_between_graphs
from thousandfold.models.block_stack import Compute
from thousandfold.models.contrastive_critic import (
    ContrastiveCritic,
    Metrics,
    actor_loss,
    alpha_loss,
    contrastive_loss,
    log_not_lost,
    paired_energy,
)
from thousandfold.models.deployable_policy import Dither, NormalizedActor
from thousandfold.models.flat_parameters import FlatAdam, FlatParameters
from thousandfold.models.goal_actor import GoalActor, sample_action
from thousandfold.models.residual_mlp import centre_kernels, parameter_count, spread_first_biases
from thousandfold.models.running_normalizer import RunningNormalizer
from thousandfold.models.tensor_state import copy_of, host_copy, strip_prefix
from thousandfold.pipeline.distributed import Ranks
from thousandfold.pipeline.runtime import torch_seed
from thousandfold.replay.trajectory_buffer import TransitionBatch
from thousandfold.stages.networks import goals_are_relative
from thousandfold.stages.train_teacher.global_negatives import gather_rows
from thousandfold.stages.train_teacher.settings import LearnerSettings

_INITIALISATION_STREAM = 1
_SATURATED = math.atanh(0.99)


class ContrastiveLearner:
    """Actor, critic, entropy temperature and their optimisers.

    Args:
        ranks: the processes that learn the same networks together, each from its part of the batch.
    """

    critic: Any
    curve_metrics: ClassVar[tuple[str, ...]] = ("info_nce", "categorical_accuracy")
    """what tells best how the critic learns"""

    def __init__(
        self, task: CompiledTask, settings: LearnerSettings, device: str, ranks: Ranks | None = None
    ) -> None:
        self.settings, self.device, self.ranks = settings, torch.device(device), ranks or Ranks()
        if self.device.type == "cuda":  # partial sums of products are not rounded to bfloat16
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        dims = task.observation_dim, task.goal_dim, task.action_dim
        compute = Compute(settings.precision, settings.checkpoint_activations)
        self._relative_goals = goals_are_relative(settings.critic_goals, task)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(settings.seed, _INITIALISATION_STREAM))
            self.actor = GoalActor(*dims, settings.actor_shape, compute).to(self.device)
            self.critic = self._make_critic(dims, compute).to(self.device)
        if settings.centred_kernels:
            centre_kernels(self.actor)
            centre_kernels(self.critic)
        self.log_alpha = torch.tensor(settings.initial_alpha, device=self.device).log().requires_grad_()
        averages = bool(settings.average_decay)
        self.averaged_actor = copy.deepcopy(self.actor).requires_grad_(False) if averages else self.actor
        self.observation_normalizer, self.goal_normalizer = (
            RunningNormalizer(size, task.groups_of_a_unit(part)).to(self.device)
            for size, part in ((task.observation_dim, "observation"), (task.goal_dim, "achieved_goal"))
        )
        self.target_entropy = settings.target_entropy_per_action * task.action_dim
        self._dither = None
        if settings.dither:
            self._dither = Dither(settings.dither, task.clock_columns(), task.action_dim).to(self.device)
        self.updates = torch.zeros((), device=self.device)
        self._learned = {
            "actor": FlatParameters(self.actor.parameters()),
            "critic": FlatParameters(self.critic.parameters()),
            "alpha": FlatParameters([self.log_alpha]),
        }
        self._parts = {
            name: self._learned["critic"].range_of(network.parameters())
            for name, network in self.critic.networks.items()
        }
        self._average = FlatParameters(self.averaged_actor.parameters()) if averages else None
        self._optimizers = {
            name: FlatAdam(flat, getattr(settings, f"{name}_learning_rate"))
            for name, flat in self._learned.items()
        }

    def _make_critic(self, dims: tuple[int, int, int], compute: Compute) -> Any:
        settings = self.settings
        lost = settings.learns_lost_futures
        critic = ContrastiveCritic(*dims, settings.critic_shape, compute, no_goal=lost)
        if settings.normalize_inputs or self._relative_goals:
            # ψ alone may be given zeros: a goal that never changes, or one that is reached already.
            spread_first_biases(critic.goal_encoder.trunk)
        return critic

    def parameter_counts(self) -> dict[str, int]:
        """Return how many numbers each network learns."""
        return {
            "actor_parameters": parameter_count(self.actor),
            "critic_parameters": parameter_count(self.critic),
        }

    def see(self, observation: Tensor, achieved_goal: Tensor, desired_goal: Tensor) -> None:
        """Let the normalisers take new rows into account; all ranks call this together.

        The goals that were reached and those that were commanded count alike, however many there are of each.

        Args:
            observation, achieved_goal: (n, …), what was collected since the last call.
            desired_goal: (m, goal_dim), what was commanded.
        """
        if not self.settings.normalize_inputs:
            return
        sums = RunningNormalizer.sums
        commanded = sums(desired_goal, len(achieved_goal) / len(desired_goal))
        for normalizer, own in (
            (self.observation_normalizer, sums(observation)),
            (self.goal_normalizer, sums(achieved_goal) + commanded),
        ):
            normalizer.add(self.ranks.gather(own.cpu()).sum(0).to(self.device))

    @torch.no_grad()
    def act(self, observation: Tensor, goal: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return actions (batch, action_dim): sampled, or tanh(mean) without a generator."""
        gaussian = self.actor(self.observation_normalizer(observation), self.goal_normalizer(goal))
        if generator is None:
            return torch.tanh(gaussian.mean)
        return sample_action(gaussian, self._noise(gaussian.mean.shape, generator))[0]

    def update(self, batch: TransitionBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Take one gradient step with each optimiser; return metrics as scalar tensors."""
        order = self._goal_order(len(batch.goal), generator)
        noise = self._draw_noise(batch, generator)
        loss, metrics = self.loss(batch, order, noise)
        self._differentiate(loss)
        if self.ranks.size > 1:
            launch_between_graphs(self._average_gradients)
        return metrics | self._step()

    def loss(self, batch: TransitionBatch, order: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the actor's, the critic's and α's loss, and metrics.

        No parameter is in two of them: the actor is held against the critic as it stands, so one backward
        pass serves all three. Both actions share a pass of φ, and absolute goals one of ψ.

        Args:
            batch: transitions with hindsight goals.
            order: which goal of the batch the actor is given with each state, (batch,).
            noise: standard normal, (batch, action_dim).
        """
        observation = self.observation_normalizer(batch.observation)
        gaussian = self.actor(observation, self.goal_normalizer(batch.goal[order]))
        action, log_prob = sample_action(gaussian, noise)
        proposed, taken = self.critic.encode_both_actions(observation, action, batch.action)
        wanted, reached = self._encode_goals(batch, order)
        energy = paired_energy(proposed, wanted, self.settings.energy)
        if self.settings.learns_lost_futures and self.settings.early_end_weight:
            goes_on = log_not_lost(
                proposed, self._gather(reached.detach()), self.critic.no_goal.detach(), self.settings.energy
            )
            energy = energy + self.settings.early_end_weight * goes_on
        alpha = self.log_alpha.detach().exp()
        for_actor, metrics = actor_loss(energy, log_prob, alpha)
        for_alpha = alpha_loss(self.log_alpha, log_prob, self.target_entropy)
        lost = batch.lost if self.settings.learns_lost_futures else None
        assert (lost is None) == (not self.settings.learns_lost_futures)
        for_critic, contrast = self._contrast(taken, reached, lost)
        if lost is not None:
            metrics["lost"] = lost.float().mean()
        metrics |= contrast | {
            "actor_loss": for_actor.detach(),
            "critic_loss": for_critic.detach(),
            "alpha": alpha,
            "saturated_actions": saturated_share(gaussian.mean),
        }
        return for_actor + for_alpha + for_critic, metrics

    def _encode_goals(self, batch: TransitionBatch, order: Tensor) -> tuple[Tensor, Tensor]:
        """Return ψ of the goals that the actor is given, without a gradient, and of the batch's.

        Where goals are relative, ψ is given g − m(s), how a goal differs from what the state achieves. The
        negatives of a row are then what it achieves itself, moved as other rows were: the critic cannot tell
        them from the positive by where the state is, and has to see what the action does. Its optimum is
        log p(g | s, a) − log q(g − m(s)) with the rows' distribution q of differences, and the last term is
        the same for every action. Both are (batch, 64).
        """
        if not self._relative_goals:
            embedding = self.critic.encode_goal(self.goal_normalizer(batch.goal))
            return embedding.detach()[order], embedding
        reached = self.critic.encode_goal(self._critic_goal(batch.goal, batch.achieved_goal))
        with torch.no_grad():
            wanted = self.critic.encode_goal(self._critic_goal(batch.goal[order], batch.achieved_goal))
        return wanted, reached

    def _critic_goal(self, goal: Tensor, achieved_goal: Tensor | None) -> Tensor:
        """Return what ψ is given of each row's goal, (batch, goal_dim); `achieved_goal` is its state's."""
        if not self._relative_goals:
            return self.goal_normalizer(goal)
        assert achieved_goal is not None
        return self.goal_normalizer.difference(goal, achieved_goal)

    def _contrast(self, state_action: Tensor, goal: Tensor, lost: Tensor | None) -> tuple[Tensor, Metrics]:
        """Return the critic's loss for φ and ψ, (batch, 64) each, and its metrics.

        The positive of a row that is lost is the embedding of no goal. So what leads to early ends is far
        from every goal: the optimum gains log(1 − P(lost | s, a)), and its p(g | s, a) is of the other rows.
        """
        settings, ranks = self.settings, self.ranks
        given = state_action, goal, settings.energy, settings.info_nce, self.critic.no_goal, lost
        first = ranks.rank * len(goal) if self._gathers else 0
        return contrastive_loss(*given, gather=self._gather, first=first)

    @property
    def _gathers(self) -> bool:
        return self.settings.global_negatives and self.ranks.size > 1

    def _gather(self, own: Tensor) -> Tensor:
        """Return what a batch is contrasted with, of which it is a part: all ranks' rows, or its own."""
        return gather_rows(own, self.ranks) if self._gathers else own

    def _differentiate(self, loss: Tensor) -> None:
        """Put the gradients of a loss in the place of the last ones."""
        flats = self._learned.values()
        gradients = iter(torch.autograd.grad(loss, [each for flat in flats for each in flat.parameters]))
        for flat in flats:
            flat.set_gradients(tuple(itertools.islice(gradients, len(flat.parameters))))

    def _average_gradients(self) -> None:
        """Put the mean over the ranks in place of every gradient."""
        self.ranks.average_([flat.gradient for flat in self._learned.values()])

    @torch.no_grad()
    def _step(self) -> dict[str, Tensor]:
        """Step every optimiser and move the average; return the gradients' norms, before clipping."""
        settings = self.settings
        gradients = {name: self._learned[name].gradient for name in ("critic", "actor")}
        gradients |= {name: gradients["critic"][part] for name, part in self._parts.items()}
        norms = {f"{name}_gradient_norm": torch.linalg.vector_norm(each) for name, each in gradients.items()}
        self.updates += 1
        for name, optimizer in self._optimizers.items():
            if settings.warmup_updates:
                factor = (self.updates / settings.warmup_updates).clamp(max=1.0)
                optimizer.rate.copy_(factor * getattr(settings, f"{name}_learning_rate"))
            clips = settings.max_gradient_norm is not None and name != "alpha"
            optimizer.step(
                (norms[f"{name}_gradient_norm"] / settings.max_gradient_norm).clamp_min(1.0)
                if clips
                else None
            )
        if self._average is not None:
            self._average.values.lerp_(self._learned["actor"].values, 1.0 - settings.average_decay)
        return norms

    def _goal_order(self, batch: int, generator: torch.Generator) -> Tensor:
        """Return which goal of the batch the actor is given with each state."""
        random = {"generator": generator, "device": self.device}
        if self.settings.actor_goals == "random":
            return torch.randperm(batch, **random)
        order = torch.arange(batch, device=self.device)
        if self.settings.actor_goals == "mixed":
            order[: batch // 2] = torch.randperm(batch, **random)[: batch // 2]
        return order

    def _draw_noise(self, batch: TransitionBatch, generator: torch.Generator) -> Tensor:
        """Return what `loss` takes as noise."""
        return self._noise(batch.action.shape, generator)

    def _noise(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator, device=self.device)

    @property
    def can_be_captured(self) -> bool:
        """Whether CUDA graphs can hold an update: not where ranks exchange goals in the midst of it."""
        return not self._gathers

    def gradient_by_block(self) -> dict[str, Tensor]:
        """Return the norm of the last update's gradient of each block's kernels, (blocks,) a network.

        A plain stack counts layer by layer.
        """
        networks = {"actor": self.actor} | self.critic.networks
        norms = {name: network.trunk.gradient_by_block() for name, network in networks.items()}
        return {name: each for name, each in norms.items() if len(each)}

    # -- saving -----------------------------------------------------------------------------------

    @property
    def candidates(self) -> list[NormalizedActor]:
        """The actors that may become the teacher: the averaged one, and the current one where they differ."""
        actors = [self.averaged_actor, self.actor] if self.settings.average_decay else [self.averaged_actor]
        return [NormalizedActor(actor, *self._normalizers.values(), dither=self._dither) for actor in actors]

    @property
    def _normalizers(self) -> dict[str, RunningNormalizer]:
        return {
            "observation_normalizer": self.observation_normalizer,
            "goal_normalizer": self.goal_normalizer,
        }

    def weights(self, candidate: NormalizedActor) -> dict[str, Tensor]:
        """Return copies on the host of what a teacher is made of: an actor, the critic, the normalisers."""
        weights = copy_of({"actor": candidate.actor, "critic": self.critic})
        if self.settings.normalize_inputs:
            for name, normalizer in self._normalizers.items():
                weights |= {
                    f"{name}.mean": host_copy(normalizer.mean),
                    f"{name}.std": host_copy(normalizer.std),
                }
        return weights

    def load_weights(self, weights: Mapping[str, Tensor]) -> NormalizedActor:
        """Return the candidate that `weights` was called with, in the place of the averaged one."""
        kept = self.candidates[0]
        kept.load_state_dict(
            {name: weights[name] for name in kept.state_dict() if name in weights}, strict=False
        )
        return kept

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of networks, temperature and optimiser moments as flat tensors on the host."""
        networks = {"actor": self.actor, "critic": self.critic}
        if self.averaged_actor is not self.actor:
            networks["averaged_actor"] = self.averaged_actor
        if self.settings.normalize_inputs:
            networks |= self._normalizers
        state = copy_of(networks) | {
            "log_alpha": host_copy(self.log_alpha),
            "updates": host_copy(self.updates),
        }
        for name, optimizer in self._optimizers.items():
            state |= {f"optimizer.{name}.{key}": value for key, value in optimizer.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned, in the tensors that are there: a captured update goes on."""
        self.actor.load_state_dict(strip_prefix(state, "actor."))
        if self.averaged_actor is not self.actor:
            self.averaged_actor.load_state_dict(strip_prefix(state, "averaged_actor."))
        self.critic.load_state_dict(strip_prefix(state, "critic."))
        if self.settings.normalize_inputs:
            for name, normalizer in self._normalizers.items():
                normalizer.load_state_dict(strip_prefix(state, f"{name}."))
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])
            self.updates.copy_(state["updates"])
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(strip_prefix(state, f"optimizer.{name}."))


def saturated_share(mean: Tensor) -> Tensor:
    """Return the share of the Gaussians' means, of any shape, whose tanh is beyond ±0.99."""
    return (mean.detach().abs() > _SATURATED).mean(dtype=torch.float32)
