"""Which objective, and which additions to it, keep most of one teacher: equal updates, the same episodes.

    python -m benchmarks.objectives --teacher runs/retention/point_u_maze-seed-0/runs/teacher-...
    python -m benchmarks.objectives --table          print what is recorded; run nothing

A cell is a variant with a seed; a seed decides dataset, student and closing episodes alike, so that variants
of a seed are compared over the same episodes. A recorded cell is not run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.distillation import (
    RESULTS,
    Cell,
    CellBook,
    make_dataset,
    make_student,
    studied_teacher,
    study_parser,
    with_interval,
)
from thousandfold.pipeline.artifacts import Artifact

OUTPUT = RESULTS / "objectives.json"


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
    """Return the variants as a Markdown table: means over seeds, and the retention of each seed."""
    lines = [
        "| variant | success | retention | of time at goal | retention of each seed |",
        "|---|---|---|---|---|",
    ]
    variants = dict.fromkeys(name.rsplit(" seed ", 1)[0] for name in cells)
    for variant in variants:
        own = [cell for name, cell in cells.items() if name.rsplit(" seed ", 1)[0] == variant]
        means = [_mean(own, name) for name in ("success", "retention", "time_at_goal_retention")]
        seeds = "; ".join(with_interval(cell["retention"], cell["retention_interval"]) for cell in own)
        lines.append(f"| {variant} | {' | '.join(means)} | {seeds} |")
    return "\n".join(lines)


def _mean(cells: list[Cell], name: str) -> str:
    values = [cell[name] for cell in cells if cell[name] is not None]
    return f"{np.mean(values):.3f}" if values else "undefined"


def main() -> None:
    """Run what is missing, or print what is there."""
    run_study(__doc__, "objectives", OUTPUT, VARIANTS, DATASET, STUDENT)


def run_study(
    description: str | None,
    name: str,
    output: Path,
    variants: Mapping[str, Variant],
    dataset: Mapping[str, Any],
    student: Mapping[str, Any],
) -> None:
    """Run the command line of a study of variants: what is missing of it, or print what is there.

    Args:
        description: of the command line.
        name: of its workspace.
        output: where cells are recorded.
        variants: by name.
        dataset, student: settings that all variants share.
    """
    parser = study_parser(description, name, output)
    parser.add_argument("--variants", nargs="+", choices=variants, default=list(variants))
    options = parser.parse_args()
    book = CellBook(options.output)
    if not options.table:
        teacher = studied_teacher(parser, options)
        for seed in options.seeds:
            for chosen in options.variants:
                book.cell(
                    f"{chosen} seed {seed}",
                    lambda variant=variants[chosen], seed=seed: run_cell(
                        variant, seed, teacher, options.workspace, dataset, student
                    ),
                )
    print(table(book.cells))


if __name__ == "__main__":
    main()
