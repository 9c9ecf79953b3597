"""A task bound to its compiled model: term names resolved to columns of MuJoCo's data fields.

Arrays may be NumPy's or torch's; `xp` is the module of the arrays at hand (`numpy` or `torch`).
"""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import mujoco
import numpy as np

from thousandfold.envs.control_map import ControlMap
from thousandfold.envs.distributions import relative_numbers
from thousandfold.envs.mujoco_log import compile_spec
from thousandfold.envs.orientations import are_orientations
from thousandfold.envs.randomization import Variation
from thousandfold.envs.reachable_goals import achieved_goal, require_drawable
from thousandfold.envs.senses import require_told_apart, senses_of
from thousandfold.envs.start_states import STATE, StartStates, require_whole_state
from thousandfold.envs.task import EpisodeDistribution, GoalTask, SuccessRegion, TaskError, clock
from thousandfold.envs.term_columns import (
    FACTORS_FIELD,
    FIELDS,
    TermColumns,
    TermResolver,
    describe_elements,
    earlier_names,
    is_orientation,
    label_of,
    leave_bounds,
    read_terms,
)
from thousandfold.envs.varied_model import VariedModel, held_factors

_MOST_FRAME_SKIP = 10_000  # physics steps within a control step
_TRIAL_GOALS = 256


