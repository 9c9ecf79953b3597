"""What a program calls: the stages of the command line as functions, policies to act with, environments.

Each stage takes what its command takes, does what its command does, and returns the artifact it has made. It
is tracked in the workspace's store; what a command prints goes to standard error. docs/api.md has an example.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np

from thousandfold.envs.task_names import TASK_NAMES, environment_id
from thousandfold.ground.errors import MissingArtifactError, NonFiniteError, UserError
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.session import CommonOptions, Session, one_process_alone
from thousandfold.pipeline.settings import StageSettings
from thousandfold.registration import USER_TASK_ID

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.vector import VectorEnv

    from thousandfold.envs.compiled_task import CompiledTask

Place = str | os.PathLike[str]
OnEvaluation = Callable[[dict[str, float]], object]
Settings = TypeVar("Settings", bound=StageSettings)


class Policy:
    """A policy that acts: of a policy file, a student or a teacher. `load` makes them.

    Attributes:
        name: of the artifact, or the path of the file.
        artifact: the artifact; None for a policy file that lies elsewhere.
        metadata: what the file says of the policy: docs/policy-format.md has it for policy files; for a
            network its kind, task, sizes and shape.
    """

    def __init__(
        self,
        name: str,
        act: Callable[[np.ndarray, np.ndarray], np.ndarray],
        find_task: Callable[[], CompiledTask],
        *,
        metadata: dict[str, Any],
        sizes: tuple[int, int],
        artifact: Artifact | None,
    ) -> None:
        self.name, self.metadata, self.artifact = name, metadata, artifact
        self._act, self._find_task, self._sizes = act, find_task, sizes

    def predict(self, observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Return the mean action, in [−1, 1]: a row for a row, a batch for a batch.

        Args:
            observation: (observation_dim,) or (n, observation_dim).
            goal: (goal_dim,) or (n, goal_dim).

        Returns:
            (action_dim,) or (n, action_dim), float32.

        Raises:
            ValueError: other shapes.
            NonFiniteError: a number is NaN or infinite.
        """
        given = {"observation": observation, "goal": goal}
        with np.errstate(over="ignore"):  # too large for float32 is infinite, which is refused below
            rows = {name: np.asarray(value, np.float32) for name, value in given.items()}
        for (name, value), size in zip(rows.items(), self._sizes, strict=True):
            if value.ndim not in (1, 2) or value.shape[-1] != size:
                raise ValueError(f"{name} has shape {value.shape}, not ({size},) or (n, {size})")
            if not np.isfinite(value).all():
                raise NonFiniteError(f"{name} holds NaN or infinity: a policy takes finite numbers alone.")
        states, goals = rows.values()
        if states.shape[:-1] != goals.shape[:-1]:
            raise ValueError(
                f"observation has shape {states.shape} and goal {goals.shape}: give as many rows"
            )
        if states.ndim == 1:
            return self._act(states[None], goals[None])[0]
        return self._act(states, goals)

    @cached_property
    def task(self) -> CompiledTask:
        """The compiled task that it was trained for, which `make` takes; its `name` is the task's name.

        Raises UserError where it is not here, as may be for a file away from its artifact, or is another now.
        """
        return self._find_task()

    def __repr__(self) -> str:
        return f"Policy({self.name!r})"


def load(
    name_or_path: Place | Artifact, *, workspace: Place | None = None, trusted: Place | None = None
) -> Policy:
    """Return a policy that acts on the CPU.

    Args:
        name_or_path: a policy file anywhere, or name or folder of a policy, a student or a teacher. Networks
            need torch, policy files do not.
        workspace: where names are looked for; None: THOUSANDFOLD_WORKSPACE, or the current folder.
        trusted: file of a public key, with which the policy file must be signed; None: it need not be.

    Raises:
        UserError: there is none, a file is damaged, or it is not signed with the trusted key.
    """
    found, reference = Workspace.resolve(_text(workspace)), _reference(name_or_path)
    path = Path(reference).expanduser()
    if path.is_file() or path.suffix == ".onnx" or found.find(reference, None).kind == "policy":
        from thousandfold.stages.policy_file.signature import read_public_key
        from thousandfold.stages.policy_file.source import (
            find_policy,
            find_task,
            open_policy,
            require_same_task,
        )

        place = find_policy(found, reference)
        file = open_policy(place, () if trusted is None else (read_public_key(Path(trusted)),))

        def task_of_file() -> CompiledTask:
            task = find_task(file.metadata, place)
            require_same_task(file.metadata, task, place.name)
            return task

        sizes = file.metadata.sizes()
        return Policy(
            place.name,
            file,
            task_of_file,
            metadata=file.metadata.model_dump(mode="json"),
            sizes=(sizes["observation"], sizes["goal"]),
            artifact=place.artifact,
        )
    if trusted is not None:
        raise UserError(f"{reference} is no policy file, and nothing else is signed: leave out `trusted`.")
    artifact = _open(found, reference, "student", "teacher", "policy")
    from thousandfold.stages.networks import load_actor, torch_policy

    trained = load_actor(artifact)
    return Policy(
        artifact.name,
        torch_policy(trained.actor),
        lambda: trained.task,
        metadata=trained.metadata,
        sizes=(trained.task.observation_dim, trained.task.goal_dim),
        artifact=artifact,
    )


