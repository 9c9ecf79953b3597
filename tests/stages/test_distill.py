"""A student imitates its own teacher, keeps what acted best, and says honestly how much it retains."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs import registry
from envs.compiled_task import CompiledTask
from envs.distributions import CellPositions
from envs.registry import compile_task, get_task
from envs.task import EpisodeDistribution, Reset
from models.contrastive_critic import ContrastiveCritic
from models.goal_actor import GoalActor
from models.residual_mlp import NetworkShape, parameter_count
from pipeline.core.artifacts import Artifact
from pipeline.core.checkpoint import load_tensors
from pipeline.core.errors import DamagedFileError, NonFiniteError, UserError
from pipeline.core.runtime import StageContext, seed_sequence
from pipeline.core.tracking import StageRun
from replay.goal_dataset import GoalDataset, load_goal_dataset
from stages import dataset_results, distill, generate_dataset
from stages.distill import DistillSettings
from stages.evaluate import run_episodes
from stages.generate_dataset import GenerateDatasetSettings
from stages.network_file import NETWORK_FILE, load_actor, save_network, torch_policy
from stages.student_training import StudentTraining
from stages.teacher_critic import TeacherCritic
from stages.training_progress import HISTORY_FILE
from tests.stages.tiny_runs import make_context

TASK_NAME = "point_corridor"
SHAPE = NetworkShape(4, 16)
EVALUATION = 32, [3, 5]
"""Episodes and seed of the teachers' recorded evaluation."""
SETTINGS = DistillSettings(
    student_depth=4,
    student_width=12,
    updates=160,
    alternative_fraction=0.5,
    batch_size=128,
    learning_rate=1e-2,
    evaluate_every=40,
    evaluation_episodes=16,
    final_episodes=64,
    max_final_episodes=64,
    threads=1,
    device="cpu",
)


def change(**values: Any) -> DistillSettings:
    return DistillSettings(**(SETTINGS.model_dump() | values))


