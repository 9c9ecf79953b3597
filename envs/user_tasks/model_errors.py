"""Where in a model's files an error of MuJoCo's stands: it counts no lines in files that others include."""

from __future__ import annotations

import re
import xml.parsers.expat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from thousandfold.envs.user_tasks.task_yaml import shown

_NO_LINE = ", line 0"


@dataclass(frozen=True)
class _Element:
    """An element of an included file, and where it begins."""

    path: Path
    line: int
    tag: str
    attributes: Mapping[str, str]

    @property
    def words(self) -> set[str]:
        return {*self.attributes, *self.attributes.values()}


@dataclass
class _Files:
    """What a model is made of.

    Attributes:
        main: its own file.
        included: the files it includes, and those that they include, in that order.
        elements: of the included files.
        broken: where the first included file that is no XML stops being any, and why.
    """

    main: Path
    included: list[Path] = field(default_factory=list)
    elements: list[_Element] = field(default_factory=list)
    broken: tuple[Path, int, str] | None = None

    def read(self, path: Path) -> None:
        """Read a file and what it includes."""
        parser = xml.parsers.expat.ParserCreate()
        names: list[str] = []

        def begin(tag: str, attributes: dict[str, str]) -> None:
            if tag == "include":
                names.append(attributes.get("file", ""))
            if path != self.main:
                self.elements.append(_Element(path, parser.CurrentLineNumber, tag, attributes))

        parser.StartElementHandler = begin
        try:
            parser.Parse(path.read_bytes(), True)
        except OSError:  # MuJoCo's own message says which file cannot be opened
            return
        except xml.parsers.expat.ExpatError as error:
            if path != self.main and self.broken is None:
                self.broken = path, error.lineno, xml.parsers.expat.ErrorString(error.code)
        for name in names:
            included = path.parent / name  # one that is not there, MuJoCo names itself
            if included not in (self.main, *self.included) and included.is_file():
                self.included.append(included)
                self.read(included)


def with_place(model: Path, message: str) -> str:
    """Return MuJoCo's message on one line, with file and line of what stands in an included file.

    Args:
        model: the model's own file.
        message: what MuJoCo says of it.

    Returns:
        The message, with ``line 6 of parts.xml`` in place of ``line 0``; with the names of all included files
        where the line cannot be told. As it is where it names a line of the model itself.
    """
    message = " ".join(message.split())
    files = _Files(model)
    files.read(model)
    if not files.included:
        return message
    if files.broken is not None and "Include error" in message:
        path, line, reason = files.broken
        return f"XML Error: {reason}, line {line} of {shown(path)}"
    if _NO_LINE not in message and re.search(r"\bline \d", message):
        return message
    found = _culprits(message, files.elements)
    if len(found) == 1:
        place = f", line {found[0].line} of {shown(found[0].path)}"
        return message.replace(_NO_LINE, place) if _NO_LINE in message else message + place
    names = ", ".join(shown(path) for path in files.included)
    if _NO_LINE in message:
        return message.replace(_NO_LINE, f", in a file that it includes: {names}")
    return f"{message} (or in a file that it includes: {names})"


def _culprits(message: str, elements: list[_Element]) -> list[_Element]:
    """Return the elements that a message may be about: of the tag and with the words that it quotes."""
    tag = re.search(r"Element '(\w+)'", message)
    name = re.search(r"Element name '([^']+)'", message)
    words = set(re.findall(r"'([^']+)'", message)) - ({tag[1]} if tag else set())
    if not words and not tag:
        return []
    tests: list[Callable[[_Element], bool]] = [
        lambda each: not tag or each.tag == tag[1],
        lambda each: words <= each.words,
        lambda each: not name or each.attributes.get("name") == name[1],
    ]
    if "bad format" in message:
        tests.append(lambda each: any(not _is_numeric(each.attributes.get(word, "0")) for word in words))
    return [each for each in elements if all(test(each) for test in tests)]


def _is_numeric(text: str) -> bool:
    try:
        [float(word) for word in text.split()]
    except ValueError:
        return False
    return True
