"""Drawing a batch, learning from it and acting as CUDA graphs: recorded once, then replayed.

An update of a thousand layers is tens of thousands of small kernels. Launching them one by one takes the host
longer than the device needs to run them; a graph launches them all at once.
"""

from __future__ import annotations

from collections.abc import Callable
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


class CapturedUpdate:
    """What a training does over and over, as CUDA graphs.

    Args:
        learner, buffer: what learns, and what from.
        batch_size: transitions of an update.
        generator: of batches, updates and actions.
        recorder: records them.
    """

    def __init__(
        self,
        learner: ContrastiveLearner,
        buffer: TrajectoryBuffer,
        batch_size: int,
        generator: torch.Generator,
        recorder: CudaRecorder,
    ) -> None:
        self._learner, self._generator = learner, generator
        draw = partial(buffer.sample, batch_size, learner.settings.discount, generator)
        self._sample = CapturedCall(draw, recorder)
        self._update = CapturedCall(self._learn, recorder, learner.prepare_capture)
        self._act = CapturedCall(partial(learner.act, generator=generator), recorder)

    def sample(self) -> TransitionBatch:
        """Return a batch, as `TrajectoryBuffer.sample` does; the next one overwrites it."""
        return self._sample()

    def update(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """Take an update with the last batch of `sample`; return metrics, which the next one overwrites."""
        return self._update(batch.observation, batch.action, batch.goal)

    def act(self, observation: Tensor, goal: Tensor) -> Tensor:
        """Return sampled actions (batch, action_dim), which the next call overwrites."""
        return self._act(observation, goal)

    def _learn(self, *batch: Tensor) -> dict[str, Tensor]:
        return self._learner.update(TransitionBatch(*batch), self._generator)
