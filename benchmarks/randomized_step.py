"""What a full environment step costs where everything varies, over the step of the plain task.

Plain: `CpuSimulator.step` and the resets of the worlds that ended, their episodes spread out as they are in
training. Randomised: the same with every factor and pushes drawn for each episode. Both sides take a few
steps with the same actions, in turn, again and again, and so share whatever slows the machine down; each goes
on from its own states. Each round's share is that of its sums.

    python -m benchmarks.randomized_step --tasks ant --worlds 256 --rounds 9
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import numpy as np

from benchmarks.env_throughput import full_step, make_simulator, random_actions
from benchmarks.harness import Cell, CellBook, StudyParser, markdown_table, ratios, run_study, spread
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.randomization import Factor, Push, Variation
from thousandfold.envs.registry import compile_task

_STEPS_A_TURN = 8
_SIDES = ("plain", "randomized")
_OBJECTS = {
    # Of the ant the geoms that touch the floor: its torso, its shins and what joins them.
    "ant": ("torso_geom", "*ankle_geom"),
}


def every_factor(task: str) -> list[Variation]:
    """Return every factor over a usual range, and pushes where the task has a body that moves freely."""
    factors: list[Variation] = [
        Factor("mass", 0.7, 1.3),
        Factor("inertia", 0.7, 1.3),
        Factor("center_of_mass", -0.005, 0.005),
        Factor("friction", 0.7, 1.3),
        Factor("damping", 0.7, 1.3),
        Factor("armature", 0.7, 1.3),
        Factor("gain", 0.7, 1.3),
        Factor("strength", 0.7, 1.3),
        Factor("gravity_tilt", 0.0, 0.05),
        Factor("size", 0.95, 1.05, objects=_OBJECTS[task]),
        Factor("joint_zero", -0.02, 0.02, objects=("hip*", "ankle*")),
    ]
    return [*factors, Push((2.0, 5.0), (0.0, 0.5))]


class SidePair:
    """Plain and randomised worlds of a task.

    Args:
        task: the compiled task.
        varies: of the randomised side.
        worlds, threads: of both sides.
    """

    def __init__(self, task: CompiledTask, varies: Sequence[Variation], worlds: int, threads: int) -> None:
        self._simulators = {
            "plain": make_simulator(task, worlds, threads),
            "randomized": make_simulator(task.with_factors(varies), worlds, threads),
        }
        self._actions = random_actions(-1, 1, (worlds, task.action_dim), np.float32)
        self._taken = 0
        for action in self._actions:  # from the starts to states in the midst of episodes
            for simulator in self._simulators.values():
                full_step(simulator, action)

    def turn(self) -> dict[str, float]:
        """Take `_STEPS_A_TURN` steps on each side; return the seconds of each."""
        steps = [(self._taken + step) % len(self._actions) for step in range(_STEPS_A_TURN)]
        self._taken += _STEPS_A_TURN
        seconds = {}
        for side, simulator in self._simulators.items():
            start = time.perf_counter()
            for step in steps:
                full_step(simulator, self._actions[step])
            seconds[side] = time.perf_counter() - start
        return seconds


def measure(task: str, worlds: int, threads: int, rounds: int, round_s: float) -> Cell:
    """Measure both sides in turn, `rounds` times about `round_s`, and return the figures."""
    compiled, varies = compile_task(task), every_factor(task)
    pair = SidePair(compiled, varies, worlds, threads)
    turns = max(1, round(round_s / sum([sum(pair.turn().values()) for _ in range(4)][1:]) * 3))
    rates: dict[str, list[float]] = {side: [] for side in _SIDES}
    for _ in range(rounds):
        seconds = [pair.turn() for _ in range(turns)]
        for side, values in rates.items():
            values.append(round(turns * _STEPS_A_TURN * worlds / sum(each[side] for each in seconds), 1))
    return {
        "varies": [each.name for each in varies],
        "steps_per_second": {side: spread(values) for side, values in rates.items()},
        "rounds_steps_per_second": rates,
        "randomized_over_plain": ratios(rates["randomized"], rates["plain"]),
        "reset_us_per_world": reset_time_us(compiled.with_factors(varies), worlds),
    }


def reset_time_us(task: CompiledTask, worlds: int) -> float:
    """Return how long drawing the models of a reset of all worlds takes, in microseconds a world."""
    varied = task.varied_model("training")
    assert varied is not None
    seconds, rng = [], np.random.default_rng(0)
    for _ in range(5):
        start = time.perf_counter()
        varied.sample(rng, worlds)
        seconds.append(time.perf_counter() - start)
    return round(1e6 * float(np.median(seconds)) / worlds, 1)


def show(task: str, cell: Cell) -> str:
    """Return the table of one task."""
    columns = ("median", "min", "max")
    rows = [[side, *(f"{rate[c]:,.0f}" for c in columns)] for side, rate in cell["steps_per_second"].items()]
    share = cell["randomized_over_plain"]
    rows.append(["randomized / plain", *(f"{share[column]:.1%}" for column in columns)])
    title = (
        f"{task}, {cell['worlds']} worlds, {cell['threads']} threads, in turn; "
        f"a world's model is drawn in {cell['reset_us_per_world']:g} µs"
    )
    return markdown_table(["control steps/s", *columns], rows, title)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure task after task and print tables."""
    parser = StudyParser(__doc__, "randomized_step")
    parser.set_defaults(again=True)
    parser.several("--tasks", ["ant"], choices=list(_OBJECTS))
    parser.number("--worlds", 256, least=1)
    parser.number("--threads", 2, least=1)
    parser.rounds(9, 2.0)
    options = parser.parse(arguments)
    sizes = {name: getattr(options, name) for name in ("worlds", "threads", "rounds", "round_s")}
    cells = ((task, partial(lambda task: sizes | measure(task, **sizes), task)) for task in options.tasks)
    run_study(options, cells, book=CellBook(options.output, within=None), line=show)


if __name__ == "__main__":
    main()
