"""Which objective, and which additions to it, keep most of one teacher: equal updates, the same episodes.

    python -m benchmarks.objectives --teacher runs/retention/point_u_maze-seed-0/runs/teacher-...
    python -m benchmarks.objectives --table          print what is recorded; run nothing

A cell is a variant with a seed; a seed decides dataset, student and closing episodes alike, so that variants
of a seed are compared over the same episodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.distillation import make_dataset, make_student, student_study, studied_teachers
from benchmarks.harness import Cell, markdown_table, run_study, with_interval
from thousandfold.pipeline.artifacts import Artifact


@dataclass(frozen=True)
class Variant:
    """One way to distil.

    Attributes:
        student: settings of the distillation beside `STUDENT`.
        dataset: settings of the dataset beside `DATASET`.
    """

    student: Mapping[str, Any] = field(default_factory=dict)
    dataset: Mapping[str, Any] = field(default_factory=dict)


DATASET: Mapping[str, Any] = {"episodes": 300, "alternative_goals": 4, "threads": 1}
STUDENT: Mapping[str, Any] = {
    "student_depth": 4,
    "student_width": 64,
    "updates": 2000,
    "alternative_fraction": 0.0,
    "final_episodes": 2048,
    "max_final_episodes": 2048,
    "threads": 1,
}
VARIANTS: Mapping[str, Variant] = {
    "mse": Variant(),
    "kl": Variant({"objective": "kl"}),
    "critic": Variant({"objective": "critic"}),
    "critic, imitation 1": Variant({"objective": "critic", "imitation_weight": 1.0}),
    "mse, no LayerNorm": Variant({"student_layer_norm": False}),
    "mse, averaged": Variant({"average_decay": 0.99}),
    "mse, 4 alternative goals": Variant({"alternative_fraction": 0.5}),
    "mse, best of 16 actions": Variant(dataset={"teacher_samples": 16, "accept_weaker_labels": True}),
}
_RESULTS = (
    "success", "success_interval", "teacher_success", "retention", "retention_interval",
    "time_at_goal_retention", "time_at_goal_retention_interval", "episodes", "lost_episodes", "labels",
    "kept_update",
)  # fmt: skip


def run_cell(
    variant: Variant,
    seed: int,
    teacher: Artifact,
    workspace: Path,
    dataset: Mapping[str, Any] = DATASET,
    student: Mapping[str, Any] = STUDENT,
) -> Cell:
    """Make what is missing of a cell and return its record."""
    data = make_dataset(workspace, teacher, {**dataset, **variant.dataset, "seed": seed})
    made = make_student(workspace, teacher, data, {**student, **variant.student, "seed": seed})
    results = {name: made.manifest.results[name] for name in _RESULTS}
    settings = {"dataset": data.manifest.settings, "student": made.manifest.settings}
    return results | {"teacher": teacher.name, "task": teacher.manifest.task, "settings": settings}


def table(cells: Mapping[str, Cell]) -> str:
    """Return a row a variant: means over seeds, and the retention of each seed."""
    rows = []
    for variant in dict.fromkeys(name.rsplit(" seed ", 1)[0] for name in cells):
        own = [cell for name, cell in cells.items() if name.rsplit(" seed ", 1)[0] == variant]
        means = [_mean(own, name) for name in ("success", "retention", "time_at_goal_retention")]
        seeds = "; ".join(with_interval(cell["retention"], cell["retention_interval"]) for cell in own)
        rows.append([variant, *means, seeds])
    return markdown_table(
        ["variant", "success", "retention", "of time at goal", "retention of each seed"], rows
    )


def _mean(cells: list[Cell], name: str) -> str:
    values = [cell[name] for cell in cells if cell[name] is not None]
    return f"{np.mean(values):.3f}" if values else "undefined"


def run_variants(
    arguments: Sequence[str] | None,
    description: str | None,
    name: str,
    variants: Mapping[str, Variant],
    dataset: Mapping[str, Any],
    student: Mapping[str, Any],
) -> None:
    """Run the command line of a study of variants, which share settings of dataset and student."""
    parser = student_study(description, name)
    parser.several("--variants", list(variants), choices=variants)
    options = parser.parse(arguments, needs="teacher")
    cells = (
        (
            f"{chosen} seed {seed}",
            partial(run_cell, variants[chosen], seed, teacher, options.workspace, dataset, student),
        )
        for teacher in studied_teachers(options)
        for seed in options.seeds
        for chosen in options.variants
    )
    run_study(options, cells, table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print what is there."""
    run_variants(arguments, __doc__, "objectives", VARIANTS, DATASET, STUDENT)


if __name__ == "__main__":
    main()
