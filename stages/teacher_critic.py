"""A teacher's critic, read back: how near it holds a state and an action to lie to a goal."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from thousandfold.models.contrastive_critic import ContrastiveCritic, Energy, paired_energy
from thousandfold.models.tensor_state import strip_prefix
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.pipeline.checkpoint import load_tensors
from thousandfold.pipeline.errors import DamagedFileError
from thousandfold.stages.networks import NETWORK_FILE, shape_of
from thousandfold.stages.train_teacher.learner import LearnerSettings


@dataclass(frozen=True)
class TeacherCritic:
    """A critic in evaluation mode, on the CPU unless moved.

    Attributes:
        critic: both encoders, as they were when the teacher's actor was kept.
        energy: how the distance of their outputs is measured.
    """

    critic: ContrastiveCritic
    energy: Energy

    def __call__(self, observation: Tensor, action: Tensor, goal: Tensor) -> Tensor:
        """Return the energy f(s, a, g) of each row, (batch,), larger where the goal is nearer.

        Args:
            observation: (batch, observation_dim), not normalised.
            action: (batch, action_dim) in [−1, 1].
            goal: (batch, goal_dim), not normalised.
        """
        state_action = self.critic.encode_state_action(observation, action)
        return paired_energy(state_action, self.critic.encode_goal(goal), self.energy)


def load_critic(teacher: Artifact) -> TeacherCritic:
    """Return the critic of a teacher's artifact; its parameters take no gradient.

    Raises:
        DamagedFileError: the file is truncated, foreign, or holds no critic.
    """
    path = teacher.file(NETWORK_FILE)
    tensors, header = load_tensors(path)
    try:
        dims = header["observation_dim"], header["goal_dim"], header["action_dim"]
        critic = ContrastiveCritic(*dims, shape_of(path, header, tensors))
        critic.load_state_dict(strip_prefix(tensors, "critic."))
        energy = LearnerSettings.model_validate({"energy": teacher.manifest.settings["energy"]}).energy
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedFileError(f"{path} holds no critic of this version ({reason}).") from error
    return TeacherCritic(critic.eval().requires_grad_(False), energy)
