"""Distil a teacher into a small student: imitate its Gaussian, keep what acts best in closed loop."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor

from models.deployable_policy import NormalizedActor
from models.goal_actor import Gaussian, GoalActor
from models.residual_mlp import LAYERS_PER_BLOCK, NetworkShape, parameter_count
from pipeline.core.artifacts import Artifact
from pipeline.core.console import figure
from pipeline.core.errors import DamagedFileError, UserError
from pipeline.core.pictures import draw_learning_curve
from pipeline.core.runtime import (
    StageContext,
    StageWork,
    as_user_error,
    require_finite,
    resolve_device,
    seed_sequence,
    set_up_torch,
    torch_seed,
)
from pipeline.core.settings import StageSettings
from replay.goal_dataset import DatasetError, GoalDataset, load_goal_dataset
from stages.artifact_task import keep_task, task_record
from stages.episode_cache import episodes_of_teacher
from stages.evaluate import Episodes, draw_rollouts, retention, run_episodes
from stages.network_file import NETWORK_FILE, TrainedActor, load_actor, save_network, torch_policy

_BATCH_STREAM, _INITIALISATION_STREAM, _VALIDATION_STREAM, _FINAL_STREAM = 11, 12, 13, 14
_DRAWN_PATHS = 32


class DistillSettings(StageSettings):
    """Settings of `pipeline distill`."""

    student_depth: int = pydantic.Field(default=4, ge=1, le=1024, description="layers of the student")
    student_width: int = pydantic.Field(default=128, ge=1, le=8192, description="units of a layer")
    student_kind: Literal["auto", "residual", "plain"] = pydantic.Field(
        default="auto", description="auto: residual where the depth is a multiple of 4, else plain"
    )
    objective: Literal["kl", "mse"] = pydantic.Field(
        default="mse",
        description="kl: divergence of the Gaussians before the tanh; mse: squared error of tanh(mean)",
    )
    updates: int = pydantic.Field(default=4000, ge=1)
    batch_size: int = pydantic.Field(default=1024, ge=1)
    learning_rate: float = pydantic.Field(
        default=1e-3, gt=0, description="at the start; falls to 0 along a cosine"
    )
    validation_fraction: float = pydantic.Field(
        default=0.1, gt=0, lt=1, description="share of episodes held out"
    )
    evaluate_every: int = pydantic.Field(default=500, ge=1, description="updates between evaluations")
    evaluation_episodes: int = pydantic.Field(default=256, ge=1)
    final_episodes: int = pydantic.Field(
        default=1024, ge=1, description="paired episodes that measure retention"
    )
    threads: int = pydantic.Field(default=0, ge=0, description="CPU threads of torch; 0: every CPU")
    reproduction_tolerance: float = pydantic.Field(
        default=0.02, gt=0, le=1, description="how far the loaded teacher may be from its recorded success"
    )

    @pydantic.model_validator(mode="after")
    def _shape_is_valid(self) -> DistillSettings:
        _ = self.shape
        return self

    @property
    def shape(self) -> NetworkShape:
        """The form of the student."""
        kind = self.student_kind
        if kind == "auto":
            kind = "plain" if self.student_depth % LAYERS_PER_BLOCK else "residual"
        return NetworkShape(self.student_depth, self.student_width, kind=kind)


@dataclass(frozen=True)
class ImitationRows:
    """Rows to imitate, on the training device; first dimension is the row."""

    observation: Tensor
    goal: Tensor
    teacher: Gaussian

    def __len__(self) -> int:
        return len(self.observation)

    def select(self, rows: Tensor) -> ImitationRows:
        """Return the rows of an index."""
        teacher = Gaussian(self.teacher.mean[rows], self.teacher.log_std[rows])
        return ImitationRows(self.observation[rows], self.goal[rows], teacher)


def gaussian_kl(teacher: Gaussian, student: Gaussian) -> Tensor:
    """Return KL(teacher ‖ student) of diagonal Gaussians, (batch,): Σ log(σs/σt) + (σt² + Δμ²) / 2σs² − ½."""
    ratio = (2.0 * (teacher.log_std - student.log_std)).exp()
    shift = ((teacher.mean - student.mean) / student.log_std.exp()).square()
    return (student.log_std - teacher.log_std + 0.5 * (ratio + shift - 1.0)).sum(-1)


def imitation_loss(teacher: Gaussian, student: Gaussian, objective: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the objective's mean over the batch, and both objectives as metrics."""
    divergence = gaussian_kl(teacher, student).mean()
    action_error = (teacher.mean.tanh() - student.mean.tanh()).square().mean()
    loss = divergence if objective == "kl" else action_error
    return loss, {"kl": divergence.detach(), "action_mse": action_error.detach()}


