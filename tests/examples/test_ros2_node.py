"""The ROS 2 node that the guide shows: taken from the page and run on an exported file, with ROS stubbed."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.pages import blocks
from tests.stages.tiny_runs import make_context
from tests.stages.untrained_networks import make_network
from thousandfold.stages.export_onnx import export_onnx
from thousandfold.stages.export_onnx.export_onnx import ExportOnnxSettings
from thousandfold.stages.policy_file.onnx_policy import POLICY_FILE, OnnxPolicy

ROOT = Path(__file__).resolve().parents[2]
RUNNER = ROOT / "examples/deploy/python/run_policy.py"


def snippet() -> str:
    """Return the node's code as it stands on the page."""
    (found,) = [block.text for block in blocks("docs/deployment.md", "python") if "rclpy" in block.text]
    return found


class Node:
    """What the page's node uses of `rclpy.node.Node`; keeps what it is told."""

    file = ""

    def __init__(self, name: str) -> None:
        self.callbacks: dict[str, Any] = {}
        self.published: list[list[float]] = []
        self.logged: list[str] = []

    def declare_parameter(self, name: str, default: str) -> SimpleNamespace:
        return SimpleNamespace(value=self.file)

    def create_subscription(self, kind: Any, topic: str, callback: Any, depth: int) -> None:
        self.callbacks[topic] = callback

    def create_publisher(self, kind: Any, topic: str, depth: int) -> SimpleNamespace:
        return SimpleNamespace(publish=lambda message: self.published.append(message.data))

    def create_timer(self, period: float, callback: Any) -> None:
        self.period, self.callbacks["timer"] = period, callback

    def get_logger(self) -> SimpleNamespace:
        def log(text: str, **_: Any) -> None:
            self.logged.append(text)

        return SimpleNamespace(warning=log, error=log)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> OnnxPolicy:
    context = make_context(tmp_path_factory.mktemp("export"))
    student = make_network(context.workspace, "student")
    settings = ExportOnnxSettings(gate_states=32, closed_loop_episodes=4, include_teacher=False)
    return OnnxPolicy(export_onnx.run(settings, context, student).file(POLICY_FILE))


@pytest.fixture
def node(policy: OnnxPolicy, monkeypatch: pytest.MonkeyPatch) -> Node:
    """Return the page's node, waiting for messages."""
    started: list[Node] = []
    stubs: dict[str, dict[str, Any]] = {
        "rclpy": {"init": lambda: None, "spin": started.append},
        "rclpy.node": {"Node": Node},
        "geometry_msgs.msg": {"PointStamped": object},
        "sensor_msgs.msg": {"JointState": object},
        "std_msgs.msg": {"Float64MultiArray": SimpleNamespace},
        "run_policy": runpy.run_path(str(RUNNER)),
    }
    for package in ("geometry_msgs", "sensor_msgs", "std_msgs"):
        stubs[package] = {}
    for name, contents in stubs.items():
        module = ModuleType(name)
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(Node, "file", str(policy.path))
    exec(compile(snippet(), "docs/deployment.md", "exec"), {})
    return started[0]


def joints(**state: tuple[float, float]) -> SimpleNamespace:
    """Return a message with position and velocity by joint."""
    position, velocity = zip(*state.values(), strict=True)
    return SimpleNamespace(name=list(state), position=position, velocity=velocity)


def goal(x: float, y: float) -> SimpleNamespace:
    return SimpleNamespace(point=SimpleNamespace(x=x, y=y, z=0.0))


def test_it_sends_the_policys_control_at_the_policys_rate(node: Node, policy: OnnxPolicy) -> None:
    assert node.period == policy.metadata.control_dt_s
    # In another order than the observation's, beside a joint that the policy does not know.
    node.callbacks["joint_states"](joints(y=(2.0, 0.4), wheel=(7.0, 7.0), x=(1.0, -0.3)))
    node.callbacks["goal"](goal(3.0, 1.0))
    node.callbacks["timer"]()
    expected = policy.step(np.array([1.0, 2.0, -0.3, 0.4]), np.array([3.0, 1.0])).control
    (sent,) = node.published
    np.testing.assert_allclose(sent, expected, rtol=1e-6)
    assert node.logged == []


def test_it_says_what_it_waits_for(node: Node) -> None:
    node.callbacks["timer"]()
    node.callbacks["joint_states"](SimpleNamespace(name=["x", "y"], position=[1.0, 1.0], velocity=[]))
    node.callbacks["timer"]()
    node.callbacks["joint_states"](joints(x=(1.0, 0.0), y=(1.0, 0.0)))
    node.callbacks["timer"]()
    names = ["qpos:x[0]", "qpos:y[0]", "qvel:x[0]", "qvel:y[0]"]
    assert node.logged == [f"waiting for {names}", f"waiting for {names[2:]}", "waiting for a goal"]
    assert node.published == []


def test_it_sends_nothing_where_the_first_readings_hold_nan(node: Node) -> None:
    node.callbacks["goal"](goal(3.0, 1.0))
    node.callbacks["joint_states"](joints(x=(float("nan"), 0.0), y=(1.0, 0.0)))
    node.callbacks["timer"]()
    assert node.published == [] and node.logged == ["held 1 steps: not_finite"]


def test_it_repeats_the_last_command_three_times_and_begins_anew(node: Node) -> None:
    node.callbacks["goal"](goal(3.0, 1.0))
    node.callbacks["joint_states"](joints(x=(1.0, 0.0), y=(1.0, 0.0)))
    for _ in range(6):  # messages stay away after the first
        node.callbacks["timer"]()
    assert node.published == node.published[:1] * 4
    assert node.logged == [f"held {steps} steps: late" for steps in (1, 2, 3, 4, 1)]
    node.callbacks["joint_states"](joints(x=(1.0, 0.0), y=(1.0, 0.0)))
    node.callbacks["timer"]()
    assert len(node.published) == 5 and node.published[4] == node.published[0]
