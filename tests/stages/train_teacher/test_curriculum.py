"""A curriculum: nearer goals first, each distribution until it is learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.envs.user_tasks.user_pages import PAGE, write
from tests.stages.tiny_runs import make_context
from tests.stages.train_teacher.teacher_runs import (
    as_options,
    assert_same_run,
    change,
    checkpoint_of,
    interrupt_after,
    invoke,
)
from thousandfold.envs.registry import compile_task
from thousandfold.envs.task import TaskError
from thousandfold.ground.errors import SettingsError, StoppedByUser
from thousandfold.ground.files import json_sha256
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.checkpoint import CheckpointFolder
from thousandfold.pipeline.settings import resolve_settings
from thousandfold.stages.episodes import HISTORY_FILE
from thousandfold.stages.study.study import read_history
from thousandfold.stages.train_teacher import train_teacher
from thousandfold.stages.train_teacher.settings import TrainTeacherSettings
from thousandfold.stages.train_teacher.training import TeacherTraining

# The arm's hand is where the near goals are, and never where the others are.
NEAR = PAGE.replace("[0.2, 0, -0.3], high: [0.3, 0, -0.1]", "[5, 0, 5], high: [6, 0, 6]") + (
    "near: {goal: {box: {low: [0.3, 0, -0.2], high: [0.35, 0, -0.1]}}}\n"
)
EVERYWHERE = NEAR.replace("radius: 0.05", "radius: 2")


FAR = NEAR.replace("[0.3, 0, -0.2], high: [0.35", "[4, 0, -0.2], high: [4.5")
"""Its near goals are never reached either."""


def near_first(folder: Path, page: str = EVERYWHERE, **values: Any) -> TrainTeacherSettings:
    task = str(write(folder, page))
    return change(task=task, curriculum=("near",), average_decay=0.0, goal_exchange=0.0, **values)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("taught")
    return train_teacher.run(near_first(folder), make_context(folder))


def test_what_is_near_comes_until_it_is_reached(taught: Artifact):
    progress = checkpoint_of(taught).progress
    rows, steps = progress["history"], 4 * 30 * 3
    assert [row["success"] for row in rows] == [1.0, 0.0, 0.0, 0.0]
    assert [row["env_steps"] for row in rows][:2] == [steps, 2 * steps]
    assert progress["evaluated"] == [
        {"env_steps": 0, "distribution": "near", "curriculum": True},
        {"env_steps": steps, "distribution": "evaluation", "curriculum": False},
    ]


def test_the_best_is_sought_after_it(taught: Artifact):
    progress = checkpoint_of(taught).progress
    assert progress["best_score"][0] == 0 and progress["lesson"] == 1
    assert progress["finalists"] and all(int(name.split("-")[1]) > 3 for name in progress["finalists"])
    assert taught.manifest.results["success"] == 0


def test_its_history_says_where_it_changed_and_a_study_judges_what_follows(taught: Artifact):
    told = json.loads(taught.file(HISTORY_FILE).read_text())
    assert len(told["history"]) == 4 and told["evaluated"][0]["distribution"] == "near"
    assert read_history(taught) == told["history"][1:]


def test_environments_begin_anew_with_other_goals(tmp_path: Path):
    settings = near_first(tmp_path)
    training = TeacherTraining(settings, compile_task(settings.task), "cpu")
    goals = []
    for _ in range(4):
        goals.append(np.array(training.simulator.desired_goal))
        training.collect()
        for batch in training.relabel():
            training.update(batch)
        if training.progress.unrolls == 3:
            training.evaluate()
    assert (goals[0] < 1).all() and (goals[2] < 1).all() and (goals[3][:, 0] > 4).all()
    assert training.buffer.rows_per_world == settings.replay_rows_per_world  # the memory goes on


def test_patience_leads_on_and_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    settings = near_first(tmp_path, FAR, curriculum_patience=1, patience=1, env_steps=4 * 30 * 40)
    made = train_teacher.run(settings, make_context(tmp_path))
    progress = checkpoint_of(made).progress
    first, second = progress["evaluated"]
    assert first["env_steps"] < second["env_steps"] < progress["env_steps"] < settings.env_steps
    said = " ".join(capsys.readouterr().out.split())
    assert "no better in 1 evaluations; the task itself comes next" in said


def test_without_patience_a_lesson_lasts(tmp_path: Path):
    settings = near_first(tmp_path, FAR, curriculum_patience=None, patience=1, env_steps=4 * 30 * 12)
    made = train_teacher.run(settings, make_context(tmp_path))
    progress = checkpoint_of(made).progress
    assert progress["lesson"] == 0 and progress["env_steps"] == settings.env_steps


def test_a_target_is_met_after_it_alone(tmp_path: Path):
    """A fifth of the near goals would meet the target; it takes all of them to lead on."""
    targets = {
        "curriculum_success": 1.0,
        "target_success": 0.2,
        "target_evaluations": 1,
        "evaluation_episodes": 8,
    }
    settings = near_first(tmp_path, NEAR, **targets)
    made = train_teacher.run(settings, make_context(tmp_path))
    rows = checkpoint_of(made).progress["history"]
    assert any(0.2 <= row["success"] < 1 for row in rows)
    assert made.manifest.results["env_steps"] == settings.env_steps


def test_a_budget_that_ends_in_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = EVERYWHERE.replace("radius: 2", "radius: 0.001")
    settings = near_first(tmp_path, page, env_steps=4 * 30 * 4)
    made = train_teacher.run(settings, make_context(tmp_path))
    said = " ".join(capsys.readouterr().err.split())
    assert "ended in the curriculum, at near" in said and f"--resume {made.name} --set env_steps=MORE" in said
    assert made.manifest.results["final_distance"] > 4  # it is evaluated on the task's own goals


@pytest.mark.parametrize("given", ["near,moon", "moon"])
def test_an_unknown_one_is_refused(given: str):
    with pytest.raises(SettingsError, match="moon"):
        resolve_settings(
            TrainTeacherSettings, "train_teacher", overrides=(f"curriculum={given}",), flags={"task": "ant"}
        )


def test_names_are_given_with_commas_or_as_a_list():
    for given in ("near,training", "[near, training]"):
        found = resolve_settings(
            TrainTeacherSettings, "train_teacher", overrides=(f"curriculum={given}",), flags={"task": "ant"}
        )
        assert found.curriculum == ("near", "training")


def test_the_command_says_what_comes_next(tmp_path: Path):
    settings = near_first(tmp_path)
    result = invoke(tmp_path / "made", "train-teacher", *as_options(settings, curriculum="near"))
    assert result.exit_code == 0, result.output
    assert "Curriculum: success 1.00 on near after 360 steps; the task itself comes next." in " ".join(
        result.stdout.split()
    )


def test_a_page_may_have_near_episodes_of_every_kind(tmp_path: Path):
    task = compile_task(str(write(tmp_path, NEAR)))
    assert set(task.spec.distributions) == {"training", "evaluation", "near"}
    with pytest.raises(TaskError, match=r"near.*goal|goal.*near"):
        compile_task(str(write(tmp_path, PAGE + "near: {goal: {box: {low: [0, 0], high: [1, 1]}}}\n")))


def test_a_page_without_near_says_what_to_do(tmp_path: Path):
    with pytest.raises(SettingsError, match=r"'near' is no distribution of my_arm, .*or set curriculum=\[\]"):
        resolve_settings(
            TrainTeacherSettings,
            "train_teacher",
            overrides=("curriculum=near",),
            flags={"task": str(write(tmp_path, PAGE))},
        )


def resumed(artifact: Artifact, **values: Any) -> Artifact:
    """Train an artifact on with other settings, as a new process does."""
    context = make_context(artifact.path.parents[1])
    settings, found = train_teacher.find_resumable(context.workspace, artifact.name)
    return train_teacher.run(change(settings, **values), context, found)


def test_a_teacher_that_is_stuck_in_it_is_led_on_by_hand(tmp_path: Path):
    stuck = train_teacher.run(near_first(tmp_path, FAR, env_steps=4 * 30 * 4), make_context(tmp_path))
    assert [row["curriculum"] for row in checkpoint_of(stuck).progress["evaluated"]] == [True]
    (only,) = read_history(stuck)  # its final evaluation, of the task's own goals
    assert only["env_steps"] == stuck.manifest.results["env_steps"]
    made = resumed(stuck, env_steps=4 * 30 * 12, curriculum=())
    progress = checkpoint_of(made).progress
    assert [row["distribution"] for row in progress["evaluated"]] == ["near", "evaluation"]
    assert read_history(made) == progress["history"][len(checkpoint_of(stuck).progress["history"]) :]
    lowered = resumed(stuck, env_steps=4 * 30 * 12, curriculum_patience=1)
    assert checkpoint_of(lowered).progress["lesson"] == 1


def test_one_that_was_interrupted_in_the_midst_of_a_lesson_goes_on_bit_for_bit(tmp_path: Path):
    settings = near_first(tmp_path, unroll_steps=17, env_steps=4 * 17 * 11)
    whole = train_teacher.run(settings, make_context(tmp_path / "whole"))
    context = make_context(tmp_path / "halves")
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(StoppedByUser):
        interrupt_after(monkeypatch, context, "stop", 5, [])  # two unrolls after what is near
        train_teacher.run(settings, context)
    context = make_context(tmp_path / "halves")
    found, artifact = train_teacher.find_resumable(context.workspace, None)
    assert checkpoint_of(artifact).progress["lesson"] == 1
    assert_same_run(train_teacher.run(found, context, artifact), whole)


def test_a_budget_that_is_lowered_to_where_it_stands_is_evaluated_once(tmp_path: Path):
    context = make_context(tmp_path)
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(StoppedByUser):
        interrupt_after(monkeypatch, context, "stop", 4, [])
        train_teacher.run(near_first(tmp_path), context)
    made = resumed(Workspace(tmp_path).artifacts("teacher")[0], env_steps=4 * 30 * 4)
    assert made.manifest.status == "completed" and made.manifest.results["env_steps"] == 480


def test_a_checkpoint_of_an_earlier_version_is_marked_where_its_evaluations_change(tmp_path: Path):
    task = str(write(tmp_path, NEAR))
    settings = change(task=task, average_decay=0.0, env_steps=4 * 30 * 4)
    training = TeacherTraining(settings, compile_task(task), "cpu")
    folder = CheckpointFolder(tmp_path / "checkpoint")
    training.evaluate()
    training.save(folder)
    manifest = tmp_path / "checkpoint" / "manifest.json"
    told = json.loads(manifest.read_text())
    for name in ("lesson", "evaluated"):
        del told["progress"][name]
    for name in ("curriculum", "curriculum_success", "curriculum_patience"):
        del told["progress"]["settings"][name]
    del told["sha256"]
    manifest.write_text(json.dumps(told | {"sha256": json_sha256(told)}))
    changed = compile_task(task, {"evaluation": "near"})
    later = TeacherTraining(change(settings, evaluation_distribution="near"), changed, "cpu")
    later.train_on(folder)
    assert [row["distribution"] for row in later.progress.evaluated] == ["evaluation", "near"]
