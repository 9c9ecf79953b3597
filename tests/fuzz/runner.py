"""Fuzzing of readers of files: cases from a strategy, each read in a child process that may die of it.

A reader, named as ``tests.fuzz.npz:read``, takes a path and returns or raises the UserError family. It runs
in a process of its own, which reads case after case until one kills it, so that a segmentation fault is seen.
What counts as a fault: another exception, a message of several lines, a death of the process, and more than
`LIMIT_S` seconds, twice. The inputs of faults are kept.

A fuzzer is a module with a strategy of bytes, a `read`, and
``if __name__ == "__main__": main("tests.fuzz.npz:read", cases(), ".npz")``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import hypothesis
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

LIMIT_S = 5.0
MEMORY_BYTES = 8 * 2**30
"""What a reader may map; a file that makes it allocate more ends in a MemoryError, which is a fault."""

FAULTS = ("traceback", "crash", "hang")
_ROOT = Path(__file__).resolve().parents[2]
_BATCH = 250


class Child:
    """A process that reads files with one reader."""

    def __init__(self, reader: str) -> None:
        """Start it; `reader` is ``module:function``."""
        self._reader = reader
        self._start()

    def _start(self) -> None:
        command = [sys.executable, "-m", "tests.fuzz.runner", self._reader]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, cwd=_ROOT, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, bufsize=0
        )
        assert self._reply(120.0) == "ready", f"{self._reader} does not start"

    def _reply(self, seconds: float) -> str | None:
        """Return a line, "" from a process that died, and None where none comes in time."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return None
        return self._process.stdout.readline().decode(errors="replace").rstrip("\n")

    def read(self, path: Path) -> tuple[str, str]:
        """Return read, refused, traceback, crash or hang, and what was said."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{path}\n".encode())
        reply = self._reply(LIMIT_S)
        if reply:
            verdict, _, said = reply.partition(" ")
            return verdict, said
        if reply is None:
            found = ("hang", f"over {LIMIT_S:g} s")
        else:
            found = ("crash", f"exit code {self._process.wait(LIMIT_S)}")
        self.close()
        self._start()
        return found

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@st.composite
def damaged(draw: st.DrawFn, whole: SearchStrategy[bytes], most: int = 6) -> bytes:
    """Draw contents of which bytes are changed, cut out, repeated or cut off; sometimes none."""
    content = bytearray(draw(whole))
    for _ in range(draw(st.sampled_from([0, 0, *range(most)]))):
        place, length = draw(st.integers(0, len(content))), draw(st.integers(1, 8))
        match draw(st.sampled_from(["byte", "bytes", "bit", "out", "twice", "end"])):
            case "byte":
                content[place : place + 1] = bytes([draw(st.sampled_from([0, 1, 127, 128, 255]))])
            case "bytes":
                content[place : place + length] = draw(st.binary(min_size=length, max_size=length))
            case "bit" if place < len(content):
                content[place] ^= 1 << draw(st.integers(0, 7))
            case "out":
                del content[place : place + length]
            case "twice":
                content[place:place] = content[place : place + length]
            case "end" if draw(st.integers(0, 3)) == 0:
                del content[place:]
    return bytes(content)


def fuzz(
    reader: str,
    cases: SearchStrategy[bytes],
    suffix: str,
    *,
    examples: int | None = None,
    minutes: float = 0.0,
    keep: Path,
) -> Counter[str]:
    """Read cases and return how many ended how; those at fault are kept below `keep` and printed.

    Args:
        reader: ``module:function``.
        cases: contents of files.
        suffix: of their names.
        examples: how many to try, always the same ones; None: others each time, for `minutes`.
        minutes: how long.
        keep: folder for inputs of faults.
    """
    verdicts: Counter[str] = Counter()
    child, end, number = Child(reader), time.monotonic() + 60 * minutes, 0

    def one(case: bytes) -> None:
        if examples is None and time.monotonic() >= end:
            return
        path.write_bytes(case)
        verdict, said = child.read(path)
        if verdict == "hang":  # or the machine was busy: a case that hangs does so again
            verdict, said = child.read(path)
        verdicts[verdict] += 1
        if verdict in FAULTS:
            keep.mkdir(parents=True, exist_ok=True)
            kept = keep / f"{verdict}-{sum(verdicts[fault] for fault in FAULTS)}-{os.getpid()}{suffix}"
            kept.write_bytes(case)
            print(f"{verdict}: {kept}: {said}", flush=True)

    with contextlib.closing(child), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"case{suffix}"
        while number == 0 or (examples is None and time.monotonic() < end):
            settings = hypothesis.settings(
                max_examples=examples or _BATCH,
                derandomize=examples is not None,
                database=None,
                deadline=None,
                phases=[hypothesis.Phase.generate],
                suppress_health_check=[
                    hypothesis.HealthCheck.too_slow,
                    hypothesis.HealthCheck.data_too_large,
                ],
            )
            # Each batch is a function of its own: hypothesis counts the examples of a function.
            run = settings(hypothesis.given(cases)(lambda case: one(case)))
            (run if examples is not None else hypothesis.seed(time.time_ns())(run))()
            number += 1
    return verdicts


def main(reader: str, cases: SearchStrategy[bytes], suffix: str) -> None:
    """Fuzz as the command line says; exits with 1 where there was a fault."""
    parser = argparse.ArgumentParser(description=f"Fuzz {reader}.")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="folder for inputs of faults")
    options = parser.parse_args()
    found = fuzz(reader, cases, suffix, minutes=options.minutes, keep=options.keep)
    faults = ", ".join(f"{found[fault]} {fault}" for fault in FAULTS)
    print(f"{reader}: {found.total()} cases: {found['read']} read, {found['refused']} refused, {faults}")
    sys.exit(any(found[fault] for fault in FAULTS))


def _serve(reader: str) -> None:
    """Read the files whose paths come in by standard input, and answer each with one line."""
    from thousandfold.ground.errors import UserError
    from thousandfold.replay.goal_episode import DatasetError

    module, _, name = reader.partition(":")
    read = getattr(importlib.import_module(module), name)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no reply
    print("ready", file=replies)
    for line in sys.stdin:
        try:
            read(Path(line.rstrip("\n")))
            print("read .", file=replies)
        except (UserError, DatasetError) as error:
            one_line = "\n" not in str(error)
            print("refused" if one_line else "traceback", repr(str(error)), file=replies)
        except BaseException:
            print("traceback", repr(traceback.format_exc()[-600:]), file=replies)


if __name__ == "__main__":
    _serve(sys.argv[1])
