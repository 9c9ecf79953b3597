"""What the ranks of the stages' tests do."""

from __future__ import annotations

import itertools
import json
import os
import signal
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from thousandfold.envs.registry import compile_task
from thousandfold.ground.errors import StoppedByUser, UserError
from thousandfold.pipeline.artifacts import Workspace
from thousandfold.pipeline.checkpoint import save_tensors
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.distributed import Ranks
from thousandfold.pipeline.runtime import StageContext
from thousandfold.pipeline.tracking import NullTracker
from thousandfold.replay.trajectory_buffer import TransitionBatch
from thousandfold.stages.dataset import generate_dataset, results
from thousandfold.stages.dataset.generate_dataset import GenerateDatasetSettings
from thousandfold.stages.dataset.rollout import LabelledRollout
from thousandfold.stages.train_teacher import train_teacher
from thousandfold.stages.train_teacher import training as teacher_training
from thousandfold.stages.train_teacher.learner import ContrastiveLearner
from thousandfold.stages.train_teacher.settings import LearnerSettings, TrainTeacherSettings
from thousandfold.stages.train_teacher.training import RolloutStatistics, TeacherTraining

STOPPED, REFUSED = 10, 11
TASK = compile_task("point_u_maze")
Tensors = dict[str, torch.Tensor]


# -- gradients --------------------------------------------------------------------------------------


def whole_batch(size: int, ranks: int) -> tuple[TransitionBatch, torch.Tensor, torch.Tensor]:
    """Return a batch, which goal its actor takes with each state (one of the same rank), and noise."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((size, TASK.observation_dim), (size, TASK.action_dim), (size, TASK.goal_dim))
    observation, action, goal = (torch.randn(shape, generator=generator) for shape in shapes)
    own = size // ranks
    order = torch.cat([torch.randperm(own, generator=generator) + rank * own for rank in range(ranks)])
    noise = torch.randn(size, TASK.action_dim, generator=generator)
    achieved, lost = torch.randn(goal.shape, generator=generator), torch.arange(size) % 3 == 0
    return TransitionBatch(observation, action.tanh(), goal, achieved, lost), order, noise


def part_of_batch(size: int, ranks: Ranks) -> tuple[TransitionBatch, torch.Tensor, torch.Tensor]:
    batch, order, noise = whole_batch(size, ranks.size)
    own = slice(ranks.rank * size // ranks.size, (ranks.rank + 1) * size // ranks.size)
    columns = (getattr(batch, field.name) for field in fields(batch))
    part = TransitionBatch(*(column if column is None else column[own] for column in columns))
    return part, order[own] - own.start, noise[own]


def gradients_of(learner: ContrastiveLearner) -> Tensors:
    networks = {"actor": learner.actor, "critic": learner.critic}
    found = {
        f"{name}.{key}": parameter.grad
        for name, network in networks.items()
        for key, parameter in network.named_parameters()
    }
    return {name: value for name, value in found.items() if value is not None} | {
        "log_alpha": learner.log_alpha.grad
    }  # type: ignore[return-value]


def save_gradients(ranks: Ranks, cases: list[LearnerSettings], folder: Path) -> None:
    """Save each case's gradients and metrics, as every rank has them after the exchange."""
    with ranks.connect("cpu"):
        for index, settings in enumerate(cases):
            learner = ContrastiveLearner(TASK, settings, "cpu", ranks)
            loss, metrics = learner.loss(*part_of_batch(settings.batch_size, ranks))
            learner._differentiate(loss)
            learner._average_gradients()
            path = folder / f"case-{index}-rank-{ranks.rank}.safetensors"
            save_tensors(path, gradients_of(learner), {name: float(v) for name, v in metrics.items()})


def save_updates(ranks: Ranks, settings: LearnerSettings, folder: Path) -> None:
    """Save what three updates make of the networks."""
    with ranks.connect("cpu"):
        learner = ContrastiveLearner(TASK, settings, "cpu", ranks)
        generator = torch.Generator().manual_seed(ranks.rank)
        for _ in range(3):
            metrics = learner.update(part_of_batch(settings.batch_size, ranks)[0], generator)
        norms = {name: float(value) for name, value in metrics.items() if name.endswith("gradient_norm")}
        save_tensors(folder / f"rank-{ranks.rank}.safetensors", learner.state_dict(), norms)


# -- training ---------------------------------------------------------------------------------------


def context_of(ranks: Ranks, root: Path) -> StageContext:
    return StageContext(Workspace(root), Console(silent=not ranks.leads), NullTracker(), ranks=ranks)


