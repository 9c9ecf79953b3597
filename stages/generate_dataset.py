"""Generate a dataset: the teacher acts in closed loop; every state that it visits carries its Gaussian."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import torch

from envs.compiled_task import CompiledTask
from envs.cpu_simulator import CpuSimulator
from envs.maze_coverage import MazeCoverage
from pipeline.core.artifacts import Artifact, atomic_file
from pipeline.core.distributed import Ranks
from pipeline.core.errors import LostRankError, NonFiniteError
from pipeline.core.runtime import (
    StageContext,
    StageWork,
    as_user_error,
    cpu_share,
    resolve_device,
    seed_sequence,
    set_up_torch,
)
from pipeline.core.settings import StageSettings
from replay.goal_dataset import DatasetError, DatasetStatistics, GoalEpisode, dataset_id, write_goal_dataset
from stages.artifact_task import keep_task, own_task, task_record
from stages.episode_round import EpisodeGroup, LabelledAction, RoundRecord, receive_round, send_round
from stages.evaluate import wilson_interval
from stages.network_file import TrainedActor, load_actor

MINARI_FOLDER = "minari"
"""Folder of a dataset artifact that MINARI_DATASETS_PATH is set to, to read it with `minari.load_dataset`."""

COVERAGE_PICTURE = "coverage.png"

_EPISODE_STREAM, _NOISE_STREAM = 21, 22


class GenerateDatasetSettings(StageSettings):
    """Settings of `pipeline generate-dataset`.

    Noise takes the teacher off its own path, so that the dataset also shows how it comes back; clean episodes
    keep the states that it visits by itself, and say how often it succeeds.
    """

    episodes: int = pydantic.Field(default=1000, ge=1, description="over all ranks")
    evaluation_fraction: float = pydantic.Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of episodes drawn as in evaluation; the rest as in training",
    )
    noisy_fraction: float = pydantic.Field(
        default=0.5, ge=0, le=1, description="share of episodes acted with noise"
    )
    action_noise: float = pydantic.Field(
        default=0.2, ge=0, le=2, description="standard deviation of the Gaussian noise on their actions"
    )
    threads: int = pydantic.Field(
        default=0, ge=0, description="CPU threads of torch in each process; 0: every CPU, shared evenly"
    )
    num_worlds: int = pydantic.Field(
        default=256, ge=1, description="episodes that run at a time, over all ranks"
    )

    def shares(self, ranks: Ranks) -> tuple[int, int]:
        """Return the episodes and the worlds of each rank. Raises SettingsError where they are not whole."""
        return ranks.share("episodes", self.episodes), ranks.share("num_worlds", self.num_worlds)


def plan_groups(settings: GenerateDatasetSettings) -> list[EpisodeGroup]:
    """Return the groups of episodes that the settings ask for; together they have `settings.episodes`."""
    evaluation = round(settings.evaluation_fraction * settings.episodes)
    groups = []
    for distribution, count in (("evaluation", evaluation), ("training", settings.episodes - evaluation)):
        noisy = round(settings.noisy_fraction * count) if settings.action_noise > 0 else 0
        for noise, episodes in ((0.0, count - noisy), (settings.action_noise, noisy)):
            groups.append(EpisodeGroup(len(groups), distribution, noise, episodes))
    return [group for group in groups if group.episodes]


def share_groups(groups: Sequence[EpisodeGroup], size: int) -> Iterator[tuple[EpisodeGroup, list[int]]]:
    """Yield each group with how many of its episodes fall to each rank.

    Episodes are dealt out like cards, so that every rank has its share of every group, and all as many where
    the total can be split evenly.
    """
    dealt = 0
    for group in groups:
        yield group, [len(range((rank - dealt) % size, group.episodes, size)) for rank in range(size)]
        dealt += group.episodes


# -- rolling out ----------------------------------------------------------------------------------


@dataclass
class RolloutTally:
    """What a rollout has done so far.

    Attributes:
        env_steps: control steps of running episodes.
        unstable: episodes dropped because the physics diverged.
        coverage: where the episodes went, for maze tasks.
    """

    env_steps: int = 0
    unstable: int = 0
    coverage: MazeCoverage | None = None


class TeacherRollout:
    """Runs the teacher and hands out its episodes, the same ones for the same seed.

    Every world of a round runs one episode to its end, so that short episodes are not favoured. Of several
    ranks each runs its share of every group, from starts of its own, and rank 0 hands out all of them.

    Args:
        trained: the teacher.
        settings: of the stage.
        device: where the teacher's network runs.
        ranks: the processes that make the dataset together.

    Raises:
        SettingsError: episodes or worlds cannot be split evenly over the ranks.
    """

    def __init__(
        self,
        trained: TrainedActor,
        settings: GenerateDatasetSettings,
        device: str,
        ranks: Ranks | None = None,
    ) -> None:
        self.task, self.settings, self.ranks = trained.task, settings, ranks or Ranks()
        _, self._num_worlds = settings.shares(self.ranks)
        self._label = _labeller(trained, device)
        maze = self.task.task.maze
        self.tally = RolloutTally(coverage=None if maze is None else MazeCoverage(maze))

    def episodes(self, on_step: Callable[[], None] = lambda: None) -> Iterator[GoalEpisode]:
        """Yield the episodes of every group and rank; `on_step` is called after each step of own worlds."""
        for group, shares in share_groups(plan_groups(self.settings), self.ranks.size):
            for episodes in self._rounds_of_all_ranks(group, shares, on_step):
                self.tally.unstable += episodes.count(None)
                for episode in episodes:
                    if episode is not None:
                        if self.tally.coverage is not None:
                            self.tally.coverage.add(episode.achieved_goal[:, :2])
                        yield episode

    def send_episodes(self) -> None:
        """Run this rank's share of every group and send it to rank 0, which hands it out."""
        for group, shares in share_groups(plan_groups(self.settings), self.ranks.size):
            for episodes in self._rounds(group, shares[self.ranks.rank], lambda: None):
                send_round(episodes, self.ranks)

    def _rounds_of_all_ranks(
        self, group: EpisodeGroup, shares: Sequence[int], on_step: Callable[[], None]
    ) -> Iterator[list[GoalEpisode | None]]:
        """Yield the rounds of a group, rank after rank."""
        own = self._rounds(group, shares[0], on_step)
        for first in range(0, max(shares), self._num_worlds):
            for rank, share in enumerate(shares):
                if first >= share:
                    continue
                if rank == 0:
                    yield next(own)
                    continue
                episodes = receive_round(rank, group, self.task, self.ranks)
                self.tally.env_steps += sum(len(episode.action) for episode in episodes if episode)
                yield episodes

    def _rounds(
        self, group: EpisodeGroup, count: int, on_step: Callable[[], None]
    ) -> Iterator[list[GoalEpisode | None]]:
        """Run `count` episodes of a group, as many at a time as there are worlds; None where one diverged."""
        if not count:
            return
        stream = (group.index, *self.ranks.stream)
        simulator = CpuSimulator(
            self.task,
            min(self._num_worlds, count),
            seed=seed_sequence(self.settings.seed, _EPISODE_STREAM, *stream),
            distribution=group.distribution,
            num_threads=cpu_share(self.ranks.local_size),
        )
        rng = np.random.default_rng(seed_sequence(self.settings.seed, _NOISE_STREAM, *stream))
        for first in range(0, count, simulator.num_worlds):
            if first:
                simulator.reset()
            yield self._round(simulator, group, rng, on_step)[: count - first]

    def _round(
        self,
        simulator: CpuSimulator,
        group: EpisodeGroup,
        rng: np.random.Generator,
        on_step: Callable[[], None],
    ) -> list[GoalEpisode | None]:
        """Run one episode in every world and return them; None where the physics diverged."""
        record = RoundRecord(self.task, simulator)
        action = record.visit(simulator, self._label)
        while record.running.any():
            if group.action_noise:
                noise = group.action_noise * rng.standard_normal(action.shape, np.float32)
                action = np.clip(action + noise, -1.0, 1.0)
            self.tally.env_steps += int(record.running.sum())
            record.act(simulator, action)
            action = record.visit(simulator, self._label)
            on_step()
        return [record.episode(world, group) for world in range(simulator.num_worlds)]


