"""A teacher's training: which actor is kept, when it stops, and what it leaves."""

from __future__ import annotations

import dataclasses
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.stages.tiny_runs import TINY_TEACHER
from tests.stages.train_teacher.teacher_runs import (
    Tensors,
    assert_same_tensors,
    change,
    interrupt_after,
)
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.registry import compile_task, get_task
from thousandfold.ground.errors import StoppedByUser, UserError
from thousandfold.ground.files import file_sha256, json_sha256, write_json_atomic
from thousandfold.pipeline.checkpoint import CheckpointFolder, load_tensors, save_tensors
from thousandfold.pipeline.runtime import StageContext, seed_sequence
from thousandfold.pipeline.settings import resolve_settings
from thousandfold.stages.episodes import Episodes, run_episodes
from thousandfold.stages.networks import NETWORK_FILE, load_actor, torch_policy
from thousandfold.stages.random_baseline import no_better_than_random
from thousandfold.stages.train_teacher import train_teacher
from thousandfold.stages.train_teacher import training as teacher_training
from thousandfold.stages.train_teacher.settings import TrainTeacherSettings
from thousandfold.stages.train_teacher.training import TeacherTraining

# -- what is commanded while it explores -------------------------------------------------------------


def goals_before_and_after(goal_exchange: float, unroll_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what is commanded in 400 worlds before and after an unroll, (400, 2) each."""
    changes = {"num_worlds": 400, "unroll_steps": unroll_steps, "goal_exchange": goal_exchange}
    settings = TINY_TEACHER.model_copy(update=changes)
    training = TeacherTraining(settings, compile_task(settings.task), "cpu")
    before = training.simulator.desired_goal.copy()
    training.collect()
    return before, training.simulator.desired_goal.copy()


def test_an_episode_keeps_its_goal_where_none_are_exchanged():
    before, after = goals_before_and_after(0.0, 20)
    assert np.array_equal(before, after)


def test_the_chance_of_another_goal_is_that_of_each_step():
    before, after = goals_before_and_after(0.25, 1)
    assert 0.2 < (before != after).any(1).mean() < 0.3
    before, after = goals_before_and_after(0.25, 3)
    assert 0.53 < (before != after).any(1).mean() < 0.63  # 1 - 0.75 ** 3 = 0.58


def test_worlds_take_over_goals_that_are_commanded_in_others():
    before, after = goals_before_and_after(1.0, 1)
    assert {tuple(goal) for goal in after.tolist()} <= {tuple(goal) for goal in before.tolist()}


def test_a_goal_that_the_task_commands_later_still_comes():
    settings = TINY_TEACHER.model_copy(update={"num_worlds": 64, "unroll_steps": 19, "goal_exchange": 0.3})
    task = CompiledTask(dataclasses.replace(get_task(settings.task), resample_every=20))
    training = TeacherTraining(settings, task, "cpu")
    later = training.simulator.later_goals[:, :2].copy()
    training.collect()
    training.simulator.step(np.zeros((64, 2), np.float32))
    assert np.array_equal(training.simulator.desired_goal, later)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("cpu", 0),
        ("cpu/ant", 0),
        ("cpu/mazes", 0.03),
        ("quickstart", 0.03),
        ("paper", 0),
        ("thousand-layers", 0),
    ],
)
def test_goals_are_exchanged_where_it_was_measured(preset: str, expected: float):
    settings = resolve_settings(TrainTeacherSettings, "train_teacher", preset=preset)
    assert settings.goal_exchange == expected


# -- early stop and what is kept --------------------------------------------------------------------


class ScriptedEvaluations:
    """Evaluations that end as told; remembers the weights that each one saw."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *outcomes: tuple[int, float]) -> None:
        """Take (successes of 4, time at goal) of each evaluation."""
        self._left = list(outcomes)
        self.weights: list[list[Tensors]] = []
        self.seeds: list[tuple[int, ...]] = []
        evaluate = TeacherTraining.evaluate

        def remember(training: TeacherTraining) -> dict[str, Any]:
            learner = training.learner
            self.weights.append([learner.weights(actor) for actor in learner.candidates])
            return evaluate(training)

        monkeypatch.setattr(TeacherTraining, "evaluate", remember)
        monkeypatch.setattr(teacher_training, "run_episodes", self._run)

    def _run(self, *arguments: Any, episodes: int, seed: np.random.SeedSequence, **rest: Any) -> Episodes:
        successes, time_at_goal = self._left.pop(0)
        self.seeds.append(tuple(seed.generate_state(4).tolist()))
        each = np.full(episodes, time_at_goal)
        points, stable = np.zeros((episodes, 2)), np.zeros(episodes, bool)
        reached = np.arange(episodes) < successes
        return Episodes(reached, each, each, each, points, points, stable, reached, reached)


EVALUATED = change(evaluate_every=1, env_steps=4 * 30 * 5, average_decay=0.0, finalists=1)


@pytest.mark.parametrize(
    ("keep", "outcomes", "kept"),
    [
        ("best", [(0, 0), (3, 50), (2, 90), (1, 0), (2, 0)], 1),
        ("best", [(2, 10), (2, 30), (2, 20), (2, 30), (1, 99)], 1),  # the first of two ties
        ("best", [(0, 0), (0, 0), (0, 0), (0, 0), (0, 0)], 0),
        ("last", [(0, 0), (3, 50), (2, 90), (4, 0), (1, 0)], 4),
    ],
)
def test_the_teacher_is_the_evaluated_actor_that_was_asked_for(
    context: StageContext,
    monkeypatch: pytest.MonkeyPatch,
    keep: str,
    outcomes: list[tuple[int, float]],
    kept: int,
):
    evaluations = ScriptedEvaluations(monkeypatch, *outcomes)
    artifact = train_teacher.run(change(EVALUATED, keep=keep), context)
    assert_same_tensors(load_tensors(artifact.file(NETWORK_FILE))[0], evaluations.weights[kept][0])
    last = evaluations.weights[-1][0]["actor.mean_head.weight"]
    assert kept == 4 or not torch.equal(evaluations.weights[kept][0]["actor.mean_head.weight"], last)
    assert len(set(evaluations.seeds)) == 5  # fresh episodes every time


@pytest.mark.parametrize(
    ("outcomes", "kept"), [([(2, 0), (3, 0)], 1), ([(3, 0), (2, 0)], 0), ([(2, 5), (2, 5)], 0)]
)
def test_the_averaged_and_the_current_actor_compete_on_the_same_episodes(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, outcomes: list[tuple[int, float]], kept: int
):
    evaluations = ScriptedEvaluations(monkeypatch, *outcomes)
    artifact = train_teacher.run(change(EVALUATED, average_decay=0.5, env_steps=4 * 30), context)
    assert_same_tensors(load_tensors(artifact.file(NETWORK_FILE))[0], evaluations.weights[0][kept])
    assert evaluations.seeds[0] == evaluations.seeds[1]


def test_the_best_few_meet_again_on_other_episodes(context: StageContext, monkeypatch: pytest.MonkeyPatch):
    outcomes = [(1, 0), (3, 0), (2, 0), (0, 0), (2, 9)]
    evaluations = ScriptedEvaluations(monkeypatch, *outcomes, (1, 0), (3, 0), (2, 0))
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, context, "stop", 3, [])
        with pytest.raises(StoppedByUser):
            train_teacher.run(change(EVALUATED, finalists=3), context)
    context.stop.requested = False
    artifact = train_teacher.run(
        change(EVALUATED, finalists=3), context, context.workspace.artifacts("teacher")[0]
    )
    # In order of their scores they are those of evaluations 1, 4 and 2; of the second meeting 4 is the best.
    assert_same_tensors(load_tensors(artifact.file(NETWORK_FILE))[0], evaluations.weights[4][0])
    assert len(set(evaluations.seeds[5:])) == 1 and evaluations.seeds[5] not in evaluations.seeds[:5]


