"""What a goal-reaching task is, as data: a model, terms that read it, goals, resets and success.

A task speaks in the names of MuJoCo's own data fields, so that every simulator reads it the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import mujoco
import numpy as np

from thousandfold.envs.distributions import GoalsFromStarts, PositionDistribution
from thousandfold.envs.orientations import rotation_angle
from thousandfold.envs.randomization import Variation
from thousandfold.ground.errors import UserError, nearest_name

MOST_EPISODE_STEPS = 1_000_000
"""control steps of an episode, five hours and a half at 50 Hz: whole episodes are held in memory"""

LONGEST_CLOCK_S = 3600.0
"""seconds of a clock's turn"""

MOST_HISTORY = 1000
"""readings of a term that an observation may show"""

CHANGES = ("episode_steps", "evaluation", "clock_s")
"""What `GoalTask.changed` takes, and what manifests and policies say was changed."""

Transform = Literal["identity", "cos", "sin", "difference"]


class TaskError(UserError, ValueError):
    """A task that cannot be built, or a name in it that its model does not have.

    Attributes:
        entry: how to get to what is wrong within the part of the task at hand, in keys and indices such as
            ``("joints", 1)``; empty where it is the part itself.
    """

    def __init__(self, message: str, entry: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.entry = entry

    def within(self, *entry: str | int) -> TaskError:
        """Return the error as seen from a part of the task that holds this one at `entry`."""
        return TaskError(str(self), (*entry, *self.entry))


@dataclass(frozen=True)
class Sensor:
    """How a term is sensed: `envs.senses` says in which order.

    Attributes:
        noise: on every reading: the standard deviation of normal noise, or ± of uniform noise.
        noise_kind: of noise and bias.
        bias: drawn once an episode and added to all of its readings, as `noise` is.
        quantum: readings are rounded to multiples of it; 0: not.
        delay: control steps until a reading arrives, from the least to the most, drawn once an episode.
        dropout: probability that the last reading arrives again in place of a new one.
        history: how many readings are shown, the newest first.

    Raises:
        TaskError: one of them makes no sense; its entry is the attribute.
    """

    noise: float = 0.0
    noise_kind: Literal["normal", "uniform"] = "normal"
    bias: float = 0.0
    quantum: float = 0.0
    delay: tuple[int, int] = (0, 0)
    dropout: float = 0.0
    history: int = 1

    def __post_init__(self) -> None:
        for name in ("noise", "bias", "quantum"):
            if not 0 <= getattr(self, name) < math.inf:
                raise TaskError(f"{name} must be at least 0, not {getattr(self, name)}.", (name,))
        if self.noise_kind not in ("normal", "uniform"):
            raise TaskError(f"noise_kind {self.noise_kind!r}; valid: normal, uniform.", ("noise_kind",))
        if not 0 <= self.dropout <= 1:
            raise TaskError(f"dropout must be from 0 to 1, not {self.dropout}.", ("dropout",))
        if not 0 <= self.delay[0] <= self.delay[1]:
            low, high = self.delay
            raise TaskError(f"delay must be from 0, low not above high, not {low} to {high}.", ("delay",))
        if not 1 <= self.history <= MOST_HISTORY:
            raise TaskError(
                f"history must be from 1 to {MOST_HISTORY:,} readings, not {self.history}.", ("history",)
            )

    @property
    def is_exact(self) -> bool:
        """Whether the newest reading is what is there; it may be shown beside earlier ones."""
        return not (self.noise or self.bias or self.quantum or self.delay[1] or self.dropout)


@dataclass(frozen=True)
class Term:
    """One reading of a MuJoCo data field.

    Attributes:
        field: a name of `term_columns.FIELDS`, such as ``qpos`` or ``site_xpos``.
        object: the joint, actuator, body, site or sensor to read; None reads every one of them. Of
            ``factors``, which observations alone read, what training draws: a name, or a pattern.
        columns: which numbers of that object to keep (``(0, 1)`` keeps x and y); None keeps all.
        transform: applied element-wise; ``difference`` subtracts the term `minus`.
        minus: the term to subtract, for ``difference`` alone.
        unit: the unit of the numbers that come out, for documentation and exported metadata.
        frame: the body in whose frame positions, vectors and orientations are told; None: the world's axes.
            `columns` are then those of the result.
        sensor: how it is sensed, for terms of an observation alone; None: exactly and at once.
        period_s: of ``time`` alone, which is told as cos and sin of a turn in so many seconds.
    """

    field: str
    object: str | None = None
    columns: tuple[int, ...] | None = None
    transform: Transform = "identity"
    minus: Term | None = None
    unit: str = ""
    frame: str | None = None
    sensor: Sensor | None = None
    period_s: float | None = None


def clock(period_s: float) -> Term:
    """Return the term that tells the time since an episode's start: cos and sin of a turn in `period_s`."""
    return Term("time", period_s=period_s)


@dataclass(frozen=True)
class SuccessRegion:
    """A ball around a slice of the goal: ``|achieved[start:stop] - desired[start:stop]| < radius``.

    Attributes:
        radius: in the goal's unit; in radians for an orientation; in units of `scale` where there is one.
        start, stop: the slice; None goes to the goal's end.
        points: the slice holds so many points, whose mean is compared (2 compares midpoints).
        kind: ``orientation``: the slice is an orientation's six numbers, compared by the angle between.
        scale: what differences are divided by before their length is taken, one each of the numbers of a
            point; empty: not at all.
    """

    radius: float
    start: int = 0
    stop: int | None = None
    points: int = 1
    kind: Literal["distance", "orientation"] = "distance"
    scale: tuple[float, ...] = ()

    def covers(self, *numbers: int) -> bool:
        """Return whether these numbers of the goal are all in the slice."""
        return all(self.start <= each and (self.stop is None or each < self.stop) for each in numbers)

    def mean_point(self, goals: Any) -> Any:
        """Return the mean of the slice's points, (..., size of a point), of goals (..., goal_dim).

        There may be no goals at all, (0, goal_dim), of NumPy or torch.
        """
        points = goals[..., self.start : self.stop]
        if self.points == 1:
            return points
        size = points.shape[-1] // self.points  # -1 would not be known of no goals
        return points.reshape((*points.shape[:-1], self.points, size)).mean(-2)

    def distance(self, achieved_goal: Any, desired_goal: Any) -> Any:
        """Return how far apart goals (..., goal_dim) are in the slice, (...,), to compare with `radius`."""
        if self.kind == "orientation":
            part = slice(self.start, self.stop)
            return rotation_angle(achieved_goal[..., part], desired_goal[..., part])
        difference = self.mean_point(achieved_goal - desired_goal)
        if self.scale:  # number by number: a vector of them would have to be sent to a device
            return sum((difference[..., i] / each) ** 2 for i, each in enumerate(self.scale)) ** 0.5
        return (difference**2).sum(-1) ** 0.5

    def number_radius(self, number: int) -> float:
        """Return how far one number of the slice may be off where all others are met, in its own unit."""
        return self.radius * (self.scale[(number - self.start) % len(self.scale)] if self.scale else 1.0)


@dataclass(frozen=True)
class EarlyEnd:
    """The episode ends when any number of `term` leaves [low, high]."""

    term: Term
    low: float
    high: float


@dataclass(frozen=True)
class Reset:
    """How an episode starts: a base state, positions drawn for some joints, and noise.

    Quaternions are made unit again after the noise. The keyframe gives the rest of the state too, as MuJoCo's
    own reset does: activations, bodies moved from outside, the clock, and the controls that stand until the
    first action. Without one they are the model's initial ones.

    Attributes:
        joints: what `position` draws, in its order: slide or hinge joints by name, one number of any other
            joint as ``root[0]``.
        position: what to draw for them; None draws nothing.
        keyframe: the model's keyframe that gives the base state; None takes its initial positions, at rest.
        qpos_noise: added to joint positions, uniform in ±qpos_noise.
        qvel_noise: standard deviation of the normal noise on joint velocities.
        noise_joints: the joints that the noise goes to; None takes all.
    """

    joints: tuple[str, ...] = ()
    position: PositionDistribution | None = None
    keyframe: str | None = None
    qpos_noise: float = 0.0
    qvel_noise: float = 0.0
    noise_joints: tuple[str, ...] | None = None

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return what is drawn for `joints`, shape (count, len(joints)), before any noise."""
        return np.zeros((count, 0)) if self.position is None else self.position.sample(rng, count)


@dataclass(frozen=True)
class EpisodeDistribution:
    """Where episodes start, which goals they command, and what varies. All is drawn anew at every reset.

    Attributes:
        starts: how they start.
        goals: which goals they command.
        varies: what of the model varies from one to the next, and what pushes there are.
    """

    starts: Reset
    goals: PositionDistribution | GoalsFromStarts
    varies: tuple[Variation, ...] = ()

    def sample(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return drawn positions (count, len(starts.joints)) and goals (count, goal_dim)."""
        positions = self.starts.sample(rng, count)
        if isinstance(self.goals, GoalsFromStarts):
            return positions, self.goals.sample_for(rng, positions)
        return positions, self.goals.sample(rng, count)


EPISODES = ("training", "evaluation", "near")
"""the distributions that a page of a task has sections for; ``near``, goals to begin with, may be missing"""


def with_nominal(distributions: Mapping[str, EpisodeDistribution]) -> dict[str, EpisodeDistribution]:
    """Return the distributions with two more, of evaluation's starts and goals.

    In ``nominal`` nothing varies, in ``randomized`` what varies in training; one that is there already stays.
    """
    evaluation, varies = distributions["evaluation"], distributions["training"].varies
    more = {"nominal": replace(evaluation, varies=()), "randomized": replace(evaluation, varies=varies)}
    return {**distributions, **{name: each for name, each in more.items() if name not in distributions}}


@dataclass(frozen=True)
class Swing:
    """A periodic movement of a target: amplitude · sin(2π (t / period_s + phase)), t since the episode began.

    Attributes:
        amplitude: in the actuator's units.
        period_s: seconds of a turn.
        phase: in turns.
    """

    amplitude: float
    period_s: float
    phase: float = 0.0


@dataclass(frozen=True)
class Command:
    """How an actuator gets its control.

    Attributes:
        actuator: its name.
        kind: ``range`` maps its action from [−1, 1] to [low, high]; ``offset`` to `about` ± `scale`;
            ``delta`` adds up to ± `max_rate` times the control step to what was sent last; ``switch`` gives
            `high` where its action is above 0 and `low` elsewhere; ``hold`` always gives `low` and takes no
            action.
        low, high: what is sent never leaves them, in the actuator's units; None takes the bounds of its
            ctrlrange (not for ``hold``), and those of its joint for an ``offset`` or ``delta`` of a position
            servo without one.
        about: what an ``offset`` of 0 sends; None: where the model's initial position has the joint of a
            position servo.
        scale: of an ``offset``, above 0.
        swing: what is added to the target of an ``offset``; None: nothing.
        max_rate: how fast what is sent may change, in the actuator's units a second; None: at once.
        smoothing_s: time constant of the first-order filter between target and what is sent; 0: none.
    """

    actuator: str
    kind: Literal["range", "switch", "hold", "offset", "delta"] = "range"
    low: float | None = None
    high: float | None = None
    about: float | None = None
    scale: float | None = None
    swing: Swing | None = None
    max_rate: float | None = None
    smoothing_s: float = 0.0


@dataclass(frozen=True)
class MazePicture:
    """What a top-down picture of a maze task needs.

    Attributes:
        layout: rows of cells, as `envs.mazes` takes them.
        scale: metres from cell to cell.
        origin: where the centre of the cell in row 0 and column 0 lies, in metres.
    """

    layout: str
    scale: float
    origin: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class ScenePicture:
    """How a picture of the task is taken, where the model's own extent is no good guide.

    Attributes:
        follow: the body that the camera follows; None looks at `lookat`.
        lookat: a point in metres; None takes the model's centre.
        distance: metres from the camera to what it looks at; None takes 1.5 times the model's extent.
        azimuth, elevation: degrees, as MuJoCo's free camera takes them.
        goal_height: z of a goal that gives only x and y, in metres.
        goal_position: which numbers of the goal are x, y and z (or x and y), to draw it there; None where it
            is no position.
    """

    follow: str | None = None
    lookat: tuple[float, float, float] | None = None
    distance: float | None = None
    azimuth: float = 120.0
    elevation: float = -30.0
    goal_height: float = 0.0
    goal_position: tuple[int, ...] | None = (0, 1)


@dataclass(frozen=True)
class GoalTask:
    """A goal-reaching task, complete but for the simulator that runs it.

    Attributes:
        name: the task's name, lower case with underscores.
        description: one line for tables.
        build_spec: returns a fresh `mujoco.MjSpec` of the model.
        observation: terms that make up the state a policy sees; the goal never leaks into it.
        student_observation: terms that a student sees in its place, which the robot's sensors give; None: the
            same.
        achieved_goal: terms in the space of goals.
        success: regions that must all hold.
        distributions: episode distributions by name; ``training`` and ``evaluation`` are always there.
        control_dt_s: seconds between two actions; a multiple of the model's timestep.
        episode_steps: control steps until an episode is truncated.
        hold_steps: control steps in a row within the success regions that make an episode a success.
        resample_every: control steps after which another goal is commanded; 0 commands one throughout. None
            is commanded for less, so that the last one may be for longer. A success holds all of them.
        early_end: conditions that end an episode before that.
        control: how actions become controls; None gives every actuator its own action over its ctrlrange.
        action_delay: control steps until what is sent acts, least and most, drawn once an episode.
        other_radii: further radii of the first success region that evaluations report, by name: ``easy``,
            ``hard``.
        maze: the maze to draw, for maze tasks.
        scene: how a picture of it is taken.
        file: where the task is described, absolute, for a task of the user's; None for a built-in one.
        changes: what `changed` was told, where this is not the task as it was written.
    """

    name: str
    description: str
    build_spec: Callable[[], mujoco.MjSpec]
    observation: tuple[Term, ...]
    achieved_goal: tuple[Term, ...]
    success: tuple[SuccessRegion, ...]
    distributions: Mapping[str, EpisodeDistribution] = field(default_factory=dict)
    control_dt_s: float = 0.05
    episode_steps: int = 200
    hold_steps: int = 1
    resample_every: int = 0
    early_end: tuple[EarlyEnd, ...] = ()
    control: tuple[Command, ...] | None = None
    student_observation: tuple[Term, ...] | None = None
    action_delay: tuple[int, int] = (0, 0)
    other_radii: Mapping[str, float] = field(default_factory=dict)
    maze: MazePicture | None = None
    scene: ScenePicture = field(default_factory=ScenePicture)
    file: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for required in ("training", "evaluation"):
            if required not in self.distributions:
                raise TaskError(f"Task {self.name!r} has no {required!r} episode distribution.")
        steps = self.episode_steps
        if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= MOST_EPISODE_STEPS:
            raise TaskError(
                f"Task {self.name!r}: episode_steps must be a whole number, at least 1 and at most "
                f"{MOST_EPISODE_STEPS:,}, not {steps!r}."
            )
        if not 1 <= self.hold_steps <= self.episode_steps:
            raise TaskError(
                f"Task {self.name!r}: hold_steps {self.hold_steps} must be at least 1 and no more than the "
                f"{self.episode_steps} steps of an episode."
            )
        if self.resample_every and not self.hold_steps < self.resample_every:
            raise TaskError(
                f"Task {self.name!r}: resample_every {self.resample_every} must be more than the hold_steps "
                f"{self.hold_steps}: no goal could be held."
            )
        self._require_clocks_show()
        self._require_senses_fit()

    def _require_clocks_show(self) -> None:
        """Raise TaskError where control steps cannot show how a clock turns."""
        least = 2 * self.control_dt_s
        for part in ("observation", "student_observation"):
            for index, term in enumerate(getattr(self, part) or ()):
                if term.period_s is not None and not least <= term.period_s <= LONGEST_CLOCK_S:
                    raise TaskError(
                        f"Task {self.name!r}: a clock turns in at least two control steps, {least:g} s, and "
                        f"at most {LONGEST_CLOCK_S:g} s, not in {term.period_s:g} s.",
                        (part, index, "clock"),
                    )

    def _require_senses_fit(self) -> None:
        """Raise TaskError where a delay is longer than an episode, or what is no observation is sensed."""
        owner = f"Task {self.name!r}"
        low, high = self.action_delay
        if not 0 <= low <= high:
            raise TaskError(
                f"{owner}: action_delay must be from 0, low not above high, not {low} to {high}.",
                ("action_delay",),
            )
        delays: list[tuple[tuple[str | int, ...], int]] = [(("action_delay",), high)]
        for part in ("observation", "student_observation"):
            for index, term in enumerate(getattr(self, part) or ()):
                if term.minus is not None and term.minus.sensor is not None:
                    raise TaskError(
                        f"{owner}: sensor keys belong to the whole term: leave them out of what is "
                        "subtracted.",
                        (part, index, "minus"),
                    )
                if term.sensor is None:
                    continue
                delays.append(((part, index, "delay"), term.sensor.delay[1]))
                if term.field in ("ctrl", "time") and not term.sensor.is_exact:
                    known = "ctrl is the last command, which the controller"
                    if term.field == "time":
                        known = "a clock is a time that the controller"
                    raise TaskError(
                        f"{owner}: {known} knows exactly: it may have a history, but no noise or delay.",
                        (part, index),
                    )
        for entry, steps in delays:
            if steps >= self.episode_steps:
                raise TaskError(
                    f"{owner}: {entry[-1]} of {steps} control steps is longer than an episode of "
                    f"{self.episode_steps}.",
                    entry,
                )
        exact = [(("achieved_goal", index), term) for index, term in enumerate(self.achieved_goal)]
        exact += [(("early_end", index), end.term) for index, end in enumerate(self.early_end)]
        for entry, term in exact:
            if term.sensor is not None:
                raise TaskError(
                    f"{owner}: achieved_goal and early_end use true values: leave out the sensor keys.", entry
                )

    @property
    def reference(self) -> str:
        """What finds the task again: the name of a built-in one, the file of a user's."""
        return self.file or self.name

    @property
    def has_clock(self) -> bool:
        """Whether a teacher or a student observes a clock."""
        swings = any(command.swing is not None for command in self.control or ())
        terms = (*self.observation, *(self.student_observation or ()))
        return swings or any(term.field == "time" for term in terms)

    @property
    def judged(self) -> list[str]:
        """Those of `EPISODES` that the task has, which `tasks check` looks at."""
        return [name for name in EPISODES if name in self.distributions]

    def changed(
        self,
        *,
        episode_steps: int | None = None,
        evaluation: str | None = None,
        clock_s: float | None = None,
    ) -> GoalTask:
        """Return the task with other episodes, or with a clock in what is observed.

        Args:
            episode_steps: control steps until an episode is truncated; None leaves them.
            evaluation: the episode distribution that takes the place of ``evaluation``; None leaves it.
            clock_s: period of a clock that teachers and students observe after everything else, where they do
                not observe it already; None: none.

        Raises:
            TaskError: there is no such distribution, or no such number of steps.
        """
        changes, task = dict(self.changes), self
        if isinstance(episode_steps, np.integer):
            episode_steps = int(episode_steps)
        if episode_steps not in (None, self.episode_steps):
            changes["episode_steps"] = episode_steps
            task = replace(task, episode_steps=episode_steps)
        if evaluation not in (None, "evaluation"):
            changes["evaluation"] = evaluation
            distributions = {**self.distributions, "evaluation": self.distribution(evaluation)}
            task = replace(task, distributions=distributions)
        if clock_s not in (None, self.changes.get("clock_s")):
            if "clock_s" in changes:
                raise TaskError(f"Task {self.name!r} has a clock of {changes['clock_s']:g} s already.")
            changes["clock_s"] = clock_s

            def seen_with(terms: tuple[Term, ...]) -> tuple[Term, ...]:
                told = any(term.period_s == clock_s for term in terms)
                return terms if told else (*terms, clock(clock_s))

            seen = task.student_observation
            task = replace(
                task,
                observation=seen_with(task.observation),
                student_observation=None if seen is None else seen_with(seen),
            )
        return self if task is self else replace(task, changes=changes)

    def distribution(self, name: str) -> EpisodeDistribution:
        """Return the episode distribution `name`, or raise TaskError listing the valid ones."""
        if not isinstance(name, str) or name not in self.distributions:
            valid = ", ".join(sorted(self.distributions))
            nearest = nearest_name(str(name), self.distributions)
            hint = f": did you mean {nearest!r}? It" if nearest else "; it"
            raise TaskError(f"Task {self.name!r} has no episode distribution {name!r}{hint} has {valid}.")
        return self.distributions[name]
