"""The reader of YAML: numbers mean what they look like, and nothing that grows is read."""

from __future__ import annotations

from typing import Any

import pytest

from thousandfold.ground.limited_yaml import MOST_BYTES, LimitedYamlError, load_yaml, load_yaml_nodes


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        (".5", 0.5),
        ("1.", 1.0),
        ("12e03", 12000.0),
        ("-3", -3),
        ("0", 0),
        ("1_000", 1000),
        ("-1_000_000.5", -1000000.5),
        (".inf", float("inf")),
        ("true", True),
        ("off", "off"),
        ("2026-01-01", "2026-01-01"),
        ("1.2.3", "1.2.3"),
        (".", "."),
        ("_1", "_1"),
        ('"010"', "010"),
        ("!!str 010", "010"),
        ("~", None),
        ("", None),
        ("[&a [1], *a]", [[1], [1]]),
        ("<<: {a: 1}", {"<<": {"a": 1}}),
    ],
)
def test_values(text: str, value: Any) -> None:
    found = load_yaml(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["010", "-010", "00", "0x10", "0o17", "0b11", "1_0", "1__000", "1:30", "0_1", "1_"]
)
def test_a_number_that_is_another_one_in_yaml_1_1_is_refused(text: str) -> None:
    with pytest.raises(LimitedYamlError, match="one number in YAML") as caught:
        load_yaml(f"a: 1\nb: {text}")
    assert caught.value.line == 2


MULTIPLYING = "a0: &a0 [x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
REFUSED = {
    "aliases that multiply": (MULTIPLYING, "more than 50,000 entries, with aliases written out", 6),
    "many entries": ("[" + "[]," * 60_000 + "]", "more than 50,000 entries", 1),
    "deep lists": ("[" * 100_000, "nested deeper than 32 levels", 1),
    "deep mappings": ("{a: " * 100_000, "nested deeper than 32 levels", 1),
    "deep blocks": ("- " * 100_000, "nested deeper than 32 levels", 1),
    "an alias within itself": ("a: 1\nb: &b [*b]", "the alias *b is part of what it stands for", 2),
    "a large text": ("#" * (MOST_BYTES + 1), "larger than 1 MiB", None),
    "a key twice": ("a: 1\nb: 2\na: 3", "the key 'a' is there twice", 3),
    "an equal key": ("1: a\n1.0: b", "the key '1.0' is there twice", 2),
    "a list as a key": ("[1]: a", "a list or a mapping cannot be a key", 1),
    "a tag of Python's": ("!!python/object:os.system {}", "is not taken", 1),
    "a tag that does not fit": ("!!int x", "'x' is no number", 1),
    "a long number": ("a: " + "9" * 5000, "more than 400 digits", 1),
    "an escape that is no character": ('"\\UFFFFFFFF"', "cannot be read", None),
    "several documents": ("--- a\n--- b", "another document", 2),
}  # fmt: skip


@pytest.mark.parametrize(("text", "words", "line"), REFUSED.values(), ids=REFUSED)
def test_refusals_are_one_line(text: str, words: str, line: int | None) -> None:
    with pytest.raises(LimitedYamlError) as caught:
        load_yaml(text)
    message = str(caught.value)
    assert words in message and "\n" not in message and len(message) < 200
    assert caught.value.line == line


def test_nodes_know_their_lines() -> None:
    content, root = load_yaml_nodes("a: 1\nb: {c: 2}")
    assert content == {"a": 1, "b": {"c": 2}} and root is not None
    assert root.value[1][0].start_mark.line == 1
