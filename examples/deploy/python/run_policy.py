"""Run a policy file with numpy and onnxruntime; `python run_policy.py policy.onnx` checks and times it."""

from __future__ import annotations

import json
import re
import sys
import time
from typing import NamedTuple

import numpy as np
import onnxruntime

FORMAT_VERSIONS = (3, 4)  # 4 has earlier readings or a clock, which `PolicyRunner` fills in


class Policy:
    """A policy file, opened to act on one thread; `metadata` holds names, units, ranges and control_dt_s.

    With `trusted`, the file of a public key, the policy must be signed with it.
    """

    def __init__(self, path: str, trusted: str | None = None) -> None:
        with open(path, "rb") as file:
            content = file.read()
        if trusted is not None:
            from signature import require_signature  # the file beside this one

            require_signature(content, trusted)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        texts = self._session.get_modelmeta().custom_metadata_map
        self.metadata = json.loads(texts.get("thousandfold", "{}"))
        if self.metadata.get("format_version") not in FORMAT_VERSIONS or "thousandfold_golden" not in texts:
            raise ValueError(f"{path} is no policy file of format 3 or 4: export it again")
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


class Step(NamedTuple):
    """What to send now; `control` is None where nothing was safe to send yet."""

    control: np.ndarray | None
    status: str  # "ok", or why the last control is held: "late", "not_finite"


class PolicyRunner:
    """A policy in its control loop: keeps past readings, time and what was sent, clamps controls, or holds.

    `readings` names what `step` takes, in order; `held` counts the steps in a row that held the last control.
    """

    def __init__(self, policy: Policy, start: dict[str, float] | None = None) -> None:
        self.policy, metadata = policy, policy.metadata
        self._controls = metadata["outputs"]["control"]
        ends = np.array([(control["low"], control["high"]) for control in self._controls], np.float32)
        self._low, self._high = ends.min(1), ends.max(1)
        rates = np.array([control.get("max_rate") for control in self._controls], np.float32)  # None is NaN
        dt = metadata["control_dt_s"]
        self._most = np.where(np.isnan(rates), np.float32(np.inf), rates * np.float32(dt))
        names = [element["name"] for element in metadata["inputs"]["observation"]]
        found = [re.fullmatch(r"(?s)(.+)@-([1-9][0-9]*)", name) for name in names]
        self._ages = np.array([int(match[2]) if match else 0 for match in found])
        newest = [match[1] if match else name for match, name in zip(found, names, strict=True)]
        sent = [f"ctrl:{control['name']}[0]" for control in self._controls]
        current = [name for name, age in zip(newest, self._ages, strict=True) if not age]
        clocks = {name: re.fullmatch(r"clock:([0-9.e+-]+)\[([01])\]", name) for name in current}
        self.readings = [name for name in current if name not in sent and not clocks[name]]
        told = {name: (float(match[1]), int(match[2])) for name, match in clocks.items() if match}
        self._turn = np.array([2 * np.pi * dt / period for period, _ in told.values()])
        self._shift = np.array([number * np.pi / 2 for _, number in told.values()])  # sin is cos later
        # A step is a row: its readings, what was sent before it, its time. Each input is a number of a row.
        columns = {name: column for column, name in enumerate([*self.readings, *sent, *told])}
        if lacking := set(newest) - set(columns):
            raise ValueError(f"the policy takes earlier readings of {min(lacking)}, but not the newest")
        self._columns = np.array([columns[name] for name in newest])
        self._past = np.zeros((self._ages.max() + 1, len(columns)), np.float32)  # from the newest row on
        self._remembered = [
            name in newest or most < np.inf for name, most in zip(sent, self._most, strict=True)
        ]
        self.reset(start)

    def reset(self, start: dict[str, float] | None = None) -> None:
        """Begin anew; `start` says by actuator what counts as sent before the first step.

        For a position servo that is where it stands, which the first readings tell where they have its joint.
        Raises ValueError where one that the policy builds on is neither given nor known.
        """
        start = start or {}
        if unknown := start.keys() - {control["name"] for control in self._controls}:
            raise ValueError(f"there is no actuator {min(unknown)}")
        self._start, self._joints = np.zeros(len(self._controls), np.float32), []
        for place, control in enumerate(self._controls):
            name, joint = control["name"], f"qpos:{control.get('joint')}[0]"
            if name in start:
                self._start[place] = start[name]
            elif joint in self.readings:
                self._joints.append((place, self.readings.index(joint), np.float32(control["gear"])))
            elif control.get("kp") is None and control.get("start") is not None:  # no servo, which would jump
                self._start[place] = control["start"]
            elif self._remembered[place]:
                raise ValueError(f"give the start of actuator {name}: where it stands")
        if not np.isfinite(self._start).all():
            raise ValueError("a start is NaN or infinite")
        self._sent, self.held, self._steps = None, 0, 0

    def step(self, readings: np.ndarray | None, goal: np.ndarray | None) -> Step:
        """Return what to send for the newest readings and a goal; None is one that is late."""
        status, count = "late", len(self.readings)
        if readings is not None and goal is not None:
            with np.errstate(over="ignore"):  # too large for float32 is infinite
                fresh, wanted = np.asarray(readings, np.float32), np.asarray(goal, np.float32)
            if fresh.shape != (count,):
                raise ValueError(f"readings have shape {fresh.shape}, not {(count,)}")
            status = "ok" if np.isfinite(fresh).all() and np.isfinite(wanted).all() else "not_finite"
        sent = self._sent
        if sent is None and status == "ok":  # as if it had stood there for ever
            sent = self._start.copy()
            for place, reading, gear in self._joints:
                sent[place] = gear * fresh[reading]
            sent, self._steps = sent.clip(self._low, self._high), 0
            self._past[:] = np.concatenate([fresh, sent, self._clocks()])
        elif sent is not None:
            self._steps += 1
            self._past[1:] = self._past[:-1]
            self._past[0, count:] = np.concatenate([sent, self._clocks()])
            if status == "ok":
                self._past[0, :count] = fresh
        if status == "ok":
            _, control = self.policy(self._past[self._ages, self._columns], wanted)
            if np.isfinite(control).all():
                control = control.clip(sent - self._most, sent + self._most).clip(self._low, self._high)
                self._sent, self.held = control, 0
                return Step(control.copy(), status)
            status = "not_finite"
        self.held += 1
        return Step(None if self._sent is None else self._sent.copy(), status)

    def _clocks(self) -> np.ndarray:
        return np.cos(self._steps * self._turn - self._shift)


def golden_error(policy: Policy) -> float:
    """Return the largest error over the golden rows: of an action, or of a control over its bound."""
    golden = {name: np.asarray(rows) for name, rows in policy.golden.items()}
    outputs = [policy(*pair) for pair in zip(golden["observation"], golden["goal"], strict=True)]
    action, control = (np.array(rows) for rows in zip(*outputs, strict=True))
    bound = np.array([max(abs(e["low"]), abs(e["high"])) for e in policy.metadata["outputs"]["control"]])
    shares = np.abs(control - golden["control"]) / np.where(bound > 0, bound, 1.0)
    return float(np.max([np.abs(action - golden["action"]).max(), shares.max()]))


def main(path: str, trusted: str | None = None) -> int:
    """Print golden error and latency; return 1 where the error is too large, 2 for what is no policy."""
    try:
        policy = Policy(path, trusted)
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
    if len(sys.argv) != 2 and (len(sys.argv) != 4 or sys.argv[2] != "--trusted"):
        sys.exit("usage: python run_policy.py policy.onnx [--trusted key.pub]")
    sys.exit(main(*sys.argv[1::2]))
