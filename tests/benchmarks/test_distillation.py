"""The distillation benchmarks at a tiny size: what a cell runs, records, and does not run twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import dagger_against_offline, distillation, objectives, remedies, retention
from benchmarks.dagger_against_offline import arms, pair_counts, pooled_ratio
from benchmarks.distillation import make_dataset, make_student, run_both
from benchmarks.short_trainings import told
from tests.benchmarks.test_short_trainings import TINY
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.settings import resolve_settings
from thousandfold.stages.dataset.generate_dataset import GenerateDatasetSettings
from thousandfold.stages.distill.distill import DistillSettings
from thousandfold.stages.episodes import retention as ratio_of_means
from thousandfold.stages.train_teacher.settings import TrainTeacherSettings

DATASET: dict[str, Any] = {"episodes": 8, "noise_levels": (0.0, 0.2), "num_worlds": 8, "threads": 1}
STUDENT: dict[str, Any] = {
    "student_depth": 4,
    "student_width": 8,
    "updates": 4,
    "evaluate_every": 2,
    "evaluation_episodes": 4,
    "final_episodes": 8,
    "max_final_episodes": 8,
    # So short a training may leave a teacher that is not the same on every processor.
    "reproduction_tolerance": 1.0,
    "device": "cpu",
    "threads": 1,
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def cell(workspace: Path) -> dict[str, Any]:
    return retention.run_cell(TINY, 0, workspace, DATASET, STUDENT)


@pytest.fixture(scope="module")
def teacher(workspace: Path, cell: dict[str, Any]) -> Artifact:
    return Workspace(workspace).newest("teacher")


@pytest.fixture
def no_more_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to make another artifact."""
    for stage in (distillation.distill, distillation.generate_dataset):
        monkeypatch.setattr(stage, "run", None)


# -- what is shared ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("no_more_work")
def test_an_artifact_of_the_same_settings_is_taken(workspace: Path, teacher: Artifact) -> None:
    data = make_dataset(workspace, teacher, {**DATASET, "seed": 0})
    student = make_student(workspace, teacher, data, {**STUDENT, "seed": 0})
    assert data.kind == "dataset" and student.manifest.parents["dataset"].hash == data.manifest.hash
    for settings in ({"seed": 1}, {"seed": 0, "updates": 5}):
        with pytest.raises(TypeError):  # it would make another
            make_student(workspace, teacher, data, {**STUDENT, **settings})


@pytest.mark.slow
def test_two_networks_run_the_same_episodes(workspace: Path, teacher: Artifact, cell: dict[str, Any]) -> None:
    theirs, ours = run_both(teacher, Workspace(workspace).newest("student"), 12, seed=5)
    assert np.array_equal(theirs.start, ours.start) and np.array_equal(theirs.goal, ours.goal)
    assert not np.array_equal(theirs.final_distance, ours.final_distance)
    assert not np.array_equal(theirs.goal, run_both(teacher, teacher, 12, seed=6)[0].goal)


# -- retention --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", retention.TEACHERS)
def test_the_trainer_takes_what_a_cell_tells_it(name: str) -> None:
    pairs = [argument.removeprefix("--set=") for argument in told(retention.TEACHERS[name], 1)[4:]]
    settings = resolve_settings(TrainTeacherSettings, "train_teacher", overrides=pairs, flags={"seed": 1})
    assert settings.threads == 1 and settings.depth > retention.STUDENT["student_depth"]
    assert DistillSettings(**retention.STUDENT).student_depth == 4
    assert DistillSettings(**retention.STUDENT).final_episodes >= 1000
    assert GenerateDatasetSettings(**retention.DATASET).episodes >= 1000


@pytest.mark.slow
def test_a_retention_cell_records_its_student(cell: dict[str, Any], teacher: Artifact) -> None:
    assert cell["episodes"] == 8 and cell["settings"]["student"]["updates"] == 4
    assert cell["settings"]["teacher"] == teacher.manifest.settings and not cell["met"]
    assert retention.table({"tiny seed 0": cell}).splitlines()[-1].endswith("| 8 | no |")


@pytest.mark.parametrize(
    ("changes", "met"),
    [
        ({}, True),
        ({"teacher_success": 0.79}, False),
        ({"retention": 0.979}, False),
        ({"time_at_goal_retention_interval": [0.94, 1.0]}, False),
        ({"retention": None, "retention_interval": None}, False),
    ],
)
def test_what_is_asked_of_a_cell(changes: dict[str, Any], met: bool) -> None:
    results = {"teacher_success": 0.8}
    for name in ("retention", "time_at_goal_retention"):
        results |= {name: 0.98, f"{name}_interval": [0.95, 1.0]}
    assert retention.met(results | changes) == met


# -- remedies ---------------------------------------------------------------------------------------


def test_every_remedy_changes_something_that_is_a_setting() -> None:
    assert remedies.REMEDIES["none"] == objectives.Variant()
    made = set()
    for variant in remedies.REMEDIES.values():
        student = DistillSettings(**{**remedies.STUDENT, **variant.student})
        dataset = GenerateDatasetSettings(**{**remedies.DATASET, **variant.dataset})
        made.add((student, dataset))
    assert len(made) == len(remedies.REMEDIES)


