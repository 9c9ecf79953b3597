"""How much memory a teacher's training takes, worked out before anything of it is allocated."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import mujoco
import torch

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.ground.errors import SettingsError
from thousandfold.models.block_stack import LAYERS_PER_BLOCK
from thousandfold.models.compiled_info_nce import info_nce_kernels
from thousandfold.models.compiled_norm_swish import is_compiled, is_fused
from thousandfold.models.contrastive_critic import EMBEDDING_DIM
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.stages.distill.settings import DistillSettings
from thousandfold.stages.networks import TrainedActor
from thousandfold.stages.train_teacher.settings import DEPTHS, LearnerSettings, TrainTeacherSettings

# Interpreter, libraries and the pool of a simulator: what a training of the smallest network takes.
_PROCESS_BYTES = 700 * 2**20
_FLOAT = 4
_ROW_COUNTERS = 2 * 4  # of a row of the replay: its episode, and a place in the table of last rows
_LEARNT_COPIES = 4  # weights, gradient and two moments
_STATE_COPIES = 3  # a checkpoint's of weights and moments
# Bytes of InfoNCE for each pair of a batch, measured: at the peak, and what the other side of ``symmetric``
# keeps meanwhile. torch works distances out in float64.
_PAIR_BYTES = {"norm": (26, 8), "squared": (30, 16), "dot": (16, 8), "cosine": (17, 8)}
_COMPILED_PAIR_BYTES = 5, 4
# Weights, gradient, two moments, average, the kept best and a checkpoint's copies of a student; a dataset as
# it is read, joined, and split in training and validation.
_STUDENT_COPIES, _DATASET_COPIES = 8, 3
_ROLLOUT_COPIES = 2  # what worlds write, and what is cut into episodes
_WORLD_FIELDS = 40  # numbers of a body that terms may read, in and out of MuJoCo


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a training takes at its peak.

    Attributes:
        parameters: networks, their gradients, optimiser moments and copies.
        activations: what a forward pass leaves for the backward pass, and what that allocates.
        replay: the replay memory.
        logits: the energies of every state and action with every goal of a batch.
        worlds: states and readings of the simulated worlds.
    """

    parameters: int
    activations: int
    replay: int
    logits: int = 0
    worlds: int = 0

    @property
    def total(self) -> int:
        """All of it, the process itself included."""
        parts = (self.parameters, self.activations, self.replay, self.logits, self.worlds)
        return sum(parts) + _PROCESS_BYTES


def parameter_estimate(inputs: int, outputs: int, shape: NetworkShape) -> int:
    """Return how many numbers a network learns: stem, blocks, final LayerNorm and head."""
    width, beside = shape.width, 1 + 2 * shape.layer_norm
    layers = shape.depth if shape.kind == "residual" else shape.depth - 1  # after the stem
    stem, body = (inputs + beside) * width, layers * (width + beside) * width
    gains = shape.num_blocks if shape.residual_scale == "learned_from_zero" else 0
    return stem + body + gains + 2 * width * shape.final_norm + (width + 1) * outputs


def critic_estimate(task: CompiledTask, settings: LearnerSettings) -> int:
    """Return how many numbers a critic learns: two encoders, or two value networks."""
    observation, goal, action = task.observation_dim, task.goal_dim, task.action_dim
    shape = settings.critic_shape
    if settings.critic == "temporal_difference":
        return 2 * parameter_estimate(observation + action + goal, 1, shape)
    encoders = ((observation + action, EMBEDDING_DIM), (goal, EMBEDDING_DIM))
    own = EMBEDDING_DIM * settings.learns_lost_futures
    return own + sum(parameter_estimate(inputs, outputs, shape) for inputs, outputs in encoders)


