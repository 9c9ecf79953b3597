"""Fuzzing of checkpoints and network files: `python -m tests.fuzz.checkpoint --minutes 20`.

A case is a safetensors file or a checkpoint's manifest that was changed: in the structure of its header,
or in its bytes. A safetensors file is read as the network of a teacher or as the state of its checkpoint, a
manifest as that of the checkpoint; where it can be with hashes that fit, so that what lies behind is reached.
"""

from __future__ import annotations

import copy
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.fuzz.runner import damaged, main
from tests.stages.tiny_runs import TINY_TEACHER
from thousandfold.envs.registry import compile_task
from thousandfold.ground.files import file_sha256, json_sha256, write_json_atomic
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.checkpoint import CheckpointFolder
from thousandfold.pipeline.settings import dump_settings
from thousandfold.stages.networks import NETWORK_FILE, load_actor, load_critic, save_network
from thousandfold.stages.train_teacher.settings import TrainTeacherSettings
from thousandfold.stages.train_teacher.training import TeacherTraining

torch.set_num_threads(1)

_SETTINGS = TrainTeacherSettings(**TINY_TEACHER.model_dump() | {"width": 4, "replay_rows_per_world": 40})


@functools.cache
def _made() -> tuple[Path, TeacherTraining]:
    """Return the folder of a teacher with a network and a checkpoint, and the training that saved it."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-checkpoint-"))
    task = compile_task(_SETTINGS.task)
    training = TeacherTraining(_SETTINGS, task, "cpu")
    teacher = Workspace(folder).create("teacher", task=task.name, settings=dump_settings(_SETTINGS))
    extra = {"energy": _SETTINGS.energy, "evaluation": {}}
    save_network(
        teacher.file(NETWORK_FILE),
        training.learner.weights(training.learner.candidates[0]),
        kind="teacher",
        task=task,
        shape=_SETTINGS.actor_shape,
        critic_shape=_SETTINGS.critic_shape,
        extra=extra,
    )
    training.collect()
    training.save(CheckpointFolder(teacher.file("checkpoint")))
    teacher.complete({"success": 0.0}, exclude=("checkpoint",))
    return teacher.path, training


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value inside of a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
    return [found for key, item in items for found in [(*path, key), *_places(item, (*path, key))]]


_odd: SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 100),
    st.sampled_from([10**400, 2**63, 2**40, 10**6, -1, 4.0, 1e308, float("inf"), float("nan"), "", "../x"]),
    st.sampled_from(["F64", "I32", "BF16", "F8_E4M3", "BOOL", "plain", "residual", [], {}, [[]], "\ud800"]),
    st.lists(st.integers(-1, 2**40), max_size=3),
    st.text(max_size=6),
)


def _edit(draw: st.DrawFn, content: Any, most: int) -> Any:
    """Return a copy with some values replaced or removed."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(0, most))):
        places = _places(content)
        if not places:
            break
        *way, last = draw(st.sampled_from(places))
        inside: Any = content
        for key in way:
            inside = inside[key]
        if draw(st.integers(0, 3)):
            inside[last] = copy.deepcopy(draw(_odd))
        else:
            del inside[last]
    return content


@st.composite
def _tensors(draw: st.DrawFn, whole: bytes) -> bytes:
    """Draw a safetensors file with another header: of the format, or what Thousandfold writes into it."""
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    own = header["__metadata__"]["thousandfold"]
    if draw(st.booleans()):
        header["__metadata__"]["thousandfold"] = json.dumps(_edit(draw, json.loads(own), 2))
    else:
        header = _edit(draw, header, 2)
    text = json.dumps(header).encode()
    claimed = draw(st.sampled_from([len(text)] * 6 + [0, len(text) + 9, 2**40, 2**64 - 1]))
    return claimed.to_bytes(8, "little") + text + whole[8 + length :]


@st.composite
def _manifests(draw: st.DrawFn, whole: bytes) -> bytes:
    """Draw a checkpoint's manifest, mostly with the hash that it should have."""
    content = _edit(draw, json.loads(whole), 3)
    if draw(st.integers(0, 3)) and isinstance(content, dict):
        content.pop("sha256", None)
        try:
            content["sha256"] = json_sha256(content)
        except (ValueError, OverflowError):  # a lone surrogate
            content["sha256"] = "0"
    return json.dumps(content).encode()


@st.composite
def cases(draw: st.DrawFn) -> bytes:
    """Draw the bytes of a network file, of a checkpoint's state or of its manifest."""
    folder = _made()[0]
    network, manifest = folder / NETWORK_FILE, folder / "checkpoint/manifest.json"
    state = next(folder.glob("checkpoint/state-*.safetensors"))
    kind = draw(st.sampled_from(["network", "state", "manifest"]))
    if kind == "manifest":
        strategy = _manifests(manifest.read_bytes())
    else:
        strategy = _tensors((network if kind == "network" else state).read_bytes())
    return draw(damaged(strategy, most=3) if draw(st.booleans()) else strategy)


def read(path: Path) -> None:
    """Read a case as what it may be, in place of that file of a whole teacher.

    Raises:
        UserError: as the readers do.
    """
    whole, training = _made()
    content = path.read_bytes()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "teacher"
        shutil.copytree(whole, folder)
        checkpoint = folder / "checkpoint"
        if content[:1] in (b"{", b"[") or not content:
            (checkpoint / "manifest.json").write_bytes(content)
            training.load(CheckpointFolder(checkpoint))
            return
        if b"observation_dim" in content:
            (folder / NETWORK_FILE).write_bytes(content)
            teacher = Artifact.load(folder)
            teacher.complete({"success": 0.0}, exclude=("checkpoint",))
            load_actor(teacher)
            load_critic(teacher)
            return
        manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
        state = checkpoint / manifest["state"]["file"]
        state.write_bytes(content)
        del manifest["sha256"]
        manifest["state"]["sha256"] = file_sha256(state)
        write_json_atomic(checkpoint / "manifest.json", manifest | {"sha256": json_sha256(manifest)})
        training.load(CheckpointFolder(checkpoint))


_made()  # which no case should have to wait for
CASES = cases()

if __name__ == "__main__":
    main("tests.fuzz.checkpoint:read", CASES, ".checkpoint")
