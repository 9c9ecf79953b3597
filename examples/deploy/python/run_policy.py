"""Run a policy file with numpy and onnxruntime; `python run_policy.py policy.onnx` checks and times it."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import onnxruntime

FORMAT_VERSIONS = 3, 4  # 4: past readings are among the inputs, see runner.py


class Policy:
    """A policy file, opened to act on one thread; `metadata` holds names, units, ranges and control_dt_s."""

    def __init__(self, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        texts = self._session.get_modelmeta().custom_metadata_map
        self.metadata = json.loads(texts.get("thousandfold", "{}"))
        if self.metadata.get("format_version") not in FORMAT_VERSIONS or "thousandfold_golden" not in texts:
            raise ValueError(f"{path} is no policy file of formats {FORMAT_VERSIONS}: export it again")
        dt = self.metadata.get("control_dt_s")
        if not (isinstance(dt, int | float) and 0 < dt < float("inf")):  # NaN is not
            raise ValueError(f"{path} has a control_dt_s that is no time above 0: export it again")
        self.golden = json.loads(texts["thousandfold_golden"])
        inputs = self.metadata["inputs"]
        self._rows = {name: np.zeros((1, len(inputs[name])), np.float32) for name in ("observation", "goal")}

    def __call__(self, observation: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the action in [-1, 1] and the control in actuator units for one observation and goal."""
        for name, value in (("observation", observation), ("goal", goal)):
            row = self._rows[name]
            if np.shape(value) != row.shape[1:]:
                raise ValueError(f"{name} has shape {np.shape(value)}, not {row.shape[1:]}")
            row[0] = value
            if not np.isfinite(row).all():  # the clip inside the graph may hide it
                raise ValueError(f"{name} holds NaN or infinity: stop, or repeat the last control")
        action, control = self._session.run(["action", "control"], self._rows)
        return action[0], control[0]


def golden_error(policy: Policy) -> float:
    """Return the largest error over the golden rows: of an action, or of a control over its bound."""
    golden = {name: np.asarray(rows) for name, rows in policy.golden.items()}
    outputs = [policy(*pair) for pair in zip(golden["observation"], golden["goal"], strict=True)]
    action, control = (np.array(rows) for rows in zip(*outputs, strict=True))
    bound = np.array([max(abs(e["low"]), abs(e["high"])) for e in policy.metadata["outputs"]["control"]])
    shares = np.abs(control - golden["control"]) / np.where(bound > 0, bound, 1.0)
    return float(np.max([np.abs(action - golden["action"]).max(), shares.max()]))


def main(path: str) -> int:
    """Print golden error and latency; return 1 where the error is too large, 2 for what is no policy."""
    try:
        policy = Policy(path)
        error, tolerance = golden_error(policy), policy.golden["tolerance"]
    except Exception as wrong:  # ONNX Runtime's errors have no common class of their own
        print(f"Error: {path} cannot be run: {' '.join(str(wrong).split())}", file=sys.stderr)
        return 2
    print(f"golden rows: {len(policy.golden['action'])}, max error {error:.2e}, tolerance {tolerance:.0e}")
    observation, goal = (np.asarray(policy.golden[name][0]) for name in ("observation", "goal"))
    latencies = []
    for _ in range(5000):
        began = time.perf_counter_ns()
        policy(observation, goal)
        latencies.append((time.perf_counter_ns() - began) / 1e3)
    p50, p99 = np.percentile(latencies[500:], [50, 99])
    print(f"latency: p50 {p50:.1f} us, p99 {p99:.1f} us, one thread, back to back")
    return int(not error <= tolerance)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python run_policy.py policy.onnx")
    sys.exit(main(sys.argv[1]))