# -- objectives -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", objectives.VARIANTS)
def test_a_variants_settings_are_settings(name: str) -> None:
    variant = objectives.VARIANTS[name]
    student = DistillSettings(**{**objectives.STUDENT, **variant.student})
    assert student.updates == objectives.STUDENT["updates"]  # equal for all
    GenerateDatasetSettings(**{**objectives.DATASET, **variant.dataset})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["critic", "mse, best of 16 actions"])
def test_a_variant_is_distilled_as_it_says(name: str, workspace: Path, teacher: Artifact) -> None:
    variant = objectives.VARIANTS[name]
    cell = objectives.run_cell(variant, 0, teacher, workspace, DATASET, STUDENT)
    settings = cell["settings"]["student"] | cell["settings"]["dataset"]
    for key, value in {**variant.student, **variant.dataset}.items():
        assert settings[key] == value
    assert cell["teacher"] == teacher.name and cell["episodes"] == 8


def test_a_variants_line_has_its_mean_and_every_seed() -> None:
    cell = {"success": 0.9, "retention": 1.0, "retention_interval": [0.9, 1.1], "time_at_goal_retention": 0.8}
    other = cell | {"success": 0.7, "retention": 0.8, "retention_interval": [0.7, 0.9]}
    line = objectives.table({"a seed 0": cell, "a seed 1": other}).splitlines()[-1]
    assert line == "| a | 0.800 | 0.900 | 0.800 | 1.000 [0.900, 1.100]; 0.800 [0.700, 0.900] |"


# -- DAgger against offline -------------------------------------------------------------------------


def test_both_arms_have_as_many_updates_and_labels() -> None:
    both = arms(20_000, 100)
    offline, dagger = (DistillSettings(**both[name]) for name in ("offline", "dagger"))
    assert offline.total_updates == dagger.total_updates == dagger_against_offline.UPDATES
    assert dagger.dagger_rounds * dagger.dagger_episodes * 100 == 10_000
    assert offline.validation_fraction * 200 == dagger.validation_fraction * 100 == 10
    with pytest.raises(ValueError, match="700 labels are too few for 4 rounds of 100-step"):
        arms(700, 100)


@pytest.mark.slow
def test_a_cell_compares_both_at_equal_labels(
    workspace: Path, teacher: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"UPDATES": 12, "ROUND_UPDATES": 2}.items():
        monkeypatch.setattr(dagger_against_offline, name, value)
    student = {**STUDENT, "evaluate_every": 100}
    cell = dagger_against_offline.run_cell(teacher, 320, 0, workspace, student, episodes=16)
    assert cell["offline"]["labels"] == cell["dagger"]["labels"] == 320  # 16 episodes of 20 steps
    assert cell["offline"]["training_labels"] == cell["dagger"]["training_labels"] == 300
    assert [entry["labels"] for entry in cell["rounds"]] == [200, 240, 280, 320]
    assert cell["offline"]["episodes"] == cell["episodes"] == sum(cell["pairs"].values()) == 16
    text = dagger_against_offline.table({"320, 0": cell})
    assert text.splitlines()[-1].startswith("| 320, all 1 | point_u_maze |")


def cells_of(shares: list[tuple[float, float]], episodes: int = 1000) -> list[dict[str, Any]]:
    """Return a cell a pair of successes, of the offline student and of DAgger's, which do not depend."""
    rng = np.random.default_rng(0)
    return [
        {"pairs": pair_counts(rng.random(episodes) < offline, rng.random(episodes) < dagger)}
        for offline, dagger in shares
    ]


def test_the_ratio_of_several_cells_is_that_of_all_their_episodes() -> None:
    cells = cells_of([(0.7, 0.8)] * 4)
    ratio, interval = pooled_ratio(cells)
    counts = {who: sum(cell["pairs"][who] for cell in cells) for who in ("both", "offline", "dagger")}
    expected = (counts["both"] + counts["dagger"]) / (counts["both"] + counts["offline"])
    assert ratio == expected and interval is not None and interval[0] < ratio < interval[1]
    assert pooled_ratio([{"pairs": pair_counts(np.zeros(4, bool), np.ones(4, bool))}]) == (None, None)


def test_seeds_that_differ_widen_the_interval_however_many_episodes_there_are() -> None:
    alike, apart = [(0.7, 0.7)] * 3, [(0.7, 0.5), (0.7, 0.7), (0.7, 0.9)]
    widths = []
    for shares in (alike, apart):
        _, interval = pooled_ratio(cells_of(shares, 20_000))
        assert interval is not None
        widths.append(interval[1] - interval[0])
    assert widths[0] < 0.03 and widths[1] > 0.3


def test_one_cell_has_the_interval_of_its_episodes() -> None:
    (cell,) = cells_of([(0.7, 0.8)])
    cells = [cell["pairs"][who] for who in ("both", "offline", "dagger", "neither")]
    own = ratio_of_means(np.repeat([1, 1, 0, 0], cells), np.repeat([1, 0, 1, 0], cells))
    ratio, interval = pooled_ratio([cell])
    assert ratio == own["retention"] and interval == pytest.approx(own["interval"], abs=0.01)
