"""A policy to run, and the task that it was made for: of an artifact, or of a file that lies anywhere."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.model_hash import model_sha256
from thousandfold.envs.registry import compile_task, task_names
from thousandfold.envs.task import CHANGES, LONGEST_CLOCK_S
from thousandfold.envs.user_tasks.task_copy import PAGE_NAME
from thousandfold.ground.errors import DamagedFileError, UserError
from thousandfold.pipeline.artifact_task import TASK_FOLDER
from thousandfold.pipeline.artifacts import MANIFEST_NAME, NEWEST, Artifact, Workspace
from thousandfold.pipeline.console import printable
from thousandfold.stages.policy_file.controls import (
    ACTUATOR_UNIT,
    describe_controls,
    require_same_controls,
)
from thousandfold.stages.policy_file.golden import golden_error
from thousandfold.stages.policy_file.metadata import PolicyMetadata
from thousandfold.stages.policy_file.onnx_bytes import EXPORT_AGAIN
from thousandfold.stages.policy_file.onnx_policy import (
    POLICY_FILE,
    OnnxPolicy,
    OtherModelError,
    require_model,
)


@dataclass(frozen=True)
class PolicySource:
    """A policy file, opened, and its task, with the policy's episode length."""

    policy: OnnxPolicy
    task: CompiledTask
    name: str


@dataclass(frozen=True)
class PolicyPlace:
    """Where a policy file lies: within its artifact, or elsewhere."""

    path: Path
    name: str
    artifact: Artifact | None


def find_policy(workspace: Workspace, reference: str | None = None) -> PolicyPlace:
    """Return where a policy lies, whole or not; raise UserError where there is none.

    `reference` is a policy file, or the name or folder of an artifact; None takes the newest policy.
    """
    if reference is not None:
        path = Path(reference).expanduser()
        if path.is_file():
            artifact = None
            if (path.parent / MANIFEST_NAME).is_file():
                around = Artifact.load(path.parent.absolute())
                if around.kind == "policy" and path.name in around.manifest.files:
                    artifact = around
            return PolicyPlace(path, str(path), artifact)
        if path.suffix == ".onnx":
            raise UserError(f"{path} is no file: give a policy file, or the name of a policy's artifact.")
    artifact = (
        workspace.newest("policy") if reference in (None, NEWEST) else workspace.open(reference, "policy")
    )
    return PolicyPlace(artifact.file(POLICY_FILE), artifact.name, artifact)


def open_source(
    workspace: Workspace,
    reference: str | None = None,
    task: str | None = None,
    *,
    any_model: bool = False,
    trusted: Collection[bytes] = (),
) -> PolicySource:
    """Return a policy and the task to run it in.

    Args:
        workspace, reference: as of `find_policy`.
        task: name or file of the task; None takes the copy beside the file, or what its metadata names.
        any_model: take a task whose model is another than the one that the policy was made for.
        trusted: as of `OnnxPolicy`.

    Raises:
        UserError: there is no such policy, its file is damaged or off its golden rows, its task is not known
            here, or the task's model is another.
    """
    place = find_policy(workspace, reference)
    policy = open_policy(place, trusted)
    compiled = find_task(policy.metadata, place, task)
    try:
        require_same_task(policy.metadata, compiled, place.name)
    except OtherModelError as error:
        if not any_model:
            raise OtherModelError(f"{error} --any-model runs it all the same.") from None
    require_same_controls(policy.metadata, policy.golden(), compiled, place.name)
    return PolicySource(policy, compiled, place.name)


def open_policy(
    place: PolicyPlace, trusted: Collection[bytes] = (), content: bytes | None = None
) -> OnnxPolicy:
    """Return a policy that gives its golden actions here, as every runner must check.

    `trusted` and `content` are those of `OnnxPolicy`. Raises DamagedFileError where it does not, a file is
    damaged, or none of the trusted keys signed it.
    """
    if place.artifact is not None:
        place.artifact.verify()
    policy = OnnxPolicy(place.path, trusted=trusted, content=content)
    golden = policy.golden()
    error = golden_error(policy.run, golden, policy.metadata)
    if not error <= golden.tolerance:  # NaN is not
        raise DamagedFileError(
            f"{policy.path} is off its golden rows by {error:.2g}, more than {golden.tolerance:.2g}: its "
            f"weights were changed, or this runtime computes it wrongly; {EXPORT_AGAIN}."
        )
    return policy


