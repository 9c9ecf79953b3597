"""DAgger: the student acts, the teacher labels what it meets, the rows grow, and training goes on.

Source: Ross, Gordon and Bagnell, "A Reduction of Imitation Learning and Structured Prediction to No-Regret
Online Learning", AISTATS 2011. The dataset is its first iteration, in which the teacher acts alone.

The episodes of a round lie in the student's artifact, a Minari dataset each:

    rounds/round_01/thousandfold/<task>-v0
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thousandfold.ground.errors import DamagedFileError
from thousandfold.pipeline.artifact_task import own_task, task_record
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.runtime import torch_seed
from thousandfold.replay.goal_dataset import (
    DatasetError,
    GoalDataset,
    dataset_id,
    load_goal_dataset,
    write_goal_dataset,
)
from thousandfold.stages.dataset.rollout import Act, EpisodeGroup, LabelledRollout, RolloutPlan
from thousandfold.stages.distill.imitation import ImitationRows
from thousandfold.stages.distill.settings import DistillSettings
from thousandfold.stages.distill.student_training import StudentTraining
from thousandfold.stages.episodes import Policy
from thousandfold.stages.networks import TeacherCritic, TrainedActor, torch_policy

ROUNDS_FOLDER = "rounds"
_ROUND_STREAM = 15

Rollout = Callable[[int, Act | None], GoalDataset]
"""Maps the number of a round, from 1, and what acts in it to its labelled rows.

Of a round that was trained on before nothing acts any more: its rows are there."""


def mixed_policy(student: Policy, beta: float) -> Act:
    """Return π = β · teacher + (1 − β) · student, decided anew at every step of every episode.

    As in the paper: the coin is tossed a step, so that the states of a round are the student's own with the
    teacher's help here and there. A coin an episode would give whole episodes of the teacher's, which the
    dataset has already.
    """

    def act(
        observation: np.ndarray, goal: np.ndarray, teacher_action: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        helped = rng.random(len(observation)) < beta
        if helped.all():
            return teacher_action
        return np.where(helped[:, None], teacher_action, student(observation, goal))

    return act


def run_rounds(
    training: StudentTraining,
    rollout: Rollout,
    log: Callable[[dict[str, float], int], None] = lambda *_: None,
) -> list[dict[str, float]]:
    """Run the rounds that the settings ask for, until retention meets its target.

    In each the student acts as it is by then; afterwards training goes on over all rows. A training that was
    loaded goes on where it was: rows of the rounds that it has trained on are read back, in their order.

    Args:
        training: the student, its rows and its settings.
        rollout: makes the rows of a round.
        log: takes a round's figures and its number.

    Returns:
        A round's figures each: its number, β, success with the mixture acting, all labels used so far,
        and success, time at goal and, where a retention is aimed at, the smaller one after its training.
    """
    progress, settings = training.progress, training.settings
    for number in range(1, settings.rounds + 1):
        is_new = progress.descents == number and progress.position == progress.descent_begin
        if is_new and training.target_met:
            break
        beta = settings.dagger_beta**number
        act = mixed_policy(torch_policy(training.acting, training.device), beta) if is_new else None
        data = rollout(number, act)
        everything = np.ones(len(data.action), bool)
        training.rows = training.rows.joined(ImitationRows.of(data, everything, training.device))
        if progress.descents == number:
            training.descend(settings.dagger_updates)
        if len(progress.rounds) < number:
            entry = _figures(training, number, beta, data)
            progress.rounds.append(entry)
            log({f"round/{name}": value for name, value in entry.items() if name != "round"}, number)
    return progress.rounds


def _figures(training: StudentTraining, number: int, beta: float, data: GoalDataset) -> dict[str, float]:
    """Return what is told of a round whose descent has just ended."""
    after = training.history[-1]
    return {name: after[name] for name in _OF_EVALUATION if name in after} | {
        "round": float(number),
        "beta": beta,
        "acting_success": float(data.success.mean()),
        "labels": float(training.labels),
    }


_OF_EVALUATION = ("success", "time_at_goal", "smaller_retention", "validation_loss")


@dataclass(frozen=True)
class KeptRollout:
    """Rolls out rounds and keeps their episodes in the student's artifact.

    Attributes:
        trained: the teacher; its labels are as in the dataset: as many alternative goals, drawn
            alike, and as many samples.
        critic: the teacher's, where it labels with the best of several samples.
        dataset: what the dataset was made with, its metadata under "thousandfold".
        alternative_goals: goals beside the commanded one that every state is labelled for.
        settings: of the stage.
        artifact: the student's.
        device: where the teacher runs.
    """

    trained: TrainedActor
    critic: TeacherCritic | None
    dataset: dict[str, Any]
    alternative_goals: int
    settings: DistillSettings
    artifact: Artifact
    device: str

    def __call__(self, number: int, act: Act | None) -> GoalDataset:
        """Return the rows of a round; one that lies in the artifact whole is read, not rolled out again.

        Args:
            number: of the round, from 1.
            act: acts in it; None: the student has trained on the round, so that it has to be there.

        Raises:
            UserError: the physics diverged in all of its episodes.
            DamagedFileError: the round has to be there, and is not, or is damaged.
        """
        root = self.artifact.file(ROUNDS_FOLDER) / f"round_{number:02d}"
        whole = root / dataset_id(self.trained.task.name)  # it appears when all of its episodes are written
        try:
            return load_goal_dataset(whole)
        except DatasetError as error:
            if act is None:
                raise DamagedFileError(
                    f"{root} is missing or damaged, and the student has trained on it: it cannot be resumed. "
                    f"Remove {self.artifact.path} and distil another."
                ) from error
        shutil.rmtree(root, ignore_errors=True)  # what is left of one that was cut off
        self._roll_out(root, number, act)
        return load_goal_dataset(whole)

    def _roll_out(self, root: Path, number: int, act: Act) -> None:
        rollout = LabelledRollout(
            self.trained,
            self.plan,
            device=self.device,
            seed=torch_seed(self.settings.seed, _ROUND_STREAM, number),
            act=act,
            critic=self.critic,
        )
        task = self.trained.task
        facts = {
            "task": task.name,
            **task_record(self.artifact),
            "round": number,
            "beta": self.settings.dagger_beta**number,
            "teacher": self.dataset.get("teacher"),
            "seed": self.settings.seed,
        }
        write_goal_dataset(root, task, rollout, facts, own_task(self.artifact))

    @property
    def plan(self) -> RolloutPlan:
        """The episodes of a round: from the dataset's distributions in its proportion, without noise."""
        episodes = self.settings.dagger_episodes
        evaluation = round(float(self.dataset.get("evaluation_fraction", 1.0)) * episodes)
        groups = [
            EpisodeGroup(0, "evaluation", 0.0, evaluation),
            EpisodeGroup(1, "training", 0.0, episodes - evaluation),
        ]
        return RolloutPlan(
            [group for group in groups if group.episodes],
            alternative_goals=self.alternative_goals,
            hindsight_fraction=self._fact("hindsight_fraction", RolloutPlan.hindsight_fraction),
            discount=self._fact("hindsight_discount", RolloutPlan.discount),
            teacher_samples=int(self.dataset.get("teacher_samples", 1)),
            sample_scale=float(self.dataset.get("sample_scale", 1.0)),
        )

    def _fact(self, name: str, otherwise: float) -> float:
        """Return what the dataset says that it was made with; `otherwise` where it says nothing."""
        value = self.dataset.get(name)
        return otherwise if value is None else float(value)
