"""A policy called at its ticks: when that is, what counts as missed, and the rate that was achieved."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.stages.handmade_clock import HandmadeClock
from tests.stages.policy_file.handmade_policy import metadata, write_policy
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.pipeline.artifacts import Workspace
from thousandfold.pipeline.ticks import Ticks
from thousandfold.stages.closed_loop.paced_world import ClosedLoop
from thousandfold.stages.policy_file.source import open_source


class PacedLoop:
    """A closed loop on a hand-made clock."""

    def __init__(self, folder: Path, rate_hz: float | None) -> None:
        path = write_policy(folder / "policy.onnx", json.dumps(metadata()))
        source = open_source(Workspace(folder), str(path))
        self.clock, step = HandmadeClock(), source.policy.step

        def timed(observation: np.ndarray, goal: np.ndarray) -> Any:
            self.began.append(self.clock.now_ns)
            self.clock.sleep(self.output_ms / 1e3)
            return step(observation, goal)

        source.policy.step = timed
        self.simulator = CpuSimulator(source.task, 1)
        self.loop = ClosedLoop(source.policy, self.simulator, rate_hz, clock=self.clock)
        self.output_ms, self.began = 0.0, []

    def run(self, calls: list[tuple[float, float]]) -> list[float]:
        """Make calls of (ms to the output, ms after it); return when each began, in ms."""
        start, self.began = self.clock.now_ns, []
        self.loop.begin_episode()
        for self.output_ms, after_ms in calls:
            self.loop(self.simulator.observation, self.simulator.desired_goal)
            self.clock.sleep(after_ms / 1e3)
        return [(began - start) / 1e6 for began in self.began]

    def figures(self) -> tuple[int, int | None, float | None]:
        """Return ticks, those that were missed, and the achieved rate."""
        figures = self.loop.figures()
        return figures["ticks"], figures["missed"], figures["achieved_rate_hz"]


@pytest.mark.parametrize(
    ("calls", "began", "ticks", "missed"),
    [
        ([(1, 1)] * 4, [0, 10, 20, 30], 4, 0),
        ([(9.9, 0)] * 3, [0, 10, 20], 3, 0),
        ([(10, 0)] * 3, [0, 10, 20], 3, 3),  # the output is there with the next tick, and so too late
        ([(12, 0), (1, 0), (1, 0)], [0, 12, 20], 3, 1),  # late once; the next still comes in its own period
        ([(35, 0), (1, 0), (1, 0)], [0, 35, 40], 5, 3),  # ticks 0, 1 and 2; tick 3 is answered in its period
        ([(1, 24), (1, 0), (1, 0)], [0, 25, 30], 4, 1),  # physics too slow: tick 1 passed without an output
    ],
)
def test_a_tick_without_an_output_one_period_later_is_missed(
    tmp_path: Path, calls: list[tuple[float, float]], began: list[float], ticks: int, missed: int
) -> None:
    paced = PacedLoop(tmp_path, 100.0)
    assert paced.run(calls) == pytest.approx(began)
    assert paced.figures()[:2] == (ticks, missed)


def test_what_lies_between_episodes_counts_neither_as_missed_nor_in_the_rate(tmp_path: Path) -> None:
    paced = PacedLoop(tmp_path, 100.0)
    assert paced.figures() == (0, 0, None)
    paced.run([(1, 0)] * 3)
    paced.clock.sleep(0.5)
    assert paced.run([(1, 0)] * 3) == pytest.approx([0, 10, 20])
    assert paced.figures() == (6, 0, pytest.approx(100.0))


def test_without_a_pace_nothing_waits_and_nothing_is_missed(tmp_path: Path) -> None:
    paced = PacedLoop(tmp_path, None)
    assert paced.run([(3, 1)] * 5) == pytest.approx([0, 4, 8, 12, 16])
    assert paced.figures() == (5, None, pytest.approx(250.0))


def test_the_real_clock_is_kept() -> None:
    ticks, start = Ticks(50.0), time.perf_counter()
    ticks.due_ns = time.perf_counter_ns()
    for _ in range(6):
        ticks.wait()
        ticks.advance(time.perf_counter_ns())
    assert time.perf_counter() - start >= 0.1 - 1e-3  # five periods; a busy machine may take longer
