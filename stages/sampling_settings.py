"""How a teacher's action may be the best of several, as its critic holds them."""

from __future__ import annotations

import pydantic

from thousandfold.pipeline.settings import StageSettings


class SamplingSettings(StageSettings):
    """How the teacher's action is chosen."""

    teacher_samples: int = pydantic.Field(
        default=1, ge=1, le=1024, description="actions that a teacher's critic chooses from; 1: the mean"
    )
    sample_scale: float = pydantic.Field(
        default=0.1,
        gt=0,
        le=10,
        description="times the teacher's standard deviation is that of their draws; a critic is no judge of "
        "actions far from the mean",
    )
