"""Whether the two simulators of a task agree: `mujoco.batch` on CPU threads and MuJoCo Warp.

One physics step from the same states under the same actions, and many control steps of many worlds from the
same starts under the same actions. Both get the same numbers, rounded to float32; CPU threads then compute in
float64, MuJoCo Warp in float32. An error is |difference| / (1 + |x|); of a state the largest counts.
Figures go into the output file task by task, and what is there with the same sizes is not measured again.

    python -m benchmarks.parity                          every task, 512 worlds, 200 control steps
    python -m benchmarks.parity --tasks ant --worlds 64 --steps 50 --output /tmp/parity.json
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import mujoco
import numpy as np
from mujoco.batch import Batch
from scipy import stats

from benchmarks.harness import Cell, CellBook, StudyParser, markdown_table, run_study
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import compile_task, task_names
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.simulators.simulator import Simulator
from thousandfold.envs.simulators.warp_simulator import WarpSimulator
from thousandfold.envs.task import TaskError, Term

FREE_BOUND = 1e-4  # of the largest |difference| / (1 + |x|) after one physics step, where nothing touches
TOUCHING_MEDIAN = 1e-3  # of the same, the median over states in contact
LEAST_P = 0.01  # of the Kolmogorov-Smirnov tests
_VISITING_WORLDS, _VISITED_STEPS = 64, 200
_HAIR = 1e-6
_COMPARED = ("displacement", "closest_distance", "at_goal")
_LIFTS_M = (0.6, 1.6)  # above a table and what an arm reaches beside it


@dataclass(frozen=True)
class States:
    """States and actions, one a row.

    Attributes:
        qpos, qvel: (count, nq) and (count, nv), float64 holding float32 numbers.
        action: (count, action_dim).
        touching: (count,) bool, whether anything touches anything.
        undecided: (count,) bool, whether a constraint is within 1 µm or 1 µrad of its threshold, so that
            rounding decides whether there is one.
    """

    qpos: np.ndarray
    qvel: np.ndarray
    action: np.ndarray
    touching: np.ndarray
    undecided: np.ndarray

    def __len__(self) -> int:
        return len(self.qpos)


def visited_states(task: CompiledTask, count: int, seed: int) -> States:
    """Return states that worlds pass through from training starts: in half of them whatever becomes of them.

    Every second world is reset when its episode ends early, the others lie where they fell. Every fourth
    world holds one extreme action, which drives it into walls and limits; the rest draw anew at every step.
    In every fourth state what lies about loose, a cube or a ball, is lifted off the ground: it touches
    something in nearly all the others.
    """
    rng = np.random.default_rng((seed, 0))
    simulator = CpuSimulator(task, _VISITING_WORLDS, seed=seed)
    rounds = -(-count // _VISITING_WORLDS)
    chosen = np.linspace(0, _VISITED_STEPS, rounds, dtype=int)
    world = np.arange(_VISITING_WORLDS)
    extreme = rng.choice([-1.0, 1.0], (_VISITING_WORLDS, task.action_dim))
    held = (world % 4 == 3)[:, None]
    qpos, qvel = [], []
    for step in range(_VISITED_STEPS + 1):
        for _ in range(int((chosen == step).sum())):
            for rows, part in zip((qpos, qvel), _positions_and_velocities(simulator), strict=True):
                rows.append(part)
        result = simulator.step(np.where(held, extreme, rng.uniform(-1, 1, extreme.shape)))
        simulator.reset(result.unstable | (result.terminated & (world % 2 == 0)))
    qpos, qvel = (np.concatenate(rows)[:count] for rows in (qpos, qvel))
    for height in _heights_of_loose_bodies(task.model):
        qpos[1::4, height] = np.float32(qpos[1::4, height] + rng.uniform(*_LIFTS_M, len(qpos[1::4])))
    action = rng.uniform(-1, 1, (count, task.action_dim)).astype(np.float32)
    contacts, _ = _constraints(task.model, qpos)
    near, far = (_constraints(_with_margin(task.model, margin), qpos) for margin in (_HAIR, -_HAIR))
    undecided = (near[0] != far[0]) | (near[1] != far[1])
    return States(qpos, qvel, action, contacts > 0, undecided)


def _heights_of_loose_bodies(model: mujoco.MjModel) -> list[int]:
    """Return which numbers of qpos are heights of bodies that move by a free joint alone."""
    free = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)
    alone = [joint for joint in free if model.tree_dofnum[model.dof_treeid[model.jnt_dofadr[joint]]] == 6]
    return [int(model.jnt_qposadr[joint]) + 2 for joint in alone]


def _positions_and_velocities(simulator: CpuSimulator) -> tuple[np.ndarray, np.ndarray]:
    model = simulator.task.model
    state = simulator.state_dict()["state"][:, 1 : 1 + model.nq + model.nv]  # after the time
    rounded = state.astype(np.float32).astype(np.float64)
    return rounded[:, : model.nq], rounded[:, model.nq :]


def _constraints(model: mujoco.MjModel, qpos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of contacts and of constraints at each position, (count,) each."""
    batch = Batch(model, len(qpos), 1)
    counts = [batch.bind(name) for name in ("ncon", "nefc")]
    batch.bind("qpos")[:] = qpos
    batch.forward()
    return counts[0].reshape(-1).copy(), counts[1].reshape(-1).copy()


