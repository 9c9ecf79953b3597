"""The first ten minutes on a GPU: what is there, whether it computes rightly, and how fast.

    python -m benchmarks.first_gpu_run
    python -m benchmarks.first_gpu_run --device cpu --depths 4 --worlds 16 --output tried.json

Where no device is seen it says what is missing, as `python -m thousandfold.pipeline.cuda`, and ends with 2;
the second line tries it out without one.
Every part is a process of its own with an end of its time; what fails or is given up says so in its cell and
stops no other. All of it is one JSON file.

- ``tests``: `make test-cuda-quick`; on the CPU they are left out.
- ``updates, D64``: updates a second of a learner for the ant, batches included; depths from 1024 on as in the
  preset `thousand-layers`.
- ``steps, ant``: environment steps a second of unrolls, in which an actor of 4 layers acts and rows are kept.
- ``training``: `train-teacher --preset quickstart` on point_u_maze, stopped at the end of its time.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import (
    ROOT,
    Cell,
    CellBook,
    Side,
    SideFailed,
    StudyParser,
    Worker,
    run_study,
    spread,
    take_turns,
)
from thousandfold.envs.registry import compile_task
from thousandfold.pipeline import cuda
from thousandfold.pipeline.artifacts import Workspace
from thousandfold.pipeline.checkpoint import CheckpointFolder
from thousandfold.pipeline.runtime import set_up_torch
from thousandfold.pipeline.settings import resolve_settings
from thousandfold.stages.train_teacher.settings import TrainTeacherSettings
from thousandfold.stages.train_teacher.training import TeacherTraining

_STARTING_S = 180.0  # of a part: libraries, Warp's compiler, the first updates
_ENDING_S = 60.0  # of a part that is told to end
_TESTS = ("make", "test-cuda-quick")
_ROUNDS = 5
_STEPS = 50


def make_training(device: str, preset: str, **flags: Any) -> TeacherTraining:
    """Return the training of an ant, captured on CUDA as any other."""
    unroll = {"unroll_steps": _STEPS, "min_rows_per_world": _STEPS, "replay_rows_per_world": 2 * _STEPS}
    ant = {"task": "ant", "training_distribution": "training", "updates_per_unroll": 10**6}
    settings = resolve_settings(
        TrainTeacherSettings, "train_teacher", preset=preset, flags=ant | unroll | flags
    )
    return TeacherTraining(settings, compile_task("ant"), device)


def updates(device: str, depth: int, seconds: float) -> Cell:
    """Return updates a second, in rounds, and the device's memory at its peak."""
    preset = "thousand-layers" if depth >= 1024 else "paper/ant"
    small = {"precision": "float32", "batch_size": 32} if device == "cpu" else {}
    training = make_training(device, preset, depth=depth, num_worlds=64, **small)
    training.collect()
    batches = training.relabel()

    def advance(count: int) -> None:
        for _ in range(count):
            training.update(next(batches))
        training.check_finite(None)  # waits for the device

    rates = take_turns({"updates": Side(advance, 1)}, _ROUNDS, seconds / _ROUNDS)["updates"]
    found = {
        "updates_per_second": spread(rates),
        "batch_size": training.settings.batch_size,
        "preset": preset,
    }
    return found | ({} if device == "cpu" else {"peak_bytes": torch.cuda.max_memory_allocated()})


def steps(device: str, worlds: int, seconds: float) -> Cell:
    """Return environment steps a second of unrolls, acting included, and how many worlds were lost."""
    training = make_training(device, "paper/ant", depth=4, num_worlds=worlds)

    def advance(count: int) -> None:
        for _ in range(count):
            training.collect()

    rates = take_turns({"steps": Side(advance, _STEPS * worlds)}, _ROUNDS, seconds / _ROUNDS)["steps"]
    progress = training.progress
    lost = {"unstable": progress.unstable, "overflowed": progress.overflowed}
    return {"steps_per_second": spread(rates), "worlds": worlds, **lost}


