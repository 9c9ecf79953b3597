"""How long something held without a break."""

from __future__ import annotations

import numpy as np


def longest_run(held: np.ndarray) -> int:
    """Return the most steps in a row at which something held; `held` is (steps,) bool."""
    breaks = np.flatnonzero(~np.concatenate([[False], np.asarray(held, bool), [False]]))
    return int(np.diff(breaks).max()) - 1