def test_patience_ends_a_training_that_gets_no_better(context: StageContext, monkeypatch: pytest.MonkeyPatch):
    evaluations = ScriptedEvaluations(monkeypatch, (1, 0), (3, 0), (2, 9), (3, 0), (4, 0))
    artifact = train_teacher.run(change(EVALUATED, patience=2), context)
    assert artifact.manifest.results["env_steps"] == 4 * 30 * 4
    assert_same_tensors(load_tensors(artifact.file(NETWORK_FILE))[0], evaluations.weights[1][0])


def test_patience_counts_from_the_best_where_the_last_is_kept(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
):
    evaluations = ScriptedEvaluations(monkeypatch, (3, 0), (1, 0), (2, 0), (4, 0), (4, 0))
    artifact = train_teacher.run(change(EVALUATED, patience=2, keep="last"), context)
    assert artifact.manifest.results["env_steps"] == 4 * 30 * 3
    assert_same_tensors(load_tensors(artifact.file(NETWORK_FILE))[0], evaluations.weights[2][0])


def test_fewer_finalists_may_be_asked_for_on_resume(context: StageContext, monkeypatch: pytest.MonkeyPatch):
    evaluations = ScriptedEvaluations(monkeypatch, (3, 0), (2, 0), (1, 0), (0, 0), (0, 0))
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, context, "stop", 3, [])
        with pytest.raises(StoppedByUser):
            train_teacher.run(change(EVALUATED, finalists=3), context)
    context.stop.requested = False
    artifact = train_teacher.run(EVALUATED, context, context.workspace.artifacts("teacher")[0])
    assert_same_tensors(load_tensors(artifact.file(NETWORK_FILE))[0], evaluations.weights[0][0])


