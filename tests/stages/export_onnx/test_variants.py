"""Variants of a policy: what makes one worth keeping, and what is written then."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from thousandfold.envs.registry import compile_task
from thousandfold.ground.errors import SettingsError
from thousandfold.models.deployable_policy import NormalizedActor
from thousandfold.models.goal_actor import GoalActor
from thousandfold.models.onnx_graph import to_onnx
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.pipeline.artifacts import Workspace
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.runtime import StageContext
from thousandfold.pipeline.settings import resolve_settings
from thousandfold.pipeline.tracking import NullTracker
from thousandfold.stages.export_onnx import export_onnx
from thousandfold.stages.export_onnx import variants as policy_variants
from thousandfold.stages.export_onnx.export import Export, dense_input_ranges
from thousandfold.stages.export_onnx.export_onnx import ExportOnnxSettings
from thousandfold.stages.export_onnx.gate import GateStates, act_in_same_episodes
from thousandfold.stages.export_onnx.variants import (
    VARIANT_FILES,
    Variant,
    VariantFigures,
    time_in_turns,
    try_variant,
)
from thousandfold.stages.networks import NETWORK_FILE, load_actor, save_network
from thousandfold.stages.policy_file.golden import golden_error
from thousandfold.stages.policy_file.metadata import Evaluation
from thousandfold.stages.policy_file.onnx_policy import POLICY_FILE, OnnxPolicy

TASK = "point_u_maze"
FIGURES = VariantFigures(
    max_action_error=0.02,
    latency_us=8.0,
    float32_latency_us=10.0,
    success=0.90,
    float32_success=0.91,
    episodes=100,
    bytes=1000,
)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"latency_us": 9.5, "success": 1.0}, None),
        ({"latency_us": 9.6}, "its median call takes 9.6 µs here, that of float32 10 µs"),
        ({"success": 0.89}, "reaches 0.890 of the goals where float32 reaches 0.910, over the same 100"),
        ({"success": 0.89, "latency_us": 99.0}, "reaches 0.890"),
        ({"success": None, "max_action_error": float("nan")}, "not finite"),
    ],
)
def test_a_variant_must_be_faster_and_act_as_well(changes: dict[str, Any], reason: str | None):
    refusal = dataclasses.replace(FIGURES, **changes).refusal()
    assert refusal is None if reason is None else refusal is not None and reason in refusal


# -- a policy -----------------------------------------------------------------------------------------


def make_workspace(root: Path) -> Workspace:
    """Return a workspace with a student that nobody trained."""
    torch.manual_seed(0)
    shape = NetworkShape(4, 32)
    actor, workspace = NormalizedActor.around(GoalActor(4, 2, 2, shape), 4, 2), Workspace(root)
    student = workspace.create("student", task=TASK, settings={})
    tensors = dict(actor.state_dict())
    task = compile_task(TASK)
    save_network(student.file(NETWORK_FILE), tensors, kind="student", task=task, shape=shape)
    student.complete({})
    return workspace


def export(workspace: Workspace, **changes: Any) -> Any:
    settings = ExportOnnxSettings(gate_states=64, closed_loop_episodes=4, include_teacher=False, **changes)
    context = StageContext(workspace, Console(), NullTracker())
    return export_onnx.run(settings, context, workspace.newest("student"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    folder = tmp_path_factory.mktemp("workspace")
    student = make_workspace(folder).newest("student")
    draw = np.random.default_rng(0).standard_normal((300, 6)).astype(np.float32)
    states = GateStates(draw[:, :4].copy(), draw[:, 4:].copy(), {"closed_loop": 300})
    export = Export(student, load_actor(student), states, opset=20, licence="MIT")
    policy = export.draft(folder / POLICY_FILE)
    outcome = act_in_same_episodes(policy, export.trained.task, episodes=4, seed=0)
    export.finish(Evaluation.model_validate(outcome.summary() | {"runtime": "onnxruntime"}), 0)
    return export


def set_latencies(monkeypatch: pytest.MonkeyPatch, own: float, float32: float) -> None:
    monkeypatch.setattr(policy_variants, "time_in_turns", lambda *_: (own, float32))


@pytest.mark.parametrize("variant", ["float16", "int8"])
def test_a_faster_variant_is_kept_and_describes_itself(
    variant: Variant, exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    set_latencies(monkeypatch, 5.0, 10.0)
    path = tmp_path / VARIANT_FILES[variant]
    trial = try_variant(variant, path, exported, seed=0)
    assert trial.refusal is None and [file.name for file in tmp_path.iterdir()] == [path.name]
    assert trial.record()["offered"] and trial.record()["bytes"] < exported.policy.path.stat().st_size
    assert trial.sentence().startswith(f"Beside it {path.name}: median 5 µs a call, float32 10 µs; success")
    policy = OnnxPolicy(path, task=TASK)
    metadata, golden = policy.metadata, policy.golden()
    assert (metadata.precision, metadata.opset, metadata.licence) == (variant, 20, "MIT")
    assert metadata.evaluation is not None and metadata.evaluation.episodes == 4
    assert golden.tolerance == pytest.approx(2 * trial.figures.max_action_error)
    assert 1e-6 < golden_error(policy.run, golden, metadata) <= golden.tolerance < 0.2


@pytest.mark.parametrize("variant", ["float16", "int8"])
def test_a_slower_variant_is_not_kept(
    variant: Variant, exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    set_latencies(monkeypatch, 10.0, 10.0)
    trial = try_variant(variant, tmp_path / VARIANT_FILES[variant], exported, seed=0)
    assert list(tmp_path.iterdir()) == [] and not trial.record()["offered"]
    expected = f"No {variant} variant: its median call takes 10 µs here, that of float32 10 µs."
    assert trial.sentence() == expected


def test_what_is_too_far_off_for_golden_rows_is_not_kept(
    exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    figures = dataclasses.replace(FIGURES, max_action_error=0.06, success=0.91)
    monkeypatch.setattr(policy_variants, "measure", lambda *_: figures)
    trial = try_variant("float16", tmp_path / "policy-float16.onnx", exported, seed=0)
    assert trial.sentence() == (
        "No float16 variant: its actions are off torch's by 0.06, and golden rows that allow for more than "
        "0.05 prove nothing."
    )
    assert list(tmp_path.iterdir()) == []
    assert try_variant("int8", tmp_path / "policy-int8.onnx", exported, seed=0).refusal is None


def test_what_overflows_is_not_let_near_a_simulator(
    exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    set_latencies(monkeypatch, 5.0, 10.0)
    monkeypatch.setattr(policy_variants, "act_in_same_episodes", lambda *_, **__: pytest.fail("it acted"))
    trained = load_actor(exported.source)
    with torch.no_grad():
        trained.actor.actor.trunk.get_parameter("body.weight").mul_(1e7)  # beyond the largest float16
    overflowing = dataclasses.replace(exported, trained=trained)
    overflowing.policy, overflowing.metadata = exported.policy, exported.metadata
    trial = try_variant("float16", tmp_path / "policy-float16.onnx", overflowing, seed=0)
    assert trial.refusal == "its actions are not finite" and trial.figures.success is None
    assert list(tmp_path.iterdir()) == []


def test_the_ranges_are_those_of_what_the_layers_take_in_the_states(exported: Export):
    torch.manual_seed(0)
    shape = NetworkShape(3, 8, kind="plain")
    trained = dataclasses.replace(
        exported.trained, actor=NormalizedActor.around(GoalActor(4, 2, 2, shape), 4, 2), shape=shape
    )
    module, seen = trained.deployable(exported.states.limits()), {}
    layers = [part for part in module.actor.actor.trunk.body.modules() if isinstance(part, nn.Linear)]
    for index, layer in enumerate(layers):
        layer.register_forward_hook(
            lambda _, inputs, __, name=f"dense_{index}": seen.update({name: inputs[0]})
        )
    with torch.no_grad():
        module(torch.from_numpy(exported.states.observation), torch.from_numpy(exported.states.goal))
    ranges = dense_input_ranges(to_onnx(module, opset=20), exported.states)
    assert list(ranges) == list(seen) == ["dense_0", "dense_1"]
    for name, value in seen.items():
        assert ranges[name] == pytest.approx((float(value.min()), float(value.max())), abs=1e-5)


def test_a_network_without_a_body_has_no_ranges(exported: Export):
    actor = NormalizedActor.around(GoalActor(4, 2, 2, NetworkShape(1, 8, kind="plain")), 4, 2)
    module = dataclasses.replace(exported.trained, actor=actor).deployable(exported.states.limits())
    assert dense_input_ranges(to_onnx(module, opset=20), exported.states) == {}


class SleepingPolicy:
    """Takes its time over a step."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.states = seconds, []

    def step(self, observation: np.ndarray, goal: np.ndarray) -> None:
        self.states.append(np.concatenate([observation, goal]))
        time.sleep(self.seconds)


