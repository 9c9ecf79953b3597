"""Fuzzing of manifests and chain records: `python -m tests.fuzz.manifest --minutes 20`.

A case is a valid manifest or chain record that was changed: in its structure, with or without a seal that
fits, or in its bytes. Each is read as both, by what lists, takes, resumes and reports on artifacts.
"""

from __future__ import annotations

import contextlib
import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.fuzz.runner import main
from thousandfold.ground.errors import UserError
from thousandfold.ground.files import _seal, json_sha256
from thousandfold.pipeline import listing
from thousandfold.pipeline.artifacts import Workspace
from thousandfold.pipeline.console import Console
from thousandfold.pipeline.resume import find_unfinished
from thousandfold.pipeline.session import Session, describe
from thousandfold.stages.chain.chain import _read_record
from thousandfold.stages.report.chain import collect_chain
from thousandfold.stages.report.lineage import lineage_section
from thousandfold.stages.stage_settings import settings_by_kind

settings_by_kind()  # imports the stages, which no case should have to wait for

_TIME = "2026-01-31T12:00:00.000000+00:00"
_NAMES = {"teacher": "teacher-20260131-120000", "benchmark": "benchmark-20260131-120000"}


def _manifest(kind: str, **changes: Any) -> dict[str, Any]:
    """Return what a manifest of a completed artifact says."""
    content = {
        "format_version": 2,
        "kind": kind,
        "name": _NAMES[kind],
        "status": "completed",
        "created_at": _TIME,
        "finished_at": _TIME,
        "task": "point_u_maze",
        "settings": {"seed": 0, "depth": 8, "learning_rate": 0.0003, "task_changes": {}},
        "parents": {},
        "task_changes": {"episode_steps": 100},
        "files": {"history.json": "0" * 64},
        "results": {"success": 0.5, "success_interval": [0.4, 0.6], "elapsed_s": 2.0},
        "versions": {"python": "3.11"},
        "git": {"commit": None, "dirty": None},
        "platform": "Linux",
        "tracking": {"run_id": None, "chain_run_id": None},
        "selectable": True,
    }
    return content | changes


_TIMED = {"networks": {"student": {"back_to_back": {"p50_us": 12.0, "p99_us": 30.0}}}}
_SEEDS = (
    _manifest("teacher"),
    _manifest("teacher", status="running", finished_at=None, files={}, results={}),
    _manifest("benchmark", results=_TIMED, parents={"policy": {"kind": "policy", "name": "p", "hash": "1"}}),
    {
        "settings": {name: {} for name in ("train_teacher", "generate_dataset", "distill", "export_onnx")}
        | {"benchmark": {}, "report": {}, "train_teacher": {"task": "point_u_maze"}},
        "format_version": 2,
        "chain_run_id": None,
        "teacher": "teacher-20260131-120000",
        "dataset": None,
        "student": None,
        "done": {"train_teacher": "teacher-20260131-120000"},
        "seconds": {"train_teacher": 1.0},
        "completed": False,
    },
)

_odd: SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -1, 2**63, 1e308, 5e-324, -0.0, "", "\x1b[31m", "a\0b", "../..", "x" * 5000]),
    st.sampled_from(["teacher", "student", "running", "completed", _TIME, "\ud800", "\n\n", [], {}, [[]]]),
    st.text(max_size=8),
    st.recursive(
        st.integers(0, 3) | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=6,
    ),
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value inside of a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
    return [found for key, item in items for found in [(*path, key), *_places(item, (*path, key))]]


@st.composite
def cases(draw: st.DrawFn) -> bytes:
    """Draw the bytes of a changed manifest or chain record."""
    content = copy.deepcopy(draw(st.sampled_from(_SEEDS)))
    for _ in range(draw(st.integers(0, 3))):
        *way, last = draw(st.sampled_from(_places(content)))
        inside: Any = content
        for key in way:
            inside = inside[key]
        if draw(st.booleans()):
            inside[last] = copy.deepcopy(draw(_odd))
        else:
            del inside[last]
        if not content:
            break
    fitting = draw(st.sampled_from(["hash and seal", "seal", "earlier", "neither"]))
    if fitting in ("hash and seal", "earlier"):
        parents = content.get("parents")
        if isinstance(parents, dict):
            parents = {role: p.get("hash") if isinstance(p, dict) else p for role, p in parents.items()}
        named = {name: content.get(name) for name in ("kind", "settings", "files")}
        with contextlib.suppress(ValueError):
            content["hash"] = json_sha256(named | {"parents": parents})
    if fitting == "earlier":
        content.pop("format_version", None)
    elif fitting != "neither":
        with contextlib.suppress(ValueError):
            content["seal"] = _seal(content)
    data = bytearray(json.dumps(content, indent=draw(st.sampled_from([None, 2]))).encode())
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        how = draw(st.sampled_from(["flip", "cut", "insert", "double", "zeros", "nest"]))
        if how == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del data[at:]
        elif how == "insert":
            data[at:at] = draw(st.binary(max_size=8))
        elif how == "double":
            data[at:at] = data[at : at + draw(st.integers(0, 64))]
        elif how == "zeros":
            data[at : at + 16] = bytes(16)
        else:
            data[at:at] = b"[" * draw(st.sampled_from([500, 900, 2000, 100_000]))
    return bytes(data)


def read(path: Path) -> None:
    """Read a file as the manifest of a teacher and as a chain record; raise the first error of a user."""
    with tempfile.TemporaryDirectory() as folder:
        workspace, session = Workspace(Path(folder)), Session(folder)
        session.console = console = Console(silent=True)
        record = workspace.runs / "chain-20260131-120000-000000.json"
        for name in _NAMES.values():
            artifact = workspace.runs / name
            artifact.mkdir(parents=True)
            (artifact / "manifest.json").write_bytes(path.read_bytes())
            (artifact / "history.json").write_bytes(b"{}")
        record.write_bytes(path.read_bytes())
        name = _NAMES["teacher"]
        readers: list[Callable[[], object]] = [
            lambda: listing.show_runs(console, workspace),
            lambda: listing.show_info(console, workspace, name),
            lambda: describe(workspace.find(name, None)),
            lambda: session.take("teacher", name),
            lambda: session.take_one_of({"policy": None, "student": None, "teacher": None}),
            lambda: workspace.newest_if_any("dataset", workspace.find(name, None)),
            lambda: workspace.find(name, None).verify(),
            lambda: find_unfinished(workspace, "teacher", None),
            lambda: lineage_section(collect_chain(workspace, workspace.find(name, None))),
            lambda: _read_record(record),
        ]
        errors: list[UserError] = []
        for reader in readers:
            try:
                reader()
            except UserError as error:
                errors.append(error)
        for error in sorted(errors, key=lambda error: "\n" not in str(error)):
            raise error  # one of several lines, if any, is seen


if __name__ == "__main__":
    main("tests.fuzz.manifest:read", cases(), ".json")
