"""Several ranks train one teacher: one artifact, exact resumes on any number of ranks, and losses told."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.rank_processes import run_ranks
from tests.stages import rank_work
from tests.stages.rank_work import REFUSED, STOPPED, TASK, Tensors
from tests.stages.tiny_runs import TINY_TEACHER, make_context
from thousandfold.ground.errors import SettingsError, StoppedByUser
from thousandfold.pipeline.artifacts import Artifact, Workspace
from thousandfold.pipeline.checkpoint import CheckpointFolder, load_tensors
from thousandfold.pipeline.distributed import Ranks
from thousandfold.stages.networks import NETWORK_FILE
from thousandfold.stages.train_teacher import train_teacher
from thousandfold.stages.train_teacher.resplit import parts_with_worlds
from thousandfold.stages.train_teacher.settings import TrainTeacherSettings
from thousandfold.stages.train_teacher.training import TeacherTraining

SETTINGS = TrainTeacherSettings(**(TINY_TEACHER.model_dump() | {"num_worlds": 8, "env_steps": 8 * 30 * 11}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which two ranks have trained a teacher without interruption."""
    root = tmp_path_factory.mktemp("whole")
    run_ranks(2, rank_work.train, root, SETTINGS, root)
    return root


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a teacher that was stopped on the second of two ranks, in the fifth unroll."""
    root = tmp_path_factory.mktemp("stopped")
    run_ranks(2, rank_work.train, root, SETTINGS, root, "stop", 1, 4, codes=(STOPPED, STOPPED))
    return root


def only_teacher(root: Path) -> Artifact:
    (artifact,) = Workspace(root).artifacts("teacher")
    return artifact


def checkpoint_of(artifact: Artifact) -> CheckpointFolder:
    return CheckpointFolder(artifact.file("checkpoint"))


def without_time(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in values.items() if not name.endswith(("_s", "history", "gradients"))
    }


def assert_same_tensors(one: Tensors, other: Tensors) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_ranks_make_one_teacher(whole: Path):
    artifact = only_teacher(whole)
    artifact.verify()
    results = artifact.manifest.results
    assert artifact.manifest.status == "completed" and results["env_steps"] == 8 * 30 * 11
    assert results["updates"] == 33 and results["episodes"] == 4
    folder = checkpoint_of(artifact)
    assert folder.num_parts == 2
    names = {path.name for path in folder.path.glob("*.safetensors")}
    for rank in range(2):
        assert f"worlds-00000011-rank-{rank}.safetensors" in names
        assert f"replay-00000011-rank-{rank}.safetensors" in names
    parts = folder.load().parts
    assert all(len(part.tensors["buffer.count"]) == 4 for part in parts)
    assert not torch.equal(parts[0].tensors["simulator.state"], parts[1].tensors["simulator.state"])
    assert not torch.equal(parts[0].tensors["generator"], parts[1].tensors["generator"])
    entries = folder.progress["history"]
    assert len(entries) == 4 and {"info_nce", "actor_gradient_norm"} <= entries[0].keys()


def test_a_stop_on_one_rank_stops_all_and_the_same_number_goes_on_bit_for_bit(whole: Path, tmp_path: Path):
    run_ranks(2, rank_work.train, tmp_path, SETTINGS, tmp_path, "stop", 1, 4, codes=(STOPPED, STOPPED))
    assert checkpoint_of(only_teacher(tmp_path)).progress["unrolls"] == 5
    assert only_teacher(tmp_path).manifest.status == "running"
    run_ranks(2, rank_work.train, tmp_path, SETTINGS, tmp_path)
    artifacts = only_teacher(tmp_path), only_teacher(whole)
    networks = [load_tensors(artifact.file(NETWORK_FILE)) for artifact in artifacts]
    assert_same_tensors(networks[0][0], networks[1][0])
    ends = [checkpoint_of(artifact).load() for artifact in artifacts]
    assert_same_tensors(ends[0].tensors, ends[1].tensors)
    for one, other in zip(ends[0].parts, ends[1].parts, strict=True):
        assert_same_tensors(one.tensors, other.tensors)
    histories = [[without_time(entry) for entry in end.progress["history"]] for end in ends]
    assert histories[0] == histories[1]
    results = [without_time(artifact.manifest.results) for artifact in artifacts]
    assert results[0] == results[1]
    for rank in range(2):
        assert_same_tensors(*(held_rows(load(artifact, Ranks(rank, 2))) for artifact in artifacts))


# -- another number of ranks ------------------------------------------------------------------------


def load(artifact: Artifact, ranks: Ranks) -> TeacherTraining:
    """Return one rank's training as it reads a checkpoint."""
    training = TeacherTraining(TrainTeacherSettings(**artifact.manifest.settings), TASK, "cpu", ranks)
    training.load(CheckpointFolder(artifact.file("checkpoint"), ranks))
    return training