def run(settings: DistillSettings, context: StageContext, teacher: Artifact, dataset: Artifact) -> Artifact:
    """Train a student on the teacher's dataset and return its artifact.

    Args:
        settings: of the stage.
        context: workspace, console and tracking.
        teacher: the teacher to imitate.
        dataset: its dataset.

    Raises:
        UserError: the dataset is another teacher's, or the teacher does not reproduce its recorded success.
    """
    trained = load_actor(teacher)
    data = _load_dataset(dataset, teacher)
    device = resolve_device(settings.device)
    set_up_torch(settings.threads)
    task = teacher.manifest.task
    parents = {"teacher": teacher, "dataset": dataset}
    with context.stage("student", "distill", task=task, settings=settings, parents=parents) as work:
        keep_task(trained.task, work.artifact, context.console)
        _require_reproduction(trained, teacher, settings, context)
        student = _make_student(settings, trained, data, device, context)
        work.run.log_dataset(
            dataset.name, str(dataset.manifest.hash)[:16], str(dataset.path), len(data.action), "training"
        )
        history, kept = _train(student, data, settings, trained, work, context)
        return _finish(student, trained, teacher, history, kept, settings, work, context)


def rehearse(
    settings: DistillSettings, context: StageContext, teacher: Artifact, dataset: Artifact
) -> TrainedActor:
    """Do what is the same for every student of a teacher: check, and fill the context's episode cache.

    Returns the teacher and raises as `run` does.
    """
    trained = load_actor(teacher)
    _load_dataset(dataset, teacher)
    set_up_torch(settings.threads)
    _require_reproduction(trained, teacher, settings, context)
    _closing_episodes_of_teacher(trained, teacher, settings, resolve_device(settings.device), context)
    return trained


def _load_dataset(dataset: Artifact, teacher: Artifact) -> GoalDataset:
    made_by = dataset.manifest.parents.get("teacher")
    if made_by is None or made_by.hash != teacher.manifest.hash:
        name = made_by.name if made_by else "no teacher"
        raise UserError(
            f"Dataset {dataset.name} was made by {name}, not by {teacher.name}: make one with "
            f"`pipeline generate-dataset --teacher {teacher.name}`."
        )
    dataset.verify()
    return as_user_error(lambda: load_goal_dataset(dataset.path), DatasetError)


def _require_reproduction(
    trained: TrainedActor, teacher: Artifact, settings: DistillSettings, context: StageContext
) -> None:
    """Replay the teacher's recorded evaluation; a wrongly loaded teacher must not be imitated."""
    recorded = teacher.manifest.results
    try:
        seed, episodes = seed_sequence(*recorded["evaluation_seed"]), int(recorded["episodes"])
        success = float(recorded["success"])
        if episodes < 1:
            raise ValueError(f"{episodes} episodes")
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{teacher.path}/manifest.json records no evaluation ({error}).") from error
    replayed = episodes_of_teacher(
        teacher,
        context,
        lambda: run_episodes(trained.task, torch_policy(trained.actor), episodes=episodes, seed=seed),
        seed=recorded["evaluation_seed"],
        episodes=episodes,
    )
    rate = float(replayed.success.mean())
    if not abs(rate - success) <= settings.reproduction_tolerance:  # NaN is no success either
        raise UserError(
            f"Teacher {teacher.name} reaches {rate:.3f} of the goals of its recorded evaluation, which says "
            f"{success:.3f}: it is not the network that was evaluated. Train it again or choose another."
        )
    context.console.say(
        f"Teacher {teacher.name} reproduces its recorded success: {rate:.3f} of {episodes} episodes."
    )


