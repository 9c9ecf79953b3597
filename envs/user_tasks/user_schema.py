"""What a user's page of YAML may say about a task. Docs: docs/user_tasks.md."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

import pydantic
from pydantic import Field

from thousandfold.envs.mazes import LAYOUTS
from thousandfold.envs.object_names import nearest_hint
from thousandfold.envs.task import EPISODES, MOST_EPISODE_STEPS, MOST_HISTORY, TaskError
from thousandfold.envs.user_tasks.task_yaml import Location, Page
from thousandfold.ground.errors import nearest_name

Entry = TypeVar("Entry")
Numbers = Annotated[list[float], Field(min_length=1)]
_LARGEST_NOISE = 1e9  # far below where ± of it is no number any more
_HALF_TURN = 3.1416
_MAZE_CHARACTERS = set("#RG. ")
_MOST_MAZE_CELLS = 10_000  # each wall is a geom


def _name(text: str) -> str:
    if not re.fullmatch("[a-z][a-z0-9_]{0,59}", text):
        raise ValueError(
            f"must be lower-case letters, digits and _, a letter first, up to 60 (got {text!r:.80})"
        )
    return text


def _not_empty(value: Any) -> Any:
    """Refuse an empty value where a name goes: `null` would silently mean all objects."""
    if value is None:
        raise ValueError("is empty: leave the key out, or give a name; one that reads `null` goes in quotes")
    return value


ObjectName = Annotated[str | None, pydantic.BeforeValidator(_not_empty)]
"""The name of an object of the model; None where the key is left out."""
Name = Annotated[str, pydantic.AfterValidator(_name)]


def _whole(value: Any) -> Any:
    """Take 1e3 for 1000."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, pydantic.BeforeValidator(_whole)]
"""An integer, which may be written as a float without a fraction."""


