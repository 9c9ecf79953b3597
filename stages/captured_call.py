"""Calls as CUDA graphs: recorded once, then replayed.

A network of a thousand layers is tens of thousands of small kernels. Launching them one by one takes the host
longer than the device needs to run them; a graph launches them all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from thousandfold.ground.between_graphs import Launch, recording

Result = TypeVar("Result")

# Calls before a recording: they load kernels and allocate moments and workspaces, which a recording cannot.
_CALLS_BEFORE = 3


class CudaRecorder:
    """Runs functions on a stream of its own and records them there: torch's default stream has no captures.

    Args:
        device: ``cuda`` or ``cuda:<index>``.
        generators: what the functions draw from; a replay draws what a call would have drawn.
    """

    def __init__(self, device: str, generators: Sequence[torch.Generator] = ()) -> None:
        self._stream, self._generators = torch.cuda.Stream(device), generators

    def run(self, function: Callable[[], Result]) -> Result:
        """Return what a function returns, run after what is in the current stream and before what follows."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = function()
        current.wait_stream(self._stream)
        return result

    def record(self, function: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        """Return what a function returns, still to be filled in, and what fills it in: the replay.

        The replay is one graph, or several with what is launched between them.
        """
        parts: list[Launch] = []
        pool = torch.cuda.graph_pool_handle()

        def begin() -> torch.cuda.graph:
            graph = torch.cuda.CUDAGraph()
            for generator in self._generators:
                graph.register_generator_state(generator)
            parts.append(graph.replay)
            # NCCL's watchdog and others may ask for events meanwhile, which another mode takes for an error.
            capture = torch.cuda.graph(graph, pool, self._stream, capture_error_mode="thread_local")
            capture.__enter__()
            return capture

        def interrupt(launch: Launch) -> None:
            nonlocal capture
            capture.__exit__(None, None, None)
            parts.append(launch)
            capture = begin()

        capture = begin()
        try:
            with recording(interrupt):
                result = function()
        finally:
            capture.__exit__(None, None, None)

        def replay() -> None:
            for part in parts:
                part()

        return result, replay


class CapturedCall(Generic[Result]):
    """A function of tensors that runs as it is a few times and from then on as a CUDA graph.

    A graph reads its arguments where they lay when it was recorded, and so it does everything else that the
    function reads or changes. What it returns is overwritten by the next call.

    Args:
        function: does the same whatever the numbers in its tensors are.
        recorder: records it.
    """

    def __init__(self, function: Callable[..., Result], recorder: CudaRecorder) -> None:
        self._function, self._recorder = function, recorder
        self._calls = 0
        self._arguments: tuple[Tensor, ...] = ()
        self._replay: Callable[[], None] | None = None
        self._result: Result | None = None

    def __call__(self, *arguments: Tensor) -> Result:
        """Return what the function returns for these arguments.

        Raises:
            ValueError: they lie elsewhere than those of the recording.
        """
        call = partial(self._function, *arguments)
        if self._calls < _CALLS_BEFORE:
            self._calls += 1
            return self._recorder.run(call)
        if self._replay is None:
            self._arguments = arguments
            self._result, self._replay = self._recorder.record(call)
        if _places(arguments) != _places(self._arguments):
            raise ValueError("a captured call was given tensors that lie elsewhere than when it was recorded")
        self._replay()
        return self._result  # pyright: ignore[reportReturnType]


def captured_by_rows(
    function: Callable[[Tensor, Tensor], Result], recorder: CudaRecorder
) -> Callable[[Tensor, Tensor], Result]:
    """Return a function of two tensors as captured calls, one for each number of rows, wherever they lie."""
    calls: dict[int, tuple[Tensor, Tensor, CapturedCall[Result]]] = {}

    def call(first: Tensor, second: Tensor) -> Result:
        if len(first) not in calls:
            calls[len(first)] = first.clone(), second.clone(), CapturedCall(function, recorder)
        one, other, captured = calls[len(first)]
        one.copy_(first)
        other.copy_(second)
        return captured(one, other)

    return call


def _places(tensors: tuple[Tensor, ...]) -> list[Any]:
    return [(tensor.data_ptr(), tensor.shape, tensor.stride()) for tensor in tensors]
