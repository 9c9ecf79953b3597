"""The parts of a report's page, and the page as HTML. Whatever is no markup of ours is escaped."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

from thousandfold.pipeline.artifacts import Artifact
from thousandfold.stages.recordings import FORMAT_VERSION as RECORDING_VERSION
from thousandfold.stages.recordings import RECORDING_FILE

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
    """An artifact of the lineage.

    Attributes:
        made_from: kind of each artifact that it was made from, and how many rows above this one it stands.
        problem: why it is not to be had; empty where it is.
    """

    kind: str
    name: str
    hash: str
    facts: Sequence[str]
    made_from: Sequence[tuple[str, int]]
    problem: str


@dataclass(frozen=True)
class Lineage:
    """Artifacts below what they were made from, a row each, with an arc to each of these."""

    block: ClassVar[str] = "lineage"
    nodes: Sequence[Node]

    @property
    def longest_arc(self) -> int:
        """How many rows the longest arc goes up."""
        return max((rows for node in self.nodes for _, rows in node.made_from), default=1)


@dataclass(frozen=True)
class Split:
    """Facts and, beside them where there is room, figures."""

    block: ClassVar[str] = "split"
    facts: Facts
    figures: Figures


@dataclass(frozen=True)
class Player:
    """Recorded episodes to play; a page has one at most.

    Attributes:
        content: the recording as JSON that no element of the page can be closed with.
        caption: stands below it.
    """

    block: ClassVar[str] = "player"
    content: str
    caption: str


Block = Player | Split | Figures | Facts | Table | Note | Lineage


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
    """A report: one sentence as the verdict, and in `notes` what was left out, and why."""

    title: str
    verdict: str
    headlines: Sequence[Headline]
    sections: Sequence[Section]
    footer: str
    notes: Sequence[str] = field(default_factory=tuple)


def render(page: Page) -> str:
    """Return a page as HTML that needs nothing else: no file, no network, and no script but to play episodes.

    The page forbids every script but that one, by its hash.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (_TEMPLATES / "report.css").read_text(encoding="utf-8")
    script = ""
    if any(isinstance(block, Player) for section in page.sections for block in section.blocks):
        script = (_TEMPLATES / "player.js").read_text(encoding="utf-8")
    sha256 = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    template = environment.get_template("report.html")
    return template.render(page=page, style=style, script=script, script_sha256=sha256).strip() + "\n"


# -- Files of artifacts as a report takes them in: checked against their hashes, pictures and videos inlined -

_TYPES = {".png": "image/png", ".gif": "image/gif", ".mp4": "video/mp4", ".webm": "video/webm"}


class ReportFiles:
    """Reads what manifests list, and notes what it had to leave out: pictures above `max_bytes` too."""

    def __init__(self, max_bytes: int) -> None:
        self.notes: list[str] = []
        self._max_bytes = max_bytes

    def read(self, artifact: Artifact, name: str) -> bytes | None:
        """Return a file's content; None where the manifest lists none, or it is damaged, which is noted."""
        expected = artifact.manifest.files.get(name)
        if expected is None:
            return None
        try:
            content = artifact.file(name).read_bytes()
        except OSError:
            self.notes.append(f"{name} of {artifact.name} cannot be read and is left out.")
            return None
        if hashlib.sha256(content).hexdigest() != expected:
            self.notes.append(f"{name} of {artifact.name} differs from its recorded hash and is left out.")
            return None
        return content

    def read_json(self, artifact: Artifact, name: str) -> Any:
        """Return the content of a JSON file; None as for `read`, and where it is no JSON, which is noted."""
        content = self.read(artifact, name)
        try:
            return None if content is None else json.loads(content)
        except ValueError:
            self.notes.append(f"{name} of {artifact.name} is no JSON and is left out.")
            return None

    def figure(self, artifact: Artifact, name: str, *, alt: str, caption: str) -> Figure | None:
        """Return a picture or a video of an artifact; None as for `read`, and where it is too large."""
        content = self._small(artifact, name)
        if content is None:
            return None
        return inline_figure(content, PurePosixPath(name).suffix, alt=alt, caption=caption)

    def recording(self, artifact: Artifact) -> dict[str, Any] | None:
        """Return the recorded episodes of an artifact; None as for `figure`, and of another version."""
        if self._small(artifact, RECORDING_FILE) is None:
            return None
        content = self.read_json(artifact, RECORDING_FILE)
        if not isinstance(content, dict) or content.get("format_version") != RECORDING_VERSION:
            self.notes.append(f"{RECORDING_FILE} of {artifact.name} is of another version and is left out.")
            return None
        return content

    def _small(self, artifact: Artifact, name: str) -> bytes | None:
        """Return a file's content; None as for `read`, and where it is too large, which is noted."""
        content = self.read(artifact, name)
        if content is not None and len(content) > self._max_bytes:
            self.notes.append(
                f"{name} of {artifact.name} is left out: with {len(content) / 2**20:.1f} MiB it is larger "
                f"than max_file_mib allows. It lies in {artifact.file(name)}."
            )
            return None
        return content


def inline_figure(content: bytes, suffix: str, *, alt: str, caption: str) -> Figure:
    """Return a picture or a video, by the suffix of its file, as part of a page."""
    kind = _TYPES[suffix.lower()]
    address = f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
    size = (None, None)
    if len(content) >= 24 and content[:8] == b"\x89PNG\r\n\x1a\n":
        size = struct.unpack(">II", content[16:24])
    return Figure("video" if kind.startswith("video/") else "image", address, alt, caption, *size)
