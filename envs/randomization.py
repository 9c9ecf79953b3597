"""What varies from episode to episode, as data: factors of the model, and pushes.

A factor is a property of the physics that is drawn anew at every reset, such as the mass of bodies. Which
model it is about is not known here: `varied_model` resolves the names and writes what was drawn into a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

Drawn = Literal["uniform", "log_uniform", "normal"]
Objects = Literal["bodies", "geoms", "joints", "actuators"]
NORMAL_REACH = 3.0
"""Normal draws are clipped so many standard deviations from their mean."""


@dataclass(frozen=True)
class FactorKind:
    """What a factor of this kind is.

    Attributes:
        meaning: one line for documentation and tables.
        objects: what its patterns mean; None: the world as a whole.
        relative: a number multiplies the model's own; False: it is added to it.
        absolute: a number may take the place of the model's own instead (``relative: false``).
        each: whether every object has a draw of its own where a factor does not say.
        numbers: drawn for an object.
        least: what draws must be above, or may be where `may_be_least`; None: anything.
        unit: of a number that is added or takes the model's place.
    """

    meaning: str
    objects: Objects | None = None
    relative: bool = True
    absolute: bool = False
    each: bool = False
    numbers: tuple[str, ...] = ("",)
    least: float | None = 0.0
    may_be_least: bool = False
    unit: str = ""


FACTORS: Mapping[str, FactorKind] = {
    "mass": FactorKind("mass of bodies; their inertia goes along", "bodies", absolute=True, unit="kg"),
    "inertia": FactorKind("inertia of bodies", "bodies"),
    "center_of_mass": FactorKind(
        "where the centre of mass is", "bodies", False, each=True, numbers=("x", "y", "z"), least=None,
        unit="m",
    ),
    "friction": FactorKind("sliding friction of geoms", "geoms", absolute=True),
    "damping": FactorKind(
        "damping of joints", "joints", absolute=True, may_be_least=True, unit="N s/m or N m s/rad"
    ),
    "armature": FactorKind(
        "armature of joints", "joints", absolute=True, may_be_least=True, unit="kg or kg m^2"
    ),
    "gain": FactorKind("gain of actuators: of a servo its stiffness and damping", "actuators", absolute=True),
    "strength": FactorKind("largest force of actuators", "actuators", may_be_least=True),
    "gravity_tilt": FactorKind(
        "direction of gravity", None, False, numbers=("x", "y"), may_be_least=True, unit="rad"
    ),
    "size": FactorKind("size of geoms", "geoms"),
    "joint_zero": FactorKind(
        "sensed and commanded position of joints, less the true one", "joints", False, each=True, least=None,
        unit="m or rad",
    ),
}  # fmt: skip
"""Every factor by its name."""


@dataclass(frozen=True)
class Factor:
    """A property of the model that is drawn at every reset.

    Attributes:
        name: a name of `FACTORS`.
        low, high: bounds of ``uniform`` and ``log_uniform`` draws; of ``normal`` ones what they are clipped
            to, beside three standard deviations.
        mean, std: of ``normal`` draws.
        distribution: what is drawn from.
        objects: names or patterns of the bodies, geoms, joints or actuators that vary.
        relative: whether a draw multiplies the model's own number or takes its place; means nothing where
            the kind of factor is added to it.
        each: every object has a draw of its own; False: all have the same; None: as is usual for the kind.
    """

    name: str
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    std: float | None = None
    distribution: Drawn = "uniform"
    objects: tuple[str, ...] = ("*",)
    relative: bool = True
    each: bool | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the largest number that can be drawn."""
        low = -np.inf if self.low is None else self.low
        high = np.inf if self.high is None else self.high
        if self.distribution == "normal" and self.mean is not None and self.std is not None:
            reach = NORMAL_REACH * self.std
            return max(low, self.mean - reach), min(high, self.mean + reach)
        return low, high

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Return draws of a shape, float64. A factor that is held at one number takes none from `rng`."""
        low, high = self.bounds
        if low == high:
            return np.full(shape, low)
        if self.distribution == "normal" and self.mean is not None and self.std is not None:
            return np.clip(self.mean + self.std * rng.standard_normal(shape), low, high)
        if self.distribution == "log_uniform":
            return np.clip(np.exp(rng.uniform(np.log(low), np.log(high), shape)), low, high)
        return rng.uniform(low, high, shape)

    def held(self, value: float) -> Factor:
        """Return the factor held at one number."""
        return replace(self, low=value, high=value, mean=None, std=None, distribution="uniform")


@dataclass(frozen=True)
class Push:
    """Sudden changes of a body's velocity, at random times.

    A body on a free joint is pushed in any level direction, one on slide joints in any direction that these
    allow.

    Attributes:
        every_s: least and largest time from one push to the next, and from the start to the first.
        speed: least and largest size of the change, in m/s.
        body: its name; None: the one body that can be pushed.
    """

    name: ClassVar[str] = "push"

    every_s: tuple[float, float]
    speed: tuple[float, float]
    body: str | None = None


Variation = Factor | Push
