"""Networks on disk: what comes back is what was written, and nothing else comes back."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch

from tests.envs.user_tasks.user_pages import ARM, PAGE, changed, write
from thousandfold.envs.registry import compile_task
from thousandfold.envs.simulators.cpu_simulator import CpuSimulator
from thousandfold.ground.errors import DamagedFileError, MissingArtifactError, UserError
from thousandfold.models.deployable_policy import InputLimits, NormalizedActor
from thousandfold.models.goal_actor import GoalActor
from thousandfold.models.onnx_graph import to_onnx
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.checkpoint import load_tensors, save_tensors
from thousandfold.stages.networks import (
    NETWORK_FILE,
    TrainedActor,
    load_actor,
    model_sha256,
    save_network,
    torch_policy,
)

TASK = compile_task("point_u_maze")
SHAPE = NetworkShape(4, 8, residual_scale="inverse_sqrt_blocks", final_norm=True)
Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors, dict[str, Any]], tuple[Tensors, dict[str, Any]]]


def make_actor(seed: int = 0) -> NormalizedActor:
    """Return an actor with normalisers that do something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        actor = NormalizedActor.around(GoalActor(4, 2, 2, SHAPE), 4, 2)
        actor.observation_normalizer.fit(torch.randn(50, 4) * 3 + 1)
        actor.goal_normalizer.fit(torch.randn(50, 2) - 2)
    return actor


def make_artifact(
    root: Path, kind: str = "student", change: Change = lambda tensors, header: (tensors, header)
) -> Artifact:
    """Return a completed artifact whose file was changed before it was hashed."""
    artifact = Workspace(root).create(kind, task=TASK.name, settings={})
    state = dict(make_actor().state_dict())
    if kind == "teacher":
        state = {name: value for name, value in state.items() if name.startswith("actor.")}
        state["critic.weight"] = torch.ones(3)
    path = artifact.file(NETWORK_FILE)
    save_network(path, state, kind=kind, task=TASK, shape=SHAPE, extra={"evaluation": {"success": 0.5}})
    save_tensors(path, *change(*load_tensors(path)))
    artifact.complete({})
    return artifact


def refusal(artifact: Artifact) -> str:
    with pytest.raises(DamagedFileError) as raised:
        load_actor(artifact)
    assert str(artifact.file(NETWORK_FILE)) in str(raised.value) and "\n" not in str(raised.value)
    return str(raised.value)


def inputs(rows: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, 4)).astype(np.float32), rng.normal(size=(rows, 2)).astype(np.float32)


# -- round trip -------------------------------------------------------------------------------------


def test_a_student_comes_back_with_its_normalisers(tmp_path: Path):
    trained, actor = load_actor(make_artifact(tmp_path)), make_actor()
    assert trained.actor.state_dict().keys() == actor.state_dict().keys()
    for name, value in actor.state_dict().items():
        assert torch.equal(trained.actor.state_dict()[name], value), name
    assert trained.shape == SHAPE and trained.task.name == TASK.name and not trained.actor.training
    assert trained.metadata["evaluation"] == {"success": 0.5}
    assert trained.metadata["model_sha256"] == model_sha256(TASK.model)