# -- a teacher that reaches goals -------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def task() -> Iterator[CompiledTask]:
    """Return the U maze with starts and goals in its first corridor, where a linear policy gets there."""
    maze = get_task("point_u_maze")
    ends = (maze.distributions["evaluation"].starts.position, CellPositions(((1.0, 3.0),), 0.2))
    episodes = EpisodeDistribution(Reset(joints=("x", "y"), position=ends[0]), ends[1])
    corridor = dataclasses.replace(
        maze, name=TASK_NAME, distributions={"training": episodes, "evaluation": episodes}
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        tasks = {**registry._tasks(), TASK_NAME: corridor}
        monkeypatch.setattr(registry, "_tasks", lambda: tasks)
        monkeypatch.setattr(distill, "draw_learning_curve", lambda *_, **__: None)
        monkeypatch.setattr(dataset_results, "draw_coverage", lambda *_, **__: None)
        yield compile_task(TASK_NAME)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    return make_context(tmp_path_factory.mktemp("workspace"))


def linear_actor(gain: float) -> GoalActor:
    """Return an actor that was fitted to gain · (goal − position) − velocity."""
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        actor = GoalActor(4, 2, 2, SHAPE)
        optimizer = torch.optim.Adam(actor.parameters(), lr=1e-2)
        low, span = torch.tensor([0.7, 0.7]), torch.tensor([0.6, 2.6])
        for _ in range(200):
            position, goal = low + span * torch.rand(256, 2), low + span * torch.rand(256, 2)
            velocity = torch.randn(256, 2)
            found = actor(torch.cat([position, velocity], 1), goal)
            error = found.mean - (gain * (goal - position) - velocity)
            optimizer.zero_grad()
            (error.square().mean() + (found.log_std + 1.0).square().mean()).backward()
            optimizer.step()
    return actor


def make_teacher(context: StageContext, actor: GoalActor, **results: Any) -> Artifact:
    """Return the artifact of a teacher with its evaluation, some of whose results may be false."""
    task = compile_task(TASK_NAME)
    count, seed = EVALUATION
    summary = run_episodes(task, torch_policy(actor), episodes=count, seed=seed_sequence(*seed)).summary()
    artifact = context.workspace.create("teacher", task=TASK_NAME, settings={})
    tensors = {f"actor.{name}": value for name, value in actor.state_dict().items()}
    save_network(artifact.file(NETWORK_FILE), tensors, kind="teacher", task=task, shape=SHAPE)
    artifact.complete(summary | {"evaluation_seed": seed} | results)
    return artifact


def make_dataset(context: StageContext, teacher: Artifact, seed: int = 0) -> Artifact:
    settings = GenerateDatasetSettings(
        episodes=30,
        num_worlds=30,
        noise_levels=(0.0, 0.5),
        alternative_goals=2,
        device="cpu",
        threads=1,
        seed=seed,
    )
    return generate_dataset.run(settings, context, teacher)


@pytest.fixture(scope="module")
def teacher(context: StageContext) -> Artifact:
    artifact = make_teacher(context, linear_actor(2.0))
    assert artifact.manifest.results["success"] > 0.9  # else the tests below would say little
    return artifact


@pytest.fixture(scope="module")
def dataset(context: StageContext, teacher: Artifact) -> Artifact:
    return make_dataset(context, teacher)


@pytest.fixture(scope="module")
def student(context: StageContext, teacher: Artifact, dataset: Artifact) -> Artifact:
    return distill.run(SETTINGS, context, teacher, dataset)


def action_error(student: Artifact, data: GoalDataset) -> float:
    with torch.no_grad():
        actor = load_actor(student).actor
        found = actor(torch.from_numpy(data.observation), torch.from_numpy(data.desired_goal))
    return float(np.square(np.tanh(found.mean.numpy()) - np.tanh(data.teacher_mean)).mean())


# -- what comes out ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "width", "updates", "error_left"), [("kl", 32, 400, 0.5), ("mse", 12, 160, 0.1)]
)
def test_the_student_comes_to_act_like_its_teacher(
    context: StageContext,
    teacher: Artifact,
    dataset: Artifact,
    objective: str,
    width: int,
    updates: int,
    error_left: float,
):
    data = load_goal_dataset(dataset.path)
    barely, trained = (
        distill.run(
            change(objective=objective, student_width=width, evaluate_every=100, updates=count),
            context,
            teacher,
            dataset,
        )
        for count in (1, updates)
    )
    assert action_error(trained, data) < error_left * action_error(barely, data)
    losses = [each.manifest.results["validation_loss"] for each in (barely, trained)]
    assert losses[1] < 0.2 * losses[0]
    if objective == "mse":
        assert trained.manifest.results["success"] > 0.9


def test_the_results_say_what_was_retained(context: StageContext, student: Artifact, teacher: Artifact):
    results = student.manifest.results
    count, seed = SETTINGS.final_episodes, seed_sequence(*results["evaluation_seed"])
    found = {
        kind: run_episodes(
            compile_task(TASK_NAME), torch_policy(load_actor(artifact).actor), episodes=count, seed=seed
        )
        for kind, artifact in (("student", student), ("teacher", teacher))
    }
    ours, theirs = found["student"], found["teacher"]
    assert results["episodes"] == 64 and results["success"] == pytest.approx(ours.success.mean())
    assert results["teacher_success"] == pytest.approx(theirs.success.mean())
    assert results["teacher_time_at_goal"] == pytest.approx(theirs.time_at_goal.mean())
    assert results["retention"] == pytest.approx(ours.success.mean() / theirs.success.mean())
    share = ours.time_at_goal.mean() / theirs.time_at_goal.mean()
    assert results["time_at_goal_retention"] == pytest.approx(share)
    for name in ("retention", "time_at_goal_retention"):
        low, high = results[f"{name}_interval"]
        assert low <= results[name] <= high
    low, high = results["time_at_goal_retention_interval"]
    assert high - low > 0
    assert results["student_parameters"] == parameter_count(load_actor(student).actor)
    assert results["teacher_parameters"] == parameter_count(load_actor(teacher).actor)