def training(device: str, seconds: float) -> Cell:
    """Train until the time is over, stop as after Ctrl-C, and return how far it came."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "thousandfold.pipeline", "--workspace", place, "train-teacher"]
        options = ["--preset", "quickstart", "--task", "point_u_maze", "--device", device]
        with (Path(place) / "said").open("w+", encoding="utf-8") as said:
            process = subprocess.Popen([*command, *options], stdout=said, stderr=said, cwd=ROOT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STARTING_S + seconds)
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_ENDING_S)
            process.kill()
            process.wait()
            said.seek(0)
            found: Cell = {"exit_code": process.returncode, "said": said.read()[-600:]}
        for teacher in Workspace(Path(place)).artifacts("teacher"):
            folder = CheckpointFolder(teacher.file("checkpoint"))
            progress = folder.progress if folder.exists else {"history": []}
            names = ("env_steps", "updates", "unstable", "elapsed_s")
            found |= {name: progress[name] for name in names if name in progress}
            found["curve"] = [[entry["env_steps"], entry["success"]] for entry in progress["history"]]
        return found


def tests(seconds: float) -> Cell:
    """Run the quick tests; return how many passed, and the end of what was said where not all did."""
    start = time.perf_counter()
    done = subprocess.run(
        ["timeout", "--signal=INT", f"--kill-after={_ENDING_S:.0f}", f"{_STARTING_S + seconds:.0f}", *_TESTS],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    counts = {name: int(count) for count, name in re.findall(r"(\d+) (passed|failed|skipped)", done.stdout)}
    said = {"said": done.stdout[-3000:]} if done.returncode else {}
    return {"exit_code": done.returncode, "seconds": time.perf_counter() - start, **counts, **said}


PARTS = {"tests": tests, "updates": updates, "steps": steps, "training": training}


def run_part(part: str, seconds: float, arguments: Mapping[str, Any]) -> Cell:
    """Run a part in a process of its own; where it fails, that is its cell."""
    start, told = time.perf_counter(), ("--part", part, json.dumps(arguments))
    with closing(Worker("first_gpu_run", *told, give_up_s=seconds + _STARTING_S + 2 * _ENDING_S)) as worker:
        try:
            found = worker.answer()
        except SideFailed as failure:
            found = {"not_measured": str(failure)}
    return found | {"part_s": round(time.perf_counter() - start, 1)}


def describe(name: str, cell: Cell) -> str:
    """Return a line that says what a part found."""
    found = {key: value for key, value in cell.items() if key not in ("said", "curve")}
    return f"{name}: {json.dumps(found)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all parts, print a line for each and record them; or be one of the parts."""
    parser = StudyParser(__doc__, "first_gpu_run")
    parser.set_defaults(again=True)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.number("--part-s", 120.0, "how long a part may measure, train or test", least=1.0)
    parser.several("--depths", [4, 64, 1024], type=int)
    parser.number("--worlds", 4096, "of the ant", least=1)
    parser.add_argument("--part", nargs=2, metavar=("PART", "ARGUMENTS"), help="be a part")
    options = parser.parse(arguments)
    if options.part is not None:
        name, given = options.part
        with os.fdopen(os.dup(1), "w") as reply:  # what libraries print must not be taken for it
            os.dup2(2, 1)
            set_up_torch(0)
            print(json.dumps(PARTS[name](**json.loads(given))), file=reply)
        return
    heads: Mapping[str, Any] = {}
    if options.device == "cuda" and not options.table:
        cuda.main()
        heads = {"device": cuda.describe_device("cuda:0")}
    seconds, device = options.part_s, {"device": options.device}
    timed = device | {"seconds": seconds / 4}
    parts: dict[str, tuple[str, dict[str, Any]]] = {
        "tests": ("tests", {"seconds": seconds}),
        **{f"updates, D{depth}": ("updates", timed | {"depth": depth}) for depth in options.depths},
        "steps, ant": ("steps", timed | {"worlds": options.worlds}),
        "training": ("training", device | {"seconds": seconds}),
    }
    if options.device == "cpu":
        del parts["tests"]
    cells = ((name, partial(run_part, part, seconds, given)) for name, (part, given) in parts.items())
    run_study(options, cells, book=CellBook(options.output, heads), line=describe)


if __name__ == "__main__":
    main()
