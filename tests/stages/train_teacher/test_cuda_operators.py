"""How many operators an update is, which on CUDA are kernels: at most so many a layer."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from tests.stages.train_teacher.counting import OperatorCount, compute_as_on_cuda, operators
from thousandfold.envs.registry import compile_task
from thousandfold.models.block_stack import LAYERS_PER_BLOCK
from thousandfold.models.fused_norm_swish import FusedNormSwish, FusedStack, stack_of
from thousandfold.replay.trajectory_buffer import TransitionBatch
from thousandfold.stages.train_teacher.learner import ContrastiveLearner
from thousandfold.stages.train_teacher.settings import LearnerSettings

TASK = compile_task("point_u_maze")
ROWS = 8
DEEP_FORM: dict[str, Any] = {
    "width": 16, "batch_size": ROWS, "residual_scale": "learned_from_zero", "final_norm": True,
    "max_gradient_norm": 10.0,
}  # fmt: skip


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    compute_as_on_cuda(monkeypatch)


def update_operators(depth: int, **settings: Any) -> Counter[str]:
    """Return the operators of a learner's second update: the first makes the optimisers' moments."""
    learner = ContrastiveLearner(TASK, LearnerSettings(depth=depth, **(DEEP_FORM | settings)), "cpu")
    generator = torch.Generator().manual_seed(1)
    batch = TransitionBatch(*(torch.randn(ROWS, width, generator=generator) for width in (4, 2, 2)))
    learner.update(batch, generator)
    return operators(lambda: learner.update(batch, generator))


@pytest.mark.usefixtures("as_on_cuda")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_update_of_three_networks_is_so_many_operators_a_layer(precision: str):
    shallow, deep = (update_operators(depth, precision=precision).total() for depth in (32, 64))
    assert 12 < (deep - shallow) / 32 < 12.5
    assert shallow - 32 * 12.5 < 250  # whatever the depth


@pytest.mark.slow
@pytest.mark.usefixtures("as_on_cuda")
def test_so_is_one_of_a_thousand_layers():
    shallow, deep = (update_operators(depth, precision="bfloat16").total() for depth in (64, 1024))
    assert 12 < (deep - shallow) / 960 < 12.5


class _Operators(TorchFunctionMode):
    """Calls operators themselves where torch's functions around them ask for the device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.__getitem__:
            try:
                return func(*args, **(kwargs or {}))
            except RuntimeError:
                return getattr(torch.ops.aten, func.__name__)(*args, **(kwargs or {}))
        tensor, index = args
        dim = 0
        for part in index if isinstance(index, tuple) else (index,):
            if isinstance(part, slice):
                tensor, dim = torch.ops.aten.slice.Tensor(tensor, dim, part.start, part.stop), dim + 1
            else:
                tensor = torch.ops.aten.select.int(tensor, dim, part)
        return tensor


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("depth", [64, pytest.param(1024, marks=pytest.mark.slow)])
def test_a_stack_on_cuda_tensors_without_data(depth: int, dtype: torch.dtype, checkpoint: bool):
    rows, width, blocks, frozen = 512, 256, depth // LAYERS_PER_BLOCK, 256
    norm = FusedNormSwish()
    with FakeTensorMode(allow_non_fake_inputs=False), torch.no_grad(), _Operators(), OperatorCount() as count:
        make = lambda *shape, dtype=torch.float32: torch.empty(*shape, device="cuda", dtype=dtype)  # noqa: E731
        parameters = make(depth, width, width), *(make(depth, width) for _ in range(3)), make(blocks)
        stack = stack_of(make(depth, width, width, dtype=dtype), *parameters[1:], blocks, 1.0, norm)
        ctx = SimpleNamespace(needs_input_grad=[True] * 9)
        ctx.save_for_backward = lambda *tensors: setattr(ctx, "saved_tensors", tensors)
        outputs = FusedStack.forward(ctx, make(rows, width), *parameters, stack, frozen, checkpoint)
        _, *gradients = FusedStack.backward(ctx, torch.empty_like(outputs))
    assert outputs.device.type == "cuda" and outputs.shape == (rows, width)
    for parameter, gradient in zip(parameters, gradients[:5], strict=True):
        assert gradient.device.type == "cuda" and gradient.shape == parameter.shape
        assert gradient.dtype == torch.float32 and gradient.is_contiguous()
    # Computing again adds the two operators of a layer's forward pass.
    assert count.operators.total() / depth < (6.8 if checkpoint else 4.4), count.operators


def test_views_and_memory_are_not_counted_and_everything_else_is():
    numbers = torch.arange(6.0)
    assert not operators(lambda: torch.empty_like(numbers.view(2, 3).t()[1:].unbind(0)[0].detach()))
    assert operators(lambda: (numbers + 1).mul_(2)) == {"aten.add.Tensor": 1, "aten.mul_.Tensor": 1}
