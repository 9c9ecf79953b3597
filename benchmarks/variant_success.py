"""What float16 and int8 take and keep: trained students in each precision, in the same closed-loop episodes.

    python -m benchmarks.variant_success --student runs/student-... [...]
    python -m benchmarks.variant_success --table          print what is recorded; run nothing

A cell is a student: exported by `pipeline export-onnx` with both variants tried, as a user would. Latencies
are medians of single calls on one thread, variant and float32 file in turns, and count when nothing else
runs. Success is over the same episodes in every precision.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.distillation import make_context
from benchmarks.harness import Cell, StudyParser, markdown_table, run_study
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.stages.export_onnx import export_onnx
from thousandfold.stages.networks import load_actor

VARIANTS = ("float16", "int8")


def run_cell(student: Artifact, episodes: int) -> Cell:
    """Export a student with its variants, and return what was measured of each."""
    settings = export_onnx.ExportOnnxSettings(
        closed_loop_episodes=episodes, include_teacher=False, variants=VARIANTS
    )
    shape = load_actor(student).shape
    with tempfile.TemporaryDirectory() as folder:
        found = export_onnx.run(settings, make_context(Path(folder)), student).manifest.results
    return {
        "task": student.manifest.task,
        "student": student.name,
        "network": {"kind": shape.kind, "depth": shape.depth, "width": shape.width},
        "episodes": found["episodes"],
        "float32": {name: found[name] for name in ("success", "torch_success", "max_action_error", "bytes")},
        **found["variants"],
    }


def table(cells: Mapping[str, Cell]) -> str:
    """Return a row a student; what is not offered is struck through."""
    heads = ["student", "success, float32"]
    for name in VARIANTS:
        heads += [f"success, {name}", "a call, float32's"]
    rows = [
        [
            f"{cell['task']}, {cell['network']['depth']} × {cell['network']['width']}",
            f"{cell['float32']['success']:.3f}",
            *(column for name in VARIANTS for column in _columns(cell[name])),
        ]
        for cell in cells.values()
    ]
    return markdown_table(heads, rows)


def _columns(found: Mapping[str, object]) -> list[str]:
    """Return a variant's success, and its median call beside float32's."""
    success = "not finite" if found["success"] is None else f"{found['success']:.3f}"
    times = f"{found['latency_us']:.1f} µs, {found['float32_latency_us']:.1f} µs"
    return [success, times] if found["offered"] else [f"~~{success}~~", f"~~{times}~~"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print what is there."""
    parser = StudyParser(__doc__, "variant_success")
    parser.several("--student", type=Path, help="folders of artifacts")
    parser.number("--episodes", 1024, "of each precision")
    options = parser.parse(arguments, needs="student")
    students = [Workspace(at.resolve().parent.parent).open(str(at), "student") for at in options.student]
    cells = (
        (f"{each.manifest.task} {str(each.manifest.hash)[:12]}", partial(run_cell, each, options.episodes))
        for each in students
    )
    run_study(options, cells, table)


if __name__ == "__main__":
    main()
