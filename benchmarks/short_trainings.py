"""What up to twenty minutes on one core teach: short trainings beside a policy that acts at random.

    python -m benchmarks.short_trainings --tasks arm_reach reacher --seeds 0 1
    python -m benchmarks.short_trainings --figure          print and draw what is recorded

A cell is a task with a seed: a `pipeline train-teacher` in a workspace of its own, then 512 fresh episodes of
the teacher and, from the same starts to the same goals, of uniform random actions. A cell that was cut off
goes on from its checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import (
    PICTURES,
    ROOT,
    Cell,
    CellBook,
    StudyParser,
    read_history,
    run_study,
    train_teacher,
    with_interval,
)
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.ground.picture_style import PALETTE, house_figure
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import seed_sequence
from thousandfold.stages.episodes import Policy, run_episodes
from thousandfold.stages.networks import load_actor, torch_policy

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


def told(training: Training, seed: int) -> list[str]:
    """Return the trainer's arguments."""
    settings = {**SHARED, **training.settings}
    pairs = [f"--set={name}={json.dumps(value)}" for name, value in settings.items()]
    return ["--task", training.reference, "--seed", str(seed), *pairs]


def train(training: Training, seed: int, workspace: Path) -> Artifact:
    """Return the cell's teacher: the finished one, the unfinished one gone on with, or a new one."""
    return train_teacher(workspace, *told(training, seed))


def random_policy(task: CompiledTask, seed: int) -> Policy:
    """Return the policy that draws every action uniformly from [−1, 1]."""
    rng = np.random.Generator(np.random.PCG64(seed_sequence(seed, _RANDOM_STREAM)))

    def policy(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        return rng.uniform(-1, 1, (len(observation), task.action_dim)).astype(np.float32)

    return policy


def run_cell(training: Training, seed: int, workspace: Path) -> Cell:
    """Train what is missing of a cell, evaluate both policies and return the cell's record."""
    teacher = train(training, seed, workspace)
    task, actor = (loaded := load_actor(teacher)).task, loaded.actor  # with the episodes it was trained for
    outcomes = {
        name: run_episodes(task, policy, episodes=EPISODES, seed=seed_sequence(seed, _STREAM)).summary()
        for name, policy in {"trained": torch_policy(actor), "random": random_policy(task, seed)}.items()
    }
    apart = (
        outcomes["trained"]["final_distance_interval"][1] < outcomes["random"]["final_distance_interval"][0]
    )
    return {
        **outcomes,
        "intervals_disjoint": apart,
        "minutes": teacher.manifest.results["elapsed_s"] / 60,
        "env_steps": teacher.manifest.results["env_steps"],
        "settings": teacher.manifest.settings | {"task": training.task},  # not where it lies here
        "curve": [{name: entry[name] for name in _CURVE} for entry in read_history(teacher)["history"]],
    }


def describe(name: str, cell: Mapping[str, Any]) -> str:
    """Return a line that says what a cell reached."""

    def of(policy: str, figure: str) -> str:
        return with_interval(cell[policy][figure], cell[policy][f"{figure}_interval"])

    return (
        f"{name}: final distance {of('trained', 'final_distance')}, "
        f"at random {of('random', 'final_distance')}; success {of('trained', 'success')}, "
        f"random {cell['random']['success']:.3f}; {cell['minutes']:.1f} min"
    )


def draw(cells: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw success and final distance against minutes, a column a task, with the random policy's level."""
    tasks = list(dict.fromkeys(name.rsplit(" seed ", 1)[0] for name in cells))
    metrics = {"success": "success", "final_distance": "final distance (m)"}
    title = "Short trainings on one core: a line a seed"
    with house_figure(path, 2.5 * len(tasks), 4.8, title) as figure:
        axes = figure.subplots(2, len(tasks), squeeze=False, sharex="col")
        for column, task in enumerate(tasks):
            own = [cell for name, cell in cells.items() if name.rsplit(" seed ", 1)[0] == task]
            for panel, metric in zip(axes[:, column], metrics, strict=True):
                for cell in own:
                    minutes = [entry["elapsed_s"] / 60 for entry in cell["curve"]]
                    values = [entry[metric] for entry in cell["curve"]]
                    panel.plot(
                        minutes, values, color=PALETTE[0], linewidth=1.6, label="the teacher as it trains"
                    )
                level = float(np.mean([cell["random"][metric] for cell in own]))
                panel.axhline(
                    level, color=PALETTE[1], linestyle="--", linewidth=1.3, label="uniform random actions"
                )
                panel.set_ylim(bottom=0.0, top=1.02 if metric == "success" else None)
            axes[0, column].set_title(task)
            axes[1, column].set_xlabel("minutes")
        for panel, label in zip(axes[:, 0], metrics.values(), strict=True):
            panel.set_ylabel(label)
        named = dict(zip(*reversed(axes[0, 0].get_legend_handles_labels()), strict=True))
        figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and print or draw what is there."""
    parser = StudyParser(__doc__, "short_trainings")
    parser.several("--tasks", list(TRAININGS), choices=TRAININGS, help="default: all")
    parser.seeds([0])
    parser.add_argument("--workspace-root", type=Path, default=ROOT / "runs" / "short_trainings")
    parser.figure(PICTURES / "short_trainings.png")
    options = parser.parse(arguments)
    names = ((task, seed, f"{task} seed {seed}") for seed in options.seeds for task in options.tasks)
    root = options.workspace_root
    cells = (
        (name, partial(run_cell, TRAININGS[task], seed, root / name.replace(" ", "-")))
        for task, seed, name in names
    )
    run_study(options, cells, line=describe)
    if options.figure:
        draw(CellBook(options.output).cells, picture := PICTURES / "short_trainings.png")
        print(f"wrote {picture}")


if __name__ == "__main__":
    main()
