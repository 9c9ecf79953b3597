"""One learner update in JAX, flax and optax, as published: the baseline of `learner_speed.py`.

Written from the paper (Wang et al., "1000 Layer Networks for Self-Supervised RL", arXiv 2503.14858):
the actor and α against the critic as it stands, then the critic, each loss encoding what it needs.
"""
# `make setup` leaves jax, flax and optax out; the types are checked where they are installed.
# pyright: reportMissingImports=false

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from benchmarks.published import (
    EMBEDDING_DIM,
    LAYERS_PER_BLOCK,
    LEARNING_RATE,
    LOG_STD_MAX,
    LOG_STD_MIN,
    LOGSUMEXP_PENALTY,
    TANH_EPS,
    TARGET_ENTROPY_PER_ACTION,
)

Body = Literal["unrolled", "scan"]
ActorGoals = Literal["hindsight", "random"]
Parameters = Any
Metrics = dict[str, jax.Array]

# U(±1/√fan_in)
_KERNEL = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")


class Batch(NamedTuple):
    """Transitions with hindsight goals: (batch, observation_dim), (batch, action_dim), (batch, goal_dim)."""

    observation: jax.Array
    action: jax.Array
    goal: jax.Array


class Draws(NamedTuple):
    """The actor's noise (batch, action_dim), and which goal it is given with each state (batch,)."""

    noise: jax.Array
    goal_order: jax.Array


class LearnerState(NamedTuple):
    """Parameters and Adam's moments of ``actor``, ``critic`` and ``alpha``."""

    parameters: dict[str, Parameters]
    moments: dict[str, optax.OptState]


def _dense_norm_swish(width: int, hidden: jax.Array) -> jax.Array:
    hidden = nn.Dense(width, kernel_init=_KERNEL)(hidden)
    return nn.swish(nn.LayerNorm(epsilon=1e-6)(hidden))


class Block(nn.Module):
    """Four times [Dense, LayerNorm, Swish], added to the block's input."""

    width: int

    @nn.compact
    def __call__(self, hidden: jax.Array, _: None) -> tuple[jax.Array, None]:
        """Map (batch, width) to (batch, width); the second value is what `nn.scan` asks for."""
        branch = hidden
        for _layer in range(LAYERS_PER_BLOCK):
            branch = _dense_norm_swish(self.width, branch)
        return hidden + branch, None


class ResidualNetwork(nn.Module):
    """Stem, residual blocks and linear heads.

    Attributes:
        depth: Dense layers inside blocks, a multiple of 4.
        width: units of a layer.
        heads: outputs of each head.
        body: ``unrolled`` traces every block, as published; ``scan`` traces one and stacks the weights.
    """

    depth: int
    width: int
    heads: tuple[int, ...]
    body: Body

    @nn.compact
    def __call__(self, inputs: jax.Array) -> tuple[jax.Array, ...]:
        """Map (batch, inputs) to one (batch, outputs) a head."""
        hidden = _dense_norm_swish(self.width, inputs)
        blocks = self.depth // LAYERS_PER_BLOCK
        if self.body == "scan":
            scanned = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=blocks)
            hidden, _ = scanned(self.width, name="blocks")(hidden, None)
        else:
            for index in range(blocks):
                hidden, _ = Block(self.width, name=f"block_{index}")(hidden, None)
        return tuple(nn.Dense(outputs, kernel_init=_KERNEL)(hidden) for outputs in self.heads)


def _guarded_norm(difference: jax.Array) -> jax.Array:
    """Return ‖difference‖₂ over the last axis, with gradient 0 at 0."""
    squared = jnp.square(difference).sum(-1)
    positive = squared > 0.0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


def _heads(network: ResidualNetwork, parameters: Parameters, *inputs: jax.Array) -> Any:
    """Return what each head makes of the inputs side by side."""
    return network.apply(parameters, jnp.concatenate(inputs, axis=-1))


