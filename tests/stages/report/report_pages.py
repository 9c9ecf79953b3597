"""Reports in a workspace of its own, and their pages read back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.stages.tiny_runs import make_context
from thousandfold.envs.registry import compile_task
from thousandfold.pipeline.artifacts import Artifact
from thousandfold.stages.recordings import RECORDING_FILE, record_goals, write_recording
from thousandfold.stages.report import report, sections
from thousandfold.stages.report.report import REPORT_FILE, ReportSettings
from thousandfold.stages.report.sections import task_figures
from thousandfold.stages.stage_settings import settings_by_kind

VOID = {"meta", "link", "img", "br", "input"}


class PageReader(HTMLParser):
    """Reads a page: its elements with their attributes, its text, and whether every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@contextmanager
def scenes_drawn_once() -> Iterator[None]:
    """Draw the scenes of a task once for all reports made meanwhile."""
    cached: dict[str, Any] = {}

    def draw(source: Artifact) -> Any:
        task = source.manifest.task
        if task not in cached:
            cached[task] = task_figures(source)
        return cached[task]

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sections, "task_figures", draw)
        yield


def write_report(root: Path, source: Artifact, **values: Any) -> tuple[Artifact, str]:
    """Make the report of an artifact in the workspace `root`; return it with its page."""
    made = report.run(ReportSettings(**values), make_context(root), source, settings_by_kind())
    return made, made.file(REPORT_FILE).read_text(encoding="utf-8")


def recording_of(folder: Path) -> dict[str, Any]:
    """Return the recording of a point that goes straight towards each of its goals, written into a folder."""
    task, seed = compile_task("point_u_maze"), np.random.SeedSequence(3)

    def straight(observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        return np.clip(5 * (goal - observation[:, :2]), -1, 1)

    episodes = record_goals(task, straight, goals=9, seed=seed, distribution="training")
    write_recording(folder / RECORDING_FILE, task, episodes, "training")
    return json.loads((folder / RECORDING_FILE).read_text())
