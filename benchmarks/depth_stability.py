"""What keeps a deep actor and critic learning: train each variant for a few hundred updates and look inside.

    python -m benchmarks.depth_stability --depths 4 64 256 1024 --variants published scaled …
    python -m benchmarks.depth_stability --figure       print and draw what is recorded; run nothing

For each depth and variant: at initialisation the actor's pre-tanh mean, gradient norm, the stream's size and
how alike different inputs have become, block by block; then training on the point U-maze with InfoNCE, its
accuracy, gradient norms, the share of saturated actions, and closed-loop success with a 95 % interval.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.harness import PICTURES, Cell, CellBook, StudyParser, markdown_table, run_study
from thousandfold.envs.registry import compile_task
from thousandfold.ground.picture_style import house_figure
from thousandfold.models.block_stack import LAYERS_PER_BLOCK
from thousandfold.models.residual_mlp import ResidualMLP
from thousandfold.pipeline.runtime import set_up_torch
from thousandfold.stages.episodes import run_episodes
from thousandfold.stages.networks import torch_policy
from thousandfold.stages.train_teacher.settings import TrainTeacherSettings
from thousandfold.stages.train_teacher.training import TeacherTraining

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = PICTURES / "depth_stability.png"
DEFAULT = "learned_from_zero_final_norm"
_DEPTH_COLOURS = {4: "#c6dbef", 16: "#9ecae1", 64: "#6baed6", 256: "#2171b5", 1024: "#08306b"}
_VARIANT_COLOURS = ("#d1495b", "#edae49", "#66a182", "#8d96a3", "#2e4057", "#00798c", "#b07aa1", "#9c755f")
BASE: dict[str, Any] = {
    "task": "point_u_maze",
    "width": 64,
    "batch_size": 256,
    "num_worlds": 64,
    "unroll_steps": 100,
    "updates_per_unroll": 48,
    "min_rows_per_world": 100,
    "initial_alpha": 0.37,
    "env_steps": 10**9,
    "threads": 1,
    # The published form at every depth; a variant says what it changes.
    "residual_scale": "none",
    "final_norm": False,
    "max_gradient_norm": None,
}
_CLIPPED = {"max_gradient_norm": 10.0}
_SCALED = {"residual_scale": "inverse_sqrt_blocks"}
_FINAL = {"final_norm": True}
_FROM_ZERO = {"residual_scale": "learned_from_zero"}
_MUP = {"rate_by_sqrt_blocks": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "clipped": _CLIPPED,
    "warm_up": {**_CLIPPED, "warmup_updates": 200},
    "bounded_mean": {**_CLIPPED, "bounded_mean": 2.0},
    "final_norm": {**_CLIPPED, **_FINAL},
    "scaled": {**_CLIPPED, **_SCALED},
    "scaled_clip_1": {"max_gradient_norm": 1.0, **_SCALED},
    "scaled_final_norm": {**_CLIPPED, **_FINAL, **_SCALED},
    "depth_mup": {**_CLIPPED, **_MUP, **_SCALED},
    "depth_mup_final_norm": {**_CLIPPED, **_FINAL, **_MUP, **_SCALED},
    "centred_final_norm": {**_CLIPPED, "centred_kernels": True, **_FINAL},
    "centred_scaled": {**_CLIPPED, "centred_kernels": True, **_SCALED},
    "learned_from_zero": {**_CLIPPED, **_FROM_ZERO},
    DEFAULT: {**_CLIPPED, **_FINAL, **_FROM_ZERO},
}


class BoundedHead(nn.Module):
    """A head whose output is bent into (−limit, limit): tanh after it cannot saturate to 1."""

    def __init__(self, head: nn.Module, limit: float) -> None:
        super().__init__()
        self.head, self.limit = head, limit

    def forward(self, hidden: Tensor) -> Tensor:
        """Return limit · tanh(head(hidden) / limit)."""
        return self.limit * torch.tanh(self.head(hidden) / self.limit)


def make_training(depth: int, variant: str, seed: int) -> TeacherTraining:
    """Return an untrained teacher of one variant."""
    changes = dict(VARIANTS[variant])
    limit = changes.pop("bounded_mean", None)
    if changes.pop("rate_by_sqrt_blocks", False):
        rate = 3e-4 / math.sqrt(depth // LAYERS_PER_BLOCK)
        changes |= {"actor_learning_rate": rate, "critic_learning_rate": rate}
    settings = TrainTeacherSettings(**(BASE | changes), depth=depth, seed=seed)
    training = TeacherTraining(settings, compile_task(settings.task), "cpu")
    if limit is not None:
        for actor in (training.learner.actor, training.learner.averaged_actor):
            actor.mean_head = BoundedHead(actor.mean_head, limit)  # pyright: ignore[reportAttributeAccessIssue]
    return training


@torch.no_grad()
def look_inside(training: TeacherTraining) -> dict[str, Any]:
    """Return the actor's pre-tanh mean, and the stream of each network block by block, on replayed rows."""
    batch = training.buffer.sample(256, 0.99, torch.Generator().manual_seed(0))
    learner = training.learner
    mean = learner.actor(batch.observation, batch.goal.roll(1, 0)).mean
    inputs = {
        "actor": (learner.actor.trunk, torch.cat([batch.observation, batch.goal.roll(1, 0)], -1)),
        "state_action_encoder": (
            learner.critic.state_action_encoder.trunk,
            torch.cat([batch.observation, batch.action], -1),
        ),
        "goal_encoder": (learner.critic.goal_encoder.trunk, batch.goal),
    }
    streams = {name: describe_stream(trunk, rows) for name, (trunk, rows) in inputs.items()}
    return {
        "pre_tanh": float(mean.abs().mean()),
        "saturated": float((mean.tanh().abs() > 0.99).float().mean()),
    } | {"streams": streams}


