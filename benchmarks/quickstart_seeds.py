"""Run the whole quickstart chain for several seeds and record what each reached.

    python -m benchmarks.quickstart_seeds --seeds 0 1 2

Each seed is a cell: a finished cell is kept in the workspace and not run again, so a study that was cut
off goes on where it was. Success is closed loop on fresh episodes, with its 95 % interval; the student's
retention is measured over the same episodes as the teacher's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from thousandfold.ground.files import write_json_atomic
from thousandfold.pipeline.artifacts import installed_versions
from thousandfold.pipeline.runtime import describe_host

_STUDENT = (
    "success", "success_interval", "episodes", "retention", "retention_interval", "time_at_goal_retention",
    "time_at_goal_retention_interval", "teacher_success", "student_parameters", "teacher_parameters",
)  # fmt: skip


def run_cell(seed: int, preset: str, workspace: Path) -> dict[str, Any]:
    """Run the chain for one seed in its own workspace, or return the recorded cell."""
    record = workspace / f"seed-{seed}.json"
    if record.exists():
        return json.loads(record.read_text(encoding="utf-8"))
    command = [sys.executable, "-m", "thousandfold.pipeline", "--workspace", str(workspace / f"seed-{seed}")]
    command += ["run", "--preset", preset, "--seed", str(seed), "--json"]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    chain = json.loads(done.stdout.splitlines()[-1])
    teacher, student = chain["train_teacher"]["results"], chain["distill"]["results"]
    policy, latency = chain["export_onnx"]["results"], chain["benchmark"]["results"]
    cell = {
        "seed": seed,
        "chain_s": time.perf_counter() - started,
        "teacher": {
            name: teacher[name] for name in ("success", "success_interval", "episodes", "time_at_goal")
        }
        | {name: teacher[name] for name in ("env_steps", "updates", "elapsed_s")},
        "student": {name: student[name] for name in _STUDENT},
        "policy": {
            name: policy[name] for name in ("success", "torch_success", "episodes", "max_action_error")
        },
        "latency": {"networks": latency["networks"], "speedup": latency["speedup"]},
    }
    write_json_atomic(record, cell)
    return cell


def main() -> None:
    """Run every cell in turn and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--preset", default="quickstart")
    parser.add_argument("--workspace", type=Path, default=Path("runs/quickstart-seeds"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/quickstart_seeds.json"))
    options = parser.parse_args()
    cells = []
    for seed in options.seeds:
        cells.append(run_cell(seed, options.preset, options.workspace))
        cell = cells[-1]
        print(
            f"seed {seed}: teacher {cell['teacher']['success']:.3f} {cell['teacher']['success_interval']} "
            f"after {cell['teacher']['elapsed_s']:.0f} s; retention {cell['student']['retention']:.3f} "
            f"{cell['student']['retention_interval']}; policy {cell['policy']['success']:.3f}; "
            f"chain {cell['chain_s']:.0f} s",
            flush=True,
        )
        facts = {"date": date.today().isoformat(), "preset": options.preset, "host": describe_host()}
        write_json_atomic(options.output, facts | {"versions": installed_versions(), "cells": cells})


if __name__ == "__main__":
    main()
