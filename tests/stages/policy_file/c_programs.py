"""Policies whose C code is tested, and how programs in C are built and run."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.stages.benchmark.test_torch_runtimes import expected, policy, states
from tests.stages.policy_file.handmade_policy import metadata
from thousandfold.models.deployable_policy import DeployablePolicy
from thousandfold.models.onnx_graph import to_onnx
from thousandfold.stages.policy_file.golden import TOLERANCE, GoldenArrays, GoldenSet
from thousandfold.stages.policy_file.onnx_bytes import ModelBytes, split_model

STRICT = ("-std=c99", "-O3", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wconversion", "-Wshadow")
COMPILERS = [compiler for compiler in ("gcc", "clang") if shutil.which(compiler)]


def require_compiler() -> str:
    """Return a C compiler; skip where there is none."""
    if not COMPILERS:
        pytest.skip("no C compiler is installed")
    return COMPILERS[0]


def policy_file(
    module: DeployablePolicy, *, model: Any = None, tolerance: float = TOLERANCE, **changes: Any
) -> ModelBytes:
    """Return a policy file of a module with 5 observations, 3 goals, 2 actions and 3 controls.

    `model` is the graph, by default the module's own; `changes` are of the description.
    """
    rows = states(16)
    outputs = [expected(module, row) for row in rows]
    arrays = [[pair[place] for pair in pairs] for pairs in (rows, outputs) for place in range(2)]
    graph = split_model((model or to_onnx(module, opset=20)).SerializeToString())
    ends = {"unit": "", "low": -5.0, "high": 5.0}
    limits = ends | {"limit_low": -9.0, "limit_high": 9.0}
    description = metadata(
        graph_sha256=graph.graph_sha256,
        inputs={
            "observation": [{"name": f"qpos:o{place}[0]"} | limits for place in range(5)],
            "goal": [{"name": f"goal[{place}]"} | limits for place in range(3)],
        },
        outputs={
            "action": [{"name": f"a{place}"} | ends for place in range(2)],
            "control": [{"name": f"m{place}"} | ends for place in range(3)],
        },
    )
    golden = GoldenSet.of(GoldenArrays(*map(np.stack, arrays)), tolerance)
    return graph.sealed(json.dumps(description | changes), golden.model_dump_json())


def drawn_policy(shape: Any, **actuators: Any) -> ModelBytes:
    """Return a policy file with drawn weights."""
    return policy_file(policy(shape, **actuators))


def built(
    folder: Path, files: Mapping[str, str], program: str, *flags: str, compiler: str | None = None
) -> Path:
    """Return a program, compiled with the files of a policy; fail with what the compiler says."""
    compiler = compiler or require_compiler()
    for name, text in {**files, "main.c": program}.items():
        (folder / name).write_text(text, encoding="utf-8")
    sources = [str(folder / name) for name in ("policy.c", "main.c")]
    command = [compiler, *(flags or STRICT), "-o", str(folder / "program"), *sources, "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "program"


def ran(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end."""
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, env=environment or None, timeout=300, check=False)
