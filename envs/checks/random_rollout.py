"""What a random policy does in a task, and what looks wrong in it: speeds, scales, ends at the first step."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

import mujoco
import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.object_names import object_names
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.term_columns import LINEAR_AND_TURNING, label_of
from thousandfold.envs.user_tasks.task_yaml import task_place
from thousandfold.ground.runs import HeldGoals

_OFTEN = 0.1
_EPISODES_AWAY, _SHORT = 3.0, 3
_FAST_TURN, _FAST_SPIN = 2 * np.pi, 200.0  # rad between two actions; rad/s
_UNEQUAL = 1000.0  # of the spans of terms of one unit, largest by smallest


@dataclass
class RandomRollout:
    """What a random policy did in one episode of every world.

    Attributes:
        observation, achieved_goal, desired_goal: least and largest of each number, (2, size).
        student_observation: the same of what a student sees.
        reached: (worlds,) bool, the episode met its goal; an unstable one did not.
        reached_at_start: (worlds,) bool, it began within the success region.
        ended_at_once: (worlds,) bool, its first step was its last, by an early end.
        unstable: (worlds,) bool, its physics diverged.
        lengths: (worlds,) int, control steps until the episode ended.
        non_finite: observations, one a step and world, that held NaN or infinity.
        fastest: (goal_dim,), how far each number of the achieved goal went at most in one control step.
        speeds: (nv,), the largest size of each joint velocity.
        whole: the episodes ran to their end.
        first_end: which early end held where an episode ended at once, in the first of these worlds; or None.
        steps: control steps of all worlds while their episodes ran.
        seconds: spent in the simulator.
    """

    observation: np.ndarray
    student_observation: np.ndarray
    achieved_goal: np.ndarray
    desired_goal: np.ndarray
    reached: np.ndarray
    reached_at_start: np.ndarray
    ended_at_once: np.ndarray
    unstable: np.ndarray
    lengths: np.ndarray
    fastest: np.ndarray
    speeds: np.ndarray
    whole: bool = True
    first_end: int | None = None
    non_finite: int = 0
    steps: int = 0
    seconds: float = 0.0


def roll_out(
    task: CompiledTask,
    worlds: int,
    seed: int,
    *,
    distribution: str = "evaluation",
    steps: int | None = None,
) -> RandomRollout:
    """Run one episode in every world, with actions uniform in [−1, 1].

    Args:
        task: the compiled task.
        worlds: how many.
        seed: of starts, goals and actions.
        distribution: the episode distribution that starts and goals come from.
        steps: stop after so many control steps; None runs the episodes to their end.
    """
    simulator = CpuSimulator(task, worlds, seed=seed, distribution=distribution, with_student=True)
    rng, result = np.random.default_rng(seed), _at_start(simulator)
    before = np.array(simulator.achieved_goal)
    running, held = np.ones(worlds, bool), HeldGoals(simulator.desired_goal, task.spec.hold_steps)
    fallen = np.zeros(worlds, bool)
    last = min(steps or task.spec.episode_steps, task.spec.episode_steps)
    result.whole = last == task.spec.episode_steps
    for step in range(last):
        action = rng.uniform(-1.0, 1.0, (worlds, task.action_dim)).astype(np.float32)
        began = time.perf_counter()
        outcome = simulator.step(action)
        result.seconds += time.perf_counter() - began
        result.steps += int(running.sum())
        result.lengths += running
        result.unstable = result.unstable | (running & outcome.unstable)
        running = running & ~outcome.unstable
        held.add(outcome.success, running, simulator.desired_goal)
        fallen |= running & outcome.terminated & bool(task.later_goals)
        result.reached = held.all_held & ~fallen
        _widen(result, simulator, running)
        if running.any():
            moved = np.abs(simulator.achieved_goal - before)[running]
            result.fastest = np.fmax(result.fastest, moved.max(0))
            if task.model.nv:
                result.speeds = np.fmax(result.speeds, np.abs(simulator.qvel[running]).max(0))
        before = np.array(simulator.achieved_goal)
        if step == 0:
            result.ended_at_once = running & outcome.terminated
            if result.ended_at_once.any():
                data = simulator.world_data(int(np.argmax(result.ended_at_once)))
                fields = {name: np.reshape(getattr(data, name), (1, -1)) for name in task.fields}
                ends = range(len(task.spec.early_end))
                result.first_end = next((end for end in ends if task.early_end_holds(end, fields)[0]), None)
        running = running & ~outcome.terminated
        if not running.any():
            break
    result.reached = result.reached & ~result.unstable
    return result


def _at_start(simulator: CpuSimulator) -> RandomRollout:
    """Return the rollout of worlds that have not stepped yet."""
    task, none = simulator.task, np.zeros(simulator.num_worlds, bool)

    def span(rows: np.ndarray) -> np.ndarray:
        return np.stack([rows.min(0), rows.max(0)])

    return RandomRollout(
        observation=span(simulator.observation),
        student_observation=span(simulator.student_observation),
        achieved_goal=span(simulator.achieved_goal),
        desired_goal=span(simulator.desired_goal),
        reached=none.copy(),
        reached_at_start=task.is_success(simulator.achieved_goal, simulator.desired_goal),
        ended_at_once=none,
        unstable=none,
        lengths=np.zeros(simulator.num_worlds, np.int64),
        fastest=np.zeros(task.goal_dim),
        speeds=np.zeros(task.model.nv),
    )


def _widen(result: RandomRollout, simulator: CpuSimulator, running: np.ndarray) -> None:
    """Widen the ranges seen to the numbers of the running worlds, and count those that are none."""
    for name in ("observation", "student_observation", "achieved_goal"):
        rows = getattr(simulator, name)[running]
        finite = np.isfinite(rows).all(1)
        if name == "observation":
            result.non_finite += int((~finite).sum())
        if finite.any():
            span = getattr(result, name)
            span[0] = np.minimum(span[0], rows[finite].min(0))
            span[1] = np.maximum(span[1], rows[finite].max(0))


def ended_at_once(rollout: RandomRollout, task: CompiledTask) -> str:
    """Return how many episodes end at their first step and by which early end; nothing where none does."""
    if not (at_once := int(rollout.ended_at_once.sum())):
        return ""
    place, bounds = "early_end", ""
    if rollout.first_end is not None:
        end = task.spec.early_end[rollout.first_end]
        place = task_place(task.spec.file, ("early_end", rollout.first_end))
        bounds = f", where {label_of(end.term)} must stay within {end.low:g} to {end.high:g}"
    episodes = len(rollout.ended_at_once)
    return f"{at_once} of {episodes} episodes end at their first step: {place} holds at the start{bounds}."


def training_warnings(task: CompiledTask, worlds: int, seed: int) -> list[str]:
    """Return what looks wrong in the first step of the episodes of training and of near goals.

    Those that are evaluation's are left out: `rollout_warnings` tells of them.
    """
    distributions, found = task.spec.distributions, []
    for name in task.spec.judged:
        if distributions[name] == distributions["evaluation"]:
            continue
        rollout = roll_out(task, worlds, seed, distribution=name, steps=1)
        found += [f"of {name}, {at_once}"] if (at_once := ended_at_once(rollout, task)) else []
        if (share := rollout.reached_at_start.mean()) > _OFTEN:
            found.append(
                f"{share:.0%} of the episodes of {name} start within the success region of their goal."
            )
    return found


def rollout_warnings(rollout: RandomRollout, task: CompiledTask) -> list[str]:
    """Return what looks wrong in a random policy's episodes."""
    found, episodes = [], len(rollout.reached)
    if unstable := int(rollout.unstable.sum()):
        found.append(
            f"the physics diverged in {unstable} of {episodes} episodes: lower the timestep or the gains, or "
            "raise damping and armature."
        )
    if rollout.non_finite:
        found.append(f"{rollout.non_finite} observations held NaN or infinity.")
    if at_once := ended_at_once(rollout, task):
        found.append(at_once)
    elif rollout.whole and not rollout.unstable.any():
        half, steps = float(np.median(rollout.lengths)), task.spec.episode_steps
        if half <= _SHORT < steps:
            found.append(f"half of the episodes end by early_end within {half:g} of {steps} steps.")
    if (share := rollout.reached_at_start.mean()) > _OFTEN:
        found.append(f"{share:.0%} of the episodes start within the success region of their goal.")
    moves = not rollout.ended_at_once.all() and not rollout.unstable.all()
    if moves and (rollout.achieved_goal[0] == rollout.achieved_goal[1]).all():
        found.append("the achieved goal never changes: no action moves what achieved_goal reads.")
    if moves and (rollout.observation[0] == rollout.observation[1]).all():
        found.append("the observation never changes: the policy sees nothing of what it does.")
    own = task.student_view is not task
    if moves and own and (rollout.student_observation[0] == rollout.student_observation[1]).all():
        found.append("student_observation never changes: the student sees nothing of what it does.")
    return [*found, *_speeding_joints(rollout, task), *_scales(rollout, task), *_far_goals(rollout, task)]


