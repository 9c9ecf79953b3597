"""How many operators a call runs: what a recorded CUDA graph launches, counted without a device.

A CPU runs the same operators as CUDA where the code takes the same way; a test sees to that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from thousandfold.models import compiled_info_nce, compiled_norm_swish

# These hand out memory or another look at it. Every other operator is a kernel at least, or a copy.
_LAUNCH_NOTHING = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view")
# Notes of the profiler, and questions about tensors without data.
_NOTES = ("profiler", "prim")


class OperatorCount(TorchDispatchMode):
    """Counts operators by name, but for views and memory; refuses those that mix devices."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        leaves = torch.utils._pytree.tree_leaves((args, kwargs, result))
        devices = {each.device.type for each in leaves if isinstance(each, torch.Tensor)}
        assert len(devices) < 2 or name in ("copy_", "_to_copy"), f"{func} mixes {devices}"
        if not func.is_view and name not in _LAUNCH_NOTHING and func.namespace not in _NOTES:
            self.operators[str(func)] += 1
        return result


def operators(call: Callable[[], Any]) -> Counter[str]:
    """Return how often a call runs each operator: few are more than one kernel, none is less."""
    with OperatorCount() as count:
        call()
    return count.operators


def compute_as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have tensors on the CPU computed by what computes them on CUDA: torch, and Warp on its CPU device."""
    monkeypatch.setattr(compiled_info_nce, "_compiled", lambda dim: None)
    monkeypatch.setattr(compiled_norm_swish, "_has_compiler", lambda: False)
    monkeypatch.setattr(compiled_norm_swish, "_runs_warp", lambda device: True)
