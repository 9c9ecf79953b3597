"""`pipeline tasks check`: what a task is made of, whether its physics holds, whether its goals can be met."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from thousandfold.envs.checks.goal_judgement import judge_goals, require_comparable_goals
from thousandfold.envs.checks.random_rollout import (
    RandomRollout,
    roll_out,
    rollout_warnings,
    training_warnings,
)
from thousandfold.envs.checks.task_judgement import judge_task
from thousandfold.envs.checks.variation_judgement import judge_variations
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import compile_task
from thousandfold.envs.task import Swing
from thousandfold.envs.term_columns import FACTORS_FIELD
from thousandfold.envs.user_tasks.task_yaml import shown
from thousandfold.ground.errors import UserError
from thousandfold.ground.files import write_atomic
from thousandfold.pipeline.console import Console

_PICTURES, _PIXELS = 3, 480
_MARK = b"Software\0pipeline tasks check"  # in a picture's text: what may be replaced


def check_task(console: Console, reference: str, *, episodes: int, seed: int, output: str | None) -> None:
    """Print what there is to know of a task before it is trained, warn of what looks wrong, and draw it.

    Args:
        console: where to.
        reference: a task's name, or the YAML file of a user's.
        episodes: of the random policy, all at once.
        seed: of the random policy, of starts and of goals.
        output: where to put the picture; None: beside the YAML file, for a built-in task in this folder, as
            ``<name>_check.png``.

    Raises:
        UserError: the task, its model or a name in it is wrong; the picture would replace a file that no
            check has drawn, or cannot be written.
    """
    task = compile_task(reference)
    require_comparable_goals(task)
    picture = _picture_place(task, output)
    rollout = roll_out(task, episodes, seed)
    judgement = judge_goals(task, seed)
    warnings = [*rollout_warnings(rollout, task), *training_warnings(task, episodes, seed)]
    warnings += [*judge_task(task, seed), *judgement.warnings, *judge_variations(task, seed)]
    report = {"task": task.name, "file": task.spec.file, **_layout(task, rollout), **_figures(rollout)}
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


def _layout(task: CompiledTask, rollout: RandomRollout) -> dict[str, Any]:
    """Return the elements of observation, goal and action."""
    control = task.control
    observation, student = (
        [
            element | {"low": float(low), "high": float(high)}
            for element, low, high in zip(view.describe("observation"), *seen, strict=True)
        ]
        for view, seen in ((task, rollout.observation), (task.student_view, rollout.student_observation))
    )
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
            "action": None if command.kind == "hold" else int(control.columns[index]),
            "kind": command.kind,
            "low": float(control.low[index]),
            "high": float(control.high[index]),
        }
        | (
            {
                "about": float(control.base[index]) if command.kind == "offset" else None,
                "scale": command.scale,
                **({"swing": _swing(command.swing)} if control.periods else {}),
                "max_rate": command.max_rate,
                "smoothing_s": command.smoothing_s or None,
            }
            if control.is_moderated
            else {}
        )
        for index, (name, command) in enumerate(zip(control.actuators, control.commands, strict=True))
    ]
    own = {"student_observation": student} if task.student_view is not task else {}
    varies = {
        name: rows
        for name in (*task.spec.judged, "randomized")
        if name in task.spec.distributions
        and (varied := task.varied_model(name)) is not None
        and (rows := varied.describe())
    }
    return {"observation": observation, **own, "goal": goal, "action": action, "varies": varies}


def _swing(swing: Swing | None) -> str | None:
    if swing is None:
        return None
    phase = f", phase {swing.phase:g}" if swing.phase else ""
    return f"{swing.amplitude:g} every {swing.period_s:g} s{phase}"


def _figures(rollout: RandomRollout) -> dict[str, Any]:
    """Return what a random policy reached, and how fast."""
    from thousandfold.stages.episodes import wilson_interval

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
    described = task.spec
    console.say(
        f"Task {task.name}: control step {described.control_dt_s:g} s ({task.frame_skip} physics steps of "
        f"{task.model.opt.timestep:g} s), {described.episode_steps} steps an episode; success within "
        f"{', '.join(f'{each.radius:g} {task.distance_unit(each)}'.rstrip() for each in described.success)}"
        f"{f' for {described.hold_steps} steps in a row' if described.hold_steps > 1 else ''}"
        f"{f'; another goal every {described.resample_every} steps' if task.later_goals else ''}."
    )
    for title, key in (
        ("Observation, ranges as a random policy sees them", "observation"),
        ("What a student sees in its place", "student_observation"),
        ("Goal, as a random policy achieves it and as it is commanded", "goal"),
        ("Controls, at action -1 and +1; those of a delta or an offset lie between them", "action"),
    ):
        rows = report.get(key)
        if rows is None:
            continue
        if key.endswith("observation"):
            title += f" ({len(rows)} numbers)"
        said = [name for name in rows[0] if any(row[name] is not None for row in rows)]
        console.table(title, said, [[row[name] for name in said] for row in rows])
    shown_already: list[Any] = []
    for rows in report["varies"].values():
        if rows in shown_already:
            continue
        shown_already.append(rows)
        alike = [other for other, theirs in report["varies"].items() if theirs == rows]
        title = f"What varies from episode to episode in {' and '.join(alike)}"
        columns = [column for column in rows[0] if column not in ("names", "numbers")]
        console.table(title, columns, [[row[column] for column in columns] for row in rows])
    if task.student_view is not task and any(term.field == FACTORS_FIELD for term in described.observation):
        console.say(
            "The teacher observes factors, which no robot can give it: export its student, not the teacher."
        )
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
    elif task.spec.file is not None:
        path = Path(task.spec.file)
        path = path.with_name(f"{path.stem}_check.png")
    else:
        path = Path.cwd() / f"{task.name}_check.png"
    if path.suffix.lower() != ".png":
        raise UserError(f"--output {output}: the picture is a PNG, give it a name that ends in .png.")
    if os.path.exists(path):
        try:
            with path.open("rb") as file:
                ours = _MARK in file.read(128)
        except OSError:
            ours = False
        if not ours:
            raise UserError(
                f"{shown(path)} is there already, and is no picture of `tasks check`: choose another "
                "--output."
            )
    return path


def draw_starts(task: CompiledTask, seed: int) -> np.ndarray:
    """Return starts of evaluation episodes with their goals side by side, (height, width, 3) uint8.

    Raises:
        NoOpenGLError: there is no OpenGL to draw with.
    """
    from thousandfold.envs.pictures.scene_rendering import SceneRenderer

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