def _speeding_joints(rollout: RandomRollout, task: CompiledTask) -> list[str]:
    """Return a line on joints too fast to be controlled: a turn, or the size of the model, an action."""
    model, control_dt = task.model, task.spec.control_dt_s
    names, fast = object_names(model, mujoco.mjtObj.mjOBJ_JOINT), []
    for joint, name in enumerate(names):
        kind, start = mujoco.mjtJoint(model.jnt_type[joint]), int(model.jnt_dofadr[joint])
        linear, turning = LINEAR_AND_TURNING[kind]
        speeds = rollout.speeds[start : start + linear + turning]
        slide, turn = max(speeds[:linear], default=0.0), max(speeds[linear:], default=0.0)
        if turn * control_dt > _FAST_TURN or turn > _FAST_SPIN:
            fast.append((turn, f"{name!r} turns at up to {turn:.3g} rad/s"))
        elif slide * control_dt > model.stat.extent:
            fast.append((slide, f"{name!r} slides at up to {slide:.3g} a second"))
    if not fast:
        return []
    texts = first_few([text for _, text in sorted(fast, reverse=True)])
    return [
        f"too fast to be controlled every {control_dt:g} s: joint {texts}. Add damping or "
        "armature, lower gears and ranges of controls, or act more often."
    ]


