"""The parts of a report's page, and the page as HTML. Whatever is no markup of ours is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

_WIDE = 1.8
_TEMPLATES = Path(__file__).resolve().parent / "templates"


@dataclass(frozen=True)
class Figure:
    """A picture, a video, or a chart.

    Attributes:
        form: what `content` is.
        content: a data address, or the SVG element of a chart.
        alt: what it shows; a chart says so itself.
        caption: stands below it; empty where the group of figures has one.
        width, height: pixels of a picture, where they are known.
    """

    form: Literal["image", "video", "chart"]
    content: str
    alt: str
    caption: str
    width: int | None = None
    height: int | None = None

    @property
    def is_wide(self) -> bool:
        """Whether it is so wide that a small screen has to scroll it."""
        return bool(self.width and self.height and self.width > _WIDE * self.height)


@dataclass(frozen=True)
class Figures:
    """Figures side by side where there is room; `caption` stands below all of them."""

    block: ClassVar[str] = "figures"
    figures: Sequence[Figure]
    size: Literal["small", "middle", "large"] = "middle"
    caption: str = ""


@dataclass(frozen=True)
class Facts:
    """Names and values, with a word of explanation where one is needed."""

    block: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Table:
    """A table; columns named in `numeric` are aligned on the right. `folded` hides it behind its caption."""

    block: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[str] = frozenset()
    folded: bool = False


@dataclass(frozen=True)
class Note:
    """One line, such as what is missing and which command makes it."""

    block: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True)
class Node:
    """An artifact of the lineage."""

    kind: str
    name: str
    hash: str
    facts: Sequence[str]
    made_from: Sequence[str]
    problem: str


@dataclass(frozen=True)
class Lineage:
    """Artifacts below what they were made from, with the lines of descent beside them."""

    block: ClassVar[str] = "lineage"
    nodes: Sequence[Node]
    gutter: str
    gutter_width: float
    row_height: float


@dataclass(frozen=True)
class Split:
    """Facts and, beside them where there is room, figures."""

    block: ClassVar[str] = "split"
    facts: Facts
    figures: Figures


Block = Split | Figures | Facts | Table | Note | Lineage


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading of its own."""

    anchor: str
    title: str
    lead: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Headline:
    """One of the numbers that matter most; `value` is None where it was not measured, and `note` says why."""

    label: str
    value: str | None
    unit: str
    note: str


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: of the page.
        verdict: one sentence that says what came of it.
        headlines: the numbers that matter.
        sections: from top to bottom.
        footer: where the page comes from.
        notes: what was left out, and why.
    """

    title: str
    verdict: str
    headlines: Sequence[Headline]
    sections: Sequence[Section]
    footer: str
    notes: Sequence[str] = field(default_factory=tuple)


def render(page: Page) -> str:
    """Return a page as HTML that needs nothing else: no file, no script, no network."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (_TEMPLATES / "report.css").read_text(encoding="utf-8")
    return environment.get_template("report.html").render(page=page, style=style).strip() + "\n"
