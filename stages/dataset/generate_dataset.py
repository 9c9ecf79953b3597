"""Generate a dataset: the teacher acts in closed loop; every state that it visits carries its Gaussian.

Episodes run in rounds, and each round becomes a shard of the dataset as soon as it has run. A round is seeded
by itself, so that a dataset is the same if it was interrupted and resumed, and for any number of ranks, which
take the rounds in turn: byte for byte as long as processor, device and `threads` are the same, for the order
in which a network sums depends on each. A resumed dataset keeps `threads` and the device that was asked for;
`threads` 0 is each rank's share of the CPUs, and so differs with their number.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic

from thousandfold.pipeline.artifact_task import keep_task, own_task, task_record
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.resume import find_parent, find_unfinished, resumable_stage, stored_settings
from thousandfold.pipeline.runtime import StageContext, StageWork, cpu_share, resolve_device, set_up_torch
from thousandfold.replay.dataset_layout import is_whole, shards_below
from thousandfold.replay.dataset_writer import remove_leftovers, write_shard
from thousandfold.stages.dataset.files import MINARI_FOLDER
from thousandfold.stages.dataset.labels import LabelSettings, require_strength
from thousandfold.stages.dataset.results import UNSTABLE, complete_dataset
from thousandfold.stages.dataset.rollout import EpisodeGroup, LabelledRollout, RolloutPlan, Round
from thousandfold.stages.networks import load_actor, load_critic
from thousandfold.stages.train_teacher.memory_estimate import require_rollout_memory

CHANGEABLE_ON_RESUME: tuple[str, ...] = ()
"""Nothing: on another device, or with other threads, the last bits of the labels would change under way."""


class GenerateDatasetSettings(LabelSettings):
    """Settings of `pipeline generate-dataset`.

    Noise takes the teacher off its own path, so that the dataset also shows how it comes back; clean episodes
    keep the states that it visits by itself, and say how often it succeeds.
    """

    episodes: int = pydantic.Field(
        default=1000, ge=1, le=10**7, description="episodes to record, over all ranks"
    )
    evaluation_fraction: float = pydantic.Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of episodes drawn as in evaluation; the rest as in training",
    )
    noise_levels: tuple[float, ...] = pydantic.Field(
        default=(0.0, 0.1, 0.2, 0.4),
        max_length=100,
        description="standard deviations of the Gaussian noise on the actions; each gets equally many "
        "episodes; 0: no noise",
    )
    noise_until: float = pydantic.Field(
        default=0.75, ge=0, le=1, description="share of an episode's steps after which the noise ends"
    )
    num_worlds: int = pydantic.Field(
        default=256,
        ge=1,
        le=2**16,
        description="episodes that run at a time in a process; a shard has no more",
    )

    @pydantic.field_validator("noise_levels", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        """Take `0,0.2` for two levels, and a number for one."""
        if isinstance(value, str):
            return [part.strip() for part in value.split(",")]
        return [value] if isinstance(value, int | float) else value

    @pydantic.field_validator("noise_levels")
    @classmethod
    def _are_levels(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if not levels or not all(0 <= level <= 2 for level in levels) or len(set(levels)) < len(levels):
            raise ValueError("must be different numbers from 0 to 2, one at least")
        return levels

    def plan(self) -> RolloutPlan:
        """Return which episodes to run."""
        return RolloutPlan(
            plan_groups(self),
            self.num_worlds,
            noise_until=self.noise_until,
            alternative_goals=self.alternative_goals,
            hindsight_fraction=self.hindsight_fraction,
            discount=self.hindsight_discount,
            teacher_samples=self.teacher_samples,
            sample_scale=self.sample_scale,
        )


def plan_groups(settings: GenerateDatasetSettings) -> list[EpisodeGroup]:
    """Return the groups of episodes that the settings ask for; together they have `settings.episodes`.

    A group is a distribution and a level of noise. The levels share a distribution's episodes evenly; the
    first ones take what is left over.
    """
    evaluation = round(settings.evaluation_fraction * settings.episodes)
    groups, levels = [], settings.noise_levels
    for distribution, count in (("evaluation", evaluation), ("training", settings.episodes - evaluation)):
        for number, noise in enumerate(levels):
            episodes = len(range(number, count, len(levels)))
            groups.append(EpisodeGroup(len(groups), distribution, noise, episodes))
    return [group for group in groups if group.episodes]


def run(
    settings: GenerateDatasetSettings,
    context: StageContext,
    teacher: Artifact,
    resumed: Artifact | None = None,
    on_start: Callable[[Artifact], None] = lambda _: None,
) -> Artifact:
    """Roll the teacher out and return the artifact of the Minari dataset.

    Args:
        settings: of the stage; those of `resumed` when it is given.
        context: workspace, console and tracking.
        teacher: the teacher to roll out and to label with.
        resumed: an unfinished dataset to go on with from its shards.
        on_start: told the artifact before the first episode.

    Raises:
        DamagedFileError: the teacher's files are damaged.
        NonFiniteError: the teacher's output is not finite.
        UserError: the physics diverged in every episode, or the critic's best of several actions, which
            the settings ask for, is weaker than the mean.
        StoppedByUser: after Ctrl-C, once the shard is written.
        LostRankError: another rank is gone; the shards are kept.
    """
    ranks = context.ranks
    set_up_torch(settings.threads, ranks.local_size)
    device = ranks.place(resolve_device(settings.device, context.console))
    rollout, trial = _prepare(settings, context, teacher, device, is_new=resumed is None)
    with (
        ranks.connect(device),
        resumable_stage(
            context,
            "dataset",
            "generate-dataset",
            task=teacher.manifest.task,
            settings=settings,
            parents={"teacher": teacher},
            resumed=resumed,
            place="",
            saves="The shards are",
            saved=_has_shards,
        ) as work,
        work.stoppable(),
    ):
        started = time.perf_counter()
        if ranks.leads:
            keep_task(rollout.task, work.artifact, context.console)
            work.note_device(device)
            on_start(work.artifact)
            remove_leftovers(work.artifact.file(MINARI_FOLDER))
            _announce(rollout, settings, teacher, resumed, context)
        ranks.barrier()
        _write_shards(rollout, settings, work, context, teacher)
        if work.stopping:
            raise work.stopped()
        ranks.disconnect()
        if not ranks.leads:
            return work.artifact
        elapsed_s = time.perf_counter() - started
        speed = {"elapsed_s": elapsed_s, "env_steps_per_s": rollout.tally.env_steps / elapsed_s}
        metadata = _metadata(settings, rollout, teacher, work)
        return complete_dataset(work, context, rollout.task, metadata, speed | trial, teacher)


def _prepare(
    settings: GenerateDatasetSettings, context: StageContext, teacher: Artifact, device: str, *, is_new: bool
) -> tuple[LabelledRollout, dict[str, Any]]:
    """Return the rollout, and what came of the trial of its labels where the settings ask for one.

    Every rank runs the whole trial, and comes to the same end, before any of them waits for another.
    """
    trained, critic, trial = load_actor(teacher), None, {}
    require_rollout_memory(
        trained.task,
        settings.num_worlds,
        settings.episodes,
        settings.alternative_goals,
        context.ranks.local_size,
    )
    if settings.teacher_samples > 1:
        critic = load_critic(teacher)
        if is_new:
            trial["label_trial"] = require_strength(trained, critic, settings, device, context.console)
    rollout = LabelledRollout(
        trained,
        settings.plan(),
        device=device,
        seed=settings.seed,
        critic=critic,
        num_threads=cpu_share(context.ranks.local_size),
    )
    return rollout, trial


def _announce(
    rollout: LabelledRollout,
    settings: GenerateDatasetSettings,
    teacher: Artifact,
    resumed: Artifact | None,
    context: StageContext,
) -> None:
    """Say what is made, or gone on with."""
    rounds = len(rollout.plan.rounds())
    if resumed is not None:
        done = len(shards_below(resumed.file(MINARI_FOLDER), rollout.task.name))
        context.console.say(f"Resuming {resumed.name}: {done} of {rounds} shards are there.")
    context.console.say(
        f"Dataset: {settings.episodes:,} episodes of teacher {teacher.name} on {rollout.task.name}, "
        f"{settings.alternative_goals} alternative goals a state, in {rounds} shards."
    )


def _write_shards(
    rollout: LabelledRollout,
    settings: GenerateDatasetSettings,
    work: StageWork,
    context: StageContext,
    teacher: Artifact,
) -> None:
    """Run this rank's rounds, but for those whose shards are there, and write a shard after each."""
    root, task, ranks = work.artifact.file(MINARI_FOLDER), rollout.task, context.ranks
    own = rollout.plan.rounds()[ranks.rank :: ranks.size]
    most_steps = sum(each.episodes for each in own) * task.spec.episode_steps
    metadata = _metadata(settings, rollout, teacher, work)
    with context.console.progress("generate-dataset", most_steps) as bar:
        present = shards_below(root, task.name)
        skipped = 0
        for each in own:
            if context.stop.requested:
                return
            if _is_there(present.get(each.index)):
                skipped += each.episodes * task.spec.episode_steps
                continue
            _write_shard(
                rollout, each, root, metadata, own_task(work.artifact),
                lambda skipped=skipped: bar.update(min(skipped + rollout.tally.env_steps, most_steps)),
            )  # fmt: skip
        bar.update(most_steps)


