"""How long one learner update takes, beside the published formulation in JAX/XLA and a plain one in torch.

    python -m benchmarks.learner_speed --depth 64 --width 256 --batch 256

Sides: ``jax-unrolled`` (as published) and ``jax-scan`` (`jax_learner.py`; they need `make benchmark-setup`),
``torch-plain`` (`plain_learner.py`), ``thousandfold`` and ``thousandfold-bf16`` (the product's learner), and
where asked for ``thousandfold-checkpoint`` (the same with activation checkpointing). All compute one update
of actor, α and critic for the ant's spaces on the CPU. Each side lives in a process of its own and computes
while the others wait, round after round, so that a machine that slows down slows all; ratios are taken round
by round. A product of two square matrices in each round tells what `torch.mm` reaches, and oneDNN in float32.

GFLOP/s count the products of a plain update, 12 passes × 2 · batch · width² · depth, whatever a side saves.
Cells of other sizes or of another processor are kept in the output; the cell that was measured is replaced
as a whole. Without instructions for bfloat16, what needs it is left out.

With --serve SIDE the script is one of the sides: it builds and warms up, writes one line of JSON, and then
answers each line read, the seconds of a round, with one line.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

import numpy as np

from benchmarks.harness import (
    Cell,
    CellBook,
    SideFailed,
    StudyParser,
    Worker,
    in_turn,
    markdown_table,
    ratios,
    run_study,
    spread,
)
from thousandfold.ground.errors import SettingsError
from thousandfold.ground.machine import usable_cpus
from thousandfold.pipeline.runtime import describe_host, require_precision, set_up_torch

if TYPE_CHECKING:
    from benchmarks.jax_learner import Body
    from thousandfold.envs.compiled_task import CompiledTask
    from thousandfold.replay.trajectory_buffer import TransitionBatch

Work = Callable[[], None]
"""What is timed: one call is one update, or one product, complete when it returns."""

DEFAULT_SIDES = ("jax-unrolled", "jax-scan", "torch-plain", "thousandfold", "thousandfold-bf16")
BASELINES = ("jax-unrolled", "jax-scan")
MATMUL = "matmul"
PRODUCTS = ("float32", "bfloat16", "float32 oneDNN")
# Actor: 3 of its own, 2 through φ, 1 of ψ. Critic: 3 of φ, 3 of ψ.
PASSES = 12
PUBLISHED = {"residual_scale": "none", "final_norm": False, "max_gradient_norm": None}
_BATCHES = 8
_WARM_UP_CALLS = 2
_MIN_CALLS = 2


@dataclass(frozen=True)
class Sizes:
    """Sizes of what is measured, and how many CPU threads it may use."""

    depth: int
    width: int
    batch: int
    threads: int
    matmul_size: int = 1


@dataclass(frozen=True)
class AntDimensions:
    """Sizes of the ant's spaces."""

    observation_dim: int = 29
    goal_dim: int = 2
    action_dim: int = 8

    def groups_of_a_unit(self, part: str) -> list[int]:
        """Return a group for every number, as `CompiledTask` does."""
        return list(range(self.goal_dim if part == "achieved_goal" else self.observation_dim))


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


def torch_batches(size: int) -> list[TransitionBatch]:
    """Return `batch_arrays` as the learner takes them."""
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


def jax_side(sizes: Sizes, body: Body) -> dict[str, Work]:
    """Build the published formulation on the CPU, its blocks unrolled or scanned over."""
    import jax  # pyright: ignore[reportMissingImports]

    from benchmarks.jax_learner import Batch, JaxLearner

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    dims = AntDimensions()
    learner = JaxLearner(
        dims.observation_dim, dims.goal_dim, dims.action_dim, depth=sizes.depth, width=sizes.width, body=body
    )
    state = learner.initialise(jax.random.key(0))
    batches = [Batch(**jax.device_put(arrays)) for arrays in batch_arrays(sizes.batch)]
    keys = list(jax.random.split(jax.random.key(1), _BATCHES))
    jax.block_until_ready((state, batches, keys))

    def update(index: int) -> None:
        nonlocal state
        state, _ = jax.block_until_ready(
            learner.update(state, batches[index % _BATCHES], keys[index % _BATCHES])
        )

    return {"update": _in_turn(update)}


