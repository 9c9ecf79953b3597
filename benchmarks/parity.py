"""Whether the two simulators of a task agree: `mujoco.batch` on CPU threads and MuJoCo Warp.

One physics step from the same states under the same actions, and many control steps of many worlds from the
same starts under the same actions. An error is |difference| / (1 + |x|); of a state the largest counts.
Figures go into the output file task by task, and what is there with the same sizes is not measured again.

    python -m benchmarks.parity                          every task, 512 worlds, 200 control steps
    python -m benchmarks.parity --tasks ant --worlds 64 --steps 50 --output /tmp/parity.json
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from benchmarks.learner_speed import merge_cell
from benchmarks.parity_measures import (
    FREE_BOUND,
    LEAST_P,
    TOUCHING_MEDIAN,
    Outcomes,
    makers,
    one_step_errors,
    play,
    reachable_goals,
    visited_states,
)
from benchmarks.turns import facts
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import compile_task, task_names
from thousandfold.envs.task import TaskError

_COMPARED = ("displacement", "closest_distance", "at_goal")


def compare_steps(task: CompiledTask, states: int, device: str, seed: int = 0) -> dict[str, Any]:
    """Return how far apart one physics step leaves the simulators, out of contact and in contact.

    States that are undecided are left out, and counted.
    """
    visited = visited_states(task, states, seed)
    errors, names = one_step_errors(task, visited, device)
    size = task.model.nq + task.model.nv
    figures: dict[str, Any] = {"undecided": int(visited.undecided.sum())}
    for kind, of_kind in (("free", ~visited.touching), ("touching", visited.touching)):
        chosen = errors[of_kind & ~visited.undecided]
        figures[kind] = {"states": len(chosen)}
        if len(chosen):
            figures[kind] |= {
                "state": _spread(chosen[:, :size], names[:size]),
                "observation": _spread(chosen[:, size:], names[size:]),
            }
    return figures


def _spread(errors: np.ndarray, names: list[str]) -> dict[str, Any]:
    """Return how the largest error of each state, (states, numbers), spreads over the states."""
    largest = errors.max(1)
    return {
        "median": float(np.median(largest)),
        "p99": float(np.quantile(largest, 0.99)),
        "max": float(largest.max()),
        "beyond": int((largest > FREE_BOUND).sum()),
        "worst": names[int(errors.max(0).argmax())],
    }


def compare_rollouts(
    task: CompiledTask, worlds: int, steps: int, device: str, seed: int = 0
) -> dict[str, Any]:
    """Return how the worlds of both simulators fared, and how likely it is that they fared alike.

    Worlds that went into quarantine in either of them are left out of the tests, and counted.
    """
    outcomes: dict[str, Outcomes] = {}
    figures: dict[str, Any] = {}
    goals = reachable_goals(task, worlds, steps, seed)
    for name, make in makers(device).items():
        start = time.perf_counter()
        simulator = make(task, worlds, seed=seed)
        simulator.set_goal(goals)
        outcomes[name] = found = play(simulator, steps, seed)
        stable = ~found.unstable
        figures[name] = {
            "displacement": float(found.displacement[stable].mean()),
            "closest_distance": float(found.closest_distance[stable].mean()),
            "success": float((found.at_goal[stable] > 0).mean()),
            "diverged": simulator.diverged_count,
            "overflowed": simulator.overflow_count,
            "seconds": round(time.perf_counter() - start, 1),
        }
    stable = ~(outcomes["cpu"].unstable | outcomes["warp"].unstable)
    figures["p"] = {
        name: _p_alike(*(getattr(found, name)[stable] for found in outcomes.values())) for name in _COMPARED
    }
    return figures


def _p_alike(one: np.ndarray, other: np.ndarray) -> float:
    """Return the p-value of the two-sample Kolmogorov-Smirnov test.

    Of values to the bound of a step: where a cube stays where it fell, all worlds have one number, and the
    test would tell two simulators apart by its last bit.
    """
    result: Any = stats.ks_2samp(np.round(one / FREE_BOUND), np.round(other / FREE_BOUND))
    return float(result.pvalue)


def shortfalls(figures: dict[str, Any]) -> list[str]:
    """Return what of a task's figures is beyond its bound, in words."""
    found = []
    free, touching = figures["step"]["free"], figures["step"]["touching"]
    if free["states"] and (beyond := free["state"]["beyond"]):
        found.append(f"{beyond} of {free['states']} free steps beyond, worst {free['state']['worst']}")
    if free["states"] and free["observation"]["beyond"]:
        found.append(f"free observations, worst {free['observation']['worst']}")
    if touching["states"] and touching["state"]["median"] > TOUCHING_MEDIAN:
        found.append(f"steps in contact, worst {touching['state']['worst']}")
    for name, p in figures["rollout"]["p"].items():
        if p <= LEAST_P:
            found.append(f"{name.replace('_', ' ')} differs, p {p:.1e}")
    for side in ("cpu", "warp"):
        for count in ("diverged", "overflowed"):
            if worlds := figures["rollout"][side][count]:
                found.append(f"{worlds} worlds {count} on {side}")
    return found


