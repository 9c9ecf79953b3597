"""The one reader of YAML: presets, settings, values of --set and the pages of tasks.

Plain scalars are YAML 1.2's, so that `1e-4` is a number and `off` a text; `1_000` is 1000 too. A number that
YAML 1.1 and 1.2 read differently, as `010` is 8 to one and 10 to the other, is refused. So is a page that is
too large, too deep, or grows too large as its aliases are written out, before anything of that size is made.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any, ClassVar

import yaml

MOST_BYTES = 2**20
MOST_DEPTH = 32
MOST_NODES = 50_000
"""Mappings, lists, keys and values, those of an alias as often as it is written."""

_MOST_DIGITS = 400  # the largest floating-point number has 309


class LimitedYamlError(ValueError):
    """Text that is no YAML, or is refused. The message is one line.

    Attributes:
        line: where, from 1; None where it is everywhere.
    """

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(" ".join(reason.split()))
        self.line = line


class _Refused(yaml.MarkedYAMLError):
    def __init__(self, reason: str, mark: yaml.Mark | None) -> None:
        super().__init__(problem=reason, problem_mark=mark)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}
    yaml_constructors: ClassVar[dict[Any, Any]] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0
        self._sizes: dict[int, int] = {}  # of finished nodes, with what their aliases stand for

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose the next node; refuse the one that exceeds depth or number."""
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            node: Any = super().compose_node(parent, index)
            if id(node) not in self._sizes:
                raise _Refused(f"the alias *{event.anchor} is part of what it stands for", event.start_mark)
            self._count(self._sizes[id(node)], event.start_mark)
            return node
        before = self._nodes
        self._count(1, event.start_mark)
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise _Refused(f"it is nested deeper than {MOST_DEPTH} levels", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        self._sizes[id(node)] = self._nodes - before
        return node

    def _count(self, nodes: int, mark: yaml.Mark) -> None:
        self._nodes += nodes
        if self._nodes > MOST_NODES:
            raise _Refused(f"it holds more than {MOST_NODES:,} entries, with aliases written out", mark)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """Return the mapping; refuse a key that is there twice."""
        if not isinstance(node, yaml.MappingNode):
            raise _Refused("expected `key: value` lines", node.start_mark)
        mapping: dict[Hashable, Any] = {}
        written: set[str] = set()
        for key_node, value_node in node.value:
            key: Any = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise _Refused("a list or a mapping cannot be a key", key_node.start_mark)
            text = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key in mapping or text in written:
                raise _Refused(f"the key {text!r:.80} is there twice", key_node.start_mark)
            written |= {text} if text is not None else set()
            mapping[key] = self.construct_object(value_node, deep=deep)
        return mapping


def _text(loader: _Loader, node: Any) -> str:
    return str(loader.construct_scalar(node))


def _null(loader: _Loader, node: yaml.Node) -> None:
    _text(loader, node)


def _bool(loader: _Loader, node: yaml.Node) -> bool:
    text = _text(loader, node)
    if text.lower() not in ("true", "false"):
        raise _Refused(f"{text!r:.80} is neither true nor false", node.start_mark)
    return text.lower() == "true"


def _number(kind: type[int] | type[float], loader: _Loader, node: yaml.Node) -> int | float:
    text = _text(loader, node)
    if len(text) > _MOST_DIGITS:
        raise _Refused(f"a number of more than {_MOST_DIGITS} digits", node.start_mark)
    word = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf", ".nan": "nan"}.get(text, text)
    try:
        return kind(word)
    except ValueError:
        raise _Refused(f"{text!r:.80} is no number", node.start_mark) from None


def _ambiguous(loader: _Loader, node: yaml.Node) -> None:
    text = _text(loader, node)
    raise _Refused(
        f"{text:.80} is one number in YAML 1.1 and another, or a text, in YAML 1.2: write a plain decimal "
        f'number, or "{text:.80}" for the text',
        node.start_mark,
    )


def _unknown_tag(_: _Loader, node: yaml.Node) -> None:
    raise _Refused(f"the tag {node.tag!r:.80} is not taken", node.start_mark)


_DIGITS = r"(?:0|[1-9][0-9]{0,2}(?:_[0-9]{3})+|[1-9][0-9]*)"
for _tag, _pattern, _first in (
    ("null", r"(?:~|null|)$", ["~", "n", ""]),
    ("bool", r"(?:true|True|false|False)$", "tTfF"),
    ("int", rf"[-+]?{_DIGITS}$", "-+0123456789"),
    ("float", rf"[-+]?(?:\.[0-9]+|{_DIGITS}(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("float", r"(?:[-+]?\.inf|\.nan)$", "-+."),
    # Octal, hexadecimal and binary numbers, those in base 60, and underscores elsewhere.
    ("ambiguous", r"[-+]?0[0-9_]+(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?$", "-+0"),
    ("ambiguous", r"[-+]?0(?:[xX][0-9a-fA-F_]+|[oO][0-7_]+|[bB][01_]+)$", "-+0"),
    ("ambiguous", r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?$", "-+0123456789"),
    (
        "ambiguous",
        r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?$",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))

for _tag, _construct in (
    ("null", _null),
    ("bool", _bool),
    ("int", lambda loader, node: _number(int, loader, node)),
    ("float", lambda loader, node: _number(float, loader, node)),
    ("ambiguous", _ambiguous),
    ("str", _text),
    ("seq", lambda loader, node: loader.construct_sequence(node, deep=True)),
    ("map", lambda loader, node: loader.construct_mapping(node, deep=True)),
):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _construct)
_Loader.yaml_constructors[None] = _unknown_tag


def load_yaml(text: str) -> Any:
    """Return what a text of YAML holds.

    Raises:
        LimitedYamlError: it is no YAML, too large or too deep, has a key twice, or an ambiguous number.
    """
    return load_yaml_nodes(text)[0]


def load_yaml_nodes(text: str) -> tuple[Any, yaml.Node | None]:
    """Return what a text of YAML holds, and its nodes, which know their lines; None for an empty text.

    Raises:
        LimitedYamlError: as `load_yaml`.
    """
    if len(text.encode(errors="surrogatepass")) > MOST_BYTES:
        raise LimitedYamlError(f"it is larger than {MOST_BYTES // 2**20} MiB")
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        return (None if root is None else loader.construct_document(root)), root
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise LimitedYamlError(str(reason), mark.line + 1 if mark else None) from None
    except (ValueError, OverflowError) as error:  # PyYAML lets that of an escape such as \UFFFFFFFF through
        raise LimitedYamlError(f"it cannot be read: {error}") from None
