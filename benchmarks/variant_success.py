"""What float16 and int8 take and keep: trained students in each precision, in the same closed-loop episodes.

    python -m benchmarks.variant_success --student runs/student-... [--student ...]
    python -m benchmarks.variant_success --table          print what is recorded; run nothing

A cell is a student: exported by `pipeline export-onnx` with both variants tried, as a user would. Latencies
are medians of single calls on one thread, variant and float32 file in turns, and count when nothing else
runs. Success is over the same episodes in every precision. A recorded cell is not run again.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.distillation import RESULTS, Cell, CellBook, make_context
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.stages.export_onnx import export_onnx
from thousandfold.stages.networks import load_actor

OUTPUT = RESULTS / "variant_success.json"
EPISODES = 1024
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
    """Return the cells as a Markdown table; what is not offered is struck through."""
    heads = ["student", "success, float32"]
    for name in VARIANTS:
        heads += [f"success, {name}", "a call, float32's"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for cell in cells.values():
        network = cell["network"]
        row = [
            f"{cell['task']}, {network['depth']} × {network['width']}",
            f"{cell['float32']['success']:.3f}",
        ]
        for name in VARIANTS:
            row += _columns(cell[name])
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _columns(found: Mapping[str, object]) -> list[str]:
    """Return a variant's success, and its median call beside float32's."""
    success = "not finite" if found["success"] is None else f"{found['success']:.3f}"
    times = f"{found['latency_us']:.1f} µs, {found['float32_latency_us']:.1f} µs"
    return [success, times] if found["offered"] else [f"~~{success}~~", f"~~{times}~~"]


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, or print what is there."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.variant_success",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--student", type=Path, action="append", default=[], help="folder of an artifact")
    parser.add_argument("--episodes", type=int, default=EPISODES, help="of each precision")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--table", action="store_true", help="print what is recorded; run nothing")
    options = parser.parse_args(arguments)
    if not options.student and not options.table:
        parser.error("give --student, or --table")
    book = CellBook(options.output)
    for folder in options.student:
        student = Workspace(folder.resolve().parent.parent).open(str(folder), "student")
        name = f"{student.manifest.task} {str(student.manifest.hash)[:12]}"
        book.cell(name, lambda student=student: run_cell(student, options.episodes))
    print(table(book.cells))


if __name__ == "__main__":
    main()
