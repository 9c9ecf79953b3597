"""A policy file made by hand: action = tanh(W [observation, goal] + b) of clipped inputs, without torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from thousandfold.envs.model_hash import model_sha256
from thousandfold.envs.registry import compile_task
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.stages.policy_file.golden import TOLERANCE, GoldenArrays, GoldenSet
from thousandfold.stages.policy_file.onnx_bytes import METADATA_KEY, ModelBytes, read_model, split_model
from thousandfold.stages.policy_file.onnx_policy import POLICY_FILE, TEACHER_FILE
from thousandfold.stages.policy_file.source import element_labels

OBSERVATION_DIM, GOAL_DIM, ACTION_DIM = 4, 2, 2
# At actions −1 and +1, as task point_u_maze has them.
LOW, HIGH = np.array([-1.0, -1.0], np.float32), np.array([1.0, 1.0], np.float32)
WEIGHT = np.linspace(-0.5, 0.5, (OBSERVATION_DIM + GOAL_DIM) * ACTION_DIM, dtype=np.float32).reshape(-1, 2)
BIAS = np.array([0.1, -0.2], np.float32)
LIMIT = 3.0  # of every input, which is in [−1, 1]


def expected_action(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Return what the graph computes, (n, 2)."""
    return np.tanh(np.clip(np.concatenate([observation, goal], 1), -LIMIT, LIMIT) @ WEIGHT + BIAS)


def expected_control(action: np.ndarray) -> np.ndarray:
    """Return what the graph makes of actions, (n, 2)."""
    return LOW + 0.5 * (action + 1) * (HIGH - LOW)


def golden(**changes: Any) -> dict[str, Any]:
    """Return sixteen golden rows of the graph, four of them beyond the limits."""
    rows = np.random.default_rng(16).uniform(-1, 1, (16, OBSERVATION_DIM + GOAL_DIM)).astype(np.float32)
    rows[12:] *= 10
    observation, goal = rows[:, :OBSERVATION_DIM], rows[:, OBSERVATION_DIM:]
    action = expected_action(observation, goal)
    arrays = GoldenArrays(observation, goal, action, expected_control(action))
    return GoldenSet.of(arrays, TOLERANCE).model_dump(mode="json") | changes


def metadata(**changes: Any) -> dict[str, Any]:
    """Return complete metadata of the graph."""

    complete: dict[str, Any] = {
        "format_version": 3,
        "role": "student",
        "task": "point_u_maze",
        "model_sha256": model_sha256(compile_task("point_u_maze").model),
        "control_dt_s": 0.1,
        "episode_steps": 100,
        **inputs_and_outputs("point_u_maze"),
        "non_finite": "refuse",
        "out_of_range": "clip",
        "precision": "float32",
        "opset": 20,
        "licence": "CC0-1.0",
        "graph_sha256": graph().graph_sha256,
        "network": {"kind": "plain", "depth": 1, "width": 2, "parameters": 14},
        "parents": {"student": {"kind": "student", "name": "student-1", "hash": "abc"}},
        "evaluation": {
            "success": 0.9,
            "success_interval": [0.85, 0.95],
            "episodes": 256,
            "runtime": "onnxruntime",
        },
        "exporter": {"torch": "2.13.0"},
    }
    return complete | changes


def inputs_and_outputs(task: str) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return what the metadata says of the graph's inputs and outputs for a task of its sizes."""
    labels = element_labels(compile_task(task))

    def elements(part: str, low: np.ndarray, high: np.ndarray) -> list[dict[str, Any]]:
        ranges = zip(labels[part], low.tolist(), high.tolist(), strict=True)
        return [{"name": name, "unit": unit, "low": a, "high": b} for (name, unit), a, b in ranges]

    def inputs(part: str, size: int) -> list[dict[str, Any]]:
        limits = {"limit_low": -LIMIT, "limit_high": LIMIT}
        return [element | limits for element in elements(part, -np.ones(size), np.ones(size))]

    return {
        "inputs": {
            "observation": inputs("observation", OBSERVATION_DIM),
            "goal": inputs("goal", GOAL_DIM),
        },
        "outputs": {
            "action": elements("action", -np.ones(2), np.ones(2)),
            "control": elements("control", LOW, HIGH),
        },
    }