def activation_estimate(settings: LearnerSettings, device: str) -> int:
    """Return the bytes of an update's activations: the actor's, and the critic's over both actions."""
    actor, critic = settings.actor_shape, settings.critic_shape
    of_critic = ((1, critic), (2, critic)) if settings.critic == "contrastive" else ((2, critic), (2, critic))
    passes = ((1, actor), *of_critic)
    if not settings.checkpoint_activations:
        return sum(_activations(rows, shape, settings, device) for rows, shape in passes)
    starts, segments = 0, []
    for rows, shape in passes:
        segment = math.isqrt(shape.num_blocks - 1) + 1
        stream = rows * settings.batch_size * shape.width * _FLOAT
        starts += math.ceil(shape.num_blocks / segment) * stream
        segments.append(segment * _activations(rows, shape, settings, device) // shape.num_blocks)
    return starts + max(segments)  # of one network at a time


def _activations(batches: int, shape: NetworkShape, settings: LearnerSettings, device: str) -> int:
    """Return the bytes that so many batches leave in the layers after the stem, all of them kept."""
    rows, width, rounded = batches * settings.batch_size, shape.width, settings.precision == "bfloat16"
    dtype = torch.bfloat16 if rounded else torch.float32
    matrix, stream = rows * width * dtype.itemsize, rows * width * _FLOAT
    # A layer's input, what stands before its LayerNorm and, with torch's kernels, after it; two statistics.
    where = torch.device(device), dtype, width
    fused = shape.is_stacked and is_fused(*where)
    compiled = fused or (shape.is_stacked and is_compiled(*where))
    layer = (2 if compiled else 2 + shape.layer_norm) * matrix + shape.layer_norm * rows * 2 * _FLOAT
    # The stream is the first layer's input where it is not rounded; a learned gain wants its branch. Fused
    # kernels need neither.
    beside = 0 if fused else stream * rounded + matrix * (shape.residual_scale == "learned_from_zero")
    layers = shape.depth if shape.kind == "residual" else shape.depth - 1
    return layers * layer + shape.num_blocks * beside


def logits_estimate(settings: LearnerSettings, device: str, ranks: int = 1) -> int:
    """Return the bytes of InfoNCE at its peak, which grow as the square of a rank's batch."""
    if settings.critic != "contrastive":
        return 0
    rows = math.ceil(settings.batch_size / ranks)
    pairs = rows * (settings.batch_size if settings.global_negatives else rows)
    kernels = info_nce_kernels(torch.device(device), torch.float32, EMBEDDING_DIM)
    compiled = settings.energy == "norm" and kernels is not None
    most, kept = _COMPILED_PAIR_BYTES if compiled else _PAIR_BYTES[settings.energy]
    more = (settings.info_nce == "symmetric") + (
        settings.learns_lost_futures and settings.early_end_weight > 0
    )
    return (most + kept * more) * pairs


def estimate_memory(
    task: CompiledTask, settings: TrainTeacherSettings, device: str, ranks: int = 1
) -> MemoryEstimate:
    """Return what one process of a training takes.

    Args:
        task: gives the sizes of the spaces.
        settings: of the stage.
        device: ``cpu`` or ``cuda``.
        ranks: processes that share worlds and batch.
    """
    observation, goal, action = task.observation_dim, task.goal_dim, task.action_dim
    actor = parameter_estimate(observation + goal, 2 * action, settings.actor_shape)
    critic = critic_estimate(task, settings)
    rounded = 2 * (actor + critic) if settings.precision == "bfloat16" else 0
    followers = actor * bool(settings.average_decay) + critic * (settings.critic == "temporal_difference")
    parameters = _FLOAT * (_LEARNT_COPIES * (actor + critic) + followers) + rounded
    if device == "cpu":  # where the copies lie: of the state, of finalists that are written, and of others
        copies = _STATE_COPIES + 2 * settings.finalists
        parameters += _FLOAT * (copies * (actor + critic) + followers)
    rows = settings.num_worlds * settings.replay_rows_per_world
    replay = rows * (_FLOAT * (observation + goal + action) + _ROW_COUNTERS)
    state = 2 * mujoco.mj_stateSize(task.model, mujoco.mjtState.mjSTATE_INTEGRATION)
    worlds = 8 * settings.num_worlds * (state + _WORLD_FIELDS * task.model.nbody)
    # Once activations are gone, gradients lie twice until they are copied to where they stay.
    gradients = _FLOAT * (actor + critic)
    return MemoryEstimate(
        parameters,
        max(activation_estimate(settings, device) // ranks, gradients),
        replay // ranks,
        logits_estimate(settings, device, ranks),
        worlds // ranks,
    )


def require_memory(
    task: CompiledTask, settings: TrainTeacherSettings, device: str, processes: int = 1, ranks: int = 1
) -> None:
    """Refuse a training that the free memory cannot hold.

    Args:
        task, settings: what is to be trained.
        device: ``cpu``, ``cuda`` or, of several ranks, this one's own ``cuda:<index>``.
        processes: ranks on this machine that share its memory; on CUDA each has its own device.
        ranks: all ranks.

    Raises:
        SettingsError: what is needed, what is free, and what would fit.
    """
    free = free_bytes(device) // (processes if device == "cpu" else 1)
    needed = estimate_memory(task, settings, device, ranks)
    if needed.total <= free:
        return
    fits = [f"depth {depth}"] if (depth := _deepest(task, settings, free, device, ranks)) else []
    if batch := _largest_batch(task, settings, free, device, ranks):
        fits.append(f"batch_size {batch}")
    thrifty = settings.model_copy(update={"checkpoint_activations": True})
    if not settings.checkpoint_activations and (depth := _deepest(task, thrifty, free, device, ranks)):
        fits.append(f"depth {depth} with checkpoint_activations=true")
    advice = f"What would fit: {', or '.join(fits)}." if fits else f"Lower {_largest_part(needed)}."
    raise SettingsError(
        f"Depth {settings.deepest} at width {settings.width} and batch_size {settings.batch_size} needs "
        f"about {_gib(needed.total)} (networks and optimisers {_gib(needed.parameters)}, activations "
        f"{_gib(needed.activations)}, pairs of the batch {_gib(needed.logits)}, replay "
        f"{_gib(needed.replay)}, environments {_gib(needed.worlds)}); {_gib(free)} are free. {advice}"
    )


def _deepest(task: CompiledTask, settings: TrainTeacherSettings, free: int, device: str, ranks: int) -> int:
    """Return the largest depth up to the one asked for that fits, or 0."""
    low, high = 0, settings.deepest // LAYERS_PER_BLOCK
    while low < high:
        middle = (low + high + 1) // 2
        depth = middle * LAYERS_PER_BLOCK
        own = {name: min(getattr(settings, name) or settings.depth, depth) for name in DEPTHS}
        shallower = settings.model_copy(update=own)
        if estimate_memory(task, shallower, device, ranks).total <= free:
            low = middle
        else:
            high = middle - 1
    return low * LAYERS_PER_BLOCK


def student_bytes(settings: DistillSettings, teacher: TrainedActor, dataset: Artifact) -> int:
    """Return what the distillation of a student takes at its peak, the process itself included."""
    width, depth = settings.student_width, settings.student_depth
    inputs = teacher.task.student_view.observation_dim + teacher.task.goal_dim
    parameters = (inputs + (depth + 1) * (width + 3) + 2 * teacher.task.action_dim) * width
    # What autograd keeps of a layer is as of the teacher's; the critic's two encoders are differentiated too.
    layers = depth * width
    if settings.objective == "critic":
        layers += 2 * teacher.critic_shape.depth * teacher.critic_shape.width
    rows = sum(path.stat().st_size for path in dataset.path.rglob("*.hdf5") if path.is_file())
    if episodes := dataset.manifest.results.get(
        "episodes"
    ):  # a round's episodes are as long as the dataset's
        rows = rows * (episodes + settings.rounds * settings.dagger_episodes) // episodes
    activations = 3 * _FLOAT * settings.batch_size * layers
    return _PROCESS_BYTES + _FLOAT * _STUDENT_COPIES * parameters + activations + _DATASET_COPIES * rows


def require_student_memory(
    settings: DistillSettings, teacher: TrainedActor, dataset: Artifact, device: str
) -> None:
    """Refuse a distillation that the free memory cannot hold.

    Raises:
        SettingsError: what is needed, what is free, and what to lower.
    """
    free, needed = free_bytes(device), student_bytes(settings, teacher, dataset)
    if needed <= free:
        return
    batch = settings.batch_size // 2
    while batch and student_bytes(settings.model_copy(update={"batch_size": batch}), teacher, dataset) > free:
        batch //= 2
    advice = (
        f"What would fit: batch_size {batch}." if batch else "Lower student_width, or take fewer episodes."
    )
    raise SettingsError(
        f"A student of depth {settings.student_depth} and width {settings.student_width} with batch_size "
        f"{settings.batch_size} on dataset {dataset.name} needs about {_gib(needed)}; {_gib(free)} are free. "
        f"{advice}"
    )


def require_rollout_memory(
    task: CompiledTask, num_worlds: int, episodes: int, alternative_goals: int, processes: int = 1
) -> None:
    """Refuse a dataset of which one round of episodes does not fit into the free memory.

    Args:
        task: the teacher's.
        num_worlds, episodes: how many run at a time, and in all.
        alternative_goals: beside the commanded one, each with a label.
        processes: ranks on this machine.

    Raises:
        SettingsError: what is needed, what is free, and how many worlds would fit.
    """
    labels = 1 + alternative_goals
    seen = task.observation_dim
    if task.student_view is not task:
        seen += task.student_view.observation_dim
    row = seen + (1 + labels) * task.goal_dim + (1 + 2 * labels) * task.action_dim
    episode = _FLOAT * _ROLLOUT_COPIES * row * task.spec.episode_steps
    free = free_bytes("cpu") // processes - _PROCESS_BYTES
    worlds = min(num_worlds, episodes)
    if worlds * episode > free:
        fits = f"num_worlds {free // episode}" if free >= episode else "fewer steps in an episode"
        raise SettingsError(
            f"A round of {worlds:,} episodes of {task.spec.episode_steps:,} steps needs about "
            f"{_gib(worlds * episode)}; {_gib(max(free, 0))} are free. What would fit: {fits}."
        )


def _largest_batch(
    task: CompiledTask, settings: TrainTeacherSettings, free: int, device: str, ranks: int
) -> int:
    """Return the largest power of two below the batch that fits, or 0; batches below 64 are no advice."""
    batch = 2 ** (settings.batch_size - 1).bit_length() // 2
    while batch >= 64:
        smaller = settings.model_copy(update={"batch_size": batch})
        if batch % ranks == 0 and estimate_memory(task, smaller, device, ranks).total <= free:
            return batch
        batch //= 2
    return 0


def _largest_part(needed: MemoryEstimate) -> str:
    """Return the settings that decide the largest part of what is needed."""
    levers = {
        "parameters": "width or depth",
        "activations": "batch_size, width or depth",
        "logits": "batch_size",
        "replay": "replay_rows_per_world or num_worlds",
        "worlds": "num_worlds",
    }
    return levers[max(levers, key=lambda part: getattr(needed, part))]


def free_bytes(
    device: str, meminfo: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")
) -> int:
    """Return the free memory of the training device: CUDA's, or the machine's within this process's limit.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:<index>``.
        meminfo, group: where Linux tells the machine's memory and the process's share of it.
    """
    if device != "cpu":
        return torch.cuda.mem_get_info(device)[0]
    if not meminfo.exists():  # not Linux: what of all memory is free is not said
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit = group / "memory.max"
    if limit.exists() and (text := limit.read_text(encoding="utf-8").strip()) != "max":
        # Files that were read or written lately are counted as used, and give way when memory is wanted.
        counts = dict(
            line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines()
        )
        used = int((group / "memory.current").read_text(encoding="utf-8")) - int(counts["inactive_file"])
        free = min(free, int(text) - used)
    return free


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