def test_the_finalists_of_a_finished_training_of_an_earlier_version_still_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    evaluations = ScriptedEvaluations(monkeypatch, (2, 0), (3, 0), (1, 0), (3, 0), (4, 0))
    settings, task = change(EVALUATED, finalists=2, env_steps=2 * 4 * 30), compile_task("point_u_maze")
    training, folder = TeacherTraining(settings, task, "cpu"), CheckpointFolder(tmp_path)
    for _ in range(2):
        training.collect()
        for batch in training.relabel():
            training.update(batch)
        training.take_metrics()
        training.evaluate()
    training.save(folder)
    write_as_format_2(tmp_path)
    later = TeacherTraining(settings, task, "cpu")
    later.load(folder)
    assert later.finished
    chosen = later.choose(folder)  # the second of the two, which did worse before
    assert_same_tensors(chosen, {name: chosen[name] for name in chosen} | evaluations.weights[0][0])


def write_as_format_2(path: Path) -> None:
    """Make a checkpoint one of format 2, which kept finalists with the rest of the state."""
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"], manifest["progress"]["finalists"]
    state = load_tensors(path / manifest["state"]["file"])[0]
    for place, entry in enumerate(manifest.pop("fixed")):
        finalist = load_tensors(path / entry["file"])[0]
        state |= {f"finalist.{place}.{name}": value for name, value in finalist.items()}
        (path / entry["file"]).unlink()
    save_tensors(path / "state-00000002.safetensors", state, {})
    entry = {"file": "state-00000002.safetensors", "sha256": file_sha256(path / "state-00000002.safetensors")}
    manifest |= {"format_version": 2, "state": entry}
    write_json_atomic(path / "manifest.json", manifest | {"sha256": json_sha256(manifest)})


def test_networks_that_are_no_longer_to_be_kept_are_let_go(monkeypatch: pytest.MonkeyPatch):
    training = TeacherTraining(change(EVALUATED, keep="last"), compile_task("point_u_maze"), "cpu")
    made: list[weakref.ref[torch.Tensor]] = []
    weights = training.learner.weights

    def noted(*arguments: Any) -> Tensors:
        found = weights(*arguments)
        made.append(weakref.ref(next(iter(found.values()))))
        return found

    monkeypatch.setattr(training.learner, "weights", noted)
    for _ in range(3):
        training.collect()
        training.evaluate()
    assert [each() is None for each in made] == [True, True, False]


@pytest.mark.parametrize(("successes", "told"), [(0, True), (64, False)])
def test_a_teacher_that_is_still_at_random_after_a_third_of_its_budget_says_so_once(
    context: StageContext,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    successes: int,
    told: bool,
):
    ScriptedEvaluations(monkeypatch, *[(successes, 0)] * 5)
    train_teacher.run(change(EVALUATED, evaluation_episodes=64), context)
    said = [line for line in capsys.readouterr().err.splitlines() if "the best evaluation" in line]
    assert len(said) == told
    assert not told or "After 240 of 600 steps the best evaluation reached none of 64 goals" in said[0]