def _labeller(trained: TrainedActor, device: str) -> Callable[[np.ndarray, np.ndarray], LabelledAction]:
    """Return a function from observations and goals to the teacher's action, mean and log-std."""
    actor = trained.actor.to(device)

    @torch.no_grad()
    def label(observation: np.ndarray, goal: np.ndarray) -> LabelledAction:
        inputs = (torch.as_tensor(array, device=device) for array in (observation, goal))
        mean, log_std = actor(*inputs)
        action, mean, log_std = (tensor.cpu().numpy() for tensor in (mean.tanh(), mean, log_std))
        if not (np.isfinite(mean).all() and np.isfinite(log_std).all()):
            raise NonFiniteError("The teacher's output became NaN or infinite: train another teacher.")
        return action, mean, log_std

    return label


def draw_coverage(path: Path, coverage: MazeCoverage, title: str) -> None:
    """Draw from above how often each patch of the maze was visited, walls in grey; atomic, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import ListedColormap, LogNorm
    from matplotlib.figure import Figure

    rows, columns = coverage.free.shape
    figure = Figure(figsize=(1.6 + 0.8 * rows, 1.4 + 0.7 * columns), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    walls = np.ma.masked_where(coverage.free, np.ones(coverage.free.shape))
    axes.imshow(walls.T, cmap=ListedColormap(["#8C96A3"]), origin="lower", extent=coverage.extent)
    visits = np.ma.masked_equal(coverage.visits, 0)
    norm = LogNorm(1, max(2, int(coverage.visits.max())))
    image = axes.imshow(visits.T, cmap="viridis", norm=norm, origin="lower", extent=coverage.extent)
    axes.set(xlabel="x (m)", ylabel="y (m)")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    figure.colorbar(image, ax=axes, label="states in a patch", shrink=0.8)
    with atomic_file(path) as temporary:
        canvas.print_png(str(temporary))


# -- the stage ------------------------------------------------------------------------------------


def run(settings: GenerateDatasetSettings, context: StageContext, teacher: Artifact) -> Artifact:
    """Roll the teacher out and return the artifact of the Minari dataset.

    Args:
        settings: of the stage.
        context: workspace, console and tracking.
        teacher: the teacher to roll out and to label with.

    Raises:
        DamagedFileError: the teacher's files are damaged.
        NonFiniteError: the teacher's output is not finite.
        SettingsError: episodes or worlds cannot be split evenly over the ranks.
        UserError: the physics diverged in every episode.
        LostRankError: another rank is gone.
    """
    ranks = context.ranks
    trained = load_actor(teacher)
    set_up_torch(settings.threads, ranks.local_size)
    device = ranks.place(resolve_device(settings.device))
    rollout = TeacherRollout(trained, settings, device, ranks)
    parents = {"teacher": teacher}
    with contextlib.ExitStack() as stack:
        stack.enter_context(ranks.connect(device))
        work = stack.enter_context(
            context.stage(
                "dataset", "generate-dataset", task=trained.task.name, settings=settings, parents=parents
            )
        )
        try:
            if ranks.leads:
                keep_task(trained.task, work.artifact, context.console)
                return _write(rollout, work, context, teacher)
            rollout.send_episodes()
            ranks.disconnect()
            return work.artifact
        except LostRankError as error:
            raise LostRankError(f"{error}: there is no dataset; run the command again.") from error


def _write(rollout: TeacherRollout, work: StageWork, context: StageContext, teacher: Artifact) -> Artifact:
    """Write the episodes of all ranks and complete the artifact."""
    settings, task = rollout.settings, rollout.task
    most_steps = settings.episodes * task.task.episode_steps
    context.console.say(f"Dataset: {settings.episodes:,} episodes of teacher {teacher.name} on {task.name}.")
    started = time.perf_counter()
    with context.console.progress("generate-dataset", most_steps) as bar:
        statistics = as_user_error(
            lambda: write_goal_dataset(
                work.artifact.file(MINARI_FOLDER),
                task,
                rollout.episodes(lambda: bar.update(min(rollout.tally.env_steps, most_steps))),
                _metadata(settings, task, teacher, work),
                own_task(work.artifact),
            ),
            DatasetError,
        )
        bar.update(most_steps)
    context.ranks.disconnect()
    return _finish(statistics, rollout.tally, time.perf_counter() - started, work, context)


def _metadata(
    settings: GenerateDatasetSettings, task: CompiledTask, teacher: Artifact, work: StageWork
) -> dict[str, Any]:
    return {
        "task": task.name,
        **task_record(work.artifact),
        "control_dt_s": task.task.control_dt_s,
        "teacher": {"name": teacher.name, "hash": teacher.manifest.hash},
        "action_noise": settings.action_noise,
        "noisy_fraction": settings.noisy_fraction,
        "evaluation_fraction": settings.evaluation_fraction,
        "seed": settings.seed,
        "versions": work.artifact.manifest.versions,
    }


def _summary(statistics: DatasetStatistics, tally: RolloutTally, elapsed_s: float) -> dict[str, Any]:
    """Return the stage's results: counts, success of all and of the clean episodes, coverage, speed."""
    results: dict[str, Any] = {
        "episodes": statistics.episodes,
        "rows": statistics.rows,
        "success": statistics.successes / statistics.episodes,
        "success_interval": list(wilson_interval(statistics.successes, statistics.episodes)),
        "clean_episodes": statistics.clean_episodes,
        "unstable_episodes": tally.unstable,
        "elapsed_s": elapsed_s,
        "rows_per_s": statistics.rows / elapsed_s,
    }
    if statistics.clean_episodes:
        interval = wilson_interval(statistics.clean_successes, statistics.clean_episodes)
        results["clean_success"] = statistics.clean_successes / statistics.clean_episodes
        results["clean_success_interval"] = list(interval)
    if tally.coverage is not None:
        results["coverage"] = tally.coverage.share
    return results