class _Section(pydantic.BaseModel):
    """A mapping. Unknown keys, texts and booleans in place of numbers, NaN and infinity are refused."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class PoseEntry(_Section):
    """What has an orientation: a body, a site or a geom."""

    object: str
    kind: Literal["body", "site", "geom"] = "body"


class TermEntry(_Section):
    """One reading of a MuJoCo data field, or of an orientation; see `envs.task.Term`."""

    in_place_of_field: ClassVar[tuple[str, ...]] = ("orientation", "up")

    field: str | None = None
    orientation: PoseEntry | None = None
    up: PoseEntry | None = None
    object: ObjectName = None
    columns: Annotated[list[Whole], Field(min_length=1)] | None = None
    transform: Literal["identity", "cos", "sin", "difference"] | None = None
    minus: TermEntry | None = None
    frame: ObjectName = Field(default=None, alias="in")
    unit: str = ""

    @pydantic.model_validator(mode="after")
    def _is_one(self) -> TermEntry:
        others = self.in_place_of_field
        given = [name for name in ("field", *others) if getattr(self, name) is not None]
        if len(given) != 1:
            listed = f"{', '.join(others[:-1])} or {others[-1]}"
            raise ValueError(f"'field' must be given, or {listed} in its place")
        if self.field == "factors":
            raise ValueError('factors are read with `factors: "*"`, without a field')
        if self.field is not None:
            return self
        beside = self.model_fields_set & {"object", "columns", "transform", "minus"}
        if self.orientation is None:
            beside |= self.model_fields_set & {"frame"}
        if beside:
            key = {"frame": "in"}.get(name := sorted(beside)[0], name)
            raise ValueError(f"{key} goes with a field, not with {given[0]}")
        return self


class DrawnStepsEntry(_Section):
    """Control steps, drawn once an episode from `low` to `high`."""

    low: Whole = Field(ge=0)
    high: Whole = Field(ge=0)

    @pydantic.model_validator(mode="after")
    def _bounds_fit(self) -> DrawnStepsEntry:
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


Delay = Annotated[
    Annotated[Annotated[Whole, Field(ge=0)], pydantic.Tag("[steps]")]
    | Annotated[DrawnStepsEntry, pydantic.Tag("[drawn]")],
    pydantic.Discriminator(
        lambda value: "[drawn]" if isinstance(value, dict | DrawnStepsEntry) else "[steps]"
    ),
]
"""Control steps: always as many, or drawn."""
_SENSED = ("noise", "noise_kind", "bias", "quantum", "delay", "dropout", "history")


class SensedEntry(TermEntry):
    """A reading as it is sensed, or what was drawn; see `envs.task.Sensor` and `envs.randomization`."""

    in_place_of_field: ClassVar[tuple[str, ...]] = (*TermEntry.in_place_of_field, "clock", "factors")

    clock: float | None = Field(default=None, gt=0)
    factors: ObjectName = None
    noise: float = Field(default=0.0, ge=0, le=_LARGEST_NOISE)
    noise_kind: Literal["normal", "uniform"] = "normal"
    bias: float = Field(default=0.0, ge=0, le=_LARGEST_NOISE)
    quantum: float = Field(default=0.0, ge=0, le=_LARGEST_NOISE)
    delay: Delay = 0
    dropout: float = Field(default=0.0, ge=0, le=1)
    history: Whole = Field(default=1, ge=1, le=MOST_HISTORY)


class BoxEntry(_Section):
    """Uniform between `low` and `high`, one pair of bounds a number."""

    low: Numbers
    high: Numbers

    @pydantic.model_validator(mode="after")
    def _bounds_fit(self) -> BoxEntry:
        if len(self.low) != len(self.high):
            raise ValueError(f"low has {len(self.low)} numbers, high {len(self.high)}")
        if any(low > high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError("low is above high")
        if not all(math.isfinite(high - low) for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError("low and high are too far apart for a floating-point number")
        return self


class RingEntry(_Section):
    """Any direction in the plane, a radius between `low` and `high`; with `z` a third number."""

    low: float = Field(ge=0)
    high: float = Field(ge=0)
    center: Annotated[list[float], Field(min_length=2, max_length=2)] = [0.0, 0.0]
    z: float | None = None

    @pydantic.model_validator(mode="after")
    def _radii_fit(self) -> RingEntry:
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


def _rows(layout: str) -> str:
    """Return a maze's rows for the name of a built-in layout, or for rows."""
    if layout in LAYOUTS:
        return LAYOUTS[layout]
    if not set(layout) <= _MAZE_CHARACTERS:
        hint = nearest_hint(layout, LAYOUTS)
        raise ValueError(f"no layout {layout!r}; {hint}valid: {', '.join(LAYOUTS)}, or rows of # R G and .")
    if len({len(row) for row in layout.split()}) != 1:
        raise ValueError("the rows of a layout must be equally long")
    if len(layout) > _MOST_MAZE_CELLS:
        raise ValueError(f"a layout has at most {_MOST_MAZE_CELLS:,} cells")
    return " ".join(layout.split())


Layout = Annotated[str, pydantic.AfterValidator(_rows)]


class MazeEntry(_Section):
    """A maze: to draw it, to take cells from it and, with a height, to build its walls."""

    layout: Layout
    scale: float = Field(gt=0)
    wall_height: float | None = Field(default=None, gt=0)


class CellsEntry(_Section):
    """Uniform over maze cells of some kinds, within ±`jitter` of the centre; with `z` a third number."""

    kinds: str = Field(default="RG.", min_length=1, pattern="^[RG.]+$")
    jitter: float = Field(default=0.0, ge=0, le=_LARGEST_NOISE)
    layout: Layout | None = None
    scale: float | None = Field(default=None, gt=0)
    z: float | None = None


def _one_name(value: Any) -> Any:
    """Take one name for a list of it."""
    return [value] if isinstance(value, str) else value


def _several(value: Any) -> Any:
    """Take one quaternion for a list of it."""
    return [value] if isinstance(value, list) and not any(isinstance(each, list) for each in value) else value


