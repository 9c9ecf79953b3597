"""What a full environment step costs over the bare physics that it cannot do without.

Full: `CpuSimulator.step` (clipped actions to controls, physics, observation, goals, success, ends) and the
resets of the worlds that ended, their episodes spread out as they are in training. Bare: `mujoco.batch.Batch`
stepped by the same number of physics steps on as many threads, controls written, nothing read. The physics
cost what the contacts cost: both sides take a few steps from the same states with the same actions, in turn,
again and again, and so share whatever slows the machine down. Each round's share is that of its sums.

    python -m benchmarks.env_step --task ant --task arm_reach --worlds 256 --rounds 9
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from mujoco.batch import Batch
from rich.console import Console
from rich.table import Table

from benchmarks.env_sides import full_step, make_simulator, random_actions
from benchmarks.learner_speed import merge_cell, spread
from benchmarks.turns import facts
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import compile_task, task_names

_STEPS_A_TURN = 8


class StepPair:
    """The two sides of a task, from the same states, to which actions at random have brought the worlds.

    Args:
        task: the compiled task.
        worlds, threads: of both sides.
    """

    def __init__(self, task: CompiledTask, worlds: int, threads: int) -> None:
        self._simulator = make_simulator(task, worlds, threads)
        self._batch = Batch(task.model, worlds, threads)
        self._ctrl, self._frame_skip = self._batch.bind("ctrl"), task.frame_skip
        self._actions = random_actions(-1, 1, (worlds, task.action_dim), np.float32)
        self._controls = [task.control(action) for action in self._actions]
        self._taken = 0
        for action in self._actions:
            full_step(self._simulator, action)

    def turn(self) -> dict[str, float]:
        """Take `_STEPS_A_TURN` steps on each side; return the seconds of each."""
        self._batch.state[:] = self._simulator.state_dict()["state"]
        steps = [(self._taken + step) % len(self._actions) for step in range(_STEPS_A_TURN)]
        self._taken += _STEPS_A_TURN
        start = time.perf_counter()
        for step in steps:
            self._ctrl[:] = self._controls[step]
            self._batch.step(nstep=self._frame_skip)
        middle = time.perf_counter()
        for step in steps:
            full_step(self._simulator, self._actions[step])
        return {"full": time.perf_counter() - middle, "bare": middle - start}


def measure(task: str, worlds: int, threads: int, rounds: int, round_s: float) -> dict[str, Any]:
    """Measure both sides in turn, `rounds` times about `round_s`, and return the figures."""
    pair = StepPair(compile_task(task), worlds, threads)
    turns = max(1, round(round_s / sum([sum(pair.turn().values()) for _ in range(4)][1:]) * 3))
    rates: dict[str, list[float]] = {"full": [], "bare": []}
    for _ in range(rounds):
        seconds = [pair.turn() for _ in range(turns)]
        for side, values in rates.items():
            total = sum(each[side] for each in seconds)
            values.append(round(turns * _STEPS_A_TURN * worlds / total, 1))
    return {
        "steps_per_second": {side: spread(values) for side, values in rates.items()},
        "rounds_steps_per_second": rates,
        "full_over_bare": spread([f / b for f, b in zip(rates["full"], rates["bare"], strict=True)]),
    }


def result_table(task: str, cell: dict[str, Any]) -> Table:
    """Return the figures of one task."""
    table = Table(title=f"{task}, {cell['worlds']} worlds, {cell['threads']} threads, in turn")
    table.add_column("control steps/s")
    for column in ("median", "min", "max"):
        table.add_column(column, justify="right")
    for side, rate in cell["steps_per_second"].items():
        table.add_row(side, *(f"{rate[column]:,.0f}" for column in ("median", "min", "max")))
    share = cell["full_over_bare"]
    table.add_row("full / bare", *(f"{share[column]:.1%}" for column in ("median", "min", "max")))
    return table


@click.command(help="Measure full environment steps against bare Batch.step.")
@click.option(
    "--task",
    "tasks",
    type=click.Choice(task_names()),
    multiple=True,
    default=("ant", "arm_reach", "arm_push_easy", "point_u_maze"),
    show_default=True,
)
@click.option("--worlds", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--rounds", type=click.IntRange(min=5), default=9, show_default=True)
@click.option("--round-s", type=click.FloatRange(min=0, min_open=True), default=2.0, show_default=True)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path(__file__).parent / "results" / "env_step.json",
    help="JSON file to add to.  [default: benchmarks/results/env_step.json]",
)
def main(
    tasks: tuple[str, ...], worlds: int, threads: int, rounds: int, round_s: float, output: Path
) -> None:
    """Measure task after task, print tables and write the figures."""
    for task in tasks:
        cell = {"worlds": worlds, "threads": threads, "rounds": rounds, "round_s": round_s} | facts()
        cell |= measure(task, worlds, threads, rounds, round_s)
        merge_cell(output, task, cell)
        Console().print(result_table(task, cell))
    click.echo(f"wrote {output}")


if __name__ == "__main__":
    main()
