"""A page of YAML whose numbers are YAML 1.2's and whose every entry knows its line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from thousandfold.envs.task import EPISODES, TaskError
from thousandfold.ground.limited_yaml import MOST_BYTES, LimitedYamlError, load_yaml_nodes
from thousandfold.ground.plain_files import read_plain

Location = Sequence[str | int]
"""How to get to an entry: keys of mappings and indices of lists, such as ``("observation", 1, "field")``."""


@dataclass(frozen=True)
class Page:
    """A YAML file that holds a mapping.

    Attributes:
        path: absolute.
        text: as it stands in the file.
        content: the mapping.
        root: its node, which knows the lines.
    """

    path: Path
    text: str
    content: dict[str, Any]
    root: yaml.Node

    def error(self, location: Location, reason: str) -> TaskError:
        """Return the error that says what is wrong with an entry, and where it stands; one line."""
        return TaskError(f"{self.place(location)}: {' '.join(reason.split())}")

    def place(self, location: Location) -> str:
        """Return ``robot.yaml, line 7, observation[1].field`` for an entry, or the nearest that is there."""
        steps, begins, _ = self._follow(location)
        where = f", {_label(steps)}" if steps else ""
        return f"{shown(self.path)}, line {begins.start_mark.line + 1}{where}"

    def scalar(self, location: Location) -> str | None:
        """Return the text of an entry's value as it stands on the page; None for a list or a mapping."""
        value = self._follow(location)[2]
        return value.value if isinstance(value, yaml.ScalarNode) else None

    def scalar_span(self, key: str) -> tuple[int, int]:
        """Return where the value of a top-level key begins and ends in `text`."""
        value = self._follow((key,))[2]
        return value.start_mark.index, value.end_mark.index

    def file(self, key: str) -> Path:
        """Return the path that a top-level key gives, from the page's folder; nothing need be there.

        Raises:
            TaskError: no file can be called so.
        """
        name = str(self.content[key])
        path = self.path.parent / os.path.expanduser(name)
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return path
        except (OSError, ValueError) as error:  # too long, or with a NUL in it
            reason = getattr(error, "strerror", None) or error
            raise self.error((key,), f"{name!r:.80} is not a file name: {reason}") from None
        return path

    def _follow(self, location: Location) -> tuple[list[str | int], yaml.Node, yaml.Node]:
        """Return the steps to an entry, and the nodes where it begins, which is its key, and its value does.

        An index that the page does not have is left out: one entry may stand where a list of them may.
        """
        steps: list[str | int] = []
        begins = value = self.root
        for step in location:
            found = _child(value, step)
            begins, value = found or (begins, value)
            steps += [step] if found or isinstance(step, str) else []
        return steps, begins, value


def _child(node: yaml.Node, step: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if key.value == str(step)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    return None


def _label(steps: Location) -> str:
    """Return ``observation[1].field`` for ``("observation", 1, "field")``."""
    parts = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return "".join(parts).removeprefix(".")


def shown(path: Path) -> str:
    """Return a path as people write it: relative where it lies below the current folder."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def read_page(path: str | Path) -> Page:
    """Read a YAML file.

    Raises:
        TaskError: there is none, or it is no regular file of at most 1 MiB, or no YAML within the limits of
            `load_yaml`, or not a mapping; names file and line.
    """
    place = Path(os.path.abspath(os.path.expanduser(path)))
    try:
        str(place).encode()
    except UnicodeEncodeError:
        raise TaskError(f"{str(shown(place))!a} is no name in UTF-8: rename it.") from None
    try:
        text = read_plain(place, MOST_BYTES).decode()
    except FileNotFoundError:
        raise TaskError(f"There is no task file {shown(place)}.") from None
    except UnicodeDecodeError:
        raise TaskError(f"{shown(place)} is not a text file in UTF-8.") from None
    except OSError as error:
        raise TaskError(f"{shown(place)} cannot be read: {error.strerror}.") from None
    try:
        content, root = load_yaml_nodes(text)
    except LimitedYamlError as error:
        line = f", line {error.line}" if error.line else ""
        raise TaskError(f"{shown(place)}{line}: not valid YAML: {error}.") from None
    if root is None or not isinstance(content, dict):
        raise TaskError(f"{shown(place)} holds no `key: value` lines: see docs/user_tasks.md.")
    return Page(place, text, content, root)


def task_place(file: str | None, location: Location) -> str:
    """Return where an entry of a task stands: as `Page.place` says it, or the entry alone of a built-in task.

    Args:
        file: the task's page of YAML; None for a built-in one.
        location: the entry. Of a section of episodes, such as ``training``, the part of the whole task is
            meant where it has none of its own.
    """
    if file is None:
        return _label(location)
    page, (first, *rest) = read_page(file), location
    own = page.content.get(first) if first in EPISODES else None
    borrowed = first in EPISODES and not (isinstance(own, dict) and rest and rest[0] in own)
    return page.place(rest if borrowed and rest else location)
