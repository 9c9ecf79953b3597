"""A chain of artifacts that nobody trained: its manifests and small files, as a report reads them."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thousandfold.ground.files import write_atomic, write_json_atomic
from thousandfold.pipeline.artifacts import Artifact, Workspace

TASK = "point_u_maze"
EVALUATED = {"episodes": 1000, "success": 0.987, "success_interval": [0.978, 0.992]}
RETAINED = {
    "episodes": 1024,
    "success": 0.992,
    "success_interval": [0.985, 0.996],
    "teacher_success": 0.989,
    "retention": 1.003,
    "retention_interval": [0.998, 1.008],
    "time_at_goal_retention": 0.994,
    "time_at_goal_retention_interval": [0.981, 1.007],
    "lost_episodes": 2,
    "gained_episodes": 5,
    "student_parameters": 68740,
}


def _network(p50: float) -> dict[str, Any]:
    calls = {"samples": 5000, "p50_us": p50, "p90_us": p50 + 1, "p99_us": p50 + 2, "max_us": 400.0}
    return {
        "back_to_back": calls,
        "paced": {"samples": 50, "p50_us": 240.0, "p99_us": 260.0, "ticks": 50, "missed": 3},
    }


TIMED: dict[str, Any] = {
    "rate_hz": 10.0,
    "period_us": 100000.0,
    "networks": {"student": _network(11.7), "teacher": _network(33.9)},
    "speedup": 2.897,
    "host": {"cpu": "A processor", "usable_cpus": 2, "load_average": 0.1},
    "runtime": {"name": "onnxruntime", "version": "1.0", "threads": 1},
}
HISTORY = [
    {"env_steps": 1000 * k, "updates": 10 * k, "success": k / 9, "info_nce": 4.0 - 0.1 * k, "episodes": 64}
    for k in range(1, 10)
]
FAILURES = [{"episode": k, "failed": who} for k, who in enumerate(["student", "student", "teacher", "both"])]


def png(width: int = 40, height: int = 20, noise: bytes = b"") -> bytes:
    """Return a white picture; `noise` makes its file larger."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\x00" + b"\xff" * width for _ in range(height)))
    parts = [
        chunk(b"IHDR", header),
        chunk(b"tEXt", b"noise\x00" + noise),
        chunk(b"IDAT", rows),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@dataclass
class MadeUpChain:
    """Artifacts by kind, in a workspace."""

    workspace: Workspace
    made: dict[str, Artifact]

    def add(
        self,
        kind: str,
        parents: tuple[str, ...],
        results: dict[str, Any],
        files: dict[str, Any] | None = None,
        task: str = TASK,
        **settings: Any,
    ) -> Artifact:
        """Make a completed artifact; bytes are written as they are, everything else as JSON."""
        artifact = self.workspace.create(
            kind,
            task=task,
            settings={"seed": 0} | settings,
            parents={role: self.made[role].parent_entry() for role in parents},
        )
        for name, content in (files or {}).items():
            if isinstance(content, bytes):
                write_atomic(artifact.file(name), content)
            else:
                write_json_atomic(artifact.file(name), content)
        artifact.complete(results)
        self.made[kind] = artifact
        return artifact


def make_chain(root: Path, task: str = TASK, licence: str = "") -> MadeUpChain:
    """Make teacher, dataset, student, policy and benchmark."""
    chain = MadeUpChain(Workspace(root), {})
    history, picture = {"history": HISTORY}, png()
    curves = {"history.json": history, "learning_curve.png": picture, "rollouts.png": picture}
    teacher_files = curves | {"gradients.png": picture}
    teacher_results = {
        "episodes": 256,
        "success": 1.0,
        "success_interval": [0.985, 1.0],
        "actor_parameters": 269956,
    }
    chain.add("teacher", (), teacher_results, teacher_files, task, depth=16, width=128)
    data = {
        "rows": 100_000,
        "episodes": 1000,
        "success": 0.916,
        "success_interval": [0.897, 0.932],
        "coverage": 0.75,
    }
    chain.add("dataset", ("teacher",), data, {"coverage.png": png(400, 100)}, task, episodes=777)
    student_files = curves | {"failures.json": FAILURES, "failures.png": picture}
    parents = ("teacher", "dataset")
    chain.add("student", parents, RETAINED, student_files, task, student_depth=4, student_width=64)
    parents = ("student", "teacher", "dataset")
    policy = EVALUATED | {"bytes": 282875}
    chain.add("policy", parents, policy, {"policy.onnx": b"graph"}, task, licence=licence)
    chain.add("benchmark", ("policy",), TIMED, {"benchmark.json": TIMED, "latency.png": picture}, task)
    return chain
