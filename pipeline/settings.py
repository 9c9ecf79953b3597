"""Typed settings of every stage: defaults, a preset, a `--config` file, flags, then `--set key=value`.

A preset is a YAML file, below `pipeline/presets` or anywhere else, with one section a stage. A `--config`
file is of the same form, and so is what `pipeline run --dry-run` prints:

    description: Half an hour on a laptop.
    extends: quickstart
    train_teacher: {depth: 32, critic_learning_rate: 3e-4}

One that repeats a published experiment has the published outcome beside its settings, as `published`.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args

import pydantic
import yaml

from thousandfold.ground.errors import SettingsError, unknown_name
from thousandfold.ground.limited_yaml import MOST_BYTES, LimitedYamlError, load_yaml
from thousandfold.ground.plain_files import read_plain

_ROOT = Path(__file__).resolve().parents[1]
PRESETS_FOLDER = _ROOT / "pipeline/presets"
STAGE_SECTIONS = (
    "train_teacher", "generate_dataset", "distill", "export_onnx", "benchmark", "evaluate", "render",
    "frontier", "report",
)  # fmt: skip

SETTINGS_CLASSES = {
    "train_teacher": ("stages.train_teacher.settings", "TrainTeacherSettings"),
    "generate_dataset": ("stages.dataset.generate_dataset", "GenerateDatasetSettings"),
    "import_dataset": ("stages.dataset.import_dataset", "ImportDatasetSettings"),
    "distill": ("stages.distill.settings", "DistillSettings"),
    "export_onnx": ("stages.export_onnx.export_onnx", "ExportOnnxSettings"),
    "benchmark": ("stages.benchmark.benchmark", "BenchmarkSettings"),
    "evaluate": ("stages.closed_loop.evaluate", "EvaluateSettings"),
    "render": ("stages.closed_loop.render", "RenderSettings"),
    "frontier": ("stages.frontier.cells", "FrontierSettings"),
    "report": ("stages.report.report", "ReportSettings"),
}
"""Where the settings of every stage lie, in the order of the chain: module and class."""

MOST_EPISODES = 1_000_000
"""of a closed-loop measurement: an interval of ±0.1 % of success"""
MOST_THREADS = 1024


class StageSettings(pydantic.BaseModel):
    """What every stage can be told. Unknown keys, NaN and infinity are refused; instances are frozen."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )
    BEFORE: ClassVar[Mapping[str, Any]] = {}
    """What versions did that had no such setting yet, where that is not the default."""

    @classmethod
    def stored(cls, values: Mapping[str, Any]) -> Self:
        """Return settings as an artifact has them, made by this version or an earlier one."""
        return cls(**{**cls.BEFORE, **values})

    seed: int = pydantic.Field(
        default=0, ge=0, le=2**63 - 1, description="Seed of every random number generator."
    )
    device: Literal["auto", "cpu", "cuda"] = pydantic.Field(
        default="auto", description="Where networks and simulation run."
    )

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _refuse_bool_as_number(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        """Refuse `depth=true`, which pydantic would take for 1."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError("must not be true or false")
        return value


Settings = TypeVar("Settings", bound=StageSettings)


class PublishedOutcome(pydantic.BaseModel):
    """What the authors of an experiment report of it, to compare with."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    source: str
    time_at_goal: dict[int, float]
    """Steps at the goal per 1000, by depth."""
    hours: dict[int, float]
    """Of the training, on this hardware, by depth."""
    hardware: str

    @pydantic.model_validator(mode="after")
    def _of_the_same_depths(self) -> PublishedOutcome:
        if not self.time_at_goal or not self.time_at_goal.keys() <= self.hours.keys():
            raise ValueError("time_at_goal wants a depth at least, and hours for each of its depths")
        return self

    def __str__(self) -> str:
        depth, shallow = max(self.time_at_goal), min(self.time_at_goal)
        return (
            f"time at goal {self.time_at_goal[depth]:g} at depth {depth} in {self.hours[depth]:g} h "
            f"on {self.hardware}, {self.time_at_goal[shallow]:g} at depth {shallow} ({self.source})"
        )


class MeasuredMinutes(pydantic.BaseModel):
    """How long the preset's trainings took to 0.8 of success, task by task."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    source: str
    """The file with every seed's curve."""
    processor: str
    minutes: dict[str, float]
    """By task: the median over seeds, evaluations included."""


@dataclass(frozen=True)
class PresetInfo:
    """A preset that can be named on the command line, such as `quickstart` or `paper/ant`.

    Attributes:
        published: what was published of the preset's experiment; None where it repeats none.
        measured: how long its trainings took here; None where that was not measured.
        default_for: the tasks whose default it is on a CPU.
    """

    name: str
    description: str
    path: Path
    published: PublishedOutcome | None = None
    measured: MeasuredMinutes | None = None
    default_for: tuple[str, ...] = ()


def list_presets() -> list[PresetInfo]:
    """Return every built-in preset, sorted by name. Raises SettingsError for a file that is not a preset."""
    return [preset_info(name) for name in preset_names()]


def preset_names() -> list[str]:
    """Return the names of the built-in presets, sorted."""
    return sorted(
        path.relative_to(PRESETS_FOLDER).with_suffix("").as_posix() for path in PRESETS_FOLDER.rglob("*.yaml")
    )


def preset_info(name: str) -> PresetInfo:
    """Return what a preset's file says beside its settings.

    Raises SettingsError for an unknown preset or a file that is not one.
    """
    path = _preset_path(name)
    content = _read_preset(path)
    description = " ".join(str(content.get("description", "")).split())
    tasks = tuple(content.get("default_for", ()))
    return PresetInfo(name, description, path, content.get("published"), content.get("measured"), tasks)


def load_preset(name: str) -> dict[str, dict[str, Any]]:
    """Return the preset's settings by section, merged over those of the preset that it extends.

    Raises SettingsError for an unknown preset or section, a damaged file, or a circle of `extends`.
    """
    found = preset_origins(name)
    return {section: {key: value for key, (value, _) in keys.items()} for section, keys in found.items()}


def preset_origins(name: str, extended_by: tuple[str, ...] = ()) -> dict[str, dict[str, tuple[Any, str]]]:
    """Return the preset's settings by section, each with the preset that it comes from.

    `name` is a built-in preset, or a YAML file; `extends` in a file names either, a file by its place beside
    that one. Raises as `load_preset` does.
    """
    if name in extended_by:
        raise SettingsError(f"Presets extend each other in a circle: {' -> '.join((*extended_by, name))}.")
    content = _read_preset(_preset_path(name))
    base = content.get("extends")
    if is_preset_file(name):
        for section in STAGE_SECTIONS:
            keys = setting_keys(section)
            for key in content.get(section, {}):
                if key not in keys:
                    raise SettingsError(f"{name}: {section}: {unknown_name('setting', str(key), keys)}")
        if is_preset_file(str(base)):
            base = os.path.normpath(Path(name).parent / Path(str(base)).expanduser())
    merged = preset_origins(str(base), (*extended_by, name)) if base else {}
    for section in STAGE_SECTIONS:
        own = {key: (value, name) for key, value in content.get(section, {}).items()}
        if section in content:
            merged[section] = {**merged.get(section, {}), **own}
    return merged


def resolve_settings(
    cls: type[Settings],
    section: str,
    *,
    preset: str | None = None,
    values: Mapping[str, Any] | None = None,
    overrides: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> Settings:
    """Build a stage's settings: defaults < preset < values < flags < overrides.

    Args:
        cls: The stage's settings class.
        section: The stage's name in presets, such as `train_teacher`.
        preset: Name or file of a preset, or None for the defaults.
        values: Settings of a file, or those that a run was made with; None is a value like any other.
        overrides: `key=value` pairs; the value is read as YAML, so `1e-4` is a number and `[1, 2]` a list.
        flags: Values of command-line flags; None means that the flag was not given.

    Raises:
        SettingsError: One line with every unknown key (and the nearest valid one) and every value out of
            bounds (and what is allowed).
    """
    merged = merge_settings(section, preset=preset, values=values, overrides=overrides, flags=flags)
    try:
        return cls.model_validate(merged)
    except pydantic.ValidationError as error:
        problems = "; ".join(_explain(cls, detail) for detail in error.errors(include_url=False))
        raise SettingsError(f"{section}: {problems}") from None


def merge_settings(
    section: str,
    *,
    preset: str | None = None,
    values: Mapping[str, Any] | None = None,
    overrides: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what is said of a stage's settings, as `resolve_settings` takes it, before it is checked."""
    merged = dict(load_preset(preset).get(section, {})) if preset else {}
    merged.update(values or {})
    merged.update({key: value for key, value in (flags or {}).items() if value is not None})
    merged.update(parse_override(override) for override in overrides)
    return merged


def split_overrides(overrides: Iterable[str], sections: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Sort `stage.key=value` overrides by stage; `train-teacher.depth` is `train_teacher.depth`.

    Returns a tuple of `key=value` for every section, empty where there is none.
    Raises SettingsError where the stage is missing or unknown.
    """
    by_section: dict[str, list[str]] = {section: [] for section in sections}
    for override in overrides:
        key, equals, value = override.partition("=")
        section, dot, name = key.strip().partition(".")
        if not dot:
            raise SettingsError(f"--set {_cut(override)}: name the stage too, as in train_teacher.depth=32.")
        section = section.replace("-", "_")
        if section not in by_section:
            raise SettingsError(f"--set {_cut(override)}: {unknown_name('stage', section, by_section)}")
        by_section[section].append(name + equals + value)
    return {section: tuple(found) for section, found in by_section.items()}


def dump_settings(settings: StageSettings) -> dict[str, Any]:
    """Return the settings as a dictionary that JSON can hold, in the order of their definition."""
    return settings.model_dump(mode="json")


def settings_to_yaml(settings: StageSettings) -> str:
    """Return the settings as YAML, one key a line, in the order of their definition."""
    return yaml.safe_dump(dump_settings(settings), sort_keys=False, allow_unicode=True)


def _load_yaml(text: str, where: str) -> Any:
    """Parse YAML; `where` names its origin in the SettingsError."""
    try:
        return load_yaml(text)
    except LimitedYamlError as error:
        place = f" (line {error.line})" if error.line else ""
        raise SettingsError(f"{where} is not valid YAML: {error}{place}.") from None


_OUTCOMES: dict[str, type[pydantic.BaseModel]] = {"published": PublishedOutcome, "measured": MeasuredMinutes}


def is_preset_file(preset: str) -> bool:
    """Tell whether this is the file of a preset, and not the name of a built-in one."""
    return preset.endswith((".yaml", ".yml"))


def _preset_path(name: str) -> Path:
    """Return the file of a preset. Raises SettingsError where there is no built-in one of that name."""
    if is_preset_file(name):
        return Path(name).expanduser()
    if name not in (names := preset_names()):
        raise SettingsError(unknown_name("preset", name, names))
    return PRESETS_FOLDER / f"{name}.yaml"


def _read_preset(path: Path) -> dict[str, Any]:
    """Read one preset file and check its shape: known keys, and a mapping in every section."""
    try:
        text = read_plain(path, MOST_BYTES).decode()
    except UnicodeDecodeError:
        raise SettingsError(f"Preset {path} is no text file in UTF-8.") from None
    except OSError as error:
        raise SettingsError(f"Preset {path} cannot be read: {error.strerror}.") from None
    content = _load_yaml(text, where=f"Preset {path}")
    if not isinstance(content, dict):
        raise SettingsError(f"Preset {path} must hold one section a stage: {', '.join(STAGE_SECTIONS)}.")
    for key, section in content.items():
        if key in ("description", "extends"):
            if not isinstance(section, str):
                raise SettingsError(f"Preset {path}: {key} must be text, not {section!r}.")
            continue
        if key == "default_for":
            if not isinstance(section, list) or not all(isinstance(task, str) for task in section):
                raise SettingsError(f"Preset {path}: default_for must be a list of tasks, not {section!r}.")
            continue
        if key in _OUTCOMES:
            try:
                content[key] = _OUTCOMES[key].model_validate(section)
            except pydantic.ValidationError as error:
                detail = error.errors(include_url=False)[0]
                place = ".".join(str(part) for part in (key, *detail["loc"]))
                raise SettingsError(
                    f"Preset {path}: {place}: {detail['msg'].removeprefix('Value error, ')}."
                ) from None
            continue
        if key not in STAGE_SECTIONS:
            raise SettingsError(f"Preset {path}: {unknown_name('section', str(key), STAGE_SECTIONS)}")
        if not isinstance(section, dict):
            raise SettingsError(f"Preset {path}: section {key} must hold `key: value` lines.")
    return content


def setting_keys(section: str) -> list[str]:
    """Return the names of a stage's settings, read from the sources: importing some stages takes seconds.

    Returns nothing of an unknown stage.
    """
    if section not in SETTINGS_CLASSES:
        return []
    module, name = SETTINGS_CLASSES[section]
    return _keys(module, name)


def _keys(module: str, name: str) -> list[str]:
    """Return the fields that a class has, those of its base first."""
    path = _ROOT.joinpath(*module.split(".")).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        alias.name: str(node.module).removeprefix("thousandfold.")
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    keys: list[str] = []
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or node.name != name:
            continue
        for base in node.bases:
            if isinstance(base, ast.Name):
                keys += _keys(imported.get(base.id, module), base.id)
        own = [field for field in node.body if isinstance(field, ast.AnnAssign)]
        keys += [
            field.target.id
            for field in own
            if isinstance(field.target, ast.Name) and "ClassVar" not in ast.unparse(field.annotation)
        ]
    return list(dict.fromkeys(keys))


def parse_override(override: str) -> tuple[str, Any]:
    """Split `key=value` and read the value as YAML."""
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise SettingsError(f"--set {_cut(override)}: expected key=value.")
    return key.strip().replace("-", "_"), _load_yaml(value, where=f"--set {_cut(override)}")


def _explain(cls: type[StageSettings], detail: Any) -> str:
    """Put one pydantic error into words: the setting, what is allowed and what was given."""
    name = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return unknown_name("setting", name, cls.model_fields)
    if detail["type"] == "missing":
        return f"{name} must be given"
    reason = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if not name or reason.startswith((f"{name} ", "Unknown ")):
        return reason
    path = Path(detail["input"]) if isinstance(detail["input"], str) else Path()
    if path.suffix and path.name in reason:
        return reason  # it names the file that is wrong
    joint = " " if reason.startswith("must ") else ": "
    return " ".join(f"{name}{joint}{reason} (got {_cut(repr(detail['input']))})".split())


def _cut(text: str) -> str:
    """Return a text as it is told in a message, its beginning where it is long."""
    return text if len(text) <= 120 else f"{text[:117]}..."