def describe_stream(trunk: ResidualMLP, inputs: Tensor) -> dict[str, Any]:
    """Return the stream's root mean square and the mean cosine of different inputs, along the blocks."""
    states = trunk.body.stream(trunk.stem(inputs))  # pyright: ignore[reportCallIssue]
    # 17 of them draw the curve of any depth.
    chosen = sorted({round(i * (len(states) - 1) / 16) for i in range(17)})
    sizes, alike = [], []
    for state in (states[index] for index in chosen):
        unit = nn.functional.normalize(state, dim=1)
        sizes.append(float(state.square().mean().sqrt()))
        alike.append(float((unit * unit.roll(1, 0)).sum(1).mean()))
    return {"block": chosen, "rms": sizes, "cosine": alike}


def gradient_by_block(training: TeacherTraining) -> dict[str, list[float]]:
    """Return the norm of the last update's gradient in each block's kernels, for each network."""
    norms = training.learner.gradient_by_block()
    return {name: [float(f"{norm:.3e}") for norm in norms[name].tolist()] for name in norms}


def run_cell(depth: int, variant: str, seed: int, updates: int) -> Cell:
    """Train one variant at one depth and return what was seen."""
    started = time.perf_counter()
    training = make_training(depth, variant, seed)
    curve, inside, gradients = [], {}, {}
    while training.progress.updates < updates:
        training.collect()
        for batch in training.relabel():
            if training.progress.updates == 0:
                inside["start"] = look_inside(training)
            training.update(batch)
            if training.progress.updates == 1:
                gradients["start"] = gradient_by_block(training)
                first = {name: float(value) for name, value in training._metric_sums.items()}
                curve.append({"updates": 1} | first)
        curve.append({"updates": training.progress.updates} | training.take_metrics())
        if not all(math.isfinite(value) for value in curve[-1].values()):
            break
    episodes = run_episodes(
        training.task, torch_policy(training.learner.actor, "cpu"), episodes=256, seed=1000 + seed
    )
    inside["end"], gradients["end"] = look_inside(training), gradient_by_block(training)
    return {
        "depth": depth,
        "variant": variant,
        "seed": seed,
        "settings": VARIANTS[variant],
        "updates": training.progress.updates,
        "evaluation": episodes.summary(),
        "curve": curve,
        "inside": inside,
        "gradient_by_block": gradients,
        "elapsed_s": time.perf_counter() - started,
    }


def describe_cell(key: str, cell: Cell) -> str:
    """Return one line for a cell."""
    start, end, inside = cell["curve"][0], cell["curve"][-1], cell["inside"]
    return (
        f"{key}: pre-tanh {inside['start']['pre_tanh']:.2f} -> {inside['end']['pre_tanh']:.2f}, "
        f"actor gradient {start['actor_gradient_norm']:.3g} -> {end['actor_gradient_norm']:.3g}, "
        f"InfoNCE {start['info_nce']:.2f} -> {end['info_nce']:.2f}, "
        f"accuracy {end['categorical_accuracy']:.3f}, "
        f"success {cell['evaluation']['success']:.2f}, {cell['elapsed_s']:.0f} s"
    )


