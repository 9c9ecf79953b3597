"""What the site of `make docs` has beside the pages here: the reference, and files of the repository.

The reference of settings and commands is written from their own definitions. A link that leaves this folder,
such as `../studies/recipe.yaml`, brings that file into the site below `repository/`: Markdown as a page,
source text as a page of code, a folder as a list of what is in it, anything else as it is. So every link
works offline, and a link to nothing fails the build.
"""

from __future__ import annotations

import html
import importlib
import inspect
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from thousandfold.pipeline.cli import COMMANDS, EXAMPLES, GROUPS, cli
from thousandfold.pipeline.setting_reference import describe_settings
from thousandfold.pipeline.settings import SETTINGS_CLASSES

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "repository/"
CODE = {".py": "python", ".yaml": "yaml", ".xml": "xml", ".js": "javascript", ".cpp": "cpp", ".toml": "toml"}
_FENCE = re.compile(r"^( *)(```+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\]\()(?![a-z]+:|#|/)([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and every file of the repository that a page links to, or one of those."""
    files.append(File.generated(config, "settings.md", content=settings_page()))
    files.append(File.generated(config, "command_line.md", content=command_line_page()))
    pages = [file.src_uri for file in files.documentation_pages()]
    while pages:
        place = _in_repository(pages.pop())
        if not (ROOT / place).is_file():
            continue  # generated
        for target in _linked(place, (ROOT / place).read_text(encoding="utf-8")):
            uri = _in_site(target)
            if files.get_file_from_path(uri) is None and (ROOT / target).exists():
                files.append(_repository_file(config, target))
                pages += [uri] if target.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead the links of a page to where their files are in the site."""
    here = page.file.src_uri
    place = _in_repository(here)

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(place), link[2]))
        if not (ROOT / target).exists():
            return link[0]
        return link[1] + posixpath.relpath(_in_site(target), posixpath.dirname(here) or ".")

    pieces, end = [], 0
    for fence in _FENCE.finditer(markdown):
        pieces += [_LINK.sub(moved, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*pieces, _LINK.sub(moved, markdown[end:])])


def settings_page() -> str:
    """Return a page with every setting of every stage: default, what is allowed, meaning."""
    parts = [
        "# Settings\n\n"
        "Every setting of every stage, as `pipeline settings STAGE` lists them. `--set NAME=VALUE` sets\n"
        "one, a preset or a `--config` file several ([how](guide.md#settings)). A name that ends in `_s` is\n"
        "in seconds, one in `_hz` in hertz. The default holds where no preset says otherwise.\n"
    ]
    for section, (module, name) in SETTINGS_CLASSES.items():
        cls = getattr(importlib.import_module(f"thousandfold.{module}"), name)
        parts.append(f"## {section.replace('_', '-')}\n")
        parts.append("| setting | default | allowed | meaning |\n|---|---|---|---|")
        for row in describe_settings(cls):
            cells = (
                _code(row["setting"]),
                _code(row["default"]),
                _cell(row["allowed"]),
                _cell(row["meaning"]),
            )
            parts.append(f"| {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts)


def command_line_page() -> str:
    """Return a page with every command, its arguments and its options, from Click's own definitions."""
    context = click.Context(cli, info_name="pipeline")
    parts = [
        "# Command line\n",
        f"{_help(cli)}\n",
        *_option_table(cli, context),
        "`--set` sets what has no option of its own: [Settings](settings.md) lists it.\n\n"
        "| exit code | when |\n|---|---|\n"
        "| 0 | the command has done its work |\n"
        "| 1 | the work failed, or what was checked did not pass |\n"
        "| 2 | something given is wrong; one line says what, and what to do |\n"
        "| 130 | the command was stopped; one line says what was saved, and how to go on |\n",
    ]
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(COMMANDS)
    for title, names in GROUPS.items():
        parts.append(f"## {title}\n")
        for name in names:
            command = cli.get_command(context, name)
            assert command is not None
            for depth, (path, each) in enumerate(_with_subcommands(f"pipeline {name}", command)):
                parts.append(f"{'###' if depth == 0 else '####'} {path}\n")
                inner = click.Context(each, info_name=path)
                usage = " ".join(each.collect_usage_pieces(inner))
                parts.append(f"```text\n{path} {usage}\n```\n\n{_help(each)}\n")
                parts += _option_table(each, inner)
            parts.append(f"Example: `pipeline {EXAMPLES[name]}`\n")
    return "\n".join(parts)


def _with_subcommands(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield f"{path} {name}", inner


def _help(command: click.Command) -> str:
    return inspect.cleandoc(command.help or "")


def _option_table(command: click.Command, context: click.Context) -> list[str]:
    records = [
        record
        for each in command.get_params(context)
        if (record := each.get_help_record(context)) is not None
    ]
    rows = [f"| {_code(names)} | {_cell(meaning)} |" for names, meaning in records]
    return ["| option | meaning |\n|---|---|", *rows, ""] if rows else []


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("[", "\\[")


def _code(text: str) -> str:
    return f"<code>{html.escape(text)}</code>".replace("|", "&#124;") if text else ""


def _in_repository(src_uri: str) -> str:
    return src_uri.removeprefix(REPOSITORY) if src_uri.startswith(REPOSITORY) else f"docs/{src_uri}"


def _in_site(place: str) -> str:
    if place.startswith("docs/"):
        return place.removeprefix("docs/")
    if (ROOT / place).is_dir():
        return f"{REPOSITORY}{place}/index.md"
    return f"{REPOSITORY}{place}.md" if Path(place).suffix in CODE else REPOSITORY + place


def _linked(place: str, text: str) -> set[str]:
    """Return the places in the repository that a page links to, but those in this folder."""
    places = {
        posixpath.normpath(posixpath.join(posixpath.dirname(place), link[2]))
        for link in _LINK.finditer(_FENCE.sub("", text))
    }
    return {each for each in places if not each.startswith(("docs/", "../"))}


def _repository_file(config: MkDocsConfig, place: str) -> File:
    uri = _in_site(place)
    if (ROOT / place).is_dir():
        names = "".join(
            f"- `{each.name}`\n" for each in sorted((ROOT / place).iterdir()) if each.name[0] not in "._"
        )
        return File.generated(config, uri, content=f"# {place}\nThis folder of the repository has\n\n{names}")
    if Path(place).suffix not in CODE:
        return File.generated(config, uri, abs_src_path=str(ROOT / place))
    text = (ROOT / place).read_text(encoding="utf-8")
    head = f"---\nsearch: {{exclude: true}}\nhide: [toc]\n---\n# {Path(place).name}\n"
    code = f"`{place}`\n\n````{CODE[Path(place).suffix]}\n{text}\n````\n"
    return File.generated(config, uri, content=f"{head}\n{code}")
