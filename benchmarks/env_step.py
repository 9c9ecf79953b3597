"""What a full environment step costs over the bare physics that it cannot do without.

Full: `CpuSimulator.step` (clipped actions to controls, physics, observation, goals, success, ends) and the
resets of the worlds that ended, their episodes spread out as they are in training. Bare: `mujoco.batch.Batch`
stepped by the same number of physics steps on as many threads, controls written, nothing read. Both sides run
in turn, so that a machine that slows down slows both; the ratio is taken round by round.

    python -m benchmarks.env_step --task point_u_maze --worlds 256 --rounds 9
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from mujoco.batch import Batch
from rich.console import Console
from rich.table import Table

from envs.cpu_simulator import CpuSimulator, available_threads
from envs.registry import compile_task, task_names
from pipeline.core.atomic import write_json_atomic

_SECONDS_PER_SIDE = 1.0


def full_step(task_name: str, worlds: int, actions: np.ndarray) -> Callable[[int], None]:
    """Return a function that makes `count` full steps."""
    simulator = CpuSimulator(compile_task(task_name), worlds, seed=0)
    # Worlds that all ended in one step would be reset together: cheaper than one by one, as in training.
    simulator.episode_step[:] = np.random.default_rng(0).integers(
        simulator.task.task.episode_steps, size=worlds
    )

    def run(count: int) -> None:
        for index in range(count):
            result = simulator.step(actions[index % len(actions)])
            ended = result.terminated | result.truncated | result.unstable
            if ended.any():
                simulator.reset(ended)

    return run


def bare_step(task_name: str, worlds: int, actions: np.ndarray) -> Callable[[int], None]:
    """Return a function that makes `count` bare physics steps, from starts of the same distribution."""
    task = compile_task(task_name)
    batch = Batch(task.model, worlds, available_threads())
    batch.qpos[:] = task.sample_start("training", np.random.default_rng(0), worlds)[0]
    controls = [task.control(action) for action in actions]
    ctrl = batch.bind("ctrl")

    def run(count: int) -> None:
        for index in range(count):
            ctrl[:] = controls[index % len(controls)]
            batch.step(nstep=task.frame_skip)

    return run


def steps_for(run: Callable[[int], None], seconds: float) -> int:
    """Return how many steps take about `seconds`, after warming up."""
    run(20)
    start = time.perf_counter()
    run(50)
    return max(1, round(50 * seconds / (time.perf_counter() - start)))


def rate(run: Callable[[int], None], count: int, worlds: int) -> float:
    """Return control steps a second, over all worlds."""
    start = time.perf_counter()
    run(count)
    return count * worlds / (time.perf_counter() - start)


def machine_facts() -> dict[str, object]:
    """Return what a reader needs to judge the figures."""
    packages = ("mujoco", "numpy", "gymnasium")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": available_threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def measure(task: str, worlds: int, rounds: int) -> dict[str, object]:
    """Measure both sides in turn, `rounds` times, and return the figures with the machine's facts."""
    facts = machine_facts()
    shape = (64, worlds, compile_task(task).action_dim)
    actions = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
    sides = {"full": full_step(task, worlds, actions), "bare": bare_step(task, worlds, actions)}
    counts = {name: steps_for(run, _SECONDS_PER_SIDE) for name, run in sides.items()}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            rates[name].append(round(rate(run, counts[name], worlds), 1))
    ratios = [full / bare for full, bare in zip(rates["full"], rates["bare"], strict=True)]
    return {
        "task": task,
        "worlds": worlds,
        "rounds": rounds,
        "machine": facts,
        "steps_per_second": rates,
        "median_steps_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "full_over_bare": {
            "median": round(statistics.median(ratios), 4),
            "min": round(min(ratios), 4),
            "max": round(max(ratios), 4),
        },
    }


@click.command(help="Measure full environment steps against bare Batch.step.")
@click.option("--task", type=click.Choice(task_names()), default="point_u_maze", show_default=True)
@click.option("--worlds", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--rounds", type=click.IntRange(min=7), default=9, show_default=True)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path(__file__).parent / "results" / "env_step.json",
    help="JSON file to write.  [default: benchmarks/results/env_step.json]",
)
def main(task: str, worlds: int, rounds: int, output: Path) -> None:
    """Measure, print a table and write the figures."""
    result = measure(task, worlds, rounds)
    rates, ratio = result["steps_per_second"], result["full_over_bare"]
    assert isinstance(rates, dict) and isinstance(ratio, dict)
    table = Table(title=f"{task}, {worlds} worlds, {rounds} rounds in turn")
    table.add_column("control steps/s")
    for column in ("median", "min", "max"):
        table.add_column(column, justify="right")
    for name, values in rates.items():
        table.add_row(name, f"{statistics.median(values):,.0f}", f"{min(values):,.0f}", f"{max(values):,.0f}")
    table.add_row("full / bare", *(f"{ratio[column]:.1%}" for column in ("median", "min", "max")))
    Console().print(table)
    write_json_atomic(output, result)
    click.echo(f"wrote {output}")


if __name__ == "__main__":
    main()
