"""`pipeline tasks check`: what a task is made of, whether its physics holds, whether its goals can be met."""

from __future__ import annotations

import os
import struct
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envs.compiled_task import CompiledTask
from envs.cpu_simulator import CpuSimulator
from envs.goal_judgement import judge_goals
from envs.registry import compile_task
from envs.task import TaskError
from envs.tasks.task_yaml import shown
from pipeline.core.atomic import write_atomic
from pipeline.core.console import Console
from pipeline.core.errors import UserError
from pipeline.core.runtime import as_user_error

_PICTURES, _PIXELS = 3, 480
_MARK = b"Software\0pipeline tasks check"  # in a picture's text: what may be replaced
_OFTEN, _SMALL_SPAN = 0.05, 0.15
_EPISODES_AWAY = 3.0


@dataclass
class RandomRollout:
    """What a random policy did in one episode of every world.

    Attributes:
        observation, achieved_goal, desired_goal: least and largest of each number, (2, size).
        reached: (worlds,) bool, the episode met its goal; an unstable one did not.
        reached_at_start: (worlds,) bool, it began within the success region.
        ended_at_once: (worlds,) bool, its first step was its last, by an early end.
        unstable: (worlds,) bool, its physics diverged.
        non_finite: observations, one a step and world, that held NaN or infinity.
        fastest: (goal_dim,), how far each number of the achieved goal went at most in one control step.
        steps: control steps of all worlds while their episodes ran.
        seconds: spent in the simulator.
    """

    observation: np.ndarray
    achieved_goal: np.ndarray
    desired_goal: np.ndarray
    reached: np.ndarray
    reached_at_start: np.ndarray
    ended_at_once: np.ndarray
    unstable: np.ndarray
    fastest: np.ndarray
    non_finite: int = 0
    steps: int = 0
    seconds: float = 0.0


def check_task(console: Console, reference: str, *, episodes: int, seed: int, output: str | None) -> None:
    """Print what there is to know of a task before it is trained, warn of what looks wrong, and draw it.

    Args:
        console: prints.
        reference: a task's name, or the YAML file of a user's.
        episodes: of the random policy, all at once.
        seed: of the random policy, of starts and of goals.
        output: where to put the picture; None: beside the YAML file, for a built-in task in this folder, as
            ``<name>_check.png``.

    Raises:
        UserError: the task, its model or a name in it is wrong; the picture would replace a file that no
            check has drawn, or cannot be written.
    """
    task = as_user_error(lambda: compile_task(reference), TaskError)
    picture = _picture_place(task, output)
    rollout = roll_out(task, episodes, seed)
    judgement = judge_goals(task, seed)
    warnings = [*rollout_warnings(rollout, task), *judgement.warnings]
    report = {"task": task.name, "file": task.task.file, **_layout(task, rollout), **_figures(rollout)}
    report |= {"out_of_reach": judgement.out_of_reach, "not_judged": judgement.not_judged or None}
    _print(console, task, report)
    try:
        write_png(picture, draw_starts(task, seed))
        console.say(f"Picture of {_PICTURES} starts with their goals: {shown(picture)}")
        report["picture"] = str(picture)
    except RuntimeError as error:  # no OpenGL; it names the packages
        warnings.append(f"no picture: {' '.join(str(error).split())}")
    except OSError as error:
        raise UserError(
            f"{shown(picture)} cannot be written ({error.strerror}): choose another --output."
        ) from error
    for warning in warnings:
        console.warn(warning)
    if not warnings:
        console.say("Nothing looks wrong.")
    console.result(report | {"warnings": warnings})


# -- a random policy ------------------------------------------------------------------------------


def roll_out(task: CompiledTask, worlds: int, seed: int) -> RandomRollout:
    """Run one evaluation episode in every world, with actions uniform in [−1, 1]."""
    simulator = CpuSimulator(task, worlds, seed=seed, distribution="evaluation")
    rng, result = np.random.default_rng(seed), _at_start(simulator)
    before = np.array(simulator.achieved_goal)
    running = np.ones(worlds, bool)
    for step in range(task.task.episode_steps):
        action = rng.uniform(-1.0, 1.0, (worlds, task.action_dim)).astype(np.float32)
        began = time.perf_counter()
        outcome = simulator.step(action)
        result.seconds += time.perf_counter() - began
        result.steps += int(running.sum())
        result.unstable = result.unstable | (running & outcome.unstable)
        running = running & ~outcome.unstable
        result.reached |= running & outcome.success
        _widen(result, simulator, running)
        if running.any():
            moved = np.abs(simulator.achieved_goal - before)[running]
            result.fastest = np.fmax(result.fastest, moved.max(0))
        before = np.array(simulator.achieved_goal)
        if step == 0:
            result.ended_at_once = running & outcome.terminated
        running = running & ~outcome.terminated
        if not running.any():
            break
    result.reached &= ~result.unstable
    return result


