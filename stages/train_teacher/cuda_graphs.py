"""Drawing batches and learning from them, as they are or as CUDA graphs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from thousandfold.replay.trajectory_buffer import TrajectoryBuffer, TransitionBatch
from thousandfold.stages.captured_call import CapturedCall, CudaRecorder
from thousandfold.stages.train_teacher.learner import ContrastiveLearner

# On a device: drawing them takes as many operations as drawing one. More would only take memory.
_BATCHES_AT_ONCE = 64


class PlainUpdate:
    """What a training does over and over: draw batches and learn from them.

    Args:
        learner, buffer: what learns, and what from.
        batch_size: transitions of an update.
        count: updates of an unroll.
        generator: of batches and updates.
    """

    def __init__(
        self,
        learner: ContrastiveLearner,
        buffer: TrajectoryBuffer,
        batch_size: int,
        count: int,
        generator: torch.Generator,
    ) -> None:
        self._learner, self._generator, self._batch_size, self._count = learner, generator, batch_size, count
        draws = count if buffer.reads_are_free else math.ceil(count / _BATCHES_AT_ONCE)
        self._at_once = math.ceil(count / draws)
        self._draw: Callable[[], TransitionBatch] = partial(
            buffer.sample,
            self._at_once * batch_size,
            learner.settings.discount,
            generator,
            next_rows=learner.settings.critic == "temporal_difference",
            lost=learner.settings.learns_lost_futures,
        )

    def batches(self) -> Iterator[TransitionBatch]:
        """Yield an unroll's batches, as `TrajectoryBuffer.sample` draws them.

        Several are drawn at once where that saves operations: the memory must not change meanwhile.
        """
        for left in range(self._count, 0, -self._at_once):
            drawn = self._draw()
            for index in range(min(left, self._at_once)):
                yield self._handed_out(
                    drawn.part(slice(index * self._batch_size, (index + 1) * self._batch_size))
                )

    def _handed_out(self, batch: TransitionBatch) -> TransitionBatch:
        return batch

    def update(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """Take an update with the last of the batches; return metrics."""
        return self._learner.update(batch, self._generator)


class CapturedUpdate(PlainUpdate):
    """The same as CUDA graphs; what a call returns is overwritten by the next one, and so is a batch.

    Args:
        learner, buffer, batch_size, count, generator: as of `PlainUpdate`.
        recorder: records the calls.
    """

    def __init__(
        self,
        learner: ContrastiveLearner,
        buffer: TrajectoryBuffer,
        batch_size: int,
        count: int,
        generator: torch.Generator,
        recorder: CudaRecorder,
    ) -> None:
        super().__init__(learner, buffer, batch_size, count, generator)
        self._draw = CapturedCall(self._draw, recorder)
        self._batch: TransitionBatch | None = None

        def learn() -> dict[str, Tensor]:
            assert self._batch is not None
            return learner.update(self._batch, generator)

        self._learn = CapturedCall(learn, recorder)

    def _handed_out(self, batch: TransitionBatch) -> TransitionBatch:
        """Copy a batch to where the recorded update reads it."""
        given = batch.columns()
        if self._batch is None:
            self._batch = TransitionBatch(**{name: torch.empty_like(each) for name, each in given.items()})
        into = self._batch.columns()
        for dtype in (torch.float32, torch.bool):
            names = [name for name, column in given.items() if column.dtype == dtype]
            if names:
                torch._foreach_copy_([into[name] for name in names], [given[name] for name in names])  # pyright: ignore[reportPrivateImportUsage]
        return self._batch

    def update(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """Take an update with the last of the batches; return metrics. Raises ValueError for another one."""
        if batch is not self._batch:
            raise ValueError("a captured update takes the batch that was handed out last")
        return self._learn() if self._learner.can_be_captured else super().update(batch)