def _with_margin(model: mujoco.MjModel, margin: float) -> mujoco.MjModel:
    """Return the model with every threshold of contacts and limits moved outwards."""
    moved = copy.copy(model)
    for thresholds in (moved.geom_margin, moved.pair_margin, moved.jnt_margin, moved.tendon_margin):
        thresholds += margin
    return moved


def one_step_errors(task: CompiledTask, states: States, device: str) -> tuple[np.ndarray, list[str]]:
    """Return |difference| / (1 + |x|) after one physics step, and the names of the numbers.

    Returns:
        (count, nq + nv + observation_dim): all of qpos and qvel, then what the task observes; and the names,
        in the same order.
    """
    described = replace(
        task.spec,
        observation=(Term("qpos"), Term("qvel"), *task.spec.observation),
        control_dt_s=task.model.opt.timestep,
        early_end=(),
    )
    single = CompiledTask(described)
    shown = []
    for make in makers(device).values():
        simulator = make(single, len(states), seed=0)
        simulator.set_state(states.qpos, states.qvel)
        simulator.step(states.action)
        shown.append(_numpy(simulator.observation).astype(np.float64))
    on_cpu, on_warp = shown
    names = [number["name"] for number in single.describe("observation")]
    return np.abs(on_warp - on_cpu) / (1 + np.abs(on_cpu)), names


@dataclass(frozen=True)
class Outcomes:
    """How the worlds of one simulator fared under given actions; each (num_worlds,).

    Attributes:
        displacement: how far the achieved goal ended from where it began.
        closest_distance: the shortest distance to the goal after any control step.
        at_goal: control steps within the success region.
        unstable: whether the world went into quarantine, and shows nothing.
    """

    displacement: np.ndarray
    closest_distance: np.ndarray
    at_goal: np.ndarray
    unstable: np.ndarray


def play(simulator: Simulator, steps: int, seed: int) -> Outcomes:
    """Take random control steps, the same for the same seed, from where the worlds are; nothing is reset."""
    rng, task, worlds = np.random.default_rng((seed, 1)), simulator.task, simulator.num_worlds
    start, goal = _numpy(simulator.achieved_goal), _numpy(simulator.desired_goal)
    closest, at_goal, unstable = np.full(worlds, np.inf), np.zeros(worlds), np.zeros(worlds, bool)
    achieved = start
    for _ in range(steps):
        action = rng.uniform(-1, 1, (worlds, task.action_dim)).astype(np.float32)
        result = simulator.step(action)
        achieved = _numpy(simulator.achieved_goal)
        closest = np.minimum(closest, task.goal_distance(achieved, goal))
        at_goal += _numpy(result.success)
        unstable |= _numpy(result.unstable)
    return Outcomes(np.linalg.norm(achieved - start, axis=1), closest, at_goal, unstable)


