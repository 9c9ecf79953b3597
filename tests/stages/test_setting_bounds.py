"""Every number that a stage can be told has bounds: nothing runs, or allocates, without end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import annotated_types
import pytest

from thousandfold.ground.errors import SettingsError
from thousandfold.pipeline.settings import StageSettings, resolve_settings
from thousandfold.stages.closed_loop.evaluate import EvaluateSettings
from thousandfold.stages.dataset.import_dataset import ImportDatasetSettings
from thousandfold.stages.frontier.cells import FrontierSettings
from thousandfold.stages.stage_settings import settings_by_kind

CLASSES = [
    *settings_by_kind().values(),
    EvaluateSettings,
    FrontierSettings,
    ImportDatasetSettings,
]


def unbounded(cls: type[StageSettings]) -> Iterator[str]:
    for name, field in cls.model_fields.items():
        if name.endswith("learning_rate"):  # takes neither time nor memory; what diverges is stopped
            continue
        kinds: set[Any] = {field.annotation, *get_args(field.annotation)}
        limits = [
            each for each in field.metadata if isinstance(each, annotated_types.Le | annotated_types.Lt)
        ]
        if (
            {int, float} & kinds
            and tuple not in {getattr(field.annotation, "__origin__", None)}
            and not limits
        ):
            yield name
        is_listed = getattr(field.annotation, "__origin__", None) is tuple and {int, float} & kinds
        if is_listed and not any(isinstance(each, annotated_types.MaxLen) for each in field.metadata):
            yield name


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_number_has_an_upper_bound(cls: type[StageSettings]) -> None:
    assert list(unbounded(cls)) == []


@pytest.mark.parametrize(
    "override",
    [
        "num_worlds=1e9", "batch_size=1e9", "env_steps=1e15", "evaluation_episodes=1e12", "width=1e6",
        "threads=1e6", "replay_rows_per_world=1e12", "episode_steps=1e12", "unroll_steps=1e12", "seed=1e30",
        f"task=[{'[' * 100}", "batch_size=" + "9" * 5000, "learning_rate=1e999",
    ],
)  # fmt: skip
def test_numbers_without_measure_are_refused_in_one_line(override: str) -> None:
    cls = settings_by_kind()["teacher"]
    with pytest.raises(SettingsError) as caught:
        resolve_settings(cls, "train_teacher", overrides=[override])
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("value", ["1e999", "-1e999", ".nan", ".inf"])
def test_what_is_no_number_is_refused_for_every_setting(cls: type[StageSettings], value: str) -> None:
    section = "any stage"
    for name, field in cls.model_fields.items():
        if {int, float} & {field.annotation, *get_args(field.annotation)}:
            with pytest.raises(SettingsError, match=name):
                resolve_settings(cls, section, overrides=[f"{name}={value}"])
