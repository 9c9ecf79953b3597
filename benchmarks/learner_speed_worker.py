"""One side of `learner_speed.py` in a process of its own, so that no two thread pools disturb each other.

Started by the script as ``python -m benchmarks.learner_speed_worker SIDE CELL``, CELL as JSON. It builds and
warms up, writes one line of JSON, and then answers each line read, the seconds of a round, with one line.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TextIO, cast

import numpy as np

from thousandfold.ground.errors import SettingsError
from thousandfold.ground.machine import usable_cpus
from thousandfold.pipeline.runtime import require_precision, set_up_torch

if TYPE_CHECKING:
    from benchmarks.jax_learner import Body
    from thousandfold.envs.compiled_task import CompiledTask
    from thousandfold.replay.trajectory_buffer import TransitionBatch

Work = Callable[[], None]
"""What is timed: one call is one update, or one product, complete when it returns."""

_BATCHES = 8
_WARM_UP_CALLS = 2
_MIN_CALLS = 2


@dataclass(frozen=True)
class Cell:
    """Sizes of what is measured, and how many CPU threads it may use."""

    depth: int
    width: int
    batch: int
    threads: int
    matmul_size: int


@dataclass(frozen=True)
class AntDimensions:
    """Sizes of the ant's spaces."""

    observation_dim: int = 29
    goal_dim: int = 2
    action_dim: int = 8


def batch_arrays(size: int) -> list[dict[str, np.ndarray]]:
    """Return fixed random batches: observation and goal normal, actions uniform in [−1, 1], float32."""
    random, dims = np.random.default_rng(0), AntDimensions()
    return [
        {
            "observation": random.standard_normal((size, dims.observation_dim), np.float32),
            "action": random.uniform(-1, 1, (size, dims.action_dim)).astype(np.float32),
            "goal": random.standard_normal((size, dims.goal_dim), np.float32),
        }
        for _ in range(_BATCHES)
    ]


def _torch_batches(size: int) -> list[TransitionBatch]:
    import torch

    from thousandfold.replay.trajectory_buffer import TransitionBatch

    return [
        TransitionBatch(**{name: torch.from_numpy(array) for name, array in arrays.items()})
        for arrays in batch_arrays(size)
    ]


def _in_turn(update: Callable[[int], object]) -> Work:
    """Return work whose n-th call is `update(n)`."""
    calls = 0

    def work() -> None:
        nonlocal calls
        update(calls)
        calls += 1

    return work


def bfloat16_refusal() -> str | None:
    """Return why the processor cannot be measured in bfloat16, or None: emulated, a product takes minutes."""
    try:
        require_precision("bfloat16", "cpu")
    except SettingsError as refusal:
        return str(refusal)
    return None


# -- the sides ------------------------------------------------------------------------------------


def jax_side(cell: Cell, body: Body) -> dict[str, Work]:
    """Build the published formulation on the CPU, its blocks unrolled or scanned over."""
    import jax  # pyright: ignore[reportMissingImports]

    from benchmarks.jax_learner import Batch, JaxLearner

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    dims = AntDimensions()
    learner = JaxLearner(
        dims.observation_dim, dims.goal_dim, dims.action_dim, depth=cell.depth, width=cell.width, body=body
    )
    state = learner.initialise(jax.random.key(0))
    batches = [Batch(**jax.device_put(arrays)) for arrays in batch_arrays(cell.batch)]
    keys = list(jax.random.split(jax.random.key(1), _BATCHES))
    jax.block_until_ready((state, batches, keys))

    def update(index: int) -> None:
        nonlocal state
        state, _ = jax.block_until_ready(
            learner.update(state, batches[index % _BATCHES], keys[index % _BATCHES])
        )

    return {"update": _in_turn(update)}


def torch_plain_side(cell: Cell) -> dict[str, Work]:
    """Build the straightforward formulation in torch."""
    import torch

    from benchmarks.plain_learner import PlainLearner

    set_up_torch(cell.threads)
    torch.manual_seed(0)
    dims, batches, generator = AntDimensions(), _torch_batches(cell.batch), torch.Generator().manual_seed(1)
    learner = PlainLearner(
        dims.observation_dim, dims.goal_dim, dims.action_dim, depth=cell.depth, width=cell.width
    )
    return {"update": _in_turn(lambda index: learner.update(batches[index % _BATCHES], generator))}


