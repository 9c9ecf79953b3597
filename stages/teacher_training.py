"""The state of a teacher's training and the steps that move it on; `train_teacher` puts them in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import torch
from torch import nn

from envs.compiled_task import CompiledTask
from envs.registry import get_task
from envs.simulator import make_simulator
from models.goal_actor import GoalActor
from pipeline.core.checkpoint import CheckpointFolder
from pipeline.core.errors import DamagedFileError
from pipeline.core.runtime import require_finite, seed_sequence, torch_seed
from pipeline.core.settings import dump_settings
from replay.trajectory_buffer import TrajectoryBuffer, TransitionBatch
from stages.contrastive_learner import ContrastiveLearner, LearnerSettings, strip_prefix
from stages.evaluate import run_episodes
from stages.network_file import torch_policy
from stages.rollout import RolloutStatistics, collect

_SIMULATOR_STREAM, _LEARNER_STREAM, _EVALUATION_STREAM = 2, 3, 4


class TrainTeacherSettings(LearnerSettings):
    """Settings of `pipeline train-teacher`."""

    task: str = pydantic.Field(default="point_u_maze", description="a name that `pipeline tasks` lists")
    training_distribution: str = pydantic.Field(
        default="training", description="where training episodes start and aim"
    )
    env_steps: int = pydantic.Field(default=1_000_000, ge=1, description="control steps over all worlds")
    num_worlds: int = pydantic.Field(default=128, ge=1)
    unroll_steps: int = pydantic.Field(
        default=100, ge=1, description="control steps of each world between updates"
    )
    updates_per_unroll: int = pydantic.Field(default=48, ge=1)
    replay_rows_per_world: int = pydantic.Field(default=10_000, ge=2)
    min_rows_per_world: int = pydantic.Field(
        default=100, ge=2, description="rows of each world before the first update"
    )
    evaluate_every: int = pydantic.Field(default=4, ge=1, description="unrolls between evaluations")
    evaluation_episodes: int = pydantic.Field(default=128, ge=1)
    final_episodes: int = pydantic.Field(
        default=256, ge=1, description="fresh episodes of the closing evaluation"
    )
    target_success: float | None = pydantic.Field(
        default=None, gt=0, le=1, description="stop early at this success"
    )
    target_evaluations: int = pydantic.Field(
        default=2, ge=1, description="consecutive evaluations that must meet it"
    )
    keep: Literal["best", "last"] = pydantic.Field(
        default="best", description="which evaluated actor becomes the teacher"
    )
    checkpoint_every: int = pydantic.Field(default=4, ge=1, description="unrolls between checkpoints")

    @pydantic.field_validator("task")
    @classmethod
    def _task_exists(cls, task: str) -> str:
        return get_task(task).name

    @pydantic.model_validator(mode="after")
    def _distribution_exists(self) -> TrainTeacherSettings:
        get_task(self.task).distribution(self.training_distribution)
        return self

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
        gradients: beside each entry, the norm of the last update's gradient in each block of each network.
    """

    unrolls: int = 0
    env_steps: int = 0
    updates: int = 0
    unstable: int = 0
    target_hits: int = 0
    best_score: list[float] = field(default_factory=lambda: [-1.0, -1.0])
    elapsed_s: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    gradients: list[dict[str, Any]] = field(default_factory=list)


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
        self.kept_weights = self.learner.weights(self.learner.averaged_actor)
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

    def check_finite(self, kept: Path | None) -> None:
        """Raise NonFiniteError for a metric or a weight that is NaN or infinite, before it can be saved.

        Args:
            kept: folder of the last checkpoint, for the message; None where there is none yet.
        """
        values = {name: float(total) for name, total in self._metric_sums.items()}
        for name, network in (("actor", self.learner.actor), ("critic", self.learner.critic)):
            weights = [parameter.detach() for parameter in network.parameters()]
            values[f"a weight of the {name}"] = float(nn.utils.get_total_norm(weights, torch.inf))
        values["log alpha"] = float(self.learner.log_alpha.detach())
        require_finite(values, f"step {self.progress.env_steps:,}", kept)

    def take_metrics(self) -> dict[str, float]:
        """Return the updates' mean metrics since the last call."""
        means = {name: float(total) / self._metric_count for name, total in self._metric_sums.items()}
        self._metric_sums, self._metric_count = {}, 0
        return means

    def note_gradients(self) -> None:
        """Add the last update's gradient norms, block by block, to the progress."""
        norms = self.learner.gradient_by_block()
        rounded = {name: [float(f"{norm:.3e}") for norm in norms[name].tolist()] for name in norms}
        if rounded:
            self.progress.gradients.append({"updates": self.progress.updates} | rounded)

    def evaluate(self) -> dict[str, Any]:
        """Run fresh episodes with the mean action of every candidate; keep the best weights so far.

        The candidates get the same episodes. Returns the summary of the one that did best.
        """
        candidates = self.learner.candidates
        summaries = [self._evaluate_actor(actor) for actor in candidates]
        scores = [[summary["success"], summary["time_at_goal"]] for summary in summaries]
        chosen = max(range(len(candidates)), key=scores.__getitem__)
        if self.settings.keep == "last" or scores[chosen] > self.progress.best_score:
            self.progress.best_score = scores[chosen]
            self.kept_weights = self.learner.weights(candidates[chosen])
        target = self.settings.target_success
        met = target is not None and scores[chosen][0] >= target
        self.progress.target_hits = self.progress.target_hits + 1 if met else 0
        return summaries[chosen]

    def _evaluate_actor(self, actor: GoalActor) -> dict[str, Any]:
        episodes = run_episodes(
            self.task,
            torch_policy(actor, self.device),
            episodes=self.settings.evaluation_episodes,
            seed=seed_sequence(self.settings.seed, _EVALUATION_STREAM, self.progress.unrolls),
        )
        return episodes.summary()

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
        progress = asdict(self.progress) | {
            "metric_count": self._metric_count,
            "settings": dump_settings(self.settings),
        }
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
        saved, own = progress.pop("settings", {}), dump_settings(self.settings)
        if other := [f"{name} {value}" for name, value in saved.items() if own.get(name) != value]:
            raise DamagedFileError(
                f"{folder.path} belongs to a run with other settings ({', '.join(other)})."
            )
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
