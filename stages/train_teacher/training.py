"""A teacher's training: collect, relabel, update, evaluate, checkpoint, until budget or target is met."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, astuple, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.simulators.choose import make_simulator
from thousandfold.envs.simulators.simulator import Simulator
from thousandfold.ground.errors import NonFiniteError
from thousandfold.models.deployable_policy import NormalizedActor
from thousandfold.models.tensor_state import host_copy, strip_prefix
from thousandfold.pipeline.checkpoint import BackgroundSaves, CheckpointFolder
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.distributed import Ranks
from thousandfold.pipeline.resume import ResumableWork
from thousandfold.pipeline.runtime import cpu_share, require_finite, seed_sequence, torch_seed
from thousandfold.pipeline.settings import dump_settings
from thousandfold.replay.trajectory_buffer import TrajectoryBuffer, TransitionBatch
from thousandfold.stages.captured_call import CapturedCall, CudaRecorder
from thousandfold.stages.episodes import run_episodes
from thousandfold.stages.metric_groups import grouped
from thousandfold.stages.networks import torch_policy
from thousandfold.stages.random_baseline import measure_random, no_better_than_random
from thousandfold.stages.train_teacher.cuda_graphs import CapturedUpdate, PlainUpdate
from thousandfold.stages.train_teacher.learner import ContrastiveLearner
from thousandfold.stages.train_teacher.resplit import parts_with_worlds, resplit
from thousandfold.stages.train_teacher.settings import (
    CHANGEABLE_ON_RESUME,
    CHANGEABLE_WHEN_COMPLETED,
    TrainTeacherSettings,
)
from thousandfold.stages.train_teacher.training_videos import TrainingVideos
from thousandfold.stages.train_teacher.value_learner import ValueLearner

_SIMULATOR_STREAM, _LEARNER_STREAM, _EVALUATION_STREAM, _CHOICE_STREAM, _CHANCE_STREAM = 2, 3, 4, 7, 8
_LESSON_STREAM = 10


def train(
    training: TeacherTraining,
    work: ResumableWork,
    on_evaluation: Callable[[dict[str, float]], object] = lambda _: None,
) -> None:
    """Collect, relabel, update, evaluate, checkpoint, from where the training stands to its end.

    Raises:
        NonFiniteError: a number became NaN or infinite, or the physics diverges; the last checkpoint is kept.
        StoppedByUser: after Ctrl-C, once the state is saved.
        LostRankError: another rank is gone; the last checkpoint is kept.
    """
    settings, progress, console = training.settings, training.progress, work.context.console
    started = time.perf_counter() - progress.elapsed_s
    videos = TrainingVideos(settings, training.task, training.device, work)
    with (
        console.progress("train-teacher", settings.env_steps, completed=progress.env_steps) as bar,
        BackgroundSaves(work.checkpoint) as saves,
    ):
        while not training.finished:
            saves.check()
            kept = saves.path
            statistics = training.collect()
            training.check_physics(statistics, kept)
            for batch in training.relabel():
                training.update(batch)
            training.check_finite(kept)
            if progress.unrolls % settings.evaluate_every == 0 or training.finished:
                metrics = training.take_metrics()
                training.note_gradients()
                lesson, lessons = training.lesson, progress.lesson
                summary = training.evaluate()
                if progress.lesson > lessons:
                    learned = summary["success"] >= settings.curriculum_success
                    why = "" if learned else f", no better in {settings.curriculum_patience} evaluations"
                    console.say(
                        f"Curriculum: success {summary['success']:.2f} on {lesson} after "
                        f"{progress.env_steps:,} steps{why}; "
                        f"{training.lesson or 'the task itself'} comes next."
                    )
                progress.elapsed_s = time.perf_counter() - started
                entry = {
                    **metrics,
                    **{name: float(each) for name, each in summary.items() if not isinstance(each, list)},
                    "env_steps": progress.env_steps,
                    "updates": progress.updates,
                    "exploration_success_rate": statistics.successes / statistics.env_steps,
                    "unstable": progress.unstable,
                    "overflowed": progress.overflowed,
                    "elapsed_s": progress.elapsed_s,
                }
                progress.history.append(entry)
                training.warn_of_chance(work.context.console)
                work.run.log_metrics(grouped(entry, "train"), step=progress.env_steps)
                on_evaluation(dict(entry))
                if training.evaluated is not None:
                    videos.draw_if_due(training.evaluated, len(progress.history), progress.env_steps)
            stopping = work.stopping
            if progress.unrolls % settings.checkpoint_every == 0 or training.finished or stopping:
                progress.elapsed_s = time.perf_counter() - started
                work.run.flush()
                saves.wait()  # before the state is copied again
                training.save(saves)
            success = f"{progress.history[-1]['success']:.2f}" if progress.history else "not evaluated yet"
            success += f" on {training.lesson}" if training.lesson and progress.history else ""
            bar.update(min(progress.env_steps, settings.env_steps), success=success)
            if stopping:
                saves.wait()
                raise work.stopped()
        if not progress.finalists:  # the budget was lowered to where nothing is evaluated yet
            training.evaluate()


class TeacherTraining:
    """The state of a training run, and the steps that move it on.

    Args:
        device: ``cpu`` or ``cuda``; of several ranks each its own, ``cuda:<index>``.
        ranks: the processes that train together, each with its share of the worlds and of the batch.

    Raises:
        SettingsError: worlds or batch cannot be split evenly over the ranks.
    """

    def __init__(
        self, settings: TrainTeacherSettings, task: CompiledTask, device: str, ranks: Ranks | None = None
    ) -> None:
        self.settings, self.task, self.device, self.ranks = settings, task, device, ranks or Ranks()
        learns = {"contrastive": ContrastiveLearner, "temporal_difference": ValueLearner}[settings.critic]
        self.learner: ContrastiveLearner = learns(task, settings, device, self.ranks)
        self.buffer = self._make_buffer(settings.shares(self.ranks)[0], device)
        self.generator = torch.Generator(device).manual_seed(
            torch_seed(settings.seed, _LEARNER_STREAM, *self.ranks.stream)
        )
        self.progress = TrainingProgress()
        self.evaluated: NormalizedActor | None = None
        self._unsaved_finalists: dict[str, dict[str, Tensor]] = {}
        self._metric_sums: dict[str, torch.Tensor] = {}
        self._metric_count = 0
        self._begin_lesson()
        self._note_evaluations()

    def _begin_lesson(self) -> None:
        """Make the environments of the lesson, and what steps them and learns."""
        settings, device, stream = self.settings, self.device, self.ranks.stream
        num_worlds, batch_size = settings.shares(self.ranks)
        own = (_LESSON_STREAM, self.progress.lesson) if self.progress.lesson else (_SIMULATOR_STREAM,)
        if hasattr(self, "rollout"):  # what they hold becomes free before others are made
            del self.rollout, self.updates, self.simulator
            gc.collect()
        self.simulator = make_simulator(
            self.task,
            num_worlds,
            device=device,
            seed=seed_sequence(settings.seed, *own, *stream),
            distribution=self.lesson or settings.training_distribution,
            num_threads=cpu_share(self.ranks.local_size),
            deterministic=settings.deterministic,
        )
        parts = self.learner, self.buffer, batch_size, settings.updates_per_unroll, self.generator
        if self.captures:
            recorder = CudaRecorder(device, [self.generator, *self.simulator.device_generators])
            self.updates, capture = CapturedUpdate(*parts, recorder), partial(CapturedCall, recorder=recorder)
        else:
            self.updates, capture = PlainUpdate(*parts), None
        act = partial(self.learner.act, generator=self.generator)
        self.rollout = Rollout(self.simulator, self.buffer, act, self.exchange_goals, capture)

    def _make_buffer(self, num_worlds: int, device: str) -> TrajectoryBuffer:
        return TrajectoryBuffer(
            num_worlds,
            self.settings.replay_rows_per_world,
            observation_dim=self.task.observation_dim,
            goal_dim=self.task.goal_dim,
            action_dim=self.task.action_dim,
            device=device,
        )

    @property
    def captures(self) -> bool:
        """Whether control steps, batches and updates run as CUDA graphs."""
        return self.settings.cuda_graph and self.device.startswith("cuda")

    @property
    def lesson(self) -> str | None:
        """The distribution of the curriculum that starts and goals are drawn from; None after the last."""
        rest = self.settings.curriculum[self.progress.lesson :]
        return rest[0] if rest else None

    @property
    def _evaluated_on(self) -> str:
        return self.lesson or self.settings.evaluation_distribution

    @property
    def position(self) -> str:
        """How far the training has come, as messages say it."""
        return f"{self.progress.env_steps:,} steps"

    @property
    def finished(self) -> bool:
        """Whether the step budget is spent, the target was met often enough, or nothing gets better.

        The last two end a training after its curriculum alone.
        """
        met = self.progress.target_hits >= self.settings.target_evaluations
        done = self.lesson is None and (met or self._out_of(self.settings.patience))
        return self.progress.env_steps >= self.settings.env_steps or done

    def _out_of(self, patience: int | None) -> bool:
        return patience is not None and self.progress.evaluations_since_best >= patience

    def _note_evaluations(self) -> None:
        """Add to the progress where evaluations draw starts and goals from, from now on."""
        self.progress.evaluated.append(
            {
                "env_steps": self.progress.env_steps,
                "distribution": self._evaluated_on,
                "curriculum": self.lesson is not None,
            }
        )

    def collect(self) -> RolloutStatistics:
        """Let every world act for one unroll; return what happened on all ranks."""
        own = self.rollout.collect(self.settings.unroll_steps)
        commanded = torch.as_tensor(self.simulator.desired_goal, device=self.buffer.device)
        self.learner.see(*self.buffer.newest(self.settings.unroll_steps), commanded)
        statistics = own.over(self.ranks)
        self.progress.unrolls += 1
        self.progress.env_steps += statistics.env_steps
        self.progress.unstable += statistics.unstable
        self.progress.overflowed += statistics.overflowed
        return statistics

    def exchange_goals(self) -> None:
        """Let some worlds take over the goal that is commanded in another, as `goal_exchange` says.

        Where an episode keeps its goal, an action tells which one was commanded, hence where the episode
        ends, whatever the action itself brings about (docs/algorithm.md).
        """
        if not self.settings.goal_exchange:
            return
        commanded, worlds = self.simulator.desired_goal, self.simulator.num_worlds
        random = {"generator": self.generator, "device": self.generator.device}
        other = torch.randint(worlds, (worlds,), **random)
        chosen = torch.rand(worlds, **random) < self.settings.goal_exchange
        goals = torch.as_tensor(commanded, device=self.generator.device)
        # Not by `set_goal`, which ends what the task itself commands later.
        commanded[:] = torch.where(chosen[:, None], goals[other], goals)

    def relabel(self) -> Iterator[TransitionBatch]:
        """Yield the unroll's batches of transitions with hindsight goals, once there is enough memory."""
        if not self.ranks.every(self.buffer.rows_per_world >= self.settings.min_rows_per_world):
            return
        self.buffer.require_transitions()
        yield from self.updates.batches()

    def update(self, batch: TransitionBatch) -> None:
        """Take one gradient step with each network and remember its metrics."""
        metrics = self.updates.update(batch)
        if not self._metric_sums:
            self._metric_sums = {name: torch.zeros_like(value) for name, value in metrics.items()}
        sums = list(self._metric_sums.values())
        torch._foreach_add_(sums, [metrics[name] for name in self._metric_sums])  # pyright: ignore[reportPrivateImportUsage]
        self._metric_count += 1
        self.progress.updates += 1

    def check_physics(self, statistics: RolloutStatistics, kept: Path | None) -> None:
        """Raise NonFiniteError where an unroll dropped as many episodes as there are worlds.

        Args:
            kept: folder of the last checkpoint, for the message; None where there is none yet.
        """
        if statistics.unstable < self.settings.num_worlds:
            return
        steps, rest = self.progress.env_steps, f" The last good checkpoint is kept in {kept}." if kept else ""
        if 2 * statistics.overflowed > statistics.unstable:
            raise NonFiniteError(
                f"The physics of {self.task.name} found no room for contacts or constraints in "
                f"{statistics.overflowed} episodes within {statistics.env_steps:,} steps, at step "
                f"{steps:,}: let fewer of the model's geoms touch each other.{rest}"
            )
        raise NonFiniteError(
            f"The physics of {self.task.name} diverged {statistics.unstable} times within "
            f"{statistics.env_steps:,} steps, at step {steps:,}: check the model, its timestep and its "
            f"gains.{rest}"
        )

    def check_finite(self, kept: Path | None) -> None:
        """Raise NonFiniteError for a metric or a weight that is NaN or infinite, before it can be saved."""
        values = {name: float(total) for name, total in self._metric_sums.items()}
        for name, network in (("actor", self.learner.actor), ("critic", self.learner.critic)):
            weights = [parameter.detach() for parameter in network.parameters()]
            values[f"a weight of the {name}"] = float(nn.utils.get_total_norm(weights, torch.inf))
        values["log alpha"] = float(self.learner.log_alpha.detach())
        # Every rank's values, so that all of them stop.
        for numbers in self.ranks.gather(torch.tensor(list(values.values()), dtype=torch.float64)).tolist():
            found = dict(zip(values, numbers, strict=True))
            require_finite(found, f"step {self.progress.env_steps:,}", kept)

    def take_metrics(self) -> dict[str, float]:
        """Return the updates' mean metrics since the last call, over all ranks."""
        means = {name: float(total) / self._metric_count for name, total in self._metric_sums.items()}
        self._metric_sums, self._metric_count = {}, 0
        values = self.ranks.gather(torch.tensor(list(means.values()), dtype=torch.float64)).mean(0)
        return dict(zip(means, values.tolist(), strict=True))

    def note_gradients(self) -> None:
        """Add the last update's gradient norms, block by block, to the progress."""
        norms = self.learner.gradient_by_block()
        rounded = {name: [float(f"{norm:.3e}") for norm in norms[name].tolist()] for name in norms}
        if rounded:
            self.progress.gradients.append({"updates": self.progress.updates} | rounded)

    def evaluate(self) -> dict[str, Any]:
        """Run fresh episodes with the mean action of every candidate; keep the best weights so far.

        One evaluation is noisy, and the best of many was lucky: several are kept, for `choose` to compare.

        The candidates get the same episodes, run by rank 0. Returns the summary of the one that did best.
        """
        candidates, settings = self.learner.candidates, self.settings
        episodes, distribution = settings.evaluation_episodes, self.lesson or "evaluation"

        def run(candidate: NormalizedActor) -> dict[str, Any]:
            seed = seed_sequence(settings.seed, _EVALUATION_STREAM, self.progress.unrolls)
            policy = torch_policy(candidate, self.device, self.settings.cuda_graph)
            found = run_episodes(self.task, policy, episodes=episodes, seed=seed, distribution=distribution)
            return found.summary()

        summaries = self.ranks.from_leader(lambda: list(map(run, candidates)))
        scores = [
            [summary["success"], summary["time_at_goal"], -summary["final_distance"]] for summary in summaries
        ]
        chosen = max(range(len(candidates)), key=scores.__getitem__)
        self.evaluated = candidates[chosen]
        progress, places = self.progress, settings.finalists if settings.keep == "best" else 1
        better = scores[chosen] > progress.best_score
        progress.evaluations_since_best = 0 if better else progress.evaluations_since_best + 1
        progress.best_score = max(progress.best_score, scores[chosen])
        if settings.keep == "last":
            progress.scores, progress.finalists = [], []
        place = sum(score >= scores[chosen] for score in progress.scores)
        if place < places:
            name = f"finalist-{progress.unrolls:08d}"
            progress.scores.insert(place, scores[chosen])
            progress.finalists.insert(place, name)
            if self.ranks.leads:
                self._unsaved_finalists[name] = self.learner.weights(candidates[chosen])
        del progress.scores[places:], progress.finalists[places:]
        unsaved = self._unsaved_finalists.items()
        self._unsaved_finalists = {name: kept for name, kept in unsaved if name in progress.finalists}
        target = settings.target_success
        met = target is not None and scores[chosen][0] >= target
        self.progress.target_hits = self.progress.target_hits + 1 if met else 0
        learned = scores[chosen][0] >= settings.curriculum_success
        leads_on = self.lesson and (learned or self._out_of(settings.curriculum_patience))
        if leads_on and progress.env_steps < settings.env_steps:
            progress.lesson += 1
            self._forget_evaluations()
            self.buffer.drop_episodes(self._everywhere)
            self._begin_lesson()
        return summaries[chosen]

    def _forget_evaluations(self) -> None:
        """Seek the best anew: evaluations are others from now on."""
        self.progress.forget_evaluations()
        self._unsaved_finalists = {}
        self._note_evaluations()

    @property
    def _everywhere(self) -> Tensor:
        return torch.ones(self.simulator.num_worlds, dtype=torch.bool, device=self.buffer.device)

    def choose(self, folder: CheckpointFolder) -> dict[str, Tensor]:
        """Return the weights that become the teacher: the best of the finalists over the same fresh episodes.

        They are other episodes than those that the teacher's success is told of. The checkpoint of the whole
        training holds the finalists, unless an earlier version wrote it.
        """
        finalists = self.progress.finalists

        def weights(name: str) -> dict[str, Tensor]:
            return self._unsaved_finalists.get(name) or folder.fixed(name)

        if len(finalists) == 1:
            return weights(finalists[0])
        seed, scores = seed_sequence(self.settings.seed, _CHOICE_STREAM), []
        for name in finalists:
            actor = self.learner.load_weights(weights(name))
            policy = torch_policy(actor, self.device, self.settings.cuda_graph)
            found = run_episodes(
                self.task, policy, episodes=self.settings.final_episodes, seed=seed
            ).summary()
            scores.append([found["success"], found["time_at_goal"], -found["final_distance"]])
        return weights(finalists[max(range(len(scores)), key=scores.__getitem__)])

    def warn_of_chance(self, console: Console) -> None:
        """Say once where no evaluation was better than random actions.

        That is after a third of the budget, or of what was left of it when evaluations became others.
        """
        settings, progress = self.settings, self.progress
        begun = progress.evaluated[-1]["env_steps"]
        is_early = 3 * (progress.env_steps - begun) < settings.env_steps - begun
        if progress.compared_with_random or self.finished or is_early:
            return
        progress.compared_with_random = True
        if not self.ranks.leads:
            return
        episodes = settings.evaluation_episodes
        seeds = (seed_sequence(settings.seed, _CHANCE_STREAM, part) for part in range(2))
        found = no_better_than_random(
            {"success": progress.best_score[0], "episodes": episodes}
            | measure_random(self.task, episodes, *seeds, distribution=self.lesson or "evaluation")
        )
        if found:
            console.warn(
                f"After {progress.env_steps:,} of {settings.env_steps:,} steps the best evaluation {found}. "
                "Ctrl-C ends the training and keeps it; `pipeline tasks check` looks at the task."
            )

    def save(self, folder: CheckpointFolder | BackgroundSaves) -> None:
        """Write everything that the next step depends on, as copies; all ranks call this together."""
        shared = {f"learner.{name}": value for name, value in self.learner.state_dict().items()}
        own = {f"buffer.{name}": value for name, value in self.buffer.counters().items()}
        simulator = self.simulator.state_dict()
        own |= {f"simulator.{name}": torch.from_numpy(np.array(value)) for name, value in simulator.items()}
        own |= {f"metric.{name}": host_copy(value) for name, value in self._metric_sums.items()}
        own["generator"] = self.generator.get_state()
        progress = {"metric_count": self._metric_count, "settings": self._settings_to_compare()}
        folder.save(
            self.progress.unrolls,
            shared,
            asdict(self.progress) | progress,
            segment=self.buffer.unsaved_segment(),
            oldest_row=self.buffer.oldest_row,
            own=own,
            fixed={name: self._unsaved_finalists.get(name) for name in self.progress.finalists},
        )
        self.buffer.mark_saved()
        self._unsaved_finalists = {}

    def _settings_to_compare(self) -> dict[str, Any]:
        """Return the settings with the device that `auto` became: random numbers go on there alone.

        A task goes by its name: that of a user is first read from the user's file, later from its copy.
        """
        own = {"device": self.device.partition(":")[0], "task": self.task.name}
        return dump_settings(self.settings) | own

    def load(self, folder: CheckpointFolder, changeable: Collection[str] = CHANGEABLE_ON_RESUME) -> None:
        """Restore what `save` wrote, on any number of ranks; bit for bit where it is the same number.

        Args:
            folder: the checkpoint.
            changeable: settings that may have another value by now. Where the training's distribution has,
                every environment begins an episode of the new one; where that of evaluation has, the best is
                sought anew.

        Raises:
            DamagedFileError: it belongs to other settings, or a file is damaged.
        """
        folder.require_settings(self._settings_to_compare(), changeable)
        size, num_worlds, ranks = folder.num_parts, self.settings.num_worlds, self.ranks
        checkpoint = folder.load(parts_with_worlds(num_worlds, size, ranks))
        with folder.taken_over():
            part = checkpoint.parts[0]
            if size != ranks.size:
                buffer = partial(self._make_buffer, device="cpu")
                part = resplit(checkpoint.parts, num_worlds, size, ranks, buffer)
            progress = {key: value for key, value in checkpoint.progress.items() if key != "settings"}
            finalists = checkpoint.fixed
            if "finalists" not in progress:  # of an earlier version, which kept them with the rest
                if "scores" not in progress:  # or one alone
                    progress["scores"] = [progress["best_score"]] * (progress["best_score"][0] >= 0)
                    prefixes = ["kept."] * len(progress["scores"])
                else:
                    prefixes = [f"finalist.{place}." for place in range(len(progress["scores"]))]
                finalists = {
                    f"finalist-{place}": strip_prefix(checkpoint.tensors, prefix)
                    for place, prefix in enumerate(prefixes)
                }
                progress["finalists"] = list(finalists)
            if sorted(progress["finalists"]) != sorted(finalists):
                raise ValueError("other finalists than were evaluated")
            self._metric_count = int(progress.pop("metric_count"))
            self.progress = TrainingProgress(**progress)
            self.learner.load_state_dict(strip_prefix(checkpoint.tensors, "learner."))
            self._unsaved_finalists = finalists  # in another folder, or in another form
            own = partial(strip_prefix, part.tensors)
            self._metric_sums = {name: value.to(self.device) for name, value in own("metric.").items()}
            saved = {
                **dump_settings(self.settings),
                "curriculum": [],
                **checkpoint.progress.get("settings", {}),
            }
            if not self.progress.evaluated:  # of an earlier version
                first = {
                    "env_steps": 0,
                    "distribution": saved["evaluation_distribution"],
                    "curriculum": False,
                }
                self.progress.evaluated.append(first)
            if self.progress.lesson:
                self._begin_lesson()
            drawn_from = [*saved["curriculum"][self.progress.lesson :], saved["training_distribution"]]
            goes_on = self.simulator.distribution == drawn_from[0]
            if goes_on:
                state = {name: value.numpy() for name, value in own("simulator.").items()}
                self.simulator.load_state_dict(state)
            self.generator.set_state(part.tensors["generator"])
            for segment in part.segments:
                self.buffer.load_segment(segment)
            self.buffer.load_counters(own("buffer."))
            if size != ranks.size or not goes_on:  # generators are derived anew from ranks and unroll
                seed, now = self.settings.seed, (ranks.rank, ranks.size, self.progress.unrolls)
                simulator_seed = seed_sequence(seed, _SIMULATOR_STREAM, *now)
                self.simulator.rng = np.random.Generator(np.random.PCG64(simulator_seed))
                self.simulator.seed_senses(simulator_seed)
                self.generator.manual_seed(torch_seed(seed, _LEARNER_STREAM, *now))
                self.buffer.mark_unsaved()
            if not goes_on:
                self.buffer.drop_episodes(self._everywhere)
                self.simulator.reset()
            if self.progress.evaluated[-1]["distribution"] != self._evaluated_on:
                self._forget_evaluations()

    def train_on(self, folder: CheckpointFolder) -> None:
        """Restore where another training has ended, as the beginning of this one; raises as `load` does.

        All of the replay memory is written with this training's first checkpoint. A target that the other one
        has met has to be met anew, and patience begins anew.
        """
        self.load(folder, CHANGEABLE_WHEN_COMPLETED)
        self.buffer.mark_unsaved()
        self.progress.target_hits = 0
        self.progress.compared_with_random = False
        if self.settings.patience is not None:
            self.progress.evaluations_since_best = 0