def _scales(rollout: RandomRollout, task: CompiledTask) -> list[str]:
    """Return a line where terms of one unit, which share a scale, differ by orders of magnitude."""
    low, high = rollout.observation
    groups = np.array(task.groups_of_a_unit("observation"))
    place, terms = partial(task_place, task.spec.file), task.term_spans("observation")
    for group in np.unique(groups):
        own = [np.where(groups[part] == group, (high - low)[part], 0.0).max(initial=0.0) for part in terms]
        spans = np.array(own)
        moving = np.flatnonzero(spans > 0)
        if len(moving) and spans.max() >= _UNEQUAL * spans[moving].min():
            most, least = int(np.argmax(spans)), int(moving[np.argmin(spans[moving])])
            large, small = place(("observation", most)), place(("observation", least))
            return [
                f"{large} spans {spans[most]:.2g}, and {small} {spans[least]:.2g}: numbers of one unit share "
                "a scale, so the second is hardly seen; leave out what of the two the policy does not need."
            ]
    return []


def _far_goals(rollout: RandomRollout, task: CompiledTask) -> list[str]:
    """Return a line for each number of the goal that is commanded far from where a random policy came.

    Far is farther than the model is large, and than some episodes would lead at the fastest that was seen: a
    random policy's speed is no bound, but a good policy is rarely some times as fast all the time.
    """
    if not rollout.whole or rollout.ended_at_once.all():
        return []
    found = []
    (low, high), (least, largest) = rollout.achieved_goal, rollout.desired_goal
    away = np.maximum(np.maximum(largest - high, low - least), 0.0)
    travel = rollout.fastest * task.spec.episode_steps
    matters = [any(region.covers(each) for region in task.spec.success) for each in range(task.goal_dim)]
    names = [element["name"] for element in task.describe("achieved_goal")]
    far = matters & (away > task.model.stat.extent) & (away > _EPISODES_AWAY * travel)
    for index in np.flatnonzero(far):
        found.append(
            f"{names[index]} is commanded from {least[index]:.3g} to {largest[index]:.3g}, and a random "
            f"policy achieved {low[index]:.3g} to {high[index]:.3g}: at its largest step, an episode of "
            f"{task.spec.episode_steps} leads {travel[index]:.3g} far."
        )
    return found


def first_few(texts: list[str]) -> str:
    """Return the first three of some texts, and how many more there are."""
    return ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")
