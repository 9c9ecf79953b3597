"""A teacher of other episodes than its task's: every later stage has the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stages.tiny_runs import TINY_TEACHER, make_context
from thousandfold.ground.errors import SettingsError
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.settings import resolve_settings
from thousandfold.stages.closed_loop import evaluate
from thousandfold.stages.closed_loop.evaluate import EvaluateSettings
from thousandfold.stages.dataset import generate_dataset
from thousandfold.stages.dataset.generate_dataset import GenerateDatasetSettings
from thousandfold.stages.distill import distill
from thousandfold.stages.distill.distill import DistillSettings
from thousandfold.stages.export_onnx import export_onnx
from thousandfold.stages.export_onnx.export_onnx import ExportOnnxSettings
from thousandfold.stages.networks import load_actor
from thousandfold.stages.policies import load_policy
from thousandfold.stages.policy_file.onnx_policy import POLICY_FILE, OnnxPolicy
from thousandfold.stages.train_teacher import train_teacher
from thousandfold.stages.train_teacher.settings import TrainTeacherSettings

CHANGES = {"episode_steps": 40, "evaluation": "training_from_start"}


def test_later_stages_keep_what_the_teacher_changed(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    changed = {"episode_steps": 40, "evaluation_distribution": "training_from_start"}
    teacher = train_teacher.run(TINY_TEACHER.model_copy(update=changed), context)
    data = generate_dataset.run(GenerateDatasetSettings(episodes=4), context, teacher)
    settings = DistillSettings(
        updates=4,
        evaluation_episodes=4,
        final_episodes=4,
        batch_size=16,
        student_width=8,
        reproduction_tolerance=1.0,
    )
    student = distill.run(settings, context, teacher, data)
    policy = export_onnx.run(
        ExportOnnxSettings(gate_states=50, closed_loop_episodes=4, include_teacher=False), context, student
    )
    outcome = evaluate.run(EvaluateSettings(episodes=4), context, policy)
    for artifact in (teacher, data, student, policy, outcome):
        assert artifact.manifest.task == "point_u_maze"
        assert artifact.manifest.task_changes == CHANGES
    for artifact in (teacher, student):
        assert load_actor(artifact).task.spec.changes == CHANGES
    assert load_policy(policy, "cpu", Console())[0].spec.episode_steps == 40
    assert OnnxPolicy(policy.file(POLICY_FILE)).metadata.episode_steps == 40


def test_a_distribution_that_the_task_has_not_is_refused() -> None:
    with pytest.raises(SettingsError, match="no episode distribution 'near'"):
        resolve_settings(
            TrainTeacherSettings,
            "train_teacher",
            overrides=["evaluation_distribution=near", "episode_steps=3"],
        )
    with pytest.raises(SettingsError, match="episode_steps"):
        resolve_settings(TrainTeacherSettings, "train_teacher", overrides=["episode_steps=0"])
