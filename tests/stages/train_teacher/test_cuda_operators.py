"""How many operators an update is, which on CUDA are kernels: at most so many a layer."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from tests.stages.train_teacher.counting import operators
from thousandfold.envs.registry import compile_task
from thousandfold.models import compiled_info_nce, compiled_norm_swish
from thousandfold.replay.trajectory_buffer import TransitionBatch
from thousandfold.stages.train_teacher.learner import ContrastiveLearner
from thousandfold.stages.train_teacher.settings import LearnerSettings

TASK = compile_task("point_u_maze")
ROWS = 8
DEEP_FORM: dict[str, Any] = {
    "width": 16, "batch_size": ROWS, "residual_scale": "learned_from_zero", "final_norm": True,
    "max_gradient_norm": 10.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all computed by what computes it on CUDA."""
    monkeypatch.setattr(compiled_info_nce, "_compiled", lambda dim: None)
    monkeypatch.setattr(compiled_norm_swish, "_has_compiler", lambda: False)


def update_operators(depth: int, **settings: Any) -> Counter[str]:
    """Return the operators of a learner's second update: the first makes the optimisers' moments."""
    learner = ContrastiveLearner(TASK, LearnerSettings(depth=depth, **(DEEP_FORM | settings)), "cpu")
    generator = torch.Generator().manual_seed(1)
    batch = TransitionBatch(*(torch.randn(ROWS, width, generator=generator) for width in (4, 2, 2)))
    learner.update(batch, generator)
    return operators(lambda: learner.update(batch, generator))


@pytest.mark.parametrize(("precision", "most"), [("float32", 30), ("bfloat16", 57)])
def test_an_update_is_so_many_operators_a_layer(precision: str, most: float):
    shallow, deep = (update_operators(depth, precision=precision).total() for depth in (8, 64))
    assert (deep - shallow) / (64 - 8) <= most


def test_views_and_memory_are_not_counted_and_everything_else_is():
    numbers = torch.arange(6.0)
    assert not operators(lambda: torch.empty_like(numbers.view(2, 3).t()[1:].unbind(0)[0].detach()))
    assert operators(lambda: (numbers + 1).mul_(2)) == {"aten.add.Tensor": 1, "aten.mul_.Tensor": 1}