def test_a_teacher_comes_back_without_critic_and_with_the_identity_for_normalisers(tmp_path: Path):
    trained, actor = load_actor(make_artifact(tmp_path, "teacher")), make_actor()
    observation, goal = map(torch.from_numpy, inputs())
    expected = actor.actor(observation, goal)
    for ours, theirs in zip(trained.actor(observation, goal), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_a_file_from_before_layer_norm_could_be_left_out_has_it(tmp_path: Path):
    def older(tensors: Tensors, header: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
        del header["shape"]["layer_norm"]
        return tensors, header

    assert load_actor(make_artifact(tmp_path, change=older)).shape == SHAPE and SHAPE.layer_norm


def test_the_policy_is_the_squashed_mean(tmp_path: Path):
    trained = load_actor(make_artifact(tmp_path))
    observation, goal = inputs()
    action = torch_policy(trained.actor)(observation, goal)
    mean = make_actor()(torch.from_numpy(observation), torch.from_numpy(goal)).mean
    np.testing.assert_allclose(action, mean.tanh().detach().numpy(), atol=1e-7)
    states = torch.from_numpy(observation), torch.from_numpy(goal)
    output = trained.deployable(InputLimits.around(*states))(*states)
    np.testing.assert_allclose(output.action.detach().numpy(), action, atol=1e-7)
    np.testing.assert_allclose(
        output.control.detach().numpy(), TASK.control(action.astype(np.float64)), atol=1e-6
    )


@pytest.mark.parametrize(
    "action",
    [
        '{actuators: "*", kind: delta, max_rate: 1.5}',
        "[{actuator: bend, kind: switch, max_rate: 3}, {actuator: lift, kind: offset, scale: 1}]",
        "[{actuator: lift, kind: offset, about: 0.9, scale: 0.4}, {actuator: bend, low: 1, high: -0.5}]",
        "[{actuator: bend, kind: offset, scale: 1, smoothing_s: 0.2}, {actuator: lift, hold: 0.3}]",
        "[{actuator: bend, kind: offset, scale: 0.2, swing: {amplitude: 0.2, period_s: 0.4}}, "
        "{actuator: lift, kind: offset, scale: 0.1, max_rate: 3, "
        "swing: {amplitude: -0.3, period_s: 0.7, phase: 0.2}}]",
    ],
    ids=["delta", "switch and offset", "offset alone", "a filter and held", "two swings"],
)
@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_an_exported_graph_sends_what_the_simulator_would(tmp_path: Path, action: str, runtime: str):
    """Over 200 steps, each of which builds on the last; the first alone sets the limits."""
    told = "  - {field: ctrl, object: bend}\n  - {field: ctrl, object: lift}\n"
    page = changed(PAGE, "achieved_goal", f"{told}achieved_goal") + f"action: {action}\n"
    task = compile_task(str(write(tmp_path, page, ARM)))
    torch.manual_seed(0)
    sizes = task.observation_dim, task.goal_dim
    actor = NormalizedActor.around(GoalActor(*sizes, task.action_dim, SHAPE), *sizes)
    actor.actor.mean_head.weight.data *= 20
    simulator = CpuSimulator(task, 8, num_threads=1)
    first = torch.from_numpy(simulator.observation.copy()), torch.from_numpy(simulator.desired_goal.copy())
    limits = InputLimits.around(*first)
    limits.observation_high[:5], limits.observation_low[:5] = 9.0, -9.0
    policy = TrainedActor(actor, task, SHAPE, {}).deployable(limits)
    session = onnxruntime.InferenceSession(to_onnx(policy, 20).SerializeToString())
    moved = np.zeros(2)
    for _ in range(200):
        rows = {"observation": simulator.observation.copy(), "goal": simulator.desired_goal.copy()}
        if runtime == "torch":
            output = (part.detach().numpy() for part in policy(*map(torch.from_numpy, rows.values())))
        else:
            output = session.run(["action", "control"], rows)
        taken, control = output
        simulator.step(np.asarray(taken))
        np.testing.assert_allclose(control, simulator.observation[:, [6, 5]], atol=1e-5)
        moved = np.maximum(moved, np.abs(control - rows["observation"][:, [6, 5]]).max(0))
    held = [command.kind == "hold" for command in task.control.commands]
    assert ((moved > 0.01) | held).all()
    exact = copy.deepcopy(policy).double()(*(torch.from_numpy(each).double() for each in rows.values()))
    rounded = policy(*map(torch.from_numpy, rows.values())).control.double()
    torch.testing.assert_close(exact.control, rounded, atol=1e-4, rtol=0)


def test_the_hash_tells_models_apart():
    assert model_sha256(TASK.model) == model_sha256(TASK.spec.build_spec().compile())
    assert model_sha256(TASK.model) != model_sha256(compile_task("point_big_maze").model)


# -- refusals ---------------------------------------------------------------------------------------


def header_with(**values: Any) -> Change:
    return lambda tensors, header: (tensors, header | values)


def without(*names: str) -> Change:
    def change(tensors: Tensors, header: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
        kept = {name: value for name, value in tensors.items() if name not in names}
        return kept, {name: value for name, value in header.items() if name not in names}

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (header_with(kind="teacher"), "holds a teacher"),
        (header_with(task="point_big_maze"), "'point_big_maze', not a student of 'point_u_maze'"),
        (header_with(observation_dim=5), "sizes differ"),
        (header_with(shape={"depth": 4, "width": 16}), "does not hold the network"),
        (header_with(shape={"depth": 8, "width": 8}), "network file"),
        (header_with(shape={"depth": 5, "width": 8}), "multiple of 4"),
        (header_with(shape={"deep": 5}), "network file"),
        (header_with(shape=None), "network file"),
        (without("kind"), "kind"),
        (without("shape"), "shape"),
        (without("actor.mean_head.weight"), "does not hold the network"),
        (without("observation_normalizer.mean"), "does not hold the network"),
        (lambda tensors, header: (tensors | {"actor.extra": torch.zeros(1)}, header), "does not hold"),
        (lambda tensors, header: ({}, header), "does not hold the network"),
        (lambda tensors, header: (tensors, {}), "network file"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, change: Change, said: str):
    assert said in refusal(make_artifact(tmp_path, change=change))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, path.stat().st_size - 4),
        lambda path: os.truncate(path, 0),
        lambda path: path.write_text("weights, honestly"),
        lambda path: path.unlink(),
    ],
    ids=["truncated", "empty", "text", "missing"],
)
@pytest.mark.parametrize("hashed", [False, True])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Callable[[Path], Any], hashed: bool):
    artifact = make_artifact(tmp_path)
    damage(artifact.file(NETWORK_FILE))
    if hashed:  # damaged before its hash was taken
        artifact.complete({})
    assert NETWORK_FILE in refusal(artifact)


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path):
    artifact = make_artifact(tmp_path)
    safetensors.torch.save_file(dict(make_actor().state_dict()), artifact.file(NETWORK_FILE))
    artifact.complete({})
    assert "not written by Thousandfold" in refusal(artifact)


