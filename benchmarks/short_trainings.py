"""What up to twenty minutes on one core teach: short trainings beside a policy that acts at random.

    python -m benchmarks.short_trainings --tasks arm_reach reacher --seeds 0 1
    python -m benchmarks.short_trainings --figure          draw what is recorded; run nothing

A cell is a task with a seed: a `pipeline train-teacher` in a workspace of its own, then 512 fresh episodes of
the teacher and, from the same starts to the same goals, of uniform random actions. A cell that was cut off
goes on from its checkpoint; a recorded one is not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.ground.files import write_json_atomic
from thousandfold.pipeline.artifacts import Artifact, Workspace, installed_versions
from thousandfold.pipeline.checkpoint import CheckpointFolder
from thousandfold.pipeline.runtime import describe_host, seed_sequence
from thousandfold.stages.episodes import Episodes, Policy, run_episodes
from thousandfold.stages.networks import load_actor, torch_policy

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "benchmarks" / "results" / "short_trainings.json"
PICTURE = ROOT / "docs" / "pictures" / "short_trainings.png"
EPISODES = 512
_STREAM, _RANDOM_STREAM = 71, 72
_CURVE = ("env_steps", "updates", "elapsed_s", "success", "final_distance", "info_nce", "entropy")


@dataclass(frozen=True)
class Training:
    """A short training.

    Attributes:
        task: a built-in task's name, or a task file below the repository's root.
        settings: what the trainer is told beside `SHARED`.
    """

    task: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """What finds the task from any folder."""
        return str(ROOT / self.task) if self.task.endswith((".yaml", ".yml")) else self.task


SHARED: Mapping[str, Any] = {
    "threads": 1,
    "depth": 16,
    "width": 128,
    "num_worlds": 128,
    "unroll_steps": 100,
    "updates_per_unroll": 48,
    "batch_size": 256,
    "actor_goals": "random",
    "initial_alpha": 0.37,
    "average_decay": 0.98,
    "evaluate_every": 8,
    "checkpoint_every": 4,
    "evaluation_episodes": 128,
}
TRAININGS: Mapping[str, Training] = {
    "arm_reach": Training("arm_reach", settings={"env_steps": 1_500_000}),
    "reacher": Training("reacher", settings={"env_steps": 1_500_000}),
    # A single action moves the ant's energies little: the others' first alpha leaves it all to entropy.
    "ant, 3 m": Training(
        "ant",
        settings={
            "env_steps": 6_000_000,
            "training_distribution": "near",
            "evaluation_distribution": "near",
            "episode_steps": 300,
            "depth": 8,
            "updates_per_unroll": 64,
            "actor_goals": "hindsight",
            "initial_alpha": 0.01,
            "alpha_learning_rate": 1e-3,
        },
    ),
    "submarine": Training("examples/submarine/submarine.yaml", settings={"env_steps": 2_000_000, "depth": 8}),
}


def arguments(training: Training, seed: int) -> list[str]:
    """Return the trainer's arguments."""
    settings = {**SHARED, **training.settings}
    pairs = [f"--set={name}={json.dumps(value)}" for name, value in settings.items()]
    return ["train-teacher", "--task", training.reference, "--seed", str(seed), *pairs]


def train(training: Training, seed: int, workspace: Path) -> Artifact:
    """Return the cell's teacher: the finished one, the unfinished one gone on with, or a new one."""
    if (teacher := _finished(workspace)) is not None:
        return teacher
    begun = Workspace.resolve(str(workspace)).artifacts("teacher")
    resumable = any(CheckpointFolder(artifact.file("checkpoint")).exists for artifact in begun)
    command = ["train-teacher", "--resume"] if resumable else arguments(training, seed)
    process = [sys.executable, "-m", "thousandfold.pipeline", "--workspace", str(workspace), *command]
    subprocess.run(process, check=True, cwd=ROOT)
    teacher = _finished(workspace)
    assert teacher is not None
    return teacher


def _finished(workspace: Path) -> Artifact | None:
    artifacts = Workspace.resolve(str(workspace)).artifacts("teacher")
    return next((found for found in artifacts if found.manifest.status == "completed"), None)