class CompiledTask:
    """A `GoalTask` with its model compiled, its dimensions known and its terms resolved.

    Attributes:
        spec: the task as written; its observation ends with what was sent last and with clocks, where actions
            build on them.
        model: the compiled `mujoco.MjModel`.
        model_warnings: what MuJoCo warned of as it compiled it.
        frame_skip: physics steps per control step.
        observation_dim, goal_dim, action_dim: sizes of the three spaces.
        control: maps actions to the controls of the model's actuators.
        senses: how the observation's terms are sensed; None where each is read exactly, at once and alone.
        student_view: the task as students see it, whose observation is the task's `student_observation`; the
            task itself where it has none, and where it is such a view.
        is_student_view: whether it is such a view.
    """

    is_student_view = False

    def __init__(self, task: GoalTask) -> None:
        self.spec = task
        self.name = task.name
        owner = f"Task {task.name!r}"
        try:
            self.model, self.model_warnings = compile_spec(task.build_spec())
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise TaskError(f"{owner}: MuJoCo refuses the model: {reason}") from error
        if not np.isfinite(self.model.qpos0).all():
            raise TaskError(f"{owner}: the model's initial positions hold NaN or infinity.")
        require_whole_state(self.model, owner)
        self.frame_skip = self._frame_skip()
        self.control = ControlMap(self.model, task.control, owner, task.control_dt_s)
        self.action_dim = self.control.action_dim
        if told := self.control.missing_terms(task.observation):
            self.spec = task = replace(task, observation=(*task.observation, *told))
        seen = task.student_observation
        if seen is not None and (told := self.control.missing_terms(seen)):
            self.spec = task = replace(task, student_observation=(*seen, *told))
        resolver = TermResolver(self.model, owner)
        self._observed_factors = self._factors_of_training()
        told = None if self._observed_factors is None else self._observed_factors.factor_elements
        observer = TermResolver(self.model, owner, told)
        self._resolve_observation(observer.resolve(task.observation), "observation")
        self._achieved_goal = resolver.resolve(task.achieved_goal)
        self._early_end = [(end, resolver.resolve((end.term,))) for end in task.early_end]
        self.goal_dim = self._achieved_goal[-1].stop
        if not task.success:
            raise TaskError(f"{owner} has no success region.")
        for region in task.success:
            require_region_fits(region, self._achieved_goal, owner)
        self._starts = self._start_states()
        self._varied = self._varied_models()
        self.student_view = self._seen_by_student(observer)

    def _resolve_observation(self, terms: list[TermColumns], part: str) -> None:
        """Take the terms of an observation, which are those of a part of the task as it is written."""
        self._observation, self.senses = terms, senses_of(terms)
        self.observation_dim = terms[-1].stop if self.senses is None else self.senses.dim
        require_told_apart(self.model, terms, part, f"Task {self.name!r}")

    def _seen_by_student(self, resolver: TermResolver) -> CompiledTask:
        if self.spec.student_observation is None:
            return self
        view = copy.copy(self)
        view.spec = replace(self.spec, observation=self.spec.student_observation, student_observation=None)
        view.is_student_view, view.student_view = True, view
        view._resolve_observation(resolver.resolve(view.spec.observation), "student_observation")
        return view

    def _start_states(self) -> dict[str, StartStates]:
        """Return what draws the starts of each distribution, whose goals must fit."""
        owner = f"Task {self.name!r}"
        starts = {
            name: StartStates(self.model, distribution.starts, owner, self.spec.has_clock)
            for name, distribution in self.spec.distributions.items()
        }
        self._episodes = {
            name: require_drawable(self.model, self.spec, name, own, f"{owner}, {name}")
            for name, own in starts.items()
        }
        self._relative = {
            name: require_goals_fit(episodes, self._achieved_goal, f"{owner}, {name}")
            for name, episodes in self._episodes.items()
        }
        return starts

    def _varied_models(self) -> dict[str, VariedModel]:
        """Return what draws the model of each distribution that varies it; of all where factors are told."""
        known: dict[tuple[Variation, ...], VariedModel] = {}
        distributions = self.spec.distributions.items()
        if self._observed_factors is None:
            distributions = [(name, each) for name, each in distributions if each.varies]
        for _, each in distributions:
            if each.varies not in known:
                known[each.varies] = self._varied_model(each.varies, self._observed_factors)
        return {name: known[each.varies] for name, each in distributions}

    def _varied_model(
        self, varies: tuple[Variation, ...], observed: VariedModel | None = None
    ) -> VariedModel:
        return VariedModel(
            self.model,
            self.spec.build_spec,
            varies,
            f"Task {self.name!r}",
            control_dt_s=self.spec.control_dt_s,
            episode_steps=self.spec.episode_steps,
            observed=observed,
        )

    def _factors_of_training(self) -> VariedModel | None:
        """Return what draws the factors that are observed; None where none are."""
        terms = (*self.spec.observation, *(self.spec.student_observation or ()))
        if all(term.field != FACTORS_FIELD for term in terms):
            return None
        return self._varied_model(self.spec.distribution("training").varies)

    def __deepcopy__(self, memo: object) -> CompiledTask:
        """Return the task itself: nothing changes it, and copies of what runs it share its model."""
        return self

    def changed(self, **changes: Any) -> CompiledTask:
        """Return the task changed; arguments as of `GoalTask.changed`.

        Raises:
            TaskError: as `GoalTask.changed`.
        """
        task = self.spec.changed(**changes)
        if task is self.spec:
            return self
        seen, before = ((each.observation, each.student_observation) for each in (task, self.spec))
        return self._under(task) if seen == before else CompiledTask(task)

    def with_factors(self, factors: Mapping[str, float] | Sequence[Variation]) -> CompiledTask:
        """Return the same model under a task whose every distribution varies by these factors and no others.

        Starts and goals stay those of the same seed.

        Args:
            factors: numbers to hold, by the name of their factor: ``{"mass": 0.7, "friction": 1.3}``. They
                are about the objects that training varies by that name, all that there are where it does
                not; ``push`` is the speed of training's pushes, in m/s. Or a list of `Factor` and `Push`.

        Raises:
            TaskError: there is no such factor, or the model cannot have it.
        """
        varies = held_factors(factors, self.spec.distribution("training").varies, f"Task {self.name!r}")
        distributions = {name: replace(each, varies=varies) for name, each in self.spec.distributions.items()}
        return self._under(replace(self.spec, distributions=distributions))

    def with_action_delay(self, steps: int) -> CompiledTask:
        """Return the same model under a task in which what is sent acts so many control steps later.

        Raises:
            TaskError: the delay is longer than an episode.
        """
        return self._under(replace(self.spec, action_delay=(steps, steps)))

    def _under(self, task: GoalTask) -> CompiledTask:
        """Return the same model under a task that differs in its episodes alone."""
        changed = copy.copy(self)
        changed.spec = task
        kept = {name: (each.starts, each.goals) for name, each in self.spec.distributions.items()}
        if kept != {name: (each.starts, each.goals) for name, each in task.distributions.items()}:
            changed._starts = changed._start_states()
        changed._varied = changed._varied_models()
        changed.student_view = changed
        if (view := self.student_view) is not self:
            seen = replace(task, observation=view.spec.observation, student_observation=None)
            changed.student_view = view._under(seen)
        return changed

    def __repr__(self) -> str:
        return f"CompiledTask({self.name!r})"

    def _frame_skip(self) -> int:
        control_dt, timestep = self.spec.control_dt_s, self.model.opt.timestep
        if not control_dt > 0:
            raise TaskError(f"Task {self.name!r}: control_dt_s must be above 0, not {control_dt}.")
        if not timestep > 0:
            raise TaskError(
                f"Task {self.name!r}: the model's timestep (option timestep) must be above 0, not {timestep}."
            )
        ratio = control_dt / timestep
        if not ratio <= _MOST_FRAME_SKIP:
            raise TaskError(
                f"Task {self.name!r}: control_dt_s {control_dt} holds more than {_MOST_FRAME_SKIP:,} of the "
                f"model's timesteps {timestep}."
            )
        if round(ratio) < 1 or abs(ratio - round(ratio)) > 1e-6 * ratio:
            raise TaskError(
                f"Task {self.name!r}: control_dt_s {control_dt} is not a multiple of the model's timestep "
                f"{timestep}."
            )
        return round(ratio)

    # -- terms ------------------------------------------------------------------------------------

    @functools.cached_property
    def fields(self) -> tuple[str, ...]:
        """Names of the MuJoCo data fields that the task reads."""
        terms = [*self.spec.observation, *self.spec.achieved_goal, *(end.term for end in self.spec.early_end)]
        names = [term.field for term in terms] + [term.minus.field for term in terms if term.minus]
        resolved = [*self._observation, *self._achieved_goal, *(each for _, (each,) in self._early_end)]
        names += [name for each in resolved for name in each.fields]
        return tuple(dict.fromkeys(names))

    @functools.cached_property
    def needs_derived_fields(self) -> bool:
        """Whether a simulator must compute kinematics at the new state before the terms are read."""
        return not all(FIELDS[name].in_state for name in self.fields)

    def read_observation(self, fields: Mapping[str, Any], out: Any, xp: Any = np) -> None:
        """Write the observation's terms into `out` as they are, (num_worlds, observation_dim).

        Where they are sensed, `out` is (num_worlds, senses.width), and `senses` says what is seen of them.

        Args:
            fields: arrays (num_worlds, width) by field name.
            out: array to fill, of the kind that `xp` makes.
            xp: the module that `out` belongs to, `numpy` or `torch`.
        """
        read_terms(self._observation, fields, out, xp)

    def read_achieved_goal(self, fields: Mapping[str, Any], out: Any, xp: Any = np) -> None:
        """Write the achieved goal into `out`, (num_worlds, goal_dim). Arguments as in `read_observation`."""
        read_terms(self._achieved_goal, fields, out, xp)

    def early_end_holds(self, index: int, fields: Mapping[str, Any], xp: Any = np) -> Any:
        """Return (num_worlds,) bool, true where the early end of this index holds."""
        end, columns = self._early_end[index]
        return leave_bounds(columns, end.low, end.high, fields, xp)

    def ended_early(self, fields: Mapping[str, Any], xp: Any = np) -> Any:
        """Return (num_worlds,) bool, true where an early end holds; None for a task without any."""
        ended = [self.early_end_holds(index, fields, xp) for index in range(len(self._early_end))]
        return functools.reduce(operator.or_, ended) if ended else None

    def term_spans(self, part: str) -> list[slice]:
        """Return which numbers of ``observation`` or ``achieved_goal`` each of its terms gives."""
        if part == "observation" and self.senses is not None:
            return self.senses.spans
        return [slice(columns.start, columns.stop) for columns in self._terms(part)]

    # -- goals, actions, resets -------------------------------------------------------------------

    def is_success(self, achieved_goal: Any, desired_goal: Any) -> Any:
        """Return (...,) bool for goals of shape (..., goal_dim): every success region holds."""
        within = (
            region.distance(achieved_goal, desired_goal) < region.radius for region in self.spec.success
        )
        return functools.reduce(operator.and_, within)

    def goal_distance(self, achieved_goal: Any, desired_goal: Any) -> Any:
        """Return the distance in the first success region, shape (...,); see `SuccessRegion.distance`."""
        return self.spec.success[0].distance(achieved_goal, desired_goal)

    def distance_unit(self, region: SuccessRegion) -> str:
        """Return the unit of distances in a success region; empty where there is none, or several."""
        if region.kind == "orientation":
            return "rad"
        return "" if region.scale else self.describe("achieved_goal")[region.start]["unit"]

    @functools.cached_property
    def orientations(self) -> list[slice]:
        """Which numbers of a goal are the six of an orientation, one slice each."""
        return orientation_spans(self._achieved_goal)

    def sample_start(
        self, distribution: str, rng: np.random.Generator, count: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw initial positions and velocities, and goals; the rest of the state is `start_state`'s.

        Returns:
            qpos (count, nq), qvel (count, nv), desired goal (count, goal_dim), all float64.
        """
        qpos, qvel, goals = self.draw_start(distribution, rng, count)
        if self._relative[distribution] is None:
            return qpos, qvel, goals
        data, achieved = self.start_data(distribution), np.zeros(goals.shape)
        for index, (data.qpos[:], data.qvel[:]) in enumerate(zip(qpos, qvel, strict=True)):
            mujoco.mj_forward(self.model, data)
            achieved[index] = achieved_goal(data, self._achieved_goal)
        return qpos, qvel, self.goals_from(distribution, goals, achieved)

    def draw_start(
        self, distribution: str, rng: np.random.Generator, count: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw what `sample_start` does; goals relative to the start are left so, for `goals_from`."""
        self.spec.distribution(distribution)
        positions, goals = self._episodes[distribution].sample(rng, count)
        qpos, qvel = self._starts[distribution].sample(rng, positions)
        return qpos, qvel, goals

    @property
    def later_goals(self) -> int:
        """How many goals are commanded in an episode after the first one."""
        every = self.spec.resample_every
        return max(self.spec.episode_steps // every - 1, 0) if every else 0

    def draw_later_goals(self, distribution: str, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw the goals that episodes command after the first one, (count, later_goals, goal_dim) float64.

        Those that are relative are left so, for `goals_from`; those that follow from a start follow from
        another than the episode's.
        """
        goals = np.zeros((count, self.later_goals, self.goal_dim))
        if goals.size:
            drawn = self._episodes[distribution].sample(rng, count * self.later_goals)[1]
            goals[:] = drawn.reshape(goals.shape)
        return goals

    def goals_from(self, distribution: str, goals: Any, achieved_goal: Any, xp: Any = np) -> Any:
        """Return drawn goals, those that are relative added to what is achieved; all (count, goal_dim)."""
        relative = self._relative[distribution]
        if relative is None:
            return goals
        columns = [
            goals[:, number] + achieved_goal[:, number] if added else goals[:, number]
            for number, added in enumerate(relative)
        ]
        return xp.stack(columns, 1)

    def start_state(self, distribution: str) -> np.ndarray:
        """Return the integration state that a distribution's episodes start in, (state size,) float64.

        Its positions and velocities are those before anything is drawn: `sample_start` draws the episode's.
        """
        self.spec.distribution(distribution)
        return self._starts[distribution].base

    def start_data(self, distribution: str) -> mujoco.MjData:
        """Return an `MjData` in a distribution's start state; nothing is computed from it yet."""
        data = mujoco.MjData(self.model)
        mujoco.mj_setState(self.model, data, self.start_state(distribution), STATE)
        return data

    def varied_model(self, distribution: str) -> VariedModel | None:
        """Return what draws the model of a distribution's episodes; None where nothing varies."""
        self.spec.distribution(distribution)
        return self._varied.get(distribution)

    # -- documentation ----------------------------------------------------------------------------

    def goal_positions(self, goals: np.ndarray) -> np.ndarray | None:
        """Return the positions in the world that goals stand for, in metres; None where a goal is none.

        Goals over several points, such as two fingertips, stand for the mean of these.

        Args:
            goals: (..., goal_dim), commanded or achieved.

        Returns:
            (..., 1 to 3): x, or x and y, or all three, as the scene's `goal_position` says.
        """
        columns, region = self.spec.scene.goal_position or (), self.spec.success[0]
        if not 1 <= len(columns) <= 3 or max(columns) >= self.goal_dim:
            return None
        goals = np.asarray(goals, float)
        if region.points > 1:
            return region.mean_point(goals)[..., : len(columns)]
        return goals[..., list(columns)]

    @functools.cached_property
    def position_radius(self) -> float:
        """How large a goal is drawn around its position, in metres: what success lets it be off there."""
        columns = self.spec.scene.goal_position or ()
        for region in self.spec.success:
            if region.kind == "distance" and columns and region.covers(columns[0]):
                return region.number_radius(columns[0])
        return self.spec.success[0].radius

    def describe(self, part: str) -> list[dict[str, str]]:
        """Return name and unit of every number of ``observation`` or ``achieved_goal``, in order.

        `term_columns.describe_elements` says how they are called; earlier readings end with how many control
        steps ago they came, as ``qpos:elbow[0]@-1``.
        """
        return [
            element | {"name": f"{element['name']}{suffix}"}
            for columns in self._terms(part)
            for suffix in _suffixes(columns)
            for element in describe_elements(self.model, columns)
        ]

    def groups_of_a_unit(self, part: str) -> list[int]:
        """Return a number for each number of ``observation`` or ``achieved_goal``, the same for one unit.

        Where the unit is not known they are one group with the others of their term alone. Factors are each
        a group of their own: what is drawn hardly varies beside what moves.
        """
        units = [element["unit"] for element in self.describe(part)]
        spans = zip(self._terms(part), self.term_spans(part), strict=True)
        keys = [
            (index, number) if columns.factors else units[number] or index
            for index, (columns, span) in enumerate(spans)
            for number in range(span.start, span.stop)
        ]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        return [numbers[key] for key in keys]

    def achieved_in_observation(self) -> list[int] | None:
        """Return which numbers of an observation are what its state achieves, exactly; None: it lacks one."""
        seen = [element["name"] for element in self.describe("observation")]
        for columns, span in zip(self._observation, self.term_spans("observation"), strict=True):
            if columns.term.sensor is not None and not columns.term.sensor.is_exact:
                seen[span] = [""] * len(seen[span])
        achieved = [element["name"] for element in self.describe("achieved_goal")]
        return [seen.index(name) for name in achieved] if set(achieved) <= set(seen) else None

    def clock_columns(self) -> list[int]:
        """Return which numbers of an observation are cos and sin of the clock that the task was given."""
        seen = [element["name"] for element in self.describe("observation")]
        name = label_of(clock(self.spec.changes["clock_s"]))
        return [seen.index(f"{name}[{number}]") for number in range(2)]

    def swing_clocks(self) -> list[int]:
        """Return which numbers of an observation are cos and sin of the clocks that targets swing with."""
        seen = [element["name"] for element in self.describe("observation")]
        names = [label_of(clock(period)) for period in self.control.periods]
        return [seen.index(f"{name}[{number}]") for name in names for number in range(2)]

    def last_controls(self) -> list[int]:
        """Return for each actuator which number of an observation is what was sent last; 0: none counts."""
        seen = [element["name"] for element in self.describe("observation")]
        pairs = zip(self.control.actuators, self.control.stateful, strict=True)
        return [seen.index(f"ctrl:{name}[0]") if counts else 0 for name, counts in pairs]

    def earlier_names(self, part: str) -> list[str]:
        """Return how files of earlier versions call the same numbers: see `term_columns.earlier_names`."""
        return [
            name + suffix
            for columns in self._terms(part)
            for suffix in _suffixes(columns)
            for name in earlier_names(self.model, columns)
        ]

    def _terms(self, part: str) -> list[TermColumns]:
        return {"observation": self._observation, "achieved_goal": self._achieved_goal}[part]


def _suffixes(columns: TermColumns) -> list[str]:
    """Return how the names of a term's numbers end, reading by reading, the newest first."""
    history = 1 if columns.term.sensor is None else columns.term.sensor.history
    return ["", *(f"@-{age}" for age in range(1, history))]


def orientation_spans(goal: Sequence[TermColumns]) -> list[slice]:
    """Return which numbers of a goal, of its resolved terms, are an orientation's six, one slice each."""
    return [slice(columns.start, columns.stop) for columns in goal if is_orientation(columns.term)]


def require_region_fits(region: SuccessRegion, goal: Sequence[TermColumns], owner: str) -> None:
    """Raise TaskError where a success region has no radius, or does not suit a goal of these terms."""
    goal_dim = goal[-1].stop
    stop = goal_dim if region.stop is None else region.stop
    if region.radius <= 0:
        raise TaskError(f"{owner}: the success radius must be above 0, not {region.radius}.")
    if not 0 <= region.start < stop <= goal_dim:
        span = f"the slice [{region.start}, {stop}]"
        raise TaskError(f"{owner}: {span} does not fit an achieved_goal of {goal_dim} numbers.")
    if (size := stop - region.start) % region.points:
        raise TaskError(f"{owner}: {size} numbers cannot be divided into {region.points} points.")
    if region.kind == "orientation" and slice(region.start, stop) not in orientation_spans(goal):
        raise TaskError(f"{owner}: numbers {region.start} to {stop - 1} of the goal are no orientation.")
    if region.scale and len(region.scale) != size // region.points:
        raise TaskError(
            f"{owner}: scale has {len(region.scale)} numbers for {size // region.points} that are compared.",
            ("scale",),
        )


def require_goals_fit(
    episodes: EpisodeDistribution, goal: Sequence[TermColumns], owner: str
) -> list[bool] | None:
    """Return which numbers of drawn goals are relative to the start; None: none are.

    Raises:
        TaskError: they have another size than the achieved goal, or no orientations where that has them.
    """
    shape = episodes.sample(np.random.default_rng(0), 1)[1].shape
    if shape != (1, goal[-1].stop):
        raise TaskError(f"{owner}: goals have {shape[1]} numbers, but the achieved_goal has {goal[-1].stop}.")
    spans, relative = orientation_spans(goal), relative_numbers(episodes.goals)
    if any(any(relative[span]) for span in spans):
        raise TaskError(
            f"{owner}: goals relative to the start are positions and scalars, and some of these numbers are "
            "an orientation: draw it with `orientation`, beside the rest."
        )
    drawn = episodes.sample(np.random.default_rng(0), _TRIAL_GOALS)[1] if spans else np.zeros((0, 0))
    for span in spans:
        if not are_orientations(drawn[:, span]):
            raise TaskError(
                f"{owner}: numbers {span.start} to {span.stop - 1} of the goal are an orientation, and what "
                "is drawn for them is none: draw them with `orientation: {quat: [1, 0, 0, 0]}`."
            )
    return relative if any(relative) else None
