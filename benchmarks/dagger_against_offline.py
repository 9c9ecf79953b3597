"""DAgger against a dataset alone, at equal labels and equal updates, over the same episodes.

    python -m benchmarks.dagger_against_offline --teacher .../runs/teacher-20261124-083600
    python -m benchmarks.dagger_against_offline --table          print what is recorded; run nothing

A cell is a number of labels with a seed. Both students have one dataset to draw from: the offline one takes
all labels from it, the other half of them and the rest from rounds in which it acts. Both hold out as many of
them. A label is a state under one goal, as the teacher is asked about it. The ratio of both is measured over
fresh episodes that neither has seen, the same for both.

The interval of a cell is that of its two students: other seeds would train others. The one of several cells
is for students to come: seeds are resampled first, then episodes. With six seeds it is rough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.distillation import make_dataset, make_student, run_both, student_study, studied_teachers
from benchmarks.harness import Cell, markdown_table, run_study, with_interval
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.stages.episodes import retention
from thousandfold.stages.networks import load_actor

EPISODES = 4096
SEEDS = range(6)
"""Students differ more from seed to seed than both ways of teaching do."""

SIDES = ("offline", "dagger")
ROUNDS = 4
UPDATES = 4000
ROUND_UPDATES = 800
HELD_OUT = 0.1
"""Share of the half of the labels that both arms take from the dataset."""

_BOOTSTRAP_DRAWS = 4000
DATASET: Mapping[str, Any] = {"alternative_goals": 0, "threads": 1}
STUDENT: Mapping[str, Any] = {
    "student_depth": 4,
    "student_width": 64,
    "average_decay": 0.99,
    "final_episodes": 256,
    "max_final_episodes": 256,  # the comparison runs episodes of its own
    "threads": 1,
}


def arms(labels: int, episode_steps: int) -> dict[str, dict[str, Any]]:
    """Return the settings of both students for as many labels, one a state, of which they hold out as many.

    Raises:
        ValueError: half of the labels are too few for an episode a round.
    """
    in_round = labels // (2 * ROUNDS * episode_steps)
    if not in_round:
        raise ValueError(f"{labels} labels are too few for {ROUNDS} rounds of {episode_steps}-step episodes")
    offline = labels // episode_steps
    half = offline - ROUNDS * in_round
    held_out = max(1, round(HELD_OUT * half))
    rounds = {
        "updates": UPDATES - ROUNDS * ROUND_UPDATES,
        "dagger_rounds": ROUNDS,
        "dagger_episodes": in_round,
        "dagger_updates": ROUND_UPDATES,
        "validation_fraction": held_out / half,
    }
    return {"offline": {"updates": UPDATES, "validation_fraction": held_out / offline}, "dagger": rounds}


def run_cell(
    teacher: Artifact,
    labels: int,
    seed: int,
    workspace: Path,
    student: Mapping[str, Any] = STUDENT,
    episodes: int = EPISODES,
) -> Cell:
    """Make what is missing of a cell and return its record: both students, and DAgger over offline."""
    steps = load_actor(teacher).task.spec.episode_steps
    enough = -(-labels // steps) + 1
    data = make_dataset(workspace, teacher, {**DATASET, "episodes": enough, "seed": seed})
    students = {
        name: make_student(
            workspace, teacher, data, {**student, **settings, "max_labels": labels, "seed": seed}
        )
        for name, settings in arms(labels, steps).items()
    }
    offline, dagger = run_both(students["offline"], students["dagger"], episodes, seed)
    ratios = {
        "success": retention(offline.success, dagger.success),
        "time_at_goal": retention(offline.time_at_goal, dagger.time_at_goal),
    }
    return {
        "task": teacher.manifest.task,
        "teacher": teacher.name,
        "episodes": episodes,
        "offline": offline.summary() | _labels(students["offline"]),
        "dagger": dagger.summary() | _labels(students["dagger"]),
        "rounds": students["dagger"].manifest.results["rounds"],
        "pairs": pair_counts(offline.success, dagger.success),
        **{f"{name}_ratio": ratio["retention"] for name, ratio in ratios.items()},
        **{f"{name}_ratio_interval": ratio["interval"] for name, ratio in ratios.items()},
        "settings": {name: found.manifest.settings for name, found in students.items()},
    }


def _labels(student: Artifact) -> dict[str, int]:
    """Return how many labels a student was given, and with how many of them it trained."""
    results = student.manifest.results
    return {"labels": results["labels"], "training_labels": results["labels"] - results["held_out_rows"]}


def pair_counts(offline: np.ndarray, dagger: np.ndarray) -> dict[str, int]:
    """Return in how many episodes both, one or neither of the students succeeded."""
    return {
        "both": int((offline & dagger).sum()),
        "offline": int((offline & ~dagger).sum()),
        "dagger": int((dagger & ~offline).sum()),
        "neither": int((~offline & ~dagger).sum()),
    }


def pooled_ratio(cells: Sequence[Cell], seed: int = 0) -> tuple[float | None, list[float] | None]:
    """Return DAgger's success over the offline student's, over several cells, with its 95 % interval.

    A bootstrap of two stages (Davison and Hinkley 1997, Bootstrap Methods and their Application, 3.8): cells
    are drawn with replacement, then the episodes of each, for those of one pair of students are alike. One
    lost and one gained pair are spread over the cells, as in `stages.episodes.retention`.

    Args:
        cells: of one number of labels.
        seed: seed of the resampling.

    Returns:
        Ratio and interval; None where the offline students never succeed.
    """
    counts = np.array([[cell["pairs"][who] for who in _PAIRS] for cell in cells], float)
    both, offline, dagger, _ = counts.sum(0)
    if not both + offline:
        return None, None
    shares = counts + np.array([0, 1, 1, 0]) / len(cells)
    shares /= shares.sum(1, keepdims=True)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(cells), size=(_BOOTSTRAP_DRAWS, len(cells)))
    sizes = counts.sum(1).astype(int)
    sums = rng.multinomial(sizes[drawn], shares[drawn]).sum(1)
    bases, ours = sums[:, 0] + sums[:, 1], sums[:, 0] + sums[:, 2]
    low, high = np.percentile(ours[bases > 0] / bases[bases > 0], [2.5, 97.5])
    return float((both + dagger) / (both + offline)), [float(low), float(high)]


_PAIRS = ("both", "offline", "dagger", "neither")


def table(cells: Mapping[str, Cell]) -> str:
    """Return a row a cell, then one for all cells of a number of labels."""
    rows = []
    for name, cell in cells.items():
        ratios = ((cell[f"{of}_ratio"], cell[f"{of}_ratio_interval"]) for of in ("success", "time_at_goal"))
        rows.append(
            [name, cell["task"], *(f"{cell[side]['success']:.3f}" for side in SIDES)]
            + [with_interval(*ratio) for ratio in ratios]
        )
    for labels in dict.fromkeys(name.partition(",")[0] for name in cells):
        own = [cell for name, cell in cells.items() if name.partition(",")[0] == labels]
        means = [f"{np.mean([cell[side]['success'] for cell in own]):.3f}" for side in SIDES]
        all_of = with_interval(*pooled_ratio(own))
        rows.append([f"{labels}, all {len(own)}", own[0]["task"], *means, all_of, ""])
    heads = ["labels, seed", "task", "offline", "DAgger", "DAgger / offline, success", "time at goal"]
    return markdown_table(heads, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print what is there."""
    parser = student_study(__doc__, "dagger_against_offline", SEEDS)
    parser.several("--labels", [4_000, 20_000, 100_000], type=int)
    options = parser.parse(arguments, needs="teacher")
    cells = (
        (f"{labels}, {seed}", partial(run_cell, teacher, labels, seed, options.workspace))
        for teacher in studied_teachers(options)
        for labels in options.labels
        for seed in options.seeds
    )
    run_study(options, cells, table)


if __name__ == "__main__":
    main()
