"""Trained networks on disk: one safetensors file whose header says how to rebuild them.

Tensors: ``actor.*`` (the actor), ``critic.*`` (a teacher's critic), ``observation_normalizer.*`` and
``goal_normalizer.*`` (of what both are given). Header: kind, task, sizes of the spaces, networks' shapes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from thousandfold.envs.checks.goal_reach import GoalReach
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.model_hash import model_sha256
from thousandfold.ground.errors import BAD_CONTENT, DamagedFileError, SettingsError
from thousandfold.models.contrastive_critic import ContrastiveCritic, Energy, paired_energy
from thousandfold.models.deployable_policy import (
    DeployablePolicy,
    Dither,
    InputLimits,
    ModeratedControl,
    NormalizedActor,
    Normalizer,
)
from thousandfold.models.goal_actor import Gaussian, GoalActor
from thousandfold.models.residual_mlp import NetworkShape
from thousandfold.models.tensor_state import strip_prefix
from thousandfold.pipeline.artifact_task import load_task
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.checkpoint import load_tensors, save_tensors
from thousandfold.pipeline.runtime import torch_seed
from thousandfold.stages.captured_call import CudaRecorder, captured_by_rows
from thousandfold.stages.episodes import Policy

NETWORK_FILE = "network.safetensors"
CriticGoals = Literal["absolute", "relative", "auto"]


def goals_are_relative(critic_goals: CriticGoals, task: CompiledTask) -> bool:
    """Tell whether a critic is given how goals differ from what a state achieves, and not goals.

    A training settles what `auto` stands for (`settled_critic_goals`). A record of `auto` is an earlier
    teacher's, for which it was relative except in mazes.
    """
    return critic_goals == "relative" or (critic_goals == "auto" and task.spec.maze is None)


def settled_critic_goals(critic_goals: CriticGoals, task: CompiledTask) -> CriticGoals:
    """Return what a new teacher's critic is given of goals.

    `auto` is absolute in mazes where nothing but actuated joints, or joints of a bounded range, decides on
    success, and relative elsewhere (docs/algorithm.md).
    """
    if critic_goals != "auto":
        return critic_goals
    return "absolute" if task.spec.maze is not None and GoalReach(task).is_driven else "relative"


@dataclass(frozen=True)
class TrainedActor:
    """An actor read back, ready to act.

    Attributes:
        actor: in evaluation mode, on the CPU unless moved.
        task: the compiled task that it was trained for, of a student as students see it.
        shape: size and form of the network.
        metadata: the whole header.
    """

    actor: NormalizedActor
    task: CompiledTask
    shape: NetworkShape
    metadata: dict[str, Any]

    @property
    def critic_shape(self) -> NetworkShape:
        """Size and form of the encoders of a teacher's critic."""
        return NetworkShape(**_critic_shape(self.metadata))

    @property
    def on_another_model(self) -> bool:
        """Whether the model of the task is no longer the one that the network was trained on."""
        return self.metadata["model_sha256"] != model_sha256(self.task.model)

    def deployable(self, limits: InputLimits) -> DeployablePolicy:
        """Return the policy with input limits, tanh and actuator range, as it is exported.

        Limits of what was sent last are widened to what can be sent. Those of clocks are −1 and 1.
        """
        control, limits = self.task.control, InputLimits(*(limit.clone() for limit in limits))
        low, high = torch.from_numpy(control.low), torch.from_numpy(control.high)
        columns = None if control.is_plain else torch.from_numpy(control.columns)
        switched = torch.from_numpy(control.switched) if control.switched.any() else None
        moderated = None
        if control.is_moderated:
            names = [name for name in ModeratedControl._fields if name not in ("last", "clocks")]
            parts = {name: torch.from_numpy(getattr(control, name)) for name in names}
            last = torch.tensor(self.task.last_controls())
            clocks = torch.tensor(self.task.swing_clocks(), dtype=torch.int64)
            limits.observation_low[clocks], limits.observation_high[clocks] = -1.0, 1.0
            moderated = ModeratedControl(**parts, last=last, clocks=clocks)
            # A policy may be checked on a small part of what an actuator can be sent, and must know the rest.
            told = last[moderated.stateful]
            for limit, ends, widest in (
                (limits.observation_low, control.least, torch.minimum),
                (limits.observation_high, control.most, torch.maximum),
            ):
                limit[told] = widest(limit[told], torch.from_numpy(ends)[moderated.stateful])
        return DeployablePolicy(self.actor, limits, low, high, columns, switched, moderated).eval()


