"""The page of a study: what is read, what each arm is trained with, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from thousandfold.ground.errors import SettingsError, UserError
from thousandfold.stages.study.page import Cell, StudyPlan, cell_settings, cells, read_page, resolve_plan

ROOT = Path(__file__).resolve().parents[3]
PAGE: dict[str, Any] = {
    "question": "Does depth pay?",
    "tasks": ["reacher", "point_u_maze"],
    "seeds": [3, 1],
    "preset": "smoke",
    "settings": {"width": 32, "actor_learning_rate": 1e-3},
    "arms": {"D4": {"depth": 4}, "D8": {"depth": 8, "actor_learning_rate": 5e-4}},
    "claims": ["D8 reaches more than D4 of success at the end on reacher"],
    "scales": {"large": {"preset": "quickstart", "width": 256}},
}


def plan(folder: Path, scale: str | None = None, *overrides: str, **changes: Any) -> StudyPlan:
    path = folder / "study.yaml"
    content = {name: value for name, value in {**PAGE, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump(content))
    page, text = read_page(path)
    assert text == path.read_bytes()
    return resolve_plan(page, scale=scale, preset=None, overrides=overrides, device=None)


def test_cells_go_seed_by_seed(tmp_path: Path) -> None:
    found = [cell.name for cell in cells(plan(tmp_path))]
    assert found == [
        "reacher-D4-3", "reacher-D8-3", "point_u_maze-D4-3", "point_u_maze-D8-3",
        "reacher-D4-1", "reacher-D8-1", "point_u_maze-D4-1", "point_u_maze-D8-1",
    ]  # fmt: skip


def test_an_arm_goes_before_the_page_and_the_page_before_the_preset(tmp_path: Path) -> None:
    made = plan(tmp_path)
    shallow, deep = (cell_settings(made, Cell("reacher", arm, 1)) for arm in ("D4", "D8"))
    assert (shallow.depth, deep.depth, shallow.width, shallow.env_steps) == (4, 8, 32, 3200)
    assert (shallow.actor_learning_rate, deep.actor_learning_rate) == (1e-3, 5e-4)
    assert (shallow.task, shallow.seed) == ("reacher", 1)


def test_a_scale_goes_before_the_page_and_set_before_all(tmp_path: Path) -> None:
    large = cell_settings(plan(tmp_path, "large", "depth=16"), Cell("reacher", "D4", 1))
    assert (large.width, large.depth, large.env_steps) == (256, 16, 1_300_000)


def test_null_is_a_value_that_goes_before_the_presets(tmp_path: Path) -> None:
    page = {"preset": "quickstart", "settings": {"target_success": None}}
    made = plan(tmp_path, **page, arms={"D4": {"depth": 4}, "D8": {"depth": 8, "target_success": 0.5}})
    found = [cell_settings(made, Cell("reacher", arm, 1)).target_success for arm in ("D4", "D8")]
    assert found == [None, 0.5]


def test_a_users_task_goes_by_its_files_name(tmp_path: Path) -> None:
    task = ROOT / "examples" / "submarine" / "submarine.yaml"
    claim = "D8 reaches more than D4 of success at the end on submarine"
    made = plan(tmp_path, tasks=[str(task)], claims=[claim])
    assert cells(made)[0].name == "submarine-D4-3"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": []}, "tasks: "),
        ({"arms": None}, "arms must be given"),
        ({"colour": 1}, "Unknown key 'colour'"),
        ({"seeds": [1, 1]}, "seeds: 1 is there twice"),
        ({"seeds": [-1]}, "seeds.0"),
        ({"tasks": ["reecher"]}, "did you mean 'reacher'"),
        ({"arms": {"D 4": {}}}, "an arm is named by letters, digits"),
        ({"arms": {"D4": {"dept": 4}}, "claims": []}, "arm D4: train_teacher: Unknown setting 'dept'"),
        ({"arms": {"D4": {"depth": 5}}, "claims": []}, "arm D4: train_teacher: depth"),
        ({"settings": {"seed": 4}}, "arm D4: seed is set by the study's seeds"),
        ({"settings": {"task": "ant"}}, "arm D4: task is set by the study's tasks"),
        ({"claims": ["D9 reaches at least 0.5 of success at the end"]}, "Unknown arm 'D9'"),
        ({"seeds": list(range(1001))}, "The study has 4,004 trainings; 2,000 is the most."),
        ({"preset": "smoky"}, "did you mean 'smoke'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(tmp_path, **changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff\xfe", "is no text file in UTF-8"),
        (b"tasks: [", "is not valid YAML"),
        (b"- reacher", "must hold question, tasks, seeds"),
        (b"", "must hold question, tasks, seeds"),
    ],
)
def test_a_file_that_is_no_page_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "study.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        read_page(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_scale_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--scale: Unknown scale 'lage': did you mean 'large'"):
        plan(tmp_path, "lage")


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_pages_that_come_with_it_can_be_run_at_every_scale(path: Path) -> None:
    page, _ = read_page(path)
    assert page.claims and page.question
    for scale in (None, *page.scales):  # what the paper gives one value is not several by the arm's depth
        found = resolve_plan(page, scale=scale, preset=None, overrides=(), device="cpu")
        assert len({str(settings) for settings in found.arms.values()}) == len(page.arms)
        if scale == "gpu":
            rates = {settings["actor_learning_rate"] for settings in found.arms.values()}
            updates = {settings["updates_per_unroll"] for settings in found.arms.values()}
            assert rates == {3e-4} and updates == {800}


def test_a_scale_may_have_arms_of_its_own(tmp_path: Path) -> None:
    large = {"width": 256, "arms": {"D8": {"depth": 12}}}
    found = plan(tmp_path, "large", scales={"large": large})
    assert [arm["depth"] for arm in found.arms.values()] == [4, 12]
    assert found.arms["D8"]["actor_learning_rate"] == 1e-3  # the page's, not that of its arm
    for arms, said in (({"D9": {}}, "did you mean 'D8'"), ([1], "give settings by arm")):
        with pytest.raises(SettingsError, match=said):
            plan(tmp_path, "large", scales={"large": {"arms": arms}})
