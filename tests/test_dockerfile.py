"""The Dockerfile agrees with the project that it installs; no image is built here."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from tests.pages import ROOT

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_its_extras_exist() -> None:
    (extras,) = re.findall(r'pip install --no-cache-dir -c constraints\.txt "\.\[([\w,]+)\]"', TEXT)
    assert "train" in extras.split(",")
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()


def test_its_stages_have_one_python() -> None:
    """A virtual environment works beside the interpreter that it was made with."""
    images = re.findall(r"^FROM (\S+)", TEXT, re.MULTILINE)
    assert len(images) == 2 and len(set(images)) == 1
    assert images[0].startswith("python:3.11-")


def test_what_the_package_is_built_from_reaches_the_build() -> None:
    let_through = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    linked = {link.resolve().name for link in (ROOT / "thousandfold").iterdir() if link.is_symlink()}
    needed = {"pyproject.toml", "constraints.txt", "thousandfold", PROJECT["readme"], *linked}
    assert linked and needed | set(PROJECT["license-files"]) == let_through
    assert all(Path(ROOT / name).exists() for name in let_through)