def _is_there(shard: Path | None) -> bool:
    """Tell whether a whole shard lies in a folder; remove a damaged one."""
    if shard is None:
        return False
    if not is_whole(shard):
        shutil.rmtree(shard.parent)
        return False
    return True


def _write_shard(
    rollout: LabelledRollout,
    each: Round,
    root: Path,
    metadata: dict[str, Any],
    task_file: str | None,
    on_step: Callable[[], None],
) -> None:
    """Run a round and write its shard; a round whose every episode diverged leaves none."""
    before = rollout.tally.unstable
    episodes = rollout.run_round(each, on_step)
    facts = {"distribution": each.group.distribution, UNSTABLE: rollout.tally.unstable - before}
    if episodes:
        write_shard(root, rollout.task, each.index, episodes, metadata | facts, task_file)


def _metadata(
    settings: GenerateDatasetSettings, rollout: LabelledRollout, teacher: Artifact, work: StageWork
) -> dict[str, Any]:
    return {
        "task": rollout.task.name,
        **task_record(work.artifact),
        "control_dt_s": rollout.task.spec.control_dt_s,
        "teacher": {"name": teacher.name, "hash": teacher.manifest.hash},
        "noise_levels": list(settings.noise_levels),
        "noise_until": settings.noise_until,
        "evaluation_fraction": settings.evaluation_fraction,
        **settings.label_facts(),
        "versions": work.artifact.manifest.versions,
    }