def random_policy(task: CompiledTask, seed: int) -> Policy:
    """Return the policy that draws every action uniformly from [−1, 1]."""
    rng = np.random.Generator(np.random.PCG64(seed_sequence(seed, _RANDOM_STREAM)))

    def policy(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        return rng.uniform(-1, 1, (len(observation), task.action_dim)).astype(np.float32)

    return policy


def run_cell(training: Training, seed: int, workspace: Path) -> dict[str, Any]:
    """Train what is missing of a cell, evaluate both policies and return the cell's record."""
    teacher = train(training, seed, workspace)
    loaded = load_actor(teacher)  # with the episodes that it was trained for
    policies = {"trained": torch_policy(loaded.actor), "random": random_policy(loaded.task, seed)}
    outcomes = {name: _evaluate(loaded.task, policy, seed).summary() for name, policy in policies.items()}
    history = json.loads(teacher.file("history.json").read_text(encoding="utf-8"))["history"]
    apart = (
        outcomes["trained"]["final_distance_interval"][1] < outcomes["random"]["final_distance_interval"][0]
    )
    return {
        **outcomes,
        "intervals_disjoint": apart,
        "minutes": teacher.manifest.results["elapsed_s"] / 60,
        "env_steps": teacher.manifest.results["env_steps"],
        "settings": teacher.manifest.settings | {"task": training.task},  # not where it lies here
        "curve": [{name: entry[name] for name in _CURVE} for entry in history],
    }


def _evaluate(task: CompiledTask, policy: Policy, seed: int) -> Episodes:
    return run_episodes(task, policy, episodes=EPISODES, seed=seed_sequence(seed, _STREAM))


def describe(name: str, cell: Mapping[str, Any]) -> str:
    """Return a line that says what a cell reached."""

    def distance(policy: str) -> str:
        low, high = cell[policy]["final_distance_interval"]
        return f"{cell[policy]['final_distance']:.3f} [{low:.3f}, {high:.3f}]"

    low, high = cell["trained"]["success_interval"]
    return (
        f"{name}: final distance {distance('trained')}, at random {distance('random')}; success "
        f"{cell['trained']['success']:.3f} [{low:.3f}, {high:.3f}], random {cell['random']['success']:.3f}; "
        f"{cell['minutes']:.1f} min"
    )


def draw(cells: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw success and final distance against minutes, a column a task, with the random policy's level."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(name.rsplit(" seed ", 1)[0] for name in cells))
    figure = Figure(figsize=(3.2 * len(tasks), 4.8), dpi=140, layout="constrained")
    axes = figure.subplots(2, len(tasks), squeeze=False, sharex="col")
    for column, task in enumerate(tasks):
        own = [cell for name, cell in cells.items() if name.rsplit(" seed ", 1)[0] == task]
        for row, metric in enumerate(("success", "final_distance")):
            panel = axes[row, column]
            for cell in own:
                minutes = [entry["elapsed_s"] / 60 for entry in cell["curve"]]
                panel.plot(
                    minutes, [entry[metric] for entry in cell["curve"]], color="#0072B2", linewidth=1.3
                )
            level = float(np.mean([cell["random"][metric] for cell in own]))
            panel.axhline(level, color="#D55E00", linestyle="--", linewidth=1.1)
            panel.set_ylim(bottom=0.0, top=1.02 if metric == "success" else None)
            panel.grid(color="#E3E6EA", linewidth=0.6)
            for side in ("top", "right"):
                panel.spines[side].set_visible(False)
        axes[0, column].set_title(task, fontsize=10)
        axes[1, column].set_xlabel("minutes, one core", fontsize=9)
    axes[0, 0].set_ylabel("success", fontsize=9)
    axes[1, 0].set_ylabel("final distance (m)", fontsize=9)
    figure.suptitle(
        "Blue: the teacher as it trains, a line a seed. Dashed: uniform random actions", fontsize=9
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    """Run what is missing, or draw what is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=TRAININGS, default=list(TRAININGS), help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workspace-root", type=Path, default=ROOT / "runs" / "short_trainings")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--figure", action="store_true", help="draw what is recorded; run nothing")
    options = parser.parse_args()
    recorded = (
        json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {"cells": {}}
    )
    if options.figure:
        draw(recorded["cells"], PICTURE)
        print(f"wrote {PICTURE}")
        return
    for seed in options.seeds:
        for task in options.tasks:
            name = f"{task} seed {seed}"
            if name not in recorded["cells"]:
                workspace = options.workspace_root / name.replace(" ", "-")
                recorded["cells"][name] = run_cell(TRAININGS[task], seed, workspace)
                facts = {"host": describe_host(), "versions": installed_versions()}
                write_json_atomic(options.output, facts | {"cells": recorded["cells"]})
            print(describe(name, recorded["cells"][name]), flush=True)


if __name__ == "__main__":
    main()
