"""What a student's form, training and measurement are chosen by."""

from __future__ import annotations

from typing import Literal

import pydantic

from thousandfold.models.residual_mlp import LAYERS_PER_BLOCK, NetworkShape
from thousandfold.pipeline.settings import MOST_EPISODES, MOST_THREADS, StageSettings
from thousandfold.stages.distill.imitation import Objective
from thousandfold.stages.distill.retention import EpisodeBudget

CHANGEABLE_ON_RESUME = frozenset(
    {
        "patience",
        "evaluate_every",
        "checkpoint_every",
        "final_episodes",
        "max_final_episodes",
        "interval_half_width",
        "threads",
    }
)
"""How often, how long and on how many threads: what a student may be gone on with in another value."""
CHANGEABLE_WHEN_COMPLETED = CHANGEABLE_ON_RESUME | {"updates", "target_retention"}
"""What a completed student may be trained on with, as another one."""

ROUNDS_WITH_OWN_SENSES = 4
"""DAgger rounds by default where a student does not see what its teacher sees (docs/robustness.md)."""


class DistillSettings(StageSettings):
    """Settings of `pipeline distill`."""

    student_depth: int = pydantic.Field(default=4, ge=1, le=1024, description="layers of the student")
    student_width: int = pydantic.Field(default=128, ge=1, le=8192, description="units of a layer")
    student_kind: Literal["auto", "residual", "plain"] = pydantic.Field(
        default="auto", description="auto: residual if the depth is a multiple of 4, else plain"
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
        le=1e6,
        description="weight of mse in the objective critic, whose energies are in standard deviations",
    )
    alternative_fraction: float = pydantic.Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of a batch that is learned under alternative goals, if the dataset has them",
    )
    average_decay: float = pydantic.Field(
        default=0.0,
        ge=0,
        lt=1,
        description="decay of the student's running average, which is evaluated beside the student; 0: no "
        "average",
    )
    updates: int = pydantic.Field(
        default=4000, ge=1, le=10**9, description="updates on the dataset, before the DAgger rounds"
    )
    batch_size: int = pydantic.Field(default=1024, ge=1, le=2**20, description="rows of an update")
    learning_rate: float = pydantic.Field(
        default=1e-3,
        gt=0,
        description="learning rate at the start; it falls to 0 along one cosine, rounds included",
    )
    validation_fraction: float = pydantic.Field(
        default=0.1, gt=0, lt=1, description="share of the episodes held out for validation"
    )
    max_labels: int | None = pydantic.Field(
        default=None,
        ge=1,
        le=10**12,
        description="most labels of the teacher to use, rounds included (a label is one state under one "
        "goal); null: all",
    )
    skip_damaged_shards: bool = pydantic.Field(
        default=False, description="continue without the damaged shards of the dataset"
    )
    evaluate_every: int = pydantic.Field(
        default=500, ge=1, le=10**9, description="updates between evaluations"
    )
    evaluation_episodes: int = pydantic.Field(
        default=256, ge=1, le=MOST_EPISODES, description="episodes of an evaluation within the training"
    )
    checkpoint_every: int = pydantic.Field(
        default=500, ge=1, le=10**9, description="updates between checkpoints"
    )
    target_retention: float | None = pydantic.Field(
        default=None,
        gt=0,
        le=1,
        description="stop once an evaluation's smaller retention, of success or time at goal, is that "
        "high; null: never",
    )
    patience: int | None = pydantic.Field(
        default=None,
        ge=1,
        le=10**9,
        description="end the offline part, or a round, after so many evaluations without improvement; "
        "null: never",
    )
    dagger_rounds: int | None = pydantic.Field(
        default=None,
        ge=0,
        le=1000,
        description="DAgger rounds, in which the student acts and the teacher labels; null: "
        f"{ROUNDS_WITH_OWN_SENSES} where the task has a student_observation, else 0",
    )
    dagger_episodes: int = pydantic.Field(
        default=256, ge=1, le=MOST_EPISODES, description="episodes of a round"
    )
    dagger_beta: float = pydantic.Field(
        default=0.0,
        ge=0,
        le=1,
        description="in round i the teacher acts instead of the student with probability beta^i at each step",
    )
    dagger_updates: int = pydantic.Field(default=1000, ge=1, le=10**9, description="updates after each round")
    final_episodes: int = pydantic.Field(
        default=1024,
        ge=1,
        le=MOST_EPISODES,
        description="smallest number of paired episodes that measure retention",
    )
    max_final_episodes: int = pydantic.Field(
        default=4096,
        ge=1,
        le=MOST_EPISODES,
        description="largest number of paired episodes, if retention's interval needs more",
    )
    interval_half_width: float = pydantic.Field(
        default=0.05,
        gt=0,
        le=1,
        description="half width of retention's 95 % intervals that determines the number of episodes",
    )
    threads: int = pydantic.Field(
        default=0, ge=0, le=MOST_THREADS, description="CPU threads of torch; 0: every CPU"
    )
    reproduction_tolerance: float = pydantic.Field(
        default=0.02,
        gt=0,
        le=1,
        description="how far the loaded teacher's success may be from its recorded success",
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

    def with_rounds(self, own_senses: bool) -> DistillSettings:
        """Return the settings with a number of DAgger rounds, by whether students have senses of their own.

        A student that sees less than its teacher comes into states that the teacher avoids.
        """
        if self.dagger_rounds is not None:
            return self
        return self.model_copy(update={"dagger_rounds": ROUNDS_WITH_OWN_SENSES if own_senses else 0})

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
        in_rounds = self.rounds * self.dagger_episodes * episode_steps
        return self.max_labels // self.goals_a_state(choices) - in_rounds

    @property
    def rounds(self) -> int:
        """The number of DAgger rounds; 0 where nothing has settled it."""
        return self.dagger_rounds or 0

    @property
    def total_updates(self) -> int:
        """Updates of the offline part and of all rounds."""
        return self.updates + self.rounds * self.dagger_updates

    @property
    def budget(self) -> EpisodeBudget:
        """How many paired episodes measure retention."""
        return EpisodeBudget(self.final_episodes, self.max_final_episodes, self.interval_half_width)