def _at_start(simulator: CpuSimulator) -> RandomRollout:
    """Return the rollout of worlds that have not stepped yet."""
    task, none = simulator.task, np.zeros(simulator.num_worlds, bool)

    def span(rows: np.ndarray) -> np.ndarray:
        return np.stack([rows.min(0), rows.max(0)])

    return RandomRollout(
        observation=span(simulator.observation),
        achieved_goal=span(simulator.achieved_goal),
        desired_goal=span(simulator.desired_goal),
        reached=none.copy(),
        reached_at_start=task.is_success(simulator.achieved_goal, simulator.desired_goal),
        ended_at_once=none,
        unstable=none,
        fastest=np.zeros(task.goal_dim),
    )


def _widen(result: RandomRollout, simulator: CpuSimulator, running: np.ndarray) -> None:
    """Widen the ranges seen to the numbers of the running worlds, and count those that are none."""
    for name in ("observation", "achieved_goal"):
        rows = getattr(simulator, name)[running]
        finite = np.isfinite(rows).all(1)
        if name == "observation":
            result.non_finite += int((~finite).sum())
        if finite.any():
            span = getattr(result, name)
            span[0] = np.minimum(span[0], rows[finite].min(0))
            span[1] = np.maximum(span[1], rows[finite].max(0))


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
    if at_once := int(rollout.ended_at_once.sum()):
        found.append(
            f"{at_once} of {episodes} episodes end at their first step: early_end holds at the start."
        )
    if (share := rollout.reached_at_start.mean()) > _OFTEN:
        found.append(f"{share:.0%} of the episodes start within the success region of their goal.")
    lowest = np.minimum(rollout.achieved_goal[0], rollout.desired_goal[0])
    span = float((np.maximum(rollout.achieved_goal[1], rollout.desired_goal[1]) - lowest).max())
    if (rollout.achieved_goal[0] == rollout.achieved_goal[1]).all():
        found.append("the achieved goal never changes: no action moves what achieved_goal reads.")
    elif span < _SMALL_SPAN:
        found.append(
            f"goals span {span:.2g} at most: networks see numbers as they are, and hardly learn to tell such "
            "goals apart; write the model in smaller units of length, so that they span about 1."
        )
    return [*found, *_far_goals(rollout, task)]


def _far_goals(rollout: RandomRollout, task: CompiledTask) -> list[str]:
    """Return a line for each number of the goal that is commanded far from where a random policy came.

    Far is farther than the model is large, and than some episodes would lead at the fastest that was seen: a
    random policy's speed is no bound, but a good policy is rarely some times as fast all the time.
    """
    found = []
    (low, high), (least, largest) = rollout.achieved_goal, rollout.desired_goal
    away = np.maximum(np.maximum(largest - high, low - least), 0.0)
    travel = rollout.fastest * task.task.episode_steps
    matters = np.zeros(task.goal_dim, bool)
    for region in task.task.success:
        matters[region.start : region.stop] = True
    names = [element["name"] for element in task.describe("achieved_goal")]
    far = matters & (away > task.model.stat.extent) & (away > _EPISODES_AWAY * travel)
    for index in np.flatnonzero(far):
        found.append(
            f"{names[index]} is commanded from {least[index]:.3g} to {largest[index]:.3g}, and a random "
            f"policy achieved {low[index]:.3g} to {high[index]:.3g}: at its largest step, an episode of "
            f"{task.task.episode_steps} leads {travel[index]:.3g} far."
        )
    return found


# -- what is printed and drawn --------------------------------------------------------------------