def test_the_student_is_an_artifact_of_its_parents(student: Artifact, teacher: Artifact, dataset: Artifact):
    student.verify()
    parents = {role: parent.hash for role, parent in student.manifest.parents.items()}
    assert parents == {"teacher": teacher.manifest.hash, "dataset": dataset.manifest.hash}
    assert student.kind == "student" and student.manifest.task == TASK_NAME


def test_the_normalisers_are_those_of_the_dataset(student: Artifact, dataset: Artifact):
    data, actor = load_goal_dataset(dataset.path), load_actor(student).actor
    all_goals = np.concatenate([data.desired_goal, data.alternative_goal.reshape(-1, 2)])
    for values, normalizer in (
        (data.observation, actor.observation_normalizer),
        (all_goals, actor.goal_normalizer),
    ):
        np.testing.assert_allclose(normalizer.mean, values.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(normalizer.std, values.std(0), rtol=1e-4)


def test_every_evaluation_is_kept(context: StageContext, teacher: Artifact, dataset: Artifact):
    settings = change(updates=30, evaluate_every=10, evaluation_episodes=8, final_episodes=4)
    student = distill.run(settings, context, teacher, dataset)
    assert HISTORY_FILE in student.manifest.files
    history = json.loads(student.file(HISTORY_FILE).read_text())["history"]
    assert [entry["updates"] for entry in history] == [10, 20, 30]
    kept = next(e for e in history if e["updates"] == student.manifest.results["kept_update"])
    assert kept["validation_loss"] == student.manifest.results["validation_loss"]


def test_the_seed_decides(context: StageContext, teacher: Artifact, dataset: Artifact):
    settings = [change(updates=30, final_episodes=4, seed=seed) for seed in (0, 0, 1)]
    networks = [
        load_tensors(distill.run(each, context, teacher, dataset).file(NETWORK_FILE))[0] for each in settings
    ]
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])
    assert not torch.equal(networks[0]["actor.mean_head.weight"], networks[2]["actor.mean_head.weight"])


@pytest.mark.parametrize(
    ("kind", "depth", "made"),
    [
        ("auto", 4, "residual"),
        ("auto", 8, "residual"),
        ("auto", 3, "plain"),
        ("auto", 1, "plain"),
        ("plain", 4, "plain"),
    ],
)
def test_the_students_form(kind: Any, depth: int, made: str):
    shape = DistillSettings(student_depth=depth, student_width=8, student_kind=kind).shape
    assert shape == NetworkShape(depth, 8, kind=made)  # type: ignore[arg-type]


def test_a_residual_student_of_another_depth_is_refused():
    with pytest.raises(ValueError, match="not a multiple of 4"):
        DistillSettings(student_depth=6, student_kind="residual")


def test_a_plain_student_can_be_read_back(context: StageContext, teacher: Artifact, dataset: Artifact):
    artifact = distill.run(change(student_depth=2, updates=1), context, teacher, dataset)
    assert load_actor(artifact).shape == NetworkShape(2, 12, kind="plain")


@pytest.mark.parametrize(("width", "warned"), [(12, False), (64, True)])
def test_a_student_larger_than_its_teacher_warns(
    context: StageContext,
    teacher: Artifact,
    dataset: Artifact,
    capsys: pytest.CaptureFixture[str],
    width: int,
    warned: bool,
):
    distill.run(change(student_width=width, updates=1), context, teacher, dataset)
    assert ("more than its teacher's" in capsys.readouterr().err) == warned