def held_rows(training: TeacherTraining) -> Tensors:
    training.buffer.mark_unsaved()
    return training.buffer.unsaved_segment() | training.buffer.counters()


def joined(trainings: list[TeacherTraining]) -> tuple[Tensors, dict[str, torch.Tensor]]:
    """Return all ranks' memory and simulator state, world after world."""
    rows = [held_rows(training) for training in trainings]
    states = [training.simulator.state_dict() for training in trainings]
    names = [name for name in states[0] if states[0][name].ndim and name != "generator"]
    return (
        {name: torch.cat([row[name] for row in rows]) for name in rows[0]},
        {name: torch.cat([torch.as_tensor(state[name]) for state in states]) for name in names},
    )


@pytest.mark.parametrize("size", [1, 4])
def test_another_number_of_ranks_goes_on_with_the_same_worlds(stopped: Path, size: int):
    artifact = only_teacher(stopped)
    before = [load(artifact, Ranks(rank, 2)) for rank in range(2)]
    after = [load(artifact, Ranks(rank, size)) for rank in range(size)]
    for one, other in zip(joined(before), joined(after), strict=True):
        assert_same_tensors(one, other)
    assert all(training.progress == before[0].progress for training in after)
    for training in after:
        assert_same_tensors(training.learner.state_dict(), before[0].learner.state_dict())
    # What was summed since the last evaluation still has the mean that it had.
    means = [
        {
            name: torch.stack([part._metric_sums[name] for part in ranks]).mean()
            for name in before[0]._metric_sums
        }
        for ranks in (before, after)
    ]
    assert means[0].keys() == means[1].keys() and means[0]
    for name, value in means[0].items():
        torch.testing.assert_close(means[1][name], value)
    batch = after[-1].buffer.sample(100, 0.9, torch.Generator().manual_seed(0))
    assert batch.goal.isfinite().all()


def test_streams_of_another_number_of_ranks_are_new_and_all_different(stopped: Path):
    artifact = only_teacher(stopped)
    drawn = []
    for size in (1, 2, 4):
        for rank in range(size):
            training = load(artifact, Ranks(rank, size))
            noise = torch.rand(2, generator=training.generator).tolist()
            drawn.append((*noise, *training.simulator.rng.random(2).tolist()))
    assert len(set(drawn)) == 7 and len({first for first, *_ in drawn}) == 7
    assert len({third for _, _, third, _ in drawn}) == 7


@pytest.mark.parametrize(
    ("worlds", "saved", "size", "expected"),
    [
        (8, 2, 1, [[0, 1]]),
        (8, 1, 2, [[0], [0]]),
        (8, 2, 4, [[0], [0], [1], [1]]),
        (8, 4, 2, [[0, 1], [2, 3]]),
        (12, 2, 3, [[0], [0, 1], [1]]),
        (12, 3, 3, [[0], [1], [2]]),
    ],
)
def test_each_rank_reads_the_parts_with_its_worlds(
    worlds: int, saved: int, size: int, expected: list[list[int]]
):
    assert [list(parts_with_worlds(worlds, saved, Ranks(rank, size))) for rank in range(size)] == expected


def test_a_run_goes_from_one_rank_to_two_to_four_and_back(tmp_path: Path):
    context = make_context(tmp_path)
    with pytest.MonkeyPatch.context() as monkeypatch:
        collect = TeacherTraining.collect

        def stop_soon(training: TeacherTraining) -> Any:
            context.stop.requested = training.progress.unrolls == 2
            return collect(training)

        monkeypatch.setattr(TeacherTraining, "collect", stop_soon)
        with pytest.raises(StoppedByUser):
            train_teacher.run(SETTINGS, context)
    assert checkpoint_of(only_teacher(tmp_path)).num_parts == 1
    for size, at in ((2, 4), (4, 7)):
        codes = (STOPPED,) * size
        run_ranks(size, rank_work.train, tmp_path, SETTINGS, tmp_path, "stop", size - 1, at, codes=codes)
        folder = checkpoint_of(only_teacher(tmp_path))
        assert folder.num_parts == size and folder.progress["unrolls"] == at + 1
    settings, artifact = train_teacher.find_resumable(Workspace(tmp_path), None)
    finished = train_teacher.run(settings, make_context(tmp_path), artifact)
    assert finished.manifest.status == "completed"
    assert (
        finished.manifest.results["env_steps"] == 8 * 30 * 11 and finished.manifest.results["updates"] == 33
    )
    assert checkpoint_of(finished).num_parts == 1
    assert not list(finished.file("checkpoint").glob("*-rank-*"))


