"""A policy file made by hand: action = tanh(W [observation, goal] + b), without torch and its exporter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.core.artifacts import Artifact, Workspace
from stages.onnx_policy import POLICY_FILE, TEACHER_FILE

OBSERVATION_DIM, GOAL_DIM, ACTION_DIM = 4, 2, 2
LOW, HIGH = np.array([-2.0, 0.0], np.float32), np.array([2.0, 5.0], np.float32)
WEIGHT = np.linspace(-0.5, 0.5, (OBSERVATION_DIM + GOAL_DIM) * ACTION_DIM, dtype=np.float32).reshape(-1, 2)
BIAS = np.array([0.1, -0.2], np.float32)


def expected_action(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Return what the graph computes, (n, 2)."""
    return np.tanh(np.concatenate([observation, goal], 1) @ WEIGHT + BIAS)


def metadata(**changes: Any) -> dict[str, Any]:
    """Return complete metadata of the graph."""

    def elements(prefix: str, low: np.ndarray, high: np.ndarray) -> list[dict[str, Any]]:
        ranges = enumerate(zip(low.tolist(), high.tolist(), strict=True))
        return [{"name": f"{prefix}[{index}]", "unit": "m", "low": a, "high": b} for index, (a, b) in ranges]

    ones = np.ones(OBSERVATION_DIM)
    complete: dict[str, Any] = {
        "format_version": 1,
        "role": "student",
        "task": "point_u_maze",
        "model_sha256": "0" * 64,
        "control_dt_s": 0.1,
        "episode_steps": 100,
        "inputs": {
            "observation": elements("qpos", -ones, ones),
            "goal": elements("goal", -ones[:GOAL_DIM], ones[:GOAL_DIM]),
        },
        "outputs": {
            "action": elements("motor", -ones[:2], ones[:2]),
            "control": elements("motor", LOW, HIGH),
        },
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


def write_policy(
    path: Path, text: str | None = None, *, key: str = "thousandfold", batch: str | int = "batch"
) -> Path:
    """Write the graph with `text` as its metadata; None writes `metadata()`, and an empty key writes none."""
    constants = {
        "weight": WEIGHT,
        "bias": BIAS,
        "low": LOW,
        "half": 0.5 * (HIGH - LOW),
        "one": np.ones(1, np.float32),
    }
    nodes = [
        helper.make_node("Concat", ["observation", "goal"], ["state"], axis=1),
        helper.make_node("Gemm", ["state", "weight", "bias"], ["mean"]),
        helper.make_node("Tanh", ["mean"], ["action"]),
        helper.make_node("Add", ["action", "one"], ["lifted"]),
        helper.make_node("Mul", ["lifted", "half"], ["scaled"]),
        helper.make_node("Add", ["scaled", "low"], ["control"]),
    ]

    def signature(*sizes: tuple[str, int]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, n]) for name, n in sizes]

    graph = helper.make_graph(
        nodes,
        "policy",
        signature(("observation", OBSERVATION_DIM), ("goal", GOAL_DIM)),
        signature(("action", ACTION_DIM), ("control", ACTION_DIM)),
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if key:
        helper.set_model_props(model, {key: json.dumps(metadata()) if text is None else text})
    path.write_bytes(model.SerializeToString())
    return path


def policy_artifact(root: Path, *, teacher: bool = True, task: str = "point_u_maze") -> Artifact:
    """Return a completed policy artifact; `teacher` puts a teacher beside the student."""
    artifact = Workspace(root).create("policy", task=task, settings={})
    write_policy(artifact.file(POLICY_FILE))
    if teacher:
        write_policy(artifact.file(TEACHER_FILE), json.dumps(metadata(role="teacher")))
    artifact.complete({})
    return artifact
