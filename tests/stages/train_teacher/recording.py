"""CUDA graphs without CUDA: operations that would wait for a device are refused, the others done again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = (
    "_local_scalar_dense", "is_nonzero", "item", "nonzero", "nonzero_numpy", "masked_select", "equal",
    "repeat_interleave", "_unique2", "unique_consecutive", "unique_dim",
)  # fmt: skip


class WouldWait(AssertionError):
    """An operation that on CUDA would wait for the device."""


class NeverWaits(TorchDispatchMode):
    """Raises WouldWait for an operation that needs a number of a tensor on the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype is torch.bool for index in args[1]
        )
        if name in _WAITING or masks:
            raise WouldWait(f"{func} waits for the device")
        return self.call(func, args, kwargs or {})

    def call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)


class Recording(NeverWaits):
    """Notes every operation with its tensors. A replay does them again and writes into the same tensors.

    As with a CUDA graph, what Python did in between is fixed: which tensors there are, and where they lie.
    """

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Any, Any, dict[str, Any], Any]] = []
        self._recorded_now = True

    def call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        if func.namespace in ("aten", "thousandfold"):
            self._operations.append((func, args, kwargs, result))
        return result

    def replay(self) -> None:
        if self._recorded_now:  # a CUDA graph computes nothing while it is recorded; this did
            self._recorded_now = False
            return
        with torch.no_grad():
            for func, args, kwargs, result in self._operations:
                again = func(*args, **kwargs)
                returns = func._schema.returns
                old, new = ((result,), (again,)) if len(returns) == 1 else (result or (), again or ())
                for spec, before, after in zip(returns, old, new, strict=True):
                    if spec.alias_info is None:
                        _overwrite(before, after)


def _overwrite(before: Any, after: Any) -> None:
    for one, other in zip(_tensors(before), _tensors(after), strict=True):
        one.copy_(other)


def _tensors(returned: Any) -> list[torch.Tensor]:
    """Return the tensors of one returned value: itself, those of a list, or none."""
    values = returned if isinstance(returned, (list, tuple)) else [returned]
    return [value for value in values if isinstance(value, torch.Tensor)]


class ReplayRecorder:
    """Stands for `CudaRecorder` on the CPU."""

    def __init__(self, *_: Any) -> None:
        self.recorded = 0

    def run(self, function: Callable[[], Any]) -> Any:
        return function()

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self.recorded += 1
        with Recording() as recording:
            result = function()
        return result, recording.replay
