"""Stages on sizes that take a fraction of a second."""

from __future__ import annotations

from pathlib import Path

from thousandfold.pipeline.artifacts import Workspace
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.runtime import StageContext
from thousandfold.pipeline.tracking import NullTracker
from thousandfold.stages.train_teacher.settings import TrainTeacherSettings

# Unrolls end inside episodes of 100 steps, and the memory forgets the beginning of the episode under way.
TINY_TEACHER = TrainTeacherSettings(
    depth=4,
    width=8,
    num_worlds=4,
    unroll_steps=30,
    env_steps=4 * 30 * 11,
    updates_per_unroll=3,
    batch_size=16,
    replay_rows_per_world=70,
    min_rows_per_world=20,
    evaluate_every=3,
    evaluation_episodes=4,
    final_episodes=4,
    checkpoint_every=2,
    average_decay=0.5,
    actor_goals="mixed",
    goal_exchange=0.1,
    device="cpu",
    threads=1,
)


def make_context(root: Path) -> StageContext:
    """Return the context of a workspace without tracking."""
    return StageContext(Workspace(root), Console(), NullTracker())