def thousandfold_side(
    cell: Cell, precision: Literal["float32", "bfloat16"], checkpoint: bool = False
) -> dict[str, Work]:
    """Build the product's learner in the published form, which the other sides have at any depth."""
    import torch

    from thousandfold.stages.train_teacher.learner import ContrastiveLearner, LearnerSettings

    set_up_torch(cell.threads)
    settings = {
        "depth": cell.depth,
        "width": cell.width,
        "batch_size": cell.batch,
        "threads": cell.threads,
        "precision": precision,
        "checkpoint_activations": checkpoint,
        "actor_goals": "random",
        "residual_scale": "none",
        "final_norm": False,
        "max_gradient_norm": None,
    }
    # The learner reads nothing of a task but the three sizes.
    task = cast("CompiledTask", AntDimensions())
    learner = ContrastiveLearner(task, LearnerSettings.model_validate(settings), "cpu")
    batches, generator = _torch_batches(cell.batch), torch.Generator().manual_seed(1)
    return {"update": _in_turn(lambda index: learner.update(batches[index % _BATCHES], generator))}


def matmul_side(cell: Cell) -> dict[str, Work]:
    """Build one product of two square matrices by `torch.mm` and, where it is there, by oneDNN."""
    import torch

    from thousandfold.models.dense_products import OneDnnProducts, has_onednn

    set_up_torch(cell.threads)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(cell.matmul_size, cell.matmul_size, generator=generator) for _ in range(2))

    def by_torch(dtype: torch.dtype) -> Work:
        factors, result = (left.to(dtype), right.to(dtype)), torch.empty(left.shape, dtype=dtype)
        return _in_turn(lambda _: torch.mm(*factors, out=result))

    products = {"float32": by_torch(torch.float32)}
    if not bfloat16_refusal():
        products["bfloat16"] = by_torch(torch.bfloat16)
    if has_onednn():
        onednn = OneDnnProducts()
        products["float32 oneDNN"] = _in_turn(lambda _: onednn.outputs(left, right))
    return products


SIDES: dict[str, Callable[[Cell], dict[str, Work]]] = {
    "jax-unrolled": lambda cell: jax_side(cell, "unrolled"),
    "jax-scan": lambda cell: jax_side(cell, "scan"),
    "torch-plain": torch_plain_side,
    "thousandfold": lambda cell: thousandfold_side(cell, "float32"),
    "thousandfold-bf16": lambda cell: thousandfold_side(cell, "bfloat16"),
    "thousandfold-checkpoint": lambda cell: thousandfold_side(cell, "float32", checkpoint=True),
    "matmul": matmul_side,
}

# -- timing ---------------------------------------------------------------------------------------


def seconds_of(work: Work) -> float:
    """Return the seconds that one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def run_round(work: Work, round_s: float) -> dict[str, float]:
    """Call `work` for about `round_s`, at least twice; return the median seconds of a call."""
    calls: list[float] = []
    while len(calls) < _MIN_CALLS or sum(calls) < round_s:
        calls.append(seconds_of(work))
    return {"median_s": statistics.median(calls), "calls": len(calls)}


def confine(threads: int) -> None:
    """Keep this process and the thread pools that it will start on `threads` CPUs.

    XLA sizes its pool by the CPUs that the process may use and has no setting of its own.

    Raises:
        ValueError: the system cannot bind a process to CPUs, or has fewer of them.
    """
    usable = usable_cpus()
    if threads > usable or (threads < usable and not hasattr(os, "sched_setaffinity")):
        raise ValueError(f"{threads} threads asked for, {usable} usable CPUs, and no way to bind to fewer")
    if threads < usable:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def serve(side: str, cell: Cell, requests: TextIO, replies: TextIO) -> None:
    """Build and warm up a side, tell how long that took, then answer each request with one round."""

    def reply(value: object) -> None:
        print(json.dumps(value), file=replies, flush=True)

    start = time.perf_counter()
    work = SIDES[side](cell)
    build_s = time.perf_counter() - start
    first_call_s = sum(seconds_of(each) for each in work.values())
    for each in work.values():
        for _ in range(_WARM_UP_CALLS):
            each()
    reply({"build_s": build_s, "first_call_s": first_call_s})
    for line in requests:
        round_s = float(line) / len(work)
        reply({name: run_round(each, round_s) for name, each in work.items()})


def main() -> None:
    """Serve the side named on the command line until standard input ends."""
    cell = Cell(**json.loads(sys.argv[2]))
    # What libraries print must not get between the replies.
    with os.fdopen(os.dup(1), "w") as replies:
        os.dup2(2, 1)
        confine(cell.threads)
        serve(sys.argv[1], cell, sys.stdin, replies)


if __name__ == "__main__":
    main()
