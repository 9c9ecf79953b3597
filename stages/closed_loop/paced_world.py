"""A policy that acts in one simulated world at a pace, and what is measured while it does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from thousandfold.envs.pictures.live_viewer import LiveViewer
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy

NEXT_KEY = "N"
_FRAME_NS = 1_000_000_000 // 60


class LoopEnded(Exception):
    """The episode is not to go on.

    Attributes:
        reason: ``seconds``: the time is used up; ``window``: the user closed it; ``next``: the user asked for
            the next episode.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ClosedLoop:
    """Called as a policy by whoever steps the world, it waits for the tick, acts, and shows the world.

    Args:
        policy: the file that acts.
        pacer: calls to the ticks.
        simulator: the world, one alone.
        viewer: the window to show it in; None shows nothing.
        keys: where the viewer adds what is pressed in an episode; N goes on to the next one.
        seconds: from the first call on until `LoopEnded`; None for ever.
    """

    def __init__(
        self,
        policy: OnnxPolicy,
        pacer: Pacer,
        simulator: CpuSimulator,
        *,
        viewer: LiveViewer | None = None,
        keys: list[str] | None = None,
        seconds: float | None = None,
    ) -> None:
        self._policy, self._pacer, self._simulator, self._viewer = policy, pacer, simulator, viewer
        self._keys = [] if keys is None else keys
        self._seconds, self._next_frame_ns = seconds, 0
        self._until_ns: int | None = None
        elements = [*policy.metadata.inputs.observation, *policy.metadata.inputs.goal]
        self._names = [element.name for element in elements]
        self._low = np.array([element.limit_low for element in elements], np.float32)
        self._high = np.array([element.limit_high for element in elements], np.float32)
        self._state = np.zeros(len(elements), np.float32)
        self._clipped = np.zeros(len(elements), np.int64)
        self._clipped_steps = 0
        self._latency_ns: list[int] = []

    def begin_episode(self) -> None:
        """Say that the next call is the first of an episode; the reset before it is not timed."""
        self._keys.clear()
        self._pacer.pause()

    def __call__(self, observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Return the action (1, action_dim) for an observation (1, observation_dim) and goal (1, goal_dim).

        Raises:
            LoopEnded: instead of acting.
            NonFiniteError: a number is NaN or infinite.
        """
        self._end_if_asked()
        self._pacer.wait()
        began = time.perf_counter_ns()
        action = self._policy.step(observation[0], goal[0]).action
        self._latency_ns.append(time.perf_counter_ns() - began)
        self._pacer.ready()
        self._count_clipped(observation[0], goal[0])
        self._show(goal[0])
        return action[None]

    def figures(self) -> dict[str, Any]:
        """Return pace, latency of the policy and how much of its input was beyond the limits, so far."""
        steps = len(self._latency_ns)
        latency = {"p50_us": None, "p99_us": None, "max_us": None}
        if steps:
            ranked = np.percentile(self._latency_ns, [50, 99, 100], method="inverted_cdf") / 1e3
            latency = dict(zip(latency, ranked.tolist(), strict=True))
        worst = np.argsort(-self._clipped, kind="stable")
        return {
            "steps": steps,
            "achieved_rate_hz": self._pacer.achieved_rate_hz,
            "ticks": self._pacer.ticks,
            "missed": None if self._pacer.rate_hz is None else self._pacer.missed,
            "latency": latency,
            "clipped_share": self._clipped_steps / steps if steps else None,
            "clipped": {self._names[i]: self._clipped[i] / steps for i in worst if self._clipped[i]},
        }

    def _end_if_asked(self) -> None:
        now = time.perf_counter_ns()
        if self._seconds is not None:
            if self._until_ns is None:
                self._until_ns = now + int(self._seconds * 1e9)
            if now >= self._until_ns:
                raise LoopEnded("seconds")
        if self._viewer is not None and not self._viewer.is_open:
            raise LoopEnded("window")
        if NEXT_KEY in self._keys:
            raise LoopEnded("next")

    def _count_clipped(self, observation: np.ndarray, goal: np.ndarray) -> None:
        split = len(observation)
        self._state[:split], self._state[split:] = observation, goal
        beyond = (self._state < self._low) | (self._state > self._high)
        if beyond.any():
            self._clipped += beyond
            self._clipped_steps += 1

    def _show(self, goal: np.ndarray) -> None:
        """Show the world that was acted on, at most 60 times a second."""
        now = time.perf_counter_ns()
        if self._viewer is None or now < self._next_frame_ns:
            return
        self._next_frame_ns = now + _FRAME_NS
        reached = bool(self._simulator.task.is_success(self._simulator.achieved_goal[0], goal))
        self._viewer.show(self._simulator.world_data(0).qpos, goal, reached=reached)


# -- Ticks of a control loop: sleep until each, and count those whose output came too late ---------


class Pacer:
    """Calls a loop to its ticks. A schedule that was missed slips: the loop does not rush to catch up.

    A tick is missed when its output is not ready one period after it was due; so is a tick that passed
    wholly while the loop was late.

    Args:
        rate_hz: ticks a second; None for as many as there is time for, none of which can be missed.
        clock_ns, sleep: the clock, and what waits.

    Attributes:
        rate_hz: as given.
        ticks: how many were due.
        missed: how many of these were missed.
    """

    def __init__(
        self,
        rate_hz: float | None,
        *,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.rate_hz = rate_hz
        self._period_ns = None if rate_hz is None else max(1, round(1e9 / rate_hz))
        self._clock_ns, self._sleep = clock_ns, sleep
        self.ticks = self.missed = 0
        self._due_ns: int | None = None
        self._began_ns: int | None = None
        self._intervals = self._span_ns = 0

    @property
    def achieved_rate_hz(self) -> float | None:
        """Calls a second, pauses left out; None before the second call."""
        return 1e9 * self._intervals / self._span_ns if self._span_ns else None

    def pause(self) -> None:
        """Let the next tick be now: what happens in between, such as a reset, is no part of the loop."""
        self._due_ns = self._began_ns = None

    def wait(self) -> None:
        """Return at the next tick, at once where it has passed."""
        now = self._clock_ns()
        if self._due_ns is None:
            self._due_ns = now
        elif self._period_ns is not None:
            self._due_ns += self._period_ns
            lost = max(0, (now - self._due_ns) // self._period_ns)
            self._due_ns += lost * self._period_ns
            self.ticks += lost
            self.missed += lost
            if now < self._due_ns:
                self._sleep((self._due_ns - now) / 1e9)
                now = self._clock_ns()
        self.ticks += 1
        if self._began_ns is not None:
            self._intervals += 1
            self._span_ns += now - self._began_ns
        self._began_ns = now

    def ready(self) -> None:
        """Say that the output of the tick is ready."""
        if self._period_ns is not None and self._due_ns is not None:
            self.missed += self._clock_ns() - self._due_ns >= self._period_ns