def _finish(
    statistics: DatasetStatistics,
    tally: RolloutTally,
    elapsed_s: float,
    work: StageWork,
    context: StageContext,
) -> Artifact:
    """Draw the coverage, complete the artifact, and say what the dataset is."""
    artifact, name = work.artifact, dataset_id(work.artifact.manifest.task)
    results = _summary(statistics, tally, elapsed_s)
    if tally.coverage is not None:
        title = f"{tally.coverage.visits.sum():,} states, {results['coverage']:.0%} of the free cells"
        draw_coverage(artifact.file(COVERAGE_PICTURE), tally.coverage, title)
    artifact.complete(results | {"dataset_id": name})
    numbers = {key: float(value) for key, value in results.items() if isinstance(value, int | float)}
    work.run.log_metrics(numbers, step=0)
    digest = str(artifact.manifest.hash)[:16]
    work.run.log_dataset(artifact.name, digest, str(artifact.path), statistics.rows, "generated")
    work.log_files(COVERAGE_PICTURE, "manifest.json")
    low, high = results["success_interval"]
    clean = f"; clean episodes {results['clean_success']:.3f}" if "clean_success" in results else ""
    dropped = f"; {tally.unstable} unstable episodes dropped" if tally.unstable else ""
    context.console.say(
        f"Dataset {artifact.name}: {results['rows']:,} rows of {results['episodes']:,} episodes, success "
        f"{results['success']:.3f} [{low:.3f}, {high:.3f}]{clean}{dropped}. Minari: {name} with "
        f"MINARI_DATASETS_PATH={artifact.file(MINARI_FOLDER)}"
    )
    return artifact