# -- Collecting experience: the actor explores every world of a simulator and the memory keeps the rows


@dataclass
class RolloutStatistics:
    """What happened in a collection.

    Attributes:
        env_steps: control steps over all worlds.
        successes: steps that ended within the success region.
        episodes: episodes that ended.
        unstable: episodes dropped because the physics diverged or found no room for contacts or constraints.
        overflowed: how many of them found no room.
    """

    env_steps: int = 0
    successes: int = 0
    episodes: int = 0
    unstable: int = 0
    overflowed: int = 0

    def over(self, ranks: Ranks) -> RolloutStatistics:
        """Return the sums over the ranks, which all call this together."""
        return RolloutStatistics(*ranks.gather(torch.tensor(astuple(self))).sum(0).tolist())


class Rollout:
    """Lets every world act, stores the rows, and resets what ends.

    Away from the CPU no step waits for the device: masks are applied whether or not a world is in them, and
    what happened is counted there and read once.

    Args:
        simulator, buffer: where the worlds are, and where their rows go.
        act: maps observations and goals to actions, (num_worlds, …) each.
        command: called before each step; may command other goals.
        capture: makes a call one that is recorded and replayed; None: steps are taken as they are.
    """

    def __init__(
        self,
        simulator: Simulator,
        buffer: TrajectoryBuffer,
        act: Callable[[Tensor, Tensor], Tensor],
        command: Callable[[], object] = lambda: None,
        capture: Callable[[Callable[[], None]], Callable[[], None]] | None = None,
    ) -> None:
        self._simulator, self._buffer, self._act, self._command = simulator, buffer, act, command
        # Successes, episodes that ended, unstable ones.
        self._counts = torch.zeros(3, dtype=torch.int64, device=buffer.device)
        self.step = self._step if capture is None else capture(self._step)
        """Takes one control step, within an unroll of the simulator."""

    def collect(self, steps: int) -> RolloutStatistics:
        """Take so many control steps with every world; return what happened."""
        simulator = self._simulator
        overflowed = simulator.overflow_count
        self._counts.zero_()
        with simulator.unroll(steps):
            for _ in range(steps):
                self.step()
        successes, episodes, unstable = self._counts.tolist()
        overflowed = simulator.overflow_count - overflowed
        return RolloutStatistics(steps * simulator.num_worlds, successes, episodes, unstable, overflowed)

    def _step(self) -> None:
        simulator, buffer = self._simulator, self._buffer
        self._command()
        tensor = partial(torch.as_tensor, device=buffer.device)
        observation = tensor(simulator.observation)
        action = self._act(observation, tensor(simulator.desired_goal))
        buffer.add(observation, action, tensor(simulator.achieved_goal))
        result = simulator.step(action)
        unstable = tensor(result.unstable)
        early = tensor(result.terminated) & ~unstable
        ended = early | (tensor(result.truncated) & ~unstable)
        self._counts += torch.stack([tensor(result.success).sum(), ended.sum(), unstable.sum()])
        over = ended | unstable
        if buffer.known_empty(over):
            return
        buffer.end_episodes(ended, tensor(simulator.observation), tensor(simulator.achieved_goal), early)
        buffer.drop_episodes(unstable)
        simulator.reset(over)


