"""A policy to run, and the task that it was made for: of an artifact, or of a file that lies anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from envs.compiled_task import CompiledTask
from envs.model_hash import model_sha256
from envs.registry import compile_task, task_names
from envs.task import TaskError
from pipeline.core.artifacts import MANIFEST_NAME, Artifact, Workspace
from pipeline.core.errors import UserError
from pipeline.core.runtime import as_user_error
from stages.artifact_task import load_task
from stages.onnx_policy import POLICY_FILE, OnnxPolicy, PolicyMetadata


@dataclass(frozen=True)
class PolicySource:
    """A policy file, opened, and its task.

    Attributes:
        policy: the file.
        task: with the policy's episode length.
        name: what to call it.
    """

    policy: OnnxPolicy
    task: CompiledTask
    name: str


def open_source(
    workspace: Workspace,
    reference: str | None = None,
    task: str | None = None,
    *,
    any_model: bool = False,
) -> PolicySource:
    """Return a policy and the task to run it in.

    Args:
        workspace: where artifacts are looked for; a file needs none.
        reference: a policy file, or the name or folder of an artifact; None takes the newest policy.
        task: name or file of the task; None takes the artifact's, or what the file's metadata names.
        any_model: take a task whose model is another than the one that the policy was made for.

    Raises:
        UserError: there is no such policy, its file is damaged, its task is not known here, or the task's
            model is another.
    """
    if reference is not None and Path(reference).expanduser().is_file():
        path = Path(reference).expanduser()
        artifact = Artifact.load(path.parent) if (path.parent / MANIFEST_NAME).is_file() else None
        name = str(path)
    elif reference is not None and reference.endswith(Path(POLICY_FILE).suffix):
        raise UserError(f"{reference} is no file: give a policy file, or the name of a policy's artifact.")
    else:
        artifact = workspace.newest("policy") if reference is None else workspace.open(reference, "policy")
        artifact.verify()
        path, name = artifact.file(POLICY_FILE), artifact.name
    policy = OnnxPolicy(path)
    compiled = _task_of(policy.metadata, name, artifact, task)
    _require_same_task(policy.metadata, compiled, name, any_model)
    return PolicySource(policy, compiled, name)


def _task_of(
    metadata: PolicyMetadata, name: str, artifact: Artifact | None, given: str | None
) -> CompiledTask:
    """Return the task as given, of the artifact, or built in, with the policy's episode length."""
    changes = {"episode_steps": metadata.episode_steps}
    if given is not None:
        return as_user_error(lambda: compile_task(given, changes), TaskError)
    if artifact is not None and artifact.kind == "policy":
        return load_task(artifact)
    if metadata.task not in task_names():
        was = f" (it was {metadata.task_file})" if metadata.task_file else ""
        raise UserError(
            f"{name} is for task {metadata.task!r}, which is none of the built-in ones: give the file that "
            f"describes it with --task{was}."
        )
    return as_user_error(lambda: compile_task(metadata.task, changes), TaskError)


def _require_same_task(metadata: PolicyMetadata, task: CompiledTask, name: str, any_model: bool) -> None:
    """Raise UserError unless the task is the one that the policy was made for."""
    if task.name != metadata.task:
        raise UserError(f"{name} is a policy for task {metadata.task!r}, not for {task.name!r}.")
    sizes = {
        "observation": task.observation_dim,
        "goal": task.goal_dim,
        "action": task.action_dim,
        "control": task.model.nu,
    }
    expected = metadata.sizes()
    if differing := [size for size in sizes if sizes[size] != expected[size]]:
        said = ", ".join(f"{size} {expected[size]}, not {sizes[size]}" for size in differing)
        raise UserError(f"{name} does not fit task {task.name!r} as it is here: sizes of {said}.")
    if abs(metadata.control_dt_s - task.task.control_dt_s) > 1e-9:
        raise UserError(
            f"{name} acts every {metadata.control_dt_s:g} s, task {task.name!r} here every "
            f"{task.task.control_dt_s:g} s: give the task that it was trained for with --task."
        )
    found = model_sha256(task.model)
    if found != metadata.model_sha256 and not any_model:
        was = metadata.exporter.get("mujoco", "what it was")
        raise UserError(
            f"{name} was made for another model of task {task.name!r} (hash {metadata.model_sha256[:12]}, "
            f"here {found[:12]}): the model changed since, or MuJoCo is not {was} or the processor another. "
            "--any-model runs it all the same."
        )
