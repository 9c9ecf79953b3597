"""CUDA graphs without CUDA: operations that would wait for a device are refused, the others done again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from thousandfold.ground.between_graphs import Launch, recording

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
    What is launched between graphs is done again as it is.

    Attributes:
        launches: what the host launches for a replay: graphs, and what stands between them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[Callable[[], object]] = []
        self._recorded_now = True
        self.launches = 1

    def call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        if func.namespace in ("aten", "thousandfold"):
            self._operations.append(partial(_repeat, func, args, kwargs, result))
        return result

    def interrupt(self, launch: Launch) -> None:
        """Do at once what stands between two graphs, unrecorded, and again at this place of a replay."""
        self.launches += 2
        self._operations.append(launch)
        with _disable_current_modes():
            launch()

    def replay(self) -> None:
        if self._recorded_now:  # a CUDA graph computes nothing while it is recorded; this did
            self._recorded_now = False
            return
        with torch.no_grad():
            for operation in self._operations:
                operation()


def _repeat(func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
    """Do an operation again and write what it returns into what it returned first."""
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
    """Stands for `CudaRecorder` on the CPU.

    Attributes:
        recorded: how many functions were recorded.
        launches: of a replay of each, as of `Recording`.
    """

    def __init__(self, *_: Any) -> None:
        self.recorded = 0
        self.launches: list[int] = []

    def run(self, function: Callable[[], Any]) -> Any:
        return function()

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self.recorded += 1
        with Recording() as operations, recording(operations.interrupt):
            result = function()
        self.launches.append(operations.launches)
        return result, operations.replay
