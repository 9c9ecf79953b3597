"""What kernels compiled for this processor need of torch: its threads."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path

import torch

LANES = 16
"""numbers that a compiled kernel computes at a time: a vector of AVX-512, two of AVX2, four of NEON"""

_Kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@functools.cache
def _openmp() -> Callable[[int, int, int, int], None] | None:
    """Return what runs a function in torch's own team of threads: another would fight it for the CPUs."""
    already_loaded = getattr(os, "RTLD_NOLOAD", 0) | getattr(os, "RTLD_NOW", 0)
    for library in (Path(torch.__file__).parent / "lib").glob("libgomp*.so*"):
        with contextlib.suppress(OSError, AttributeError):
            parallel = ctypes.CDLL(str(library), already_loaded).GOMP_parallel
            parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            parallel.restype = None
            return parallel
    return None


def has_threads(device: torch.device) -> bool:
    """Return whether a kernel can have all of torch's threads, which are those of the CPU."""
    return device.type == "cpu" and (torch.get_num_threads() == 1 or _openmp() is not None)


def parts() -> int:
    """Return in how many parts rows are computed: one for each of torch's threads, where they can be had."""
    return torch.get_num_threads() if _openmp() else 1


def in_parallel(address: int) -> Callable[..., None]:
    """Return a function that runs the kernel at `address` with a number of parts and its other arguments.

    The kernel takes the parts' numbers from a counter, the first of what it is given, until none is left:
    which thread computes a part does not matter, and a team smaller than asked for leaves nothing out.
    """
    alone, parallel = _Kernel(address), _openmp()

    def run(parts: int, *arguments: int) -> None:
        given = (ctypes.c_int64 * (2 + len(arguments)))(0, parts, *arguments)
        if parts == 1 or parallel is None:
            alone(ctypes.addressof(given))
        else:
            parallel(address, ctypes.addressof(given), parts, 0)

    return run
