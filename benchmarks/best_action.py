"""A teacher's mean action against its critic's best of several, over the same episodes.

    python -m benchmarks.best_action --teacher .../runs/teacher-20261124-083600 --teacher .../runs/teacher-...
    python -m benchmarks.best_action --table          print what is recorded; run nothing

A cell is a teacher with a number of samples and a scale of the standard deviation that they are drawn with.
Its ratios, best / mean, are of success and of time at goal, with 95 % intervals over pairs of fresh episodes
that start and aim alike. A recorded cell is not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from benchmarks.distillation import RESULTS, Cell, CellBook, with_interval
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import set_up_torch
from thousandfold.stages.dataset.labels import is_weaker, try_strength
from thousandfold.stages.networks import load_actor, load_critic

OUTPUT = RESULTS / "best_action.json"
EPISODES = 1024
SAMPLES = (4, 16)
SCALES = (0.1, 0.3, 1.0)


def run_cell(teacher: Artifact, samples: int, scale: float, seed: int, episodes: int = EPISODES) -> Cell:
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
    intervals = [results[f"{name}_ratio_interval"] for name in ("success", "time_at_goal")]
    stronger = any(isinstance(interval, list) and interval[0] > 1 for interval in intervals)
    return "stronger" if stronger else "neither"


def table(cells: Mapping[str, Cell]) -> str:
    """Return the cells as a Markdown table."""
    lines = [
        "| teacher | task | samples | scale | success, mean | best | best / mean, success | time at goal "
        "| verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells.values():
        ratios = " | ".join(
            with_interval(cell[f"{name}_ratio"], cell[f"{name}_ratio_interval"])
            for name in ("success", "time_at_goal")
        )
        lines.append(
            f"| {cell['teacher']} | {cell['task']} | {cell['samples']} | {cell['scale']:g} | "
            f"{cell['mean_success']:.3f} | {cell['best_success']:.3f} | {ratios} | {cell['verdict']} |"
        )
    return "\n".join(lines)


def run_teacher(book: CellBook, teacher: Artifact, seed: int, episodes: int = EPISODES) -> None:
    """Run the cells of a teacher that are missing, and print each."""
    for samples in SAMPLES:
        for scale in SCALES:
            # By its hash: teachers of different workspaces may have the same name.
            name = f"{teacher.name} {str(teacher.manifest.hash)[:8]}, {samples} at {scale:g}, seed {seed}"
            cell = book.cell(
                name,
                lambda samples=samples, scale=scale: run_cell(teacher, samples, scale, seed, episodes),
            )
            print(table({name: cell}).splitlines()[-1], flush=True)


def main() -> None:
    """Run what is missing, or print what is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--teacher", type=Path, action="append", default=[], metavar="FOLDER", help="of a teacher's artifact"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the episodes and of the draws")
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--table", action="store_true", help="print what is recorded; run nothing")
    options = parser.parse_args()
    if not options.teacher and not options.table:
        parser.error("give --teacher, or --table")
    book = CellBook(options.output)
    if not options.table:
        set_up_torch(options.threads)
        for folder in options.teacher:
            run_teacher(book, Artifact.load(folder), options.seed, options.episodes)
    print(table(book.cells))


if __name__ == "__main__":
    main()