def _make_student(
    settings: DistillSettings, trained: TrainedActor, data: GoalDataset, device: str, context: StageContext
) -> NormalizedActor:
    task = trained.task
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(settings.seed, _INITIALISATION_STREAM))
        actor = GoalActor(task.observation_dim, task.goal_dim, task.action_dim, settings.shape)
    student = NormalizedActor(actor, task.observation_dim, task.goal_dim)
    student.observation_normalizer.fit(torch.from_numpy(data.observation))
    student.goal_normalizer.fit(torch.from_numpy(data.desired_goal))
    own, teachers = parameter_count(student), parameter_count(trained.actor)
    if own > teachers:
        context.console.warn(f"the student has {own:,} parameters, more than its teacher's {teachers:,}.")
    context.console.say(
        f"Student: {settings.shape.kind}, depth {settings.student_depth}, width {settings.student_width}, "
        f"{own:,} parameters; teacher: {teachers:,}. Dataset: {len(data.action):,} transitions."
    )
    return student.to(device)


def _split(
    data: GoalDataset, settings: DistillSettings, device: torch.device
) -> tuple[ImitationRows, ImitationRows]:
    """Return training and validation rows; an episode's rows are all on one side."""
    episodes = np.unique(data.episode)
    held_out = max(1, round(settings.validation_fraction * len(episodes)))
    if held_out >= len(episodes):
        raise UserError(
            f"The dataset has {len(episodes)} episode(s): too few to hold {held_out} out for validation."
        )
    rng = np.random.default_rng(seed_sequence(settings.seed, _BATCH_STREAM))
    chosen = np.isin(data.episode, rng.permutation(episodes)[:held_out])
    columns = (data.observation, data.desired_goal, data.teacher_mean, data.teacher_log_std)

    def rows(mask: np.ndarray) -> ImitationRows:
        observation, goal, mean, log_std = (torch.from_numpy(c[mask]).to(device) for c in columns)
        return ImitationRows(observation, goal, Gaussian(mean, log_std))

    return rows(~chosen), rows(chosen)


def _batches(rows: ImitationRows, settings: DistillSettings) -> Iterator[ImitationRows]:
    """Yield `settings.updates` batches, drawn uniformly with replacement."""
    device = rows.observation.device
    generator = torch.Generator(device).manual_seed(torch_seed(settings.seed, _BATCH_STREAM))
    for _ in range(settings.updates):
        yield rows.select(
            torch.randint(len(rows), (settings.batch_size,), generator=generator, device=device)
        )


