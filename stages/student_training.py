"""Training a student on labelled rows; the weights that act best in closed loop are kept."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import pydantic
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from models.deployable_policy import NormalizedActor
from models.goal_actor import Gaussian
from models.residual_mlp import LAYERS_PER_BLOCK, NetworkShape
from pipeline.core.runtime import require_finite, seed_sequence, torch_seed
from pipeline.core.settings import StageSettings
from stages.evaluate import Episodes, run_episodes
from stages.imitation import (
    Critic,
    ImitationBatch,
    ImitationRows,
    Objective,
    critic_guided_loss,
    imitation_loss,
)
from stages.network_file import TrainedActor, torch_policy
from stages.paired_evaluation import EpisodeBudget

_BATCH_STREAM, _VALIDATION_STREAM = 16, 13


class DistillSettings(StageSettings):
    """Settings of `pipeline distill`."""

    student_depth: int = pydantic.Field(default=4, ge=1, le=1024, description="layers of the student")
    student_width: int = pydantic.Field(default=128, ge=1, le=8192, description="units of a layer")
    student_kind: Literal["auto", "residual", "plain"] = pydantic.Field(
        default="auto", description="auto: residual where the depth is a multiple of 4, else plain"
    )
    student_layer_norm: bool = pydantic.Field(
        default=True, description="a LayerNorm after every Dense layer; off: Dense and Swish alone"
    )
    objective: Objective = pydantic.Field(
        default="mse",
        description="kl: divergence of the Gaussians before the tanh; mse: squared error of tanh(mean); "
        "critic: the teacher's energy of tanh(mean), mixed with mse",
    )
    imitation_weight: float = pydantic.Field(
        default=10.0,
        ge=0,
        description="of mse in the objective critic; energies are in standard deviations",
    )
    alternative_fraction: float = pydantic.Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of a batch under alternative goals, where the dataset has them",
    )
    average_decay: float = pydantic.Field(
        default=0.0,
        ge=0,
        lt=1,
        description="of the running average of the student, evaluated beside it; 0: none",
    )
    updates: int = pydantic.Field(default=4000, ge=1)
    batch_size: int = pydantic.Field(default=1024, ge=1)
    learning_rate: float = pydantic.Field(
        default=1e-3, gt=0, description="at the start; falls to 0 along one cosine, rounds included"
    )
    validation_fraction: float = pydantic.Field(
        default=0.1, gt=0, lt=1, description="share of episodes held out"
    )
    max_labels: int | None = pydantic.Field(
        default=None,
        ge=1,
        description="most labels of the teacher to use, rounds included: states, each under each goal; "
        "None: all that there are",
    )
    skip_damaged_shards: bool = pydantic.Field(
        default=False, description="go on without the shards of the dataset that are damaged"
    )
    evaluate_every: int = pydantic.Field(default=500, ge=1, description="updates between evaluations")
    evaluation_episodes: int = pydantic.Field(default=256, ge=1)
    target_retention: float | None = pydantic.Field(
        default=None,
        gt=0,
        description="stop once the smaller retention, of success or of time at goal, is that high in an "
        "evaluation; None: never",
    )
    patience: int | None = pydantic.Field(
        default=None,
        ge=1,
        description="end the offline part, or a round, after so many evaluations without a better one; "
        "None: never",
    )
    dagger_rounds: int = pydantic.Field(
        default=0, ge=0, description="rounds in which the student acts and the teacher labels"
    )
    dagger_episodes: int = pydantic.Field(default=256, ge=1, description="episodes of a round")
    dagger_beta: float = pydantic.Field(
        default=0.0,
        ge=0,
        le=1,
        description="in round i the teacher acts in the student's place with probability beta^i at each step",
    )
    dagger_updates: int = pydantic.Field(default=1000, ge=1, description="updates after each round")
    final_episodes: int = pydantic.Field(
        default=1024, ge=1, description="least number of paired episodes that measure retention"
    )
    max_final_episodes: int = pydantic.Field(
        default=8192, ge=1, description="most of them, where retention's interval asks for more"
    )
    interval_half_width: float = pydantic.Field(
        default=0.03, gt=0, description="of retention's 95 % intervals, that their number is chosen for"
    )
    threads: int = pydantic.Field(default=0, ge=0, description="CPU threads of torch; 0: every CPU")
    reproduction_tolerance: float = pydantic.Field(
        default=0.02, gt=0, le=1, description="how far the loaded teacher may be from its recorded success"
    )

    @pydantic.model_validator(mode="after")
    def _shape_is_valid(self) -> DistillSettings:
        _ = self.shape
        return self

    @pydantic.model_validator(mode="after")
    def _episodes_are_in_order(self) -> DistillSettings:
        if self.max_final_episodes < self.final_episodes:
            raise ValueError(
                f"max_final_episodes {self.max_final_episodes} is below final_episodes {self.final_episodes}"
            )
        return self

    @property
    def shape(self) -> NetworkShape:
        """The form of the student."""
        kind, norm = self.student_kind, self.student_layer_norm
        if kind == "auto":
            kind = "plain" if self.student_depth % LAYERS_PER_BLOCK else "residual"
        # Sums of branches that no LayerNorm has cut to size double with every block.
        scale = "none" if norm or kind == "plain" else "inverse_sqrt_blocks"
        return NetworkShape(
            self.student_depth, self.student_width, kind=kind, residual_scale=scale, layer_norm=norm
        )

    def goals_a_state(self, choices: int) -> int:
        """Return how many labels of a state are used that has so many alternative goals."""
        return 1 + choices * (self.alternative_fraction > 0)

    def offline_rows(self, choices: int, episode_steps: int) -> int | None:
        """Return the most rows of the dataset that `max_labels` leaves beside full rounds; None: any number.

        Args:
            choices: alternative goals of a state.
            episode_steps: of the task.
        """
        if self.max_labels is None:
            return None
        in_rounds = self.dagger_rounds * self.dagger_episodes * episode_steps
        return self.max_labels // self.goals_a_state(choices) - in_rounds

    @property
    def total_updates(self) -> int:
        """Updates of the offline part and of all rounds."""
        return self.updates + self.dagger_rounds * self.dagger_updates

    @property
    def budget(self) -> EpisodeBudget:
        """How many paired episodes measure retention."""
        return EpisodeBudget(self.final_episodes, self.max_final_episodes, self.interval_half_width)


@dataclasses.dataclass(frozen=True)
class Kept:
    """The student at its best so far.

    Attributes:
        score: success + time at goal as shares, then the negative validation loss; larger is better.
        weights: of the network.
        entry: what was reported of it.
    """

    score: tuple[float, float]
    weights: dict[str, Tensor]
    entry: dict[str, float]


class StudentTraining:
    """A student that descends its objective, evaluated in closed loop as it goes.

    Every evaluation runs the same episodes, which are others than the closing ones: candidates are compared
    on equal terms, and what is reported in the end owes nothing to the choice among them.

    Args:
        student: the network, on the training device.
        rows, validation: what it learns from, and rows of other episodes.
        settings: of the stage.
        trained: the teacher, for its task and, where a retention is aimed at, its own episodes.
        critic: the teacher's, for the objective ``critic``.
        report: takes each evaluation's entry.
        on_update: takes the number of updates done, and the last success as text.
    """

    def __init__(
        self,
        student: NormalizedActor,
        rows: ImitationRows,
        validation: ImitationRows,
        settings: DistillSettings,
        trained: TrainedActor,
        *,
        critic: Critic | None = None,
        report: Callable[[dict[str, float]], None] = lambda _: None,
        on_update: Callable[[int, str], None] = lambda *_: None,
    ) -> None:
        self.student, self.rows, self.validation = student, rows, validation
        self.settings, self.trained = settings, trained
        self.history: list[dict[str, float]] = []
        self.updates = 0
        self._critic, self._report, self._on_update = critic, report, on_update
        self._optimizer = torch.optim.AdamW(
            student.parameters(), lr=settings.learning_rate, weight_decay=0.0, fused=True
        )
        self._position = 0
        self._averaged = copy.deepcopy(student).requires_grad_(False) if settings.average_decay else None
        self._move_average = get_ema_multi_avg_fn(settings.average_decay)
        self._device = next(student.parameters()).device
        seed = torch_seed(settings.seed, _BATCH_STREAM)
        self._generator = torch.Generator(self._device).manual_seed(seed)
        self._teacher: Episodes | None = None
        self.kept: Kept | None = None

    @property
    def device(self) -> str:
        """Where the student is trained."""
        return str(self._device)

    @property
    def labels(self) -> int:
        """How many of the teacher's labels are in use: each state, validation included, under each goal."""
        return (len(self.rows) + len(self.validation)) * self.settings.goals_a_state(self.rows.choices)

    @property
    def target_met(self) -> bool:
        """Whether the student that is kept retains what is aimed at."""
        target, kept = self.settings.target_retention, self.kept
        return target is not None and kept is not None and kept.entry["smaller_retention"] >= target

    @property
    def acting(self) -> NormalizedActor:
        """The student as it is now: its average where there is one."""
        return self.student if self._averaged is None else self._averaged

    def descend(self, updates: int) -> None:
        """Take the next so many updates; fewer where retention meets its target or patience ends.

        All calls together go down one cosine over the settings' `total_updates`: a learning rate that began
        anew with every round would undo what the last one refined. Where a call ends early, the rate goes on
        from where the call would have ended.
        """
        without_better, end = 0, self._position + updates
        for position in range(self._position, end):
            for group in self._optimizer.param_groups:
                group["lr"] = self.learning_rate(position)
            metrics = self._update(self._optimizer)
            self.updates += 1
            step = position + 1 - (end - updates)
            if step % self.settings.evaluate_every == 0 or step == updates:
                without_better = 0 if self._evaluate(metrics) else without_better + 1
                if self.target_met or without_better == self.settings.patience:
                    break
            success = f"{self.history[-1]['success']:.2f}" if self.history else "not evaluated yet"
            self._on_update(self.updates, success)
        self._position = end

    def learning_rate(self, position: int) -> float:
        """Return the rate of the update that `position` others come before."""
        share = min(position / self.settings.total_updates, 1.0)
        return self.settings.learning_rate * (1 + math.cos(math.pi * share)) / 2

    def finish(self) -> None:
        """Give the student the weights that acted best."""
        assert self.kept is not None  # the last update of every descent is evaluated
        self.student.load_state_dict(self.kept.weights)

    def _update(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        settings = self.settings
        batch = self.rows.draw(settings.batch_size, settings.alternative_fraction, self._generator)
        loss, metrics = self._loss(batch, self.student(batch.observation, batch.goal))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if self._averaged is not None:
            average, current = (list(net.parameters()) for net in (self._averaged, self.student))
            self._move_average(average, current, None)  # pyright: ignore[reportArgumentType]
        return metrics | {"loss": loss.detach()}

    def _loss(self, batch: ImitationBatch, student: Gaussian) -> tuple[Tensor, dict[str, Tensor]]:
        if self.settings.objective == "critic":
            assert self._critic is not None
            return critic_guided_loss(batch, student, self._critic, self.settings.imitation_weight)
        return imitation_loss(batch.teacher, student, self.settings.objective)

    def _evaluate(self, metrics: dict[str, Tensor]) -> bool:
        """Evaluate the student and its average; return whether one is better than what was kept."""
        entry = {name: float(value) for name, value in metrics.items()}
        candidates = [self.student] if self._averaged is None else [self.student, self._averaged]
        found = [(network, self.validate(network)) for network in candidates]
        network, validated = max(found, key=lambda pair: _score(pair[1]))
        entry |= validated
        if self._averaged is not None:
            entry["averaged"] = float(network is self._averaged)
        require_finite(entry, f"update {self.updates}")
        entry["updates"] = float(self.updates)
        self.history.append(entry)
        self._report(entry)
        better = self.kept is None or _score(entry) > self.kept.score
        if better:
            self.kept = Kept(_score(entry), copy.deepcopy(network.state_dict()), entry)
        return better

    @torch.no_grad()
    def validate(self, network: NormalizedActor) -> dict[str, float]:
        """Return the imitation's loss on held-out episodes, and what the network achieves in closed loop.

        The objective ``critic`` is validated by its imitation: asking the teacher's critic about every row
        would cost more than the training.
        """
        batch = self.validation.commanded()
        loss, _ = imitation_loss(
            batch.teacher, network(batch.observation, batch.goal), self.settings.objective
        )
        episodes = self._run(network)
        found = {
            "validation_loss": float(loss),
            "success": float(episodes.success.mean()),
            "time_at_goal": float(episodes.time_at_goal.mean()),
        }
        if self.settings.target_retention is not None:
            self._teacher = self._teacher or self._run(self.trained.actor)
            found["smaller_retention"] = smaller_retention(self._teacher, episodes)
        return found

    def _run(self, network: NormalizedActor) -> Episodes:
        return run_episodes(
            self.trained.task,
            torch_policy(network, str(next(network.parameters()).device)),
            episodes=self.settings.evaluation_episodes,
            seed=seed_sequence(self.settings.seed, _VALIDATION_STREAM),
        )


def smaller_retention(teacher: Episodes, student: Episodes) -> float:
    """Return the smaller ratio of means, of success or of time at goal; 0 where the teacher has neither."""
    ratios = [
        float(ours.mean() / theirs.mean())
        for ours, theirs in (
            (student.success, teacher.success),
            (student.time_at_goal, teacher.time_at_goal),
        )
        if theirs.mean() > 0
    ]
    return min(ratios, default=0.0)


def _score(entry: dict[str, float]) -> tuple[float, float]:
    """Return what candidates are compared by: success and time at goal count alike, then the loss does."""
    loss = entry["validation_loss"]
    return entry["success"] + entry["time_at_goal"] / 1000, -loss if math.isfinite(loss) else -math.inf