class JaxLearner:
    """Networks, optimisers and the update.

    Args:
        observation_dim, goal_dim, action_dim: sizes of the three spaces.
        depth, width, body: form of the three networks; see `ResidualNetwork`.
        actor_goals: ``hindsight``, the goals of the batch, or ``random``, permuted within the batch.

    Attributes:
        update: the compiled `(state, batch, key) -> (state, metrics)`; it takes the state's memory over.
    """

    def __init__(
        self,
        observation_dim: int,
        goal_dim: int,
        action_dim: int,
        *,
        depth: int,
        width: int,
        body: Body = "unrolled",
        actor_goals: ActorGoals = "random",
    ) -> None:
        self._dims = observation_dim, goal_dim, action_dim
        self._actor_goals = actor_goals
        self._actor = ResidualNetwork(depth, width, (action_dim, action_dim), body)
        self._encoder = ResidualNetwork(depth, width, (EMBEDDING_DIM,), body)
        self._adam = optax.adam(LEARNING_RATE)
        self.update = jax.jit(self._update, donate_argnums=0)

    def initialise(self, key: jax.Array) -> LearnerState:
        """Return random networks and α = 1 as the state before the first update."""
        observation, goal, action = self._dims
        keys = jax.random.split(key, 3)
        parameters = {
            "actor": self._actor.init(keys[0], jnp.zeros((1, observation + goal))),
            "critic": {
                "state_action": self._encoder.init(keys[1], jnp.zeros((1, observation + action))),
                "goal": self._encoder.init(keys[2], jnp.zeros((1, goal))),
            },
            "alpha": jnp.zeros(()),  # log α
        }
        return self.starting_from(parameters)

    def starting_from(self, parameters: dict[str, Parameters]) -> LearnerState:
        """Return given parameters as the state before the first update."""
        return LearnerState(parameters, {name: self._adam.init(part) for name, part in parameters.items()})

    def draw(self, key: jax.Array, batch: int) -> Draws:
        """Return the random numbers of one update."""
        noise_key, order_key = jax.random.split(key)
        order = jnp.arange(batch)
        if self._actor_goals == "random":
            order = jax.random.permutation(order_key, order)
        return Draws(jax.random.normal(noise_key, (batch, self._dims[2])), order)

    def _update(self, state: LearnerState, batch: Batch, key: jax.Array) -> tuple[LearnerState, Metrics]:
        return self.step(state, batch, self.draw(key, len(batch.goal)))

    def step(self, state: LearnerState, batch: Batch, draws: Draws) -> tuple[LearnerState, Metrics]:
        """Return the state after one step of each optimiser, and the losses before it."""
        old = state.parameters
        (actor_loss, log_prob), actor_gradient = jax.value_and_grad(self._actor_loss, has_aux=True)(
            old["actor"], old["critic"], old["alpha"], batch, draws
        )
        alpha_loss, alpha_gradient = jax.value_and_grad(self._alpha_loss)(old["alpha"], log_prob)
        (critic_loss, metrics), critic_gradient = jax.value_and_grad(self._critic_loss, has_aux=True)(
            old["critic"], batch
        )
        gradients = {"actor": actor_gradient, "alpha": alpha_gradient, "critic": critic_gradient}
        parameters, moments = {}, {}
        for name, gradient in gradients.items():
            change, moments[name] = self._adam.update(gradient, state.moments[name])
            parameters[name] = optax.apply_updates(old[name], change)
        losses = {"actor_loss": actor_loss, "alpha_loss": alpha_loss, "critic_loss": critic_loss}
        return LearnerState(parameters, moments), metrics | losses | {"entropy": -log_prob.mean()}

    def _actor_loss(
        self, actor: Parameters, critic: Parameters, log_alpha: jax.Array, batch: Batch, draws: Draws
    ) -> tuple[jax.Array, jax.Array]:
        """Return mean(α · log π − f(s, π(s, g), g)) and log π, (batch,)."""
        goal = batch.goal[draws.goal_order]
        mean, scale = _heads(self._actor, actor, batch.observation, goal)
        log_std = LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (jnp.tanh(scale) + 1.0)
        action = jnp.tanh(mean + jnp.exp(log_std) * draws.noise)
        log_density = -0.5 * jnp.square(draws.noise) - log_std - 0.5 * math.log(2.0 * math.pi)
        log_prob = (log_density - jnp.log(1.0 - jnp.square(action) + TANH_EPS)).sum(-1)
        state_action = self._encode(critic["state_action"], batch.observation, action)
        energy = -_guarded_norm(state_action - self._encode(critic["goal"], goal))
        return (jnp.exp(log_alpha) * log_prob - energy).mean(), log_prob

    def _alpha_loss(self, log_alpha: jax.Array, log_prob: jax.Array) -> jax.Array:
        """Return α · mean(−log π − H*)."""
        target_entropy = TARGET_ENTROPY_PER_ACTION * self._dims[2]
        return jnp.exp(log_alpha) * (-jax.lax.stop_gradient(log_prob) - target_entropy).mean()

    def _critic_loss(self, critic: Parameters, batch: Batch) -> tuple[jax.Array, Metrics]:
        """Return forward InfoNCE with the positives on the diagonal plus 0.1 · mean(logsumexp²)."""
        state_action = self._encode(critic["state_action"], batch.observation, batch.action)
        goal = self._encode(critic["goal"], batch.goal)
        logits = -_guarded_norm(state_action[:, None, :] - goal[None, :, :])
        logsumexp = jax.nn.logsumexp(logits, axis=1)
        info_nce = (logsumexp - jnp.diagonal(logits)).mean()
        correct = logits.argmax(axis=1) == jnp.arange(len(logits))
        metrics = {"info_nce": info_nce, "categorical_accuracy": correct.mean()}
        return info_nce + LOGSUMEXP_PENALTY * jnp.square(logsumexp).mean(), metrics

    def _encode(self, encoder: Parameters, *inputs: jax.Array) -> jax.Array:
        """Return one encoder's embedding of its inputs, (batch, 64)."""
        return _heads(self._encoder, encoder, *inputs)[0]
