"""A teacher that reaches goals, its dataset, and rows of a frontier, in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.stages.tiny_runs import make_context
from thousandfold.envs.registry import compile_task
from thousandfold.models.goal_actor import GoalActor
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import seed_sequence
from thousandfold.stages.dataset import generate_dataset
from thousandfold.stages.dataset.generate_dataset import GenerateDatasetSettings
from thousandfold.stages.episodes import run_episodes
from thousandfold.stages.networks import NETWORK_FILE, save_network, torch_policy

TASK_NAME = "point_u_maze"
CHANGES = {"evaluation": "training", "episode_steps": 40}
"""Goals anywhere, some of them in sight: a straight line reaches about half of them."""
SHAPE = NetworkShape(4, 16)

QUICK = (
    "--preset=smoke",
    "--set=distill.updates=40",
    "--set=distill.evaluate_every=40",
    "--set=distill.learning_rate=1e-2",
    "--set=distill.final_episodes=32",
    "--set=distill.max_final_episodes=32",
    "--set=export_onnx.closed_loop_episodes=8",
    "--set=export_onnx.gate_states=64",
    "--set=benchmark.warmup_s=0.01",
    "--set=benchmark.back_to_back_s=0.05",
    "--set=benchmark.paced_s=0.1",
)
"""Options of a frontier whose students take a fraction of a second."""


def straight_actor() -> GoalActor:
    """Return an actor that was fitted to 2 · (goal − position) − velocity."""
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        actor = GoalActor(4, 2, 2, SHAPE)
        optimizer = torch.optim.Adam(actor.parameters(), lr=1e-2)
        for _ in range(200):
            position, goal = 0.5 + 3 * torch.rand(256, 2), 0.5 + 3 * torch.rand(256, 2)
            velocity = torch.randn(256, 2)
            found = actor(torch.cat([position, velocity], 1), goal)
            error = found.mean - (2 * (goal - position) - velocity)
            optimizer.zero_grad()
            (error.square().mean() + (found.log_std + 1.0).square().mean()).backward()
            optimizer.step()
    return actor


def make_teacher(root: Path, **results: Any) -> Artifact:
    """Return a teacher's artifact in a workspace, some of whose results may be false."""
    workspace, task, actor = make_context(root).workspace, compile_task(TASK_NAME, CHANGES), straight_actor()
    outcome = run_episodes(task, torch_policy(actor), episodes=32, seed=seed_sequence(3, 5))
    artifact = workspace.create("teacher", task=TASK_NAME, settings={}, task_changes=CHANGES)
    tensors = {f"actor.{name}": value for name, value in actor.state_dict().items()}
    save_network(artifact.file(NETWORK_FILE), tensors, kind="teacher", task=task, shape=SHAPE)
    artifact.complete(outcome.summary() | {"evaluation_seed": [3, 5]} | results)
    return artifact


def make_dataset(root: Path, teacher: Artifact) -> Artifact:
    """Return a dataset of the teacher."""
    settings = GenerateDatasetSettings(episodes=24, num_worlds=24, device="cpu", threads=1)
    return generate_dataset.run(settings, make_context(root), teacher)


def row(name: str, retention: float | None, p99_us: float, **changes: Any) -> dict[str, Any]:
    """Return a row of a frontier; its interval is ± 0.02, and its parameters grow with depth · width²."""
    depth, width = (int(part) for part in name.split("x"))
    interval = None if retention is None else [retention - 0.02, retention + 0.02]
    success = 0.8 * (retention or 0.0)
    complete = {
        "name": name,
        "depth": depth,
        "width": width,
        "kind": "residual" if depth % 4 == 0 else "plain",
        "parameters": depth * width**2,
        "success": success,
        "success_interval": [success - 0.01, success + 0.01],
        "retention": retention,
        "retention_interval": interval,
        "p50_us": 0.8 * p99_us,
        "p99_us": p99_us,
        "on_front": True,
    }
    return complete | changes


def table(rows: list[dict[str, Any]], **teacher: Any) -> dict[str, Any]:
    """Return what `frontier.json` holds of these rows."""
    beside = {"name": "teacher-1", "depth": 64, "width": 256, "success": 0.8, "parameters": 9_000_000}
    beside |= {"p50_us": 700.0, "p99_us": 900.0}
    return {
        "task": TASK_NAME,
        "teacher": beside | teacher,
        "dataset": "dataset-1",
        "rows": rows,
        "failed": [],
    }
