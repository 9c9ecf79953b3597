"""What a simulator must do: many worlds of one task, stepped together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.varied_model import DrawStream


class StepResult(NamedTuple):
    """What a control step ended in; each an array (num_worlds,) of bool."""

    success: Any
    """The achieved goal lies within the success region of the desired goal."""
    terminated: Any
    """The task's early end holds."""
    truncated: Any
    """The episode has had its number of steps."""
    unstable: Any
    """The world is in quarantine: its episode must be dropped and the world reset."""


SHOWN = ("observation", "achieved_goal", "desired_goal", "episode_step")
"""The arrays that a simulator shows, which are part of what it saves."""


class Simulator(ABC):
    """Many worlds of one task. Never resets by itself: whoever steps it resets what ended.

    Arrays are float32, NumPy or torch as the simulator says, and are overwritten by the next call:
    copy what must last.

    A world whose physics diverged, or that found no room for its contacts or constraints, is in quarantine
    until it is reset or put into a state: it shows zeros and every step calls it unstable.

    Attributes:
        task: the compiled task.
        num_worlds: how many worlds run.
        distribution: the episode distribution that resets draw from.
        observation: (num_worlds, observation_dim).
        achieved_goal: (num_worlds, goal_dim).
        desired_goal: (num_worlds, goal_dim), the commanded goal.
        episode_step: (num_worlds,) int, control steps since the last reset.
        diverged_count: worlds that went into quarantine because their physics diverged, since the simulator
            was made.
        overflow_count: worlds that did because contacts or constraints found no room.
        varied: what draws the model of each episode; None where nothing varies.
        factor_names: what `factors` holds, none where nothing varies.
    """

    task: CompiledTask
    num_worlds: int
    distribution: str
    observation: Any
    achieved_goal: Any
    desired_goal: Any
    episode_step: Any
    diverged_count: int
    overflow_count: int
    _draws: Any

    def __init__(
        self, task: CompiledTask, num_worlds: int, seed: int | np.random.SeedSequence, distribution: str
    ) -> None:
        task.spec.distribution(distribution)
        if num_worlds < 1:
            raise ValueError(f"num_worlds must be at least 1, not {num_worlds}")
        self.task, self.num_worlds, self.distribution = task, num_worlds, distribution
        self.varied = task.varied_model(distribution)
        self.factor_names = () if self.varied is None else tuple(self.varied.factor_names)
        self.rng = np.random.Generator(np.random.PCG64(seed))

    @property
    def rng(self) -> np.random.Generator:
        """The generator that resets draw starts and goals from.

        What varies is drawn from another, which begins where this one stands when it is given: a seed has the
        same starts and goals whatever varies beside them.
        """
        return self._rng

    @rng.setter
    def rng(self, rng: np.random.Generator) -> None:
        if getattr(self, "_rng", None) is rng:
            return
        self._rng = rng
        words = [int(word) for word in pack_generator(rng)]
        if self.varied is not None:
            self._stream = DrawStream(self.varied, np.random.Generator(np.random.PCG64(words)))

    @property
    def factors(self) -> Any:
        """What was drawn for the episode of each world, (num_worlds, factors), named by `factor_names`."""
        return self._draws[:, : len(self.factor_names)]

    @property
    def unstable_count(self) -> int:
        """Worlds that went into quarantine since the simulator was made."""
        return self.diverged_count + self.overflow_count

    @abstractmethod
    def reset(self, worlds: Any = None) -> None:
        """Start a fresh episode, with a fresh goal, in the worlds of the mask (num_worlds,); None: in all."""

    def unroll(self, steps: int) -> AbstractContextManager[None]:
        """Return the scope of an unroll of `steps` control steps, for which a simulator may get ready.

        Worlds may be reset after each of them. Inside the scope there is no `state_dict`.
        """
        return nullcontext()

    @abstractmethod
    def step(self, action: Any) -> StepResult:
        """Advance every world by one control step.

        Args:
            action: (num_worlds, action_dim), clipped to [−1, 1].
        """

    @abstractmethod
    def set_goal(self, goal: Any, worlds: Any = None) -> None:
        """Command goals, (num_worlds, goal_dim) or broadcastable, in the worlds of the mask."""

    @abstractmethod
    def set_state(self, qpos: Any, qvel: Any) -> None:
        """Put every world into a state, (num_worlds, nq) and (num_worlds, nv), and refresh what is read.

        All else is as at the start of an episode, before its first step: activations, bodies moved from
        outside, controls, the clock, what the solver and delays remember. Nothing of before plays a part, but
        that each world keeps the model, and the times of pushes, that were drawn for its episode.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, np.ndarray]:
        """Return everything that the next step depends on, as arrays; the generator's state included."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Restore what `state_dict` returned; raise ValueError when it is of another size or task."""

    def _draws_state(self) -> dict[str, np.ndarray]:
        """Return what a saved state holds of what varies; nothing where nothing does."""
        if self.varied is None:
            return {}
        draws = self._draws if isinstance(self._draws, np.ndarray) else self._draws.cpu().numpy()
        rng, taken = self._stream.state
        generator = {"draws_generator": pack_generator(rng), "draws_taken": np.array(taken)}
        return {"draws": draws.copy(), **generator}

    def _load_stream(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on with the draws where a saved state did."""
        if self.varied is not None:
            rng = unpack_generator(state["draws_generator"])
            self._stream = DrawStream.from_state(self.varied, rng, int(state["draws_taken"]))


_ADDED = ("overflow_count", "quarantined")  # to what simulators save; older checkpoints do without


def checked_state(
    expected: Mapping[str, np.ndarray], state: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return `state`, complete: what older checkpoints lack is 0.

    Raises:
        ValueError: it has not the names and shapes of `expected`; the message names the entry.
    """
    complete = {name: np.zeros_like(expected[name]) for name in _ADDED} | dict(state)
    for name, array in expected.items():
        if name not in complete:
            raise ValueError(f"a simulator state without {name!r}")
        shape = np.shape(complete[name])
        if shape != array.shape:
            raise ValueError(f"a simulator state with {name!r} of shape {shape}, not {array.shape}")
    return complete


def pack_generator(rng: np.random.Generator) -> np.ndarray:
    """Return a PCG64 generator's state as 6 unsigned 64-bit numbers (two 128-bit words, then the buffer)."""
    state = rng.bit_generator.state
    low = (1 << 64) - 1
    words = [state["state"]["state"], state["state"]["inc"]]
    halves = [half for word in words for half in (word & low, word >> 64)]
    return np.array([*halves, state["has_uint32"], state["uinteger"]], dtype=np.uint64)


def unpack_generator(packed: np.ndarray) -> np.random.Generator:
    """Return the generator whose state `pack_generator` packed."""
    numbers = [int(number) for number in packed]
    rng = np.random.Generator(np.random.PCG64())
    rng.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": numbers[0] | numbers[1] << 64, "inc": numbers[2] | numbers[3] << 64},
        "has_uint32": numbers[4],
        "uinteger": numbers[5],
    }
    return rng
