"""What can be set of a stage: `pipeline settings`, from the settings' own definitions."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

from thousandfold.ground.errors import SettingsError, unknown_name
from thousandfold.pipeline.completion import complete_stages, setting_keys
from thousandfold.pipeline.console import as_set
from thousandfold.pipeline.listing import show_rows
from thousandfold.pipeline.session import Session, json_option
from thousandfold.pipeline.settings import SETTINGS_CLASSES, StageSettings

_ENDLESS = 2**53
"""from where a bound is that of the machine's numbers"""


@click.command()
@click.argument("stage", required=False, shell_complete=complete_stages)
@json_option
@click.pass_obj
def settings(session: Session, stage: str | None) -> None:
    """List what --set takes of STAGE, such as train-teacher: default, what is allowed, and what it means."""
    with session.open(mujoco=stage is not None):
        if stage is None:
            rows = [
                {"stage": section.replace("_", "-"), "settings": len(setting_keys(section))}
                for section in SETTINGS_CLASSES
            ]
            show_rows(session.console, "Stages", rows)
            session.console.say("`pipeline settings STAGE` lists the settings of one.")
            return
        section = stage.replace("-", "_")
        if section not in SETTINGS_CLASSES:
            known = [name.replace("_", "-") for name in SETTINGS_CLASSES]
            raise SettingsError(unknown_name("stage", stage, known))
        module, name = SETTINGS_CLASSES[section]
        cls = getattr(importlib.import_module(f"thousandfold.{module}"), name)
        show_rows(session.console, f"Settings of {section.replace('_', '-')}", describe_settings(cls))


def describe_settings(cls: type[StageSettings]) -> list[dict[str, Any]]:
    """Return a row for every setting: its name, default, what is allowed, and what it means."""
    schema = cls.model_json_schema()
    return [
        {
            "setting": name,
            "default": as_set(cls.model_fields[name].get_default(call_default_factory=True)),
            "allowed": _allowed(said, schema.get("$defs", {})),
            "meaning": " ".join(said.get("description", "").split()),
        }
        for name, said in schema["properties"].items()
    ]


def _allowed(said: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Return what a JSON schema allows, in words: `4 to 4096 or null`."""
    if "$ref" in said:
        return _allowed(definitions[said["$ref"].rpartition("/")[2]], definitions)
    if choices := said.get("anyOf") or said.get("oneOf"):
        return " or ".join(dict.fromkeys(_allowed(choice, definitions) for choice in choices))
    if "const" in said:
        return str(said["const"])
    if "enum" in said:
        return ", ".join(map(as_set, said["enum"]))
    if said.get("type") == "array":
        return f"list of {_allowed(said.get('items', {}), definitions)}"
    kinds = {
        "integer": "whole number",
        "number": "number",
        "boolean": "true, false",
        "string": "text",
        "null": "null",
    }
    kind = kinds.get(str(said.get("type")), "any value")
    low, high = said.get("minimum"), said.get("maximum")
    if high is not None and high >= _ENDLESS:
        high = None
    if low is not None and high is not None:
        return f"{kind} {_bound(low)} to {_bound(high)}"
    bounds = {
        "from": low,
        "above": said.get("exclusiveMinimum"),
        "to": high,
        "below": said.get("exclusiveMaximum"),
    }
    return " ".join(
        [kind, *(f"{word} {_bound(bound)}" for word, bound in bounds.items() if bound is not None)]
    )


def _bound(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