# -- Stages: each takes its settings by keyword, over those of the preset ---------------------------


def train_teacher(
    task: Place | None = None,
    *,
    on_evaluation: OnEvaluation | None = None,
    workspace: Place | None = None,
    preset: str | None = None,
    **settings: Any,
) -> Artifact:
    """Train a teacher without rewards or demonstrations; `pipeline train-teacher`.

    Args:
        task: a name of `tasks`, or the YAML file of your own; None: the preset's.
        on_evaluation: called with the figures of each evaluation within the training.
        workspace: None: that of the artifact that a stage is given, else THOUSANDFOLD_WORKSPACE, or the
            current folder.
        preset: None: cpu; with a CUDA device quickstart.
        settings: as `pipeline train-teacher --set` takes them.

    Raises:
        SettingsError: an unknown setting, with the nearest one, or a value out of bounds.
        StoppedByUser: after Ctrl-C; the message says how to go on.
        UserError: anything else that can be put right.
    """
    from thousandfold.stages.train_teacher import train_teacher as stage

    if task is not None:
        settings["task"] = os.fspath(task)
    with _stage(
        "train-teacher", stage.TrainTeacherSettings, workspace, preset, settings, several_ranks=True
    ) as call:
        call.settings.shares(call.session.ranks)
        call.session.announce_training(call.common, call.settings.task)
        return stage.run(call.settings, call.session.context, on_evaluation=on_evaluation)


def generate_dataset(
    teacher: Place | Artifact | Policy,
    *,
    workspace: Place | None = None,
    preset: str | None = None,
    **settings: Any,
) -> Artifact:
    """Record a teacher's episodes as a Minari dataset; `pipeline generate-dataset`."""
    from thousandfold.stages.dataset import generate_dataset as stage

    with _stage(
        "generate-dataset",
        stage.GenerateDatasetSettings,
        workspace,
        preset,
        settings,
        teacher,
        several_ranks=True,
    ) as call:
        call.session.announce(call.common)
        source = call.session.take("teacher", _reference(teacher))
        return stage.run(call.settings, call.session.context, source)


def distill(
    teacher: Place | Artifact | Policy,
    dataset: Place | Artifact | None = None,
    *,
    on_evaluation: OnEvaluation | None = None,
    workspace: Place | None = None,
    preset: str | None = None,
    **settings: Any,
) -> Artifact:
    """Distil a teacher into a student of a few layers; `pipeline distill`.

    Args:
        teacher: its artifact, name or folder.
        dataset: of the teacher; None: its newest, which is made first where there is none.
        on_evaluation: called with the figures of each evaluation within the training.
        workspace, preset, settings: as of `train_teacher`, as are the errors.
    """
    from thousandfold.stages.distill import distill as stage
    from thousandfold.stages.distill.command import take_dataset

    with _stage("distill", stage.DistillSettings, workspace, preset, settings, teacher) as call:
        call.session.announce(call.common)
        source = call.session.take("teacher", _reference(teacher))
        data = take_dataset(
            call.session, call.common, source, None if dataset is None else _reference(dataset)
        )
        told = on_evaluation or (lambda _: None)
        return stage.run(call.settings, call.session.context, source, data, on_evaluation=told)


def export_onnx(
    student: Place | Artifact | Policy,
    *,
    workspace: Place | None = None,
    preset: str | None = None,
    **settings: Any,
) -> Artifact:
    """Write a student, or a teacher, as one ONNX file that is checked against torch; `pipeline export-onnx`.

    The file is `artifact.file("policy.onnx")`.
    """
    from thousandfold.stages.export_onnx import export_onnx as stage

    with _stage("export-onnx", stage.ExportOnnxSettings, workspace, preset, settings, student) as call:
        call.session.announce(call.common)
        source = _take(call.session, student, "student", "teacher")
        return stage.run(call.settings, call.session.context, source)


def evaluate(
    policy: Place | Artifact | Policy,
    *,
    workspace: Place | None = None,
    preset: str | None = None,
    **settings: Any,
) -> Artifact:
    """Run fresh closed-loop episodes of a policy, a student or a teacher; `pipeline evaluate`."""
    from thousandfold.stages.closed_loop import evaluate as stage

    with _stage("evaluate", stage.EvaluateSettings, workspace, preset, settings, policy) as call:
        call.session.announce(call.common)
        source = _take(call.session, policy, "policy", "student", "teacher")
        return stage.run(call.settings, call.session.context, source)