def torch_plain_side(sizes: Sizes) -> dict[str, Work]:
    """Build the straightforward formulation in torch."""
    import torch

    from benchmarks.plain_learner import PlainLearner

    set_up_torch(sizes.threads)
    torch.manual_seed(0)
    dims, batches, generator = AntDimensions(), torch_batches(sizes.batch), torch.Generator().manual_seed(1)
    learner = PlainLearner(
        dims.observation_dim, dims.goal_dim, dims.action_dim, depth=sizes.depth, width=sizes.width
    )
    return {"update": _in_turn(lambda index: learner.update(batches[index % _BATCHES], generator))}


def thousandfold_side(
    sizes: Sizes, precision: Literal["float32", "bfloat16"], checkpoint: bool = False
) -> dict[str, Work]:
    """Build the product's learner in the published form, which the other sides have at any depth."""
    import torch

    from thousandfold.stages.train_teacher.learner import ContrastiveLearner
    from thousandfold.stages.train_teacher.settings import LearnerSettings

    set_up_torch(sizes.threads)
    settings = {
        "depth": sizes.depth,
        "width": sizes.width,
        "batch_size": sizes.batch,
        "threads": sizes.threads,
        "precision": precision,
        "checkpoint_activations": checkpoint,
        "actor_goals": "random",
        **PUBLISHED,
    }
    # The learner reads nothing of a task but the three sizes.
    task = cast("CompiledTask", AntDimensions())
    learner = ContrastiveLearner(task, LearnerSettings.model_validate(settings), "cpu")
    batches, generator = torch_batches(sizes.batch), torch.Generator().manual_seed(1)
    return {"update": _in_turn(lambda index: learner.update(batches[index % _BATCHES], generator))}


def matmul_side(sizes: Sizes) -> dict[str, Work]:
    """Build one product of two square matrices by `torch.mm` and, where it is there, by oneDNN."""
    import torch

    from thousandfold.models.dense_products import OneDnnProducts, has_onednn

    set_up_torch(sizes.threads)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(sizes.matmul_size, sizes.matmul_size, generator=generator) for _ in range(2))

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


SIDES: dict[str, Callable[[Sizes], dict[str, Work]]] = {
    "jax-unrolled": lambda sizes: jax_side(sizes, "unrolled"),
    "jax-scan": lambda sizes: jax_side(sizes, "scan"),
    "torch-plain": torch_plain_side,
    "thousandfold": lambda sizes: thousandfold_side(sizes, "float32"),
    "thousandfold-bf16": lambda sizes: thousandfold_side(sizes, "bfloat16"),
    "thousandfold-checkpoint": lambda sizes: thousandfold_side(sizes, "float32", checkpoint=True),
    "matmul": matmul_side,
}

# -- a side's process -----------------------------------------------------------------------------


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


def serve(side: str, sizes: Sizes, requests: TextIO, replies: TextIO) -> None:
    """Build and warm up a side, tell how long that took, then answer each request with one round."""

    def reply(value: object) -> None:
        print(json.dumps(value), file=replies, flush=True)

    start = time.perf_counter()
    work = SIDES[side](sizes)
    build_s = time.perf_counter() - start
    first_call_s = sum(seconds_of(each) for each in work.values())
    for each in work.values():
        for _ in range(_WARM_UP_CALLS):
            each()
    reply({"build_s": build_s, "first_call_s": first_call_s})
    for line in requests:
        round_s = float(line) / len(work)
        reply({name: run_round(each, round_s) for name, each in work.items()})


def start_worker(side: str, sizes: Sizes, give_up_s: float = 600.0) -> Worker:
    """Start a side in a process of its own; it answers first when it is built and warm."""
    return Worker("learner_speed", "--serve", side, json.dumps(asdict(sizes)), give_up_s=give_up_s)


# -- all of them ----------------------------------------------------------------------------------