def graph(batch: str | int = "batch") -> ModelBytes:
    """Return the graph without metadata."""
    constants = {
        "weight": WEIGHT,
        "bias": BIAS,
        "low": LOW,
        "half": 0.5 * (HIGH - LOW),
        "one": np.ones(1, np.float32),
        "limit_low": np.array(-LIMIT, np.float32),
        "limit_high": np.array(LIMIT, np.float32),
    }
    nodes = [
        helper.make_node("Concat", ["observation", "goal"], ["state"], axis=1),
        helper.make_node("Clip", ["state", "limit_low", "limit_high"], ["clipped"]),
        helper.make_node("Gemm", ["clipped", "weight", "bias"], ["mean"]),
        helper.make_node("Tanh", ["mean"], ["action"]),
        helper.make_node("Add", ["action", "one"], ["lifted"]),
        helper.make_node("Mul", ["lifted", "half"], ["scaled"]),
        helper.make_node("Add", ["scaled", "low"], ["control"]),
    ]

    def signature(*sizes: tuple[str, int]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, n]) for name, n in sizes]

    made = helper.make_graph(
        nodes,
        "policy",
        signature(("observation", OBSERVATION_DIM), ("goal", GOAL_DIM)),
        signature(("action", ACTION_DIM), ("control", ACTION_DIM)),
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return split_model(model.SerializeToString())


def write_policy(
    path: Path,
    text: str | None = None,
    *,
    key: str = METADATA_KEY,
    batch: str | int = "batch",
    rows: dict[str, Any] | None = None,
) -> Path:
    """Write the graph with golden rows, `text` as its metadata, and the hash over all of it.

    Args:
        path: the file.
        text: None: `metadata()`, with the graph's own hash.
        key: under which the text stands; an empty one: no metadata at all.
        batch: first dimension of every input and output.
        rows: golden ones; None: the graph's own.
    """
    made = graph(batch)
    text = json.dumps(metadata(graph_sha256=made.graph_sha256)) if text is None else text
    whole = made.sealed(text, json.dumps(rows or golden()))
    texts = {key if name == METADATA_KEY else name: each for name, each in whole.metadata.items()}
    path.write_bytes(whole.with_metadata(texts if key else {}).joined())
    return path


def tamper(path: Path) -> Path:
    """Change the largest weight of a policy file to 0 and leave its metadata as it is."""
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda found: len(found.raw_data))
    numbers = numpy_helper.to_array(weight).copy()
    numbers[np.unravel_index(np.abs(numbers).argmax(), numbers.shape)] = 0
    weight.CopyFrom(numpy_helper.from_array(numbers, weight.name))
    path.write_bytes(model.SerializeToString())
    return path


def edited(path: Path, key: str, edit: Callable[[dict[str, Any]], object]) -> Path:
    """Edit the JSON text under a key of a file's metadata, and leave everything else as it is."""
    model = read_model(path)
    text = json.loads(model.metadata[key])
    edit(text)
    path.write_bytes(model.with_metadata(model.metadata | {key: json.dumps(text)}).joined())
    return path


def policy_artifact(root: Path, *, teacher: bool = True, task: str = "point_u_maze") -> Artifact:
    """Return a completed policy artifact; `teacher` puts a teacher beside the student."""
    artifact = Workspace(root).create("policy", task=task, settings={})
    write_policy(artifact.file(POLICY_FILE))
    if teacher:
        write_policy(artifact.file(TEACHER_FILE), json.dumps(metadata(role="teacher")))
    artifact.complete({})
    return artifact
