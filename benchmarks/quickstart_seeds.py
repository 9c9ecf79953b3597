"""Run the whole quickstart chain for several seeds and record what each reached.

    python -m benchmarks.quickstart_seeds --seeds 0 1 2

Each seed is a cell. Success is closed loop on fresh episodes, with its 95 % interval; the student's retention
is measured over the same episodes as the teacher's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.harness import Cell, CellBook, StudyParser, run_pipeline, run_study

_TEACHER = ("success", "success_interval", "episodes", "time_at_goal", "env_steps", "updates", "elapsed_s")
_POLICY = ("success", "torch_success", "episodes", "max_action_error")
_STUDENT = (
    "success", "success_interval", "episodes", "retention", "retention_interval", "time_at_goal_retention",
    "time_at_goal_retention_interval", "teacher_success", "student_parameters", "teacher_parameters",
)  # fmt: skip


def run_cell(seed: int, preset: str, workspace: Path) -> Cell:
    """Run the chain for one seed in its own workspace."""
    started = time.perf_counter()
    chain = run_pipeline(workspace / f"seed-{seed}", "run", "--preset", preset, "--seed", str(seed))
    teacher, student, policy, latency = (
        chain[stage]["results"] for stage in ("train_teacher", "distill", "export_onnx", "benchmark")
    )
    return {
        "seed": seed,
        "chain_s": time.perf_counter() - started,
        "teacher": {name: teacher[name] for name in _TEACHER},
        "student": {name: student[name] for name in _STUDENT},
        "policy": {name: policy[name] for name in _POLICY},
        "latency": {"networks": latency["networks"], "speedup": latency["speedup"]},
    }


def describe(name: str, cell: Cell) -> str:
    """Return a line that says what a seed reached."""
    return (
        "{name}: teacher {teacher[success]:.3f} {teacher[success_interval]} after {teacher[elapsed_s]:.0f} "
        "s; retention {student[retention]:.3f} {student[retention_interval]}; "
        "policy {policy[success]:.3f}; chain {chain_s:.0f} s"
    ).format(name=name, **cell)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every cell that is missing and print what is there."""
    parser = StudyParser(__doc__, "quickstart_seeds")
    parser.seeds()
    parser.add_argument("--preset", default="quickstart")
    parser.add_argument("--workspace", type=Path, default=Path("runs/quickstart-seeds"))
    options = parser.parse(arguments)
    cells = (
        (f"seed {seed}", partial(run_cell, seed, options.preset, options.workspace)) for seed in options.seeds
    )
    run_study(options, cells, book=CellBook(options.output, {"preset": options.preset}), line=describe)


if __name__ == "__main__":
    main()
