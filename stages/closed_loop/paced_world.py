"""A policy that acts in one simulated world at a pace, and what is measured while it does."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from thousandfold.envs.pictures.live_viewer import LiveViewer
from thousandfold.envs.pictures.scene_rendering import world_shape
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.ground.errors import NonFiniteError
from thousandfold.pipeline.ticks import Clock, Ticks
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy
from thousandfold.stages.policy_file.policy_runner import PolicyRunner

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
        simulator: the world, one alone.
        rate_hz: ticks a second; None: as many as there is time for, none of which can be missed.
        viewer: the window to show it in; None shows nothing.
        keys: where the viewer adds what is pressed in an episode; N goes on to the next one.
        seconds: from the first call on until `LoopEnded`; None for ever.
    """

    def __init__(
        self,
        policy: OnnxPolicy,
        simulator: CpuSimulator,
        rate_hz: float | None = None,
        *,
        viewer: LiveViewer | None = None,
        keys: list[str] | None = None,
        seconds: float | None = None,
        clock: Clock = time,
    ) -> None:
        self._actuators = [element.name for element in policy.metadata.outputs.control]
        self._runner = PolicyRunner(policy, dict.fromkeys(self._actuators, 0.0))
        self._simulator, self._viewer = simulator, viewer
        self._ticks, self._clock = None if rate_hz is None else Ticks(rate_hz, clock=clock), clock
        self._keys = [] if keys is None else keys
        self._seconds, self._next_frame_ns = seconds, 0
        self._until_ns: int | None = None
        self._began_ns: int | None = None
        self._intervals = self._span_ns = 0
        self._begins = True
        # As on a robot the runner is given the newest readings alone, and keeps all else.
        seen = [element.name for element in policy.metadata.inputs.observation]
        self._readings = np.array([seen.index(name) for name in self._runner.readings], np.int64)
        elements = [*policy.metadata.inputs.observation, *policy.metadata.inputs.goal]
        self._names = [element.name for element in elements]
        self._low = np.array([element.limit_low for element in elements], np.float32)
        self._high = np.array([element.limit_high for element in elements], np.float32)
        self._clipped = np.zeros(len(elements), np.int64)
        self._clipped_steps = 0
        self._latency_ns: list[int] = []

    def begin_episode(self) -> None:
        """Say that the next call is the first of an episode; the reset before it is not timed."""
        self._keys.clear()
        self._began_ns = None
        self._begins = True

    def __call__(self, observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Return the action (1, action_dim) for an observation (1, observation_dim) and goal (1, goal_dim).

        Raises:
            LoopEnded: instead of acting.
            NonFiniteError: a number is NaN or infinite.
        """
        if self._begins:
            held = self._simulator.world_data(0).ctrl.tolist()
            self._runner.reset(dict(zip(self._actuators, held, strict=True)))
            self._begins = False
        now, ticks = self._clock.perf_counter_ns, self._ticks
        self._end_if_asked(now())
        if ticks is not None:
            if self._began_ns is None:
                ticks.due_ns = now()
            else:
                ticks.advance(now())
            ticks.wait()
        began = now()
        if self._began_ns is not None:
            self._intervals += 1
            self._span_ns += began - self._began_ns
        self._began_ns = began
        action = self._runner.step(observation[0, self._readings], goal[0]).action
        ended = now()
        if action is None:
            self._runner.policy.run(observation, goal)  # says which number it was
            raise NonFiniteError(f"The control of {self._runner.policy.path} is NaN or infinite.")
        self._latency_ns.append(ended - began)
        if ticks is not None:
            ticks.ready(ended)
        state = np.concatenate([observation[0], goal[0]])
        beyond = (state < self._low) | (state > self._high)
        if beyond.any():
            self._clipped += beyond
            self._clipped_steps += 1
        self._show(goal[0])
        return action[None]

    def figures(self) -> dict[str, Any]:
        """Return pace, latency of the policy and how much of its input was beyond the limits, so far.

        The rate leaves out what lies between episodes; it is None before the second call.
        """
        steps = len(self._latency_ns)
        latency = {"p50_us": None, "p99_us": None, "max_us": None}
        if steps:
            ranked = np.percentile(self._latency_ns, [50, 99, 100], method="inverted_cdf") / 1e3
            latency = dict(zip(latency, ranked.tolist(), strict=True))
        worst = np.argsort(-self._clipped, kind="stable")
        return {
            "steps": steps,
            "achieved_rate_hz": 1e9 * self._intervals / self._span_ns if self._span_ns else None,
            "ticks": steps if self._ticks is None else self._ticks.count,
            "missed": None if self._ticks is None else self._ticks.missed,
            "latency": latency,
            "clipped_share": self._clipped_steps / steps if steps else None,
            "clipped": {self._names[i]: self._clipped[i] / steps for i in worst if self._clipped[i]},
        }

    def _end_if_asked(self, now_ns: int) -> None:
        if self._seconds is not None:
            if self._until_ns is None:
                self._until_ns = now_ns + int(self._seconds * 1e9)
            if now_ns >= self._until_ns:
                raise LoopEnded("seconds")
        if self._viewer is not None and not self._viewer.is_open:
            raise LoopEnded("window")
        if NEXT_KEY in self._keys:
            raise LoopEnded("next")

    def _show(self, goal: np.ndarray) -> None:
        """Show the world that was acted on, at most 60 times a second."""
        now = self._clock.perf_counter_ns()
        if self._viewer is None or now < self._next_frame_ns:
            return
        self._next_frame_ns = now + _FRAME_NS
        reached = bool(self._simulator.task.is_success(self._simulator.achieved_goal[0], goal))
        shape = world_shape(self._simulator.world_model(0))
        self._viewer.show(self._simulator.world_data(0).qpos, goal, reached=reached, shape=shape)
