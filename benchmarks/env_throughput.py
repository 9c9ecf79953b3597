"""Environment steps a second, beside EnvPool and Gymnasium's vector environments, and how they grow.

    python -m benchmarks.env_throughput
    python -m benchmarks.env_throughput --only humanoid --again

A step is a full one: controls, physics, observation, goals, success, ends and resets, under random actions.
Comparisons:

``ant``: the product's simulator, its Gymnasium vector environment, the simulator with the integrator that the
others have (RK4), and with all of the model's physics that they have (``as shipped``: contacts and solver,
too); EnvPool's Ant-v5, and Gymnasium's Ant-v5 in one process and in several.
``humanoid``: the same without Gymnasium's.
``growth``: the product's simulator on the ant, with more and more worlds.

EnvPool and Gymnasium first try several numbers of worlds (and batches, for EnvPool's asynchronous mode); the
fastest takes part. All sides of a comparison have the same number of threads (Gymnasium's processes are as
many as its worlds) and work in turn, round after round, so that a machine that slows down slows all; ratios
are taken round by round. A comparison that is in the output already is not measured again, unless asked for.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks.env_sides import (
    envpool_candidates,
    gymnasium_candidates,
    own_side,
    own_vector_side,
)
from benchmarks.learner_speed import merge_cell, spread
from benchmarks.task_variants import RK4, as_shipped, with_integrator
from benchmarks.turns import Side, facts, fastest, ratios, take_turns
from thousandfold.envs.registry import compile_task

COMPARISONS = ("ant", "humanoid", "growth")
OWN, OWN_VECTOR = "thousandfold", "thousandfold make_vec"
OWN_RK4, OWN_SHIPPED = "thousandfold RK4", "thousandfold as shipped"
ENVPOOL, SYNC, ASYNC = "EnvPool", "Gymnasium sync", "Gymnasium async"
GROWTH = (16, 64, 256, 1024, 4096)
_TRIES = 3

Candidates = dict[str, Callable[[], Side]]


def strangers(comparison: str, threads: int, most_worlds: int) -> dict[str, Candidates]:
    """Return the settings that the other systems may choose from, by system."""
    env_id = {"ant": "Ant-v5", "humanoid": "Humanoid-v5"}[comparison]
    systems = {ENVPOOL: envpool_candidates(env_id, threads, most_worlds)}
    if comparison == "ant":
        for name, processes in ((SYNC, False), (ASYNC, True)):
            systems[name] = gymnasium_candidates(env_id, processes=processes, most_worlds=most_worlds)
    return systems


def compare(comparison: str, worlds: int, threads: int, rounds: int, round_s: float) -> dict[str, Any]:
    """Measure the product beside the others; return rates, their medians and the ratios."""
    task = compile_task(comparison)
    chosen, tried = {}, {}
    systems = strangers(comparison, threads, worlds)
    for name, candidates in systems.items():
        chosen[name], tried[name] = fastest(candidates, _TRIES, round_s)
    with contextlib.ExitStack() as stack:
        sides = {
            OWN: own_side(task, worlds, threads),
            OWN_VECTOR: own_vector_side(task, worlds, threads),
            OWN_RK4: own_side(with_integrator(comparison, RK4), worlds, threads),
            OWN_SHIPPED: own_side(as_shipped(comparison), worlds, threads),
        }
        own = list(sides)
        sides |= {name: candidates[chosen[name]]() for name, candidates in systems.items()}
        for side in sides.values():
            stack.callback(side.close)
        rates = take_turns(sides, rounds, round_s)
    return {
        "settings": chosen,
        "tried_steps_per_second": tried,
        **_figures(rates),
        "times_as_fast": {side: {other: ratios(rates, side, other) for other in systems} for side in own},
    }


def grow(counts: Iterable[int], threads: int, rounds: int, round_s: float) -> dict[str, Any]:
    """Measure the ant with more and more worlds; return rates, and each over that with the fewest worlds."""
    task = compile_task("ant")
    rates = take_turns({str(count): own_side(task, count, threads) for count in counts}, rounds, round_s)
    fewest = next(iter(rates))
    return _figures(rates) | {"over_fewest_worlds": {count: ratios(rates, count, fewest) for count in rates}}


def _figures(rates: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "steps_per_second": {side: spread(values) for side, values in rates.items()},
        "rounds_steps_per_second": rates,
    }


def result_table(comparison: str, cell: dict[str, Any]) -> Table:
    """Return the figures of a comparison, a row a side."""
    table = Table(title=f"{comparison}: full environment steps, {cell['threads']} threads, random actions")
    table.add_column("side" if "settings" in cell else "worlds", no_wrap=True)
    columns = ["steps/s", "min – max"]
    columns += [f"× {other}" for other in cell["settings"]] if "settings" in cell else ["× fewest worlds"]
    for column in columns:
        table.add_column(column, justify="right")
    for side, rate in cell["steps_per_second"].items():
        times = (
            [cell["times_as_fast"].get(side, {}).get(other) for other in cell["settings"]]
            if "settings" in cell
            else [cell["over_fewest_worlds"][side]]
        )
        cells = [f"{each['median']:.2f}" if each else "" for each in times]
        label = f"{side} ({cell['settings'][side]})" if side in cell.get("settings", {}) else side
        table.add_row(label, f"{rate['median']:,.0f}", f"{rate['min']:,.0f} – {rate['max']:,.0f}", *cells)
    return table


@click.command(help="Measure environment steps a second beside EnvPool's and Gymnasium's.")
@click.option(
    "--only", type=click.Choice(COMPARISONS), multiple=True, help="What to measure.  [default: all]"
)
@click.option("--worlds", type=click.IntRange(min=1), default=256, show_default=True, help="Of the product.")
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--rounds", type=click.IntRange(min=5), default=7, show_default=True)
@click.option("--round-s", type=click.FloatRange(min=0, min_open=True), default=2.0, show_default=True)
@click.option(
    "--growth",
    type=click.IntRange(min=1),
    multiple=True,
    default=GROWTH,
    show_default=True,
    help="Numbers of worlds, fewest first.",
)
@click.option("--again", is_flag=True, help="Measure what the output holds already, too.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path(__file__).parent / "results" / "env_throughput.json",
    help="JSON file to add to.  [default: benchmarks/results/env_throughput.json]",
)
def main(
    only: tuple[str, ...],
    worlds: int,
    threads: int,
    rounds: int,
    round_s: float,
    growth: tuple[int, ...],
    again: bool,
    output: Path,
) -> None:
    """Measure what is missing, print tables and write the figures."""
    known = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    console = Console(width=max(Console().width, 120))
    for comparison in only or COMPARISONS:
        if comparison not in known or again:
            cell = {"worlds": worlds, "threads": threads, "rounds": rounds, "round_s": round_s} | facts()
            if comparison == "growth":
                cell |= grow(growth, threads, rounds, round_s) | {"worlds": growth}
            else:
                cell |= compare(comparison, worlds, threads, rounds, round_s)
            merge_cell(output, comparison, cell)
            known[comparison] = cell
        console.print(result_table(comparison, known[comparison]))
    click.echo(f"results in {output}")


if __name__ == "__main__":
    main()
