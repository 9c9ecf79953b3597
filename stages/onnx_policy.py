"""An exported policy, run by ONNX Runtime on one thread: what a robot needs, without torch, mlflow or onnx.

A policy file is one ONNX graph with the inputs ``observation`` and ``goal``, the outputs ``action`` and
``control``, and one JSON text in its metadata, under the key ``thousandfold``: `PolicyMetadata` describes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnxruntime
import pydantic

from pipeline.core.errors import DamagedFileError

POLICY_FILE = "policy.onnx"
TEACHER_FILE = "teacher.onnx"
METADATA_KEY = "thousandfold"
METADATA_VERSION = 1

_FATAL = 4
_REMEDY = "export the policy again with `pipeline export-onnx`"


class _Described(pydantic.BaseModel):
    """Facts of an exported file; what a newer version adds is passed over."""

    model_config = pydantic.ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Element(_Described):
    """One number of an input or output.

    Attributes:
        name: what it is, such as ``qpos[0] elbow`` or an actuator's name.
        unit: its unit; empty where the task gives none.
        low, high: its range: of an input as seen when the policy was checked, of an output as it can be.
    """

    name: str
    unit: str
    low: float
    high: float


class Inputs(_Described):
    """The numbers of each input, in order."""

    observation: tuple[Element, ...]
    goal: tuple[Element, ...]


class Outputs(_Described):
    """The numbers of each output, in order: ``action`` in [−1, 1], ``control`` in actuator units."""

    action: tuple[Element, ...]
    control: tuple[Element, ...]


class Network(_Described):
    """Form and size of the network inside."""

    kind: str
    depth: int
    width: int
    parameters: int


class Evaluation(_Described):
    """Closed-loop success over fresh episodes, its 95 % interval, and which runtime acted."""

    success: float
    success_interval: tuple[float, float]
    episodes: int
    runtime: Literal["onnxruntime", "torch"]


class Origin(_Described):
    """An artifact that the policy comes from."""

    kind: str
    name: str
    hash: str


class PolicyMetadata(_Described):
    """Everything a deployer must know of a policy file.

    Attributes:
        format_version: of this description.
        role: what was exported, ``student`` or ``teacher``.
        task: the task that the policy was trained for.
        model_sha256: hash of the task's compiled MuJoCo model.
        task_file, task_sha256: of a user's task, where it came from and the hash of its files; else None.
        control_dt_s: seconds between two actions.
        episode_steps: control steps of an episode.
        inputs, outputs: names, order, units and ranges.
        network: form and size.
        parents: the artifacts it comes from, by role.
        evaluation: how well it does; None where nobody measured.
        exporter: versions of what wrote the file.
    """

    format_version: int
    role: Literal["student", "teacher"]
    task: str
    model_sha256: str
    task_file: str | None = None
    task_sha256: str | None = None
    control_dt_s: float = pydantic.Field(gt=0)
    episode_steps: int = pydantic.Field(ge=1)
    inputs: Inputs
    outputs: Outputs
    network: Network
    parents: dict[str, Origin]
    evaluation: Evaluation | None
    exporter: dict[str, str]

    def sizes(self) -> dict[str, int]:
        """Return how many numbers each input and output has."""
        named = {**dict(self.inputs), **dict(self.outputs)}
        return {name: len(elements) for name, elements in named.items()}


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

    Raises:
        DamagedFileError: the file is missing, truncated, foreign, of another version or of another task.
    """

    def __init__(self, path: Path, *, task: str | None = None) -> None:
        self.path = Path(path)
        self._session = _open_session(self.path)
        self.metadata = _read_metadata(self._session, self.path)
        if task is not None and self.metadata.task != task:
            raise DamagedFileError(f"{path} is a policy for task {self.metadata.task!r}, not for {task!r}.")
        _check_signature(self._session, self.metadata, self.path)
        self._bind()

    def __call__(self, observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Return actions (n, action_dim) for observations (n, observation_dim) and goals (n, goal_dim)."""
        return self.run(observation, goal).action

    def run(self, observation: np.ndarray, goal: np.ndarray) -> PolicyOutputs:
        """Return both outputs for a batch; raise ValueError when it has the wrong shape."""
        sizes = self.metadata.sizes()
        feeds = {
            name: np.asarray(value, np.float32)
            for name, value in (("observation", observation), ("goal", goal))
        }
        for name, value in feeds.items():
            if value.ndim != 2 or value.shape[1] != sizes[name]:
                raise ValueError(f"{name} has shape {value.shape}, not (batch, {sizes[name]})")
        action, control = self._session.run(["action", "control"], feeds)
        return PolicyOutputs(np.asarray(action), np.asarray(control))

    def step(self, observation: np.ndarray, goal: np.ndarray) -> PolicyOutputs:
        """Return both outputs for one state; the fast path, through buffers that are bound once.

        Args:
            observation: (observation_dim,).
            goal: (goal_dim,).

        Raises:
            ValueError: one of them has another shape.
        """
        if observation.shape != self._observation.shape or goal.shape != self._goal.shape:
            raise ValueError(
                f"one step takes an observation of shape {self._observation.shape} and a goal of "
                f"{self._goal.shape}, not {observation.shape} and {goal.shape}"
            )
        self._observation[:] = observation
        self._goal[:] = goal
        self._session.run_with_iobinding(self._binding)
        return PolicyOutputs(self._action.copy(), self._control.copy())

    def run_bound(self) -> None:
        """Compute once more what the last step was given: the runtime's part of a step alone, to be timed."""
        self._session.run_with_iobinding(self._binding)

    def _bind(self) -> None:
        """Bind buffers for single steps: saves allocations and look-ups in every call."""
        self._binding = self._session.io_binding()
        rows = {name: np.zeros((1, size), np.float32) for name, size in self.metadata.sizes().items()}
        for name, row in rows.items():
            bind = self._binding.bind_output if name in ("action", "control") else self._binding.bind_input
            bind(name, "cpu", 0, np.float32, row.shape, row.ctypes.data)
        # The session writes to these addresses: the rows must live as long as the binding.
        self._observation, self._goal = rows["observation"][0], rows["goal"][0]
        self._action, self._control = rows["action"][0], rows["control"][0]


def _open_session(path: Path) -> onnxruntime.InferenceSession:
    """Open a file for low latency: one thread, sequential, every optimisation, no spinning."""
    if not path.is_file():
        raise DamagedFileError(f"{path} is missing: {_REMEDY}.")
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
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common class of their own
        reason = " ".join(str(error).split())[:160]
        raise DamagedFileError(f"{path} is truncated or no ONNX file: {_REMEDY} ({reason}).") from error


def _read_metadata(session: onnxruntime.InferenceSession, path: Path) -> PolicyMetadata:
    """Return the validated metadata of an open file."""
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise DamagedFileError(f"{path} is an ONNX file that Thousandfold did not write: {_REMEDY}.")
    try:
        version = pydantic.TypeAdapter(dict[str, Any]).validate_json(text).get("format_version")
        if isinstance(version, int) and version > METADATA_VERSION:
            raise DamagedFileError(
                f"{path} has metadata of format {version}, this version reads up to {METADATA_VERSION}: "
                "update thousandfold."
            )
        return PolicyMetadata.model_validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "JSON"
        raise DamagedFileError(
            f"{path} has damaged metadata ({where}: {first['msg']}): {_REMEDY}."
        ) from error


def _check_signature(session: onnxruntime.InferenceSession, metadata: PolicyMetadata, path: Path) -> None:
    """Raise DamagedFileError unless the graph has the inputs and outputs that its metadata names."""
    found = {node.name: node.shape for node in (*session.get_inputs(), *session.get_outputs())}
    sizes = metadata.sizes()
    matches = set(found) == set(sizes) and all(
        len(shape) == 2 and not isinstance(shape[0], int) and shape[1] == sizes[name]
        for name, shape in found.items()
    )
    if not matches:
        raise DamagedFileError(
            f"{path} has inputs and outputs {found}, its metadata says {sizes}: {_REMEDY}."
        )
