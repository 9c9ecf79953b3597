"""What a policy file says of itself: the JSON text in its ONNX metadata under the key ``thousandfold``.

docs/policy-format.md describes it for those who have the file alone; docs/policy-format.schema.json is made
from these classes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from thousandfold.ground.errors import DamagedFileError
from thousandfold.stages.policy_file.onnx_bytes import EXPORT_AGAIN

METADATA_VERSION = 3
PAST_VERSION = 4
"""the same with past readings or a clock among the inputs, which a runner has to keep"""
_PAST = re.compile(r"(?P<newest>.+)@-(?P<age>[1-9]\d{0,5})")
_CLOCK = re.compile(r"clock:(?P<period>\d+(\.\d+)?(e[+-]?\d+)?)\[(?P<number>[01])\]", re.ASCII)

Precision = Literal["float32", "float16", "int8"]

SHA256 = r"^[0-9a-f]{64}$"


class InvalidMetadataError(DamagedFileError):
    """Metadata of this version that does not fit its description."""


def past_reading(name: str) -> tuple[str, int]:
    """Return which reading an input is: the name of the newest, and how many control steps ago it came.

    ``qpos:elbow[0]@-2`` is ``qpos:elbow[0]`` two control steps ago.
    """
    match = _PAST.fullmatch(name)
    return (name, 0) if match is None else (match["newest"], int(match["age"]))


def clock_reading(newest: str) -> tuple[float, int] | None:
    """Return what a clock's number tells: its period in seconds, and 0 for cos, 1 for sin; None: no clock's.

    Args:
        newest: the name, as of `past_reading`: ``clock:0.25[1]`` is sin of 2π t / 0.25.
    """
    match = _CLOCK.fullmatch(newest)
    return None if match is None else (float(match["period"]), int(match["number"]))


def format_of(names: Iterable[str]) -> Literal[3, 4]:
    """Return the format of a file whose observation has these names."""
    kept = (age or clock_reading(newest) for newest, age in map(past_reading, names))
    return PAST_VERSION if any(kept) else METADATA_VERSION


class Described(pydantic.BaseModel):
    """Facts of an exported file; what a newer version adds is passed over."""

    model_config = pydantic.ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Element(Described):
    """One number of an output."""

    name: str
    """What it is, such as an actuator's name."""
    unit: str
    """Its unit; `actuator` where it is what the actuator takes and nothing more is known."""
    low: float
    """One end of what it can be: the least, where this version wrote the file."""
    high: float
    """The other end; below `low` in a file whose maker wrote down an actuator's ends as its task has them."""


class ControlElement(Element):
    """One number that an actuator is sent; what is null is not known, or the actuator has no such thing."""

    max_rate: float | None = None
    """It never changes faster, in its own unit a second."""
    joint: str | None = None
    """The hinge or slide joint that a position servo moves."""
    gear: float | None = None
    """The control of that servo is the joint's position times this."""
    joint_low: float | None = None
    """Least position of that joint, rad or m; null where it has no limits."""
    joint_high: float | None = None
    """Greatest position of that joint, rad or m; null where it has no limits."""
    start: float | None = None
    """In the pose that episodes start in, before anything is drawn: where that joint stands, as the control
    takes it; what any other actuator is sent there."""
    kp: float | None = None
    """Of a position servo: its force is kp · (control − position) − kd · velocity."""
    kd: float | None = None
    """The damping of that force."""


class InputElement(Described):
    """One number of an input."""

    name: str
    """What it is, such as `qpos:elbow[0]`, or `qpos:elbow[0]@-2` two control steps ago."""
    unit: str
    """Its unit; empty where the task gives none."""
    low: float
    """The least that was seen when the policy was checked."""
    high: float
    """The greatest that was seen when the policy was checked."""
    limit_low: float
    """The graph takes anything below for this."""
    limit_high: float
    """The graph takes anything above for this."""

    @pydantic.model_validator(mode="after")
    def _in_order(self) -> InputElement:
        if not self.limit_low <= self.low <= self.high <= self.limit_high:
            raise ValueError(f"the limits of {self.name!r} do not enclose its range")
        return self


class Inputs(Described):
    """The numbers of each input, in order."""

    observation: tuple[InputElement, ...]
    """What the robot measures."""
    goal: tuple[InputElement, ...]
    """What it is to achieve."""


class Outputs(Described):
    """The numbers of each output, in order."""

    action: tuple[Element, ...]
    """In [−1, 1]."""
    control: tuple[ControlElement, ...]
    """The same in actuator units, for every actuator: what the robot is sent."""


class Network(Described):
    """Form and size of the network inside."""

    kind: str
    """`residual` or `plain`."""
    depth: int
    """Layers."""
    width: int
    """Units of a layer."""
    parameters: int
    """Weights and biases."""


class Evaluation(Described):
    """Closed-loop success over fresh episodes."""

    success: float = pydantic.Field(ge=0, le=1)
    """Share of the episodes that reached their goal."""
    success_interval: tuple[float, float]
    """95 % Wilson interval of the success."""
    episodes: int = pydantic.Field(ge=1)
    """How many were run."""
    runtime: Literal["onnxruntime", "torch"]
    """What computed the actions."""


