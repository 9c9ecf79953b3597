"""Settings of `pipeline train-teacher`: the networks and an update of them, and the training around it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pydantic

from thousandfold.envs.registry import compile_task, get_task
from thousandfold.envs.task import LONGEST_CLOCK_S, MOST_EPISODE_STEPS
from thousandfold.models.block_stack import Precision
from thousandfold.models.contrastive_critic import Energy, InfoNCE
from thousandfold.models.residual_mlp import Activation, NetworkShape, ResidualScale
from thousandfold.pipeline.distributed import Ranks
from thousandfold.pipeline.settings import MOST_EPISODES, MOST_THREADS, StageSettings
from thousandfold.stages.networks import CriticGoals

CHANGEABLE_ON_RESUME = frozenset(
    {
        "env_steps",
        "evaluate_every",
        "evaluation_episodes",
        "final_episodes",
        "target_success",
        "target_evaluations",
        "patience",
        "finalists",
        "checkpoint_every",
        "video_every",
        "checkpoint_activations",
        "threads",
        "cuda_graph",
        "deterministic",
    }
)
"""How long, how often and in what memory: what a run may go on with in another value."""
DEEPEST_PUBLISHED_FORM = 64
"""layers up to which plain residual sums are the default"""
DEEP_FORM: dict[str, Any] = {
    "residual_scale": "learned_from_zero",
    "final_norm": True,
    "max_gradient_norm": 10.0,
}
"""what is the default beyond"""
DEPTHS = ("depth", "actor_depth", "critic_depth")


class LearnerSettings(StageSettings):
    """What shapes the networks and an update."""

    BEFORE: ClassVar[Mapping[str, Any]] = {"normalize_inputs": False}

    depth: int = pydantic.Field(
        default=16, ge=4, le=4096, description="Dense layers in blocks, a multiple of 4"
    )
    actor_depth: int | None = pydantic.Field(
        default=None, ge=4, le=4096, description="of the actor, where it is not depth"
    )
    critic_depth: int | None = pydantic.Field(
        default=None, ge=4, le=4096, description="of the critic's two networks, where it is not depth"
    )
    width: int = pydantic.Field(default=256, ge=1, le=8192, description="units of a layer")
    residual: bool = pydantic.Field(
        default=True, description="add the input of every four layers to their output; false: a plain stack"
    )
    layer_norm: bool = pydantic.Field(default=True, description="LayerNorm after every Dense layer")
    activation: Activation = pydantic.Field(default="swish", description="what ends every layer")
    residual_scale: ResidualScale = pydantic.Field(
        default="none",
        description="of the blocks' branches; learned_from_zero where not set beyond 64 layers",
    )
    final_norm: bool = pydantic.Field(
        default=False, description="LayerNorm before the heads; true where not set beyond 64 layers"
    )
    centred_kernels: bool = pydantic.Field(
        default=False, description="start with kernels that do not see the mean of the activations"
    )
    normalize_inputs: bool = pydantic.Field(
        default=True, description="shift and scale observations and goals by what was seen of them"
    )
    precision: Precision = pydantic.Field(
        default="float32", description="of the blocks' matrix products; losses are always float32"
    )
    checkpoint_activations: bool = pydantic.Field(
        default=False, description="keep every √blocks-th block's input alone: less memory, a third more time"
    )
    critic: Literal["contrastive", "temporal_difference"] = pydantic.Field(
        default="contrastive",
        description="how near a goal is, from InfoNCE; or soft actor-critic's value, from the next step",
    )
    critic_goals: CriticGoals = pydantic.Field(
        default="absolute",
        description="what the critic is given: a goal, or how it differs from what the state achieves; auto: "
        "the latter, but in mazes",
    )
    early_ends: Literal["cut", "lost"] = pydantic.Field(
        default="cut",
        description="what lies beyond an early end, such as a fall: cut, goals come from before it; lost, no "
        "goal is reached there (critic=temporal_difference always takes it as lost)",
    )
    energy: Energy = pydantic.Field(default="norm", description="of the contrastive critic")
    info_nce: InfoNCE = pydantic.Field(default="forward", description="of the contrastive critic")
    actor_goals: Literal["hindsight", "random", "mixed"] = pydantic.Field(
        default="random",
        description="what the actor learns to reach: goals of the same episode's future, of others, or both",
    )
    batch_size: int = pydantic.Field(
        default=256, ge=2, le=2**20, description="transitions of an update, over all ranks"
    )
    global_negatives: bool = pydantic.Field(
        default=False,
        description="contrast with the goals of all ranks, not with those of the rank's own batch",
    )
    discount: float = pydantic.Field(
        default=0.99, gt=0, le=1, description="of a step: how far ahead goals in hindsight lie"
    )
    actor_learning_rate: float = pydantic.Field(default=3e-4, gt=0, description="Adam's, of the actor")
    critic_learning_rate: float = pydantic.Field(default=3e-4, gt=0, description="Adam's, of the critic")
    alpha_learning_rate: float = pydantic.Field(
        default=3e-4, gt=0, description="Adam's, of the entropy temperature"
    )
    initial_alpha: float = pydantic.Field(
        default=1.0, gt=0, le=1e6, description="entropy temperature at the start"
    )
    target_entropy_per_action: float = pydantic.Field(
        default=-0.5, ge=-1000, le=1000, description="nats for each action dimension"
    )
    dither: float = pydantic.Field(
        default=0.0,
        ge=0,
        le=2,
        description="share of its own standard deviation by which the teacher's action swings with the "
        "clock, so that nothing stands still in balance; 0: not at all",
    )
    average_decay: float = pydantic.Field(
        default=0.0,
        ge=0,
        lt=1,
        description="of the running average of the actor, evaluated beside it; 0: none",
    )
    threads: int = pydantic.Field(
        default=0,
        ge=0,
        le=MOST_THREADS,
        description="CPU threads of torch in each process; 0: every CPU, shared evenly",
    )
    max_gradient_norm: float | None = pydantic.Field(
        default=None, gt=0, le=1e12, description="clipping; null: none; 10 where not set beyond 64 layers"
    )
    warmup_updates: int = pydantic.Field(
        default=0, ge=0, le=10**9, description="updates over which the learning rates rise linearly from 0"
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _deep_defaults(cls, values: Any) -> Any:
        """Give deep networks the form that learns where the user says nothing about it (docs/depth.md)."""
        with contextlib.suppress(TypeError, ValueError, AttributeError, OverflowError):
            if values.get("residual") is False:
                return values
            if values.get("layer_norm") is False:
                # Sums of branches that no LayerNorm has cut to size double with every block.
                return {"residual_scale": "inverse_sqrt_blocks"} | values
            if max(int(values.get(name) or 0) for name in DEPTHS) > DEEPEST_PUBLISHED_FORM:
                return DEEP_FORM | values
        return values

    @pydantic.field_validator(*DEPTHS)
    @classmethod
    def _depth_in_blocks(cls, depth: int | None) -> int | None:
        if depth is not None:
            NetworkShape(depth, 1)
        return depth

    @pydantic.model_validator(mode="after")
    def _blocks_can_be_stacked(self) -> LearnerSettings:
        """Refuse what only the stacked blocks of the published form can do with another form."""
        if self.actor_shape.is_stacked:
            return self
        form = "residual=true, layer_norm=true and activation=swish"
        if self.precision != "float32":
            raise ValueError(f"precision {self.precision} wants {form}: set precision=float32")
        if self.checkpoint_activations:
            raise ValueError(f"checkpoint_activations wants {form}: set checkpoint_activations=false")
        return self

    @pydantic.model_validator(mode="after")
    def _blocks_are_summed(self) -> LearnerSettings:
        if not self.residual and self.residual_scale != "none":
            raise ValueError(
                f"residual_scale {self.residual_scale} wants residual=true: set residual_scale=none"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _critic_reads_them(self) -> LearnerSettings:
        """Refuse what the contrastive critic alone reads beside another."""
        if self.critic != "contrastive":
            for name, unset in {"energy": "norm", "info_nce": "forward", "global_negatives": False}.items():
                if (value := getattr(self, name)) != unset:
                    raise ValueError(f"{name} {value} is for critic=contrastive alone: set {name}={unset}")
            if self.discount == 1:
                raise ValueError("discount 1 leaves temporal differences without a bound: set one below 1")
        return self

    @pydantic.model_validator(mode="after")
    def _futures_can_be_lost(self) -> LearnerSettings:
        if self.learns_lost_futures:
            if self.info_nce != "forward":
                raise ValueError(f"info_nce {self.info_nce} knows no lost goals: set early_ends=cut")
            if self.discount == 1:
                raise ValueError(
                    "discount 1 would lose every goal before an early end: set one below 1, or early_ends=cut"
                )
        return self

    @property
    def learns_lost_futures(self) -> bool:
        """Whether the contrastive critic learns that no goal is reached beyond an early end."""
        return self.early_ends == "lost" and self.critic == "contrastive"

    @property
    def actor_shape(self) -> NetworkShape:
        """The form of the actor."""
        return self._shape(self.actor_depth or self.depth)

    @property
    def critic_shape(self) -> NetworkShape:
        """The form of the critic's two networks."""
        return self._shape(self.critic_depth or self.depth)

    @property
    def deepest(self) -> int:
        """The layers of the deepest of the three networks."""
        return max(self.actor_depth or self.depth, self.critic_depth or self.depth)

    def _shape(self, depth: int) -> NetworkShape:
        return NetworkShape(
            # As many layers after the stem as the blocks of the residual form have.
            depth if self.residual else depth + 1,
            self.width,
            kind="residual" if self.residual else "plain",
            residual_scale=self.residual_scale,
            final_norm=self.final_norm,
            layer_norm=self.layer_norm,
            activation=self.activation,
        )