def reachable_goals(task: CompiledTask, worlds: int, steps: int, seed: int) -> np.ndarray:
    """Return goals that random actions can meet, (worlds, goal_dim): where others than `play`'s lead.

    From the same starts, with half the steps. The task's own goals are out of a random policy's reach in
    most tasks, and two simulators that never succeed are alike whatever they do.
    """
    simulator, rng = CpuSimulator(task, worlds, seed=seed), np.random.default_rng((seed, 2))
    for _ in range(steps // 2):
        simulator.step(rng.uniform(-1, 1, (worlds, task.action_dim)).astype(np.float32))
    return simulator.achieved_goal.copy()


def makers(device: str) -> dict[str, Callable[..., Simulator]]:
    """Return what makes each simulator: of a task, a number of worlds and a seed."""
    return {"cpu": CpuSimulator, "warp": partial(WarpSimulator, device=device)}


def _numpy(array: Any) -> np.ndarray:
    return array.copy() if isinstance(array, np.ndarray) else array.cpu().numpy().copy()


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


def table(tasks: Mapping[str, Cell]) -> str:
    """Return a row a task."""
    rows = []
    for name, figures in tasks.items():
        free, touching = (figures["step"][kind].get("state", {}) for kind in ("free", "touching"))
        cpu, warp, p = (figures["rollout"][part] for part in ("cpu", "warp", "p"))
        errors = [free.get("max"), touching.get("median"), touching.get("p99")]
        rows.append(
            [
                name,
                *("none" if error is None else f"{error:.1e}" for error in errors),
                *(f"{side['displacement']:.3f}" for side in (cpu, warp)),
                f"{p['displacement']:.2f}",
                *(f"{side['success']:.3f}" for side in (cpu, warp)),
                f"{p['at_goal']:.2f}",
                "; ".join(figures["shortfalls"]) or "nothing",
            ]
        )
    heads = [
        "task",
        "free max",
        "contact median",
        "p99",
        "moved cpu",
        "warp",
        "p",
        "success cpu",
        "warp",
        "p",
    ]
    return markdown_table([*heads, "beyond its bound"], rows, "CPU threads against MuJoCo Warp")


def describe(name: str, cell: Cell) -> str:
    """Return what of a task is beyond its bound."""
    return f"{name}: {'; '.join(cell['shortfalls']) or 'within all bounds'}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing and print the table."""
    parser = StudyParser(__doc__, "parity")
    parser.several(
        "--tasks", task_names(), help="names, or files of users' tasks; default: all built-in ones"
    )
    parser.number("--worlds", 512, least=8)
    parser.number("--steps", 200, "control steps", least=1)
    parser.number("--states", 2048, least=8)
    parser.add_argument("--device", default="cpu", help="Warp's: cpu or cuda:<index>")
    options = parser.parse(arguments)
    try:
        chosen = {(task := compile_task(reference)).name: task for reference in options.tasks}
    except TaskError as error:
        parser.error(str(error))
    sizes = {name: getattr(options, name) for name in ("worlds", "steps", "states", "device")}
    book = CellBook(options.output, within=None)
    # Figures of other sizes are replaced.
    found = {
        name for name, cell in book.cells.items() if all(cell.get(size) == sizes[size] for size in sizes)
    }
    run_study(
        options,
        ((name, partial(measure, task, **sizes)) for name, task in chosen.items()),
        lambda cells: table({name: cell for name, cell in cells.items() if name in chosen}),
        book=book,
        line=describe,
        again=lambda name: name not in found,
    )


if __name__ == "__main__":
    main()