def test_the_best_survives_an_interruption(context: StageContext, monkeypatch: pytest.MonkeyPatch):
    evaluations = ScriptedEvaluations(monkeypatch, (1, 0), (3, 0), (2, 0), (0, 0), (2, 9))
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, context, "stop", 3, [])
        with pytest.raises(StoppedByUser):
            train_teacher.run(EVALUATED, context)
    context.stop.requested = False
    artifact = train_teacher.run(EVALUATED, context, context.workspace.artifacts("teacher")[0])
    assert_same_tensors(load_tensors(artifact.file(NETWORK_FILE))[0], evaluations.weights[1][0])


def test_the_target_must_be_met_in_consecutive_evaluations(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
):
    evaluations = ScriptedEvaluations(monkeypatch, (3, 0), (2, 0), (4, 0), (3, 0), (4, 0))
    settings = change(EVALUATED, target_success=0.75, target_evaluations=2)
    artifact = train_teacher.run(settings, context)
    assert artifact.manifest.results["env_steps"] == 4 * 30 * 4 < settings.env_steps
    assert_same_tensors(load_tensors(artifact.file(NETWORK_FILE))[0], evaluations.weights[2][0])


def test_without_a_target_the_budget_is_spent(context: StageContext, monkeypatch: pytest.MonkeyPatch):
    ScriptedEvaluations(monkeypatch, *[(4, 0)] * 5)
    artifact = train_teacher.run(change(EVALUATED, env_steps=4 * 30 * 5 - 1), context)
    assert artifact.manifest.results["env_steps"] == 4 * 30 * 5


@pytest.mark.pictures
def test_a_teacher_can_be_read_back_and_reproduces_its_recorded_success(
    context: StageContext, capsys: pytest.CaptureFixture[str]
):
    artifact = train_teacher.run(TINY_TEACHER, context)
    artifact.verify()
    assert artifact.manifest.device == {"device": "cpu"}
    assert set(artifact.manifest.files) == {
        NETWORK_FILE, "learning_curve.png", "rollouts.png", "gradients.png", "history.json"
    }  # fmt: skip
    trained, results = load_actor(artifact), artifact.manifest.results
    again = run_episodes(
        trained.task,
        torch_policy(trained.actor),
        episodes=results["episodes"],
        seed=seed_sequence(*results["evaluation_seed"]),
    ).summary()
    assert {name: results[name] for name in again} == again
    assert results["updates"] == 33 and results["env_steps"] == 1320 and results["elapsed_s"] > 0
    # Random actions were measured over as many episodes, and a training this short is no better.
    assert results["random_episodes"] == results["episodes"]
    assert len(results["random_success_interval"]) == 2 and 0 <= results["random_success"] <= 1
    assert (no_better_than_random(results) is not None) == ("Warning: teacher" in capsys.readouterr().err)
    assert trained.metadata["evaluation"] == again
    recorded = json.loads(artifact.file("history.json").read_text())
    assert [entry["updates"] for entry in recorded["gradient_by_block"]] == [
        entry["updates"] for entry in recorded["history"]
    ]
    networks = ("actor", "state_action_encoder", "goal_encoder")
    assert all(
        len(entry[name]) == 1 and entry[name][0] > 0  # depth 4 is one block
        for entry in recorded["gradient_by_block"]
        for name in networks
    )


# -- bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"task": "point_u_mase"}, "point_u_maze"),
        ({"training_distribution": "nowhere"}, "nowhere"),
    ],
)
def test_unknown_names_are_refused_before_anything_is_made(
    context: StageContext, values: dict[str, Any], named: str
):
    with pytest.raises(ValueError, match=named):
        train_teacher.run(change(**values), context)
    assert context.workspace.artifacts() == []


def test_a_budget_too_small_for_one_update_is_refused(context: StageContext):
    with pytest.raises(UserError, match="min_rows_per_world"):
        train_teacher.run(change(env_steps=1, unroll_steps=2, min_rows_per_world=20), context)


@pytest.mark.parametrize(("task", "settled"), [("point_u_maze", "absolute"), ("ant_u_maze", "relative")])
def test_a_teacher_says_what_its_critic_was_given_of_goals(context: StageContext, task: str, settled: str):
    settings = change(task=task, critic_goals="auto", episode_steps=30, env_steps=4 * 30 * 3)
    assert train_teacher.run(settings, context).manifest.settings["critic_goals"] == settled