@dataclass
class Measurement:
    """What was measured of one side.

    Attributes:
        ready: ``build_s``, imports included, and ``first_call_s``, compilation included.
        rounds: each round's median seconds a call, by what was called.
        failure: why the side has no figures, or None.
    """

    ready: dict[str, float] = field(default_factory=dict)
    rounds: dict[str, list[float]] = field(default_factory=dict)
    failure: str | None = None

    def add(self, answer: Callable[[], dict[str, dict[str, float]]]) -> None:
        """Add a round; where the side fails, say why and forget the others."""
        if self.failure is None:
            try:
                for name, seconds in answer().items():
                    self.rounds.setdefault(name, []).append(seconds["median_s"])
            except SideFailed as failure:
                self.failure, self.rounds = str(failure), {}


def measure(
    sizes: Sizes, sides: Sequence[str], *, rounds: int, round_s: float, give_up_s: float
) -> dict[str, Measurement]:
    """Build every side and the matrix product one after the other, then measure them in turn."""
    measured = {side: Measurement() for side in [*sides, MATMUL]}
    asks = {}
    with contextlib.ExitStack() as stack:
        for side, measurement in measured.items():
            if side.endswith("bf16") and (refusal := bfloat16_refusal()):
                measurement.failure = refusal
                continue
            worker = start_worker(side, sizes, give_up_s)
            stack.callback(worker.close)
            try:
                measurement.ready = worker.answer()
                asks[side] = partial(measurement.add, partial(worker.ask, round_s))
            except SideFailed as failure:
                measurement.failure = str(failure)
        in_turn(asks, rounds)
    return measured


# -- figures --------------------------------------------------------------------------------------


def plain_update_gflop(depth: int, width: int, batch: int) -> float:
    """Return 10⁹ floating-point operations of the products in the blocks, nothing shared."""
    return PASSES * 2.0 * batch * width**2 * depth / 1e9


def side_figures(
    side: str, measured: Mapping[str, Measurement], *, gflop: float, product_gflop: float
) -> dict[str, Any]:
    """Return the figures of one side: seconds, rates, share of the product's rate, speed-up over JAX.

    Args:
        side: which of those measured.
        measured: every side and the matrix product.
        gflop, product_gflop: operations of a plain update and of a product.
    """
    own, matmul = measured[side], measured[MATMUL]
    if own.failure is not None:
        return own.ready | {"not_measured": own.failure}
    seconds = own.rounds["update"]
    figures: dict[str, Any] = {
        **own.ready,
        "seconds_per_update": spread(seconds),
        "rounds": seconds,
        "gflops": spread([gflop / each for each in seconds]),
    }
    if matmul.failure is None:
        figures["share_of_matmul"] = {
            precision: ratios([gflop / product_gflop * s for s in products], seconds)
            for precision, products in matmul.rounds.items()
        }
    figures["speedup_over"] = {
        name: ratios(measured[name].rounds["update"], seconds)
        for name in BASELINES
        if name != side and name in measured and measured[name].failure is None
    }
    return figures


def matmul_figures(measurement: Measurement, product_gflop: float) -> dict[str, Any]:
    """Return the rate of the matrix product in each precision, by each library."""
    if measurement.failure is not None:
        return {"not_measured": measurement.failure}
    return {
        name: {"gflops": spread([product_gflop / each for each in seconds]), "rounds": seconds}
        for name, seconds in measurement.rounds.items()
    }


# -- what the user sees ---------------------------------------------------------------------------


def show(key: str, result: Cell) -> str:
    """Return the table of one cell, a row a side."""
    heads = ["side", "build s", "first s", "ms/update", "min – max", "GFLOP/s", "of matmul"]
    rows = [[side, *_side_cells(side, figures)] for side, figures in result["sides"].items()]
    for product in PRODUCTS:
        if rate := result["matmul"].get(product):
            rows.append([f"matmul {product}", "", "", "", "", f"{rate['gflops']['median']:.1f}", "", "", ""])
    title = f"{key}, {result['rounds']} rounds in turn, {result['threads']} threads"
    return markdown_table([*heads, *(f"× {name}" for name in BASELINES)], rows, title)


