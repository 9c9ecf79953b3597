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
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from benchmarks.harness import (
    Cell,
    CellBook,
    Side,
    StudyParser,
    fastest,
    markdown_table,
    ratios,
    run_study,
    spread,
    take_turns,
)
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.goal_env import GoalVectorEnv
from thousandfold.envs.registry import compile_task, get_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.tasks.gymnasium_models import load_gymnasium_model

COMPARISONS = ("ant", "humanoid", "growth")
OWN, OWN_VECTOR = "thousandfold", "thousandfold make_vec"
OWN_RK4, OWN_SHIPPED = "thousandfold RK4", "thousandfold as shipped"
ENVPOOL, SYNC, ASYNC = "EnvPool", "Gymnasium sync", "Gymnasium async"
GROWTH = (16, 64, 256, 1024, 4096)
RK4 = mujoco.mjtIntegrator.mjINT_RK4
_TRIES = 3
_ACTION_SETS = 64
_SETTLING_STEPS = 100  # of each world; an ant or humanoid that acts at random falls within some 40

Candidates = dict[str, Callable[[], Side]]


# -- tasks with other physics than they come with ---------------------------------------------------


def with_integrator(task_name: str, integrator: mujoco.mjtIntegrator, finer: int = 1) -> CompiledTask:
    """Return a task with another integrator, and its timestep divided by `finer`."""

    def change(spec: mujoco.MjSpec) -> None:
        spec.option.integrator = integrator
        spec.option.timestep /= finer

    return _changed(task_name, change)


def as_shipped(task_name: str) -> CompiledTask:
    """Return a task with the integrator, solver and contacts of the model that Gymnasium ships.

    Args:
        task_name: a task named like the model.
    """
    shipped = load_gymnasium_model(task_name)

    def change(spec: mujoco.MjSpec) -> None:
        for name in ("integrator", "solver", "iterations"):
            setattr(spec.option, name, getattr(shipped.option, name))
        for geom in spec.geoms:
            theirs = shipped.geom(geom.name)
            geom.contype, geom.conaffinity = theirs.contype, theirs.conaffinity

    return _changed(task_name, change)


def _changed(task_name: str, change: Callable[[mujoco.MjSpec], None]) -> CompiledTask:
    task = get_task(task_name)

    def build_spec() -> mujoco.MjSpec:
        spec = task.build_spec()
        change(spec)
        return spec

    return CompiledTask(dataclasses.replace(task, build_spec=build_spec))


# -- sides -----------------------------------------------------------------------------------------