def test_both_files_are_timed_over_the_same_states(exported: Export, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(policy_variants, "_TIMED_S", 0.1)
    monkeypatch.setattr(policy_variants, "_WARMUP_S", 0.01)
    rows = np.hstack([exported.states.observation, exported.states.goal])
    slow, fast = SleepingPolicy(3e-3), SleepingPolicy(1e-3)
    policies: list[Any] = [slow, fast]
    own, other = time_in_turns(policies[0], policies[1], exported.states)
    assert own >= 3000 and other >= 1000 and own > other
    for policy in (slow, fast):
        assert all(map(np.array_equal, policy.states[:8], rows[:8]))


def test_an_export_records_what_it_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    workspace = make_workspace(tmp_path)
    latencies = iter([(5.0, 10.0), (12.0, 10.0)])
    monkeypatch.setattr(policy_variants, "time_in_turns", lambda *_: next(latencies))
    policy = export(workspace, variants="float16,int8")
    assert set(policy.manifest.files) == {POLICY_FILE, "policy-float16.onnx"}
    records = policy.manifest.results["variants"]
    assert [(name, record["offered"]) for name, record in records.items()] == [
        ("float16", True),
        ("int8", False),
    ]
    assert records["int8"]["refusal"].startswith("its median call takes 12 µs")
    printed = capsys.readouterr().out
    assert "Beside it policy-float16.onnx" in printed and "No int8 variant" in printed
    policy.verify()


@pytest.mark.parametrize(
    ("text", "variants"),
    [("float16,int8", ("float16", "int8")), ("[int8]", ("int8",)), ("int8,int8", ("int8",)), ("", ())],
)
def test_variants_are_named_in_one_setting(text: str, variants: tuple[str, ...]):
    assert (
        resolve_settings(ExportOnnxSettings, "export_onnx", overrides=[f"variants={text}"]).variants
        == variants
    )


def test_an_unknown_variant_is_refused():
    with pytest.raises(SettingsError, match=r"variants.*'float16' or 'int8'"):
        resolve_settings(ExportOnnxSettings, "export_onnx", overrides=["variants=int4"])
