"""What is sensed of a world, and when what is sent acts: noise, delays, dropouts, and the memory of both.

A term's reading is what its field holds, plus the bias of the episode, plus noise, rounded to the quantum as
an encoder or a converter rounds what reaches it. It arrives `delay` control steps later; where it drops out,
the last one that arrived stands in its place. What has arrived is shown, the newest first, `history` of them
side by side. At an episode's start all earlier readings are the first one.

Whatever is drawn here has random streams of its own: the same seed gives the same starts and goals whatever
is sensed. They begin anew whenever all worlds are reset, another one each time, so that a round of episodes
senses the same whatever ran before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import mujoco
import numpy as np

from thousandfold.envs.generator_state import pack_generator, unpack_generator
from thousandfold.envs.task import Sensor, TaskError
from thousandfold.envs.term_columns import TermColumns, describe_elements

_STREAM = 7919  # in a seed's spawn key, far from those of stages


class Senses:
    """How the terms of an observation are sensed, number by number.

    Attributes:
        width: numbers of one reading of all terms.
        dim: numbers of the observation, earlier readings included.
        spans: which numbers of the observation each term gives.
        source: (dim,) int64, where each number of the observation lies in the readings that have arrived,
            (history, width) flattened.
        term: (width,) int64, the term of each number of a reading.
        normal, uniform: (width,) float32, the standard deviation and the ± of the noise, 0 for none.
        normal_bias, uniform_bias: the same of the bias.
        quantum: (width,) float32, 0 for none.
        least_delay, most_delay: (terms,) int64, in control steps.
        dropout: (terms,) float32.
        history: the most readings that a term shows.
    """

    def __init__(self, terms: Sequence[TermColumns]) -> None:
        sensors = [columns.term.sensor or Sensor() for columns in terms]
        widths = [columns.stop - columns.start for columns in terms]
        is_normal = np.array([sensor.noise_kind == "normal" for sensor in sensors])

        def numbers(attribute: str, chosen: np.ndarray | bool = True) -> np.ndarray:
            values = np.array([getattr(sensor, attribute) for sensor in sensors], np.float32)
            return np.repeat(np.where(chosen, values, np.float32(0)), widths)

        self.width = terms[-1].stop
        self.term = np.repeat(np.arange(len(terms)), widths)
        self.normal, self.uniform = numbers("noise", is_normal), numbers("noise", ~is_normal)
        self.normal_bias, self.uniform_bias = numbers("bias", is_normal), numbers("bias", ~is_normal)
        self.quantum = numbers("quantum")
        self.least_delay, self.most_delay = np.array([sensor.delay for sensor in sensors], np.int64).T
        self.dropout = np.array([sensor.dropout for sensor in sensors], np.float32)
        self.history = max(sensor.history for sensor in sensors)
        source, self.spans = list[int](), list[slice]()
        for columns, sensor in zip(terms, sensors, strict=True):
            begin = len(source)
            for age in range(sensor.history):
                source += range(age * self.width + columns.start, age * self.width + columns.stop)
            self.spans.append(slice(begin, len(source)))
        self.source, self.dim = np.array(source, np.int64), len(source)


def senses_of(terms: Sequence[TermColumns]) -> Senses | None:
    """Return how terms are sensed; None where each is read exactly, at once and alone."""
    return Senses(terms) if any((columns.term.sensor or Sensor()) != Sensor() for columns in terms) else None


def require_told_apart(model: mujoco.MjModel, terms: Sequence[TermColumns], part: str, owner: str) -> None:
    """Raise TaskError where two terms sense one number, and not alike.

    A policy file has the number's name alone, by which nobody could tell one from the other.

    Args:
        model: the compiled model.
        terms: of an observation.
        part: of the task, such as ``observation``.
        owner: how errors begin.
    """
    if senses_of(terms) is None:
        return
    first: dict[str, Sensor] = {}
    for index, columns in enumerate(terms):
        sensor = columns.term.sensor or Sensor()
        for name in (element["name"] for element in describe_elements(model, columns)):
            if first.setdefault(name, sensor) != sensor:
                raise TaskError(
                    f"{owner}: {name} is observed twice with different sensor keys: keep one of them.",
                    (part, index),
                )


# -- in a simulator -------------------------------------------------------------------------------


class SensedReadings:
    """The readings of every world on their way, and those that have arrived.

    Args:
        senses: how each number is sensed.
        num_worlds: how many worlds there are.
        draws: where noise comes from.
        xp: the module of the arrays, `numpy` or `torch`.
        device: where they lie.
    """

    def __init__(self, senses: Senses, num_worlds: int, draws: Draws, *, xp: Any, device: Any) -> None:
        self._worlds, self._draws, self._xp, self._senses = num_worlds, draws, xp, senses

        def placed(array: np.ndarray) -> Any:
            return xp.asarray(array, device=device)

        def some(array: np.ndarray) -> Any:
            """Return an array on the device; None where it has nothing but zeros, which need no draws."""
            return placed(array) if array.any() else None

        self._normal, self._uniform = some(senses.normal), some(senses.uniform)
        self._normal_bias, self._uniform_bias = some(senses.normal_bias), some(senses.uniform_bias)
        self._dropout, self._term, self._source = (
            some(senses.dropout),
            placed(senses.term),
            placed(senses.source),
        )
        self._quantum = some(senses.quantum)
        self._is_rounded = placed(senses.quantum > 0)
        self._divisor = placed(np.where(senses.quantum > 0, senses.quantum, np.float32(1)))
        self._steps = DrawnSteps(
            senses.least_delay, senses.most_delay, num_worlds, draws, xp=xp, device=device
        )
        self._world = xp.arange(num_worlds, device=device)[:, None]
        self._number = xp.arange(senses.width, device=device)
        depth = int(senses.most_delay.max()) + 1
        self.bias = xp.zeros((num_worlds, senses.width), dtype=xp.float32, device=device)
        self.under_way = xp.zeros((num_worlds, depth, senses.width), dtype=xp.float32, device=device)
        self.arrived = xp.zeros((num_worlds, senses.history, senses.width), dtype=xp.float32, device=device)

    def begin(self, readings: Any, worlds: Any) -> None:
        """Begin an episode in the worlds of the mask, (num_worlds,): all readings before are this one.

        Args:
            readings: (num_worlds, width), as they are; rows of other worlds mean nothing.
            worlds: the mask.
        """
        where, chosen = self._xp.where, worlds[:, None]
        if self._normal_bias is not None or self._uniform_bias is not None:
            self.bias[:] = where(chosen, self._drawn(self._normal_bias, self._uniform_bias, 0.0), self.bias)
        self._steps.begin(worlds)
        first = self._measured(readings)[:, None]
        for ring in (self.under_way, self.arrived):
            ring[:] = where(chosen[:, None], first, ring)

    def sense(self, readings: Any) -> None:
        """Take the readings of a control step later, (num_worlds, width), as they are."""
        reading, xp = self._measured(readings), self._xp
        if self.under_way.shape[1] > 1:
            _push(self.under_way, reading)
            reading = self.under_way[self._world, self._steps.drawn[:, self._term], self._number]
        if self._dropout is not None:
            lost = self._draws.uniform(self._worlds, len(self._dropout)) < self._dropout
            reading = xp.where(lost[:, self._term], self.arrived[:, 0], reading)
        _push(self.arrived, reading)

    def show(self, out: Any) -> None:
        """Write the observation into `out`, (num_worlds, dim)."""
        out[:] = self.arrived.reshape(self._worlds, -1)[:, self._source]

    def _measured(self, readings: Any) -> Any:
        value = readings + self.bias
        value = self._drawn(self._normal, self._uniform, value)
        if self._quantum is None:
            return value
        return self._xp.where(self._is_rounded, self._xp.round(value / self._divisor) * self._divisor, value)

    def _drawn(self, normal: Any, uniform: Any, value: Any) -> Any:
        """Return `value` plus what is drawn for every number of every world."""
        shape = self._worlds, self._senses.width
        if normal is not None:
            value = value + normal * self._draws.normal(*shape)
        if uniform is not None:
            value = value + uniform * (2.0 * self._draws.uniform(*shape) - 1.0)
        return value

    def state(self) -> Iterator[tuple[str, Any]]:
        """Yield the arrays that the next reading depends on, by name."""
        yield from {
            "bias": self.bias,
            "under_way": self.under_way,
            "arrived": self.arrived,
            "delay": self._steps.drawn,
        }.items()


class PendingControls:
    """The controls of every world that were sent and do not act yet.

    Args:
        delay: control steps, least and most.
        num_worlds, num_actuators: sizes.
        draws: where a world's delay comes from.
        xp: the module of the arrays, `numpy` or `torch`.
        device: where they lie.
        dtype: of controls.
    """

    def __init__(
        self,
        delay: tuple[int, int],
        num_worlds: int,
        num_actuators: int,
        draws: Draws,
        *,
        xp: Any,
        device: Any,
        dtype: Any,
    ) -> None:
        self._xp, (least, most) = xp, np.array(delay, np.int64)[:, None]
        self._steps = DrawnSteps(least, most, num_worlds, draws, xp=xp, device=device)
        self._world = xp.arange(num_worlds, device=device)
        self._sent = xp.zeros((num_worlds, delay[1] + 1, num_actuators), dtype=dtype, device=device)

    @property
    def newest(self) -> Any:
        """What was sent last, (num_worlds, num_actuators); the same memory throughout."""
        return self._sent[:, 0]

    def begin(self, controls: Any, worlds: Any) -> None:
        """Begin an episode in the worlds of the mask: `controls`, (num_worlds, num_actuators), were sent."""
        self._steps.begin(worlds)
        self._sent[:] = self._xp.where(worlds[:, None, None], controls[:, None], self._sent)

    def send(self, controls: Any) -> Any:
        """Send controls and return those that act now, (num_worlds, num_actuators) both."""
        _push(self._sent, controls)
        return self._sent[self._world, self._steps.drawn[:, 0]]

    def state(self) -> Iterator[tuple[str, Any]]:
        """Yield the arrays that the next step depends on, by name."""
        yield from {"sent": self._sent, "delay": self._steps.drawn}.items()


class DrawnSteps:
    """Numbers of control steps that every world draws once an episode, uniform from `least` to `most`.

    Attributes:
        drawn: (num_worlds, columns) int64.

    Args:
        least, most: (columns,) int64.
        num_worlds: how many worlds there are.
        draws: what they are drawn from.
        xp: the module of the arrays, `numpy` or `torch`.
        device: where they lie.
    """

    def __init__(
        self,
        least: np.ndarray,
        most: np.ndarray,
        num_worlds: int,
        draws: Draws,
        *,
        xp: Any,
        device: Any,
    ) -> None:
        self._draws, self._xp, self._varies = draws, xp, bool((least < most).any())
        self._least, self._most = (xp.asarray(array, device=device) for array in (least, most))
        self.drawn = xp.zeros((num_worlds, len(least)), dtype=xp.int64, device=device) + self._least

    def begin(self, worlds: Any) -> None:
        """Draw anew in the worlds of the mask, (num_worlds,)."""
        if not self._varies:
            return
        share, steps = self._draws.uniform(*self.drawn.shape), self._most - self._least + 1
        found = self._least + self._xp.floor(share * steps)
        found = self._xp.where(found > self._most, self._most, found)  # a share that rounds up to 1
        self.drawn[:] = self._xp.where(worlds[:, None], found, self.drawn)


def _push(ring: Any, newest: Any) -> None:
    """Put (num_worlds, size) in front of a ring, (num_worlds, depth, size), and let its last ones go."""
    if ring.shape[1] > 1:
        earlier = ring[:, :-1]
        ring[:, 1:] = earlier.copy() if isinstance(earlier, np.ndarray) else earlier.clone()
    ring[:, 0] = newest


# -- random streams -------------------------------------------------------------------------------


class Draws:
    """A random stream on a device; `begin` begins another one.

    Attributes:
        rng: the generator of the moment, of `numpy`; of `torch` the same one throughout.

    Args:
        seed: of the simulator; its own generator is left alone.
        index: which of a simulator's streams it is.
        xp: the module of the arrays that are drawn, `numpy` or `torch`.
        device: where they lie.
    """

    def __init__(self, seed: int | np.random.SeedSequence, index: int, *, xp: Any, device: Any) -> None:
        self._xp, self._device, self._index = xp, device, index
        self.rng: Any = None if xp is np else xp.Generator(device)
        self.seed(seed)

    def seed(self, seed: int | np.random.SeedSequence) -> None:
        """Take another seed, from whose first stream is drawn after the next `begin`."""
        base = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        own = np.random.SeedSequence(base.entropy, spawn_key=(*base.spawn_key, _STREAM, self._index))
        self._words, self._begun = own.generate_state(4, np.uint64), 0
        self._place()

    def begin(self) -> None:
        """Begin the next stream."""
        self._begun += 1
        self._place()

    def _place(self) -> None:
        stream = np.random.SeedSequence([*map(int, self._words), self._begun])
        if self._xp is np:
            self.rng = np.random.Generator(np.random.PCG64(stream))
        else:  # torch takes 63 bits
            self.rng.manual_seed(int(stream.generate_state(1, np.uint64)[0]) >> 1)

    def normal(self, *shape: int) -> Any:
        """Return standard normal numbers, float32."""
        if self._xp is np:
            return self.rng.standard_normal(shape, np.float32)
        return self._xp.randn(shape, generator=self.rng, device=self._device)

    def uniform(self, *shape: int) -> Any:
        """Return numbers uniform in [0, 1), float32."""
        if self._xp is np:
            return self.rng.random(shape, np.float32)
        return self._xp.rand(shape, generator=self.rng, device=self._device)

    def state(self) -> dict[str, np.ndarray]:
        """Return everything that the next draw depends on."""
        generator = pack_generator(self.rng) if self._xp is np else self.rng.get_state().numpy().copy()
        return {"stream": np.array([*self._words, self._begun], np.uint64), "generator": generator}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Restore what `state` returned."""
        self._words, self._begun = np.array(state["stream"][:4], np.uint64), int(state["stream"][4])
        if self._xp is np:
            self.rng = unpack_generator(state["generator"])
        else:
            self.rng.set_state(self._xp.from_numpy(np.array(state["generator"], np.uint8)))
