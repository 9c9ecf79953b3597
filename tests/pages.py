"""The blocks of code in the pages of the documentation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^`\n]*)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r'title="([^"]*)"')


@dataclass(frozen=True)
class Block:
    """A block between two fences.

    Attributes:
        page: its place in the repository.
        line: of the page, where the text begins.
        language: the first word behind the fence, such as `python`; empty for output and the like.
        title: what a reader sees above the block; empty where there is none.
        text: the lines, each with its end.
    """

    page: str
    line: int
    language: str
    title: str
    text: str


def blocks(page: str, language: str | None = None) -> list[Block]:
    """Return the blocks of a page, such as `docs/api.md`, in order: all, or those of one language."""
    content = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(content):
        words, title = fence["info"].split(), _TITLE.search(fence["info"])
        found.append(
            Block(
                page,
                content.count("\n", 0, fence.start("text")) + 1,
                words[0] if words else "",
                title[1] if title else "",
                fence["text"],
            )
        )
    return [block for block in found if language is None or block.language == language]
