"""A model's XML: what would hang MuJoCo or take all the memory is refused, and errors get their places.

MuJoCo opens whatever a file name stands for, and makes every copy and every array that the XML asks for. So
files must be regular ones of a bounded size, and the numbers that decide how much is made have bounds. They
lie far above what a task has. Whatever else is wrong with the XML is left to MuJoCo, which says it better,
but counts no lines in files that others include: `with_place` finds these.
"""

from __future__ import annotations

import html
import math
import re
import struct
import xml.parsers.expat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from thousandfold.envs.task import TaskError
from thousandfold.envs.user_tasks.task_yaml import shown
from thousandfold.ground.plain_files import in_bytes, read_plain, require_plain

MOST_COPIES = 10_000
"""Elements that replicate, flexcomp and attach make: 2 s of MuJoCo's time, which grows as their square."""
_MOST_XML_BYTES, _MOST_ASSET_BYTES, _MOST_FILES = 2**24, 2**28, 1000
_MOST_INCLUDE_DEPTH = 50
_MOST_TEXELS, _MOST_HEIGHTS, _MOST_MEMORY = 2**26, 2**24, 2**32
_PNG = b"\x89PNG\r\n\x1a\n"
_UNITS = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40, "p": 2**50, "e": 2**60}

_LARGEST: Mapping[str, Mapping[str, int]] = {
    "size": {
        "nuserdata": 10**6, "nkey": 10_000, "njmax": 10**6, "nconmax": 10**6, "nstack": _MOST_MEMORY // 8,
    },
    "option": dict.fromkeys(
        ("iterations", "ls_iterations", "noslip_iterations", "ccd_iterations", "sdf_iterations",
         "sdf_initpoints"), 10_000
    ),
    "user": {"dim": 100_000},
    "contact": {"num": 10_000},
    "mesh": {"params": 300},
}  # fmt: skip
"""The largest number that an attribute of an element may hold."""
_LARGEST_ANYWHERE = {"actdim": 10_000, "nsample": 100_000, "nchannel": 16}

_TAG = re.compile(
    r"<(?P<close>/?)(?P<name>[A-Za-z_:\x80-\xff][\w.:\x80-\xff-]*)"
    r"(?P<attributes>(?:[^<>\"']|\"[^\"]*\"|'[^']*')*?)(?P<empty>/?)>"
)
_ATTRIBUTE = re.compile(r"([\w.:\x80-\xff-]+)\s*=\s*(?:\"([^\"]*)\"|'([^']*)')")
_OTHER_MARKUP = (("<!--", "-->"), ("<![CDATA[", "]]>"), ("<?", "?>"), ("<!", ">"))


@dataclass(frozen=True)
class _Element:
    """An element of a model's XML.

    Attributes:
        file, text, position: where it begins.
        tag, attributes: its own.
        copies: how many of it there will be, by the elements around it.
    """

    file: Path
    text: str
    position: int
    tag: str
    attributes: Mapping[str, str]
    copies: int

    @property
    def line(self) -> int:
        """The line that it begins in."""
        return self.text.count("\n", 0, self.position) + 1

    def error(self, reason: str) -> TaskError:
        """Return the error that says where the element stands; one line."""
        return TaskError(f"{shown(self.file)}, line {self.line}, {self.tag}: {' '.join(reason.split())}")

    def numbers(self, name: str) -> list[float]:
        """Return the numbers of an attribute; what is none is left to MuJoCo."""
        found = []
        for word in self.attributes.get(name, "").split():
            try:
                found.append(float(word))
            except ValueError:
                return []
        return [number for number in found if not math.isnan(number)]

    def product(self, *names: str, at_least: float = 1) -> float:
        """Return the product of all numbers of some attributes."""
        return math.prod(max(number, at_least) for name in names for number in self.numbers(name))


@dataclass
class _Model:
    """A model's elements, those of included files in their place."""

    file: Path
    elements: list[_Element] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    def read(self, path: Path, copies: int = 1, depth: int = 0) -> None:
        """Read a file and what it includes."""
        if depth > _MOST_INCLUDE_DEPTH or len(self.files) >= _MOST_FILES:
            raise TaskError(f"{shown(path)}: files include one another without end")
        if path in self.files:
            return  # MuJoCo says that it is included twice
        self.files.append(path)
        try:
            text = read_plain(path, _MOST_XML_BYTES).decode("latin-1")
        except OSError as error:
            raise _unreadable(path, error) from None
        for element in _scan(path, text, copies):
            self.elements.append(element)
            if element.tag == "include" and (name := element.attributes.get("file")):
                for folder in (path.parent, self.file.parent):
                    if _exists(folder / name):
                        self.read(folder / name, element.copies, depth + 1)
                        break