@dataclass
class TrainingProgress:
    """Counters and history of a run; everything here survives a restart.

    Attributes:
        unrolls, env_steps, updates: how far the run has come.
        unstable, overflowed: episodes dropped for their physics, and how many of them for want of room for
            contacts or constraints.
        target_hits: consecutive evaluations that met `target_success`.
        best_score: success, time at goal and minus the final distance of the best evaluation so far.
        evaluations_since_best: how many evaluations came after the best one.
        scores: the same of the finalists' evaluations, best first.
        finalists: their names in the checkpoint, in that order.
        lesson: how many distributions of the curriculum have been learned.
        evaluated: from which ``env_steps`` on evaluations draw from which ``distribution``.
        compared_with_random: whether the training has been compared with random actions.
        elapsed_s: seconds spent, over all restarts.
        history: one entry an evaluation.
        gradients: beside each entry, the norm of the last update's gradient in each block of each network.
    """

    unrolls: int = 0
    env_steps: int = 0
    updates: int = 0
    unstable: int = 0
    overflowed: int = 0
    target_hits: int = 0
    best_score: list[float] = field(default_factory=lambda: [-1.0])
    evaluations_since_best: int = 0
    scores: list[list[float]] = field(default_factory=list)
    finalists: list[str] = field(default_factory=list)
    lesson: int = 0
    evaluated: list[dict[str, Any]] = field(default_factory=list)
    compared_with_random: bool = False
    elapsed_s: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    gradients: list[dict[str, Any]] = field(default_factory=list)

    def forget_evaluations(self) -> None:
        """Forget what the evaluations so far have found, but for the history."""
        self.target_hits = self.evaluations_since_best = 0
        self.best_score, self.scores, self.finalists = [-1.0], [], []
        self.compared_with_random = False