def random_actions(low: Any, high: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return sets of actions to go through again and again, uniform between the bounds."""
    rng = np.random.default_rng(1)
    return rng.uniform(low, high, (_ACTION_SETS, *shape)).astype(dtype)


def make_simulator(task: CompiledTask, worlds: int, threads: int) -> CpuSimulator:
    """Return worlds whose episodes are spread out, as they are in training.

    Worlds that all ended in one step would be reset together, which is cheaper than a few at a time.
    """
    simulator = CpuSimulator(task, worlds, num_threads=threads)
    simulator.episode_step[:] = np.random.default_rng(0).integers(task.spec.episode_steps, size=worlds)
    return simulator


def full_step(simulator: CpuSimulator, action: np.ndarray) -> None:
    """Make a full step: observation, goals, success, ends, and the resets of the worlds that ended."""
    result = simulator.step(action)
    ended = result.terminated | result.truncated | result.unstable
    if ended.any():
        simulator.reset(ended)


def own_side(task: CompiledTask, worlds: int, threads: int) -> Side:
    """Return the product's simulator, as its learner steps it."""
    simulator = make_simulator(task, worlds, threads)
    actions = random_actions(-1, 1, (worlds, task.action_dim), np.float32)

    def advance(count: int) -> None:
        for index in range(count):
            full_step(simulator, actions[index % _ACTION_SETS])

    advance(_SETTLING_STEPS)
    return Side(advance, worlds)


def own_vector_side(task: CompiledTask, worlds: int, threads: int) -> Side:
    """Return the product's Gymnasium vector environment, which copies what it returns."""
    return _gymnasium_side(GoalVectorEnv(worlds, task=task, num_threads=threads))


def gymnasium_side(env_id: str, worlds: int, *, processes: bool) -> Side:
    """Return Gymnasium's own vector environment: in this process, or each world in one of its own."""
    makers = [partial(gymnasium.make, env_id)] * worlds
    # Spawned: a fork would take the locks of other sides' threads along.
    return _gymnasium_side(AsyncVectorEnv(makers, context="spawn") if processes else SyncVectorEnv(makers))


def _gymnasium_side(env: Any) -> Side:
    space = env.single_action_space
    actions = random_actions(space.low, space.high, (env.num_envs, *space.shape), space.dtype)
    env.reset(seed=0)

    def advance(count: int) -> None:
        for index in range(count):
            env.step(actions[index % _ACTION_SETS])

    advance(_SETTLING_STEPS)
    return Side(advance, env.num_envs, env.close)


def envpool_side(env_id: str, worlds: int, batch: int, threads: int) -> Side:
    """Return EnvPool's environment; with a batch below the worlds it hands out what is ready first."""
    import envpool  # pyright: ignore[reportMissingImports]

    env: Any = envpool.make(
        env_id, env_type="gymnasium", num_envs=worlds, batch_size=batch, num_threads=threads, seed=0
    )
    space = env.action_space
    actions = random_actions(space.low, space.high, (batch, *space.shape), space.dtype)
    if batch == worlds:
        env.reset()
    else:
        env.async_reset()

    def advance(count: int) -> None:
        for index in range(count):
            action = actions[index % _ACTION_SETS]
            if batch == worlds:
                env.step(action)
            else:
                env.send(action, env.recv()[4]["env_id"])

    advance(_SETTLING_STEPS * worlds // batch)
    return Side(advance, batch, env.close)


def strangers(comparison: str, threads: int, most_worlds: int) -> dict[str, Candidates]:
    """Return the settings that the other systems may choose from, by system; names tell worlds and batch."""
    env_id = {"ant": "Ant-v5", "humanoid": "Humanoid-v5"}[comparison]
    sizes = [(16, 16), (64, 64), (256, 256), (16, 8), (64, 16), (64, 32), (256, 64), (256, 128)]
    systems: dict[str, Candidates] = {
        ENVPOOL: {
            f"{worlds} worlds, batches of {batch}": partial(envpool_side, env_id, worlds, batch, threads)
            for worlds, batch in sizes
            if worlds <= most_worlds
        }
    }
    counts = {SYNC: (1, 4, 16, 64), ASYNC: (2, 4, 8, 16)} if comparison == "ant" else {}
    for name, choices in counts.items():
        systems[name] = {
            f"{worlds} worlds": partial(gymnasium_side, env_id, worlds, processes=name == ASYNC)
            for worlds in choices
            if worlds <= most_worlds
        }
    return systems


# -- comparisons -----------------------------------------------------------------------------------


def compare(comparison: str, worlds: int, threads: int, rounds: int, round_s: float) -> Cell:
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
        "times_as_fast": {
            side: {other: ratios(rates[side], rates[other]) for other in systems} for side in own
        },
    }


def grow(counts: Iterable[int], threads: int, rounds: int, round_s: float) -> Cell:
    """Measure the ant with more and more worlds; return rates, and each over that with the fewest worlds."""
    task = compile_task("ant")
    rates = take_turns({str(count): own_side(task, count, threads) for count in counts}, rounds, round_s)
    fewest = next(iter(rates))
    return _figures(rates) | {
        "over_fewest_worlds": {count: ratios(rates[count], rates[fewest]) for count in rates}
    }


def _figures(rates: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "steps_per_second": {side: spread(values) for side, values in rates.items()},
        "rounds_steps_per_second": rates,
    }


def table(cells: Mapping[str, Cell]) -> str:
    """Return a table a comparison, a row a side."""
    return "\n\n".join(_table(comparison, cell) for comparison, cell in cells.items())


def _table(comparison: str, cell: Cell) -> str:
    chosen, rows = cell.get("settings", {}), []
    for side, rate in cell["steps_per_second"].items():
        times = [cell["times_as_fast"].get(side, {}).get(other) for other in chosen]
        times = times if chosen else [cell["over_fewest_worlds"][side]]
        rows.append(
            [
                f"{side} ({chosen[side]})" if side in chosen else side,
                f"{rate['median']:,.0f}",
                f"{rate['min']:,.0f} – {rate['max']:,.0f}",
                *(f"{each['median']:.2f}" if each else "" for each in times),
            ]
        )
    others = [f"× {other}" for other in chosen] or ["× fewest worlds"]
    return markdown_table(
        ["side" if chosen else "worlds", "steps/s", "min – max", *others],
        rows,
        f"{comparison}: full environment steps, {cell['threads']} threads, random actions",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing and print tables."""
    parser = StudyParser(__doc__, "env_throughput")
    parser.several("--only", list(COMPARISONS), choices=COMPARISONS, help="what to measure")
    parser.number("--worlds", 256, "of the product", least=1)
    parser.number("--threads", 2, least=1)
    parser.rounds(7, 2.0)
    parser.several("--growth", list(GROWTH), type=int, help="numbers of worlds, fewest first")
    options = parser.parse(arguments)
    worlds, timing = options.worlds, (options.threads, options.rounds, options.round_s)
    heads = {"threads": options.threads, "rounds": options.rounds, "round_s": options.round_s}

    def measure(comparison: str) -> Cell:
        if comparison == "growth":
            return heads | grow(options.growth, *timing) | {"worlds": options.growth}
        return heads | {"worlds": worlds} | compare(comparison, worlds, *timing)

    cells = ((comparison, partial(measure, comparison)) for comparison in options.only)
    run_study(options, cells, book=CellBook(options.output, within=None), line=_table)


if __name__ == "__main__":
    main()
