"""Starts of episodes drawn in advance, so that resets take them from the device."""

from __future__ import annotations

import torch


class StartPool:
    """Starts drawn in advance, on the device, where resets take one after the other without waiting for it.

    Args:
        starts: (size, width), a start a row.
    """

    def __init__(self, starts: torch.Tensor) -> None:
        self._starts = starts
        self._taken = torch.zeros((), dtype=torch.int64, device=starts.device)

    def __len__(self) -> int:
        return len(self._starts)

    def take(self, worlds: torch.Tensor) -> torch.Tensor:
        """Return (num_worlds, width): the next starts for the worlds of the mask; other rows mean nothing.

        After the last start comes the first again.
        """
        place = (self._taken + worlds.cumsum(0) - 1) % len(self._starts)
        self._taken += worlds.sum()
        return self._starts[place]

    @property
    def reused(self) -> int:
        """How many starts were taken that had been taken before; waits for the device."""
        return max(int(self._taken) - len(self._starts), 0)