# -- what is kept -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "kept"),
    [
        ([(0.2, 9.0), (0.9, 5.0), (0.5, 1.0), (0.1, 0.5)], 1),  # success comes before the loss
        ([(0.5, 3.0), (0.5, 1.0), (0.5, 2.0), (0.5, 1.0)], 1),  # then the loss, then the first
        ([(0.0, 3.0), (0.0, 3.0), (0.0, 3.0), (0.0, 4.0)], 0),
        ([(0.0, 3.0), (0.0, 3.0), (0.0, 3.0), (0.1, 4.0)], 3),
    ],
)
def test_the_student_is_left_with_the_weights_that_acted_best(
    context: StageContext,
    teacher: Artifact,
    dataset: Artifact,
    monkeypatch: pytest.MonkeyPatch,
    outcomes: list[tuple[float, float]],
    kept: int,
):
    weights: list[dict[str, torch.Tensor]] = []

    def validate(_: Any, student: torch.nn.Module) -> dict[str, float]:
        success, loss = outcomes[len(weights)]
        weights.append({name: value.clone() for name, value in student.state_dict().items()})
        return {"success": success, "validation_loss": loss, "time_at_goal": 0.0}

    monkeypatch.setattr(StudentTraining, "validate", validate)
    artifact = distill.run(change(updates=20, evaluate_every=6), context, teacher, dataset)
    saved = load_tensors(artifact.file(NETWORK_FILE))[0]
    assert len(weights) == 4  # at 6, 12, 18 and the end
    assert all(torch.equal(saved[name], value) for name, value in weights[kept].items())
    name = "actor.mean_head.weight"
    assert not any(torch.equal(saved[name], weights[i][name]) for i in range(4) if i != kept)
    results = artifact.manifest.results
    assert results["validation_loss"] == outcomes[kept][1]
    assert results["kept_update"] == (6, 12, 18, 20)[kept]


# -- rounds, and what else a student may be told ------------------------------------------------------


@pytest.fixture(scope="module")
def rounds_student(context: StageContext, teacher: Artifact, dataset: Artifact) -> Artifact:
    settings = change(
        dagger_rounds=2, dagger_episodes=8, dagger_updates=40, updates=80, max_labels=6000, objective="mse"
    )
    return distill.run(settings, context, teacher, dataset)


def test_rounds_keep_to_the_labels_and_leave_their_episodes(rounds_student: Artifact):
    results = rounds_student.manifest.results
    # 6000 labels of three goals a state: 20 episodes of 100 steps, of which the rounds have 16.
    assert results["labels"] == 6000 and [entry["labels"] for entry in results["rounds"]] == [3600, 6000]
    assert results["updates"] == 160
    for number in (1, 2):
        data = load_goal_dataset(rounds_student.file("rounds") / f"round_{number:02d}")
        assert len(data.success) == 8
    rounds_student.verify()
    assert any(name.startswith("rounds/round_02/") for name in rounds_student.manifest.files)


def test_rounds_are_one_series_a_figure(
    context: StageContext, teacher: Artifact, dataset: Artifact, monkeypatch: pytest.MonkeyPatch
):
    logged: list[tuple[int, dict[str, float]]] = []
    monkeypatch.setattr(StageRun, "log_metrics", lambda _, entry, step: logged.append((step, dict(entry))))
    settings = change(updates=2, dagger_rounds=2, dagger_episodes=2, dagger_updates=1, final_episodes=4)
    rounds = distill.run(settings, context, teacher, dataset).manifest.results["rounds"]
    series = [(step, entry) for step, entry in logged if "round/success" in entry]
    assert [step for step, _ in series] == [1, 2]
    for (_, entry), recorded in zip(series, rounds, strict=True):
        assert {f"round/{name}": value for name, value in recorded.items() if name != "round"} == entry
    updates = [step for step, entry in logged if "validation_loss" in entry and "updates" in entry]
    assert updates == [2, 3, 4]


