"""Whether what varies moves worlds alike on CPU threads and on MuJoCo Warp, factor by factor.

Both simulators draw from one seed, and take the same actions at random. The draws must be the same, and how
far the worlds' achieved goals moved must be distributed alike (Kolmogorov-Smirnov). Beside it the same test
against nominal worlds of the same starts, which shows what of a factor the figure would have told.

    python -m benchmarks.randomized_parity --task ant --worlds 128 --steps 200
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.harness import Cell, CellBook, StudyParser, markdown_table, run_study
from benchmarks.randomized_step import every_factor
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.randomization import Variation
from thousandfold.envs.registry import compile_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.simulators.simulator import Simulator

_SEED = 1


def displacement(simulator: Simulator, steps: int) -> np.ndarray:
    """Return how far the achieved goal of each world moved under actions at random, (num_worlds,)."""
    rng = np.random.default_rng(_SEED)
    start = np.array(simulator.achieved_goal)
    shape = (simulator.num_worlds, simulator.task.action_dim)
    for _ in range(steps):
        simulator.step(rng.uniform(-1, 1, shape).astype(np.float32))
    return np.linalg.norm(np.array(simulator.achieved_goal) - start, axis=1)


def measure(task: CompiledTask, varies: Variation, worlds: int, steps: int, device: str) -> Cell:
    """Return the figures of one factor."""
    from thousandfold.envs.simulators.warp_simulator import WarpSimulator

    varied = task.with_factors([varies])
    cpu = CpuSimulator(varied, worlds, seed=_SEED)
    warp = WarpSimulator(varied, worlds, seed=_SEED, device=device)
    apart = np.abs(cpu.factors - warp.factors.cpu().numpy()).max(initial=0.0)
    moved = {"cpu": displacement(cpu, steps), "warp": displacement(warp, steps)}
    nominal = displacement(CpuSimulator(task, worlds, seed=_SEED), steps)
    alike: Any = stats.ks_2samp(moved["cpu"], moved["warp"])
    told: Any = stats.ks_2samp(moved["cpu"], nominal)
    return {
        "draws_apart": float(apart),
        "displacement": {name: float(values.mean()) for name, values in moved.items()},
        "nominal_displacement": float(nominal.mean()),
        "p": float(alike.pvalue),
        "p_against_nominal": float(told.pvalue),
    }


def show(factor: str, cell: Cell) -> str:
    """Return the table of one factor."""
    moved = cell["displacement"]
    figures = (moved["cpu"], moved["warp"], cell["p"], cell["p_against_nominal"])
    row = [factor, f"{cell['draws_apart']:.1e}", *(f"{figure:.3f}" for figure in figures)]
    columns = ["factor", "draws apart", "moved, CPU", "moved, Warp", "p", "p against nominal"]
    return markdown_table(columns, [row], f"{cell['task']}, {cell['worlds']} worlds, {cell['steps']} steps")


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare factor after factor and print tables."""
    parser = StudyParser(__doc__, "randomized_parity")
    parser.add_argument("--task", default="ant", choices=["ant"], help="whose factors are compared")
    parser.add_argument("--device", default="cpu", help="of MuJoCo Warp")
    parser.number("--worlds", 128, least=2)
    parser.number("--steps", 200, least=1)
    options = parser.parse(arguments)
    task, sizes = compile_task(options.task), {"worlds": options.worlds, "steps": options.steps}
    facts = {"task": options.task, "device": options.device, **sizes}

    def make(varies: Variation) -> Cell:
        return facts | measure(task, varies, **sizes, device=options.device)

    cells = ((each.name, partial(make, each)) for each in every_factor(options.task))
    run_study(options, cells, book=CellBook(options.output, within=None), line=show)


if __name__ == "__main__":
    main()
