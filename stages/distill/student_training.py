"""Training a student on labelled rows; the weights that act best in closed loop are kept."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.models.deployable_policy import NormalizedActor
from thousandfold.models.flat_parameters import FlatAdam, FlatParameters
from thousandfold.models.goal_actor import Gaussian
from thousandfold.models.tensor_state import copy_of, strip_prefix
from thousandfold.pipeline.checkpoint import CheckpointFolder
from thousandfold.pipeline.runtime import require_finite, seed_sequence, torch_seed
from thousandfold.pipeline.settings import dump_settings
from thousandfold.stages.distill.imitation import (
    Critic,
    ImitationBatch,
    ImitationRows,
    critic_guided_loss,
    imitation_loss,
)
from thousandfold.stages.distill.settings import (
    CHANGEABLE_ON_RESUME,
    CHANGEABLE_WHEN_COMPLETED,
    DistillSettings,
)
from thousandfold.stages.episodes import Episodes, run_episodes
from thousandfold.stages.networks import TrainedActor, torch_policy

_BATCH_STREAM, _VALIDATION_STREAM = 16, 13


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

    Attributes:
        on_update: takes the training after each update, in a state that can be saved and gone on from.
        kept: the student at its best so far; None before the first evaluation.
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
    ) -> None:
        self.student, self.rows, self.validation = student, rows, validation
        self.settings, self.trained = settings, trained
        self.progress = StudentProgress()
        self._dataset_rows = [len(rows), len(validation)]
        self._critic, self._report = critic, report
        self.on_update: Callable[[StudentTraining], None] = lambda _: None
        self._averaged = copy.deepcopy(student).requires_grad_(False) if settings.average_decay else None
        self._average = None if self._averaged is None else FlatParameters(self._averaged.parameters())
        self._learned = FlatParameters(student.parameters())
        self._optimizer = FlatAdam(self._learned, settings.learning_rate)
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
    def history(self) -> list[dict[str, float]]:
        """One entry an evaluation."""
        return self.progress.history

    @property
    def updates(self) -> int:
        """How many were taken."""
        return self.progress.updates

    @property
    def position(self) -> str:
        """How far the training has come, as messages say it."""
        return f"{self.updates:,} updates"

    @property
    def last_success(self) -> str:
        """Success of the last evaluation, as text."""
        return f"{self.history[-1]['success']:.2f}" if self.history else "not evaluated yet"

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
        from where the call would have ended. After `load` the call that was under way has to be repeated, and
        does the rest of it.
        """
        progress, end = self.progress, self.progress.descent_begin + updates
        while progress.position < end:
            self._optimizer.rate.fill_(self.learning_rate(progress.position))
            metrics = self._update()
            progress.updates += 1
            progress.position += 1
            step = progress.position - progress.descent_begin
            evaluated = step % self.settings.evaluate_every == 0 or progress.position == end
            if evaluated and self._ends_descent(metrics):
                progress.position = end
            if progress.position == end:
                progress.end_descent(end)
            self.on_update(self)

    def _ends_descent(self, metrics: dict[str, Tensor]) -> bool:
        """Evaluate; return whether the descent under way is to end early."""
        progress, patience = self.progress, self.settings.patience
        progress.without_better = 0 if self._evaluate(metrics) else progress.without_better + 1
        return self.target_met or (patience is not None and progress.without_better >= patience)

    def learning_rate(self, position: int) -> float:
        """Return the rate of the update that `position` others come before."""
        share = min(position / self.settings.total_updates, 1.0)
        return self.settings.learning_rate * (1 + math.cos(math.pi * share)) / 2

    def finish(self) -> None:
        """Give the student the weights that acted best."""
        assert self.kept is not None  # the last update of every descent is evaluated
        self.student.load_state_dict(self.kept.weights)

    def save(self, folder: CheckpointFolder) -> None:
        """Write everything that the next update depends on, but for the rows."""
        networks = {"student": self.student}
        if self._averaged is not None:
            networks["averaged"] = self._averaged
        state = copy_of(networks)
        if self.kept is not None:
            state |= {f"kept.{name}": value for name, value in self.kept.weights.items()}
        state |= {f"optimizer.{name}": value for name, value in self._optimizer.state_dict().items()}
        state["generator"] = self._generator.get_state()
        progress = dataclasses.asdict(self.progress) | {
            "kept": None if self.kept is None else self.history.index(self.kept.entry),
            "dataset_rows": self._dataset_rows,
            "settings": self._settings_to_compare(),
        }
        folder.save(self.updates, state, progress)

    def train_on(self, folder: CheckpointFolder) -> None:
        """Restore where another training has ended, as the beginning of this one; raises as `load` does.

        What is left of the settings' updates is one more descent, after the rounds.
        """
        self.load(folder, CHANGEABLE_WHEN_COMPLETED)
        rounds = self.settings.rounds
        self.progress.descents = min(self.progress.descents, 1 + rounds)  # not what continued it

    def load(self, folder: CheckpointFolder, changeable: Collection[str] = CHANGEABLE_ON_RESUME) -> None:
        """Restore what `save` wrote, bit for bit, while the rows are those of the dataset.

        Args:
            folder: the checkpoint.
            changeable: settings that may have another value by now.

        Raises:
            DamagedFileError: it belongs to other settings or other rows, or a file is damaged.
        """
        folder.require_settings(self._settings_to_compare(), changeable)
        checkpoint = folder.load()
        with folder.taken_over():
            state, progress = checkpoint.tensors, dict(checkpoint.progress)
            if (rows := progress.pop("dataset_rows")) != self._dataset_rows:
                raise ValueError(f"the dataset had {rows} rows to learn from and to validate with")
            del progress["settings"]
            kept = progress.pop("kept")
            self.progress = StudentProgress(**progress)
            if kept is not None:
                weights = {
                    name: value.to(self._device) for name, value in strip_prefix(state, "kept.").items()
                }
                self.kept = Kept(_score(self.history[kept]), weights, self.history[kept])
            self.student.load_state_dict(strip_prefix(state, "student."))
            if self._averaged is not None:
                self._averaged.load_state_dict(strip_prefix(state, "averaged."))
            self._optimizer.load_state_dict(strip_prefix(state, "optimizer."))
            self._generator.set_state(state["generator"])

    def _settings_to_compare(self) -> dict[str, Any]:
        """Return the settings with the device that `auto` became: random numbers go on there alone."""
        return dump_settings(self.settings) | {"device": self._device.type}

    def _update(self) -> dict[str, Tensor]:
        settings = self.settings
        batch = self.rows.draw(settings.batch_size, settings.alternative_fraction, self._generator)
        loss, metrics = self._loss(batch, self.student(batch.observation, batch.goal))
        # The standard deviation has no part in every objective.
        learned = self._learned.parameters
        gradients = torch.autograd.grad(loss, learned, allow_unused=True, materialize_grads=True)
        self._learned.set_gradients(gradients)
        self._optimizer.step()
        if self._average is not None:
            self._average.values.lerp_(self._learned.values, 1.0 - settings.average_decay)
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
        episodes = self._run(network, self.trained.task.student_view)
        found = {
            "validation_loss": float(loss),
            "success": float(episodes.success.mean()),
            "episodes": float(len(episodes.success)),
            "time_at_goal": float(episodes.time_at_goal.mean()),
        }
        if self.settings.target_retention is not None:
            self._teacher = self._teacher or self._run(self.trained.actor, self.trained.task)
            found["smaller_retention"] = smaller_retention(self._teacher, episodes)
        return found

    def _run(self, network: NormalizedActor, view: CompiledTask) -> Episodes:
        return run_episodes(
            view,
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


@dataclass
class StudentProgress:
    """Counters and history of a distillation; everything here survives a restart.

    Attributes:
        updates: how many were taken.
        position: on the schedule; ahead of the updates where a descent ended early.
        descent_begin: where on the schedule the descent under way began, or the next one will.
        descents: how many have ended: the dataset's, then one a round.
        without_better: evaluations of the descent under way since the last better one.
        elapsed_s: seconds spent training, over all restarts.
        history: one entry an evaluation.
        rounds: the figures of every round.
    """

    updates: int = 0
    position: int = 0
    descent_begin: int = 0
    descents: int = 0
    without_better: int = 0
    elapsed_s: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    rounds: list[dict[str, float]] = field(default_factory=list)

    def end_descent(self, position: int) -> None:
        """Close the descent under way at this position, where the next one will begin."""
        self.position = self.descent_begin = position
        self.descents += 1
        self.without_better = 0
