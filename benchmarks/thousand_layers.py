"""Train the thousand-layer teacher, distil it, and record what each seed reached and how it got there.

    python -m benchmarks.thousand_layers --seeds 0 1 2

Each seed has a workspace of its own. What is there is kept: an unfinished teacher goes on from its
checkpoint, a finished stage is not run again, so that a study of hours can be cut off anywhere. Seed 0's
learning curve and gradient history are kept as pictures beside the documentation.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from thousandfold.ground.files import write_json_atomic
from thousandfold.pipeline.artifacts import Artifact, Workspace, installed_versions
from thousandfold.pipeline.checkpoint import CheckpointFolder
from thousandfold.pipeline.runtime import describe_host

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs/pictures"
_TEACHER = ("success", "success_interval", "episodes", "time_at_goal", "env_steps", "updates", "elapsed_s")
_STUDENT = (
    "success", "success_interval", "episodes", "retention", "retention_interval", "time_at_goal_retention",
    "time_at_goal_retention_interval", "teacher_success", "student_parameters", "teacher_parameters",
)  # fmt: skip
_CURVE = (
    "updates", "env_steps", "elapsed_s", "success", "time_at_goal", "info_nce", "categorical_accuracy",
    "entropy", "actor_gradient_norm", "critic_gradient_norm", "saturated_actions",
)  # fmt: skip


def newest(workspace: Path, kind: str) -> Artifact | None:
    """Return the newest completed artifact of a kind, or None."""
    artifacts = Workspace.resolve(str(workspace)).artifacts(kind)
    return next((found for found in artifacts if found.manifest.status == "completed"), None)


def run_stage(workspace: Path, stage: str, *options: str) -> None:
    """Run one command of the pipeline in a workspace."""
    command = [sys.executable, "-m", "thousandfold.pipeline", "--workspace", str(workspace), stage, *options]
    subprocess.run(command, check=True, cwd=ROOT)


def train(workspace: Path, preset: str, seed: int) -> Artifact:
    """Return the seed's teacher: the finished one, the unfinished one gone on with, or a new one."""
    if (teacher := newest(workspace, "teacher")) is not None:
        return teacher
    begun = Workspace.resolve(str(workspace)).artifacts("teacher")
    if any(CheckpointFolder(artifact.file("checkpoint")).exists for artifact in begun):
        run_stage(workspace, "train-teacher", "--resume")
    else:
        run_stage(workspace, "train-teacher", "--preset", preset, "--seed", str(seed))
    teacher = newest(workspace, "teacher")
    assert teacher is not None
    return teacher


def run_cell(workspace: Path, preset: str, seed: int) -> dict[str, Any]:
    """Run what is missing of a seed and return its record."""
    teacher = train(workspace, preset, seed)
    chosen = ("--preset", preset, "--seed", str(seed))
    if newest(workspace, "dataset") is None:
        run_stage(workspace, "generate-dataset", *chosen)
    if newest(workspace, "student") is None:
        run_stage(workspace, "distill", *chosen, "--student-depth", "4")
    student = newest(workspace, "student")
    assert student is not None
    recorded = json.loads(teacher.file("history.json").read_text(encoding="utf-8"))
    return {
        "seed": seed,
        "settings": teacher.manifest.settings,
        "teacher": {name: teacher.manifest.results[name] for name in _TEACHER},
        "student": {name: student.manifest.results[name] for name in _STUDENT},
        "curve": [{name: entry[name] for name in _CURVE} for entry in recorded["history"]],
        "gradient_by_block": recorded["gradient_by_block"],
    }


def keep_pictures(teacher: Artifact) -> None:
    """Copy the pictures of a teacher to the documentation."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name in ("learning_curve", "gradients", "rollouts"):
        shutil.copyfile(teacher.file(f"{name}.png"), PICTURES / f"thousand_layers_{name}.png")


def main() -> None:
    """Run the seeds one after the other and write their records as they come."""
    parser = argparse.ArgumentParser(description="Train and distil the thousand-layer teacher.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--preset", default="thousand-layers-cpu")
    parser.add_argument("--workspace-root", type=Path, default=ROOT / "runs")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/thousand_layers_cpu.json")
    options = parser.parse_args()
    result = (
        json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {"cells": {}}
    )
    for seed in options.seeds:
        workspace = options.workspace_root / f"thousand-{seed}"
        cell = run_cell(workspace, options.preset, seed)
        result["cells"][f"seed {seed}"] = cell
        result |= {"preset": options.preset, "host": describe_host(), "versions": installed_versions()}
        write_json_atomic(options.output, result)
        if seed == 0 and (teacher := newest(workspace, "teacher")) is not None:
            keep_pictures(teacher)
        reached, student = cell["teacher"], cell["student"]
        print(
            f"seed {seed}: teacher {reached['success']:.3f} after {reached['updates']:,} updates, "
            f"{reached['elapsed_s'] / 3600:.2f} h; 4-layer student {student['success']:.3f}, "
            f"retention {student['retention']:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
