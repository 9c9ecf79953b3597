"""A write that fails, for every write of every stage: nothing may be lost, and going on must work.

EIO fails the k-th writing call alone, ENOSPC fails it and all that follow. Afterwards the stage goes on as
the product tells, and what comes out must equal an unbroken run. --place store: the writes of the tracking
store, which must not end a stage that has begun. Needs a C compiler, for the library that fails the calls.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.drills.drilling import (
    STAGES,
    Drill,
    artifacts,
    broken,
    copied,
    differences,
    hashes,
    leftovers,
    newest,
    stage_command,
)

NO_COMPILER = 77


def main() -> None:
    """Fail each write of each stage."""
    library = _preloaded()

    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--stages", default=",".join(STAGES))
        parser.add_argument("--errors", default="EIO,ENOSPC")
        parser.add_argument("--place", choices=["runs", "store"], default="runs")
        parser.add_argument("--first", type=int, default=1, help="the first write that fails [1]")

    drill = Drill(f"{__doc__} --trials 0 tries every write.", 0, options)
    in_store = drill.options.place == "store"
    excluded = "runs" if in_store else "mlflow"
    environment = None if in_store else {"MLFLOW_TRACKING_URI": "none"}
    shared = mmap.mmap(-1, ctypes.sizeof(ctypes.c_long))
    counter = ctypes.c_long.from_buffer(shared)

    def armed(workspace: Path, at: int, error: int) -> Callable[[], object]:
        counter.value = 0
        place, stays = str(workspace).encode(), int(error == errno.ENOSPC)
        return lambda: library.io_errors_arm(
            place, excluded.encode(), ctypes.byref(counter), ctypes.c_long(at), error, stays
        )

    for stage in drill.options.stages.split(","):
        base, kind = drill.workspace_before(stage), STAGES[stage]
        reference = copied(base, drill.root / "io-reference")
        counting = armed(reference, 0, 0)
        unbroken = drill.call(stage_command(stage), reference, prepare=counting, environment=environment)
        assert unbroken.code == 0, unbroken.text
        writes, expected = counter.value, newest(reference, kind).fingerprint()
        print(f"{stage}: {writes} writes", flush=True)
        points = range(drill.options.first, writes + 1)
        if drill.trials and drill.trials < len(points):
            points = sorted(drill.random.sample(points, drill.trials))
        for at in points:
            for name in drill.options.errors.split(","):
                workspace = copied(base, drill.root / "io")
                before, known = hashes(workspace), {found.name for found in artifacts(workspace)}
                failing = armed(workspace, at, getattr(errno, name))
                done = drill.call(stage_command(stage), workspace, prepare=failing, environment=environment)
                problems = broken(workspace)
                if done.traceback or done.code not in (0, 2):
                    problems.append(f"exit code {done.code}: {done.said}")
                if in_store and done.code != 0 and len(artifacts(workspace)) > len(known):
                    problems.append(f"the store ended a stage that had begun: {done.said}")
                after = hashes(workspace)
                if changed := [path.name for path, digest in before.items() if after.get(path) != digest]:
                    problems.append(f"earlier files changed: {changed[:3]}")
                if not [f for f in artifacts(workspace, kind) if f.completed and f.name not in known]:
                    how, again = drill.go_on(stage, workspace)
                    if again.code != 0 or again.traceback:
                        problems.append(f"going on ({how}) ended with {again.code}: {again.said}")
                problems += broken(workspace)
                made = [f for f in artifacts(workspace, kind) if f.completed and f.name not in known]
                if made:
                    problems += differences(expected, made[-1].fingerprint()) + leftovers(made[-1].path)
                else:
                    problems.append(f"no {kind} was completed")
                case = f"{name} at write {at} of {writes} of {stage}: exit {done.code}"
                drill.verdict(case if done.code == 0 else f"{case} {done.said}", problems, workspace)
    drill.finish()


def _preloaded() -> ctypes.CDLL:
    """Return the library that fails calls; this process starts again with it in front of the C library."""
    place = os.environ.get("LD_PRELOAD", "")
    if not place.endswith("io_errors.so"):
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            print("io_errors: there is no C compiler here")
            sys.exit(NO_COMPILER)
        place = str(Path(tempfile.mkdtemp(prefix="io-errors-")) / "io_errors.so")
        source = Path(__file__).with_suffix(".c")
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", place, str(source), "-ldl"], check=True)
        arguments = [sys.executable, "-m", "tests.drills.io_errors", *sys.argv[1:]]
        os.execve(sys.executable, arguments, os.environ | {"LD_PRELOAD": place})
    return ctypes.CDLL(place)


main()