def train(
    ranks: Ranks, settings: TrainTeacherSettings, root: Path, how: str = "", who: int = 0, at: int = 0
) -> None:
    """Train, or go on with the unfinished teacher of the workspace.

    Args:
        ranks: this process among the others.
        settings: of a new teacher.
        root: the workspace.
        how: ``stop``, ``kill``, ``poison`` or ``diverge``: what happens on rank `who` in unroll `at`.
    """
    _without_pictures()
    _checked()
    context = context_of(ranks, root)
    _interrupt(context, how, who, at)
    artifact = None
    if context.workspace.artifacts("teacher"):
        settings, artifact = train_teacher.find_resumable(context.workspace, None)
    try:
        train_teacher.run(settings, context, artifact)
    except StoppedByUser:
        os._exit(STOPPED)
    except UserError as error:
        told = {"error": str(error), "code": error.exit_code, "speaks": ranks.speaks()}
        (root / f"told-{ranks.rank}.json").write_text(json.dumps(told))
        os._exit(REFUSED)


def _without_pictures() -> None:
    for name in [name for name in vars(train_teacher) if name.startswith("draw_")]:
        setattr(train_teacher, name, lambda *_, **__: None)
    results.draw_coverage = lambda *_, **__: None


def _checked() -> None:
    """Check at every save that the ranks have one network and worlds of their own; rank 0 alone evaluates."""
    save, run_episodes = TeacherTraining.save, teacher_training.run_episodes

    def checked_save(training: TeacherTraining, folder: Any) -> None:
        for network in (training.learner.actor, training.learner.critic, training.learner.averaged_actor):
            for parameter in network.parameters():
                every = training.ranks.gather(parameter)
                assert (every == every[0]).all()
        seen = training.ranks.gather(torch.as_tensor(training.simulator.observation))
        assert training.ranks.size == 1 or (seen[0] != seen[1]).any()
        save(training, folder)

    def by_leader(*arguments: Any, **options: Any) -> Any:
        assert os.environ["RANK"] == "0"
        return run_episodes(*arguments, **options)

    TeacherTraining.save = checked_save
    teacher_training.run_episodes = by_leader


def _interrupt(context: StageContext, how: str, who: int, at: int) -> None:
    collect = TeacherTraining.collect

    def interrupting(training: TeacherTraining) -> RolloutStatistics:
        if how and context.ranks.rank == who and training.progress.unrolls == at:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif how == "stop":
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)  # torchrun passes the terminal's Ctrl-C on
            elif how == "poison":
                training._metric_sums["critic_loss"] = torch.tensor(torch.nan)
            elif how == "diverge":
                training.buffer.drop_episodes(torch.ones(training.buffer.num_worlds, dtype=torch.bool))
        return collect(training)

    TeacherTraining.collect = interrupting


def train_with_others(ranks: Ranks, settings: list[TrainTeacherSettings], root: Path) -> None:
    """Give every rank other settings."""
    train(ranks, settings[ranks.rank], root)


# -- datasets ---------------------------------------------------------------------------------------


def make_dataset(
    ranks: Ranks,
    settings: GenerateDatasetSettings,
    root: Path,
    stopping: int = -1,
    how: str = "",
    resumed: str | None = None,
) -> None:
    """Make a dataset of the workspace's teacher, or go on with one.

    Args:
        ranks: the processes.
        settings: of the stage.
        root: of the workspace.
        stopping: the rank that is killed, or stopped, in its second round.
        how: `kill`, or `stop` by Ctrl-C.
        resumed: name of the dataset to go on with.
    """
    _without_pictures()
    context = context_of(ranks, root)
    teacher = context.workspace.newest("teacher")
    dataset = None if resumed is None else context.workspace.find(resumed, "dataset")
    _interrupt_rollout(ranks.rank == stopping, how)
    try:
        generate_dataset.run(settings, context, teacher, dataset)
    except UserError as error:
        (root / f"told-{ranks.rank}.json").write_text(json.dumps({"error": str(error)}))
        os._exit(STOPPED if isinstance(error, StoppedByUser) else REFUSED)


def _interrupt_rollout(here: bool, how: str) -> None:
    run_round, count = LabelledRollout.run_round, itertools.count()

    def interrupting(rollout: Any, *arguments: Any) -> Any:
        if here and next(count) == 1:
            os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGINT)
        return run_round(rollout, *arguments)

    LabelledRollout.run_round = interrupting
