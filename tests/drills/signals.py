"""SIGTERM, Ctrl-C, SIGHUP and two Ctrl-C in a row at random moments of a stage, then going on as it told."""

from __future__ import annotations

import argparse
import re
import signal
import time
from pathlib import Path

from tests.drills.drilling import (
    STAGES,
    Drill,
    Found,
    artifacts,
    broken,
    copied,
    differences,
    leftovers,
    newest,
    nothing_to_resume,
    stage_command,
)

_TOLD = re.compile(r"Continue with: pipeline --workspace (?:'[^']*'|\S+) (.*)")
_CASES = {
    "SIGTERM": [signal.SIGTERM],
    "SIGINT": [signal.SIGINT],
    "SIGHUP": [signal.SIGHUP],
    "two SIGINT": [signal.SIGINT, signal.SIGINT],
}


def main() -> None:
    """Stop each stage by each signal."""

    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--stages", default="train-teacher,generate-dataset,distill,export-onnx")

    drill = Drill(__doc__, 5, options)
    for stage in drill.options.stages.split(","):
        base, kind = drill.workspace_before(stage), STAGES[stage]
        reference = copied(base, drill.root / "signals-reference")
        unbroken = drill.must(stage_command(stage), reference)
        expected = newest(reference, kind).fingerprint()
        for case, signals in _CASES.items():
            for trial in range(drill.trials):
                workspace = copied(base, drill.root / f"signals-{trial}")
                known = {found.name for found in artifacts(workspace)}
                moment = drill.random.uniform(0.1, 1) * unbroken.seconds
                running = drill.launch(stage_command(stage), workspace)
                time.sleep(moment)
                for number in signals:
                    running.kill(number)
                    time.sleep(0.15)
                stopped = running.wait(120)
                problems = broken(workspace)
                if stopped.code is None:
                    problems.append("it did not stop within 120 s")
                if stopped.traceback:
                    problems.append(f"traceback: {stopped.said}")

                if not _made(workspace, kind, known):
                    told = _TOLD.findall(" ".join(stopped.text.split("\n")))
                    done = drill.call(told[-1].split(), workspace) if told else None
                    if done is None or nothing_to_resume(done):
                        _, done = drill.go_on(stage, workspace)
                    if done.code != 0:
                        problems.append(f"going on ended with {done.code}: {done.said}")
                problems += broken(workspace)
                if finished := _made(workspace, kind, known):
                    problems += differences(expected, finished[-1].fingerprint())
                    problems += leftovers(finished[-1].path)
                else:
                    problems.append(f"no {kind} was completed")
                drill.verdict(
                    f"{case} at {moment:.2f} of {unbroken.seconds:.1f} s of {stage}, exit {stopped.code}",
                    problems,
                    workspace,
                )
    drill.finish()


def _made(workspace: Path, kind: str, known: set[str]) -> list[Found]:
    return [found for found in artifacts(workspace, kind) if found.completed and found.name not in known]


main()
