"""`kill -9` in the middle of a stage or a chain, then going on as the product tells.

By default at uniformly random moments; --points: at the k-th file operation below the workspace; --double:
kill, go on, kill again, go on. What comes out must equal an unbroken run.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.drills.drilling import (
    RESUMABLE,
    STAGES,
    Drill,
    artifacts,
    broken,
    chain_command,
    copied,
    differences,
    leftovers,
    newest,
    stage_command,
)

_OPERATIONS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink"}


def hook_operations(workspace: Path, log: Path, kill_at: int | None) -> Callable[[], None]:
    """Return what counts Python's file operations below a workspace in a log, or kills at one of them."""

    def prepare() -> None:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        count = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event == "open":
                writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                inside = bool(writes) and str(arguments[0]).startswith(str(workspace))
            else:
                inside = event in _OPERATIONS and any(
                    str(a).startswith(str(workspace)) for a in arguments[:2]
                )
            if not inside:
                return
            count += 1
            os.write(descriptor, f"{event} {arguments[0]}\n".encode())
            if count == kill_at:
                os.killpg(0, signal.SIGKILL)

        sys.addaudithook(hook)

    return prepare


def main() -> None:
    """Kill and resume each stage."""

    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--stages", default=",".join([*STAGES, "run"]))
        parser.add_argument("--points", action="store_true")
        parser.add_argument("--double", action="store_true")

    drill = Drill(__doc__, 15, options)
    for stage in drill.options.stages.split(","):
        base = drill.workspace_before("train-teacher" if stage == "run" else stage)
        command = chain_command() if stage == "run" else stage_command(stage)
        kinds = list(STAGES.values()) if stage == "run" else [STAGES[stage]]
        reference = copied(base, drill.root / "kill-reference")
        log = drill.root / "kill-operations"
        log.unlink(missing_ok=True)
        counted = hook_operations(reference, log, None) if drill.options.points else None
        unbroken = drill.call(command, reference, prepare=counted)
        assert unbroken.code == 0, unbroken.text
        operations = len(log.read_text().splitlines()) if drill.options.points else 0
        expected = {kind: newest(reference, kind).fingerprint() for kind in kinds}
        for trial in range(drill.trials):
            workspace = copied(base, drill.root / f"kill-{stage}-{trial}")
            known = {found.name for found in artifacts(workspace)}
            problems, where = [], ""
            for strike in range(2 if drill.options.double else 1):
                again = strike and stage in (*RESUMABLE, "run")
                arguments = [stage, "--resume"] if again else command
                if drill.options.points:
                    at = drill.random.randint(1, operations)
                    log.unlink(missing_ok=True)
                    drill.call(arguments, workspace, prepare=hook_operations(workspace, log, at))
                    last = log.read_text().splitlines()[-1:] if log.exists() else []
                    where += f" at operation {at} of {operations}: {' '.join(last)[-100:]}"
                else:
                    moment = drill.random.uniform(0, unbroken.seconds)
                    running = drill.launch(arguments, workspace)
                    time.sleep(moment)
                    running.kill()
                    running.wait()
                    where += f" after {moment:.2f} of {unbroken.seconds:.1f} s"
                problems += broken(workspace)
            listed = drill.call(["runs"], workspace)
            if listed.code != 0 or listed.traceback:
                problems.append(f"`runs` ended with {listed.code}: {listed.said}")
            made = [found for found in artifacts(workspace, kinds[-1]) if found.completed]
            if stage == "run" or not [found for found in made if found.name not in known]:
                how, done = drill.go_on(stage, workspace)
                if done.code != 0 or done.traceback:
                    problems.append(f"going on ({how}) ended with {done.code}: {done.said}")
            problems += broken(workspace)
            for kind in kinds:
                made = [f for f in artifacts(workspace, kind) if f.completed and f.name not in known]
                if not made:
                    problems.append(f"no completed {kind}")
                    continue
                last = max(made, key=lambda found: found.content["finished_at"])
                problems += differences(expected[kind], last.fingerprint()) + leftovers(last.path)
            drill.verdict(f"{stage}{where}", problems, workspace)
    drill.finish()


main()
