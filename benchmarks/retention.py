"""What a four-layer student retains of its teacher, on four tasks with three teachers each.

    python -m benchmarks.retention --tasks point_u_maze reacher --seeds 0 1 2
    python -m benchmarks.retention --table          print what is recorded; run nothing

A cell is a task with a seed: a teacher, its dataset and a student, in a workspace of its own. A teacher that
is there is taken, one that was cut off goes on from its checkpoint.
Retention is measured over at least 1024 pairs of episodes that start and aim alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.distillation import make_dataset, make_student
from benchmarks.harness import ROOT, Cell, StudyParser, markdown_table, run_study, with_interval
from benchmarks.short_trainings import TRAININGS, Training, train

_POINT: Mapping[str, Any] = {
    "evaluate_every": 2,
    "evaluation_episodes": 256,
    "target_success": 0.99,
    "target_evaluations": 1,
}
TEACHERS: Mapping[str, Training] = {
    "point_u_maze": Training("point_u_maze", _POINT | {"env_steps": 1_300_000}),
    # A mean action that pushes against a wall stays there, and which walls those are changes from update to
    # update. Faster learning and many evaluations find the updates at which few are left.
    "point_big_maze": Training(
        "point_big_maze",
        {
            **_POINT,
            "depth": 8,
            "env_steps": 1_500_000,
            "num_worlds": 64,
            "updates_per_unroll": 64,
            "batch_size": 512,
            "actor_learning_rate": 1e-3,
            "critic_learning_rate": 1e-3,
            "evaluate_every": 3,
            "target_success": 0.88,
        },
    ),
    "arm_reach": Training("arm_reach", {**TRAININGS["arm_reach"].settings, "env_steps": 900_000}),
    "reacher": TRAININGS["reacher"],
}
DATASET: Mapping[str, Any] = {"episodes": 1000, "threads": 1}
STUDENT: Mapping[str, Any] = {
    "student_depth": 4,
    "student_width": 128,
    "final_episodes": 1024,
    "threads": 1,
}
# Where the dataset alone leaves a gap (docs/distillation.md): the student's own states, and a wider network.
HARDER_STUDENTS: Mapping[str, Mapping[str, Any]] = {
    "point_big_maze": {
        "student_width": 256,
        "average_decay": 0.995,
        "dagger_rounds": 6,
        "dagger_updates": 1500,
    }
}
LEAST_TEACHER, LEAST_RETENTION, LEAST_BOUND = 0.8, 0.98, 0.95

_RATIOS = ("retention", "time_at_goal_retention")
_RESULTS = (
    "success", "success_interval", "teacher_success", "time_at_goal", "teacher_time_at_goal", "retention",
    "retention_interval", "time_at_goal_retention", "time_at_goal_retention_interval", "episodes",
    "lost_episodes", "gained_episodes", "student_parameters", "teacher_parameters", "kept_update", "labels",
)  # fmt: skip


def run_cell(
    training: Training,
    seed: int,
    workspace: Path,
    dataset: Mapping[str, Any] = DATASET,
    student: Mapping[str, Any] = STUDENT,
) -> Cell:
    """Make what is missing of a cell and return its record."""
    teacher = train(training, seed, workspace)
    data = make_dataset(workspace, teacher, {**dataset, "seed": seed})
    made = make_student(workspace, teacher, data, {**student, "seed": seed})
    results = made.manifest.results
    return {
        **{name: results[name] for name in _RESULTS},
        "met": met(results),
        "rows": data.manifest.results["rows"],
        "teacher_minutes": teacher.manifest.results["elapsed_s"] / 60,
        "settings": {
            "teacher": teacher.manifest.settings,
            "dataset": data.manifest.settings,
            "student": made.manifest.settings,
        },
    }


def met(results: Mapping[str, Any]) -> bool:
    """Tell whether teacher, both retentions and the lower ends of their intervals are as high as asked."""
    kept = [
        results[name] is not None
        and results[name] >= LEAST_RETENTION
        and results[f"{name}_interval"][0] >= LEAST_BOUND
        for name in _RATIOS
    ]
    return results["teacher_success"] >= LEAST_TEACHER and all(kept)


def table(cells: Mapping[str, Cell]) -> str:
    """Return a row a cell."""
    rows = [
        [
            name,
            *(f"{cell[side]:.3f}" for side in ("teacher_success", "success")),
            *(with_interval(cell[of], cell[f"{of}_interval"]) for of in _RATIOS),
            cell["episodes"],
            "yes" if cell["met"] else "no",
        ]
        for name, cell in cells.items()
    ]
    heads = ["teacher", "its success", "student's", "retention of success", "of time at goal", "episodes"]
    return markdown_table([*heads, "met"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print what is there."""
    parser = StudyParser(__doc__, "retention")
    parser.several("--tasks", list(TEACHERS), choices=TEACHERS, help="default: all")
    parser.seeds()
    parser.add_argument("--workspace-root", type=Path, default=ROOT / "runs" / "retention")
    options = parser.parse(arguments)
    cells = (
        (
            f"{task} seed {seed}",
            partial(
                run_cell,
                TEACHERS[task],
                seed,
                options.workspace_root / f"{task}-seed-{seed}",
                student={**STUDENT, **HARDER_STUDENTS.get(task, {})},
            ),
        )
        for seed in options.seeds
        for task in options.tasks
    )
    run_study(options, cells, table)


if __name__ == "__main__":
    main()
