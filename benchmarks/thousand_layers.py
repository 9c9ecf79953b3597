"""Train the thousand-layer teacher, distil it, and record what each seed reached and how it got there.

    python -m benchmarks.thousand_layers --seeds 0 1 2

Each seed has a workspace of its own. What is there is kept: an unfinished teacher goes on from its
checkpoint, a finished stage is not run again, so that a study of hours can be cut off anywhere. Seed 0's
learning curve and gradient history are kept as pictures beside the documentation.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.harness import (
    PICTURES,
    RESULTS,
    ROOT,
    Cell,
    CellBook,
    StudyParser,
    completed,
    read_history,
    run_pipeline,
    run_study,
    train_teacher,
)

_TEACHER = ("success", "success_interval", "episodes", "time_at_goal", "env_steps", "updates", "elapsed_s")
_STUDENT = (
    "success", "success_interval", "episodes", "retention", "retention_interval", "time_at_goal_retention",
    "time_at_goal_retention_interval", "teacher_success", "student_parameters", "teacher_parameters",
)  # fmt: skip
_CURVE = (
    "updates", "env_steps", "elapsed_s", "success", "time_at_goal", "info_nce", "categorical_accuracy",
    "entropy", "actor_gradient_norm", "critic_gradient_norm", "saturated_actions",
)  # fmt: skip


def run_cell(workspace: Path, preset: str, seed: int) -> Cell:
    """Run what is missing of a seed and return its record."""
    chosen = ("--preset", preset, "--seed", str(seed))
    teacher = train_teacher(workspace, *chosen)
    if completed(workspace, "dataset") is None:
        run_pipeline(workspace, "generate-dataset", *chosen)
    if (student := completed(workspace, "student")) is None:
        run_pipeline(workspace, "distill", *chosen, "--student-depth", "4")
        student = completed(workspace, "student")
        assert student is not None
    if seed == 0:
        for name in ("learning_curve", "gradients", "rollouts"):
            shutil.copyfile(teacher.file(f"{name}.png"), PICTURES / f"thousand_layers_{name}.png")
    recorded = read_history(teacher)
    return {
        "seed": seed,
        "settings": teacher.manifest.settings,
        "teacher": {name: teacher.manifest.results[name] for name in _TEACHER},
        "student": {name: student.manifest.results[name] for name in _STUDENT},
        "curve": [{name: entry[name] for name in _CURVE} for entry in recorded["history"]],
        "gradient_by_block": recorded["gradient_by_block"],
    }


def describe(name: str, cell: Cell) -> str:
    """Return a line that says what a seed reached."""
    reached, student = cell["teacher"], cell["student"]
    return (
        f"{name}: teacher {reached['success']:.3f} after {reached['updates']:,} updates, "
        f"{reached['elapsed_s'] / 3600:.2f} h; 4-layer student {student['success']:.3f}, "
        f"retention {student['retention']:.3f}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the seeds one after the other and record them as they come."""
    parser = StudyParser(__doc__, "thousand_layers", RESULTS / "thousand_layers_cpu.json")
    parser.seeds([0])
    parser.add_argument("--preset", default="thousand-layers-cpu")
    parser.add_argument("--workspace-root", type=Path, default=ROOT / "runs")
    options = parser.parse(arguments)
    cells = (
        (f"seed {seed}", partial(run_cell, options.workspace_root / f"thousand-{seed}", options.preset, seed))
        for seed in options.seeds
    )
    run_study(options, cells, book=CellBook(options.output, {"preset": options.preset}), line=describe)


if __name__ == "__main__":
    main()
