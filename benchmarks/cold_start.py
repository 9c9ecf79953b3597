"""Seconds from starting a process to the first action of `pipeline run-policy`, phase by phase.

    python -m benchmarks.cold_start --policy runs/policy-20260131-120000/policy.onnx --rounds 15

Every round starts a new interpreter, which runs the command on the file until its policy has returned
once, and is ended there. Libraries lie in the file system's cache after the first round, which is reported by
itself: `first_round_s` is the figure nearest to a machine that was just switched on.

Phases: `interpreter` until Python runs code, `command_line` imports the command line, `stage` imports the
stage with MuJoCo and ONNX Runtime, `open` reads the file and compiles the task's model, `act` makes the
world, resets it and runs the network once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.harness import ROOT, Cell, StudyParser, run_once, spread
from thousandfold.ground.files import file_sha256
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy

PHASES = ("interpreter", "command_line", "stage", "open", "act")
LIMIT_S = 1.0

# The monotonic clock is the machine's: parent and child read the same.
_CHILD = """
import json, os, sys, time
marks = [time.monotonic_ns()]
mark = lambda: marks.append(time.monotonic_ns())
import thousandfold.pipeline.cli
mark()
from thousandfold.stages.closed_loop import run_policy
from thousandfold.stages.policy_file import onnx_policy, source as policy_source
mark()
open_source, step = policy_source.open_source, onnx_policy.OnnxPolicy.step

def opened(*arguments, **options):
    source = open_source(*arguments, **options)
    mark()
    return source

def stepped(*arguments):
    outputs = step(*arguments)
    mark()
    os.write(1, (json.dumps(marks) + "\\n").encode())
    os._exit(0)

policy_source.open_source, onnx_policy.OnnxPolicy.step = opened, stepped
from thousandfold.pipeline.__main__ import main
main()
"""


def first_action(policy: Path) -> dict[str, float]:
    """Run the command in a new process; return the seconds of each phase, and of all as ``total``.

    Raises:
        RuntimeError: the command ended without an action.
    """
    arguments = ("run-policy", "--policy", str(policy), "--viewer", "off")
    began = time.monotonic_ns()
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"no action came: {done.stderr.strip()}")
    marks = [began, *json.loads(done.stdout.splitlines()[-1])]
    spans = [(after - before) / 1e9 for before, after in pairwise(marks)]
    return {**dict(zip(PHASES, spans, strict=True)), "total": (marks[-1] - began) / 1e9}


def measure(policy: Path, rounds: int) -> Cell:
    """Return median, least and largest seconds of each phase over the rounds, after the first one."""
    first = first_action(policy)
    found = [first_action(policy) for _ in range(rounds)]
    metadata = OnnxPolicy(policy).metadata
    network = metadata.network
    return {
        "task": metadata.task,
        "network": f"{network.depth} x {network.width}",
        "policy_sha256": file_sha256(policy),
        "first_round_s": round(first["total"], 3),
        "seconds": {
            phase: {name: round(value, 4) for name, value in spread([row[phase] for row in found]).items()}
            for phase in (*PHASES, "total")
        },
        "rounds_above_limit": sum(row["total"] > LIMIT_S for row in found),
    }


def show(result: Cell) -> str:
    """Return a line a policy."""
    return "\n".join(
        "{task}, {network}: first action after {seconds[total][median]:.2f} s ({seconds[total][min]:.2f} to "
        "{seconds[total][max]:.2f}); first round {first_round_s:.2f} s".format(**row)
        for row in result["policies"]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every policy that is named, and print a line for each."""
    parser = StudyParser(__doc__, "cold_start")
    parser.several("--policy", type=Path, help="policy files")
    parser.rounds(15, least=1)
    options = parser.parse(arguments, needs="policy")

    def measured() -> Cell:
        policies = [measure(policy.resolve(), options.rounds) for policy in options.policy]
        return {"limit_s": LIMIT_S, "rounds": options.rounds, "policies": policies}

    run_once(options, measured, show)


if __name__ == "__main__":
    main()
