"""What helps a student that falls short: one remedy at a time, then together, beside the student without any.

    python -m benchmarks.remedies --teacher runs/retention/point_big_maze-seed-0/runs/teacher-...
    python -m benchmarks.remedies --table          print what is recorded; run nothing

The student without a remedy is small, trained briefly, on few episodes of a teacher that acts without noise.
Cells and seeds are those of `benchmarks.objectives`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.objectives import Variant, run_variants

DATASET: Mapping[str, Any] = {
    "episodes": 50,
    "noise_levels": (0.0,),
    "alternative_goals": 0,
    "threads": 1,
}
STUDENT: Mapping[str, Any] = {
    "student_depth": 4,
    "student_width": 32,
    "updates": 1000,
    "evaluate_every": 250,
    "final_episodes": 2048,
    "max_final_episodes": 2048,
    "threads": 1,
}
_NOISE: Mapping[str, Any] = {"noise_levels": (0.0, 0.1, 0.2, 0.4)}
_ROUNDS: Mapping[str, Any] = {"dagger_rounds": 4, "dagger_episodes": 50, "dagger_updates": 1000}
REMEDIES: Mapping[str, Variant] = {
    "none": Variant(),
    "noise on the teacher's actions": Variant(dataset=_NOISE),
    "8 x the episodes": Variant(dataset={"episodes": 400}),
    "4 x the updates": Variant({"updates": 4000}),
    "128 wide": Variant({"student_width": 128}),
    "8 layers": Variant({"student_depth": 8}),
    "averaged weights": Variant({"average_decay": 0.99}),
    "4 DAgger rounds, 5 x the updates": Variant(_ROUNDS),
    "128 wide, noise, 8 x the episodes, 4 x the updates": Variant(
        {"student_width": 128, "updates": 4000}, {"episodes": 400, **_NOISE}
    ),
    "128 wide, noise, 4 DAgger rounds, 5 x the updates": Variant({"student_width": 128, **_ROUNDS}, _NOISE),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print what is there."""
    run_variants(arguments, __doc__, "remedies", REMEDIES, DATASET, STUDENT)


if __name__ == "__main__":
    main()
