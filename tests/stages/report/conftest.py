"""A chain to report on, and its scenes drawn once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("jinja2")
from tests.stages.made_up_chain import MadeUpChain, make_chain
from tests.stages.report.report_pages import scenes_drawn_once, write_report
from thousandfold.pipeline.artifacts import Artifact


@pytest.fixture(autouse=True, scope="module")
def drawn_once() -> Iterator[None]:
    with scenes_drawn_once():
        yield


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., tuple[Artifact, str]]:
    """Return a function that makes the report of an artifact and returns it with its page."""
    return partial(write_report, tmp_path)


@pytest.fixture
def chain(tmp_path: Path) -> MadeUpChain:
    return make_chain(tmp_path)
