"""A teacher's mean action against its critic's best of several, over the same episodes.

    python -m benchmarks.best_action --teacher .../runs/teacher-20261124-083600 .../runs/teacher-...
    python -m benchmarks.best_action --table          print what is recorded; run nothing

A cell is a teacher with a number of samples and a scale of the standard deviation that they are drawn with.
Its ratios, best / mean, are of success and of time at goal, with 95 % intervals over pairs of fresh episodes
that start and aim alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.harness import Cell, StudyParser, markdown_table, run_study, with_interval
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import set_up_torch
from thousandfold.stages.dataset.labels import is_weaker, try_strength
from thousandfold.stages.networks import load_actor, load_critic

SAMPLES = (4, 16)
SCALES = (0.1, 0.3, 1.0)
_HEADS = (
    "teacher", "task", "samples", "scale", "success, mean", "best", "best / mean, success", "time at goal",
    "verdict",
)  # fmt: skip
_RATIOS = ("success", "time_at_goal")


def run_cell(teacher: Artifact, samples: int, scale: float, seed: int, episodes: int) -> Cell:
    """Run both sides of a cell and return its record."""
    trial = try_strength(
        load_actor(teacher), load_critic(teacher), samples=samples, scale=scale, seed=seed, episodes=episodes
    )
    results = trial.results()
    return {
        "task": teacher.manifest.task,
        "teacher": teacher.name,
        "teacher_hash": teacher.manifest.hash,
        "samples": samples,
        "scale": scale,
        "seed": seed,
        **results,
        "verdict": verdict(results),
    }


def verdict(results: Mapping[str, object]) -> str:
    """Say whether the best of several is weaker, stronger or neither, beyond the intervals."""
    if is_weaker(dict(results)):
        return "weaker"
    intervals = [results[f"{name}_ratio_interval"] for name in _RATIOS]
    stronger = any(isinstance(interval, list) and interval[0] > 1 for interval in intervals)
    return "stronger" if stronger else "neither"


def table(cells: Mapping[str, Cell]) -> str:
    """Return a row a cell."""
    return markdown_table(_HEADS, [
        [
            cell["teacher"], cell["task"], cell["samples"], f"{cell['scale']:g}",
            f"{cell['mean_success']:.3f}", f"{cell['best_success']:.3f}",
            *(with_interval(cell[f"{name}_ratio"], cell[f"{name}_ratio_interval"]) for name in _RATIOS),
            cell["verdict"],
        ]
        for cell in cells.values()
    ])  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print what is there."""
    parser = StudyParser(__doc__, "best_action")
    parser.several("--teacher", type=Path, metavar="FOLDER", help="of a teacher's artifact")
    parser.number("--seed", 0, "of the episodes and of the draws")
    parser.number("--episodes", 1024)
    parser.number("--threads", 1)
    options = parser.parse(arguments, needs="teacher")
    set_up_torch(options.threads)
    cells = []
    for folder, samples, scale in itertools.product(options.teacher, SAMPLES, SCALES):
        teacher = Artifact.load(folder)
        # By its hash: teachers of different workspaces may have the same name.
        name = f"{teacher.name} {str(teacher.manifest.hash)[:8]}, {samples} at {scale:g}, seed {options.seed}"
        cells.append((name, partial(run_cell, teacher, samples, scale, options.seed, options.episodes)))
    run_study(options, cells, table)


if __name__ == "__main__":
    main()
