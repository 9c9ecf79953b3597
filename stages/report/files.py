"""Files of artifacts as a report takes them in: checked against their hashes, pictures and videos inlined."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from pathlib import PurePosixPath
from typing import Any

from thousandfold.pipeline.artifacts import Artifact
from thousandfold.stages.report.page import Figure

_TYPES = {".png": "image/png", ".gif": "image/gif", ".mp4": "video/mp4", ".webm": "video/webm"}


class ReportFiles:
    """Reads what manifests list, and notes what it had to leave out.

    Args:
        max_bytes: of a picture or a video that goes into the page.
    """

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
        """Return a picture or a video of an artifact, to be shown in the page itself.

        Args:
            artifact: the manifest lists what it has.
            name: of the file.
            alt: what it shows, for who cannot see it.
            caption: stands below it.
        """
        content = self.read(artifact, name)
        if content is None:
            return None
        if len(content) > self._max_bytes:
            self.notes.append(
                f"{name} of {artifact.name} is left out: with {len(content) / 2**20:.1f} MiB it is larger "
                f"than max_file_mib allows. It lies in {artifact.file(name)}."
            )
            return None
        return inline_figure(content, PurePosixPath(name).suffix, alt=alt, caption=caption)


def inline_figure(content: bytes, suffix: str, *, alt: str, caption: str) -> Figure:
    """Return a picture or a video, by the suffix of its file, as part of a page."""
    kind = _TYPES[suffix.lower()]
    address = f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
    size = png_size(content) if kind == "image/png" else None
    form = "video" if kind.startswith("video/") else "image"
    return Figure(form, address, alt, caption, *(size or (None, None)))


def png_size(content: bytes) -> tuple[int, int] | None:
    """Return width and height of a PNG picture in pixels; None where it is none."""
    if len(content) < 24 or content[:8] != b"\x89PNG\r\n\x1a\n":
        return None
    return struct.unpack(">II", content[16:24])
