"""The state of a random generator as an array, for checkpoints."""

from __future__ import annotations

import numpy as np


def pack_generator(rng: np.random.Generator) -> np.ndarray:
    """Return a PCG64 generator's state as 6 unsigned 64-bit numbers (two 128-bit words, then the buffer)."""
    state = rng.bit_generator.state
    low = (1 << 64) - 1
    words = [state["state"]["state"], state["state"]["inc"]]
    halves = [half for word in words for half in (word & low, word >> 64)]
    return np.array([*halves, state["has_uint32"], state["uinteger"]], dtype=np.uint64)


def unpack_generator(packed: np.ndarray) -> np.random.Generator:
    """Return the generator whose state `pack_generator` packed."""
    numbers = [int(number) for number in packed]
    rng = np.random.Generator(np.random.PCG64())
    rng.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": numbers[0] | numbers[1] << 64, "inc": numbers[2] | numbers[3] << 64},
        "has_uint32": numbers[4],
        "uinteger": numbers[5],
    }
    return rng
