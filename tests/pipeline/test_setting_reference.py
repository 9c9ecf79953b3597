"""Where settings come from: presets in full, files of one's own, and what can be set at all."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from thousandfold.pipeline.cli import cli
from thousandfold.pipeline.completion import setting_keys
from thousandfold.pipeline.settings import SETTINGS_CLASSES, load_preset, preset_origins


def invoke(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [*arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def told(*arguments: str) -> Any:
    return json.loads(invoke(*arguments, "--json").stdout.splitlines()[-1])


def write(path: Path, **content: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return str(path)


class TestOnePreset:
    def test_says_where_each_value_comes_from(self) -> None:
        found = told("presets", "cpu/ant")
        assert found["settings"] == load_preset("cpu/ant")
        sources = found["from"]["train_teacher"]
        assert set(sources.values()) == {"cpu/ant", "cpu"}
        for key, source in sources.items():
            assert load_preset(source)["train_teacher"][key] == found["settings"]["train_teacher"][key]
        shown = invoke("presets", "cpu/ant").stdout
        assert "train-teacher" in shown and "cpu/ant" in shown

    def test_an_unknown_one_is_one_line(self) -> None:
        assert "did you mean 'quickstart'?" in invoke("presets", "quickstat", code=2).stderr


class TestPresetsOfOnesOwn:
    def test_a_file_extends_a_preset_or_a_file_beside_it(self, tmp_path: Path) -> None:
        base = write(tmp_path / "base.yaml", extends="smoke", train_teacher={"depth": 8})
        mine = write(tmp_path / "mine.yaml", extends="base.yaml", train_teacher={"width": 16})
        origins = preset_origins(mine)["train_teacher"]
        assert origins["width"] == (16, mine) and origins["depth"] == (8, base)
        assert origins["env_steps"][1] == "smoke"
        found = told("train-teacher", "--preset", mine, "--dry-run")["train_teacher"]
        assert (found["depth"], found["width"]) == (8, 16)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ({"extends": "mine.yaml"}, "in a circle"),
            ({"extends": "../beside/mine.yaml"}, "in a circle"),
            ({"extends": 0}, "extends must be text"),
            ({"evaluate": {"epsodes": 1}}, "evaluate: Unknown setting 'epsodes': did you mean 'episodes'?"),
            (
                {"published": {"source": "x", "time_at_goal": {64: 1}, "hours": {4: 1}, "hardware": "h"}},
                "published: time_at_goal wants a depth at least, and hours for each",
            ),
            ({"train_techer": {}}, "did you mean 'train_teacher'?"),
            ({"train_teacher": 3}, "must hold `key: value` lines"),
        ],
    )
    def test_a_wrong_one_is_one_line(self, tmp_path: Path, content: dict[str, Any], said: str) -> None:
        (tmp_path / "beside").mkdir()
        mine = write(tmp_path / "beside" / "mine.yaml", **content)
        for option in ("--preset", "--config"):
            assert said in invoke("train-teacher", option, mine, "--dry-run", code=2).stderr

    def test_one_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        missing = str(tmp_path / "no.yaml")
        assert f"{missing} cannot be read" in invoke("run", "--preset", missing, "--dry-run", code=2).stderr


class TestConfig:
    @pytest.mark.parametrize("preset", ["smoke", "thousand-layers"])
    def test_what_a_dry_run_prints_can_be_given_back(self, tmp_path: Path, preset: str) -> None:
        file = tmp_path / "chain.yaml"
        arguments = (
            "run",
            "--preset",
            preset,
            "--seed",
            "7",
            "--set",
            "distill.student_depth=2",
            "--dry-run",
        )
        file.write_text(invoke(*arguments).stdout)
        assert told("run", "--config", str(file), "--dry-run") == told(*arguments)
        assert told("run", "--preset", str(file), "--dry-run") == told(*arguments)

    def test_lies_between_the_preset_and_the_flags(self, tmp_path: Path) -> None:
        file = write(tmp_path / "c.yaml", train_teacher={"depth": 8, "width": 24, "env_steps": 640})
        arguments = (
            "train-teacher",
            "--preset",
            "smoke",
            "--config",
            file,
            "--width",
            "32",
            "--set",
            "env_steps=320",
        )
        found = told(*arguments, "--dry-run")["train_teacher"]
        assert (found["depth"], found["width"], found["env_steps"]) == (8, 32, 320)
        assert found["num_worlds"] == load_preset("smoke")["train_teacher"]["num_worlds"]

    @pytest.mark.parametrize("command", ["run", "train-teacher"])
    def test_is_refused_with_resume(self, tmp_path: Path, command: str) -> None:
        file = write(tmp_path / "c.yaml", train_teacher={})
        arguments = ("--workspace", str(tmp_path), command, "--resume", "--config", file)
        said = invoke(*arguments, code=2).stderr
        assert "leave --config out" in said or "No unfinished" in said

    def test_a_file_that_is_no_yaml_is_refused(self) -> None:
        assert "ends in .yaml" in invoke("run", "--config", "smoke", "--dry-run", code=2).stderr


class TestReference:
    @pytest.mark.parametrize("section", SETTINGS_CLASSES)
    def test_every_setting_is_described(self, section: str) -> None:
        module, name = SETTINGS_CLASSES[section]
        fields = getattr(importlib.import_module(f"thousandfold.{module}"), name).model_fields
        assert sorted(setting_keys(section)) == sorted(fields)
        rows = told("settings", section.replace("_", "-"))["settings"]
        assert [row["setting"] for row in rows] == list(fields)
        assert all(row["meaning"] and row["allowed"] for row in rows)

    def test_bounds_choices_and_defaults(self) -> None:
        rows = {row["setting"]: row for row in told("settings", "train_teacher")["settings"]}
        assert rows["depth"]["allowed"] == "whole number 4 to 4,096"
        assert rows["depth"]["default"] == "16"
        assert rows["actor_depth"]["allowed"] == "whole number 4 to 4,096 or null"
        assert rows["device"]["allowed"] == "auto, cpu, cuda"
        assert rows["residual"]["allowed"] == "true, false"

    def test_without_a_stage_the_stages_are_listed(self) -> None:
        assert [row["stage"] for row in told("settings")["stages"]][:2] == [
            "train-teacher",
            "generate-dataset",
        ]

    def test_an_unknown_stage_is_answered_with_the_nearest(self) -> None:
        assert "did you mean 'distill'?" in invoke("settings", "distil", code=2).stderr
