"""Play with a policy: it acts in MuJoCo's window, and its user places the goals by keys or by mouse."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.pictures.live_viewer import Caption, LiveViewer, NoScreenError
from thousandfold.envs.pictures.scene_rendering import world_shape
from thousandfold.ground.errors import SettingsError, UserError
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.runtime import seed_sequence
from thousandfold.pipeline.ticks import Clock, Ticks
from thousandfold.stages.closed_loop.playground import HELP, Playground
from thousandfold.stages.episodes import Policy

_STREAM = 46
_FRAME_RATE_HZ = 60.0
_LATE_NS, _CAPTION_NS = 1_000_000_000, 200_000_000
_HELP = Caption("TOPLEFT", *("\n".join(column) for column in zip(*HELP, strict=True)))


@dataclass(frozen=True)
class PlaySettings:
    """What `pipeline play` is told.

    Attributes:
        goal: the first goal, in its units; None draws one.
        distribution: the task's distribution of starts and goals.
        seed: of starts and goals.
        seconds: when to stop, on the clock; None: when the window is closed.

    Raises:
        SettingsError: a value makes no sense.
    """

    goal: tuple[float, ...] | None = None
    distribution: str = "training"
    seed: int = 0
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise SettingsError(f"--seed must be at least 0, not {self.seed}.")
        if self.seconds is not None and not 0 < self.seconds < np.inf:
            raise SettingsError(f"--seconds must be a number above 0, not {self.seconds:g}.")


def run(
    settings: PlaySettings,
    console: Console,
    task: CompiledTask,
    policy: Policy,
    name: str,
    *,
    clock: Clock = time,
) -> dict[str, Any]:
    """Show a policy at work until its window is closed or Ctrl-C; return how many goals it was given.

    Args:
        task: the task as the policy sees it.
        policy: what acts.
        name: what the policy is called.
        clock: the time that passes.

    Raises:
        UserError: the goal or the distribution does not fit the task, or there is no window to play in.
    """
    task.spec.distribution(settings.distribution)
    goal = None if settings.goal is None else _checked(settings.goal, task)
    keys: deque[str] = deque()
    try:
        window = LiveViewer(task, keys.append, distribution=settings.distribution, draggable=True)
    except NoScreenError as error:
        raise UserError(
            f"No window to play in: {error}. A report has recorded episodes to play, without a screen: "
            "`pipeline render`, then `pipeline report --open`."
        ) from error
    with window as viewer:
        ground = Playground(
            task,
            policy,
            distribution=settings.distribution,
            seed=seed_sequence(settings.seed, _STREAM),
            goal=goal,
        )
        rate_hz = 1.0 / task.spec.control_dt_s
        console.say(f"Playing {name} on task {task.name} at {rate_hz:g} Hz, real time.")
        for keyboard, meaning in HELP:
            console.say(f"  {keyboard}: {meaning}")
        with contextlib.suppress(KeyboardInterrupt):  # ends it as closing the window does
            _play(ground, viewer, keys, settings.seconds, console, clock)
    console.say(f"{ground.reached} of {ground.goals} goals reached.")
    return {"policy": name, "task": task.name, "goals": ground.goals, "reached": ground.reached}


def _play(
    ground: Playground,
    viewer: LiveViewer,
    keys: deque[str],
    seconds: float | None,
    console: Console,
    clock: Clock,
) -> None:
    """Step and show the world until the window is closed: all steps that are due, and a frame."""
    now_ns, period_ns = clock.perf_counter_ns, round(ground.task.spec.control_dt_s * 1e9)
    frames = Ticks(_FRAME_RATE_HZ, clock=clock)
    frames.due_ns = began = due = now_ns()
    told, next_caption, caption = 0, began, Caption("BOTTOMLEFT", "", "")
    while viewer.is_open and (seconds is None or now_ns() < began + seconds * 1e9):
        while keys:
            ground.press(keys.popleft())
        now = now_ns()
        if now - due > _LATE_NS:  # a window that is this slow slows time down
            due = now
        while due <= now:
            ground.step()
            due += period_ns
            if ground.reached > told:
                told = ground.reached
                console.say(f"Goal {ground.goals} ({ground.goal_line()}): {ground.state_line()}.")
        if now >= next_caption:
            caption = Caption("BOTTOMLEFT", f"{ground.goal_line()}\n{ground.state_line()}", "")
            next_caption = now + _CAPTION_NS
        dragged = viewer.show(
            ground.qpos(1.0 - (due - now) / period_ns),
            ground.goal,
            reached=ground.at_goal,
            shape=world_shape(ground.model),
            captions=(_HELP, caption),
        )
        if dragged is not None:
            ground.drag(dragged)
        frames.advance(now_ns())
        frames.wait()


def _checked(goal: tuple[float, ...], task: CompiledTask) -> np.ndarray:
    """Return the first goal, (goal_dim,) float32."""
    elements = task.describe("achieved_goal")
    if len(goal) != len(elements):
        wanted = ", ".join(f"{each['name']} ({each['unit'] or 'no unit'})" for each in elements)
        raise SettingsError(
            f"--goal has {len(goal)} numbers, task {task.name!r} takes {len(elements)}: {wanted}."
        )
    with np.errstate(over="ignore"):
        found = np.array(goal, np.float32)
    if not np.isfinite(found).all():
        raise SettingsError(f"--goal {goal}: all must be finite numbers of float32.")
    return found