def benchmark(
    policy: Place | Artifact | Policy,
    *,
    workspace: Place | None = None,
    preset: str | None = None,
    **settings: Any,
) -> Artifact:
    """Measure how long a policy, or a policy file anywhere, takes to answer; `pipeline benchmark`."""
    from thousandfold.stages.benchmark import benchmark as stage
    from thousandfold.stages.benchmark.command import take_policy

    with _stage("benchmark", stage.BenchmarkSettings, workspace, preset, settings, policy) as call:
        call.session.announce(call.common)
        place = take_policy(call.session, _reference(policy))
        return stage.run(call.settings, call.session.context, place)


# -- Tasks as environments --------------------------------------------------------------------------


def tasks() -> list[str]:
    """Return the names of the built-in tasks."""
    return list(TASK_NAMES)


def make(task: Place | CompiledTask | Policy, **kwargs: Any) -> gymnasium.Env:
    """Return a task as a Gymnasium environment.

    Args:
        task: a name of `tasks`, the YAML file of your own, or a policy, whose task it is.
        kwargs: of `gymnasium.make` and of the environment, such as ``episode_steps``, ``distribution`` and
            ``render_mode``.
    """
    import gymnasium

    name, own = _environment(task)
    return gymnasium.make(name, **own, **kwargs)


def make_vec(task: Place | CompiledTask | Policy, num_envs: int, **kwargs: Any) -> VectorEnv:
    """Return copies of a task that step together, as a Gymnasium vector environment; `task` as of `make`."""
    import gymnasium

    name, own = _environment(task)
    return gymnasium.make_vec(name, num_envs=num_envs, **own, **kwargs)


def _environment(task: Place | CompiledTask | Policy) -> tuple[str, dict[str, Any]]:
    """Return the environment's id, and what it is told of a task that is not built in."""
    if isinstance(task, str):
        if task in TASK_NAMES:
            return environment_id(task), {}
        if task in map(environment_id, TASK_NAMES):
            return task, {}
    if isinstance(task, Policy):
        task = task.task
    return USER_TASK_ID, {"task": os.fspath(task) if isinstance(task, str | os.PathLike) else task}


# -- What the stages share --------------------------------------------------------------------------


class _Call(NamedTuple, Generic[Settings]):
    session: Session
    common: CommonOptions
    settings: Settings


@contextlib.contextmanager
def _stage(
    command: str,
    cls: type[Settings],
    workspace: Place | None,
    preset: str | None,
    settings: dict[str, Any],
    source: Place | Artifact | Policy | None = None,
    several_ranks: bool = False,
) -> Iterator[_Call[Settings]]:
    """Yield what a command works with; settings that are None stand among its options, as null.

    Without a workspace it is that of the source. What torch computes on afterwards are the caller's threads.
    """
    from thousandfold.envs.pictures.opengl import check_import

    check_import()
    own = source.artifact if isinstance(source, Policy) else source
    if workspace is None and isinstance(own, Artifact):
        workspace = own.path.absolute().parents[1]
    session = Session(_text(workspace), as_json=True)
    if session.ranks.size > 1 and not several_ranks:
        raise one_process_alone(command, session.ranks)
    session.console = Console(json_output=True, silent=not session.ranks.leads)
    nulls = tuple(f"{name}=null" for name, value in settings.items() if value is None)
    common = CommonOptions(preset, nulls, settings.get("seed"), settings.get("device"), dry_run=False)
    resolved = common.resolve(cls, command.replace("-", "_"), settings)
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 0
    try:
        yield _Call(session, common, resolved)
    finally:
        if torch:
            torch.set_num_threads(threads)


def _text(workspace: Place | None) -> str | None:
    return None if workspace is None else os.fspath(workspace)


def _reference(source: Place | Artifact | Policy) -> str:
    """Return a name or a path."""
    if isinstance(source, Policy):
        own = source.artifact
        source = own if own is not None and own.name == source.name else source.name  # else a file within
    return str(source.path) if isinstance(source, Artifact) else os.fspath(source)


def _open(workspace: Workspace, reference: str, *kinds: str) -> Artifact:
    artifact = workspace.find(reference, None)
    if artifact.kind not in kinds:
        raise MissingArtifactError(f"{artifact.name} is a {artifact.kind}: give a {' or a '.join(kinds)}.")
    artifact.require_completed()
    return artifact


def _take(session: Session, source: Place | Artifact | Policy, *kinds: str) -> Artifact:
    """Return the artifact of one of these kinds, and say that it is taken."""
    reference = _reference(source)
    if Path(reference).expanduser().is_file():
        raise MissingArtifactError(f"{reference} is a file: give the artifact, its name or its folder.")
    return session.take(_open(session.workspace, reference, *kinds).kind, reference)
