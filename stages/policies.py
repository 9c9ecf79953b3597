"""A policy that acts, read back from the artifact of a policy file, a student or a teacher."""

from __future__ import annotations

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.model_hash import model_sha256
from thousandfold.ground.errors import SettingsError
from thousandfold.pipeline.artifact_task import load_task
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.console import Console
from thousandfold.stages.episodes import Policy


def load_policy(
    source: Artifact,
    device: str,
    console: Console,
    teacher_samples: int = 1,
    seed: int = 0,
    sample_scale: float = 1.0,
) -> tuple[CompiledTask, Policy]:
    """Return policy and task, as it sees it, of a policy's, a student's or a teacher's artifact.

    torch is imported for networks alone.

    Args:
        source: the artifact.
        device: where a network runs, as the setting says.
        console: told where that is not the GPU of a machine that has one.
        teacher_samples: actions that a teacher's critic chooses from; 1: the mean.
        seed: of their draws.
        sample_scale: times the teacher's standard deviation is what they are drawn with.

    Raises:
        UserError: a file is damaged, the task is not there or has another model now, or no teacher is to
            have a critic choose.
    """
    if teacher_samples > 1 and source.kind != "teacher":
        raise SettingsError(f"teacher_samples {teacher_samples}: a {source.kind} has no critic to choose.")
    if source.kind == "policy":
        from thousandfold.stages.policy_file.onnx_policy import POLICY_FILE, OnnxPolicy

        source.verify()
        policy, task = OnnxPolicy(source.file(POLICY_FILE), task=source.manifest.task), load_task(source)
        policy.expect_model(model_sha256(task.model))
        return task.student_view if policy.metadata.role == "student" else task, policy
    from thousandfold.pipeline.runtime import resolve_device
    from thousandfold.stages.networks import load_actor, torch_policy

    trained, place = load_actor(source), resolve_device(device, console)
    if teacher_samples > 1:
        from thousandfold.stages.networks import best_action_policy, load_critic

        critic = load_critic(source)
        policy = best_action_policy(trained, critic, teacher_samples, seed, place, scale=sample_scale)
        return trained.task, policy
    return trained.task, torch_policy(trained.actor.to(place), place)
