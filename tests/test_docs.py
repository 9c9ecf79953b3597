"""The documentation: links lead somewhere, commands are known, blocks run, the site works offline."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import click
import pytest
import yaml

from tests.pages import ROOT, Block, blocks
from thousandfold.pipeline.cli import cli

DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
OTHERS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "mlflow/README.md")
PAGES = [*DOCS, *OTHERS, *(path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").rglob("*.md"))]
RUN = ("sh", "python")
NOT_RUN = "Not run by the tests: "
GENERATED = {"settings.md", "command_line.md"}
"""of docs/site_hooks.py; pages do not link to them, for they are in the site alone"""
FASTER = {
    "train-teacher": ("--preset", "smoke"), "generate-dataset": ("--preset", "smoke"),
    "dataset import": ("--preset", "smoke"), "distill": ("--preset", "smoke"),
    "export-onnx": ("--preset", "smoke"), "benchmark": ("--preset", "smoke"),
    "evaluate": ("--preset", "smoke"), "render": ("--preset", "smoke"), "run": ("--preset", "smoke"),
    "frontier": ("--preset", "smoke"), "policy verify": ("--episodes", "16"),
    "tasks check": ("--episodes", "4"), "run-policy": ("--episodes", "1", "--fast", "--viewer", "off"),
}  # fmt: skip
"""What the tests add behind a command of a page, where the page has not said it itself."""
PIPELINE = f"""#!{sys.executable}
import sys
from thousandfold.pipeline.__main__ import main
faster = {FASTER!r}
words = [word for word in sys.argv[1:] if not word.startswith("-")][:2]
added = faster.get(" ".join(words), faster.get(words[0] if words else "", ()))
if not set(added) & set(sys.argv) and "--resume" not in sys.argv:
    sys.argv += added
sys.exit(main())
"""


@cache
def text_without_blocks(page: str) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)


@cache
def anchors(page: str) -> set[str]:
    """Return what a link may name behind `#`, as repository browsers and the site make it of headings."""
    headings = re.findall(r"^#+ (.+)$", text_without_blocks(page), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text_without_blocks(page)):
        path, anchor = urldefrag(link)
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        if anchor:
            assert anchor in anchors(target.resolve().relative_to(ROOT).as_posix()), f"{page} links to {link}"


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    navigation = yaml.safe_load(text[text.index("\nnav:") :])["nav"]
    listed = set(re.findall(r"[\w/.-]+\.md", str(navigation)))
    assert listed == {page.removeprefix("docs/") for page in DOCS} | GENERATED | {
        "repository/CONTRIBUTING.md",
        "repository/CHANGELOG.md",
    }


def documented_commands() -> Iterator[tuple[Block, str]]:
    """Yield every line of a page that calls the command line, without what is explained beside it."""
    for page in PAGES:
        for block in blocks(page):
            for line in block.text.replace("\\\n", " ").splitlines():
                call = re.match(r"(?:\$ |.*--no-python )?(pipeline .*)", line)
                if call and block.language in ("", "sh"):
                    written = re.sub(r"\$\([^)]*\)", "ONE TWO", call[1])
                    yield block, re.split(r"\s{3,}|\s+#|[|>]", written)[0]


def test_the_command_line_knows_every_command_of_a_page() -> None:
    seen = 0
    for block, line in documented_commands():
        rest, command = shlex.split(line)[1:], cli
        try:
            while isinstance(command, click.Group):
                context = click.Context(command)
                _, rest, _ = command.make_parser(context).parse_args(rest)
                if not rest:
                    break  # a group that lists by itself, as `runs` does
                name, command, rest = command.resolve_command(context, rest)
            else:
                command.make_context(name, rest)
        except click.exceptions.Exit:
            pass  # --help
        except click.ClickException as error:
            pytest.fail(f"{block.page}, block at line {block.line}: {line}: {error.format_message()}")
        seen += 1
    assert seen > 100


@pytest.mark.parametrize("page", DOCS)
def test_a_block_that_is_not_run_says_why(page: str) -> None:
    for block in blocks(page, "sh"):
        assert not block.title or re.match(f"{NOT_RUN}.", block.title)


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """The environment of a page's blocks: `pipeline` takes small settings, and nothing is tracked."""
    command = tmp_path / "bin/pipeline"
    command.parent.mkdir()
    command.write_text(PIPELINE, encoding="utf-8")
    command.chmod(0o755)
    path = os.pathsep.join([str(command.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {
        **os.environ,
        "PATH": path,
        "MLFLOW_TRACKING_URI": "none",
        "PYTHONWARNINGS": "error::SyntaxWarning",
    }


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in DOCS if blocks(page, "sh")])
def test_blocks_run_as_written(page: str, shell: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    for block in blocks(page):
        if re.fullmatch(r"[\w.-]+\.\w+", block.title):
            (folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.language in RUN and not block.title:
            program = ["bash", "-euo", "pipefail"] if block.language == "sh" else [sys.executable]
            done = subprocess.run(
                [*program, "-c", block.text],
                cwd=folder,
                env=shell,
                capture_output=True,
                text=True,
                timeout=1200,
            )
            assert done.returncode == 0, (
                f"{page}, line {block.line}:\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
            )


class References(HTMLParser):
    """What a page of the site loads, and where it leads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.page, self.loaded, self.led = page, list[str](), list[str]()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "a" and values.get("href"):
            self.led.append(str(values["href"]))
        elif tag in ("script", "img", "iframe") and values.get("src"):
            self.loaded.append(str(values["src"]))
        elif tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(str(values["href"]))


@pytest.mark.slow
def test_the_site_is_built_strictly_and_needs_no_network(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="`make docs-setup` installs MkDocs")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    # A server alone shows 404.html, and from any folder.
    pages = sorted({*(tmp_path / "site").rglob("*.html")} - {tmp_path / "site/404.html"})
    assert len(pages) > len(DOCS)
    for page in map(References, pages):
        for link in page.loaded + [each for each in page.led if not re.match(r"https?:|mailto:", each)]:
            path = unquote(urldefrag(link)[0])
            assert (page.page.parent / path).is_file() or not path, f"{page.page.name} refers to {link}"
    index = (tmp_path / "site/search/search_index.js").read_text(encoding="utf-8")
    assert index.startswith("var __index = ") and "goal_exchange" in index and "to-c" in index