def _not_zero(vector: list[float]) -> list[float]:
    if not any(vector):
        raise ValueError("must not be all zeros")
    return vector


Quaternion = Annotated[list[float], Field(min_length=4, max_length=4), pydantic.AfterValidator(_not_zero)]
Axis = Annotated[list[float], Field(min_length=3, max_length=3), pydantic.AfterValidator(_not_zero)]


class OrientationsEntry(_Section):
    """Given orientations, turned at random; see `envs.orientations.Orientations`."""

    quat: Annotated[list[Quaternion], Field(min_length=1), pydantic.BeforeValidator(_several)] = [
        [1.0, 0.0, 0.0, 0.0]
    ]
    within: float = Field(default=0.0, ge=0, le=_HALF_TURN)
    axis: Axis | None = None
    low: float | None = None
    high: float | None = None

    @pydantic.model_validator(mode="after")
    def _turned_one_way(self) -> OrientationsEntry:
        if len({each is None for each in (self.axis, self.low, self.high)}) != 1:
            raise ValueError("axis, low and high are given together: about what, and how far")
        if self.axis is not None and self.within:
            raise ValueError("turned about an axis from low to high, or about any by up to within: give one")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError("low is above high")
        return self


class ReachableEntry(_Section):
    """What is achieved in states whose joints are drawn; see `envs.reachable_goals.ReachableGoals`."""

    joints: Annotated[list[str], Field(min_length=1), pydantic.BeforeValidator(_one_name)] | None = None
    margin: float = Field(default=0.05, ge=0, lt=0.5)
    collision_free: bool = True
    within: BoxEntry | None = None


class DistributionEntry(_Section):
    """Where positions or goals lie: exactly one of these."""

    box: BoxEntry | None = None
    positions: list[Numbers] | None = Field(default=None, alias="list", min_length=1)
    ring: RingEntry | None = None
    cells: CellsEntry | None = None
    orientation: OrientationsEntry | None = None
    reachable: ReachableEntry | None = None
    relative: DistributionEntry | None = None

    @pydantic.model_validator(mode="after")
    def _is_one(self) -> DistributionEntry:
        if sum(each is not None for _, each in self) != 1:
            raise ValueError(
                "must be exactly one of box, list, ring, cells, orientation, reachable and relative"
            )
        if self.relative is not None and not self.relative.is_of_positions:
            raise ValueError("what is relative to the start is a box, a list, a ring or cells")
        if self.positions and len({len(each) for each in self.positions}) != 1:
            raise ValueError("the positions of a list must be equally long")
        return self

    @property
    def is_of_positions(self) -> bool:
        """Whether it draws numbers that need neither a model nor a start."""
        return self.orientation is None and self.reachable is None and self.relative is None


def _listed(value: Any) -> Any:
    """Take one entry for a list of it."""
    return [value] if isinstance(value, dict) else value


def _one_number(value: Any) -> Any:
    """Take one number for the least and the largest."""
    return [value, value] if isinstance(value, int | float) and not isinstance(value, bool) else value


Pair = Annotated[list[float], Field(min_length=2, max_length=2), pydantic.BeforeValidator(_one_number)]
"""The least and the largest of what is drawn, which may be written as one number."""
Listed = Annotated[list[Entry], Field(min_length=1), pydantic.BeforeValidator(_listed)]
"""A list of entries, which may be written as one entry."""
Distribution = Listed[DistributionEntry]
"""One distribution, or several whose numbers stand side by side."""


class ResetEntry(_Section):
    """How an episode starts; see `envs.task.Reset`."""

    keyframe: ObjectName = None
    joints: list[str] = []
    positions: Distribution | None = None
    qpos_noise: float = Field(default=0.0, ge=0, le=_LARGEST_NOISE)
    qvel_noise: float = Field(default=0.0, ge=0)
    noise_joints: Annotated[list[str], Field(min_length=1)] | None = None

    @pydantic.model_validator(mode="after")
    def _joints_and_positions_go_together(self) -> ResetEntry:
        if bool(self.joints) != (self.positions is not None):
            raise ValueError("joints and positions are given together: which joints, and what to draw")
        if not all(each.is_of_positions for each in self.positions or ()):
            raise ValueError("positions of joints are a box, a list, a ring or cells")
        return self


