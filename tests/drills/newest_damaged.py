"""The manifest of the newest artifact is damaged and an older one exists: it must be named, exit code 2."""

from __future__ import annotations

import json

from tests.drills.drilling import Drill, copied, newest, stage_command

_TAKERS = {
    "teacher": [
        ["generate-dataset", "--preset", "smoke", "--set", "episodes=4"],
        ["evaluate", "--preset", "smoke", "--set", "episodes=2"],
    ],
    "dataset": [["distill", "--preset", "smoke", "--set", "updates=4"]],
    "student": [["export-onnx", "--preset", "smoke"]],
    "policy": [["policy", "verify"], ["benchmark", "--preset", "smoke"]],
    "benchmark": [["report", "--preset", "smoke"]],
}
_DAMAGE = ("truncated", "empty", "missing", "edited", "not JSON")


def main() -> None:
    """Damage the newest of each kind and call what takes it."""
    drill = Drill(__doc__, 5)
    base = copied(drill.workspace_before("end"), drill.root / "newest-base")
    for stage in ("train-teacher", "generate-dataset", "distill", "export-onnx", "benchmark"):
        seed = ["--seed", "7"] if stage in ("train-teacher", "generate-dataset", "distill") else []
        drill.must([*stage_command(stage), *seed], base)
    for kind, commands in _TAKERS.items():
        for command in commands:
            for trial in range(drill.trials):
                workspace = copied(base, drill.root / "newest")
                if kind == "teacher" and command[0] == "evaluate":
                    command = [*command, "--teacher", newest(workspace, "teacher").name]
                damaged = newest(workspace, kind)
                path, how = damaged.path / "manifest.json", _DAMAGE[trial % len(_DAMAGE)]
                data = path.read_bytes()
                if how == "missing":
                    path.unlink()
                elif how == "edited":
                    content = json.loads(data)
                    content["results"]["success"] = 0.123456
                    path.write_text(json.dumps(content))
                else:
                    cut = data[: drill.random.randrange(1, len(data))] if how == "truncated" else b""
                    path.write_bytes(b"\xff\xfe not JSON" if how == "not JSON" else cut)
                done = drill.call(command, workspace)
                problems = []
                if done.code != 2:
                    problems.append(f"exit code {done.code}: {done.said}")
                if done.traceback:
                    problems.append(f"traceback: {done.said}")
                if damaged.name not in done.text.replace("\n", ""):
                    problems.append(f"{damaged.name} is not named: {done.said}")
                drill.verdict(
                    f"manifest of the newest {kind} {how}; {' '.join(command[:2])}", problems, workspace
                )
    drill.finish()


main()
