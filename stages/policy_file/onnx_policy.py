"""An exported policy, run by ONNX Runtime on one thread: what a robot needs, without torch, mlflow or onnx.

A policy file is one ONNX graph with the inputs ``observation`` and ``goal``, the outputs ``action`` and
``control``, and metadata that says what they are: see `metadata` beside this and docs/policy-format.md.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime

from thousandfold.ground.errors import DamagedFileError, NonFiniteError
from thousandfold.stages.policy_file.golden import GoldenSet, parse_golden
from thousandfold.stages.policy_file.graph import require_known_graph
from thousandfold.stages.policy_file.metadata import InputElement, PolicyMetadata, parse_metadata
from thousandfold.stages.policy_file.onnx_bytes import (
    EXPORT_AGAIN,
    GOLDEN_KEY,
    METADATA_KEY,
    ModelBytes,
    read_model,
)

POLICY_FILE = "policy.onnx"
TEACHER_FILE = "teacher.onnx"

_FATAL = 4


class OtherModelError(DamagedFileError):
    """A policy was trained for another compiled model than the one at hand."""


class PolicyOutputs(NamedTuple):
    """What a policy returns."""

    action: np.ndarray
    """(..., action_dim) in [−1, 1]"""
    control: np.ndarray
    """(..., num_actuators) in actuator units"""


class OnnxPolicy:
    """A policy file, opened to act. Not for use from several threads at once.

    Args:
        path: the file.
        task: the task it must be for; None takes any.
        check_hash: whether to compare graph, description and golden rows with their recorded hashes, some
            milliseconds for a few MB.
        trusted: public keys, one of which must have signed the file; empty: it need not be signed.
        content: the file's bytes, where they were read before; None: they are read.

    Raises:
        DamagedFileError: the file is missing, truncated, foreign, changed since it was exported, of another
            version, of another task or signed with no trusted key.
    """

    def __init__(
        self,
        path: Path,
        *,
        task: str | None = None,
        check_hash: bool = True,
        trusted: Collection[bytes] = (),
        content: bytes | None = None,
    ) -> None:
        self.path = Path(path)
        model = read_model(self.path, trusted, content)
        self.metadata = parse_metadata(model.metadata.get(METADATA_KEY), self.path)
        self._golden = model.metadata.get(GOLDEN_KEY)
        if task is not None and self.metadata.task != task:
            raise DamagedFileError(f"{path} is a policy for task {self.metadata.task!r}, not for {task!r}.")
        if check_hash and (change := model.change_since_export(self.metadata.graph_sha256)):
            raise DamagedFileError(
                f"{path} was changed since it was exported: {change}. Copy it anew, or {EXPORT_AGAIN}."
            )
        require_known_graph(model, self.path)
        self._session = _open_session(model, self.path)
        sizes = self.metadata.sizes()
        found = {
            node.name: node.shape for node in (*self._session.get_inputs(), *self._session.get_outputs())
        }
        if set(found) != set(sizes) or any(
            len(shape) != 2 or isinstance(shape[0], int) or shape[1] != sizes[name]
            for name, shape in found.items()
        ):
            raise DamagedFileError(
                f"{path} has inputs and outputs {found}, its metadata says {sizes}: {EXPORT_AGAIN}."
            )
        self._bind(sizes)

    def golden(self) -> GoldenSet:
        """Return the golden rows of the file; raise DamagedFileError where there are none."""
        return parse_golden(self._golden, self.metadata, self.path)

    def expect_model(self, model_sha256: str) -> None:
        """Raise OtherModelError where the policy was trained for another compiled model than this one."""
        require_model(self.metadata, model_sha256, str(self.path))

    def __call__(self, observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Return actions (n, action_dim) for observations (n, observation_dim) and goals (n, goal_dim)."""
        return self.run(observation, goal).action

    def run(self, observation: np.ndarray, goal: np.ndarray) -> PolicyOutputs:
        """Return both outputs for real numbers, (n, observation_dim) and (n, goal_dim).

        Raises:
            ValueError: one of them has another shape or holds no real numbers.
            NonFiniteError: a number is NaN or infinite.
        """
        feeds = {"observation": _as_rows("observation", observation), "goal": _as_rows("goal", goal)}
        for name, rows in feeds.items():
            size = len(getattr(self.metadata.inputs, name))
            if rows.ndim != 2 or rows.shape[1] != size:
                raise ValueError(f"{name} has shape {rows.shape}, not (batch, {size})")
            if not np.isfinite(rows).all():
                raise self._not_finite(name, rows)
        if len(feeds["observation"]) != len(feeds["goal"]):
            raise ValueError(f"{len(feeds['observation'])} observations and {len(feeds['goal'])} goals")
        try:
            action, control = self._session.run(["action", "control"], feeds)
        except Exception as error:  # ONNX Runtime's errors have no common class of their own
            raise self._not_computed(error) from error
        return PolicyOutputs(np.asarray(action), np.asarray(control))

    def step(self, observation: np.ndarray, goal: np.ndarray) -> PolicyOutputs:
        """Return both outputs for one state; the fast path, through buffers that are bound once.

        The state is real numbers, (observation_dim,) and (goal_dim,).

        Raises:
            ValueError: one of them has another shape or holds no real numbers.
            NonFiniteError: a number is NaN or infinite.
        """
        if observation.shape != self._observation.shape or goal.shape != self._goal.shape:
            raise ValueError(
                f"one step takes an observation of shape {self._observation.shape} and a goal of "
                f"{self._goal.shape}, not {observation.shape} and {goal.shape}"
            )
        try:
            np.copyto(self._observation, observation, "same_kind")
            np.copyto(self._goal, goal, "same_kind")
        except TypeError:
            raise ValueError(
                f"one step takes real numbers, not {observation.dtype} and {goal.dtype}"
            ) from None
        if not math.isfinite(self._state.dot(self._probe)):
            rows = {"observation": self._observation, "goal": self._goal}
            name = "goal" if np.isfinite(self._observation).all() else "observation"
            raise self._not_finite(name, rows[name][None])
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise self._not_computed(error) from error
        return PolicyOutputs(self._action.copy(), self._control.copy())

    def run_bound(self) -> None:
        """Compute once more what the last step was given: the runtime's part of a step alone, to be timed."""
        self._session.run_with_iobinding(self._binding)

    def _not_computed(self, error: Exception) -> DamagedFileError:
        return DamagedFileError(
            f"ONNX Runtime cannot compute {self.path}: {EXPORT_AGAIN} ({_one_line(error)})."
        )

    def _not_finite(self, name: str, rows: np.ndarray) -> NonFiniteError:
        row, index = np.argwhere(~np.isfinite(rows))[0].tolist()
        elements: Sequence[InputElement] = getattr(self.metadata.inputs, name)
        return NonFiniteError(
            f"{name}[{index}] ({elements[index].name}) is {rows[row, index]}: a policy takes finite numbers "
            "alone; stop the robot, or repeat the last control."
        )

    def _bind(self, sizes: dict[str, int]) -> None:
        """Bind buffers for single steps: saves allocations and look-ups in every call."""
        self._binding = self._session.io_binding()
        split = sizes["observation"]
        # One row for both inputs: a product with it is finite where all of it is, and quicker than a look at
        # each number. The factor is small, so that no finite numbers overflow.
        self._state = np.zeros(split + sizes["goal"], np.float32)
        self._probe = np.full_like(self._state, 1e-8)
        # The session writes to these addresses: the rows must live as long as the binding.
        self._observation, self._goal = self._state[:split], self._state[split:]
        self._action, self._control = (np.zeros(sizes[name], np.float32) for name in ("action", "control"))
        for name, row in (("observation", self._observation), ("goal", self._goal)):
            self._binding.bind_input(name, "cpu", 0, np.float32, (1, row.size), row.ctypes.data)
        for name, row in (("action", self._action), ("control", self._control)):
            self._binding.bind_output(name, "cpu", 0, np.float32, (1, row.size), row.ctypes.data)