Patterns = Annotated[list[str], Field(min_length=1), pydantic.BeforeValidator(_one_name)]


class FactorEntry(_Section):
    """What is drawn for a factor; see `envs.randomization.Factor`."""

    low: float | None = None
    high: float | None = None
    mean: float | None = None
    std: float | None = None
    distribution: Literal["uniform", "log_uniform", "normal"] = "uniform"


class _BodiesFactorEntry(FactorEntry):
    bodies: Patterns = ["*"]
    each: bool | None = None


class _MassEntry(_BodiesFactorEntry):
    relative: bool = True


class _FrictionEntry(FactorEntry):
    geoms: Patterns = ["*"]
    each: bool | None = None
    relative: bool = True


class _SizeEntry(FactorEntry):
    geoms: Patterns
    each: bool | None = None


class _JointZeroEntry(FactorEntry):
    joints: Patterns = ["*"]
    each: bool | None = None


class _JointsFactorEntry(_JointZeroEntry):
    relative: bool = True


class _StrengthEntry(FactorEntry):
    actuators: Patterns = ["*"]
    each: bool | None = None


class _GainEntry(_StrengthEntry):
    relative: bool = True


class PushEntry(_Section):
    """Sudden changes of a body's velocity; see `envs.randomization.Push`."""

    every_s: Pair
    speed: Pair
    body: ObjectName = None


class RandomizeEntry(_Section):
    """What varies from episode to episode: one entry for a factor, or several."""

    mass: Listed[_MassEntry] = []
    inertia: Listed[_BodiesFactorEntry] = []
    center_of_mass: Listed[_BodiesFactorEntry] = []
    friction: Listed[_FrictionEntry] = []
    damping: Listed[_JointsFactorEntry] = []
    armature: Listed[_JointsFactorEntry] = []
    gain: Listed[_GainEntry] = []
    strength: Listed[_StrengthEntry] = []
    gravity_tilt: FactorEntry | None = None
    size: Listed[_SizeEntry] = []
    joint_zero: Listed[_JointZeroEntry] = []
    push: Listed[PushEntry] = []


class EpisodesEntry(_Section):
    """Starts, goals and what varies in some episodes, where they are not those of the whole task."""

    goal: Distribution | None = None
    reset: ResetEntry | None = None
    randomize: RandomizeEntry | None = None


class SuccessEntry(_Section):
    """A ball around a slice of the goal; see `envs.task.SuccessRegion`."""

    radius: float | None = Field(default=None, gt=0)
    angle: float | None = Field(default=None, gt=0, le=_HALF_TURN)
    part: Annotated[list[Whole], Field(min_length=2, max_length=2)] | None = Field(
        default=None, alias="slice"
    )
    points: Whole = Field(default=1, ge=1)
    scale: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] | None = None

    @pydantic.model_validator(mode="after")
    def _has_a_size(self) -> SuccessEntry:
        if self.radius is None and self.angle is None:
            raise ValueError("'radius' must be given, or for an orientation 'angle', in radians")
        if self.radius is None and (self.scale is not None or self.points != 1):
            raise ValueError("points and scale go with a radius")
        return self


class EarlyEndEntry(_Section):
    """The episode ends when a number of the term leaves [low, high]."""

    term: TermEntry
    low: float
    high: float

    @pydantic.model_validator(mode="after")
    def _bounds_fit(self) -> EarlyEndEntry:
        if self.low >= self.high:
            raise ValueError("low must be below high")
        return self


class SwingEntry(_Section):
    """A periodic movement of a target; see `envs.task.Swing`."""

    amplitude: float
    period_s: float = Field(gt=0)
    phase: float = 0.0


