"""What a student keeps of its teacher that sees less, later and noisily, with a history and without.

    python -m benchmarks.student_senses --tasks cable_arm --seeds 30 31 32

The pages lie in `benchmarks/senses`. The teacher observes the exact state and what was drawn for the episode;
the student has late and noisy readings without velocities, and what it sent. A cell records a teacher's
dataset and distils a student, all by the default preset, and keeps the student's retention. In the cells
`newest` every term of `student_observation` is its newest reading alone. The cells of a task and seed have
the same teacher, for whom the pages do not differ; it trains until two evaluations in a row reach 0.9.

That students see what they sent, and have DAgger rounds by default, was found on seed 21 of the cable arm:

    python -m benchmarks.student_senses --tasks cable_arm --seeds 21 \\
        --sees history newest readings reading --distill dagger_rounds=8

and with `--sees history`, `--distill dagger_rounds=0`, once more with `updates=12000`, and once as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.harness import (
    ROOT,
    Cell,
    CellBook,
    StudyParser,
    completed,
    markdown_table,
    run_pipeline,
    run_study,
    train_teacher,
    with_interval,
)
from thousandfold.envs.registry import compile_task
from thousandfold.pipeline.artifact_task import TASK_FOLDER, keep_task
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.console import Console

PAGES = ROOT / "benchmarks/senses"
TASKS = tuple(sorted(page.stem.removesuffix("_senses") for page in PAGES.glob("*.yaml")))
SEES = ("history", "newest", "readings", "reading")
"""All terms with their histories or the newest of each; the same without what the student sent."""
TARGET = 0.9
_TEACHER = ("success", "success_interval", "env_steps", "elapsed_s")
_STUDENT = (
    "success", "teacher_success", "retention", "retention_interval", "episodes", "time_at_goal_retention",
)  # fmt: skip


def page_with(sees: str, page: Path, folder: Path) -> Path:
    """Write the page with a `student_observation` that is one of `SEES`; return its path."""
    content = yaml.safe_load(page.read_text(encoding="utf-8"))
    content["model"] = str((page.parent / content["model"]).resolve())
    terms = content["student_observation"]
    if sees in ("readings", "reading"):
        terms = [term for term in terms if term.get("field") != "ctrl"]
    if sees in ("newest", "reading"):
        terms = [{key: value for key, value in term.items() if key != "history"} for term in terms]
    content["student_observation"] = terms
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / page.name
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def with_page(teacher: Artifact, page: Path, workspace: Path) -> None:
    """Put a copy of a teacher into a workspace, of a page that differs in what its students observe alone."""
    manifest = teacher.manifest
    copy = Workspace(workspace).create(
        "teacher", task=manifest.task, settings=manifest.settings, task_changes=manifest.task_changes
    )
    for name in manifest.files:
        if not name.startswith(f"{TASK_FOLDER}/"):
            copy.file(name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(teacher.file(name), copy.file(name))
    keep_task(compile_task(str(page)), copy, Console(silent=True))
    copy.complete(manifest.results)


def run_cell(
    task: str, seed: int, sees: str, distill: Sequence[str], env_steps: int, workspace: Path
) -> Cell:
    """Train, record and distil in workspaces of the cell's own; what is finished there is not done again."""
    page, own = PAGES / f"{task}_senses.yaml", workspace / "-".join([task, str(seed), sees, *distill])
    told = ("--set", f"env_steps={env_steps}", "--set", f"target_success={TARGET}")
    teacher = train_teacher(workspace / f"{task}-{seed}", "--task", str(page), "--seed", str(seed), *told)
    if completed(own, "teacher") is None:
        with_page(teacher, page_with(sees, page, own), own)
    if completed(own, "dataset") is None:
        run_pipeline(own, "generate-dataset", "--seed", str(seed))
    if (student := completed(own, "student")) is None:
        run_pipeline(own, "distill", "--seed", str(seed), *(f"--set={value}" for value in distill))
        student = completed(own, "student")
        assert student is not None
    return {
        "teacher": _some(teacher.manifest.results, _TEACHER),
        "student": _some(student.manifest.results, _STUDENT),
    }


def _some(results: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: results[name] for name in names}


def table(cells: Mapping[str, Cell]) -> str:
    """Return each cell's teacher, student and retention."""
    rows = [
        [
            *(*name.split(", "), "")[:4],
            f"{cell['teacher']['success']:.3f}",
            f"{cell['student']['success']:.3f}",
            with_interval(cell["student"]["retention"], cell["student"]["retention_interval"]),
            f"{cell['student']['time_at_goal_retention']:.3f}",
        ]
        for name, cell in sorted(cells.items())
    ]
    return markdown_table(
        [
            "task",
            "seed",
            "student sees",
            "distilled with",
            "teacher",
            "student",
            "retention",
            "of time at goal",
        ],
        rows,
        "What students keep",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every cell that is missing and print what is there."""
    parser = StudyParser(__doc__, "student_senses")
    parser.several("--tasks", TASKS, choices=TASKS)
    parser.seeds(range(30, 33))
    parser.several("--sees", SEES[:2], choices=SEES)
    parser.several("--distill", metavar="KEY=VALUE", help="settings of distill")
    parser.number("--env-steps", 1_000_000, "of a teacher at most", least=1)
    parser.add_argument("--workspace", type=Path, default=ROOT / "runs/student-senses")
    options = parser.parse(arguments)
    cells = (
        (
            ", ".join(filter(None, (task, f"seed {seed}", sees, " ".join(options.distill)))),
            partial(run_cell, task, seed, sees, options.distill, options.env_steps, options.workspace),
        )
        for task in options.tasks
        for seed in options.seeds
        for sees in options.sees
    )
    run_study(options, cells, table, book=CellBook(options.output, {"env_steps": options.env_steps}))


if __name__ == "__main__":
    main()
