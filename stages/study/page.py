"""The page of a study: what it trains, with which settings, and what it claims.

question: Does depth pay on the arm that pushes?
tasks: [arm_push_easy]
seeds: [20, 21, 22, 23, 24]
settings: {width: 128, env_steps: 1000000}          # of train-teacher, for all arms
arms:
  D4: {depth: 4, actor_learning_rate: 1e-3}
  D16: {depth: 16, actor_learning_rate: 5e-4}
claims:
  - D16 reaches more than D4 of success at the end
scales:                                             # --scale gpu: over the settings above
  gpu: {preset: paper/arm_push_easy, env_steps: 100000000, arms: {D16: {depth: 16}}}
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from thousandfold.ground.errors import SettingsError, unknown_name
from thousandfold.ground.limited_yaml import MOST_BYTES, LimitedYamlError, load_yaml
from thousandfold.ground.plain_files import read_plain
from thousandfold.pipeline.settings import StageSettings, dump_settings, resolve_settings
from thousandfold.stages.study.claims import read_claim
from thousandfold.stages.train_teacher.settings import TrainTeacherSettings

MOST_CELLS = 2000
_ARM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")


class StudyPage(pydantic.BaseModel):
    """What the YAML of a study holds."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    question: str = ""
    tasks: tuple[str, ...] = pydantic.Field(min_length=1)
    seeds: tuple[pydantic.NonNegativeInt, ...] = pydantic.Field(min_length=1)
    preset: str | None = None
    settings: dict[str, Any] = {}
    arms: dict[str, dict[str, Any]] = pydantic.Field(min_length=1)
    claims: tuple[str, ...] = ()
    scales: dict[str, dict[str, Any]] = {}

    @pydantic.field_validator("tasks", "seeds")
    @classmethod
    def _no_twins(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if twins := {value for value in values if values.count(value) > 1}:
            raise ValueError(f"{', '.join(map(str, sorted(twins)))} is there twice")
        return values

    @pydantic.field_validator("arms")
    @classmethod
    def _names(cls, arms: dict[str, Any]) -> dict[str, Any]:
        for name in arms:
            if not _ARM.fullmatch(name):
                raise ValueError(f"an arm is named by letters, digits and . _ + -, not {name!r}")
        return arms


class StudyPlan(StageSettings):
    """Everything that a study is made by, as its manifest keeps it."""

    question: str
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    arms: dict[str, dict[str, Any]]
    """All settings of `train-teacher` but task and seed, by arm."""
    claims: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One training of a study."""

    task: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Unique within the study; its folder's name too."""
        return f"{task_label(self.task)}-{self.arm}-{self.seed}"


def task_label(task: str) -> str:
    """Return how a task is called in messages, claims and folders: a user's page by its file's name."""
    return Path(task).stem if task.endswith((".yaml", ".yml")) else task


def cells(plan: StudyPlan) -> list[Cell]:
    """Return the cells seed by seed, so that a study that is cut off is balanced."""
    return [Cell(task, arm, seed) for seed in plan.seeds for task in plan.tasks for arm in plan.arms]


def cell_settings(plan: StudyPlan, cell: Cell) -> TrainTeacherSettings:
    """Return the settings that a cell is trained with."""
    return TrainTeacherSettings.stored(plan.arms[cell.arm] | {"task": cell.task, "seed": cell.seed})


def read_page(path: Path) -> tuple[StudyPage, bytes]:
    """Return a study's page, and the file's content.

    Raises:
        SettingsError: the file cannot be read, is no YAML, or holds what a page does not.
    """
    try:
        content = read_plain(path, MOST_BYTES)
        return StudyPage.model_validate(load_yaml(content.decode())), content
    except OSError as error:
        raise SettingsError(f"The study {path} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"The study {path} is no text file in UTF-8.") from None
    except LimitedYamlError as error:
        place = f" (line {error.line})" if error.line else ""
        raise SettingsError(f"The study {path} is not valid YAML: {error}{place}.") from None
    except pydantic.ValidationError as error:
        raise SettingsError(f"The study {path}: {'; '.join(_problems(error))}.") from None


def _problems(error: pydantic.ValidationError) -> Iterator[str]:
    for detail in error.errors(include_url=False):
        name = ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "extra_forbidden":
            yield unknown_name("key", name, StudyPage.model_fields).rstrip(".")
        elif detail["type"] == "missing":
            yield f"{name} must be given"
        elif not name:
            yield f"it must hold {', '.join(StudyPage.model_fields)}"
        else:
            reason = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            yield f"{name}{' ' if reason.startswith('must') else ': '}{reason}"


def resolve_plan(
    page: StudyPage, *, scale: str | None, preset: str | None, overrides: Sequence[str], device: str | None
) -> StudyPlan:
    """Return what a page's study is to be made by.

    An arm's settings go before those of the scale, these before those of the page, these before the preset;
    overrides go before all of them. Where the scale has an arm too, that one is in the place of the page's.

    Args:
        scale: a name among the page's scales; None: the page's own settings alone.
        preset: of the command line, instead of the page's; None: the page's, or none.
        overrides: ``key=value``, for every arm.

    Raises:
        SettingsError: a task, a setting or a claim that cannot be, or too many trainings.
    """
    if scale is not None and scale not in page.scales:
        raise SettingsError(f"--scale: {unknown_name('scale', scale, page.scales)}")
    scaled = dict(page.scales[scale]) if scale is not None else {}
    preset = preset or scaled.pop("preset", None) or page.preset
    scaled.pop("preset", None)
    own_arms = scaled.pop("arms", {})
    if not isinstance(own_arms, dict) or not all(isinstance(own, dict) for own in own_arms.values()):
        raise SettingsError(f"scales.{scale}.arms: give settings by arm, as the page's arms do.")
    if unknown := [arm for arm in own_arms if arm not in page.arms]:
        raise SettingsError(f"scales.{scale}.arms: {unknown_name('arm', str(unknown[0]), page.arms)}")
    arms: dict[str, dict[str, Any]] = {}
    tasks: dict[str, str] = {}
    for arm, own in (page.arms | own_arms).items():
        values = page.settings | scaled | own | ({} if device is None else {"device": device})
        if fixed := [name for name in ("task", "seed") if name in values]:
            raise SettingsError(f"arm {arm}: {fixed[0]} is set by the study's {fixed[0]}s: leave it out.")
        for task in page.tasks:
            try:
                settings = resolve_settings(
                    TrainTeacherSettings,
                    "train_teacher",
                    preset=preset,
                    values=values | {"task": task, "seed": page.seeds[0]},
                    overrides=overrides,
                )
            except SettingsError as error:
                raise SettingsError(f"arm {arm}: {error}") from None
            tasks[task] = settings.task
        arms[arm] = {
            name: value for name, value in dump_settings(settings).items() if name not in ("task", "seed")
        }
    labels = [task_label(task) for task in tasks.values()]
    if twins := {label for label in labels if labels.count(label) > 1}:
        raise SettingsError(f"tasks: {', '.join(sorted(twins))} is there twice.")
    for claim in page.claims:
        read_claim(claim, arms, labels)
    if (number := len(arms) * len(tasks) * len(page.seeds)) > MOST_CELLS:
        raise SettingsError(f"The study has {number:,} trainings; {MOST_CELLS:,} is the most.")
    return StudyPlan(
        question=page.question,
        tasks=tuple(tasks.values()),
        seeds=page.seeds,
        arms=arms,
        claims=page.claims,
        device=next(iter(arms.values()))["device"],
    )