class CommandEntry(_Section):
    """How one actuator, or several by pattern, get their control; see `envs.task.Command`."""

    actuator: str | None = None
    actuators: Annotated[list[str], Field(min_length=1), pydantic.BeforeValidator(_one_name)] | None = None
    kind: Literal["range", "switch", "offset", "delta"] = "range"
    low: float | None = None
    high: float | None = None
    hold: float | None = None
    about: float | None = None
    scale: float | None = Field(default=None, gt=0)
    swing: SwingEntry | None = None
    max_rate: float | None = Field(default=None, gt=0)
    smoothing_s: float = Field(default=0.0, ge=0)

    @pydantic.model_validator(mode="after")
    def _names_actuators(self) -> CommandEntry:
        if (self.actuator is None) == (self.actuators is None):
            raise ValueError("name one actuator, or several in actuators: names, or patterns such as leg_*")
        return self

    @pydantic.model_validator(mode="after")
    def _held_or_commanded(self) -> CommandEntry:
        if self.hold is not None and self.model_fields_set - {"hold", "actuator", "actuators"}:
            raise ValueError("an actuator that is held has no kind, low or high, nor anything else")
        return self


class SceneEntry(_Section):
    """How a picture is taken; see `envs.task.ScenePicture`."""

    follow: ObjectName = None
    lookat: Annotated[list[float], Field(min_length=3, max_length=3)] | None = None
    distance: float | None = Field(default=None, gt=0)
    azimuth: float = 120.0
    elevation: float = -30.0
    goal_height: float = 0.0
    goal_position: Annotated[list[Annotated[Whole, Field(ge=0)]], Field(max_length=3)] | None = None


class OptionsEntry(_Section):
    """Settings of the physics that replace the model's own."""

    timestep_s: float | None = Field(default=None, gt=0)
    integrator: Literal["Euler", "RK4", "implicit", "implicitfast"] | None = None


Action = Annotated[
    Annotated[Literal["range", "position_target"], pydantic.Tag("word")]
    | Annotated[Listed[CommandEntry], pydantic.Tag("commands")],
    pydantic.Discriminator(lambda value: "commands" if isinstance(value, list | dict) else "word"),
]


class TaskEntry(_Section):
    """The whole page."""

    name: Name
    description: str = ""
    model: str
    control_dt_s: float = Field(gt=0)
    episode_steps: Whole = Field(default=200, ge=1, le=MOST_EPISODE_STEPS)
    options: OptionsEntry = OptionsEntry()
    observation: Listed[SensedEntry]
    student_observation: Listed[SensedEntry] | None = None
    achieved_goal: Listed[TermEntry]
    goal: Distribution | None = None
    reset: ResetEntry = ResetEntry()
    training: EpisodesEntry = EpisodesEntry()
    evaluation: EpisodesEntry = EpisodesEntry()
    near: EpisodesEntry | None = None
    randomize: RandomizeEntry = RandomizeEntry()
    success: Listed[SuccessEntry]
    hold_steps: Whole = Field(default=1, ge=1)
    resample_every: Whole = Field(default=0, ge=2)
    other_radii: dict[Name, Annotated[float, Field(gt=0)]] = {}
    early_end: Listed[EarlyEndEntry] = []
    action: Action = "range"
    action_delay: Delay = 0
    maze: MazeEntry | None = None
    scene: SceneEntry = SceneEntry()

    @pydantic.model_validator(mode="after")
    def _can_be_held(self) -> TaskEntry:
        if self.hold_steps > self.episode_steps:
            raise ValueError(
                f"hold_steps {self.hold_steps} is more than the {self.episode_steps} steps of an episode"
            )
        every = self.resample_every
        if every and not self.hold_steps < every <= self.episode_steps // 2:
            raise ValueError(
                f"resample_every {every} must be more than the hold_steps {self.hold_steps}, and no more "
                f"than half of the {self.episode_steps} steps of an episode: each goal lasts so long"
            )
        return self

    @property
    def episodes(self) -> dict[str, EpisodesEntry]:
        """The page's sections of episodes, by the name of their distribution."""
        found = {name: getattr(self, name) for name in EPISODES}
        return {name: own for name, own in found.items() if own is not None}

    @pydantic.model_validator(mode="after")
    def _has_goals(self) -> TaskEntry:
        missing = [name for name, own in self.episodes.items() if own.goal is None]
        if self.goal is None and missing:
            raise ValueError(f"goal must be given, or a goal of its own for {' and '.join(missing)}")
        return self


