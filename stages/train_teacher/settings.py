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
        "curriculum",
        "curriculum_success",
        "curriculum_patience",
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
CHANGEABLE_WHEN_COMPLETED = CHANGEABLE_ON_RESUME | {
    "training_distribution",
    "evaluation_distribution",
    "goal_exchange",
    "actor_goals",
    "early_end_weight",
    "discount",
    "batch_size",
    "updates_per_unroll",
    "target_entropy_per_action",
    "actor_learning_rate",
    "critic_learning_rate",
    "alpha_learning_rate",
    "max_gradient_norm",
}
"""Its goals and its learning, too: what a completed teacher may be trained on with, as another one."""
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
        default=16, ge=4, le=4096, description="Dense layers inside blocks, of every network; a multiple of 4"
    )
    actor_depth: int | None = pydantic.Field(
        default=None, ge=4, le=4096, description="depth of the actor, if it differs from depth"
    )
    critic_depth: int | None = pydantic.Field(
        default=None,
        ge=4,
        le=4096,
        description="depth of the critic's two networks, if it differs from depth",
    )
    width: int = pydantic.Field(default=256, ge=1, le=8192, description="units of a layer")
    residual: bool = pydantic.Field(
        default=True, description="add the input of every four layers to their output; false: a plain stack"
    )
    layer_norm: bool = pydantic.Field(default=True, description="LayerNorm after every Dense layer")
    activation: Activation = pydantic.Field(
        default="swish", description="activation at the end of every layer"
    )
    residual_scale: ResidualScale = pydantic.Field(
        default="none",
        description="factor of the blocks' branches; beyond 64 layers the default is learned_from_zero",
    )
    final_norm: bool = pydantic.Field(
        default=False, description="LayerNorm before the heads; beyond 64 layers the default is true"
    )
    centred_kernels: bool = pydantic.Field(
        default=False,
        description="start with kernels whose rows sum to 0, so that they ignore the mean of the activations",
    )
    normalize_inputs: bool = pydantic.Field(
        default=True, description="standardise observations and goals by the data collected so far"
    )
    precision: Precision = pydantic.Field(
        default="float32", description="precision of the blocks' matrix products; losses are always float32"
    )
    checkpoint_activations: bool = pydantic.Field(
        default=False,
        description="keep only the input of every √blocks-th block: less memory, a third more time",
    )
    critic: Literal["contrastive", "temporal_difference"] = pydantic.Field(
        default="contrastive",
        description="contrastive: learns by InfoNCE how near a goal is; temporal_difference: the value of "
        "soft actor-critic",
    )
    critic_goals: CriticGoals = pydantic.Field(
        default="absolute",
        description="what the critic sees of a goal: absolute, the goal; relative, the goal minus what "
        "the state achieves; auto, relative except in mazes where actuators act on the place directly",
    )
    early_ends: Literal["cut", "lost"] = pydantic.Field(
        default="cut",
        description="goals beyond an early end, such as a fall: cut, goals are drawn from before it; "
        "lost, no goal is reached there (critic=temporal_difference always behaves as lost)",
    )
    early_end_weight: float = pydantic.Field(
        default=0.0,
        ge=0,
        le=1000,
        description="with early_ends=lost and the contrastive critic: weight of log(1 − P(early end)) in the "
        "actor's objective, beside the energy of its goal",
    )
    energy: Energy = pydantic.Field(
        default="norm", description="how the contrastive critic compares its two encodings"
    )
    info_nce: InfoNCE = pydantic.Field(
        default="forward", description="direction of the contrastive critic's loss"
    )
    actor_goals: Literal["hindsight", "random", "mixed"] = pydantic.Field(
        default="random",
        description="goals that the actor learns to reach: from the same episode's future, of other "
        "transitions, or half of each",
    )
    batch_size: int = pydantic.Field(
        default=256, ge=2, le=2**20, description="transitions of an update, over all ranks"
    )
    global_negatives: bool = pydantic.Field(
        default=False,
        description="contrast with the goals of all ranks, not with those of the rank's own batch",
    )
    discount: float = pydantic.Field(
        default=0.99,
        gt=0,
        le=1,
        description="discount of a step: the nearer to 1, the farther ahead hindsight goals lie",
    )
    actor_learning_rate: float = pydantic.Field(
        default=3e-4, gt=0, description="learning rate of Adam for the actor"
    )
    critic_learning_rate: float = pydantic.Field(
        default=3e-4, gt=0, description="learning rate of Adam for the critic"
    )
    alpha_learning_rate: float = pydantic.Field(
        default=3e-4, gt=0, description="learning rate of Adam for the entropy temperature"
    )
    initial_alpha: float = pydantic.Field(
        default=1.0, gt=0, le=1e6, description="entropy temperature at the start"
    )
    target_entropy_per_action: float = pydantic.Field(
        default=-0.5, ge=-1000, le=1000, description="target entropy in nats for each action dimension"
    )
    dither: float = pydantic.Field(
        default=0.0,
        ge=0,
        le=2,
        description="share of its own standard deviation by which the teacher's action swings with the "
        "clock, so that the robot does not stand still in balance; 0: no swing",
    )
    average_decay: float = pydantic.Field(
        default=0.0,
        ge=0,
        lt=1,
        description="decay of the actor's running average, which is evaluated beside the actor; 0: no "
        "average",
    )
    threads: int = pydantic.Field(
        default=0,
        ge=0,
        le=MOST_THREADS,
        description="CPU threads of torch in each process; 0: every CPU, shared evenly",
    )
    max_gradient_norm: float | None = pydantic.Field(
        default=None,
        gt=0,
        le=1e12,
        description="norm to which gradients are clipped; null: no clipping; beyond 64 layers the default "
        "is 10",
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
            raise ValueError(f"precision {self.precision} needs {form}: set precision=float32")
        if self.checkpoint_activations:
            raise ValueError(f"checkpoint_activations needs {form}: set checkpoint_activations=false")
        return self

    @pydantic.model_validator(mode="after")
    def _blocks_are_summed(self) -> LearnerSettings:
        if not self.residual and self.residual_scale != "none":
            raise ValueError(
                f"residual_scale {self.residual_scale} needs residual=true: set residual_scale=none"
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
                raise ValueError(f"info_nce {self.info_nce} does not support lost goals: set early_ends=cut")
            if self.discount == 1:
                raise ValueError(
                    "discount 1 would lose every goal before an early end: set one below 1, or early_ends=cut"
                )
        elif self.early_end_weight and self.critic == "contrastive":
            raise ValueError(
                f"early_end_weight {self.early_end_weight:g} weighs what early_ends=cut does not learn: set "
                "early_ends=lost, or early_end_weight=0"
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
        default="training", description="distribution of starts and goals in training"
    )
    curriculum: tuple[str, ...] = pydantic.Field(
        default=(),
        max_length=100,
        description="distributions to train and evaluate on before those of training and evaluation, one "
        "after the other, such as near for goals nearby",
    )
    curriculum_success: float = pydantic.Field(
        default=0.8,
        gt=0,
        le=1,
        description="success in an evaluation that leads on from a distribution of the curriculum",
    )
    curriculum_patience: int | None = pydantic.Field(
        default=8,
        ge=1,
        le=10**6,
        description="evaluations in a row without improvement that lead on too; null: never",
    )
    goal_exchange: float = pydantic.Field(
        default=0.0,
        ge=0,
        le=1,
        description="probability in each control step that a training environment takes over another "
        "one's goal, so that an action does not reveal where its episode ends; 0: an episode "
        "keeps its goal",
    )
    evaluation_distribution: str = pydantic.Field(
        default="evaluation",
        description="distribution of starts and goals in evaluation, for the student too",
    )
    episode_steps: int | None = pydantic.Field(
        default=None,
        ge=1,
        le=MOST_EPISODE_STEPS,
        description="control steps of an episode, for the student too; null: the task's number",
    )
    clock_s: float | None = pydantic.Field(
        default=None,
        gt=0,
        le=LONGEST_CLOCK_S,
        description="period in seconds of a clock that teacher and student observe beside the state; "
        "null: no clock",
    )
    env_steps: int = pydantic.Field(
        default=1_000_000, ge=1, le=10**12, description="control steps of the training, over all environments"
    )
    num_worlds: int = pydantic.Field(
        default=128, ge=1, le=2**20, description="environments that run at a time, over all ranks"
    )
    unroll_steps: int = pydantic.Field(
        default=100,
        ge=1,
        le=10**6,
        description="control steps of each environment in a round; updates follow every round",
    )
    updates_per_unroll: int = pydantic.Field(
        default=48, ge=1, le=10**6, description="updates after every round"
    )
    replay_rows_per_world: int = pydantic.Field(
        default=10_000,
        ge=2,
        le=10**9,
        description="newest steps of each environment that the replay memory keeps",
    )
    min_rows_per_world: int = pydantic.Field(
        default=100, ge=2, le=10**9, description="steps of each environment before the first update"
    )
    evaluate_every: int = pydantic.Field(default=4, ge=1, le=10**9, description="rounds between evaluations")
    evaluation_episodes: int = pydantic.Field(
        default=128, ge=1, le=MOST_EPISODES, description="episodes of an evaluation within the training"
    )
    final_episodes: int = pydantic.Field(
        default=256, ge=1, le=MOST_EPISODES, description="fresh episodes of the final evaluation"
    )
    target_success: float | None = pydantic.Field(
        default=None, gt=0, le=1, description="stop early at this success; null: never"
    )
    target_evaluations: int = pydantic.Field(
        default=2, ge=1, le=10**6, description="consecutive evaluations that must meet target_success"
    )
    patience: int | None = pydantic.Field(
        default=None,
        ge=1,
        le=10**6,
        description="stop after so many evaluations in a row without improvement; null: never",
    )
    keep: Literal["best", "last"] = pydantic.Field(
        default="best", description="which evaluated actor becomes the teacher"
    )
    finalists: int = pydantic.Field(
        default=3,
        ge=1,
        le=100,
        description="with keep=best, so many of the best actors are evaluated again at the end, over "
        "final_episodes",
    )
    checkpoint_every: int = pydantic.Field(
        default=4, ge=1, le=10**9, description="rounds between checkpoints"
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

    @pydantic.field_validator("curriculum", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        """Take `near,far` for two distributions."""
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )

    @pydantic.model_validator(mode="after")
    def _distribution_exists(self) -> TrainTeacherSettings:
        task = get_task(self.task)
        for distribution in (self.training_distribution, self.evaluation_distribution):
            task.distribution(distribution)
        for distribution in self.curriculum:
            if distribution not in task.distributions:
                raise ValueError(
                    f"the curriculum's {distribution!r} is no distribution of {task.name}, which has "
                    f"{', '.join(task.distributions)}: name one of these, or set curriculum=[]"
                )
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
