"""Replay memory: one preallocated ring of rows a world, with goals drawn in hindsight.

    absolute row   0   1   2   3   4   5   6   7   8   9        one world
    episode        0   0   0   0   1   1   1   1   1   2
    row            s   s   s   F   s   s   s   s   F   s        F: final observation, no action
                       |-------^                                may be a goal, never a start

A row's place in the ring is its absolute number modulo the capacity, so inserting copies nothing. The last
row of each episode so far is kept in a table: that is where hindsight goals of the episode must end, whether
it has finished, is still running, or lost its beginning to newer rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from replay.hindsight import truncated_geometric

# Rejecting rows that are no start needs few rounds; this bound only stops a loop on a memory without any.
# It is high because a large batch must be complete also where only a few rows in a hundred are a start.
_MAX_ROUNDS = 1000


@dataclass(frozen=True)
class TransitionBatch:
    """Transitions with hindsight goals; first dimension is the batch."""

    observation: Tensor
    """(batch, observation_dim)"""
    action: Tensor
    """(batch, action_dim)"""
    goal: Tensor
    """(batch, goal_dim): an achieved goal from later in the same episode"""


class TrajectoryBuffer:
    """A ring of `capacity` rows for each of `num_worlds` worlds.

    Args:
        num_worlds, capacity: worlds, and rows kept of each.
        observation_dim, goal_dim, action_dim: sizes of the three spaces.
        device: where the memory lies.
    """

    def __init__(
        self,
        num_worlds: int,
        capacity: int,
        *,
        observation_dim: int,
        goal_dim: int,
        action_dim: int,
        device: str | torch.device = "cpu",
    ) -> None:
        if capacity < 2:
            raise ValueError(f"capacity must be at least 2 rows, not {capacity}")
        self.num_worlds, self.capacity, self.device = num_worlds, capacity, torch.device(device)
        rows = num_worlds * capacity
        self._columns = {
            "observation": torch.zeros(rows, observation_dim, device=device),
            "achieved_goal": torch.zeros(rows, goal_dim, device=device),
            "action": torch.zeros(rows, action_dim, device=device),
            "episode": torch.zeros(rows, dtype=torch.int64, device=device),
        }
        # An episode has two rows at least, so a ring never holds more episodes than rows.
        self._episode_last = torch.zeros(rows, dtype=torch.int64, device=device)
        per_world = {"dtype": torch.int64, "device": device}
        self._worlds = torch.arange(num_worlds, **per_world)
        self._count = torch.zeros(num_worlds, **per_world)
        self._oldest = torch.zeros(num_worlds, **per_world)
        self._episode = torch.zeros(num_worlds, **per_world)
        self._episode_first = torch.zeros(num_worlds, **per_world)
        self._unsaved_from = torch.zeros(num_worlds, **per_world)

    @property
    def rows_per_world(self) -> int:
        """How many rows the world with the fewest holds."""
        return int((self._count - self._oldest).min())

    @property
    def oldest_row(self) -> int:
        """The lowest absolute row that any world still holds."""
        return int(self._oldest.min())

    # -- writing ----------------------------------------------------------------------------------

    def add(self, observation: Tensor, action: Tensor, achieved_goal: Tensor) -> None:
        """Append one row to every world: its state, what it has achieved, and the action taken there.

        Args:
            observation: (num_worlds, observation_dim).
            action: (num_worlds, action_dim).
            achieved_goal: (num_worlds, goal_dim).
        """
        self._write(self._worlds, observation, action, achieved_goal)

    def end_episodes(self, worlds: Tensor, observation: Tensor, achieved_goal: Tensor) -> None:
        """Append the final observation in the worlds of the mask and begin their next episode.

        Args:
            worlds: mask (num_worlds,).
            observation, achieved_goal: of all worlds; only the masked rows are read.
        """
        ids = worlds.nonzero().squeeze(1)
        if len(ids) == 0:
            return
        no_action = self._columns["action"].new_zeros(len(ids), self._columns["action"].shape[1])
        self._write(ids, observation[ids], no_action, achieved_goal[ids])
        self._episode[ids] += 1
        self._episode_first[ids] = self._count[ids]

    def drop_episodes(self, worlds: Tensor) -> None:
        """Forget the rows of the running episode in the worlds of the mask (num_worlds,)."""
        self._count = torch.where(worlds, self._episode_first, self._count)
        self._oldest = torch.minimum(self._oldest, self._count)
        self._unsaved_from = torch.minimum(self._unsaved_from, self._count)

    def _write(self, ids: Tensor, observation: Tensor, action: Tensor, achieved_goal: Tensor) -> None:
        row = self._count[ids]
        slot = ids * self.capacity + row % self.capacity
        values = {"observation": observation, "action": action, "achieved_goal": achieved_goal}
        for name, value in values.items():
            self._columns[name].index_copy_(0, slot, value)
        self._columns["episode"].index_copy_(0, slot, self._episode[ids])
        self._episode_last.index_copy_(0, self._episode_slot(ids, self._episode[ids]), row)
        self._count[ids] = row + 1
        self._oldest[ids] = torch.maximum(self._oldest[ids], row + 1 - self.capacity)

    def _episode_slot(self, ids: Tensor, episode: Tensor) -> Tensor:
        return ids * self.capacity + episode % self.capacity

    # -- sampling ---------------------------------------------------------------------------------

    def sample(self, batch_size: int, discount: float, generator: torch.Generator) -> TransitionBatch:
        """Draw transitions uniformly, each with a goal k steps ahead, probability ∝ discount^k.

        Rows are drawn over all worlds alike; those without a later row in their episode are redrawn.

        Raises:
            ValueError: no row has a later one in its episode.
        """
        ids, row, remaining = self._draw_rows(batch_size, generator)
        for _ in range(_MAX_ROUNDS):
            bad = remaining < 1
            if not bad.any():
                break
            again = self._draw_rows(batch_size, generator)
            ids, row, remaining = (
                torch.where(bad, new, old) for new, old in zip(again, (ids, row, remaining), strict=True)
            )
        if (remaining < 1).any():
            raise ValueError("the replay memory holds no transition yet: collect at least two steps first")
        uniform = torch.rand(batch_size, dtype=torch.float64, generator=generator, device=self.device)
        goal_row = row + truncated_geometric(uniform, remaining, discount)
        slot = ids * self.capacity + row % self.capacity
        return TransitionBatch(
            self._columns["observation"][slot],
            self._columns["action"][slot],
            self._columns["achieved_goal"][ids * self.capacity + goal_row % self.capacity],
        )

    def _draw_rows(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return worlds, absolute rows, and how many later rows the episode of each has, (count,)."""
        held = self._count - self._oldest
        stops = held.cumsum(0)
        uniform = torch.rand(count, dtype=torch.float64, generator=generator, device=self.device)
        # The row's number when those of all worlds stand in one line, world after world.
        place = (uniform * stops[-1]).long()
        ids = torch.searchsorted(stops, place, right=True).clamp(max=self.num_worlds - 1)
        row = (self._oldest + held - stops)[ids] + place
        episode = self._columns["episode"][ids * self.capacity + row % self.capacity]
        remaining = self._episode_last[self._episode_slot(ids, episode)] - row
        return ids, row, torch.where(place < stops[-1], remaining, 0)

    # -- saving -----------------------------------------------------------------------------------

    def unsaved_segment(self) -> dict[str, Tensor]:
        """Return the rows written since `mark_saved`, world after world, with the worlds' first rows."""
        first = torch.maximum(self._unsaved_from, self._oldest)
        slot = self._slots(first, self._count - first)
        segment = {name: column[slot].cpu() for name, column in self._columns.items()}
        return segment | {"first": first.cpu(), "rows": (self._count - first).cpu()}

    def mark_saved(self) -> None:
        """Note that everything up to now lies in a segment."""
        self._unsaved_from = self._count.clone()

    def load_segment(self, segment: dict[str, Tensor]) -> None:
        """Write a segment back; segments go in the order in which they were made."""
        first, rows = segment["first"].to(self.device), segment["rows"].to(self.device)
        slot = self._slots(first, rows)
        for name, column in self._columns.items():
            column[slot] = segment[name].to(self.device)

    def counters(self) -> dict[str, Tensor]:
        """Return the worlds' counters, which `load_counters` takes after the last segment."""
        names = ("count", "oldest", "episode", "episode_first")
        return {name: getattr(self, f"_{name}").cpu().clone() for name in names}

    def load_counters(self, counters: dict[str, Tensor]) -> None:
        """Restore the counters and rebuild the table of episode ends from the rows."""
        for name, value in counters.items():
            setattr(self, f"_{name}", value.to(self.device))
        self._unsaved_from = self._count.clone()
        held = self._count - self._oldest
        slot, ids = self._slots(self._oldest, held), self._worlds.repeat_interleave(held)
        row = self._oldest.repeat_interleave(held) + _ranges(held)
        episode_slot = self._episode_slot(ids, self._columns["episode"][slot])
        self._episode_last.scatter_reduce_(0, episode_slot, row, "amax", include_self=False)

    def _slots(self, first: Tensor, rows: Tensor) -> Tensor:
        """Return the places of rows first..first+rows of every world, one world after the other."""
        row = first.repeat_interleave(rows) + _ranges(rows)
        return self._worlds.repeat_interleave(rows) * self.capacity + row % self.capacity


def _ranges(lengths: Tensor) -> Tensor:
    """Return 0..n−1 for each length n, concatenated."""
    starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    return torch.arange(len(starts), device=lengths.device) - starts
