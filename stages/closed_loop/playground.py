"""One world in which a policy acts for as long as one likes, and keys and the mouse that move its goal."""

from __future__ import annotations

import mujoco
import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.stages.episodes import Policy

HELP = (
    ("Space, Enter", "another goal"),
    ("Arrows, Page up and down", "move the goal"),
    ("Ctrl and right mouse button", "drag the goal"),
    ("N", "the next numbers of the goal"),
    ("R", "back to a start"),
    ("P", "pause"),
)
_MOVES = {
    "RIGHT": (0, 1), "LEFT": (0, -1), "UP": (1, 1), "DOWN": (1, -1), "PAGE_UP": (2, 1), "PAGE_DOWN": (2, -1),
}  # fmt: skip
_MOVED_AT_ONCE = 3  # numbers that have keys
_STEPS_ACROSS = 20  # of a number's range
_GOALS_SEEN = 4096


class Playground:
    """A world that its user plays with; whoever shows it calls `press`, `drag` and `step`.

    An episode goes on beyond the task's number of steps; where it ends early, or the physics diverges,
    another one starts with the same goal.

    Attributes:
        goal: (goal_dim,) float32, what is commanded.
        low, high: (goal_dim,), the range of goals that the distribution draws, which keys and mouse keep to.
        paused: whether the user has stopped the time.
        steps: control steps since the start, or since the goal was given.
        goals: how many goals were given; one that is moved is another once it was reached.
        reached: how many of them were held for as long as the task asks.
        note: what happened last that the user should know.

    Args:
        task: the task as the policy sees it.
        policy: what acts.
        distribution: the episode distribution of starts and goals.
        seed: of starts and goals.
        goal: (goal_dim,), the first one, which may lie outside the range; None: it is drawn.
    """

    def __init__(
        self,
        task: CompiledTask,
        policy: Policy,
        *,
        distribution: str,
        seed: int | np.random.SeedSequence,
        goal: np.ndarray | None = None,
    ) -> None:
        self.task, self._policy = task, policy
        self._simulator = CpuSimulator(task, 1, seed=seed, distribution=distribution, num_threads=1)
        seen = task.sample_start(distribution, np.random.default_rng(0), _GOALS_SEEN)[2]
        self.low, self.high = seen.min(0), seen.max(0)
        turned = {number for span in task.orientations for number in range(span.start, span.stop)}
        self._movable = [number for number in range(task.goal_dim) if number not in turned]
        self._first_moved = 0
        self._elements = task.describe("achieved_goal")
        self._unit = task.distance_unit(task.spec.success[0])
        self.paused, self.goals, self.reached, self._is_reached = False, 0, 0, False
        self.goal, self._before = self._simulator.desired_goal[0].copy(), self._simulator.qpos[0]
        self._command(self.goal if goal is None else np.asarray(goal, np.float32), fresh=True)

    @property
    def moved_numbers(self) -> list[int]:
        """Which numbers of the goal the arrow keys and page up and down move, at most three."""
        return self._movable[self._first_moved : self._first_moved + _MOVED_AT_ONCE]

    @property
    def at_goal(self) -> bool:
        """Whether the state lies within the success region."""
        return bool(self.task.is_success(self._simulator.achieved_goal[0], self.goal))

    @property
    def model(self) -> mujoco.MjModel:
        """The model of the world, whose sizes may vary from start to start."""
        return self._simulator.world_model(0)

    def press(self, key: str) -> None:
        """Do what a key stands for, named as `LiveViewer` names it; other keys do nothing."""
        if key in (" ", "ENTER"):
            self._command(self._draw_goal(), fresh=True)
        elif key == "R":
            self._restart("")
        elif key == "P":
            self.paused = not self.paused
        elif key == "N" and self._movable:
            self._first_moved = (self._first_moved + _MOVED_AT_ONCE) % len(self._movable)
            self._first_moved -= self._first_moved % _MOVED_AT_ONCE
        elif key in _MOVES and _MOVES[key][0] < len(self.moved_numbers):
            place, sign = _MOVES[key]
            number, goal = self.moved_numbers[place], self.goal.copy()
            goal[number] += sign * (self.high[number] - self.low[number]) / _STEPS_ACROSS
            self._command(goal.clip(self.low, self.high))

    def drag(self, position: np.ndarray) -> None:
        """Move the goal to a position in the world, (3,) in metres, as far as it says one."""
        goal, columns = self.goal.astype(float), list(self.task.spec.scene.goal_position or ())
        now = self.task.goal_positions(goal)
        if now is None:
            return
        away, region = position[: len(now)] - now, self.task.spec.success[0]
        if region.points > 1:
            points = goal[region.start : region.stop].reshape(region.points, -1)
            points[:, : len(now)] += away
        else:
            goal[columns] += away
        kept = goal.clip(self.low, self.high)
        for span in self.task.orientations:
            kept[span] = self.goal[span]
        if not np.allclose(kept, self.goal):
            self._command(kept)

    def step(self) -> None:
        """Let the policy act for one control step, unless the time is stopped."""
        if self.paused:
            self._before = self._simulator.qpos[0]
            return
        simulator = self._simulator
        self._before = simulator.qpos[0]
        result = simulator.step(self._policy(simulator.observation, simulator.desired_goal))
        self.steps += 1
        if result.unstable[0] or result.terminated[0]:
            self._restart("the physics diverged" if result.unstable[0] else "the episode ended early")
            return
        self._held = self._held + 1 if result.success[0] else 0
        if self._held == self.task.spec.hold_steps and not self._is_reached:
            self._is_reached, self.reached = True, self.reached + 1
            self._seconds = self.steps * self.task.spec.control_dt_s

    def qpos(self, share: float = 1.0) -> np.ndarray:
        """Return the positions of the joints, (nq,), at a share of the way from the last step's start."""
        now, model = self._simulator.qpos[0], self.task.model
        if share >= 1.0:
            return now
        between, velocity = self._before.copy(), np.zeros(model.nv)
        mujoco.mj_differentiatePos(model, velocity, 1.0, self._before, now)
        mujoco.mj_integratePos(model, between, velocity, share)
        return between

    def state_line(self) -> str:
        """Return the distance to the goal, and whether it is reached."""
        distance = float(self.task.goal_distance(self._simulator.achieved_goal[0], self.goal))
        away = f"{distance:.3g} {self._unit}".rstrip() + " to the goal"
        outcome = f"reached after {self._seconds:.1f} s" if self._is_reached else "not reached yet"
        notes = [each for each in (self.note, "paused" if self.paused else "") if each]
        return "; ".join([f"{away}: {outcome}", *notes])

    def goal_line(self) -> str:
        """Return the numbers of the goal that the keys move, with their units."""
        told = []
        for number in self.moved_numbers or range(min(_MOVED_AT_ONCE, self.task.goal_dim)):
            element = self._elements[number]
            told.append(f"{element['name']} {self.goal[number]:.3g} {element['unit']}".rstrip())
        return ", ".join(told)

    def _draw_goal(self) -> np.ndarray:
        """Return a goal of the distribution; one that is relative is so to what is achieved now."""
        simulator, task = self._simulator, self.task
        drawn = task.draw_start(simulator.distribution, simulator.rng, 1)[2]
        return task.goals_from(simulator.distribution, drawn, simulator.achieved_goal)[0]

    def _command(self, goal: np.ndarray, *, fresh: bool = False) -> None:
        """Give a goal; it counts as another one where it is fresh, or where the last one was reached."""
        if fresh or self._is_reached:
            self.goals += 1
        self.goal = np.asarray(goal, np.float32)
        self._simulator.set_goal(self.goal)
        self._begin("")

    def _restart(self, note: str) -> None:
        """Go back to a start, with the goal as it is."""
        self._simulator.reset()
        self._simulator.set_goal(self.goal)
        self._before = self._simulator.qpos[0]
        self._begin(note)

    def _begin(self, note: str) -> None:
        self.steps = self._held = 0
        self._is_reached, self._seconds, self.note = False, 0.0, note