def _train(
    student: NormalizedActor,
    data: GoalDataset,
    settings: DistillSettings,
    trained: TrainedActor,
    work: StageWork,
    context: StageContext,
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Descend the objective along a cosine; leave the student with the weights that acted best.

    Returns:
        The history, and its entry whose weights the student was left with.
    """
    device = next(student.parameters()).device
    training, validation = _split(data, settings, device)
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=settings.learning_rate, weight_decay=0.0, fused=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.updates)
    history: list[dict[str, float]] = []
    best_score, best_weights, best = (-1.0, -math.inf), copy.deepcopy(student.state_dict()), {}
    with context.console.progress("distill", settings.updates, unit="updates") as bar:
        for update, batch in enumerate(_batches(training, settings), start=1):
            loss, metrics = imitation_loss(
                batch.teacher, student(batch.observation, batch.goal), settings.objective
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            if update % settings.evaluate_every == 0 or update == settings.updates:
                entry = {name: float(value) for name, value in metrics.items()} | {
                    "loss": float(loss.detach())
                }
                entry |= _validate(student, validation, settings, trained, update)
                require_finite(entry, f"update {update}")
                history.append(entry | {"updates": float(update)})
                work.run.log_metrics(entry, step=update)
                score = (entry["success"], -entry["validation_loss"])
                if score > best_score:
                    best_score, best_weights, best = score, copy.deepcopy(student.state_dict()), history[-1]
            success = f"{history[-1]['success']:.2f}" if history else "not evaluated yet"
            bar.update(update, success=success)
    student.load_state_dict(best_weights)
    return history, best


@torch.no_grad()
def _validate(
    student: NormalizedActor,
    rows: ImitationRows,
    settings: DistillSettings,
    trained: TrainedActor,
    update: int,
) -> dict[str, float]:
    """Return the loss on held-out episodes and the success over fresh ones."""
    loss, _ = imitation_loss(rows.teacher, student(rows.observation, rows.goal), settings.objective)
    episodes = _run(student, trained, settings.evaluation_episodes, settings.seed, _VALIDATION_STREAM, update)
    return {
        "validation_loss": float(loss),
        "success": float(episodes.success.mean()),
        "time_at_goal": float(episodes.time_at_goal.mean()),
    }


def _run(student: NormalizedActor, trained: TrainedActor, episodes: int, seed: int, *stream: int) -> Episodes:
    device = str(next(student.parameters()).device)
    policy = torch_policy(student, device)
    return run_episodes(trained.task, policy, episodes=episodes, seed=seed_sequence(seed, *stream))


def _finish(
    student: NormalizedActor,
    trained: TrainedActor,
    teacher: Artifact,
    history: list[dict[str, float]],
    kept: dict[str, float],
    settings: DistillSettings,
    work: StageWork,
    context: StageContext,
) -> Artifact:
    """Measure retention over paired episodes, write the student and complete the artifact."""
    artifact = work.artifact
    device = str(next(student.parameters()).device)
    ours = _closing_episodes(student, trained, settings, device)
    theirs = _closing_episodes_of_teacher(trained, teacher, settings, device, context)
    retained = {
        "retention": retention(theirs.success, ours.success),
        "time_at_goal_retention": retention(theirs.time_at_goal, ours.time_at_goal),
    }
    results = _results(ours, theirs, retained) | {
        "evaluation_seed": [settings.seed, _FINAL_STREAM],
        "student_parameters": parameter_count(student),
        "teacher_parameters": parameter_count(trained.actor),
        "validation_loss": kept["validation_loss"],
        "kept_update": int(kept["updates"]),
    }
    save_network(
        artifact.file(NETWORK_FILE),
        dict(student.state_dict()),
        kind="student",
        task=trained.task,
        shape=settings.shape,
        extra={"evaluation": ours.summary()} | task_record(artifact),
    )
    _draw(artifact, trained, history, ours)
    artifact.complete(results)
    measured = ("success", "retention", "time_at_goal_retention")
    # Retention is undefined beside a teacher that never succeeds.
    finals = {f"final_{name}": float(results[name]) for name in measured if results[name] is not None}
    work.run.log_metrics(finals, step=settings.updates)
    work.log_files(NETWORK_FILE, "learning_curve.png", "rollouts.png", "manifest.json")
    work.run.register_model(
        f"student-{trained.task.name}", artifact.file(NETWORK_FILE), {"artifact": artifact.name}
    )
    context.console.say(
        f"Student {artifact.name}: success {figure(results['success'])} beside the teacher's "
        f"{figure(results['teacher_success'])} over the same {settings.final_episodes} episodes; retention "
        f"{_with_interval(retained['retention'])}, of time at goal "
        f"{_with_interval(retained['time_at_goal_retention'])}."
    )
    return artifact


def _closing_episodes(
    actor: NormalizedActor, trained: TrainedActor, settings: DistillSettings, device: str
) -> Episodes:
    """Run the closing episodes, the same for student and teacher."""
    return run_episodes(
        trained.task,
        torch_policy(actor, device),
        episodes=settings.final_episodes,
        seed=seed_sequence(settings.seed, _FINAL_STREAM),
        num_paths=_DRAWN_PATHS,
    )


def _closing_episodes_of_teacher(
    trained: TrainedActor, teacher: Artifact, settings: DistillSettings, device: str, context: StageContext
) -> Episodes:
    return episodes_of_teacher(
        teacher,
        context,
        lambda: _closing_episodes(trained.actor.to(device), trained, settings, device),
        seed=[settings.seed, _FINAL_STREAM],
        episodes=settings.final_episodes,
    )


def _results(ours: Episodes, theirs: Episodes, retained: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what the student's and the teacher's episodes say, and the retentions with their intervals."""
    results = ours.summary() | {
        "teacher_success": float(theirs.success.mean()),
        "teacher_time_at_goal": float(theirs.time_at_goal.mean()),
    }
    for name, measured in retained.items():
        results |= {name: measured["retention"], f"{name}_interval": measured["interval"]}
    return results


def _draw(
    artifact: Artifact, trained: TrainedActor, history: list[dict[str, float]], episodes: Episodes
) -> None:
    """Draw how the student learned and, in a maze, where it goes."""
    draw_learning_curve(
        artifact.file("learning_curve.png"),
        history,
        f"Student on {trained.task.name}",
        x="updates",
        x_label="updates",
        metrics=("success", "validation_loss", "kl", "action_mse"),
    )
    draw_rollouts(artifact.file("rollouts.png"), trained.task, episodes, "Student")


def _with_interval(retained: dict[str, Any]) -> str:
    if retained["retention"] is None:
        return "undefined (the teacher has none)"
    return f"{figure(retained['retention'])} {figure(retained['interval'])}"
