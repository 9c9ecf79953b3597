"""What a simulator must do: many worlds of one task, stepped together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.generator_state import pack_generator, unpack_generator
from thousandfold.envs.senses import Draws, PendingControls, SensedReadings
from thousandfold.envs.term_columns import FIELDS
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


_TEACHER_STREAM, _STUDENT_STREAM, _DELAY_STREAM = range(3)

SHOWN = ("observation", "achieved_goal", "desired_goal", "episode_step")
"""The arrays that a simulator shows, which are part of what it saves."""


class ShownView:
    """What is seen of the worlds by one view of the task, as it is read or as it is sensed.

    Attributes:
        task: the view.
        shown: (num_worlds, observation_dim), the observation.
        readings: what the observation's terms are read into: `shown` itself where nothing is sensed.
        sensed: the readings on their way; None where nothing is sensed.
        draws: where noise comes from.

    Args:
        task: the view.
        num_worlds: how many worlds there are.
        seed: of the simulator.
        xp: the module of the arrays, `numpy` or `torch`.
        device: where they lie.
    """

    def __init__(
        self,
        task: CompiledTask,
        num_worlds: int,
        seed: int | np.random.SeedSequence,
        *,
        xp: Any,
        device: Any,
    ) -> None:
        def zeros(size: int) -> Any:
            return xp.zeros((num_worlds, size), dtype=xp.float32, device=device)

        self.task = task
        self.shown = self.readings = zeros(task.observation_dim)
        self.sensed: SensedReadings | None = None
        if task.senses is not None:
            stream = _STUDENT_STREAM if task.is_student_view else _TEACHER_STREAM
            self.readings, self.draws = zeros(task.senses.width), Draws(seed, stream, xp=xp, device=device)
            self.sensed = SensedReadings(task.senses, num_worlds, self.draws, xp=xp, device=device)

    def update(self, begun: Any) -> None:
        """Show what was read last.

        Args:
            begun: worlds that begin an episode, whose mask it is; None: all have taken a control step.
        """
        if self.sensed is None:
            return
        if begun is None:
            self.sensed.sense(self.readings)
        else:
            self.sensed.begin(self.readings, begun)
        self.sensed.show(self.shown)


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
        fields: names of the MuJoCo data fields that are read.
        needs_derived_fields: whether kinematics must be computed at the new state before they are.
        achieved_goal: (num_worlds, goal_dim).
        desired_goal: (num_worlds, goal_dim), the commanded goal. Where the task commands another one after
            some steps, it is that of the state that is shown, and success was judged by it.
        later_goals: (num_worlds, later_goals * goal_dim), what the episode commands after its first goal, one
            after the other, as `CompiledTask.draw_later_goals` drew it; NaN keeps the goal as it is.
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
    fields: tuple[str, ...]
    needs_derived_fields: bool
    achieved_goal: Any
    desired_goal: Any
    later_goals: Any
    episode_step: Any
    diverged_count: int
    overflow_count: int
    _draws: Any

    def __init__(
        self,
        task: CompiledTask,
        num_worlds: int,
        seed: int | np.random.SeedSequence,
        distribution: str,
        *,
        with_student: bool,
        xp: Any,
        device: Any,
    ) -> None:
        task.spec.distribution(distribution)
        if num_worlds < 1:
            raise ValueError(f"num_worlds must be at least 1, not {num_worlds}")
        self.task, self.num_worlds, self.distribution = task, num_worlds, distribution
        self.varied = task.varied_model(distribution)
        self.factor_names = () if self.varied is None else tuple(self.varied.factor_names)
        self.rng = np.random.Generator(np.random.PCG64(seed))
        self._xp, self._device = xp, device
        tasks = dict.fromkeys((task, task.student_view) if with_student else (task,))
        self._views = [ShownView(each, num_worlds, seed, xp=xp, device=device) for each in tasks]
        self.observation = self._views[0].shown
        self.fields = tuple(dict.fromkeys(name for each in tasks for name in each.fields))
        self.needs_derived_fields = not all(FIELDS[name].in_state for name in self.fields)
        self._streams = [view.draws for view in self._views if view.sensed is not None]
        self._pending: PendingControls | None = None
        if any(task.spec.action_delay):
            self._streams.append(Draws(seed, _DELAY_STREAM, xp=xp, device=device))
            self._pending = PendingControls(
                task.spec.action_delay,
                num_worlds,
                task.model.nu,
                self._streams[-1],
                xp=xp,
                device=device,
                dtype=xp.float64 if xp is np else xp.float32,
            )

    @property
    def student_observation(self) -> Any:
        """What a student sees, (num_worlds, its observation_dim): `observation` where the task says no other.

        Raises RuntimeError in a simulator that was made without it (`with_student`).
        """
        if self._views[-1].task is not self.task.student_view:
            raise RuntimeError("the simulator was made without what the student sees: with_student=True")
        return self._views[-1].shown

    def seed_senses(self, seed: int | np.random.SeedSequence) -> None:
        """Seed noise and delays anew, from the next reset of all worlds on; starts and goals are `rng`'s."""
        for draws in self._streams:
            draws.seed(seed)

    @property
    def device_generators(self) -> list[Any]:
        """What steps and resets draw from on the device, as a recording of them has to know."""
        return [draws.rng for draws in self._streams]

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
    def shown(self) -> tuple[str, ...]:
        """The arrays that are shown and part of what is saved; those to come where there are any."""
        return (*SHOWN, "later_goals") if self.task.later_goals else SHOWN

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
        """Command goals, (num_worlds, goal_dim) or broadcastable, in the worlds of the mask.

        They stay until the next reset, also where the task commands others after some steps.
        """

    def _goals_now(self, ended: Any, xp: Any) -> Any:
        """Return the goals that are commanded from this step on, (num_worlds, goal_dim).

        Args:
            ended: (num_worlds,) bool, where the step ended the episode, whose goal stays.
            xp: the module of the arrays, `numpy` or `torch`.
        """
        count, every = self.task.later_goals, self.task.spec.resample_every
        turn = self.episode_step // every
        due = (self.episode_step % every == 0) & (turn <= count) & ~ended
        later = self.later_goals.reshape(self.num_worlds, count, self.task.goal_dim)
        drawn = later[xp.arange(self.num_worlds, device=later.device), (turn - 1).clip(0, count - 1)]
        goal = self.task.goals_from(self.distribution, drawn, self.achieved_goal, xp)
        return xp.where(due[:, None] & ~xp.isnan(goal), goal, self.desired_goal)

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

    def _begin_streams(self) -> None:
        """Begin other random streams of the senses: all worlds are reset."""
        for draws in self._streams:
            draws.begin()

    def _memory(self) -> dict[str, Any]:
        """Return the arrays in which senses and delays remember, by the name under which they are saved."""
        parts: dict[str, Any] = {
            f"{_name_of(view)}_senses": view.sensed for view in self._views if view.sensed is not None
        }
        if self._pending is not None:
            parts["pending_controls"] = self._pending
        return {f"{part}.{name}": array for part, owner in parts.items() for name, array in owner.state()}

    def _senses_state(self) -> dict[str, np.ndarray]:
        """Return what senses and delays remember and draw from; nothing of a task without any."""
        saved = {name: _copy_on_host(array) for name, array in self._memory().items()}
        if len(self._views) > 1:
            saved["student_observation"] = _copy_on_host(self.student_observation)
        for index, draws in enumerate(self._streams):
            saved |= {f"draws_{index}.{name}": array for name, array in draws.state().items()}
        return saved

    def _load_senses(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore what `_senses_state` returned."""
        live = self._memory()
        if len(self._views) > 1:
            live["student_observation"] = self.student_observation
        for name, array in live.items():
            array[:] = self._xp.asarray(state[name], device=self._device)
        for index, draws in enumerate(self._streams):
            draws.restore({name: state[f"draws_{index}.{name}"] for name in draws.state()})


def _name_of(view: ShownView) -> str:
    return "student" if view.task.is_student_view else "teacher"


def _copy_on_host(array: Any) -> np.ndarray:
    return array.copy() if isinstance(array, np.ndarray) else array.cpu().numpy().copy()


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