class TrainTeacherSettings(LearnerSettings):
    """Settings of `pipeline train-teacher`."""

    BEFORE: ClassVar[Mapping[str, Any]] = {**LearnerSettings.BEFORE, "finalists": 1}

    task: str = pydantic.Field(
        default="point_u_maze",
        description="a name that `pipeline tasks` lists, or the YAML file of your own task",
    )
    training_distribution: str = pydantic.Field(
        default="training", description="where training episodes start and aim"
    )
    goal_exchange: float = pydantic.Field(
        default=0.0,
        ge=0,
        le=1,
        description="chance of each control step that a world in training takes over another one's goal, so "
        "that an action does not tell where its episode ends; 0: an episode keeps its goal",
    )
    evaluation_distribution: str = pydantic.Field(
        default="evaluation", description="where evaluated episodes start and aim, the student's later too"
    )
    episode_steps: int | None = pydantic.Field(
        default=None,
        ge=1,
        le=MOST_EPISODE_STEPS,
        description="control steps of an episode, the student's too; null: the task's",
    )
    clock_s: float | None = pydantic.Field(
        default=None,
        gt=0,
        le=LONGEST_CLOCK_S,
        description="period of a clock that teacher and student observe beside the state; null: none",
    )
    env_steps: int = pydantic.Field(
        default=1_000_000, ge=1, le=10**12, description="control steps over all worlds"
    )
    num_worlds: int = pydantic.Field(default=128, ge=1, le=2**20, description="over all ranks")
    unroll_steps: int = pydantic.Field(
        default=100, ge=1, le=10**6, description="control steps of each world between updates"
    )
    updates_per_unroll: int = pydantic.Field(
        default=48, ge=1, le=10**6, description="updates after every unroll"
    )
    replay_rows_per_world: int = pydantic.Field(
        default=10_000, ge=2, le=10**9, description="newest steps of each world that are kept"
    )
    min_rows_per_world: int = pydantic.Field(
        default=100, ge=2, le=10**9, description="rows of each world before the first update"
    )
    evaluate_every: int = pydantic.Field(default=4, ge=1, le=10**9, description="unrolls between evaluations")
    evaluation_episodes: int = pydantic.Field(
        default=128, ge=1, le=MOST_EPISODES, description="episodes of an evaluation within the training"
    )
    final_episodes: int = pydantic.Field(
        default=256, ge=1, le=MOST_EPISODES, description="fresh episodes of the closing evaluation"
    )
    target_success: float | None = pydantic.Field(
        default=None, gt=0, le=1, description="stop early at this success"
    )
    target_evaluations: int = pydantic.Field(
        default=2, ge=1, le=10**6, description="consecutive evaluations that must meet it"
    )
    patience: int | None = pydantic.Field(
        default=None,
        ge=1,
        le=10**6,
        description="end after so many evaluations in a row without a better one; null: never",
    )
    keep: Literal["best", "last"] = pydantic.Field(
        default="best", description="which evaluated actor becomes the teacher"
    )
    finalists: int = pydantic.Field(
        default=3,
        ge=1,
        le=100,
        description="with keep=best so many of the best actors meet again at the end, over final_episodes",
    )
    checkpoint_every: int = pydantic.Field(
        default=4, ge=1, le=10**9, description="unrolls between checkpoints"
    )
    video_every: int = pydantic.Field(
        default=0,
        ge=0,
        le=10**9,
        description="evaluations between videos of the evaluated actor, where there is OpenGL; 0: no videos",
    )
    cuda_graph: bool = pydantic.Field(
        default=True, description="capture control steps, batches and updates on CUDA; off for debugging"
    )
    deterministic: bool = pydantic.Field(
        default=False, description="let physics on CUDA add up in a fixed order, which is slower"
    )

    @pydantic.field_validator("task")
    @classmethod
    def _task_exists(cls, task: str) -> str:
        found = get_task(task)
        if found.file is not None:
            compile_task(found.file)  # what is wrong with a user's model is told before anything is made
        return found.reference

    @pydantic.model_validator(mode="after")
    def _distribution_exists(self) -> TrainTeacherSettings:
        for distribution in (self.training_distribution, self.evaluation_distribution):
            get_task(self.task).distribution(distribution)
        return self

    @property
    def task_changes(self) -> dict[str, Any]:
        """What is changed of the task, as `GoalTask.changed` takes it."""
        return {
            "episode_steps": self.episode_steps,
            "evaluation": self.evaluation_distribution,
            "clock_s": self.clock_s,
        }

    @pydantic.model_validator(mode="after")
    def _dither_has_a_clock(self) -> TrainTeacherSettings:
        if self.dither and self.clock_s is None:
            raise ValueError(
                f"dither {self.dither:g} wants a clock to swing with: set clock_s=0.25, or dither=0"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _rows_fit(self) -> TrainTeacherSettings:
        if self.min_rows_per_world > self.replay_rows_per_world:
            raise ValueError(
                f"min_rows_per_world {self.min_rows_per_world} exceeds "
                f"replay_rows_per_world {self.replay_rows_per_world}"
            )
        return self

    def shares(self, ranks: Ranks) -> tuple[int, int]:
        """Return the worlds and the batch of each rank. Raises SettingsError where they are not whole."""
        batch = ranks.share("batch_size", self.batch_size, least=2)
        return ranks.share("num_worlds", self.num_worlds), batch