def require_model(metadata: PolicyMetadata, model_sha256: str, name: str) -> None:
    """Raise OtherModelError where a policy was trained for another compiled model than the one at hand."""
    if metadata.model_sha256 == model_sha256:
        return
    import mujoco  # for its version alone

    ours, theirs = mujoco.__version__, metadata.exporter.get("mujoco", "unknown")
    why = f"MuJoCo {theirs} compiled it and this is {ours}" if ours != theirs else "it was changed since"
    raise OtherModelError(
        f"{name} was made for another model of task {metadata.task!r} (hash {metadata.model_sha256[:12]}…, "
        f"here {model_sha256[:12]}…): {why}. Give the task that it was trained for, or train on this one."
    )


def _as_rows(name: str, value: np.ndarray) -> np.ndarray:
    """Return an input as float32; raise ValueError where it holds something else than real numbers."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} holds {array.dtype}, not real numbers")
    return array.astype(np.float32, copy=False)


def _open_session(model: ModelBytes, path: Path) -> onnxruntime.InferenceSession:
    """Open a graph for low latency: one thread, sequential, every optimisation, no spinning."""
    onnxruntime.set_default_logger_severity(_FATAL)  # its complaints reach the user as one line, below
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _FATAL
    # A spinning pool takes the time of the control loop's other threads.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        # The bytes that were checked, not the file, which may be another one by now.
        return onnxruntime.InferenceSession(model.graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common class of their own
        raise DamagedFileError(
            f"{path} is truncated or no ONNX file: {EXPORT_AGAIN} ({_one_line(error)})."
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
