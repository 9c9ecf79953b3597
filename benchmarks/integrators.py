"""How far the integrator of a task takes its worlds from where a finer one takes them, beside RK4.

    python -m benchmarks.integrators --tasks ant

The same worlds, brought from starts into the middle of things by random actions, go on from there under the
same random actions three times: with the task's own integrator, with the fourth-order Runge-Kutta method
that the shipped models ask for, both at the task's timestep, and with Runge-Kutta at a fraction of it, which
the other two are compared with. Errors are those of the floating body's position and of the joints' angles
(root mean square over the joints). Worlds whose episode would have ended are left out from then on. Contact
makes such motion chaotic: errors grow by themselves, whatever the integrator.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import mujoco
import numpy as np
from mujoco.batch import Batch

from benchmarks.env_throughput import RK4, full_step, make_simulator, random_actions, with_integrator
from benchmarks.harness import Cell, CellBook, StudyParser, markdown_table, run_study
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import compile_task

OWN, SAME_STEP, REFERENCE = "own", "RK4", "reference"
PAIRS = ((OWN, REFERENCE), (SAME_STEP, REFERENCE), (OWN, SAME_STEP))
_BODY = slice(0, 3)
_JOINTS = slice(7, None)
_STEPS_BEFORE = 20


def positions(
    task: CompiledTask, qpos: np.ndarray, qvel: np.ndarray, actions: np.ndarray, threads: int = 0
) -> np.ndarray:
    """Return where the worlds go, (control steps, worlds, nq).

    Args:
        task: whose model to step, and how often a control step.
        qpos, qvel: (worlds, nq) and (worlds, nv), where they begin.
        actions: (control steps, worlds, action_dim).
        threads: to step on; 0 takes all.
    """
    batch = Batch(task.model, len(qpos), threads)
    batch.qpos[:], batch.qvel[:] = qpos, qvel
    passed = []
    for step, action in enumerate(actions):
        clocks = task.control.clocks(np.full((len(qpos), 1), step * task.spec.control_dt_s))
        batch.ctrl[:] = task.control(action, batch.ctrl, clocks=clocks)
        batch.step(nstep=task.frame_skip)
        passed.append(batch.qpos.copy())
    return np.stack(passed)


def begin(task: CompiledTask, worlds: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return qpos and qvel of worlds that acted at random for some steps, and were reset where they ended."""
    simulator = make_simulator(task, worlds, threads=0)
    for action in random_actions(-1, 1, (worlds, task.action_dim), np.float32)[:steps]:
        full_step(simulator, action)
    data = [simulator.world_data(world) for world in range(worlds)]
    return np.stack([each.qpos for each in data]), np.stack([each.qvel for each in data])


def running(task: CompiledTask, passed: np.ndarray) -> np.ndarray:
    """Return (control steps, worlds) bool: the episode has not ended early so far. Reads qpos alone."""
    ended = np.stack([task.ended_early({"qpos": qpos}) for qpos in passed])
    return ~np.logical_or.accumulate(ended, axis=0)


def errors(one: np.ndarray, other: np.ndarray) -> dict[str, dict[str, float]]:
    """Return median and 90th percentile over the worlds of the differences of qpos, (worlds, nq)."""
    difference = one - other
    found = {
        "position_m": np.linalg.norm(difference[:, _BODY], axis=1),
        "joints_rad": np.sqrt((difference[:, _JOINTS] ** 2).mean(1)),
    }
    return {
        name: {"median": float(np.median(values)), "p90": float(np.percentile(values, 90))}
        for name, values in found.items()
    }


def measure(task_name: str, worlds: int, horizons: Sequence[int], finer: int) -> Cell:
    """Return the errors at every horizon, in control steps."""
    task = compile_task(task_name)
    qpos, qvel = begin(task, worlds, steps=_STEPS_BEFORE)
    actions = np.random.default_rng(2).uniform(-1, 1, (max(horizons), worlds, task.action_dim))
    rk4 = {SAME_STEP: with_integrator(task_name, RK4), REFERENCE: with_integrator(task_name, RK4, finer)}
    passed = {name: positions(side, qpos, qvel, actions) for name, side in ({OWN: task} | rk4).items()}
    kept = np.logical_and.reduce([running(task, each) for each in passed.values()])
    return {
        "worlds": worlds,
        "own_integrator": mujoco.mjtIntegrator(task.model.opt.integrator).name,
        "timestep_s": task.model.opt.timestep,
        "reference_timestep_s": task.model.opt.timestep / finer,
        "control_dt_s": task.spec.control_dt_s,
        "horizons": [_at(horizon, passed, kept[horizon - 1]) for horizon in horizons],
    }


def _at(horizon: int, passed: dict[str, np.ndarray], kept: np.ndarray) -> dict[str, Any]:
    """Return the errors after so many control steps, over the worlds kept; none where there are none."""
    row: dict[str, Any] = {"control_steps": horizon, "worlds": int(kept.sum())}
    if kept.any():
        now = {name: qpos[horizon - 1][kept] for name, qpos in passed.items()}
        row["errors"] = {f"{one} - {other}": errors(now[one], now[other]) for one, other in PAIRS}
    return row


def show(task: str, cell: Cell) -> str:
    """Return the errors of one task, a row a horizon."""
    units = {"mm": "position_m", "mrad": "joints_rad"}
    rows = [
        [
            row["control_steps"],
            row["worlds"],
            *(
                f"{_short(1e3 * error[quantity]['median'])} ({_short(1e3 * error[quantity]['p90'])})"
                for quantity in units.values()
                for error in row.get("errors", {}).values()
            ),
        ]
        for row in cell["horizons"]
    ]
    heads = [f"{one} - {other}, {unit}" for unit in units for one, other in PAIRS]
    title = f"{task}: median (90th percentile) of the difference, {cell['own_integrator']}"
    return markdown_table(["control steps", "worlds", *heads], rows, title)


def _short(value: float) -> str:
    """Return three digits of a number, without an exponent."""
    return f"{float(f'{value:.3g}'):,g}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure task after task and print tables."""
    parser = StudyParser(__doc__, "integrators")
    parser.set_defaults(again=True)
    parser.several("--tasks", ["ant"], choices=("ant", "humanoid"))
    parser.number("--worlds", 512, least=1)
    parser.several("--horizons", [1, 5, 20, 50], type=int, help="in control steps")
    parser.number("--finer", 4, "steps of the reference to one", least=2)
    options = parser.parse(arguments)
    sizes = (options.worlds, options.horizons, options.finer)
    cells = ((task, partial(measure, task, *sizes)) for task in options.tasks)
    run_study(options, cells, book=CellBook(options.output, within=None), line=show)


if __name__ == "__main__":
    main()