def test_an_edited_weight_is_refused(tmp_path: Path):
    artifact = make_artifact(tmp_path)
    tensors, header = load_tensors(artifact.file(NETWORK_FILE))
    tensors["actor.mean_head.bias"][0] += 1e-3
    save_tensors(artifact.file(NETWORK_FILE), tensors, header)
    assert "differs from its recorded hash" in refusal(artifact)


def test_a_task_that_no_longer_exists_is_named(tmp_path: Path):
    artifact = make_artifact(tmp_path, change=header_with(task="point_v_maze"))
    artifact.update(task="point_v_maze")
    with pytest.raises(UserError, match="point_u_maze"):
        load_actor(artifact)


def test_an_unfinished_artifact_is_refused(tmp_path: Path):
    artifact = Workspace(tmp_path).create("teacher", task=TASK.name, settings={})
    with pytest.raises(MissingArtifactError, match="not completed"):
        load_actor(artifact)


@pytest.mark.parametrize("size", [{"width": 2**20}, {"depth": 4 * 10**8}, {"width": 10**40}], ids=str)
def test_a_network_larger_than_the_file_is_refused_before_it_is_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: dict[str, int]
):
    artifact = make_artifact(tmp_path, change=lambda t, h: (t, h | {"shape": h["shape"] | size}))
    monkeypatch.setattr(torch.nn.Linear, "__init__", lambda *_: pytest.fail("allocated"))
    assert "does not hold the network" in refusal(artifact)
