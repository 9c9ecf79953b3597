"""How long something held without a break."""

from __future__ import annotations

import numpy as np


def longest_run(held: np.ndarray) -> int:
    """Return the most steps in a row at which something held; `held` is (steps,) bool."""
    breaks = np.flatnonzero(~np.concatenate([[False], np.asarray(held, bool), [False]]))
    return int(np.diff(breaks).max()) - 1


def every_goal_held(success: np.ndarray, goals: np.ndarray, hold_steps: int) -> bool:
    """Return whether every goal of an episode was held for `hold_steps` in a row.

    A goal that is commanded ends the run of the one before it.

    Args:
        success: (steps,) bool, what each step led to lies within the success region of that step's goal.
        goals: (steps, goal_dim), each step's; or (goal_dim,), the same throughout.
        hold_steps: at least 1.
    """
    changes = np.flatnonzero((goals[1:] != goals[:-1]).any(-1)) + 1 if goals.ndim == 2 else []
    return all(longest_run(part) >= hold_steps for part in np.split(np.asarray(success), changes))


class HeldGoals:
    """The same of many episodes while they run: which of them have held all of their goals so far.

    Attributes:
        run: (episodes,) int, steps in a row that each has been within its goal's region up to now.
        commanded: (episodes,) int, how many goals each was given so far; the same goal twice in a row is one.

    Args:
        goals: (episodes, goal_dim), those that are commanded at the start.
        hold_steps: as of `every_goal_held`.
    """

    def __init__(self, goals: np.ndarray, hold_steps: int) -> None:
        self._goals, self._hold_steps = goals.copy(), hold_steps
        self.run, self.commanded = np.zeros(len(goals), np.int64), np.ones(len(goals), np.int64)
        self._held, self._held_before = np.zeros(len(goals), bool), np.zeros(len(goals), np.int64)

    def add(self, success: np.ndarray, counted: np.ndarray, goals: np.ndarray) -> None:
        """Take one step into account.

        Args:
            success: (episodes,) bool, within the success region of the step's goal.
            counted: (episodes,) bool; what the others do is left out.
            goals: (episodes, goal_dim), the step's.
        """
        changed = counted & (goals != self._goals).any(1)
        self.commanded += changed
        self._held_before += changed & self._held
        self._held &= ~changed
        self._goals = np.where(counted[:, None], goals, self._goals)
        self.run = np.where(changed, 0, self.run)
        self.run = np.where(counted, np.where(success, self.run + 1, 0), self.run)
        self._held |= self.run >= self._hold_steps

    @property
    def held(self) -> np.ndarray:
        """How many of the commanded goals each has held so far, (episodes,) int."""
        return self._held_before + self._held

    @property
    def all_held(self) -> np.ndarray:
        """(episodes,) bool."""
        return self.held == self.commanded