def require_modest(model: Path) -> None:
    """Raise TaskError where a model's XML, or a file that it names, makes MuJoCo wait or take all the memory.

    The message names file, line and element.
    """
    _count(model, {}, ())


def _count(file: Path, known: dict[Path, int], above: tuple[Path, ...]) -> int:
    """Check a model; return how many elements it has, copies included."""
    if file in above:
        raise TaskError(f"{shown(file)} attaches itself")
    if file in known:
        return known[file]
    model = _Model(file)
    model.read(file)
    compiler = {k: v for each in model.elements if each.tag == "compiler" for k, v in each.attributes.items()}
    attached: dict[str, int] = {}
    for element in model.elements:
        _check_numbers(element)
        for path in _named_files(element, file.parent, compiler):
            _check_file(element, path)
            if element.tag == "model":  # MuJoCo takes the file's own name where none is given
                sizes = _count(path, known, (*above, file))
                attached[element.attributes.get("name", "")] = attached[path.stem] = sizes
    total, copies = 0, 0
    for element in model.elements:
        number = element.copies
        if element.tag == "attach":
            number *= attached.get(element.attributes.get("model", ""), max(attached.values(), default=1))
        elif element.tag == "flexcomp":
            number *= _flex_points(element, file.parent, compiler)
        total, copies = total + number, copies + number - 1
        if copies > MOST_COPIES:
            raise element.error(f"the model has more than {MOST_COPIES:,} elements that are made by copying")
    known[file] = total
    return total


def _scan(file: Path, text: str, copies: int) -> Iterator[_Element]:
    """Yield the elements of a text; stop where it is no XML."""
    around = [copies]  # how many copies there are of what stands in each element around this place
    position = text.find("<")
    while position >= 0:
        for begin, end in _OTHER_MARKUP:
            if text.startswith(begin, position):
                closing = text.find(end, position + len(begin))
                break
        else:
            if (match := _TAG.match(text, position)) is None:
                return
            closing = match.end()
            if match["close"]:
                if len(around) > 1:
                    around.pop()
            else:
                found = {
                    name: html.unescape(double or single)
                    for name, double, single in _ATTRIBUTE.findall(match["attributes"])
                }
                element = _Element(file, text, position, match["name"], found, around[-1])
                yield element
                if not match["empty"]:
                    inner = element.product("count") if element.tag == "replicate" else 1
                    around.append(int(min(around[-1] * inner, 10**12)))
        if closing < 0:
            return
        position = text.find("<", closing)


def _check_numbers(element: _Element) -> None:
    """Raise TaskError for a number that is too large."""
    bounds = {**_LARGEST_ANYWHERE, **_LARGEST.get(element.tag, {})}
    if element.tag == "size":
        bounds |= {name: 1000 for name in element.attributes if name.startswith("nuser_")}
    for name, largest in bounds.items():
        if any(number > largest for number in element.numbers(name)):
            given = element.attributes[name]
            raise element.error(f"{name} must be at most {largest:,} (got {given:.40})")
    products = {
        "hfield": (("nrow", "ncol"), _MOST_HEIGHTS, "heights"),
        "texture": (("width", "height"), _MOST_TEXELS, "pixels"),
        "camera": (("resolution",), _MOST_TEXELS, "pixels"),
    }
    if element.tag in products:
        names, most, what = products[element.tag]
        if element.product(*names) > most:
            raise element.error(f"{' times '.join(names)} must be at most {most:,} {what}")
    if element.tag == "size" and (memory := element.attributes.get("memory", "").strip().lower()):
        unit = _UNITS.get(memory[-1], 1)
        digits = memory[:-1] if memory[-1] in _UNITS else memory
        if digits.isdigit() and (len(digits) > 20 or int(digits) * unit > _MOST_MEMORY):
            raise element.error(f"memory must be at most {in_bytes(_MOST_MEMORY)} (got {memory:.40})")
    if element.tag == "lengthrange":
        total, step = element.numbers("inttotal") or [10.0], element.numbers("timestep") or [0.01]
        if step[0] > 0 and total[0] / step[0] > 10**5:
            raise element.error("inttotal must be at most 100,000 times its timestep")


