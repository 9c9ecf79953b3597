"""What keeps a deep actor and critic learning: train each variant for a few hundred updates and look inside.

    python -m benchmarks.depth_stability --depths 4 64 256 1024 --variants published scaled …

For each depth and variant: at initialisation the actor's pre-tanh mean, gradient norm, the stream's size and
how alike different inputs have become, block by block; then training on the point U-maze with InfoNCE, its
accuracy, gradient norms, the share of saturated actions, and closed-loop success with a 95 % interval. Cells
are kept as they come; a study that was cut off goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thousandfold.envs.registry import compile_task
from thousandfold.ground.files import write_json_atomic
from thousandfold.models.block_stack import LAYERS_PER_BLOCK
from thousandfold.models.residual_mlp import ResidualMLP
from thousandfold.pipeline.artifacts import installed_versions
from thousandfold.pipeline.runtime import describe_host, set_up_torch
from thousandfold.stages.episodes import run_episodes
from thousandfold.stages.networks import torch_policy
from thousandfold.stages.train_teacher.training import TeacherTraining, TrainTeacherSettings

RESULT = Path(__file__).parent / "results" / "depth_stability.json"
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
SCALED = {"residual_scale": "inverse_sqrt_blocks"}
VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "clipped": {"max_gradient_norm": 10.0},
    "warm_up": {"max_gradient_norm": 10.0, "warmup_updates": 200},
    "bounded_mean": {"max_gradient_norm": 10.0, "bounded_mean": 2.0},
    "final_norm": {"max_gradient_norm": 10.0, "final_norm": True},
    "scaled": {"max_gradient_norm": 10.0, **SCALED},
    "scaled_clip_1": {"max_gradient_norm": 1.0, **SCALED},
    "scaled_final_norm": {"max_gradient_norm": 10.0, "final_norm": True, **SCALED},
    "depth_mup": {"max_gradient_norm": 10.0, "rate_by_sqrt_blocks": True, **SCALED},
    "depth_mup_final_norm": {
        "max_gradient_norm": 10.0,
        "final_norm": True,
        "rate_by_sqrt_blocks": True,
        **SCALED,
    },
    "centred_final_norm": {"max_gradient_norm": 10.0, "centred_kernels": True, "final_norm": True},
    "centred_scaled": {"max_gradient_norm": 10.0, "centred_kernels": True, **SCALED},
    "learned_from_zero": {"max_gradient_norm": 10.0, "residual_scale": "learned_from_zero"},
    "learned_from_zero_final_norm": {
        "max_gradient_norm": 10.0,
        "final_norm": True,
        "residual_scale": "learned_from_zero",
    },
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


def run_cell(depth: int, variant: str, seed: int, updates: int) -> dict[str, Any]:
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


def main() -> None:
    """Run the cells that are missing and print a line for each."""
    parser = argparse.ArgumentParser(description="What keeps a deep learner learning.")
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 64, 256, 1024])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=384)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    set_up_torch(1)
    result = (
        json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {"cells": {}}
    )
    for depth in options.depths:
        for variant in options.variants:
            key = f"D{depth} {variant} seed {options.seed} updates {options.updates}"
            if key not in result["cells"]:
                result["cells"][key] = run_cell(depth, variant, options.seed, options.updates)
                result |= {"host": describe_host(), "versions": installed_versions(), "base": BASE}
                write_json_atomic(options.output, result)
            print(describe_cell(key, result["cells"][key]), flush=True)


def describe_cell(key: str, cell: dict[str, Any]) -> str:
    """Return one line for a cell."""
    start, end, inside = cell["curve"][0], cell["curve"][-1], cell["inside"]
    return (
        f"{key}: pre-tanh {inside['start']['pre_tanh']:.2f} -> {inside['end']['pre_tanh']:.2f}, "
        f"actor gradient {start['actor_gradient_norm']:.3g} -> {end['actor_gradient_norm']:.3g}, "
        f"InfoNCE {start['info_nce']:.2f} -> {end['info_nce']:.2f}, "
        f"accuracy {end['categorical_accuracy']:.3f}, "
        f"success {cell['evaluation']['success']:.2f}, {cell['elapsed_s']:.0f} s"
    )


if __name__ == "__main__":
    main()
