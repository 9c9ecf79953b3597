"""What a full environment step costs over the bare physics that it cannot do without.

Full: `CpuSimulator.step` (clipped actions to controls, physics, observation, goals, success, ends) and the
resets of the worlds that ended, their episodes spread out as they are in training. Bare: `mujoco.batch.Batch`
stepped by the same number of physics steps on as many threads, controls written, nothing read. The physics
cost what the contacts cost: both sides take a few steps from the same states with the same actions, in turn,
again and again, and so share whatever slows the machine down. Each round's share is that of its sums.

    python -m benchmarks.env_step --tasks ant arm_reach --worlds 256 --rounds 9
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import numpy as np
from mujoco.batch import Batch

from benchmarks.env_throughput import full_step, make_simulator, random_actions
from benchmarks.harness import Cell, CellBook, StudyParser, markdown_table, ratios, run_study, spread
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


def measure(task: str, worlds: int, threads: int, rounds: int, round_s: float) -> Cell:
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
        "full_over_bare": ratios(rates["full"], rates["bare"]),
    }


def show(task: str, cell: Cell) -> str:
    """Return the table of one task."""
    columns = ("median", "min", "max")
    rows = [[side, *(f"{rate[c]:,.0f}" for c in columns)] for side, rate in cell["steps_per_second"].items()]
    rows.append(["full / bare", *(f"{cell['full_over_bare'][column]:.1%}" for column in columns)])
    title = f"{task}, {cell['worlds']} worlds, {cell['threads']} threads, in turn"
    return markdown_table(["control steps/s", *columns], rows, title)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure task after task and print tables."""
    parser = StudyParser(__doc__, "env_step")
    parser.set_defaults(again=True)
    tasks = ["ant", "arm_reach", "arm_push_easy", "point_u_maze"]
    parser.several("--tasks", tasks, choices=task_names())
    parser.number("--worlds", 256, least=1)
    parser.number("--threads", 2, least=1)
    parser.rounds(9, 2.0)
    options = parser.parse(arguments)
    sizes = {name: getattr(options, name) for name in ("worlds", "threads", "rounds", "round_s")}
    cells = ((task, partial(lambda task: sizes | measure(task, **sizes), task)) for task in options.tasks)
    run_study(options, cells, book=CellBook(options.output, within=None), line=show)


if __name__ == "__main__":
    main()
