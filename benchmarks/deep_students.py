"""What students of four layers, and plain ones of two, keep of a teacher of hundreds, and their speed-up.

    python -m benchmarks.deep_students --teacher runs/thousand-1/runs/teacher-... [...]
    python -m benchmarks.deep_students --table          print what is recorded; run nothing

A cell is a teacher with a student: distilled from the teacher's dataset, measured over paired episodes,
exported with the teacher beside it, and both timed in turns by `pipeline benchmark`'s stage, on one thread.
Timings count when nothing else runs. What is there is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.distillation import make_context, make_dataset, make_student
from benchmarks.harness import ROOT, Cell, StudyParser, markdown_table, run_study, with_interval
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.stages.benchmark import benchmark
from thousandfold.stages.export_onnx import export_onnx

DATASET: Mapping[str, Any] = {"episodes": 1000, "threads": 1}
STUDENT: Mapping[str, Any] = {"final_episodes": 1024, "threads": 1}
STUDENTS: Mapping[str, Mapping[str, Any]] = {
    "residual 4 x 128": {"student_depth": 4, "student_width": 128},
    "plain 2 x 128": {"student_depth": 2, "student_width": 128},
}
_RESULTS = (
    "success", "success_interval", "teacher_success", "retention", "retention_interval",
    "time_at_goal_retention", "time_at_goal_retention_interval", "episodes", "student_parameters",
    "teacher_parameters",
)  # fmt: skip
_TIMES = ("p50_us", "p99_us")
_RATIOS = ("retention", "time_at_goal_retention")


def run_cell(
    teacher: Artifact,
    shape: Mapping[str, Any],
    workspace: Path,
    student: Mapping[str, Any] = STUDENT,
    dataset: Mapping[str, Any] = DATASET,
) -> Cell:
    """Make what is missing of a cell and return its record."""
    data = make_dataset(workspace, teacher, dataset)
    made = make_student(workspace, teacher, data, {**student, **shape})
    context = make_context(workspace)
    policy = export_onnx.run(
        export_onnx.ExportOnnxSettings(include_teacher=True), context, made, teacher, data
    )
    timed = benchmark.run(benchmark.BenchmarkSettings(), context, policy).manifest.results
    networks = timed["networks"]
    times = {
        name: {key: networks[name]["back_to_back"][key] for key in _TIMES} for name in ("student", "teacher")
    }
    return {
        **{name: made.manifest.results[name] for name in _RESULTS},
        "task": teacher.manifest.task,
        "teacher_depth": teacher.manifest.settings["depth"],
        "teacher_width": teacher.manifest.settings["width"],
        "times": times,
        "speed_up_p50": times["teacher"]["p50_us"] / times["student"]["p50_us"],
        "settings": {"dataset": data.manifest.settings, "student": made.manifest.settings},
    }


def table(cells: Mapping[str, Cell]) -> str:
    """Return a row a cell."""
    rows = []
    for name, cell in cells.items():
        student, teacher = (cell["times"][side]["p50_us"] for side in ("student", "teacher"))
        rows.append(
            [
                f"{cell['teacher_depth']} x {cell['teacher_width']}, {cell['teacher_success']:.3f}",
                name.split(": ")[1],
                *(with_interval(cell[of], cell[f"{of}_interval"]) for of in _RATIOS),
                f"{student:.1f} / {teacher:,.0f}",
                f"{cell['speed_up_p50']:.0f} x",
            ]
        )
    return markdown_table(
        [
            "teacher", "student", "retention of success", "of time at goal", "p50 µs, student / teacher",
            "faster",
        ],
        rows,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print what is there."""
    parser = StudyParser(__doc__, "deep_students")
    parser.several("--teacher", type=Path, help="folders of artifacts")
    parser.add_argument("--workspace-root", type=Path, default=ROOT / "runs" / "deep_students")
    options = parser.parse(arguments, needs="teacher")
    cells = (
        (f"{teacher.name}: {name}", partial(run_cell, teacher, shape, options.workspace_root / teacher.name))
        for teacher in map(Artifact.load, options.teacher)
        for name, shape in STUDENTS.items()
    )
    run_study(options, cells, table)


if __name__ == "__main__":
    main()
