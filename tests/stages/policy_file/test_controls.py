"""What a policy file says of its task's actuators, and a page whose actions were changed since."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.stages.policy_file.handmade_policy import metadata
from tests.stages.policy_file.test_source import sledge_policy, write_sledge
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import compile_task
from thousandfold.ground.errors import UserError
from thousandfold.pipeline.artifacts import Workspace
from thousandfold.stages.policy_file.controls import describe_controls, require_same_controls
from thousandfold.stages.policy_file.golden import GoldenArrays, GoldenSet
from thousandfold.stages.policy_file.metadata import PolicyMetadata
from thousandfold.stages.policy_file.source import find_policy, open_source
from thousandfold.stages.policy_file.verification import verify_policy

MODEL = """\
<mujoco><option timestep="0.01"/><worldbody>
<body><joint name="slide" type="slide" axis="0 0 1" range="-1 0.5"/><geom size="0.1" mass="1"/></body>
<body pos="1 0 0"><joint name="arm" axis="0 0 1"/><geom size="0.1" mass="1"/></body>
<body pos="2 0 0"><joint name="wheel" axis="0 0 1"/><geom size="0.1" mass="1"/></body>
</worldbody>
<tendon><fixed name="rope"><joint joint="slide" coef="1"/></fixed></tendon>
<actuator>
<position name="lift" joint="slide" kp="40" kv="3"/>
<position name="turn" joint="arm" kp="8" gear="2" ctrlrange="-1 1"/>
<position name="haul" tendon="rope" kp="6" kv="1" ctrlrange="-1 1"/>
<motor name="spin" joint="arm" ctrlrange="-1 1"/>
<velocity name="roll" joint="wheel" kv="2" ctrlrange="-3 3"/>
</actuator>
<keyframe><key name="home" qpos="0.2 0.4 0" ctrl="9 9 0.1 0.3 0.7"/></keyframe></mujoco>
"""
PAGE = """\
name: crane
model: crane.xml
control_dt_s: 0.1
observation: [{{field: qpos}}, {{field: qvel}}]
achieved_goal: [{{field: qpos, object: slide}}]
goal: {{box: {{low: [-1], high: [0.5]}}}}
success: {{radius: 0.2}}
reset: {{keyframe: home}}
action: [{lift}, {turn}, {{actuators: [haul, spin, roll], low: -0.5, high: 0.5}}]
episode_steps: 50
"""
LIFT = "{actuator: lift, kind: delta, max_rate: 0.5}"
TURN = "{actuator: turn, low: 0.8, high: -0.8}"
SWING = (
    "{actuator: turn, kind: offset, about: 0.1, scale: 0.3, "
    "swing: {amplitude: 0.2, period_s: 0.7, phase: 0.1}}"
)


def crane(folder: Path, lift: str = LIFT, turn: str = TURN) -> CompiledTask:
    folder.mkdir(exist_ok=True)
    (folder / "crane.xml").write_text(MODEL)
    (folder / "crane.yaml").write_text(PAGE.format(lift=lift, turn=turn))
    return compile_task(str(folder / "crane.yaml"))


def test_servos_tell_their_joints_and_gains_and_others_what_they_are_sent(tmp_path: Path) -> None:
    task = crane(tmp_path)
    facts = {
        control.name: {name: value for name, value in control.model_dump().items() if value is not None}
        for control in describe_controls(task)
    }
    assert facts == {
        "lift": {
            "name": "lift", "unit": "m", "low": -1.0, "high": 0.5, "max_rate": 0.5, "joint": "slide",
            "gear": 1.0, "joint_low": -1.0, "joint_high": 0.5, "start": 0.2, "kp": 40.0, "kd": 3.0,
        },
        "turn": {
            "name": "turn", "unit": "actuator", "low": -0.8, "high": 0.8, "joint": "arm", "gear": 2.0,
            "start": 0.8, "kp": 8.0, "kd": 0.0,
        },
        "haul": {
            "name": "haul", "unit": "actuator", "low": -0.5, "high": 0.5, "start": 0.1, "kp": 6.0, "kd": 1.0,
        },
        "spin": {"name": "spin", "unit": "actuator", "low": -0.5, "high": 0.5, "start": 0.3},
        "roll": {"name": "roll", "unit": "actuator", "low": -0.5, "high": 0.5, "start": 0.7},
    }  # fmt: skip
    assert f"qpos:{facts['lift']['joint']}[0]" == task.describe("observation")[0]["name"]


def exported(task: CompiledTask, *, as_before: bool = False) -> tuple[PolicyMetadata, GoldenSet]:
    """Return what a policy file of a task says; `as_before` as files did that told no more than the ends.

    The last rows are beyond the limits, to which a graph clips them.
    """
    rng = np.random.default_rng(0)
    observation = rng.uniform(-0.4, 0.4, (16, task.observation_dim)).astype(np.float32)
    observation[12:] *= 9
    action = rng.uniform(-1, 1, (16, task.action_dim)).astype(np.float32)
    last, seen = np.zeros((16, task.model.nu), np.float32), observation.clip(-1, 1)
    names = [element["name"] for element in task.describe("observation")]
    last[:, 0] = seen[:, names.index("ctrl:lift[0]")]
    clocks = (
        seen[:, [names.index(f"clock:0.7[{number}]") for number in (0, 1)]] if task.control.periods else None
    )
    rows = GoldenArrays(observation, observation[:, :1], action, task.control(action, last, clocks=clocks))
    controls = [control.model_dump() for control in describe_controls(task)]
    if as_before:
        ends = ("name", "low", "high")
        controls = [{"unit": "actuator"} | {key: control[key] for key in ends} for control in controls]
    limits = {"low": -1.0, "high": 1.0, "limit_low": -1.0, "limit_high": 1.0}
    described = metadata(
        format_version=4 if task.control.periods else 3,
        inputs={
            "observation": [element | limits for element in task.describe("observation")],
            "goal": [element | limits for element in task.describe("achieved_goal")],
        },
        outputs={"action": [], "control": controls},
    )
    return PolicyMetadata.model_validate(described), GoldenSet.of(rows, 1e-5)


@pytest.mark.parametrize("turn", [TURN, SWING], ids=["plain", "swinging"])
@pytest.mark.parametrize("as_before", [False, True])
def test_a_task_whose_actions_are_as_they_were_passes(as_before: bool, turn: str, tmp_path: Path) -> None:
    task = crane(tmp_path, turn=turn)
    described, rows = exported(task, as_before=as_before)
    require_same_controls(described, rows, task, "p.onnx")  # raises where they differ
    assert [each.unit == "actuator" for each in described.outputs.control].count(True) >= as_before
    assert len(described.outputs.control) == task.model.nu


def test_a_changed_swing_is_noticed(tmp_path: Path) -> None:
    files = exported(crane(tmp_path / "was", turn=SWING))
    for before, after in (("amplitude: 0.2", "amplitude: 0.25"), ("phase: 0.1", "phase: 0.2")):
        with pytest.raises(UserError, match="'turn' is sent something else for"):
            require_same_controls(
                *files, crane(tmp_path / after, turn=SWING.replace(before, after)), "p.onnx"
            )


@pytest.mark.parametrize("as_before", [False, True])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"turn": "{actuator: turn, low: 0.8, high: -0.7}"}, "'turn' has low -0.7, not -0.8 for"),
        ({"turn": "{actuator: turn, low: -0.8, high: 0.8}"}, "'turn' is sent something else for"),
        ({"turn": "{actuator: turn, kind: switch, low: 0.8, high: -0.8}"}, "'turn' is sent something else"),
        ({"lift": "{actuator: lift, kind: delta, max_rate: 0.6}"}, "'lift' has max_rate 0.6, not 0.5 for"),
        (
            {"lift": "{actuator: lift, low: -1, high: 0.5, max_rate: 0.5}"},
            "'lift' is sent something else for",
        ),
    ],
)
def test_a_changed_action_is_noticed(
    changes: dict[str, str], words: str, as_before: bool, tmp_path: Path
) -> None:
    files, changed = exported(crane(tmp_path / "was"), as_before=as_before), crane(tmp_path / "is", **changes)
    if as_before and "max_rate" in words:
        words = "'lift' is sent something else for"
    with pytest.raises(UserError, match=rf"^p\.onnx does not fit task 'crane'.*{words}.*--task\.$"):
        require_same_controls(*files, changed, "p.onnx")


def test_a_page_with_another_action_is_refused_and_fails_verification(tmp_path: Path) -> None:
    page = Path(write_sledge(tmp_path / "robot"))
    policy = sledge_policy(tmp_path / "p.onnx", str(page))
    workspace = Workspace(tmp_path)
    assert not verify_policy(find_policy(workspace, policy), episodes=2, task=str(page)).failed[:-1]
    page.write_text(
        page.read_text() + "action: [{actuator: actuator_0, low: 1, high: -1}, {actuator: actuator_1}]\n"
    )
    with pytest.raises(UserError, match="actuator 'actuator_0' is sent something else for the same action"):
        open_source(workspace, policy, str(page), any_model=True)
    found = verify_policy(find_policy(workspace, policy), episodes=2, task=str(page))
    assert "task" in [check.name for check in found.failed]
    json.dumps(found.results())