_TAGS = ("word", "commands", "[steps]", "[drawn]", "[key]")
"""what pydantic puts into the place of an entry, and the page does not have"""


def validate(page: Page) -> TaskEntry:
    """Return what the page says.

    Raises:
        TaskError: one line with every unknown key (and the nearest valid one) and every value that is not
            allowed (and what is), each with its line.
    """
    try:
        return TaskEntry.model_validate(page.content)
    except pydantic.ValidationError as error:
        raise TaskError("; ".join(_explanations(error, page))) from None


def _explanations(error: pydantic.ValidationError, page: Page) -> list[str]:
    """Put pydantic's errors into words, unknown keys first; a key that was meant by one is not missed too."""
    unknown, missing, others = [], [], []
    meant: set[Location] = set()
    for detail in error.errors(include_url=False):
        place = tuple(step for step in detail["loc"] if step not in _TAGS)
        if detail["type"] == "extra_forbidden":
            valid = _keys_at(place[:-1])
            nearest = nearest_name(str(place[-1]), valid)
            meant |= {(*place[:-1], nearest)} if nearest else set()
            hint = f"did you mean {nearest!r}?" if nearest else f"valid: {', '.join(valid)}."
            if place[-1] in _SENSED:
                hint = "terms of observation and student_observation alone are sensed."
            if place[-1] == "factors":
                hint = "terms of observation and student_observation alone read factors."
            unknown.append(page.error(place, f"unknown key; {hint}"))
        elif detail["type"] == "missing":
            missing.append(place)
        else:
            given = "" if detail["type"] == "value_error" else f" (got {detail['input']!r:.80})"
            others.append(page.error(place, _reason(detail, place, page) + given))
    absent = [
        page.error(place[:-1], f"{place[-1]!r} must be given") for place in missing if place not in meant
    ]
    return [str(each) for each in (*unknown, *others, *absent)]


def _reason(detail: Any, place: Location, page: Page) -> str:
    """Return what is wrong with a value, in the words of the page."""
    kind, limits = detail["type"], detail.get("ctx", {})
    if kind in ("too_short", "too_long"):
        bound, number = ("at least", "min_length") if kind == "too_short" else ("at most", "max_length")
        entries = f"{limits[number]} {'entry' if limits[number] == 1 else 'entries'}"
        return f"must be a list of {bound} {entries}, not {limits['actual_length']}"
    if kind == "list_type":
        return "must be a list"
    if kind in ("model_type", "dict_type"):
        keys = ", ".join(_keys_at(place)) if kind == "model_type" else "name: number"
        return f"must be a mapping of keys to values ({keys})"
    if kind == "string_type":
        text = page.scalar(place)
        return "must be a text" if text is None else f'must be a text: put it in quotes, "{text}"'
    return detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")


def _keys_at(location: Location) -> list[str]:
    """Return the keys that the mapping at a place of the page may have."""
    section: type[pydantic.BaseModel] = TaskEntry
    for step in location:
        for name, field in section.model_fields.items():
            if step == (field.alias or name):
                section = _section_in(field.annotation) or section
    return [field.alias or name for name, field in section.model_fields.items()]


def _section_in(annotation: Any) -> type[pydantic.BaseModel] | None:
    """Return the mapping's class that a field's type holds, or None."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return annotation
    inner: Sequence[Any] = get_args(annotation)
    return next((found for each in inner if (found := _section_in(each)) is not None), None)
