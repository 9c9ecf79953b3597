"""Models that would hang MuJoCo or take all the memory are refused before MuJoCo reads them."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from tests.envs.user_tasks.user_pages import ARM, write
from thousandfold.envs.registry import compile_task
from thousandfold.envs.task import TaskError
from thousandfold.envs.user_tasks.model_xml import require_modest


def world(body: str = "", rest: str = "") -> str:
    return f"<mujoco>\n{rest}\n<worldbody>{body}</worldbody></mujoco>"


GEOM = '<geom size=".1"/>'
REFUSED = {
    "copies": (
        world(f'<replicate count="100000000">{GEOM}</replicate>'),
        "line 3, geom: the model has more than 10,000",
    ),
    "copies of copies": (
        world('<replicate count="200">' * 2 + GEOM + "</replicate>" * 2), "more than 10,000 elements",
    ),
    "copies in other quotes": (
        world(f"<!-- <replicate> --><replicate\n count = '&#57;&#57;999'\n>{GEOM}</replicate>"),
        "more than 10,000",
    ),
    "a flexcomp": (
        world('<flexcomp name="f" type="grid" dim="3" count="100 100 100" spacing=".1 .1 .1"/>'),
        "line 3, flexcomp: ",
    ),
    "a height field": (
        world(rest='<asset><hfield name="h" nrow="100000" ncol="100000" size="1 1 1 1"/></asset>'),
        "line 2, hfield: nrow times ncol must be at most 16,777,216 heights",
    ),
    "a texture": (
        world(rest='<asset><texture type="2d" builtin="flat" width="100000" height="100000"/></asset>'),
        "texture: width times height must be at most",
    ),
    "memory": (world(rest='<size memory="900G"/>'), "size: memory must be at most 4 GiB (got 900g)"),
    "user numbers": (world(rest='<size nuser_geom="2000000000"/>'), "nuser_geom must be at most 1,000"),
    "keyframes": (world(rest='<size nkey="2000000000"/>'), "nkey must be at most 10,000"),
    "a mesh in fine steps": (
        world(rest='<asset><mesh name="m" builtin="cone" params="100000000 .5"/></asset>'),
        "mesh: params must be at most 300",
    ),
    "contacts to tell": (
        world(rest='<sensor><contact num="200000000"/></sensor>'), "num must be at most 10,000",
    ),
    "iterations": (world(rest='<option iterations="2000000000"/>'), "iterations must be at most 10,000"),
}  # fmt: skip


@pytest.mark.parametrize(("model", "words"), REFUSED.values(), ids=REFUSED)
def test_what_would_take_all_time_or_memory(model: str, words: str) -> None:
    with pytest.raises(TaskError) as caught:
        compile_task(str(write(Path.cwd(), model=model)))
    message = str(caught.value)
    assert message.startswith("robot.yaml, line 2, model: arm.xml, line ")
    assert words in message and "\n" not in message


@pytest.mark.parametrize("what", ["pipe", "folder", "device"])
@pytest.mark.parametrize("place", ["the model", "an included file", "a mesh", "a texture", "a height field"])
def test_files_that_are_none(what: str, place: str) -> None:
    path = Path("odd")
    {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda path: path.symlink_to("/dev/zero")}[what](path)
    within = {
        "an included file": '<include file="odd"/>',
        "a mesh": '<asset><mesh name="m" file="odd"/></asset>',
        "a texture": '<asset><texture type="2d" name="t" file="odd"/></asset>',
        "a height field": '<asset><hfield name="h" file="odd" size="1 1 1 1"/></asset>',
    }
    page = write(Path.cwd(), model=ARM.replace("<worldbody>", within.get(place, "") + "<worldbody>", 1))
    if place == "the model":
        page.write_text(page.read_text().replace("arm.xml", "odd"))
    with pytest.raises(TaskError) as caught:
        compile_task(str(page))
    word = {"pipe": "named pipe"}.get(what, what)
    assert f"odd cannot be read: it is a {word}, and must be a regular file" in str(caught.value)


def test_a_page_that_is_a_pipe() -> None:
    os.mkfifo("page.yaml")
    with pytest.raises(TaskError, match=r"page\.yaml cannot be read: it is a named pipe"):
        compile_task("page.yaml")


def test_a_picture_that_unpacks_to_more_than_there_is() -> None:
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 100_000, 100_000)
    Path("bomb.png").write_bytes(head + bytes(100))
    Path("arm.xml").write_text(world(rest='<asset><texture type="2d" name="t" file="bomb.png"/></asset>'))
    with pytest.raises(TaskError, match=r"bomb.png has 100,000 × 100,000 pixels, which are too many"):
        require_modest(Path("arm.xml"))


def test_models_within_models_are_counted() -> None:
    Path("part.xml").write_text(world(f'<replicate count="60"><body name="b">{GEOM}</body></replicate>'))
    attach = '<attach model="part" body="b" prefix="p"/>'
    Path("arm.xml").write_text(
        world(
            f'<replicate count="200">{attach}</replicate>',
            '<asset><model name="part" file="part.xml"/></asset>',
        )
    )
    with pytest.raises(TaskError, match="line 3, attach: the model has more than 10,000"):
        require_modest(Path("arm.xml"))
    Path("part.xml").write_text(world(rest='<asset><model name="part" file="part.xml"/></asset>'))
    with pytest.raises(TaskError, match=r"part\.xml attaches itself"):
        require_modest(Path("arm.xml"))


def test_files_that_include_one_another_without_end() -> None:
    for index in range(60):
        Path(f"{index}.xml").write_text(f'<mujocoinclude><include file="{index + 1}.xml"/></mujocoinclude>')
    with pytest.raises(TaskError, match="files include one another without end"):
        require_modest(Path("0.xml"))


def test_what_a_model_may_hold() -> None:
    """As many copies, and as large files, as models have; what is no XML is left to MuJoCo."""
    refused = []
    for model in (
        world(f'<replicate count="40"><replicate count="50">{GEOM}</replicate></replicate>'),
        world(rest='<!-- <replicate count="1000000"> --><size memory="1G" nuser_geom="3"/>'),
        world('<camera name="c" resolution="1920 1080"/>', '<statistic extent="1e9"/>'),
        "<mujoco><replicate count='100000000' <",
        "no XML",
        "",
    ):
        Path("arm.xml").write_text(model)
        try:
            require_modest(Path("arm.xml"))
        except TaskError as error:
            refused.append((model, str(error)))
    assert refused == []


def test_physics_steps_of_a_control_step_have_a_bound() -> None:
    page = write(Path.cwd(), model=ARM.replace('timestep="0.01"', 'timestep="1e-9"'))
    with pytest.raises(TaskError, match="holds more than 10,000 of the model's timesteps"):
        compile_task(str(page))
