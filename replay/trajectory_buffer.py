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

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from thousandfold.replay.hindsight import beyond_the_end, truncated_geometric

# Rejecting rows that are no start needs few rounds; this bound only stops a loop on a memory without any.
# It is high because a large batch must be complete also where only a few rows in a hundred are a start.
_MAX_ROUNDS = 1000
# Where asking whether a round was enough would wait for the device, so few more are drawn at once. At most
# half the rows of whole episodes are no start, one in a hundred where episodes have a hundred rows.
_FIXED_ROUNDS = 3
_NO_TRANSITION = "the replay memory holds no transition yet: collect at least two steps first"


@dataclass(frozen=True)
class TransitionBatch:
    """Transitions with hindsight goals; first dimension is the batch."""

    observation: Tensor
    """(batch, observation_dim)"""
    action: Tensor
    """(batch, action_dim)"""
    goal: Tensor
    """(batch, goal_dim): an achieved goal from later in the same episode"""
    achieved_goal: Tensor | None = None
    """(batch, goal_dim): what the state itself achieves; a memory gives it always"""
    lost: Tensor | None = None
    """(batch,) bool: the time that was drawn lies beyond an early end, so that nothing is reached then and
    ``goal`` is from before it; where it was asked for"""
    next_observation: Tensor | None = None
    """(batch, observation_dim), one step later, where it was asked for"""
    next_achieved_goal: Tensor | None = None
    """(batch, goal_dim), one step later, where it was asked for"""
    ended_early: Tensor | None = None
    """(batch,) bool: the episode ended one step later before its time, where it was asked for"""

    def columns(self) -> dict[str, Tensor]:
        """Return what there is, by name."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: column for name, column in columns.items() if column is not None}

    def part(self, rows: slice) -> TransitionBatch:
        """Return some of the transitions, where they lie."""
        return TransitionBatch(**{name: column[rows] for name, column in self.columns().items()})


class TrajectoryBuffer:
    """A ring of `capacity` rows for each of `num_worlds` worlds.

    Away from the CPU neither writing nor sampling waits for the device. Rows and counters never move in
    memory, so that both can be captured in a CUDA graph.

    Attributes:
        reads_are_free: whether asking for a number waits for nothing, as on the CPU.

    Args:
        num_worlds, capacity: worlds, and rows kept of each.
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
            "episode": torch.zeros(rows, dtype=torch.int32, device=device),
            "early_end": torch.zeros(rows, dtype=torch.bool, device=device),
        }
        # An episode has two rows at least, so a ring never holds more episodes than rows. 32 bits hold the
        # number of any row that a world will live to see.
        self._episode_last = torch.zeros(rows, dtype=torch.int32, device=device)
        per_world = {"dtype": torch.int64, "device": device}
        self._worlds = torch.arange(num_worlds, **per_world)
        self._count = torch.zeros(num_worlds, **per_world)
        self._oldest = torch.zeros(num_worlds, **per_world)
        self._episode = torch.zeros(num_worlds, **per_world)
        self._episode_first = torch.zeros(num_worlds, **per_world)
        self._unsaved_from = torch.zeros(num_worlds, **per_world)
        self.reads_are_free = self.device.type == "cpu"

    @property
    def rows_per_world(self) -> int:
        """How many rows the world with the fewest holds."""
        return int((self._count - self._oldest).min())

    @property
    def oldest_row(self) -> int:
        """The lowest absolute row that any world still holds."""
        return int(self._oldest.min())

    # -- writing ----------------------------------------------------------------------------------

    def add(
        self,
        observation: Tensor,
        action: Tensor,
        achieved_goal: Tensor,
        worlds: Tensor | None = None,
        early_end: Tensor | None = None,
    ) -> None:
        """Append one row to every world: its state, what it has achieved, and the action taken there.

        Args:
            observation, action, achieved_goal: (num_worlds, …) each.
            worlds: mask (num_worlds,) of those that get a row; None: all.
            early_end: mask (num_worlds,) of those whose episode this row ends before its time; None: of none.
        """
        slot = self._slot(self._worlds, self._count)
        row = {
            "observation": observation,
            "action": action,
            "achieved_goal": achieved_goal,
            "episode": self._episode,
            "early_end": torch.zeros_like(self._worlds) if early_end is None else early_end,
        }
        for name, value in row.items():
            _put(self._columns[name], slot, value, worlds)
        _put(self._episode_last, self._slot(self._worlds, self._episode), self._count, worlds)
        self._count += 1 if worlds is None else worlds
        torch.maximum(self._oldest, self._count - self.capacity, out=self._oldest)

    def end_episodes(
        self, worlds: Tensor, observation: Tensor, achieved_goal: Tensor, early: Tensor | None = None
    ) -> None:
        """Append the final observation in the worlds of the mask, (num_worlds,); begin their next episode.

        Args:
            worlds: where an episode ends.
            observation, achieved_goal: (num_worlds, …) each.
            early: mask (num_worlds,) of the ends that came before an episode's time; None: none did.
        """
        no_action = torch.zeros_like(self._columns["action"][: self.num_worlds])
        self.add(observation, no_action, achieved_goal, worlds, early)
        self._episode += worlds
        self._episode_first.copy_(torch.where(worlds, self._count, self._episode_first))

    def drop_episodes(self, worlds: Tensor) -> None:
        """Forget the rows of the running episode in the worlds of the mask (num_worlds,)."""
        self._count.copy_(torch.where(worlds, self._episode_first, self._count))
        torch.minimum(self._oldest, self._count, out=self._oldest)
        torch.minimum(self._unsaved_from, self._count, out=self._unsaved_from)

    def known_empty(self, mask: Tensor) -> bool:
        """Tell whether nothing is in a mask; False where asking would wait for the device."""
        return self.reads_are_free and not bool(mask.any())

    def newest(self, rows: int) -> tuple[Tensor, Tensor]:
        """Return observations and achieved goals of the last rows of every world, at most so many of each."""
        first = torch.maximum(self._count - rows, self._oldest)
        slot = self._slots(first, self._count - first)
        return self._columns["observation"][slot], self._columns["achieved_goal"][slot]

    def _slot(self, ids: Tensor, number: Tensor) -> Tensor:
        """Return the place of an absolute row in the columns, or of an episode in the table of last rows."""
        return ids * self.capacity + number % self.capacity

    # -- sampling ---------------------------------------------------------------------------------

    def sample(
        self,
        batch_size: int,
        discount: float,
        generator: torch.Generator,
        next_rows: bool = False,
        lost: bool = False,
    ) -> TransitionBatch:
        """Draw transitions uniformly, each with a goal k steps ahead, probability ∝ discount^k.

        Rows are drawn over all worlds alike; those without a later row in their episode are redrawn. Away
        from the CPU a few rows may be repeated, each time with another goal, and a memory without transitions
        goes unnoticed: call `require_transitions` before. There it takes as many operations for an unroll's
        batches at once as for one of them.

        Args:
            batch_size, discount, generator: as above.
            next_rows: give the rows one step later too.
            lost: let k reach beyond an early end, and tell where it does; the discount must be below 1.

        Raises:
            ValueError: on the CPU, no row has a later one in its episode.
        """
        ids, row, remaining = self._draw_starts(batch_size, generator)
        ring = ids * self.capacity

        def slot(number: Tensor) -> Tensor:
            return ring + number % self.capacity

        uniform = torch.rand(batch_size, dtype=torch.float64, generator=generator, device=self.device)
        beyond = None
        if lost:
            early = self._columns["early_end"][slot(row + remaining)]
            beyond, uniform = beyond_the_end(uniform, remaining, discount, early)
        goal_row = row + truncated_geometric(uniform, remaining, discount)
        here, achieved = slot(row), self._columns["achieved_goal"]
        batch = TransitionBatch(
            self._columns["observation"][here],
            self._columns["action"][here],
            achieved[slot(goal_row)],
            achieved[here],
            beyond,
        )
        if not next_rows:
            return batch
        following = slot(row + 1)
        return replace(
            batch,
            next_observation=self._columns["observation"][following],
            next_achieved_goal=achieved[following],
            ended_early=self._columns["early_end"][following],
        )

    def require_transitions(self) -> None:
        """Raise ValueError when no row has a later one in its episode. Waits for the device."""
        held = self._count - self._oldest
        episode = self._columns["episode"]
        newest = episode[self._slot(self._worlds, self._count - 1)]
        oldest = episode[self._slot(self._worlds, self._oldest)]
        # Episodes are numbered without gaps, and the last row of each is no start.
        starts = torch.where(held > 0, held - (newest - oldest + 1), 0)
        if not bool(starts.any()):
            raise ValueError(_NO_TRANSITION)

    def _draw_starts(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return what `_draw_rows` does, of rows that have a later one in their episode."""
        if not self.reads_are_free:
            rounds = 1 + _FIXED_ROUNDS
            drawn = torch.stack(self._draw_rows(rounds * count, generator)).view(3, rounds, count)
            first = (drawn[2] >= 1).byte().argmax(0)
            rows = drawn.gather(1, first.expand(3, 1, count)).squeeze(1)
            return rows[:, _last_good(rows[2] >= 1)].unbind()
        rows = self._draw_rows(count, generator)
        for _ in range(_MAX_ROUNDS):
            bad = rows[2] < 1
            if not bad.any():
                return rows
            again = self._draw_rows(count, generator)
            rows = tuple(torch.where(bad, new, old) for new, old in zip(again, rows, strict=True))
        raise ValueError(_NO_TRANSITION)

    def _draw_rows(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return worlds, absolute rows, and how many later rows the episode of each has, (count,)."""
        held = self._count - self._oldest
        stops = held.cumsum(0)
        uniform = torch.rand(count, dtype=torch.float64, generator=generator, device=self.device)
        # The row's number when those of all worlds stand in one line, world after world.
        place = (uniform * stops[-1]).long()
        ids = torch.searchsorted(stops, place, right=True).clamp(max=self.num_worlds - 1)
        row = (self._oldest + held - stops)[ids] + place
        episode = self._columns["episode"][self._slot(ids, row)]
        remaining = self._episode_last[self._slot(ids, episode)] - row
        return ids, row, remaining * (place < stops[-1])

    # -- saving -----------------------------------------------------------------------------------

    def unsaved_segment(self) -> dict[str, Tensor]:
        """Return the rows written since `mark_saved`, world after world, with the worlds' first rows."""
        first = torch.maximum(self._unsaved_from, self._oldest)
        slot = self._slots(first, self._count - first)
        segment = {name: column[slot].cpu() for name, column in self._columns.items()}
        return segment | {"first": first.cpu(), "rows": (self._count - first).cpu()}

    def mark_saved(self) -> None:
        """Note that everything up to now lies in a segment."""
        self._unsaved_from.copy_(self._count)

    def mark_unsaved(self) -> None:
        """Note that nothing lies in a segment: the next one holds every row."""
        self._unsaved_from.copy_(self._oldest)

    def load_segment(self, segment: dict[str, Tensor]) -> None:
        """Write a segment back; segments go in the order in which they were made."""
        first, rows = segment["first"].to(self.device), segment["rows"].to(self.device)
        slot = self._slots(first, rows)
        for name, column in self._columns.items():
            if name in segment:  # earlier versions did not note early ends
                column[slot] = segment[name].to(self.device, column.dtype)

    def counters(self) -> dict[str, Tensor]:
        """Return the worlds' counters, which `load_counters` takes after the last segment."""
        names = ("count", "oldest", "episode", "episode_first")
        return {name: getattr(self, f"_{name}").cpu().clone() for name in names}

    def load_counters(self, counters: dict[str, Tensor]) -> None:
        """Restore the counters and rebuild the table of episode ends from the rows.

        Raises:
            ValueError: they are those of another number of worlds.
        """
        for name, value in counters.items():
            if value.shape != (self.num_worlds,):
                raise ValueError(f"counters {name!r} of shape {tuple(value.shape)}, not ({self.num_worlds},)")
            getattr(self, f"_{name}").copy_(value)  # where they lie: a captured graph reads them there
        self._unsaved_from.copy_(self._count)
        held = self._count - self._oldest
        slot, ids = self._slots(self._oldest, held), self._worlds.repeat_interleave(held)
        row = self._oldest.repeat_interleave(held) + _ranges(held)
        episode_slot = self._slot(ids, self._columns["episode"][slot])
        last = row.to(self._episode_last.dtype)
        self._episode_last.scatter_reduce_(0, episode_slot, last, "amax", include_self=False)

    def _slots(self, first: Tensor, rows: Tensor) -> Tensor:
        """Return the places of rows first..first+rows of every world, one world after the other."""
        row = first.repeat_interleave(rows) + _ranges(rows)
        return self._worlds.repeat_interleave(rows) * self.capacity + row % self.capacity


def _put(column: Tensor, slot: Tensor, value: Tensor, worlds: Tensor | None) -> None:
    """Write values (num_worlds, …) into the worlds' slots, where there is a mask only in its worlds.

    The slot of any other world holds its oldest row, which is put back as it is: picking out the worlds of
    the mask would wait for the device.
    """
    if worlds is not None:
        mask = worlds.view(-1, *(1,) * (value.ndim - 1))
        value = torch.where(mask, value, column[slot])
    column.index_copy_(0, slot, value.to(column.dtype))


def _last_good(good: Tensor) -> Tensor:
    """Return for each place that itself where it is good, else the last good place before it, going round.

    What stands there was drawn without regard to its place, so that repeating it favours nothing.
    """
    place = torch.arange(len(good), device=good.device)
    last = torch.where(good, place, -1).cummax(0).values
    return torch.where(last < 0, last[-1], last).clamp(min=0)


def _ranges(lengths: Tensor) -> Tensor:
    """Return 0..n−1 for each length n, concatenated."""
    starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    return torch.arange(len(starts), device=lengths.device) - starts