def _has_shards(dataset: Artifact) -> bool:
    """Return whether a dataset has anything to go on from."""
    return bool(shards_below(dataset.file(MINARI_FOLDER), dataset.manifest.task))


def find_resumable(
    workspace: Workspace, reference: str | None, teacher: str | None = None
) -> tuple[GenerateDatasetSettings, Artifact, Artifact]:
    """Return the settings of the unfinished dataset to resume, the dataset, and its teacher.

    Args:
        workspace: where to look.
        reference: its name or path; None: the newest unfinished one.
        teacher: name or path of its own, where the workspace does not have it.

    Raises:
        SettingsError: there is none, or the one named is finished or was not made by `generate-dataset`.
        MissingArtifactError: its teacher is gone.
        DamagedFileError: its manifest is damaged, or that of one that may be the newest, or holds settings
            that this version does not read, or its teacher changed.
    """
    dataset = find_unfinished(
        workspace,
        "dataset",
        reference,
        saved=lambda each: reference is not None or _has_shards(each),
        counts=lambda each: "noise_levels" in each.manifest.settings,  # no import, no merge
        trace=MINARI_FOLDER,
    )
    settings = stored_settings(dataset, GenerateDatasetSettings)
    return settings, dataset, find_parent(dataset, "teacher", workspace, teacher)