def test_a_student_is_guided_by_its_teachers_critic(
    context: StageContext, dataset: Artifact, teacher: Artifact, monkeypatch: pytest.MonkeyPatch
):
    def load_critic(artifact: Artifact) -> TeacherCritic:
        assert artifact is teacher
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            critic = ContrastiveCritic(4, 2, 2, SHAPE)
        return TeacherCritic(critic.eval().requires_grad_(False), "norm")

    monkeypatch.setattr(distill, "load_critic", load_critic)
    settings = [
        change(objective="critic", imitation_weight=weight, updates=80, final_episodes=4)
        for weight in (0.0, 100.0)
    ]
    free, bound = (distill.run(each, context, teacher, dataset) for each in settings)
    data = load_goal_dataset(dataset.path)
    assert action_error(free, data) > 3 * action_error(bound, data)


def test_a_teacher_without_a_critic_cannot_guide(context: StageContext, teacher: Artifact, dataset: Artifact):
    assert "holds no critic" in refusal(context, teacher, dataset, change(objective="critic"))


def test_a_student_without_layer_norm_can_be_read_back(
    context: StageContext, teacher: Artifact, dataset: Artifact
):
    artifact = distill.run(change(student_layer_norm=False, updates=1), context, teacher, dataset)
    shape = load_actor(artifact).shape
    assert shape == NetworkShape(4, 12, residual_scale="inverse_sqrt_blocks", layer_norm=False)


def test_failures_lie_beside_the_student(student: Artifact):
    failures = json.loads(student.file("failures.json").read_text())
    results = student.manifest.results
    failed = round((1 - results["success"]) * results["episodes"])
    assert len([entry for entry in failures if entry["failed"] != "teacher"]) == failed
    assert student.file("failures.png").stat().st_size > 0


def test_more_episodes_run_where_retention_is_uncertain(
    context: StageContext, teacher: Artifact, dataset: Artifact, capsys: pytest.CaptureFixture[str]
):
    settings = change(updates=1, final_episodes=16, max_final_episodes=300, interval_half_width=1e-4)
    artifact = distill.run(settings, context, teacher, dataset)
    assert artifact.manifest.results["episodes"] == 300
    assert "raise max_final_episodes" in capsys.readouterr().err


# -- refusals ---------------------------------------------------------------------------------------


def refusal(context: StageContext, teacher: Artifact, dataset: Artifact, settings=SETTINGS) -> str:
    """Return the one line that refuses; no student may come of it."""
    before = {a.name for a in context.workspace.artifacts("student") if a.manifest.status == "completed"}
    with pytest.raises(UserError) as raised:
        distill.run(settings, context, teacher, dataset)
    after = {a.name for a in context.workspace.artifacts("student") if a.manifest.status == "completed"}
    assert after == before and "\n" not in str(raised.value)
    return str(raised.value)


def test_a_dataset_of_another_teacher_is_refused(context: StageContext, dataset: Artifact):
    other = make_teacher(context, linear_actor(1.0))
    line = refusal(context, other, dataset)
    assert f"not by {other.name}" in line and f"generate-dataset --teacher {other.name}" in line


def test_a_dataset_without_a_teacher_is_refused(context: StageContext, teacher: Artifact):
    orphan = context.workspace.create("dataset", task=TASK_NAME, settings={})
    orphan.complete({})
    assert "was made by no teacher" in refusal(context, teacher, orphan)


def test_a_dataset_of_another_task_is_refused(context: StageContext, teacher: Artifact):
    other = context.workspace.create("dataset", task="point_big_maze", settings={})
    other.complete({})
    line = refusal(context, teacher, other)
    assert "is of task 'point_big_maze'" in line and teacher.name in line


def test_too_few_labels_are_refused(context: StageContext, teacher: Artifact, dataset: Artifact):
    settings = change(max_labels=3000, dagger_rounds=1, dagger_episodes=10)
    assert "max_labels leaves 0 of its rows: too few" in refusal(context, teacher, dataset, settings)


