"""Close the loop: a policy file acts in MuJoCo at its control rate, on ONNX Runtime alone.

Nothing here needs torch, mlflow or a workspace: a policy file and its task are enough.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.pictures.live_viewer import LiveViewer, NoScreenError
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.ground.errors import SettingsError, UserError
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.runtime import seed_sequence
from thousandfold.stages.closed_loop.paced_world import NEXT_KEY, ClosedLoop, LoopEnded
from thousandfold.stages.episodes import Episodes, join_rounds, run_round
from thousandfold.stages.policy_file.source import PolicySource

DEFAULT_EPISODES = 10

_EPISODE_STREAM = 47
_NAMED_INPUTS = 3
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class RunPolicySettings:
    """What `pipeline run-policy` is told.

    Attributes:
        episodes: how many to run; None runs 10, or as many as there is time for where `seconds` is given.
        seconds: when to stop, on the clock; None lets the episodes decide.
        rate_hz: control steps a second on the clock; None takes the policy's own rate: real time.
        fast: no pacing at all.
        goal: what to command, in the goal's units; None takes a fresh one of the task for every episode.
        distribution: the task's episode distribution to draw starts and goals from.
        viewer: ``auto`` opens a window where there is a screen and the loop is paced.
        seed: of starts and goals.

    Raises:
        SettingsError: a value makes no sense.
    """

    episodes: int | None = None
    seconds: float | None = None
    rate_hz: float | None = None
    fast: bool = False
    goal: tuple[float, ...] | None = None
    distribution: str = "evaluation"
    viewer: Literal["auto", "on", "off"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.episodes is not None and self.episodes < 1:
            raise SettingsError(f"--episodes must be at least 1, not {self.episodes}.")
        if self.seed < 0:
            raise SettingsError(f"--seed must be at least 0, not {self.seed}.")
        for flag, value, unit in (("rate", self.rate_hz, "Hz"), ("seconds", self.seconds, "s")):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise SettingsError(f"--{flag} must be a number of {unit} above 0, not {value:g}.")
        if self.fast and self.rate_hz is not None:
            raise SettingsError("--fast runs without a pace and --rate sets one: give one of them.")


def run(settings: RunPolicySettings, console: Console, source: PolicySource) -> dict[str, Any]:
    """Run episodes of a policy and return what was found; Ctrl-C ends them and keeps what is complete.

    Raises:
        UserError: the goal or the distribution does not fit the task, a window is asked for where there is
            no screen, or the observation is NaN or infinite.
    """
    task, metadata = source.task, source.policy.metadata
    task.spec.distribution(settings.distribution)
    goal = _checked_goal(settings.goal, source, console)
    own_rate_hz = 1.0 / metadata.control_dt_s
    rate_hz = None if settings.fast else settings.rate_hz or own_rate_hz
    network = metadata.network
    console.say(
        f"{metadata.role.capitalize()} {source.name} for task {task.name}: "
        f"{network.depth} x {network.width}, {_pace_text(rate_hz, own_rate_hz)}. Ctrl-C ends it."
    )
    rounds, ended_by, figures = _run_episodes(settings, source, goal, rate_hz, console)
    unknown = dict.fromkeys(("success", "success_interval", "time_at_goal", "final_distance"))
    outcome = join_rounds(rounds, task, len(rounds)).summary() if rounds else {"episodes": 0, **unknown}
    results = {
        "policy": source.name,
        "task": task.name,
        "goal": None if goal is None else goal.tolist(),
        "own_rate_hz": own_rate_hz,
        "rate_hz": rate_hz,
        "ended_by": ended_by,
        **outcome,
        **figures,
    }
    _show(results, console)
    return results


def _run_episodes(
    settings: RunPolicySettings,
    source: PolicySource,
    goal: np.ndarray | None,
    rate_hz: float | None,
    console: Console,
) -> tuple[list[Episodes], str, dict[str, Any]]:
    """Run until episodes or time are used up, or the user ends it.

    Returns:
        the complete episodes (one that is cut off does not count), what ended them, and the loop's figures.
    """
    seed = seed_sequence(settings.seed, _EPISODE_STREAM)
    simulator = CpuSimulator(source.task, 1, seed=seed, distribution=settings.distribution, num_threads=1)
    wanted = settings.episodes or (DEFAULT_EPISODES if settings.seconds is None else None)
    rounds: list[Episodes] = []
    keys: list[str] = []
    with _open_viewer(settings, source.task, keys, console) as viewer, _progress(console, wanted) as report:
        loop = ClosedLoop(
            source.policy, simulator, rate_hz, viewer=viewer, keys=keys, seconds=settings.seconds
        )
        ended_by = "episodes"
        try:
            while wanted is None or len(rounds) < wanted:
                if goal is not None:
                    simulator.set_goal(goal)
                loop.begin_episode()
                try:
                    rounds.append(run_round(simulator, loop))
                except LoopEnded as ended:
                    if ended.reason != "next":
                        ended_by = ended.reason
                        break
                report(rounds)
                simulator.reset()
        except KeyboardInterrupt:
            ended_by = "interrupt"
        return rounds, ended_by, loop.figures()


@contextlib.contextmanager
def _progress(console: Console, episodes: int | None) -> Iterator[Callable[[list[Episodes]], None]]:
    """Show how many episodes are done, where their number is known; yields what to call after each."""
    if episodes is None:
        yield lambda rounds: None
        return
    with console.progress("Running", episodes, unit="episodes") as bar:

        def report(rounds: list[Episodes]) -> None:
            found = {"success": float(np.mean([part.success[0] for part in rounds]))} if rounds else {}
            bar.update(len(rounds), **found)

        yield report


@contextlib.contextmanager
def _open_viewer(
    settings: RunPolicySettings, task: CompiledTask, keys: list[str], console: Console
) -> Iterator[LiveViewer | None]:
    """Open the window that is asked for; yields None, and says why, where there is none."""
    wanted = settings.viewer == "on" or (settings.viewer == "auto" and not settings.fast)
    if not wanted:
        yield None
        return
    try:
        viewer = LiveViewer(task, keys.append, distribution=settings.distribution)
    except NoScreenError as error:
        if settings.viewer == "on":
            raise UserError(f"No viewer: {error}. Leave --viewer on out to run without it.") from error
        console.say(f"No viewer: {error}.")
        yield None
        return
    console.say(f"In the viewer, {NEXT_KEY} goes on to the next episode; closing the window ends the run.")
    with viewer:
        yield viewer


def _checked_goal(
    goal: tuple[float, ...] | None, source: PolicySource, console: Console
) -> np.ndarray | None:
    """Return the goal to command, (goal_dim,); warn of numbers that the policy was not checked on."""
    if goal is None:
        return None
    elements = source.policy.metadata.inputs.goal
    if len(goal) != len(elements):
        wanted = ", ".join(f"{element.name} ({element.unit or 'no unit'})" for element in elements)
        raise SettingsError(
            f"--goal has {len(goal)} numbers, task {source.task.name!r} takes {len(elements)}: {wanted}."
        )
    for element, value in zip(elements, goal, strict=True):
        if not abs(value) <= _LARGEST_FLOAT32:  # NaN is not
            raise SettingsError(f"--goal: {element.name} must be a finite number of float32, not {value}.")
        if not element.low <= value <= element.high:
            clipped = min(max(value, element.limit_low), element.limit_high)
            acts = "" if clipped == value else f", and acts as if it were {clipped:.4g}"
            console.warn(
                f"goal {element.name} = {value:g} {element.unit}: the policy was checked from "
                f"{element.low:.4g} to {element.high:.4g}{acts}."
            )
    return np.array(goal, np.float32)


def _pace_text(rate_hz: float | None, own_rate_hz: float) -> str:
    if rate_hz is None:
        return "as fast as it goes"
    share = rate_hz / own_rate_hz
    return f"at {rate_hz:g} Hz, " + ("real time" if abs(share - 1) < 1e-9 else f"{share:.3g} times real time")


def _show(results: dict[str, Any], console: Console) -> None:
    """Print what was found, in three lines."""
    ended = {
        "episodes": "",
        "seconds": "; the time is used up",
        "window": "; the window was closed",
        "interrupt": "; ended by Ctrl-C",
    }[results["ended_by"]]
    if results["episodes"]:
        low, high = results["success_interval"]
        goals = f"{results['goals_held']:.3f} of all goals held, " if "goals_held" in results else ""
        console.say(
            f"Success {results['success']:.3f} [{low:.3f}, {high:.3f}], {goals}time at goal "
            f"{results['time_at_goal']:.0f} of 1000 steps, over {results['episodes']} episodes{ended}."
        )
    else:
        console.say(f"No complete episode{ended}: success is not known.")
    if not results["steps"]:
        return
    rate = results["achieved_rate_hz"]
    missed = (
        "" if results["missed"] is None else f", {results['missed']:,} of {results['ticks']:,} ticks missed"
    )
    console.say(
        f"Pace {'unknown' if rate is None else f'{rate:,.5g} Hz'}{missed}; one action p50 "
        f"{results['latency']['p50_us']:.3g} µs, p99 {results['latency']['p99_us']:.3g} µs."
    )
    worst = list(results["clipped"].items())[:_NAMED_INPUTS]
    named = f" ({', '.join(f'{name} {share:.1%}' for name, share in worst)})" if worst else ""
    console.say(f"Inputs beyond the limits, clipped: {results['clipped_share']:.2%} of the steps{named}.")
