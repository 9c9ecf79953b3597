"""Settings of a frontier, its cells' folders, and which frontier can be gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from thousandfold.ground.errors import DamagedFileError, SettingsError
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.settings import resolve_settings
from thousandfold.stages.frontier.cells import (
    Cell,
    FrontierSettings,
    cell_workspace,
    find_resumable,
    grid,
)

STAGES = {"distill": {}, "export_onnx": {}, "benchmark": {}}


def settings(**flags: Any) -> FrontierSettings:
    return resolve_settings(FrontierSettings, "frontier", flags=flags)


@pytest.mark.parametrize("depths", ["1,4", " 4 , 1,", "4,1,4", [1, 4], (4, 1)])
def test_sizes_are_read_in_order_and_once(depths: Any) -> None:
    assert settings(depths=depths).depths == (1, 4)


def test_one_size_needs_no_list() -> None:
    assert settings(depths="8", widths=16).depths == (8,)
    assert settings(widths=16).widths == (16,)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"depths": ""}, "depths must name at least one size, such as 1,2,4"),
        ({"widths": []}, "widths must name at least one size"),
        ({"depths": "0,4"}, "must be greater than or equal to 1"),
        ({"depths": "1,2000"}, "must be less than or equal to 1024"),
        ({"widths": "64,wide"}, "widths must be whole numbers, such as 1,2,4"),
        ({"widths": [1.5]}, "widths must be whole numbers"),
        ({"depths": True}, "depths must be whole numbers"),
        ({"jobs": -1}, "jobs must be greater than or equal to 0"),
    ],
)
def test_what_is_no_grid_is_refused_in_one_line(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(**flags)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_grid_has_a_cell_for_each_depth_and_width() -> None:
    assert [cell.name for cell in grid(settings(depths="1,4", widths="8,16"))] == [
        "1x8", "1x16", "4x8", "4x16",
    ]  # fmt: skip


def frontier(root: Path, **stored: Any) -> Artifact:
    return Workspace(root).create("frontier", task="point_u_maze", settings={**STAGES, **stored})


def test_a_cell_is_never_the_newest_of_the_workspace(tmp_path: Path) -> None:
    inside = cell_workspace(frontier(tmp_path), Cell(4, 8))
    inside.create("student", task="point_u_maze", settings={}).complete({})
    assert Workspace(tmp_path).artifacts("student") == []


def test_the_newest_unfinished_frontier_is_gone_on_with(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with pytest.raises(SettingsError, match="No unfinished frontier"):
        find_resumable(workspace, None)
    first, second, done = frontier(tmp_path, depths=[2]), frontier(tmp_path), frontier(tmp_path)
    second.fail("all failed")
    done.complete({})
    assert find_resumable(workspace, None)[1].name == second.name
    plan, named = find_resumable(workspace, first.name)
    assert named.name == first.name and plan.depths == (2,)
    with pytest.raises(SettingsError, match="is completed: there is nothing to resume"):
        find_resumable(workspace, done.name)


def test_settings_of_another_version_are_refused(tmp_path: Path) -> None:
    frontier(tmp_path, colour="green")
    with pytest.raises(DamagedFileError, match="cannot be resumed: setting colour"):
        find_resumable(Workspace(tmp_path), None)