def save_network(
    path: Path,
    tensors: dict[str, Tensor],
    *,
    kind: str,
    task: CompiledTask,
    shape: NetworkShape,
    critic_shape: NetworkShape | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write a network file.

    Args:
        path: where to write it.
        tensors: as in the module's docstring.
        kind: ``teacher`` or ``student``.
        task: the task it was trained for.
        shape: size and form of the actor.
        critic_shape: those of a critic's encoders.
        extra: more JSON-able facts for the header.
    """
    header = {
        "kind": kind,
        "task": task.name,
        "model_sha256": model_sha256(task.model),
        "observation_dim": task.observation_dim,
        "goal_dim": task.goal_dim,
        "action_dim": task.action_dim,
        "shape": asdict(shape),
    }
    if (extra or {}).get("dither"):
        header["clock_columns"] = task.clock_columns()
    if critic_shape is not None:
        header["critic_shape"] = asdict(critic_shape)
    save_tensors(path, tensors, header | (extra or {}))


def load_actor(artifact: Artifact) -> TrainedActor:
    """Return the actor of a teacher or student artifact.

    Raises:
        DamagedFileError: the file is truncated, foreign, of another task, or changed since it was recorded.
    """
    path = artifact.file(NETWORK_FILE)
    artifact.verify()
    tensors, header = load_tensors(path)
    try:
        if header["kind"] != artifact.kind or header["task"] != artifact.manifest.task:
            raise DamagedFileError(
                f"{path} holds a {header['kind']} of task {header['task']!r}, "
                f"not a {artifact.kind} of {artifact.manifest.task!r}."
            )
        task = load_task(artifact)
        if artifact.kind == "student":
            task = task.student_view
        dims = header["observation_dim"], header["goal_dim"], header["action_dim"]
        if dims != (task.observation_dim, task.goal_dim, task.action_dim):
            raise DamagedFileError(
                f"{path} was trained for another version of task {task.name!r}: sizes differ."
            )
        if not isinstance(header["model_sha256"], str):
            raise DamagedFileError(f"{path} does not say which model it was trained on.")
        clock = task.clock_columns() if header.get("dither") else []
        actor, shape = _rebuilt(path, tensors, header, clock)
    except BAD_CONTENT as error:
        raise _foreign(path, error) from error
    return TrainedActor(actor, task, shape, header)


def read_actor(path: Path) -> NormalizedActor:
    """Return the actor of a network file that stands alone, in evaluation mode on the CPU.

    Raises:
        DamagedFileError: the file is truncated or foreign.
    """
    tensors, header = load_tensors(path)
    try:
        return _rebuilt(path, tensors, header, header.get("clock_columns", []))[0]
    except BAD_CONTENT as error:
        raise _foreign(path, error) from error


def _rebuilt(
    path: Path, tensors: dict[str, Tensor], header: dict[str, Any], clock: list[int]
) -> tuple[NormalizedActor, NetworkShape]:
    """Return the actor that a network file's header describes, with its weights, and its shape."""
    dims = header["observation_dim"], header["goal_dim"], header["action_dim"]
    shape = shape_of(path, header["shape"], tensors)
    shape_of(path, _critic_shape(header), tensors)
    share = float(header.get("dither", 0))
    dither = Dither(share, clock, dims[2]) if share else None
    actor = NormalizedActor.around(GoalActor(*dims, shape), dims[0], dims[1], dither)
    own = {name: value for name, value in tensors.items() if not name.startswith("critic.")}
    missing, unexpected = actor.load_state_dict(own, strict=False)
    # A teacher may have been trained without normalisers: they stay the identity.
    missing = [name for name in missing if header["kind"] == "student" or name.startswith("actor.")]
    if unexpected or missing:
        raise DamagedFileError(f"{path} does not hold the network that its header describes.")
    return actor.eval(), shape


def _foreign(path: Path, error: Exception) -> DamagedFileError:
    reason = " ".join(str(error).split())[:200]
    return DamagedFileError(f"{path} is no network file of this version ({reason}).")


def shape_of(path: Path, claimed: dict[str, Any], tensors: dict[str, Tensor]) -> NetworkShape:
    """Return a shape that a network file's header claims: it is allocated next.

    Raises:
        TypeError, ValueError: it is none.
        DamagedFileError: it is that of a larger network than the file holds.
    """
    shape = NetworkShape(**claimed)
    numbers = sum(tensor.numel() for tensor in tensors.values())
    if not shape.width + (shape.depth - 1) * shape.width**2 <= numbers:
        raise DamagedFileError(f"{path} does not hold the network that its header describes.")
    return shape


def _critic_shape(header: dict[str, Any]) -> dict[str, Any]:
    """Return what a header says of a critic's encoders; earlier versions made all networks alike."""
    return header.get("critic_shape", header["shape"])


def torch_policy(actor: torch.nn.Module, device: str = "cpu", capture: bool = True) -> Policy:
    """Return the policy tanh(mean) of a module that maps observation and goal to a Gaussian.

    Args:
        actor: the module, on the device.
        device: where it acts.
        capture: let it act as a CUDA graph where the device is CUDA.
    """

    @torch.no_grad()
    def act(observation: Tensor, goal: Tensor) -> Tensor:
        return torch.tanh(actor(observation, goal).mean)

    call = captured_by_rows(act, CudaRecorder(device)) if capture and device.startswith("cuda") else act

    def policy(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        inputs = (torch.as_tensor(array, device=device) for array in (observation, goal))
        return call(*inputs).cpu().numpy()

    return policy


# -- A teacher's critic, read back: how near it holds a state and an action to lie to a goal -------


@dataclass(frozen=True)
class TeacherCritic:
    """A critic in evaluation mode, on the CPU unless moved.

    Attributes:
        critic: both encoders, as they were when the teacher's actor was kept.
        energy: how the distance of their outputs is measured.
        observation_normalizer, goal_normalizer: of what the encoders are given.
        achieved: which numbers of an observation are what its state achieves, of a critic that is given how
            goals differ from that; None for one that is given goals.
    """

    critic: ContrastiveCritic
    energy: Energy
    observation_normalizer: torch.nn.Module = field(default_factory=torch.nn.Identity)
    goal_normalizer: torch.nn.Module = field(default_factory=torch.nn.Identity)
    achieved: list[int] | None = None

    def to(self, device: str) -> TeacherCritic:
        """Return it on a device, where its networks are moved."""
        for module in (self.critic, self.observation_normalizer, self.goal_normalizer):
            module.to(device)
        return self

    def __call__(self, observation: Tensor, action: Tensor, goal: Tensor) -> Tensor:
        """Return the energy f(s, a, g) of each row, (batch,), larger where the goal is nearer.

        Args:
            observation: (batch, observation_dim), not normalised.
            action: (batch, action_dim) in [−1, 1].
            goal: (batch, goal_dim), not normalised.
        """
        state_action = self.critic.encode_state_action(self.observation_normalizer(observation), action)
        return paired_energy(state_action, self.encode_goal(observation, goal), self.energy)

    def encode_goal(self, observation: Tensor, goal: Tensor) -> Tensor:
        """Return ψ of each row's goal, (batch, 64). Arguments as above."""
        if self.achieved is None:
            return self.critic.encode_goal(self.goal_normalizer(goal))
        assert isinstance(self.goal_normalizer, Normalizer)
        return self.critic.encode_goal(self.goal_normalizer.difference(goal, observation[:, self.achieved]))


def load_critic(teacher: Artifact) -> TeacherCritic:
    """Return the critic of a teacher's artifact; its parameters take no gradient.

    Raises:
        DamagedFileError: the file is truncated, foreign, or holds no critic.
        SettingsError: its critic is one of temporal differences, or is given how goals differ from what a
            state achieves, and the task's observation does not hold that.
    """
    path = teacher.file(NETWORK_FILE)
    tensors, header = load_tensors(path)
    if teacher.manifest.settings.get("critic", "contrastive") != "contrastive":
        raise SettingsError(
            f"{teacher.name} has a critic of temporal differences, but only a contrastive critic can choose "
            "or judge actions: set teacher_samples=1, and an objective other than critic."
        )
    achieved = None
    task = load_task(teacher)
    if goals_are_relative(teacher.manifest.settings.get("critic_goals", "absolute"), task):
        achieved = task.achieved_in_observation()
        if achieved is None:
            raise SettingsError(
                f"The critic of {teacher.name} needs to know what the state achieves, which the observation "
                f"of {teacher.manifest.task} does not contain: set teacher_samples=1 and "
                "an objective other than critic, or train another teacher with critic_goals=absolute."
            )
    try:
        dims = header["observation_dim"], header["goal_dim"], header["action_dim"]
        critic = ContrastiveCritic(*dims, shape_of(path, _critic_shape(header), tensors))
        # What it was taught of reaching no goal is of no use to whoever has one.
        critic.load_state_dict({k: v for k, v in strip_prefix(tensors, "critic.").items() if k != "no_goal"})
        normalizers = Normalizer(dims[0]), Normalizer(dims[1])
        for normalizer, name in zip(
            normalizers, ("observation_normalizer.", "goal_normalizer."), strict=True
        ):
            if own := strip_prefix(tensors, name):
                normalizer.load_state_dict(own)
        energy = teacher.manifest.settings["energy"]
        if energy not in get_args(Energy):
            raise ValueError(f"unknown energy {energy!r}")
    except BAD_CONTENT as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedFileError(f"{path} holds no critic of this version ({reason}).") from error
    return TeacherCritic(critic.eval().requires_grad_(False), energy, *normalizers, achieved)


# -- The best of several actions: sampled from a teacher's Gaussian, chosen by its critic ----------

_SAMPLE_STREAM = 42


@torch.no_grad()
def best_mean(
    gaussian: Gaussian,
    observation: Tensor,
    goal: Tensor,
    critic: TeacherCritic,
    samples: int,
    generator: torch.Generator,
    scale: float = 1.0,
) -> Tensor:
    """Return the critic's best action before the tanh, (batch, action_dim).

    It chooses from the mean and `samples` − 1 draws, so that with one sample the mean is left.

    Args:
        gaussian: of the teacher, (batch, action_dim) each.
        observation: (batch, observation_dim).
        goal: (batch, goal_dim).
        critic: on the device of the others.
        samples: how many actions to choose from, at least 1.
        generator: of the draws, on the same device.
        scale: times the teacher's standard deviation is that of the draws.
    """
    mean, std = gaussian.mean, scale * gaussian.log_std.exp()
    shape = (samples - 1, *mean.shape)
    noise = torch.randn(shape, generator=generator, device=mean.device, dtype=mean.dtype)
    candidates = torch.cat([mean[None], mean + std * noise])
    state, target = critic.observation_normalizer(observation), critic.encode_goal(observation, goal)
    energies = [
        paired_energy(critic.critic.encode_state_action(state, actions), target, critic.energy)
        for actions in candidates.tanh()
    ]
    best = torch.stack(energies).argmax(0)
    return candidates[best, torch.arange(len(mean), device=mean.device)]


def best_action_policy(
    trained: TrainedActor,
    critic: TeacherCritic,
    samples: int,
    seed: int,
    device: str = "cpu",
    scale: float = 1.0,
) -> Policy:
    """Return the policy that takes the critic's best of `samples` actions, the mean among them.

    Args:
        trained: the teacher.
        critic: the teacher's critic.
        samples: how many actions it chooses from, at least 1.
        seed: of the draws.
        device: where both networks run.
        scale: as of `best_mean`.
    """
    actor = trained.actor.to(device)
    critic.to(device)
    generator = torch.Generator(device).manual_seed(torch_seed(seed, _SAMPLE_STREAM))

    @torch.no_grad()
    def policy(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        state, target = (torch.as_tensor(array, device=device) for array in (observation, goal))
        gaussian = actor(state, target)
        best = best_mean(gaussian, state, target, critic, samples, generator, scale)
        return best.tanh().cpu().numpy()

    return policy
