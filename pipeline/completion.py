"""What the shell completes: tasks, presets, artifacts and settings, without importing what takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from thousandfold.envs.task_names import TASK_NAMES
from thousandfold.ground.errors import UserError
from thousandfold.pipeline.artifacts import KINDS, MANIFEST_NAME, NEWEST, Workspace
from thousandfold.pipeline.settings import SETTINGS_CLASSES, preset_names, setting_keys

CHAIN_SECTIONS = (
    "train_teacher", "generate_dataset", "distill", "export_onnx", "benchmark", "render", "report",
)  # fmt: skip
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def complete_tasks(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the built-in tasks that begin so, and leave files to the shell."""
    return _beginning(begun, TASK_NAMES) + _files(begun)


def complete_presets(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the built-in presets that begin so, and leave files to the shell."""
    return _beginning(begun, preset_names()) + _files(begun)


def complete_stages(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the stages with settings that begin so."""
    return _beginning(begun, [section.replace("_", "-") for section in SETTINGS_CLASSES])


def complete_artifacts(*kinds: str) -> Complete:
    """Return what completes artifacts of these kinds, or of any, by the names of their folders."""

    def complete(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
        try:
            workspace = Workspace.resolve(context.find_root().params.get("workspace"))
        except UserError:
            return []
        folders = sorted((path.parent for path in workspace.runs.glob(f"*/{MANIFEST_NAME}")), reverse=True)
        names = [path.name for path in folders if path.name.partition("-")[0] in (kinds or KINDS)]
        return _beginning(begun, [NEWEST, *names])

    return complete


def complete_settings(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the settings of the command's stage that begin so, with `=`; of a chain with their stage."""
    return _beginning(begun, [f"{key}=" for key in settable(str(context.info_name))])


def settable(command: str) -> list[str]:
    """Return the settings that --set of a command takes; of what runs several stages with their stage."""
    several = {"run": CHAIN_SECTIONS, "frontier": ("frontier", "distill", "export_onnx", "benchmark")}
    if command in several:
        return [f"{section}.{key}" for section in several[command] for key in setting_keys(section)]
    sections = {"study": "train_teacher", "import": "import_dataset"}
    return setting_keys(sections.get(command, command.replace("-", "_")))


def _beginning(begun: str, names: list[str] | tuple[str, ...]) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(begun)]


def _files(begun: str) -> list[CompletionItem]:
    """Return what lets the shell complete files, where what is typed may be one."""
    place = Path(begun).expanduser()
    is_path = bool(begun) and (place.is_dir() or place.parent != Path(".") or any(Path().glob(f"{begun}*")))
    return [CompletionItem(begun, type="file")] if is_path else []
