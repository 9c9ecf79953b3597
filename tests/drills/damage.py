"""One damaged file of a finished chain or of a checkpoint, then the command that reads it.

It must be noticed (one line, exit code 2), or said (a warning), or provably not matter (the same outcome).
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.drills.drilling import Drill, artifacts, chain_command, copied, newest, stage_command

_DAMAGE = ("flip", "truncate", "swap", "empty", "foreign", "append", "zeros", "missing")
_DATASET = ["generate-dataset", "--preset", "smoke", "--set", "episodes=4", "--set", "num_worlds=4"]
_STUDENT = ["distill", "--preset", "smoke"] + [
    argument
    for value in (
        "updates=4",
        "evaluate_every=4",
        "evaluation_episodes=2",
        "final_episodes=4",
        "max_final_episodes=4",
    )
    for argument in ("--set", value)
]
_EVALUATE = ["evaluate", "--preset", "smoke", "--set", "episodes=4"]
_LONE = "LONE"


@dataclass(frozen=True)
class Case:
    """A file and what reads it.

    Attributes:
        files: pattern below the workspace.
        command: reads the file; `LONE` stands for the path of a policy file outside runs/.
        kind: artifact that the command makes; None: it makes none.
        base: which workspace.
    """

    files: str
    command: list[str]
    kind: str | None
    base: str = "end"


_CASES = {
    "teacher network": Case("runs/teacher-*/network.safetensors", _DATASET, "dataset"),
    "teacher manifest": Case("runs/teacher-*/manifest.json", _DATASET, "dataset"),
    "teacher checkpoint": Case(
        "runs/teacher-*/checkpoint/*", ["train-teacher", "--resume"], "teacher", "teacher"
    ),
    "student checkpoint": Case("runs/student-*/checkpoint/*", ["distill", "--resume"], "student", "student"),
    "dataset shard": Case("runs/dataset-*/minari/thousandfold/*/shard_*/data/*", _STUDENT, "student"),
    "dataset view": Case("runs/dataset-*/minari/thousandfold/*-v0/data/*", _STUDENT, "student"),
    "dataset manifest": Case("runs/dataset-*/manifest.json", _STUDENT, "student"),
    "packed copy": Case("cache/datasets/*", _STUDENT, "student"),
    "student network": Case("runs/student-*/network.safetensors", stage_command("export-onnx"), "policy"),
    "student manifest": Case("runs/student-*/manifest.json", stage_command("export-onnx"), "policy"),
    "policy file": Case("runs/policy-*/policy.onnx", _EVALUATE, "evaluation"),
    "policy manifest": Case("runs/policy-*/manifest.json", _EVALUATE, "evaluation"),
    "lone policy, inspected": Case("lone/policy.onnx", ["policy", "inspect", _LONE], None),
    "lone policy, verified": Case("lone/policy.onnx", ["policy", "verify", _LONE, "--episodes", "2"], None),
    "history": Case("runs/*/history.json", ["report"], "report"),
    "benchmark's figures": Case("runs/benchmark-*/benchmark.json", ["report"], "report"),
    "benchmark manifest": Case("runs/benchmark-*/manifest.json", ["report"], "report"),
    "tracking store": Case("mlflow/mlflow.db", ["report"], "report"),
    "chain record": Case("runs/chain-*.json", ["run", "--resume"], "report", "chain"),
}


def main() -> None:
    """Damage each file in each way."""

    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--only", default="", help="cases whose names begin so, separated by commas")

    drill = Drill(__doc__, 10, options)
    chosen = drill.options.only.split(",")
    for name, case in _CASES.items():
        if not any(name.startswith(begin) for begin in chosen):
            continue
        base = _base(drill, case.base)
        known = {found.name for found in artifacts(base) if found.completed}
        whole = _prepared(base, drill.root / "damage-whole")
        expected = _outcome(whole, drill.must(_filled(case.command, whole), whole).text, case, known)
        for trial in range(drill.trials):
            workspace = _prepared(base, drill.root / "damage")
            targets = [
                path for path in sorted(workspace.glob(case.files)) if path.is_file() and path.name != ".lock"
            ]
            path = drill.random.choice(targets)
            how = _DAMAGE[trial % len(_DAMAGE)]
            what = _damage(drill, how, path, workspace)
            done = drill.call(_filled(case.command, workspace), workspace)
            problems = []
            if done.traceback:
                problems.append(f"traceback: {done.said}")
            elif done.code == 0:
                warned = (
                    "Warning" in done.text
                    or "left out" in done.text
                    or (case.kind is None and "none" in done.text)
                )
                if not warned and _outcome(workspace, done.text, case, known) != expected:
                    problems.append("another outcome, and not a word of the damage")
            elif done.code != 2 and not (case.kind is None and done.code == 1 and "failed" in done.text):
                problems.append(f"exit code {done.code}: {done.said}")
            shown = f"{name}: {path.relative_to(workspace)} {what}; exit {done.code}"
            drill.verdict(f"{shown} {done.said}" if done.code else shown, problems, workspace)
    drill.finish()


def _base(drill: Drill, which: str) -> Path:
    """Return the finished chain, or a workspace with something in it that can be resumed; made once."""
    if which == "end":
        return drill.workspace_before("end")
    place = drill.root / "base" / f"unfinished-{which}"
    if (place / ".ready").exists():
        return place
    if which == "chain":
        copied(drill.workspace_before("train-teacher"), place)
        command, begun = chain_command(), "runs/policy-*/manifest.json"
    elif which == "teacher":
        copied(drill.workspace_before("train-teacher"), place)
        command, begun = (
            ["train-teacher", "--preset", "smoke"],
            "runs/teacher-*/checkpoint/replay-*3.safetensors",
        )
    else:
        copied(drill.workspace_before("distill"), place)
        more = (
            "updates=600",
            "checkpoint_every=10",
            "dagger_rounds=1",
            "dagger_episodes=8",
            "dagger_updates=300",
        )
        command = ["distill", "--preset", "smoke", *[part for value in more for part in ("--set", value)]]
        begun = "runs/student-*/checkpoint/manifest.json"
    (place / ".ready").unlink()
    running = drill.launch(command, place)
    running.wait_for(lambda: list(place.glob(begun)))
    running.kill()
    running.wait()
    (place / ".ready").touch()
    return place


def _prepared(base: Path, place: Path) -> Path:
    workspace = copied(base, place)
    if policies := sorted(workspace.glob("runs/policy-*/policy.onnx")):
        (workspace / "lone").mkdir()
        shutil.copy(policies[-1], workspace / "lone" / "policy.onnx")
    return workspace


def _filled(command: list[str], workspace: Path) -> list[str]:
    return [str(workspace / "lone" / "policy.onnx") if part == _LONE else part for part in command]


def _outcome(workspace: Path, text: str, case: Case, known: set[str]) -> Any:
    """Return what the command made, without times and names; for one that makes nothing, what it printed."""
    if case.kind is None:
        return text.replace(str(workspace), "")
    fresh = [f for f in artifacts(workspace, case.kind) if f.completed and f.name not in known]
    if not fresh:
        return None
    found = newest(workspace, case.kind)
    prints = found.fingerprint()
    if case.kind in ("policy", "evaluation"):
        prints["results"] = {
            k: v for k, v in found.content["results"].items() if "_s" not in k and "hash" not in k
        }
    return json.dumps(prints, sort_keys=True)


def _damage(drill: Drill, how: str, path: Path, workspace: Path) -> str:
    """Damage a file; return what was done."""
    data = bytearray(path.read_bytes())
    others = [
        other
        for pattern in ("runs/*/*", "runs/*/checkpoint/*", "runs/dataset-*/minari/thousandfold/*/*/data/*")
        for other in sorted(workspace.glob(pattern))
        if other.is_file() and other != path and other.read_bytes() not in (b"", bytes(data))
    ]
    same = [other for other in others if other.suffix == path.suffix]
    path.chmod(0o644)
    if how == "missing":
        path.unlink()
        return how
    if how == "swap" and same:
        other = drill.random.choice(same)
        theirs = other.read_bytes()
        other.write_bytes(data)
        path.write_bytes(theirs)
        return f"swapped with {other.relative_to(workspace)}"
    if how == "foreign":
        other = drill.random.choice(others)
        path.write_bytes(other.read_bytes())
        return f"replaced by {other.relative_to(workspace)}"
    if how == "empty":
        data = bytearray()
    elif how == "append":
        data += drill.random.randbytes(drill.random.randint(1, 64))
    elif how == "truncate":
        del data[drill.random.randrange(len(data)) :]
    elif how == "zeros":
        at = drill.random.randrange(max(1, len(data) - 64))
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    else:
        at = drill.random.randrange(len(data))
        data[at] ^= 1 << drill.random.randrange(8)
        how = f"flip in byte {at} of {len(data)}"
    path.write_bytes(data)
    return how


main()