def test_damaged_shards_are_left_out_when_told_so(
    context: StageContext, teacher: Artifact, capsys: pytest.CaptureFixture[str]
):
    damaged = make_dataset(context, teacher, seed=2)
    path = sorted(damaged.path.rglob("*shard_00000*/data/*.hdf5"))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "shard_00000" in refusal(context, teacher, damaged, change(updates=1))
    artifact = distill.run(change(updates=1, skip_damaged_shards=True), context, teacher, damaged)
    assert "shard_00000" in capsys.readouterr().err
    results = artifact.manifest.results
    assert results["skipped_shards"] == ["shard_00000-v0"]
    # A state has a label under each of three goals.
    assert 0 < 3 * results["dataset_rows"] == results["labels"] < 3 * 30 * 100
    assert 0 < results["held_out_rows"] < results["dataset_rows"]


@pytest.mark.parametrize("off", [-0.5, -0.03, math.nan])
def test_a_teacher_that_does_not_reproduce_its_success_is_refused(
    context: StageContext, teacher: Artifact, dataset: Artifact, off: float
):
    results = teacher.manifest.results
    changed = Artifact.load(teacher.path)
    # Results are not part of the hash: the artifact stays consistent, only its claim is false.
    changed.manifest = dataclasses.replace(
        changed.manifest, results=results | {"success": results["success"] + off}
    )
    changed.verify()
    line = refusal(context, changed, dataset)
    assert teacher.name in line and "it is not the network that was evaluated" in line


def test_other_weights_under_an_honest_record_are_refused(
    context: StageContext, teacher: Artifact, tmp_path: Path
):
    """Say a file that was written from the wrong variables: all hashes are right, the success is not."""
    swapped = make_teacher(context, linear_actor(-2.0), success=teacher.manifest.results["success"])
    line = refusal(context, swapped, make_dataset(context, swapped))
    assert "reaches 0.000" in line


@pytest.mark.parametrize(
    "lost",
    [{"evaluation_seed": None}, {"episodes": 0}, {"success": None}, {"evaluation_seed": ["x"]}],
)
def test_a_teacher_without_a_recorded_evaluation_is_refused(
    context: StageContext, teacher: Artifact, dataset: Artifact, lost: dict[str, Any]
):
    changed = Artifact.load(teacher.path)
    results = {key: value for key, value in (teacher.manifest.results | lost).items() if value is not None}
    changed.manifest = dataclasses.replace(changed.manifest, results=results)
    line = refusal(context, changed, dataset)
    assert "records no evaluation" in line and str(teacher.path) in line


def test_a_damaged_dataset_is_named(context: StageContext, teacher: Artifact):
    damaged = make_dataset(context, teacher, seed=1)  # no packed copy of it yet
    path = next(damaged.path.rglob("*shard_00001*/data/*.hdf5"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert path.name in refusal(context, teacher, damaged)
    path.write_bytes(data[: len(data) // 3])
    damaged.complete({})  # truncated before its hash was taken
    assert path.name in refusal(context, teacher, damaged)
    path.unlink()
    with pytest.raises(DamagedFileError, match=path.name):
        distill.run(SETTINGS, context, teacher, damaged)


def test_one_episode_cannot_be_split(context: StageContext, teacher: Artifact):
    settings = GenerateDatasetSettings(episodes=1, device="cpu", threads=1)
    assert "too few" in refusal(context, teacher, generate_dataset.run(settings, context, teacher))


def test_a_loss_that_is_not_finite_ends_the_stage(
    context: StageContext, teacher: Artifact, dataset: Artifact
):
    with pytest.raises(NonFiniteError, match=r"became (nan|inf) at update 40\."):
        distill.run(change(learning_rate=1e30), context, teacher, dataset)
    assert context.workspace.artifacts("student")[0].manifest.status == "failed"


def test_beside_a_teacher_that_never_succeeds_retention_is_undefined(
    context: StageContext, capsys: pytest.CaptureFixture[str]
):
    lost = make_teacher(context, linear_actor(-2.0))
    assert lost.manifest.results["success"] == 0.0
    artifact = distill.run(change(updates=1), context, lost, make_dataset(context, lost))
    assert artifact.manifest.status == "completed"
    assert artifact.manifest.results["retention"] is None
    assert "retention undefined" in capsys.readouterr().out
