"""Settings: precedence, YAML numbers, presets, and one clear line for every mistake."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest
import yaml

from thousandfold.envs.task_names import TASK_NAMES
from thousandfold.ground.errors import SettingsError
from thousandfold.pipeline import settings as settings_module
from thousandfold.pipeline.settings import (
    StageSettings,
    dump_settings,
    list_presets,
    load_preset,
    preset_info,
    resolve_settings,
    settings_to_yaml,
    split_overrides,
)


class TeacherSettings(StageSettings):
    """A small stand-in for a stage's settings."""

    task: str = "ant"
    depth: int = pydantic.Field(8, ge=4, multiple_of=4)
    learning_rate: float = pydantic.Field(3e-4, gt=0)
    energy: Literal["norm", "dot"] = "norm"
    compile: bool = False
    radii: tuple[float, ...] = (0.5,)
    goal_limit: float | None = None


@pytest.fixture
def presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of presets in the place of the shipped ones."""
    monkeypatch.setattr(settings_module, "PRESETS_FOLDER", tmp_path)
    (tmp_path / "paper").mkdir()
    (tmp_path / "quickstart.yaml").write_text(
        "description: Small and\n  quick.\n"
        "train_teacher: {depth: 16, learning_rate: 1e-3}\n"
        "distill: {depth: 4}\n"
    )
    (tmp_path / "paper" / "ant.yaml").write_text("extends: quickstart\ntrain_teacher: {depth: 64}\n")
    return tmp_path


def resolve(*overrides: str, preset: str | None = None, **flags: Any) -> TeacherSettings:
    """Resolve the stand-in's settings."""
    return resolve_settings(TeacherSettings, "train_teacher", preset=preset, overrides=overrides, flags=flags)


def error_of(*overrides: str, **flags: Any) -> str:
    """Return the one line that says what is wrong."""
    with pytest.raises(SettingsError) as caught:
        resolve(*overrides, **flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_source_wins_over_the_one_before(presets: Path) -> None:
    assert resolve().depth == 8
    assert resolve(preset="quickstart").depth == 16
    assert resolve(preset="quickstart", depth=32).depth == 32
    assert resolve("depth=64", preset="quickstart", depth=32).depth == 64


def test_a_flag_that_was_not_given_changes_nothing(presets: Path) -> None:
    assert resolve(preset="quickstart", depth=None).depth == 16


@pytest.mark.parametrize(
    ("text", "number"), [("1e-4", 1e-4), ("1E+2", 100.0), (".5", 0.5), ("3", 3.0), ("2.5e3", 2500.0)]
)
def test_override_numbers_are_floats(text: str, number: float) -> None:
    value = resolve(f"learning_rate={text}").learning_rate
    assert isinstance(value, float)
    assert value == number


def test_override_values_are_yaml() -> None:
    settings = resolve("radii=[0.1, 2e-1]", "compile=on", "task=on", "goal-limit=null", "depth=1_000")
    assert settings.radii == (0.1, 0.2)
    assert settings.compile is True
    assert settings.task == "on"
    assert settings.goal_limit is None
    assert settings.depth == 1000


def test_whole_floats_are_counts() -> None:
    assert resolve("depth=1e3").depth == 1000


def test_an_unknown_key_gets_the_nearest_name() -> None:
    assert error_of("dpeth=8") == "train_teacher: Unknown setting 'dpeth': did you mean 'depth'?"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("depth=6", "depth must be a multiple of 4 (got 6)"),
        ("depth=0", "depth must be greater than or equal to 4 (got 0)"),
        ("depth=deep", "depth must be a valid integer"),
        ("depth=4.5", "depth must be a valid integer"),
        ("depth=true", "depth must not be true or false (got True)"),
        ("learning_rate=.inf", "learning_rate must be a finite number"),
        ("learning_rate=.nan", "learning_rate must be"),
        ("energy=cosine", "energy must be 'norm' or 'dot' (got 'cosine')"),
        ("device=gpu", "device must be 'auto', 'cpu' or 'cuda' (got 'gpu')"),
        ("seed=-1", "seed must be greater than or equal to 0 (got -1)"),
        ("radii=[1, x]", "radii.1 must be a valid number"),
        ("depth", "--set depth: expected key=value"),
        ("=3", "--set =3: expected key=value"),
        ("radii=[1,", "is not valid YAML"),
        ("task=!!python/object:os.system {}", "is not valid YAML"),
    ],
)
def test_a_wrong_value_is_explained(override: str, words: str) -> None:
    assert words in error_of(override)


def test_every_mistake_is_named_at_once() -> None:
    message = error_of("depth=6", "energy=cosine")
    assert "depth must" in message
    assert "energy must" in message


def test_settings_are_frozen() -> None:
    with pytest.raises(pydantic.ValidationError):
        resolve().depth = 12  # type: ignore[misc]


def test_defaults_are_validated_too() -> None:
    class Wrong(StageSettings):
        depth: int = pydantic.Field(3, multiple_of=4)

    with pytest.raises(SettingsError, match="depth must be a multiple of 4"):
        resolve_settings(Wrong, "train_teacher")


