"""Actions that swing with a clock: what is observed, what a teacher does, and what leaves in its file."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from tests.stages.policy_file.handmade_policy import metadata
from thousandfold.envs.registry import compile_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.envs.task import TaskError
from thousandfold.ground.errors import SettingsError, UserError
from thousandfold.models.deployable_policy import Dither, InputLimits, NormalizedActor
from thousandfold.models.goal_actor import GoalActor
from thousandfold.models.onnx_graph import to_onnx
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.pipeline.settings import resolve_settings
from thousandfold.stages.networks import TrainedActor
from thousandfold.stages.policy_file.graph import OPERATORS
from thousandfold.stages.policy_file.metadata import parse_metadata
from thousandfold.stages.policy_file.source import PolicyPlace, find_task
from thousandfold.stages.train_teacher.settings import TrainTeacherSettings

PERIOD_S = 0.4
SHAPE = NetworkShape(4, 16)


def dithered(share: float = 0.5) -> TrainedActor:
    torch.manual_seed(0)
    task = compile_task("point_u_maze", {"clock_s": PERIOD_S})
    sizes = task.observation_dim, task.goal_dim
    dither = Dither(share, task.clock_columns(), task.action_dim)
    actor = NormalizedActor.around(GoalActor(*sizes, task.action_dim, SHAPE), *sizes, dither)
    return TrainedActor(actor.eval(), task, SHAPE, {})


def test_the_clock_is_cos_and_sin_of_the_time_since_the_start() -> None:
    task = compile_task("point_u_maze", {"clock_s": PERIOD_S})
    assert task.observation_dim == compile_task("point_u_maze").observation_dim + 2
    assert [each["name"] for each in task.describe("observation")][-2:] == ["clock:0.4[0]", "clock:0.4[1]"]
    assert task.spec.changes == {"clock_s": PERIOD_S}
    simulator = CpuSimulator(task, 3, num_threads=1)
    for step in range(5):
        turn = 2 * math.pi * step * task.spec.control_dt_s / PERIOD_S
        expected = np.tile([math.cos(turn), math.sin(turn)], (3, 1))
        np.testing.assert_allclose(simulator.observation[:, task.clock_columns()], expected, atol=1e-5)
        simulator.step(np.zeros((3, 2), np.float32))
    simulator.reset(np.array([False, True, False]))
    np.testing.assert_allclose(simulator.observation[1, task.clock_columns()], [1, 0], atol=1e-6)


def test_the_mean_swings_by_a_share_of_the_standard_deviation() -> None:
    trained = dithered()
    still = replace(
        trained,
        actor=NormalizedActor(*list(trained.actor.children())[:1], *list(trained.actor.children())[2:4]),
    )
    cos, sin = trained.task.clock_columns()
    observation, goal = torch.zeros(100, trained.task.observation_dim), torch.zeros(100, 2)
    turn = torch.linspace(0, 2 * math.pi, 101)[:100]
    observation[:, cos], observation[:, sin] = turn.cos(), turn.sin()
    with torch.no_grad():
        swinging, mean = trained.actor(observation, goal), still.actor(observation, goal)
    swing = (swinging.mean - mean.mean) / mean.log_std.exp()
    torch.testing.assert_close(swing[:, 0], 0.5 * math.sqrt(2) * turn.sin(), atol=1e-5, rtol=0)
    torch.testing.assert_close(swing[:, 1], 0.5 * math.sqrt(2) * (turn + 2.4).sin(), atol=1e-5, rtol=0)
    torch.testing.assert_close(swing.square().mean(0), torch.full((2,), 0.25), atol=1e-3, rtol=0)


def test_a_teachers_file_swings_as_the_teacher_does() -> None:
    trained = dithered()
    rng = np.random.default_rng(0)
    observation = rng.normal(size=(64, trained.task.observation_dim)).astype(np.float32)
    goal = rng.normal(size=(64, 2)).astype(np.float32)
    module = trained.deployable(InputLimits.around(torch.from_numpy(observation), torch.from_numpy(goal)))
    graph = to_onnx(module, 20)
    assert {node.op_type for node in graph.graph.node} <= OPERATORS
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    action, control = session.run(None, {"observation": observation, "goal": goal})
    with torch.no_grad():
        expected = module(torch.from_numpy(observation), torch.from_numpy(goal))
    np.testing.assert_allclose(action, expected.action.numpy(), atol=1e-5)
    np.testing.assert_allclose(control, expected.control.numpy(), atol=1e-5)


def test_a_page_may_have_a_clock_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "slide.xml").write_text(
        "<mujoco><worldbody><body><joint name='x' type='slide' range='-1 1'/><geom size='0.1'/></body>"
        "</worldbody><actuator><motor name='x' joint='x' ctrlrange='-1 1'/></actuator></mujoco>"
    )
    (tmp_path / "slide.yaml").write_text(
        "name: slide\nmodel: slide.xml\ncontrol_dt_s: 0.1\nobservation: [{field: qpos}, {clock: 0.6}]\n"
        "achieved_goal: {field: qpos}\ngoal: {box: {low: [-1], high: [1]}}\nsuccess: {radius: 0.1}\n"
    )
    task = compile_task(str(tmp_path / "slide.yaml"))
    assert [each["name"] for each in task.describe("observation")] == [
        "qpos:x[0]",
        "clock:0.6[0]",
        "clock:0.6[1]",
    ]


def test_a_clocks_name_tells_its_period_in_full() -> None:
    task = compile_task("point_u_maze", {"clock_s": 1 / 3})
    assert task.describe("observation")[-1]["name"] == "clock:0.3333333333333333[1]"
    assert task.clock_columns() == [4, 5]
    assert compile_task("point_u_maze", {"clock_s": 2.0}).describe("observation")[-1]["name"] == "clock:2[1]"
    for period_s in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(TaskError, match="a clock turns in at least two control steps"):
            compile_task("point_u_maze", {"clock_s": period_s})


def test_a_clock_takes_a_keyframe_that_begins_at_0(tmp_path: Path) -> None:
    (tmp_path / "slide.xml").write_text(
        "<mujoco><worldbody><body><joint name='x' type='slide'/><geom size='0.1'/></body></worldbody>"
        "<actuator><motor joint='x' ctrlrange='-1 1'/></actuator>"
        "<keyframe><key name='home' time='5' qpos='0'/></keyframe></mujoco>"
    )
    (tmp_path / "slide.yaml").write_text(
        "name: slide\nmodel: slide.xml\ncontrol_dt_s: 0.1\nobservation: {field: qpos}\n"
        "achieved_goal: {field: qpos}\ngoal: {box: {low: [-1], high: [1]}}\nsuccess: {radius: 0.1}\n"
        "reset: {keyframe: home}\n"
    )
    page = tmp_path / "slide.yaml"
    compile_task(str(page))
    with pytest.raises(TaskError, match="keyframe 'home' begins at time 5, and a clock at 0: leave out"):
        compile_task(str(page), {"clock_s": 0.5})
    page.write_text(
        page.read_text().replace("{field: qpos}\nachieved", "[{field: qpos}, {clock: 0.5}]\nachieved")
    )
    with pytest.raises(
        TaskError, match=r"slide\.yaml, line 8, reset\.keyframe: keyframe 'home' begins at time 5"
    ):
        compile_task(str(page))


def test_a_dither_needs_a_clock() -> None:
    with pytest.raises(SettingsError, match=r"dither 0.5 wants a clock to swing with: set clock_s=0.25"):
        resolve_settings(TrainTeacherSettings, "train_teacher", overrides=["dither=0.5"])


def test_a_clock_shows_in_control_steps_and_there_is_one(tmp_path: Path) -> None:
    with pytest.raises(
        TaskError, match=r"a clock turns in at least two control steps, 0.2 s, .* not in 0.15 s"
    ):
        compile_task("point_u_maze", {"clock_s": 0.15})
    task = compile_task("point_u_maze", {"clock_s": 0.4})
    assert task.changed(clock_s=0.4) is task
    with pytest.raises(TaskError, match=r"has a clock of 0.4 s already"):
        task.changed(clock_s=0.6)


def test_a_policy_with_a_clock_finds_its_task_again() -> None:
    described = metadata(task_changes={"clock_s": 0.4})
    place = PolicyPlace(Path("policy.onnx"), "policy.onnx", None)
    parsed = parse_metadata(json.dumps(described), place.path)
    assert find_task(parsed, place).spec.changes["clock_s"] == 0.4
    for wrong in ("x", True, -1, 1e9):
        described = metadata(task_changes={"clock_s": wrong})
        with pytest.raises(UserError, match=r"that this version does not know \(clock_s\)"):
            find_task(parse_metadata(json.dumps(described), place.path), place)