def _layout(task: CompiledTask, rollout: RandomRollout) -> dict[str, Any]:
    """Return the elements of observation, goal and action."""
    control = task.control
    observation = [
        element | {"low": float(low), "high": float(high)}
        for element, low, high in zip(task.describe("observation"), *rollout.observation, strict=True)
    ]
    goal = [
        element
        | {"low": float(low), "high": float(high)}
        | {"commanded_low": float(wanted_low), "commanded_high": float(wanted_high)}
        for element, low, high, wanted_low, wanted_high in zip(
            task.describe("achieved_goal"), *rollout.achieved_goal, *rollout.desired_goal, strict=True
        )
    ]
    action = [
        {
            "actuator": name,
            "action": None if held else int(control.columns[index]),
            "kind": "hold" if held else "switch" if control.switched[index] else "range",
            "low": float(control.low[index]),
            "high": float(control.high[index]),
        }
        for index, name in enumerate(control.actuators)
        for held in [name not in control.actions]
    ]
    return {"observation": observation, "goal": goal, "action": action}


def _figures(rollout: RandomRollout) -> dict[str, Any]:
    """Return what a random policy reached, and how fast."""
    from stages.evaluate import wilson_interval

    reached, episodes = int(rollout.reached.sum()), len(rollout.reached)
    return {
        "episodes": episodes,
        "random_success": reached / episodes,
        "random_success_interval": list(wilson_interval(reached, episodes)),
        "unstable_episodes": int(rollout.unstable.sum()),
        "steps": rollout.steps,
        "steps_per_s": rollout.steps / rollout.seconds,
    }


def _print(console: Console, task: CompiledTask, report: dict[str, Any]) -> None:
    described = task.task
    console.say(
        f"Task {task.name}: control step {described.control_dt_s:g} s ({task.frame_skip} physics steps of "
        f"{task.model.opt.timestep:g} s), {described.episode_steps} steps an episode; success within "
        f"{', '.join(f'{region.radius:g}' for region in described.success)}."
    )
    for title, key in (
        ("Observation, ranges as a random policy sees them", "observation"),
        ("Goal, as a random policy achieves it and as it is commanded", "goal"),
        ("Controls, at action -1 and +1", "action"),
    ):
        rows = report[key]
        console.table(title, list(rows[0]), [list(row.values()) for row in rows])
    low, high = report["random_success_interval"]
    console.say(
        f"A random policy meets {report['random_success']:.1%} of the goals of {report['episodes']} episodes "
        f"(95 % interval {low:.1%} to {high:.1%}); {report['unstable_episodes']} unstable; "
        f"{report['steps']:,} steps at {report['steps_per_s']:,.0f} steps/s."
    )
    if report["not_judged"] is not None:
        console.say(f"Whether goals can be reached is not judged: {report['not_judged']}.")


def _picture_place(task: CompiledTask, output: str | None) -> Path:
    """Return where the picture goes. Raises UserError for what is no PNG, or there already and not ours."""
    if output is not None:
        path = Path(os.path.expanduser(output)).absolute()
    elif task.task.file is not None:
        path = Path(task.task.file)
        path = path.with_name(f"{path.stem}_check.png")
    else:
        path = Path.cwd() / f"{task.name}_check.png"
    if path.suffix.lower() != ".png":
        raise UserError(f"--output {output}: the picture is a PNG, give it a name that ends in .png.")
    if os.path.exists(path) and not _is_own_picture(path):
        raise UserError(
            f"{shown(path)} is there already, and is no picture of `tasks check`: choose another --output."
        )
    return path


def _is_own_picture(path: Path) -> bool:
    """Tell whether a file is a picture that a check has written."""
    try:
        with path.open("rb") as file:
            return _MARK in file.read(128)
    except OSError:
        return False


def draw_starts(task: CompiledTask, seed: int) -> np.ndarray:
    """Return starts of evaluation episodes with their goals side by side, (height, width, 3) uint8.

    Raises:
        NoOpenGLError: there is no OpenGL to draw with.
    """
    from envs.scene_rendering import SceneRenderer

    qpos, _, goals = task.sample_start("evaluation", np.random.default_rng(seed), _PICTURES)
    with SceneRenderer(task, _PIXELS, _PIXELS) as renderer:
        return np.concatenate([renderer.draw(*each) for each in zip(qpos, goals, strict=True)], axis=1)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write a picture, (height, width, 3) uint8, as PNG with the mark of a check; it needs no package."""
    height, width, _ = picture.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), picture.reshape(height, -1)], axis=1)

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"tEXt", _MARK)
    body += chunk(b"IDAT", zlib.compress(lines.tobytes())) + chunk(b"IEND", b"")
    write_atomic(path, b"\x89PNG\r\n\x1a\n" + body)