def _named_files(element: _Element, folder: Path, compiler: Mapping[str, str]) -> Iterator[Path]:
    """Yield the existing files that an element names, beside included ones."""
    if element.tag == "include":
        return
    kind = "texturedir" if element.tag in ("texture", "skybox") else "meshdir"
    own = "" if element.tag == "model" else compiler.get(kind) or compiler.get("assetdir") or ""
    for attribute, name in element.attributes.items():
        if attribute.startswith("file") and name:
            name = Path(name).name if compiler.get("strippath") == "true" else name
            found = (path for path in (folder / own / name, folder / name) if _exists(path))
            yield from [path for path in [next(found, None)] if path is not None]


def _check_file(element: _Element, path: Path) -> None:
    """Raise TaskError for a file that is none to read, or a picture that is too large."""
    try:
        require_plain(path, _MOST_ASSET_BYTES)
        with path.open("rb") as file:
            head = file.read(24)
    except OSError as error:
        raise _unreadable(path, error) from None
    if element.tag in ("texture", "hfield") and head.startswith(_PNG) and len(head) == 24:
        width, height = struct.unpack(">II", head[16:24])
        if width * height > (_MOST_TEXELS if element.tag == "texture" else _MOST_HEIGHTS):
            raise element.error(f"{shown(path)} has {width:,} × {height:,} pixels, which are too many")


def _flex_points(element: _Element, folder: Path, compiler: Mapping[str, str]) -> int:
    """Return about twice the bodies that a flexcomp makes: each takes longer than a plain copy."""
    if element.attributes.get("rigid") == "true":
        return 1
    if element.attributes.get("dof") in ("trilinear", "quadratic"):
        return int(min(2 * element.product("cellcount", at_least=1) * 8, 10**12))
    by_file = sum(path.stat().st_size // 50 for path in _named_files(element, folder, compiler))
    return int(min(2 * max(element.product("count"), by_file), 10**12))


def _unreadable(path: Path, error: OSError) -> TaskError:
    return TaskError(f"{shown(path)} cannot be read: {error.strerror}")


def _exists(path: Path) -> bool:
    """Return whether something is there; a name that cannot be one is left to MuJoCo."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def with_place(file: Path, message: str) -> str:
    """Return what MuJoCo says of a model on one line, with file and line of what stands in an included file.

    Where the line cannot be told, the names of all included files follow. The message stays as it is where it
    names a line of the model itself.
    """
    message, model = " ".join(message.split()), _Model(file)
    model.read(file)
    included = model.files[1:]
    if not included:
        return message
    if "Include error" in message:
        for path in included:
            try:
                xml.parsers.expat.ParserCreate().Parse(path.read_bytes(), True)
            except xml.parsers.expat.ExpatError as error:
                reason = xml.parsers.expat.ErrorString(error.code)
                return f"XML Error: {reason}, line {error.lineno} of {shown(path)}"
    no_line = ", line 0"
    if no_line not in message and re.search(r"\bline \d", message):
        return message
    found = _culprits(message, [each for each in model.elements if each.file != file])
    if len(found) == 1:
        place = f", line {found[0].line} of {shown(found[0].file)}"
        return message.replace(no_line, place) if no_line in message else message + place
    names = ", ".join(map(shown, included))
    if no_line in message:
        return message.replace(no_line, f", in a file that it includes: {names}")
    return f"{message} (or in a file that it includes: {names})"


def _culprits(message: str, elements: list[_Element]) -> list[_Element]:
    """Return the elements that a message may be about: of the tag and with the words that it quotes."""
    tag = re.search(r"Element '(\w+)'", message)
    name = re.search(r"Element name '([^']+)'", message)
    words = set(re.findall(r"'([^']+)'", message)) - ({tag[1]} if tag else set())
    if not words and not tag:
        return []

    def fits(element: _Element) -> bool:
        attributes = element.attributes
        return (
            (not tag or element.tag == tag[1])
            and words <= {*attributes, *attributes.values()}
            and (not name or attributes.get("name") == name[1])
            and ("bad format" not in message or any(not _is_numeric(attributes.get(w, "0")) for w in words))
        )

    return [each for each in elements if fits(each)]


def _is_numeric(text: str) -> bool:
    try:
        [float(word) for word in text.split()]
    except ValueError:
        return False
    return True
