"""Drawing a batch, learning from it and acting, as they are or as CUDA graphs: recorded, then replayed.

An update of a thousand layers is tens of thousands of small kernels. Launching them one by one takes the host
longer than the device needs to run them; a graph launches them all at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from thousandfold.replay.trajectory_buffer import TrajectoryBuffer, TransitionBatch
from thousandfold.stages.train_teacher.learner import ContrastiveLearner

Result = TypeVar("Result")

# Calls before a recording: they load kernels and allocate moments and workspaces, which a recording cannot.
_CALLS_BEFORE = 3


class CudaRecorder:
    """Runs functions on a stream of its own and records them there: torch's default stream has no captures.

    Args:
        device: ``cuda`` or ``cuda:<index>``.
        generator: what the functions draw from; a replay draws what a call would have drawn.
    """

    def __init__(self, device: str, generator: torch.Generator) -> None:
        self._stream, self._generator = torch.cuda.Stream(device), generator

    def run(self, function: Callable[[], Result]) -> Result:
        """Return what a function returns, run after what is in the current stream and before what follows."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = function()
        current.wait_stream(self._stream)
        return result

    def record(self, function: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        """Return what a function returns, still to be filled in, and what fills it in: the replay."""
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._generator)
        with torch.cuda.graph(graph, stream=self._stream):
            result = function()
        return result, graph.replay


class CapturedCall(Generic[Result]):
    """A function of tensors that runs as it is a few times and from then on as a CUDA graph.

    A graph reads its arguments where they lay when it was recorded, and so it does everything else that the
    function reads or changes. What it returns is overwritten by the next call.

    Args:
        function: does the same whatever the numbers in its tensors are.
        recorder: records it.
        prepare: called before the recording.
    """

    def __init__(
        self,
        function: Callable[..., Result],
        recorder: CudaRecorder,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self._function, self._recorder, self._prepare = function, recorder, prepare
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
            self._prepare()
            self._arguments = arguments
            self._result, self._replay = self._recorder.record(call)
        if _places(arguments) != _places(self._arguments):
            raise ValueError("a captured call was given tensors that lie elsewhere than when it was recorded")
        self._replay()
        return self._result  # pyright: ignore[reportReturnType]


def _places(tensors: tuple[Tensor, ...]) -> list[Any]:
    return [(tensor.data_ptr(), tensor.shape, tensor.stride()) for tensor in tensors]


class PlainUpdate:
    """What a training does over and over: draw a batch, learn from it, and act.

    Args:
        learner, buffer: what learns, and what from.
        batch_size: transitions of an update.
        generator: of batches, updates and actions.
    """

    def __init__(
        self,
        learner: ContrastiveLearner,
        buffer: TrajectoryBuffer,
        batch_size: int,
        generator: torch.Generator,
    ) -> None:
        self._learner, self._generator = learner, generator
        self.sample: Callable[[], TransitionBatch] = partial(
            buffer.sample,
            batch_size,
            learner.settings.discount,
            generator,
            next_rows=learner.settings.critic == "temporal_difference",
            lost=learner.settings.learns_lost_futures,
        )
        """Returns a batch, as `TrajectoryBuffer.sample` does."""
        self.act: Callable[[Tensor, Tensor], Tensor] = partial(learner.act, generator=generator)
        """Returns sampled actions (batch, action_dim) for observations and goals."""

    def update(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """Take an update with the last batch of `sample`; return metrics."""
        return self._learner.update(batch, self._generator)


class CapturedUpdate(PlainUpdate):
    """The same as CUDA graphs; what a call returns is overwritten by the next one.

    Args:
        learner, buffer, batch_size, generator: as of `PlainUpdate`.
        recorder: records the calls.
    """

    def __init__(
        self,
        learner: ContrastiveLearner,
        buffer: TrajectoryBuffer,
        batch_size: int,
        generator: torch.Generator,
        recorder: CudaRecorder,
    ) -> None:
        super().__init__(learner, buffer, batch_size, generator)
        self.sample = CapturedCall(self.sample, recorder)
        self.act = CapturedCall(self.act, recorder)

        self._names: tuple[str, ...] = ()

        def learn(*tensors: Tensor) -> dict[str, Tensor]:
            return learner.update(TransitionBatch(**dict(zip(self._names, tensors, strict=True))), generator)

        self._learn = CapturedCall(learn, recorder, learner.prepare_capture)

    def update(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """Take an update with the last batch of `sample`; return metrics."""
        columns = {field.name: getattr(batch, field.name) for field in fields(batch)}
        given = {name: tensor for name, tensor in columns.items() if tensor is not None}
        self._names = tuple(given)
        return self._learn(*given.values())