def measure(task: CompiledTask, worlds: int, steps: int, states: int, device: str) -> dict[str, Any]:
    """Return a task's figures, with its sizes."""
    figures = {
        "worlds": worlds,
        "steps": steps,
        "states": states,
        "device": device,
        "step": compare_steps(task, states, device),
        "rollout": compare_rollouts(task, worlds, steps, device),
    }
    return figures | {"shortfalls": shortfalls(figures)}


def parity_table(tasks: dict[str, dict[str, Any]]) -> Table:
    """Return the figures, a row a task."""
    table = Table(title="CPU threads against MuJoCo Warp")
    table.add_column("task", no_wrap=True)
    columns = ("free max", "contact median", "p99", "moved cpu", "warp", "p", "success cpu", "warp", "p")
    for column in (*columns, "beyond its bound"):
        table.add_column(column, justify="right")
    for name, figures in tasks.items():
        free, touching = figures["step"]["free"], figures["step"]["touching"]
        in_contact = touching.get("state", {})
        errors = [free.get("state", {}).get("max"), in_contact.get("median"), in_contact.get("p99")]
        cpu, warp, p = (figures["rollout"][part] for part in ("cpu", "warp", "p"))
        table.add_row(
            name,
            *("none" if error is None else f"{error:.1e}" for error in errors),
            *(f"{side['displacement']:.3f}" for side in (cpu, warp)),
            f"{p['displacement']:.2f}",
            *(f"{side['success']:.3f}" for side in (cpu, warp)),
            f"{p['at_goal']:.2f}",
            "; ".join(figures["shortfalls"]) or "nothing",
        )
    return table


def _measured(output: Path, name: str, sizes: dict[str, Any]) -> bool:
    """Tell whether the output file has the task's figures for these sizes."""
    if not output.exists():
        return False
    figures = json.loads(output.read_text(encoding="utf-8")).get(name, {})
    return all(figures.get(size) == value for size, value in sizes.items())


@click.command(help="Compare the CPU simulator and the one on MuJoCo Warp, task by task.")
@click.option("--tasks", multiple=True, help="Names, or files of users' tasks.  [default: all built-in ones]")
@click.option("--worlds", type=click.IntRange(min=8), default=512, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=200, show_default=True, help="Control steps.")
@click.option("--states", type=click.IntRange(min=8), default=2048, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="Warp's: cpu or cuda:<index>.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path(__file__).parent / "results" / "parity.json",
    help="JSON file to complete.  [default: benchmarks/results/parity.json]",
)
def main(tasks: tuple[str, ...], worlds: int, steps: int, states: int, device: str, output: Path) -> None:
    """Measure what is missing, write it task by task, and print the table."""
    try:
        chosen = {(task := compile_task(reference)).name: task for reference in tasks or task_names()}
    except TaskError as error:
        raise click.UsageError(str(error)) from error
    sizes = {"worlds": worlds, "steps": steps, "states": states, "device": device}
    for name, task in chosen.items():
        if _measured(output, name, sizes):
            click.echo(f"{name}: in {output}")
            continue
        start = time.perf_counter()
        figures = measure(task, **sizes) | {"facts": facts()}
        merge_cell(output, name, figures)
        said = "; ".join(figures["shortfalls"]) or "within all bounds"
        click.echo(f"{name}: {said}, after {time.perf_counter() - start:.0f} s")
    found = json.loads(output.read_text(encoding="utf-8"))
    Console(width=200).print(parity_table({name: found[name] for name in chosen}))


if __name__ == "__main__":
    main()
