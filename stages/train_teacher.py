"""Train a teacher: collect, relabel, update, evaluate, checkpoint, until budget or target is met."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import pydantic
import torch

from envs.compiled_task import CompiledTask
from envs.registry import compile_task
from envs.simulator import make_simulator
from envs.task import TaskError
from pipeline.core.artifacts import Artifact, Workspace
from pipeline.core.checkpoint import CheckpointFolder
from pipeline.core.console import Progress
from pipeline.core.errors import DamagedFileError, SettingsError, StoppedByUser
from pipeline.core.pictures import draw_learning_curve
from pipeline.core.runtime import (
    StageContext,
    StageWork,
    as_user_error,
    require_finite,
    resolve_device,
    seed_sequence,
    stop_on_interrupt,
    torch_seed,
)
from replay.trajectory_buffer import TrajectoryBuffer, TransitionBatch
from stages.contrastive_learner import ContrastiveLearner, LearnerSettings, strip_prefix
from stages.evaluate import draw_rollouts, run_episodes
from stages.network_file import NETWORK_FILE, save_network, torch_policy
from stages.rollout import RolloutStatistics, collect

_SIMULATOR_STREAM, _LEARNER_STREAM, _EVALUATION_STREAM, _FINAL_STREAM = 2, 3, 4, 5


class TrainTeacherSettings(LearnerSettings):
    """Settings of `pipeline train-teacher`."""

    task: str = pydantic.Field("point_u_maze", description="a name that `pipeline tasks` lists")
    training_distribution: str = pydantic.Field(
        "training", description="where training episodes start and aim"
    )
    env_steps: int = pydantic.Field(1_000_000, ge=1, description="control steps over all worlds")
    num_worlds: int = pydantic.Field(128, ge=1)
    unroll_steps: int = pydantic.Field(100, ge=1, description="control steps of each world between updates")
    updates_per_unroll: int = pydantic.Field(48, ge=1)
    replay_rows_per_world: int = pydantic.Field(10_000, ge=2)
    min_rows_per_world: int = pydantic.Field(
        100, ge=2, description="rows of each world before the first update"
    )
    evaluate_every: int = pydantic.Field(4, ge=1, description="unrolls between evaluations")
    evaluation_episodes: int = pydantic.Field(128, ge=1)
    final_episodes: int = pydantic.Field(256, ge=1, description="fresh episodes of the closing evaluation")
    target_success: float | None = pydantic.Field(None, gt=0, le=1, description="stop early at this success")
    target_evaluations: int = pydantic.Field(2, ge=1, description="consecutive evaluations that must meet it")
    keep: Literal["best", "last"] = pydantic.Field(
        "best", description="which evaluated actor becomes the teacher"
    )
    checkpoint_every: int = pydantic.Field(4, ge=1, description="unrolls between checkpoints")

    @pydantic.model_validator(mode="after")
    def _rows_fit(self) -> TrainTeacherSettings:
        if self.min_rows_per_world > self.replay_rows_per_world:
            raise ValueError(
                f"min_rows_per_world {self.min_rows_per_world} exceeds "
                f"replay_rows_per_world {self.replay_rows_per_world}"
            )
        return self


@dataclass
class TrainingProgress:
    """Counters and history of a run; everything here survives a restart.

    Attributes:
        unrolls, env_steps, updates, unstable: how far the run has come, and episodes the physics ended.
        target_hits: consecutive evaluations that met `target_success`.
        best_score: success and time at goal of the best evaluation so far.
        elapsed_s: seconds spent, over all restarts.
        history: one entry an evaluation.
    """

    unrolls: int = 0
    env_steps: int = 0
    updates: int = 0
    unstable: int = 0
    target_hits: int = 0
    best_score: list[float] = field(default_factory=lambda: [-1.0, -1.0])
    elapsed_s: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


class TeacherTraining:
    """The state of a training run, and the steps that move it on.

    Args:
        settings: of the stage.
        task: compiled task.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, settings: TrainTeacherSettings, task: CompiledTask, device: str) -> None:
        self.settings, self.task, self.device = settings, task, device
        self.simulator = make_simulator(
            task,
            settings.num_worlds,
            device=device,
            seed=seed_sequence(settings.seed, _SIMULATOR_STREAM),
            distribution=settings.training_distribution,
        )
        self.learner = ContrastiveLearner(task, settings, device)
        self.buffer = TrajectoryBuffer(
            settings.num_worlds,
            settings.replay_rows_per_world,
            observation_dim=task.observation_dim,
            goal_dim=task.goal_dim,
            action_dim=task.action_dim,
            device=device,
        )
        self.generator = torch.Generator(device).manual_seed(torch_seed(settings.seed, _LEARNER_STREAM))
        self.progress = TrainingProgress()
        self.kept_weights = self.learner.weights()
        self._metric_sums: dict[str, torch.Tensor] = {}
        self._metric_count = 0

    @property
    def finished(self) -> bool:
        """Whether the step budget is spent or the target was met often enough."""
        met = self.progress.target_hits >= self.settings.target_evaluations
        return self.progress.env_steps >= self.settings.env_steps or met

    def collect(self) -> RolloutStatistics:
        """Let every world act for one unroll."""
        steps = self.settings.unroll_steps
        statistics = collect(self.simulator, self.learner, self.buffer, steps, self.generator)
        self.progress.unrolls += 1
        self.progress.env_steps += statistics.env_steps
        self.progress.unstable += statistics.unstable
        return statistics

    def relabel(self) -> Iterator[TransitionBatch]:
        """Yield the unroll's batches of transitions with hindsight goals, once there is enough memory."""
        if self.buffer.rows_per_world < self.settings.min_rows_per_world:
            return
        for _ in range(self.settings.updates_per_unroll):
            yield self.buffer.sample(self.settings.batch_size, self.settings.discount, self.generator)

    def update(self, batch: TransitionBatch) -> None:
        """Take one gradient step with each network and remember its metrics."""
        for name, value in self.learner.update(batch, self.generator).items():
            self._metric_sums[name] = self._metric_sums.get(name, torch.zeros_like(value)) + value
        self._metric_count += 1
        self.progress.updates += 1

    def take_metrics(self) -> dict[str, float]:
        """Return the updates' mean metrics since the last call."""
        means = {name: float(total) / self._metric_count for name, total in self._metric_sums.items()}
        self._metric_sums, self._metric_count = {}, 0
        return means

    def evaluate(self) -> dict[str, Any]:
        """Run fresh evaluation episodes with the mean action; keep the weights when they are the best yet."""
        episodes = run_episodes(
            self.task,
            torch_policy(self.learner.averaged_actor, self.device),
            episodes=self.settings.evaluation_episodes,
            seed=seed_sequence(self.settings.seed, _EVALUATION_STREAM, self.progress.unrolls),
        )
        summary = episodes.summary()
        score = [summary["success"], summary["time_at_goal"]]
        if self.settings.keep == "last" or score > self.progress.best_score:
            self.progress.best_score, self.kept_weights = score, self.learner.weights()
        target = self.settings.target_success
        met = target is not None and score[0] >= target
        self.progress.target_hits = self.progress.target_hits + 1 if met else 0
        return summary

    def save(self, folder: CheckpointFolder) -> None:
        """Write everything that the next step depends on."""
        tensors = {f"learner.{name}": value for name, value in self.learner.state_dict().items()}
        tensors |= {f"kept.{name}": value for name, value in self.kept_weights.items()}
        tensors |= {f"buffer.{name}": value for name, value in self.buffer.counters().items()}
        simulator = self.simulator.state_dict()
        tensors |= {
            f"simulator.{name}": torch.from_numpy(np.array(value)) for name, value in simulator.items()
        }
        tensors |= {f"metric.{name}": value for name, value in self._metric_sums.items()}
        tensors["generator"] = self.generator.get_state()
        progress = asdict(self.progress) | {"metric_count": self._metric_count}
        folder.save(
            self.progress.unrolls,
            tensors,
            progress,
            segment=self.buffer.unsaved_segment(),
            oldest_row=self.buffer.oldest_row,
        )
        self.buffer.mark_saved()

    def load(self, folder: CheckpointFolder) -> None:
        """Restore what `save` wrote; raise DamagedFileError when it belongs to other settings."""
        checkpoint = folder.load()
        progress = dict(checkpoint.progress)
        part = partial(strip_prefix, checkpoint.tensors)
        try:
            self._metric_count = int(progress.pop("metric_count"))
            self.progress = TrainingProgress(**progress)
            self.learner.load_state_dict(part("learner."))
            self.kept_weights = {name: value.to(self.device) for name, value in part("kept.").items()}
            self._metric_sums = {name: value.to(self.device) for name, value in part("metric.").items()}
            self.simulator.load_state_dict(
                {name: value.numpy() for name, value in part("simulator.").items()}
            )
            self.generator.set_state(checkpoint.tensors["generator"])
            for segment in checkpoint.segments:
                self.buffer.load_segment(segment)
            self.buffer.load_counters(part("buffer."))
        except (KeyError, ValueError, TypeError, RuntimeError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DamagedFileError(f"{folder.path} does not fit this run's settings ({reason}).") from error


def run(settings: TrainTeacherSettings, context: StageContext, resumed: Artifact | None = None) -> Artifact:
    """Train a teacher and return its artifact.

    Args:
        settings: of the stage; those of `resumed` when it is given.
        context: workspace, console and tracking.
        resumed: an unfinished teacher to go on with from its checkpoint.

    Raises:
        SettingsError: unknown task or distribution.
        NonFiniteError: a loss became NaN or infinite; the last checkpoint is kept.
        StoppedByUser: after Ctrl-C, once the state is saved.
    """
    task = as_user_error(lambda: compile_task(settings.task), TaskError)
    as_user_error(lambda: task.task.distribution(settings.training_distribution), TaskError)
    device = resolve_device(settings.device)
    training = TeacherTraining(settings, task, device)
    with (
        context.stage("teacher", "train-teacher", task=task.name, settings=settings, resumed=resumed) as work,
        stop_on_interrupt(context.stop),
    ):
        folder = CheckpointFolder(work.artifact.file("checkpoint"))
        if folder.exists:
            training.load(folder)
            context.console.say(f"Resuming {work.artifact.name} at {training.progress.env_steps:,} steps.")
        _announce(context, training)
        _train(training, folder, work, context)
        return _finish(training, work, context)


def _train(
    training: TeacherTraining, folder: CheckpointFolder, work: StageWork, context: StageContext
) -> None:
    """Collect, relabel, update, evaluate, checkpoint."""
    settings, progress = training.settings, training.progress
    started = time.perf_counter() - progress.elapsed_s
    with context.console.progress("train-teacher", settings.env_steps, completed=progress.env_steps) as bar:
        while not training.finished:
            statistics = training.collect()
            for batch in training.relabel():
                training.update(batch)
            if progress.unrolls % settings.evaluate_every == 0 or training.finished:
                entry = training.take_metrics()
                require_finite(entry, f"step {progress.env_steps:,}", folder.path if folder.exists else None)
                summary = training.evaluate()
                progress.elapsed_s = time.perf_counter() - started
                _record(training, entry, summary, statistics, work)
            if (
                progress.unrolls % settings.checkpoint_every == 0
                or training.finished
                or context.stop.requested
            ):
                training.save(folder)
            _show(bar, training)
            if context.stop.requested:
                raise StoppedByUser(
                    f"Stopped at {progress.env_steps:,} steps, state saved in {folder.path}. "
                    "Go on with: pipeline train-teacher --resume"
                )


def _record(
    training: TeacherTraining,
    metrics: dict[str, float],
    summary: dict[str, Any],
    statistics: RolloutStatistics,
    work: StageWork,
) -> None:
    """Add an evaluation to the history, the learning curve and the tracking store."""
    progress = training.progress
    numbers = {name: float(value) for name, value in summary.items() if not isinstance(value, list)}
    entry = (
        metrics
        | numbers
        | {
            "env_steps": progress.env_steps,
            "updates": progress.updates,
            "exploration_success_rate": statistics.successes / statistics.env_steps,
            "unstable": progress.unstable,
            "elapsed_s": progress.elapsed_s,
        }
    )
    progress.history.append(entry)
    work.run.log_metrics(entry, step=progress.env_steps)


def _show(bar: Progress, training: TeacherTraining) -> None:
    progress = training.progress
    success = f"{progress.history[-1]['success']:.2f}" if progress.history else "not evaluated yet"
    bar.update(min(progress.env_steps, training.settings.env_steps), success=success)


def _announce(context: StageContext, training: TeacherTraining) -> None:
    settings, counts = training.settings, training.learner.parameter_counts()
    context.console.say(
        f"Teacher: depth {settings.depth}, width {settings.width}, actor {counts['actor_parameters']:,} and "
        f"critic {counts['critic_parameters']:,} parameters; task {settings.task}, "
        f"{settings.num_worlds} worlds on {training.device}."
    )


def _finish(training: TeacherTraining, work: StageWork, context: StageContext) -> Artifact:
    """Write the kept teacher, evaluate it on fresh episodes, draw it, and complete the artifact."""
    settings, artifact = training.settings, work.artifact
    kept = training.learner.averaged_actor
    kept.load_state_dict(strip_prefix(training.kept_weights, "actor."))
    episodes = run_episodes(
        training.task,
        torch_policy(kept, training.device),
        episodes=settings.final_episodes,
        seed=seed_sequence(settings.seed, _FINAL_STREAM),
        num_paths=32,
    )
    summary = episodes.summary()
    save_network(
        artifact.file(NETWORK_FILE),
        training.kept_weights,
        kind="teacher",
        task=training.task,
        shape=settings.shape,
        extra={"energy": settings.energy, "evaluation": summary},
    )
    draw_learning_curve(
        artifact.file("learning_curve.png"),
        training.progress.history,
        f"Teacher on {settings.task}",
        x="env_steps",
        metrics=("success", "time_at_goal", "info_nce", "categorical_accuracy", "entropy"),
    )
    draw_rollouts(artifact.file("rollouts.png"), training.task, episodes, "Teacher")
    results = (
        summary
        | training.learner.parameter_counts()
        | {
            "evaluation_seed": [settings.seed, _FINAL_STREAM],
            "env_steps": training.progress.env_steps,
            "updates": training.progress.updates,
            "unstable": training.progress.unstable,
            "elapsed_s": training.progress.elapsed_s,
        }
    )
    artifact.complete(results, exclude=("checkpoint",))
    work.run.log_metrics({"final_success": float(results["success"])}, step=training.progress.env_steps)
    work.log_files(NETWORK_FILE, "learning_curve.png", "rollouts.png", "manifest.json")
    work.run.register_model(
        f"teacher-{settings.task}", artifact.file(NETWORK_FILE), {"artifact": artifact.name}
    )
    low, high = results["success_interval"]
    context.console.say(
        f"Teacher {artifact.name}: success {results['success']:.3f} [{low:.3f}, {high:.3f}] over "
        f"{results['episodes']} fresh episodes, after {training.progress.elapsed_s:.0f} s."
    )
    return artifact


def find_resumable(workspace: Workspace, reference: str | None) -> tuple[TrainTeacherSettings, Artifact]:
    """Return the unfinished teacher to resume, and its settings.

    Args:
        workspace: where to look.
        reference: its name or path; None: the newest unfinished one with a checkpoint.

    Raises:
        SettingsError: there is none, or the one named is finished.
    """
    if reference is not None:
        artifact = workspace.find(reference, "teacher")
    else:
        unfinished = [a for a in workspace.artifacts("teacher") if a.manifest.status != "completed"]
        resumable = [a for a in unfinished if CheckpointFolder(a.file("checkpoint")).exists]
        if not resumable:
            raise SettingsError(f"No unfinished teacher with a checkpoint in {workspace.runs} to resume.")
        artifact = resumable[0]
    if artifact.manifest.status == "completed":
        raise SettingsError(f"Teacher {artifact.name} is completed: there is nothing to resume.")
    return TrainTeacherSettings(**artifact.manifest.settings), artifact
