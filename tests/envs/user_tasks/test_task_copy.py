"""Copies of users' tasks: whole, the same model wherever they lie, and aware of where they came from."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from tests.envs.user_tasks.user_pages import ARM, PAGE, changed, write
from thousandfold.envs.model_hash import model_sha256
from thousandfold.envs.registry import compile_task, get_task
from thousandfold.envs.task import TaskError
from thousandfold.envs.user_tasks.task_copy import copy_task, is_copy, read_source

TETRAHEDRON = np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0], [0, 0, 0.1]], np.float32)


def write_mesh(path: Path, size: float = 1.0) -> None:
    """Write a tetrahedron as binary STL."""
    faces = [(0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3)]
    corners = [struct.pack("<3f", 0, 0, 0) + (size * TETRAHEDRON[list(face)]).tobytes() for face in faces]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b" " * 80 + struct.pack("<I", 4) + b"".join(each + b"\0\0" for each in corners))


def write_scattered(home: Path, mesh: str = "../shapes/part.stl") -> Path:
    """Write a task whose page, model, include and meshes lie in folders of their own."""
    (home / "robot/parts").mkdir(parents=True)
    page = write(home / "robot", changed(PAGE, "model: arm.xml", "model: parts/../arm.xml"))
    assets = f'<mujoco><asset><mesh name="part" file="{mesh}"/></asset></mujoco>'
    (home / "robot/parts/assets.xml").write_text(assets)
    model = changed(
        ARM,
        "  <worldbody>",
        '  <compiler meshdir="meshes"/><include file="parts/assets.xml"/>\n  <worldbody>',
    )
    model = changed(model, '<site name="fingertip"', '<geom type="mesh" mesh="part"/><site name="fingertip"')
    (home / "robot/arm.xml").write_text(model)
    write_mesh(home / "robot/shapes/part.stl")
    return page


def test_a_copy_is_whole_and_the_same_model(tmp_path: Path) -> None:
    task = compile_task(str(write_scattered(tmp_path / "home")))
    assert copy_task(task, tmp_path / "copy") == []
    shutil.rmtree(tmp_path / "home")
    shutil.move(tmp_path / "copy", tmp_path / "elsewhere")
    again = compile_task(str(tmp_path / "elsewhere/task.yaml"))
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        "elsewhere/task.yaml",
        "elsewhere/source.json",
        "elsewhere/model/arm.xml",
        "elsewhere/model/parts/assets.xml",
        "elsewhere/model/shapes/part.stl",
    }
    assert again.name == task.name and again.model.nmesh == 1
    assert model_sha256(again.model) == model_sha256(task.model)


def test_the_hash_is_of_what_the_files_hold(tmp_path: Path) -> None:
    first = compile_task(str(write_scattered(tmp_path / "a")))
    second = write_scattered(tmp_path / "b")
    write_mesh(tmp_path / "b/robot/shapes/part.stl", size=1.5)
    assert model_sha256(first.model) != model_sha256(compile_task(str(second)).model)


def test_the_page_is_copied_but_for_the_models_path(tmp_path: Path) -> None:
    page = write_scattered(tmp_path / "home")
    page.write_text("# with a comment\n" + page.read_text())
    copy_task(compile_task(str(page)), tmp_path / "copy")
    expected = page.read_text().replace("parts/../arm.xml", '"model/arm.xml"')
    assert (tmp_path / "copy/task.yaml").read_text() == expected


def test_it_knows_where_it_came_from(tmp_path: Path) -> None:
    page = write(tmp_path)
    copy_task(compile_task(str(page)), tmp_path / "copy")
    source = read_source(tmp_path / "copy")
    assert source.file == str(page)
    assert set(source.files) == {str(page), str(tmp_path / "arm.xml")}
    assert source.changed_files() == []
    (tmp_path / "arm.xml").write_text(ARM + "\n")
    assert source.changed_files() == [str(tmp_path / "arm.xml")]
    page.unlink()
    assert source.changed_files() == [str(tmp_path / "arm.xml")], "what is gone has not changed"


def test_the_same_task_elsewhere_has_the_same_hash(tmp_path: Path) -> None:
    hashes = []
    for name, radius in (("a", "0.05"), ("b", "0.05"), ("c", "0.06")):
        (tmp_path / name).mkdir()
        page = write(tmp_path / name, changed(PAGE, "0.05}", f"{radius}}}"))
        copy_task(compile_task(str(page)), tmp_path / name / "copy")
        hashes.append(read_source(tmp_path / name / "copy").sha256)
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_copy_of_a_copy_keeps_the_source(tmp_path: Path) -> None:
    page = write(tmp_path)
    copy_task(compile_task(str(page)), tmp_path / "first")
    copy_task(compile_task(str(tmp_path / "first/task.yaml")), tmp_path / "second")
    assert read_source(tmp_path / "second").file == str(page)
    assert is_copy(tmp_path / "second/task.yaml") and not is_copy(page)


def test_an_absolute_path_is_named(tmp_path: Path) -> None:
    mesh = tmp_path / "far/part.stl"
    write_mesh(mesh)
    task = compile_task(str(write_scattered(tmp_path / "home", mesh=str(mesh))))
    assert copy_task(task, tmp_path / "copy") == [str(mesh)]


def test_a_copys_name_may_have_become_built_in(tmp_path: Path) -> None:
    copy_task(compile_task(str(write(tmp_path))), tmp_path / "copy")
    copied = tmp_path / "copy/task.yaml"
    copied.write_text(changed(copied.read_text(), "my_arm", "point_u_maze"))
    assert get_task(str(copied)).name == "point_u_maze"


def test_what_cannot_be_copied(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="'point_u_maze' is a built-in one"):
        copy_task(compile_task("point_u_maze"), tmp_path / "copy")
    task = compile_task(str(write(tmp_path)))
    (tmp_path / "arm.xml").write_text(changed(ARM, "0.01", "0.005"))
    with pytest.raises(TaskError, match="compiles to another model"):
        copy_task(task, tmp_path / "copy")


def test_a_damaged_record(tmp_path: Path) -> None:
    copy_task(compile_task(str(write(tmp_path))), tmp_path / "copy")
    record = tmp_path / "copy/source.json"
    content = json.loads(record.read_text())
    for text in ("{", json.dumps({**content, "more": 1}), "[]"):
        record.write_text(text)
        with pytest.raises(TaskError, match=r"source\.json is missing or damaged"):
            read_source(tmp_path / "copy")
