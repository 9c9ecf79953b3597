"""A copy of a user's task: one folder that holds the page of YAML, the model and all of its files.

task/
    task.yaml       the page; its `model` is the copied one
    model/          the model and its files, as they lay to one another
    source.json     where they came from, and their SHA-256 at that time
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import mujoco

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.model_hash import model_sha256
from thousandfold.envs.task import TaskError
from thousandfold.envs.user_tasks.task_yaml import read_page, shown
from thousandfold.envs.user_tasks.user_task import compile_user_task, model_files
from thousandfold.ground.files import file_sha256

PAGE_NAME, SOURCE_NAME, MODEL_FOLDER = "task.yaml", "source.json", "model"


class TaskSource(NamedTuple):
    """Where a copied task came from.

    Attributes:
        file: the page of YAML, absolute.
        sha256: of all the task's files together, wherever they lie.
        files: SHA-256 of each file at the time of the copy, by absolute path.
    """

    file: str
    sha256: str
    files: dict[str, str]

    def changed_files(self) -> list[str]:
        """Return the files that are still where they were, and hold something else."""
        return [
            path
            for path, digest in self.files.items()
            if os.path.isfile(path) and file_sha256(Path(path)) != digest
        ]


def is_copy(page: str | Path) -> bool:
    """Return whether a page of YAML is one of a copy."""
    return Path(page).with_name(SOURCE_NAME).is_file()


def read_source(folder: Path) -> TaskSource:
    """Return where the task copied to `folder` came from; raise TaskError where its record is damaged."""
    path = folder / SOURCE_NAME
    try:
        return TaskSource(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise TaskError(f"{path} is missing or damaged: the task's copy cannot be identified.") from error


def copy_task(task: CompiledTask, folder: Path) -> list[str]:
    """Copy a user's task to `folder`, which appears once it is whole. A copy is copied as it is.

    Returns:
        Files outside the copy that it still needs: those that the model names by an absolute path.

    Raises:
        TaskError: the task is a built-in one, or its copy compiles to another model.
    """
    if task.spec.file is None:
        raise TaskError(f"Task {task.name!r} is a built-in one: there is no file to copy.")
    page = Path(task.spec.file)
    temporary = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    if is_copy(page):
        shutil.copytree(page.parent, temporary)
    else:
        _copy_source(page, task, temporary)
    temporary.rename(folder)
    return _outside(folder, task)


def source_files(page: Path, model_file: Path, model: mujoco.MjModel) -> list[Path]:
    """Return every file that a task is made of: page, model, what it includes, meshes and pictures."""
    # MuJoCo names a height field's file without the folder that it takes it from: the compiled model knows.
    found = [page, *model_files(model_file), *(Path(path) for path in _assets(model))]
    return [Path(path) for path in dict.fromkeys(map(os.path.abspath, found)) if os.path.isfile(path)]


def _assets(model: mujoco.MjModel) -> list[str]:
    """Return the files that a model took its meshes, height fields, textures and skins from."""
    return [path for path in model.paths.decode(errors="surrogateescape").split("\0") if path]


def _copy_source(page_file: Path, task: CompiledTask, folder: Path) -> None:
    page = read_page(page_file)
    model_file = Path(os.path.abspath(page.file("model")))
    files = source_files(page_file, model_file, task.model)
    root = Path(os.path.commonpath([path.parent for path in files[1:]]))
    for path in files[1:]:
        place = folder / MODEL_FOLDER / path.relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    begin, end = page.scalar_span("model")
    copied = json.dumps(f"{MODEL_FOLDER}/{model_file.relative_to(root).as_posix()}")
    (folder / PAGE_NAME).write_text(page.text[:begin] + copied + page.text[end:], encoding="utf-8")
    digests = {str(path): file_sha256(path) for path in files}
    source = TaskSource(str(page_file), _joined(files, root, digests), digests)
    (folder / SOURCE_NAME).write_text(json.dumps(source._asdict(), indent=2) + "\n", encoding="utf-8")


def _joined(files: Iterable[Path], root: Path, digests: dict[str, str]) -> str:
    """Return one SHA-256 of the page and of each file by its place below `root`."""
    page, *rest = files
    lines = [digests[str(page)], *sorted(f"{each.relative_to(root)} {digests[str(each)]}" for each in rest)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _outside(folder: Path, task: CompiledTask) -> list[str]:
    """Compile the copy, see that it is the same model, and return the files that lie elsewhere."""
    copy = compile_user_task(folder / PAGE_NAME)
    if model_sha256(copy.model) != model_sha256(task.model):
        raise TaskError(
            f"The copy of task {task.name!r} in {shown(folder)} compiles to another model than "
            f"{task.spec.file}: leave its files alone while it is copied."
        )
    return [path for path in _assets(copy.model) if not Path(path).is_relative_to(folder)]


def describe_source(folder: Path) -> dict[str, Any]:
    """Return what an artifact's metadata says of a copied task: ``task_file`` and ``task_sha256``."""
    source = read_source(folder)
    return {"task_file": source.file, "task_sha256": source.sha256}