def test_presets_are_listed_with_their_descriptions(presets: Path) -> None:
    found = [(preset.name, preset.description) for preset in list_presets()]
    assert found == [("paper/ant", ""), ("quickstart", "Small and quick.")]


def test_extends_merges_key_by_key(presets: Path) -> None:
    assert load_preset("paper/ant") == {
        "train_teacher": {"depth": 64, "learning_rate": 1e-3},
        "distill": {"depth": 4},
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("extends: broken", "in a circle: broken -> broken"),
        ("extends: quickstrat", "did you mean 'quickstart'"),
        ("train_techer: {}", "did you mean 'train_teacher'"),
        ("train_teacher: 3", "section train_teacher must hold"),
        ("- a list", "must hold one section a stage"),
        ("train_teacher: {", "is not valid YAML"),
    ],
)
def test_a_broken_preset_is_explained(presets: Path, content: str, words: str) -> None:
    (presets / "broken.yaml").write_text(content)
    with pytest.raises(SettingsError) as caught:
        load_preset("broken")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


PUBLISHED = """
published:
  source: a paper
  time_at_goal: {4: 12.6, 64: 649}
  hours: {4: 1.5, 64: 11}
  hardware: one GPU
"""


def test_a_published_outcome_stands_beside_the_settings(presets: Path) -> None:
    (presets / "paper" / "ant.yaml").write_text("extends: quickstart\n" + PUBLISHED)
    published = preset_info("paper/ant").published
    assert published is not None and published.time_at_goal == {4: 12.6, 64: 649}
    assert str(published) == ("time at goal 649 at depth 64 in 11 h on one GPU, 12.6 at depth 4 (a paper)")
    assert [preset.published for preset in list_presets()] == [published, None]
    assert preset_info("quickstart").published is None
    assert "published" not in load_preset("paper/ant")


def test_a_published_outcome_that_cannot_be_read_is_explained(presets: Path) -> None:
    (presets / "broken.yaml").write_text(PUBLISHED.replace("649", "many"))
    with pytest.raises(SettingsError, match=r"published\.time_at_goal\.64: "):
        preset_info("broken")
    with pytest.raises(SettingsError, match="Unknown preset"):
        preset_info("brokn")


@pytest.mark.parametrize("name", ["quickstrat", "../presets/quickstart", ""])
def test_an_unknown_preset_is_refused(presets: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="Unknown preset"):
        load_preset(name)


def test_shipped_presets_load() -> None:
    presets = list_presets()
    assert {"quickstart", "thousand-layers"} <= {preset.name for preset in presets}
    for preset in presets:
        assert preset.description
        assert load_preset(preset.name)


def test_overrides_are_sorted_by_stage() -> None:
    overrides = ["train-teacher.depth=32", "distill.loss=a.b=c", "train_teacher.seed=1"]
    assert split_overrides(overrides, ("train_teacher", "distill", "evaluate")) == {
        "train_teacher": ("depth=32", "seed=1"),
        "distill": ("loss=a.b=c",),
        "evaluate": (),
    }


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("depth=3", "name the stage too"),
        ("distil.depth=3", "did you mean 'distill'"),
        ("rate=0.5", "name the stage too"),
    ],
)
def test_an_override_without_its_stage_is_explained(override: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        split_overrides([override], ("train_teacher", "distill"))


def test_settings_survive_json_and_yaml() -> None:
    settings = resolve("radii=[1, 1e-5]", "task=arm")
    assert TeacherSettings(**json.loads(json.dumps(dump_settings(settings)))) == settings
    assert TeacherSettings(**yaml.safe_load(settings_to_yaml(settings))) == settings


def test_measured_minutes_are_those_of_the_study_that_they_name() -> None:
    """Medians over a task's seeds of when an evaluation first met 0.8; none where half of them never did."""
    measured = [preset.measured for preset in list_presets() if preset.measured is not None]
    assert measured
    for each in measured:
        content = json.loads((Path(__file__).parents[2] / each.source).read_text())
        seconds: dict[str, list[float]] = {}
        for training in content["trainings"]:
            curve = training["curve"]
            met = [
                when
                for when, success in zip(curve["elapsed_s"], curve["success"], strict=True)
                if success >= 0.8
            ]
            seconds.setdefault(training["task"], []).append(min(met, default=math.inf))
        medians = {task: statistics.median(found) / 60 for task, found in seconds.items()}
        expected = {
            task: float(f"{value:.2g}")
            for task, value in medians.items()
            if math.isfinite(value) and task in TASK_NAMES  # `pipeline tasks` lists no users' tasks
        }
        assert each.minutes == expected


def test_measured_minutes_that_cannot_be_read_are_explained(presets: Path) -> None:
    (presets / "broken.yaml").write_text("measured: {source: a, processor: b, minutes: {ant: soon}}\n")
    with pytest.raises(SettingsError, match=r"measured\.minutes\.ant: "):
        preset_info("broken")