def find_task(metadata: PolicyMetadata, place: PolicyPlace, given: str | None = None) -> CompiledTask:
    """Return the task as given, of the copy beside the file, or built in, with the policy's own changes.

    It is the task as the policy sees it: that of a student has a student's observation.

    Raises:
        UserError: there is no such task, it is a user's and no file describes it, or it was changed in a way
            that is not known here.
    """
    page = place.path.parent / TASK_FOLDER / PAGE_NAME
    reference = given or (str(page) if page.is_file() else metadata.task)
    if reference == metadata.task and metadata.task not in task_names():
        was = f" (it was {printable(metadata.task_file, newlines=False)})" if metadata.task_file else ""
        raise UserError(
            f"{place.name} is for task {metadata.task!r}, which is none of the built-in ones: give the file "
            f"that describes it with --task{was}."
        )
    changes = metadata.task_changes | {"episode_steps": metadata.episode_steps}
    evaluation, clock_s = changes.get("evaluation"), changes.get("clock_s")
    is_number = isinstance(clock_s, int | float) and not isinstance(clock_s, bool)
    is_clock = clock_s is None or (is_number and 0 < clock_s <= LONGEST_CLOCK_S)
    if not changes.keys() <= set(CHANGES) or not isinstance(evaluation, str | None) or not is_clock:
        told = printable(", ".join(metadata.task_changes), newlines=False)[:80]
        raise UserError(
            f"{place.name} was made with changes of its task that this version does not know "
            f"({told}): update thousandfold, or {EXPORT_AGAIN}."
        )
    task = compile_task(reference, changes)
    return task.student_view if metadata.role == "student" else task


def require_same_task(metadata: PolicyMetadata, task: CompiledTask, name: str) -> None:
    """Raise UserError unless the task is the one that the policy was made for, with its very model."""
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
    if abs(metadata.control_dt_s - task.spec.control_dt_s) > 1e-9:
        raise UserError(
            f"{name} acts every {metadata.control_dt_s:g} s, task {task.name!r} here every "
            f"{task.spec.control_dt_s:g} s: give the task that it was trained for with --task."
        )
    # Sizes and the model's hash are the same for a task file whose terms were put into another order.
    earlier = {"observation": task.earlier_names("observation"), "goal": task.earlier_names("achieved_goal")}
    for part, elements in element_labels(task).items():
        described = getattr(metadata.inputs if part in ("observation", "goal") else metadata.outputs, part)
        for index, (element, (label, unit)) in enumerate(zip(described, elements, strict=True)):
            names = (label, earlier[part][index]) if part in earlier else (label,)
            # Files of earlier versions say so of every control.
            units = (unit, ACTUATOR_UNIT) if part == "control" else (unit,)
            if element.name not in names or element.unit not in units:
                raise UserError(
                    f"{name} does not fit task {task.name!r} as it is here: its {part}[{index}] is "
                    f"{element.name!r} in {element.unit or 'no unit'}, the task's {label!r} in "
                    f"{unit or 'no unit'}. Give the task that it was trained for with --task."
                )
    require_model(metadata, model_sha256(task.model), name)


def element_labels(task: CompiledTask) -> dict[str, list[tuple[str, str]]]:
    """Return name and unit of every number of each input and output of a task's policies, in order."""
    observation, goal = (
        [(element["name"], element["unit"]) for element in task.describe(part)]
        for part in ("observation", "achieved_goal")
    )
    return {
        "observation": observation,
        "goal": goal,
        "action": [(action, "1") for action in task.control.actions],
        "control": [(control.name, control.unit) for control in describe_controls(task)],
    }
