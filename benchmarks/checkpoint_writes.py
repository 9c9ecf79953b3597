"""What a teacher's checkpoint writes, and how long the training waits for it.

    python -m benchmarks.checkpoint_writes --depth 256 --width 256

Two sides save the same training in turn, on the point maze and on the CPU. ``all, at once``: finalists are
written with every checkpoint, and the training waits until all is on the disk. ``what is new, beside`` is
what `train-teacher` does: a finalist is written once, and a thread hashes and writes a copy of the state
while the training goes on, which waits for the copy alone. Nothing is trained between the saves.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Cell, CellBook, StudyParser, markdown_table, run_study, spread

SIDES = ("all, at once", "what is new, beside")


def make_training(depth: int, width: int) -> Any:
    """Return a training after its first update, which gives the optimisers their moments."""
    from thousandfold.envs.registry import compile_task
    from thousandfold.pipeline.runtime import set_up_torch
    from thousandfold.stages.train_teacher.settings import TrainTeacherSettings
    from thousandfold.stages.train_teacher.training import TeacherTraining

    set_up_torch(1)
    sizes = {"depth": depth, "width": width, "num_worlds": 4, "batch_size": 16, "updates_per_unroll": 1}
    rows = {"unroll_steps": 30, "min_rows_per_world": 30, "replay_rows_per_world": 1000}
    form = {"residual_scale": "learned_from_zero", "final_norm": True}
    settings = TrainTeacherSettings.model_validate({"task": "point_u_maze"} | sizes | rows | form)
    training = TeacherTraining(settings, compile_task("point_u_maze"), "cpu")
    training.collect()
    for batch in training.relabel():
        training.update(batch)
    return training


def measure(depth: int, width: int, rounds: int) -> Cell:
    """Save in turn, and return bytes and seconds of each side; the first save of both is not counted."""
    from thousandfold.pipeline.checkpoint import BackgroundSaves, CheckpointFolder

    training = make_training(depth, width)
    weights = training.learner.weights(training.learner.candidates[0])
    places = range(training.settings.finalists)
    found: dict[str, dict[str, list[float]]] = {
        side: {"bytes": [], "waited_s": [], "whole_s": []} for side in SIDES
    }
    with tempfile.TemporaryDirectory(dir=".") as place:
        folders = [CheckpointFolder(Path(place) / str(index)) for index in range(len(SIDES))]
        with BackgroundSaves(folders[1]) as saves:
            for index in range(rounds + 1):
                training.progress.unrolls += 1
                for side, folder, saver in zip(SIDES, folders, (folders[0], saves), strict=True):
                    always = saver is folder
                    names = [f"finalist-{each}-{index if always else 0}" for each in places]
                    training.progress.finalists = names
                    training._unsaved_finalists = dict.fromkeys(names if always or not index else (), weights)
                    before, start = _sizes(folder.path), time.perf_counter()
                    training.save(saver)
                    waited = time.perf_counter() - start
                    saves.wait()
                    whole = time.perf_counter() - start
                    written = sum(size for file, size in _sizes(folder.path).items() if file not in before)
                    for name, value in (("bytes", written), ("waited_s", waited), ("whole_s", whole)):
                        found[side][name].append(value)
    spreads = {
        side: {name: spread(values[1:]) for name, values in figures.items()}
        for side, figures in found.items()
    }
    parameters = sum(training.learner.parameter_counts().values())
    return {"parameters": parameters, "finalists": len(places), "sides": spreads}


def _sizes(folder: Path) -> dict[int, int]:
    """Return the size of each file of a folder by its inode, which is another where it is written anew."""
    stats = [path.stat() for path in folder.glob("*")]
    return {stat.st_ino: stat.st_size for stat in stats}


def table(cells: Mapping[str, Cell]) -> str:
    """Return a row a side of every size."""
    rows = [
        [
            name,
            side,
            f"{figures['bytes']['median'] / 2**20:,.0f}",
            f"{figures['waited_s']['median']:.2f}",
            f"{figures['whole_s']['median']:.2f}",
        ]
        for name, cell in cells.items()
        for side, figures in cell["sides"].items()
    ]
    return markdown_table(["size", "saved", "MiB written", "the training waits, s", "whole after, s"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one size and print the table of all."""
    parser = StudyParser(__doc__, "checkpoint_writes")
    parser.set_defaults(again=True)
    parser.number("--depth", 256)
    parser.number("--width", 256)
    parser.rounds(5, least=3)
    options = parser.parse(arguments)
    name = f"D{options.depth} W{options.width}"
    cells = [(name, lambda: measure(options.depth, options.width, options.rounds))]
    run_study(options, cells, table, book=CellBook(options.output, {"rounds": options.rounds}))


if __name__ == "__main__":
    main()