# -- what goes wrong --------------------------------------------------------------------------------


def told(root: Path, rank: int = 0) -> dict[str, Any]:
    return json.loads((root / f"told-{rank}.json").read_text())


@pytest.mark.parametrize("who", [0, 1])
def test_a_lost_rank_ends_the_run_with_one_line_and_the_rest_goes_on_from_the_checkpoint(
    tmp_path: Path, who: int
):
    codes = tuple(-signal.SIGKILL if rank == who else REFUSED for rank in range(2))
    run_ranks(2, rank_work.train, tmp_path, SETTINGS, tmp_path, "kill", who, 5, codes=codes)
    artifact = only_teacher(tmp_path)
    line = told(tmp_path, 1 - who)
    launcher = "torchrun --nproc-per-node 2 --no-python pipeline"
    command = f"{launcher} --workspace {tmp_path} train-teacher --resume {artifact.name}"
    assert line == {
        "error": f"A rank was lost at {8 * 30 * 5:,} steps. The last checkpoint is kept in "
        f"{checkpoint_of(artifact).path}. Continue with: {command}",
        "code": 1,
        "speaks": True,
    }
    assert artifact.manifest.status == ("running" if who == 0 else "failed")
    # That of unroll 4 may have been under way when the rank was killed.
    assert checkpoint_of(artifact).progress["unrolls"] in (2, 4)
    settings, again = train_teacher.find_resumable(Workspace(tmp_path), None)
    finished = train_teacher.run(settings, make_context(tmp_path), again)
    assert finished.manifest.status == "completed" and finished.name == artifact.name


def test_a_rank_lost_before_the_first_checkpoint_says_so(tmp_path: Path):
    codes = (REFUSED, -signal.SIGKILL)
    run_ranks(2, rank_work.train, tmp_path, SETTINGS, tmp_path, "kill", 1, 0, codes=codes)
    assert told(tmp_path)["error"].endswith("No checkpoint had been saved yet: start again.")


def test_nan_on_one_rank_ends_all_before_anything_bad_is_saved(tmp_path: Path):
    codes = (REFUSED, REFUSED)
    run_ranks(2, rank_work.train, tmp_path, SETTINGS, tmp_path, "poison", 1, 5, codes=codes)
    errors = {told(tmp_path, rank)["error"] for rank in range(2)}
    (error,) = errors
    assert error.startswith(
        f"critic_loss became nan at step {8 * 30 * 6:,}. The last good checkpoint is kept"
    )
    assert [told(tmp_path, rank)["speaks"] for rank in range(2)].count(True) == 1
    assert checkpoint_of(only_teacher(tmp_path)).progress["unrolls"] == 4


def test_ranks_update_together_also_where_one_has_too_little_memory(tmp_path: Path):
    settings = SETTINGS.model_copy(update={"min_rows_per_world": 50})
    run_ranks(2, rank_work.train, tmp_path, settings, tmp_path, "diverge", 1, 1)
    # After two unrolls rank 0 has 60 rows a world and rank 1, whose episodes were dropped, 30.
    assert only_teacher(tmp_path).manifest.results["updates"] == 27


def test_ranks_with_other_settings_are_refused(tmp_path: Path):
    others = [SETTINGS, SETTINGS.model_copy(update={"discount": 0.5, "seed": 9})]
    codes = (REFUSED, REFUSED)
    run_ranks(2, rank_work.train_with_others, tmp_path, others, tmp_path, codes=codes)
    assert told(tmp_path, 1)["error"] == (
        "Rank 1 has another seed, discount than rank 0: give every rank the same command."
    )
    assert told(tmp_path, 1)["speaks"] and not told(tmp_path, 0)["speaks"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_worlds": 9}, "num_worlds 9 cannot be split evenly over 2 ranks: use 8 or 10."),
        (
            {"batch_size": 15},
            "batch_size 15 cannot be split evenly over 2 ranks, at least 2 each: use 14 or 16.",
        ),
        ({"batch_size": 2}, "batch_size 2 cannot be split evenly over 2 ranks, at least 2 each: use 4."),
    ],
)
def test_what_cannot_be_split_evenly_is_refused_before_anything_is_made(
    tmp_path: Path, values: dict[str, int], message: str
):
    context = make_context(tmp_path)
    context.ranks = Ranks(0, 2, 0, 2)
    with pytest.raises(SettingsError) as raised:
        train_teacher.run(SETTINGS.model_copy(update=values), context)
    assert str(raised.value) == message
    assert not Workspace(tmp_path).runs.exists()
