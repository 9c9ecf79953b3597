"""What training on a model that varies costs in time, and what it keeps where the model is off.

    python -m benchmarks.randomized_training --tasks reacher --seeds 20 21 22

Each cell trains a teacher by the default preset, on the model as it is or with what the task varies (mass,
gains, friction or damping within ±30 %), until it meets the preset's target on the model as it is. Then it
measures the teacher where things vary. "Together" draws mass, friction and gain within ±30 % in every
episode, adds noise of 1 % to every sensor, and lets actions act two control steps late; neither noise nor
delay is part of the training.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.harness import (
    ROOT,
    Cell,
    CellBook,
    StudyParser,
    markdown_table,
    read_history,
    run_pipeline,
    run_study,
    train_teacher,
)
from thousandfold.pipeline.console import Console
from thousandfold.stages.policies import load_policy
from thousandfold.stages.robustness import NOMINAL, TOGETHER, measured_levels

TASKS = {
    "reacher": "reacher",
    "arm_reach": "arm_reach",
    "submarine": str(ROOT / "benchmarks/varied/submarine_varied.yaml"),
    "six_axis": str(ROOT / "benchmarks/varied/six_axis_varied.yaml"),
}
TRAININGS = ("nominal", "randomized")
TARGET = 0.95
TOGETHER_LEVEL = 0.3
_RANDOMIZED = "randomized"


def run_cell(task: str, seed: int, training: str, episodes: int, workspace: Path) -> Cell:
    """Train in a workspace of the cell's own, unless it is done, and measure what is left off the model."""
    own = workspace / f"{task}-{seed}-{training}"
    told = {"training_distribution": training, "evaluation_distribution": "nominal"}
    settings = [part for name, value in told.items() for part in ("--set", f"{name}={value}")]
    teacher = train_teacher(own, "--task", TASKS[task], "--seed", str(seed), *settings)
    about = ("--teacher", teacher.name, "--episodes", str(episodes))
    varied = run_pipeline(own, "evaluate", *about, "--distribution", _RANDOMIZED)["results"]
    compiled, policy = load_policy(teacher, "cpu", Console(silent=True))
    levels = {
        level.factor: level.record()
        for level in measured_levels(policy, compiled, [(TOGETHER, TOGETHER_LEVEL, False)], episodes, seed)
    }
    met = [entry for entry in read_history(teacher)["history"] if entry["success"] >= TARGET]
    return {
        "reached_s": met[0]["elapsed_s"] if met else None,
        "reached_steps": met[0]["env_steps"] if met else None,
        "success": {
            "nominal": levels[NOMINAL]["success"],
            "randomized": varied["success"],
            "together": levels[TOGETHER]["success"],
        },
        "levels": list(levels.values()),
    }


def table(cells: Mapping[str, Cell]) -> str:
    """Return the medians over seeds of each task and training."""
    found: dict[tuple[str, str], list[Cell]] = {}
    for name, cell in cells.items():
        task, _, training = name.split(", ")
        found.setdefault((task, training), []).append(cell)
    rows = []
    for (task, training), each in sorted(found.items()):
        seconds, steps = ([cell[f"reached_{unit}"] for cell in each] for unit in ("s", "steps"))
        learned = [cell["success"] for cell in each if cell["success"]["nominal"]]
        shares = [
            f"{statistics.median(success[level] / success['nominal'] for success in learned):.3f}"
            if learned
            else "-"
            for level in (_RANDOMIZED, "together")
        ]
        rows.append(
            [
                task,
                training,
                str(len(each)),
                "-" if None in seconds else f"{statistics.median(seconds):.0f}",
                "-" if None in steps else f"{statistics.median(steps):,.0f}",
                f"{statistics.median(cell['success']['nominal'] for cell in each):.3f}",
                *shares,
            ]
        )
    columns = [
        "task", "trained on", "seeds", f"seconds to {TARGET:g}", f"steps to {TARGET:g}", "nominal success",
        "of it, randomized", f"of it, together ±{TOGETHER_LEVEL:.0%}",
    ]  # fmt: skip
    return markdown_table(columns, rows, "Medians over seeds")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every cell that is missing and print what is there."""
    parser = StudyParser(__doc__, "randomized_training")
    parser.several("--tasks", list(TASKS), choices=list(TASKS))
    parser.seeds(range(20, 23))
    parser.number("--episodes", 512, "of each evaluation and level", least=1)
    parser.add_argument("--workspace", type=Path, default=ROOT / "runs/randomized-training")
    options = parser.parse(arguments)
    cells = (
        (
            f"{task}, seed {seed}, {training}",
            partial(run_cell, task, seed, training, options.episodes, options.workspace),
        )
        for task in options.tasks
        for seed in options.seeds
        for training in TRAININGS
    )
    run_study(options, cells, table, book=CellBook(options.output, {"episodes": options.episodes}))


if __name__ == "__main__":
    main()