class RobustnessLevel(Described):
    """Closed-loop success where one factor is held at a level that is not the model's."""

    factor: str
    """`mass`, `friction`, … of the model; `sensor_noise`, `action_delay`; `together`; `nominal`."""
    value: float
    """The level: times the model's own for most, a share of a range for noise, control steps for delays."""
    trained: bool
    """Whether the teacher's training varied the factor so far."""
    success: float = pydantic.Field(ge=0, le=1)
    """Share of the episodes that reached their goal."""
    success_interval: tuple[float, float]
    """95 % Wilson interval of the success."""
    episodes: int = pydantic.Field(ge=1)
    """How many were run."""


class Origin(Described):
    """An artifact that the policy comes from."""

    kind: str
    """`student`, `teacher` or `dataset`."""
    name: str
    """Its name in the workspace that made it."""
    hash: str
    """SHA-256 over its settings, its files and the hashes of its own parents."""


class PolicyMetadata(Described):
    """Everything a deployer must know of a policy file."""

    format_version: Literal[3, 4]
    """Of this description, 4 with past readings or a clock among the inputs; another is another contract."""
    role: Literal["student", "teacher"]
    """What was exported."""
    task: str
    """The task that the policy was trained for."""
    model_sha256: str = pydantic.Field(pattern=SHA256)
    """SHA-256 of the task's compiled MuJoCo model."""
    task_file: str | None = None
    """Where a user's task came from; null for a built-in one."""
    task_sha256: str | None = None
    """SHA-256 of a user's task and its files; null for a built-in one."""
    task_changes: dict[str, Any] = {}
    """What was changed of the task for this policy: `episode_steps`, `evaluation`, `clock_s`."""
    control_dt_s: float = pydantic.Field(ge=1e-5, le=3600)
    """Seconds between two actions."""
    episode_steps: int = pydantic.Field(ge=1, le=10_000_000)
    """Actions of an episode."""
    inputs: Inputs
    """Names, order, units, ranges and limits of the inputs."""
    outputs: Outputs
    """Names, order, units and ranges of the outputs."""
    non_finite: Literal["refuse"]
    """What a runner does with an input that is NaN or infinite, before it calls the graph."""
    out_of_range: Literal["clip"]
    """What the graph does with an input beyond its limits."""
    precision: Precision
    """Of the numbers inside; inputs and outputs are float32 in each."""
    opset: int = pydantic.Field(ge=1)
    """ONNX operator set of the graph."""
    licence: str = ""
    """SPDX expression or free text; empty where none was stated."""
    graph_sha256: str = pydantic.Field(pattern=SHA256)
    """SHA-256 over the file's top-level protobuf fields other than `metadata_props`."""
    network: Network
    """Form and size of the network."""
    parents: dict[str, Origin]
    """The artifacts it comes from, by role."""
    evaluation: Evaluation | None
    """How well it does; null where nobody measured."""
    robustness: tuple[RobustnessLevel, ...] | None = None
    """What is left where the world is not as the model says; null where nobody measured."""
    exporter: dict[str, str]
    """Versions of what wrote the file, by package."""

    @pydantic.model_validator(mode="after")
    def _kept_inputs_fit(self) -> PolicyMetadata:
        names = {element.name for element in self.inputs.observation}
        for name in names:
            newest, age = past_reading(name)
            clock = clock_reading(newest)
            if clock is not None and not (self.format_version == PAST_VERSION and 0 < clock[0] < math.inf):
                wanted = f"format {PAST_VERSION} and a period above 0"
                raise ValueError(f"{name!r} is a clock's, which takes {wanted}")
            if age and (self.format_version != PAST_VERSION or newest not in names):
                wanted = f"format {PAST_VERSION} and the newest among the inputs"
                raise ValueError(f"{name!r} is a past reading, which takes {wanted}")
        return self

    def sizes(self) -> dict[str, int]:
        """Return how many numbers each input and output has."""
        named = {**dict(self.inputs), **dict(self.outputs)}
        return {name: len(elements) for name, elements in named.items()}


def shortest(value: float | np.floating) -> float:
    """Return a float32 number as the double that JSON writes with the fewest digits that bring it back."""
    return float(str(np.float32(value)))


def parse_metadata(text: str | None, path: Path) -> PolicyMetadata:
    """Return the validated metadata of a file from the text under `METADATA_KEY`; None: nothing stands there.

    Raises:
        DamagedFileError: there is none, it is damaged, or of another version.
    """
    if text is None:
        raise DamagedFileError(f"{path} is an ONNX file that Thousandfold did not write: {EXPORT_AGAIN}.")
    try:
        version = pydantic.TypeAdapter(dict[str, Any]).validate_json(text).get("format_version")
        if isinstance(version, bool) or version not in (METADATA_VERSION, PAST_VERSION):
            said, remedy = f"of format {json.dumps(version)[:40]}", EXPORT_AGAIN
            if version is None:
                said = "without a format_version"
            elif isinstance(version, int) and not isinstance(version, bool) and version > PAST_VERSION:
                remedy = "update thousandfold"
            raise DamagedFileError(
                f"{path} has metadata {said}, this version reads {METADATA_VERSION} and {PAST_VERSION}: "
                f"{remedy}."
            )
        return PolicyMetadata.model_validate_json(text)
    except pydantic.ValidationError as error:
        raise damaged_metadata(path, error) from error


def damaged_metadata(path: Path, error: pydantic.ValidationError) -> InvalidMetadataError:
    """Return the one line for metadata that does not fit its description."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "JSON"
    what = first["msg"].removeprefix("Value error, ")
    return InvalidMetadataError(f"{path} has damaged metadata ({where}: {what}): {EXPORT_AGAIN}.")