def _side_cells(side: str, figures: Mapping[str, Any]) -> list[str]:
    ready = [f"{figures[name]:.1f}" if name in figures else "" for name in ("build_s", "first_call_s")]
    if "not_measured" in figures:
        return [*ready, figures["not_measured"], "", "", "", "", ""]
    seconds, share = figures["seconds_per_update"], figures.get("share_of_matmul")
    precision = "bfloat16" if side.endswith("bf16") else "float32"
    cells = [
        f"{seconds['median'] * 1e3:.2f}",
        f"{seconds['min'] * 1e3:.2f} – {seconds['max'] * 1e3:.2f}",
        f"{figures['gflops']['median']:.1f}",
        f"{share[precision]['median']:.1%}" if share and precision in share else "",
    ]
    speedup = figures["speedup_over"]
    return ready + cells + [f"{speedup[name]['median']:.2f}" if name in speedup else "" for name in BASELINES]


def depth_option(said: str) -> int:
    """Return a depth, whole blocks of 4 layers, from the command line."""
    if int(said) < 4 or int(said) % 4:
        raise argparse.ArgumentTypeError("must be a multiple of 4")
    return int(said)


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the checked options; leave with a message where one makes no sense."""
    parser = StudyParser(__doc__, "learner_speed")
    parser.set_defaults(again=True)
    parser.add_argument("--depth", type=depth_option, default=64)
    parser.number("--width", 256)
    parser.number("--batch", 256)
    parser.rounds(7, 1.5)
    parser.add_argument("--sides", default=",".join(DEFAULT_SIDES), help="default: %(default)s")
    parser.number("--threads", usable_cpus(), "default: every CPU")
    parser.number("--matmul-size", 2048, "rows of the square matrices")
    parser.number("--give-up-s", 1800.0, "wait no longer for one answer")
    parser.add_argument("--serve", nargs=2, metavar=("SIDE", "SIZES"), help="be a side")
    options = parser.parse(arguments)
    options.sides = options.sides.split(",")
    known = [side for side in SIDES if side != MATMUL]
    if unknown := [side for side in options.sides if side not in known]:
        parser.error(f"no such side: {', '.join(unknown)}; there are {', '.join(known)}")
    running = not (options.serve or options.table)
    if running and set(BASELINES) & set(options.sides) and not importlib.util.find_spec("flax"):
        parser.error("the JAX sides need what `make benchmark-setup` installs; or choose other --sides")
    if not 1 <= options.threads <= usable_cpus():
        parser.error(f"--threads must lie in 1–{usable_cpus()}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one cell and print its table; or be one of the sides."""
    options = parse_options(arguments)
    if options.serve:
        sizes = Sizes(**json.loads(options.serve[1]))
        # What libraries print must not get between the replies.
        with os.fdopen(os.dup(1), "w") as replies:
            os.dup2(2, 1)
            confine(sizes.threads)
            serve(options.serve[0], sizes, sys.stdin, replies)
        return
    sizes = Sizes(options.depth, options.width, options.batch, options.threads, options.matmul_size)
    gflop = plain_update_gflop(options.depth, options.width, options.batch)
    product_gflop = 2.0 * options.matmul_size**3 / 1e9

    def measured() -> Cell:
        limits = {"rounds": options.rounds, "round_s": options.round_s, "give_up_s": options.give_up_s}
        found = measure(sizes, options.sides, **limits)
        return {
            **asdict(sizes),
            **limits,
            "actor_goals": "random",
            "plain_update_gflop": gflop,
            "sides": {
                side: side_figures(side, found, gflop=gflop, product_gflop=product_gflop)
                for side in options.sides
            },
            "matmul": matmul_figures(found[MATMUL], product_gflop),
        }

    # Processors are not compared with one another: each kind keeps its own cells.
    key = f"D{options.depth} W{options.width} B{options.batch}, {describe_host()['cpu']}"
    run_study(options, [(key, measured)], book=CellBook(options.output, within=None), line=show)


if __name__ == "__main__":
    main()