def table(cells: Mapping[str, Cell]) -> str:
    """Return a row a cell, by variant and depth: after a few hundred updates none reaches goals yet."""
    rows = []
    for cell in sorted(cells.values(), key=lambda cell: (cell["variant"], cell["depth"])):
        start, first, last = cell["inside"]["start"], cell["curve"][0], cell["curve"][-1]
        rows.append(
            [
                cell["variant"],
                cell["depth"],
                f"{start['pre_tanh']:.2f} ({start['saturated']:.0%} saturated)",
                f"{first['actor_gradient_norm']:.3g} → {last['actor_gradient_norm']:.3g}",
                f"{start['streams']['actor']['cosine'][-1]:.4f}",
                f"{first['info_nce']:.2f} → {last['info_nce']:.2f}",
                f"{last['categorical_accuracy']:.3f}",
            ]
        )
    heads = ["variant", "depth", "pre-tanh at the start", "actor's gradient, first → last", "inputs alike"]
    return markdown_table([*heads, "InfoNCE", "accuracy"], rows)


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Draw how alike inputs become along the published network, and how each variant learns when deepest."""
    title = "Forms of a deep teacher: before and after the first updates"
    facts = (BASE["task"], f"width {BASE['width']}", f"seed {cells[0]['seed']}")
    with house_figure(path, 10.0, 4.6, title, facts) as figure:
        left, right = figure.subplots(1, 2)
        _draw_streams(left, sorted(cells, key=lambda cell: cell["depth"]))
        _draw_curves(right, cells)


def _draw_streams(axes: Axes, cells: Sequence[Cell]) -> None:
    """Draw how alike two inputs' streams are from block to block, before any update."""
    for (variant, style), cell in itertools.product((("published", "-"), (DEFAULT, ":")), cells):
        if cell["variant"] == variant and (colour := _DEPTH_COLOURS.get(cell["depth"])):
            stream = cell["inside"]["start"]["streams"]["actor"]
            along = [block / stream["block"][-1] for block in stream["block"]]
            apart = [max(1 - cosine, 1e-6) for cosine in stream["cosine"]]
            name = f"{cell['depth']} layers" if style == "-" else None
            axes.plot(along, apart, linestyle=style, color=colour, label=name)
    axes.set(yscale="log", xlabel="place in the network (1: last block)")
    axes.set_ylabel("1 − cosine of two inputs' streams")
    axes.set_title("At the start: published (lines), chosen (dots)")
    axes.legend(fontsize=8)


def _draw_curves(axes: Axes, cells: Sequence[Cell]) -> None:
    """Draw the InfoNCE of every variant over the updates, at the largest depth."""
    deepest = max(cell["depth"] for cell in cells)
    shown = [cell for cell in cells if cell["depth"] == deepest]
    shown.sort(key=lambda cell: cell["curve"][-1]["info_nce"])
    for index, cell in enumerate(shown):
        chosen = cell["variant"] == DEFAULT
        axes.plot(
            [entry["updates"] for entry in cell["curve"]],
            [entry["info_nce"] for entry in cell["curve"]],
            color="#08306b" if chosen else _VARIANT_COLOURS[index % len(_VARIANT_COLOURS)],
            linewidth=2.6 if chosen else 1.3,
            linestyle="-" if index < len(_VARIANT_COLOURS) else "--",
            label=cell["variant"].replace("_", " "),
        )
    axes.set(xlabel="updates", ylabel="InfoNCE (nats)")
    axes.set_title(f"{deepest} layers, best last value first")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cells that are missing, and print or draw what is there."""
    parser = StudyParser(__doc__, "depth_stability")
    parser.several("--depths", [4, 64, 256, 1024], type=int)
    parser.several("--variants", list(VARIANTS), choices=VARIANTS)
    parser.number("--seed", 0)
    parser.number("--updates", 384)
    parser.figure(PICTURE)
    options = parser.parse(arguments)
    set_up_torch(1)
    book = CellBook(options.output, {"base": BASE})
    seed, updates = options.seed, options.updates
    cells = (
        (
            f"D{depth} {variant} seed {seed} updates {updates}",
            partial(run_cell, depth, variant, seed, updates),
        )
        for depth in options.depths
        for variant in options.variants
    )
    run_study(options, cells, table, book=book, line=describe_cell)
    if options.figure:
        draw(list(book.cells.values()), PICTURE)


if __name__ == "__main__":
    main()
