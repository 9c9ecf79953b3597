"""What `stages.benchmark.fresh_process` starts: opens a policy, calls it, prints as JSON what that took.

    python -m thousandfold.stages.benchmark.fresh_probe POLICY_FILE SPAWNED_NS

SPAWNED_NS is the parent's `time.monotonic_ns()` at the start; the clock is the machine's, not the process's.
Everything that a robot need not import is imported late, so that it does not count.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

_CALLS = 10_000


def probe(path: Path, spawned_ns: int, started_ns: int) -> dict[str, Any]:
    """Return times of the start, in seconds by step, and memory in bytes.

    Memory: ``resident_after_load`` with the session open; of 10,000 steps afterwards ``resident_growth`` and
    ``heap_growth``; of a step's Python ``python_kept`` after 1000 and ``python_within_a_call``; of the call
    inside the runtime alone ``bound_heap_growth``, ``bound_kept`` and ``bound_within_a_call``. None where the
    system does not say.
    """
    import numpy as np

    from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy

    imported_ns = time.monotonic_ns()
    policy = OnnxPolicy(path)
    opened_ns = time.monotonic_ns()
    state = _middle(policy.metadata.inputs.observation), _middle(policy.metadata.inputs.goal)
    rows = [np.array(values, np.float32) for values in state]
    policy.step(*rows)
    acted_ns = time.monotonic_ns()
    return {
        "cold_start": {
            "interpreter_s": (started_ns - spawned_ns) / 1e9,
            "import_s": (imported_ns - started_ns) / 1e9,
            "session_s": (opened_ns - imported_ns) / 1e9,
            "first_call_s": (acted_ns - opened_ns) / 1e9,
        },
        "memory": _memory(policy, rows),
    }


def _middle(elements: Any) -> list[float]:
    return [0.5 * (element.low + element.high) for element in elements]


def _memory(policy: Any, rows: list[Any]) -> dict[str, int | None]:
    from thousandfold.stages.benchmark.memory_use import heap_growth, python_bytes, resident_bytes

    def step() -> None:
        policy.step(*rows)

    after_load = resident_bytes()
    for _ in range(_CALLS):  # what the allocators settle at is not growth
        step()
    resident = resident_bytes()
    for _ in range(_CALLS):
        step()
    found = {
        "resident_after_load": after_load,
        "resident_growth": _difference(resident_bytes(), resident),
        "heap_growth": heap_growth(step, _CALLS),
        "bound_heap_growth": heap_growth(policy.run_bound, _CALLS),
        "calls": _CALLS,
    }
    for name, call in (("python", step), ("bound", policy.run_bound)):
        found |= {f"{name}_{key}": value for key, value in python_bytes(call).items()}
    return found


def _difference(after: int | None, before: int | None) -> int | None:
    return None if after is None or before is None else after - before


if __name__ == "__main__":
    _STARTED_NS = time.monotonic_ns()
    import json

    print(json.dumps(probe(Path(sys.argv[1]), int(sys.argv[2]), _STARTED_NS)))
