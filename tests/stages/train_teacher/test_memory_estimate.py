"""Memory is worked out before it is taken, and a training that does not fit is refused with what would."""

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from thousandfold.envs.registry import compile_task
from thousandfold.ground.errors import SettingsError
from thousandfold.models import compiled_info_nce
from thousandfold.models.contrastive_critic import ContrastiveCritic, contrastive_loss
from thousandfold.models.goal_actor import GoalActor
from thousandfold.models.residual_mlp import parameter_count
from thousandfold.models.value_critic import ValueCritic
from thousandfold.stages.distill.settings import DistillSettings
from thousandfold.stages.train_teacher import memory_estimate
from thousandfold.stages.train_teacher.memory_estimate import (
    activation_estimate,
    critic_estimate,
    estimate_memory,
    logits_estimate,
    parameter_estimate,
    require_memory,
    require_rollout_memory,
    require_student_memory,
    student_bytes,
)
from thousandfold.stages.train_teacher.settings import TrainTeacherSettings

TASK = compile_task("point_u_maze")
GIB = 2**30


def make(**settings):
    return TrainTeacherSettings(**({"depth": 16, "width": 8, "batch_size": 16} | settings))


@pytest.mark.parametrize(
    "form",
    [
        *[
            {"residual_scale": scale, "final_norm": norm}
            for scale in ("none", "learned_from_zero")
            for norm in (False, True)
        ],
        {"residual": False},
        {"layer_norm": False, "residual_scale": "learned_from_zero"},
        {"residual": False, "layer_norm": False, "activation": "relu"},
        {"actor_depth": 4, "critic_depth": 8},
    ],
)
def test_parameters_are_counted_as_the_networks_have_them(form):
    settings = make(**form)
    actor, critic = settings.actor_shape, settings.critic_shape
    assert parameter_estimate(4 + 2, 2 * 2, actor) == parameter_count(GoalActor(4, 2, 2, actor))
    encoders = parameter_estimate(4 + 2, 64, critic) + parameter_estimate(2, 64, critic)
    assert encoders == parameter_count(ContrastiveCritic(4, 2, 2, critic))


def test_a_critic_of_temporal_differences_is_two_networks_and_their_slow_copies():
    settings = make(critic="temporal_difference", critic_depth=8)
    critic = parameter_count(ValueCritic(4, 2, 2, settings.critic_shape))
    assert critic_estimate(TASK, settings) == critic
    actor = parameter_count(GoalActor(4, 2, 2, settings.actor_shape))
    assert estimate_memory(TASK, settings, "cpu").parameters == 4 * (13 * actor + 15 * critic)
    assert logits_estimate(settings, "cpu") == 0


@pytest.mark.parametrize(("device", "width", "matrices"), [("cpu", 16, 2), ("cpu", 8, 3), ("cuda", 8, 2)])
def test_activations_by_hand(device, width, matrices):
    # Four batches of 16 rows; a layer keeps so many matrices of floats, and two statistics a row.
    matrix = 64 * width * 4
    layer = matrices * matrix + 64 * 8
    # A learned gain wants each block's branch, and rounding the stream beside; CUDA's kernels want neither.
    beside = 0 if device == "cuda" else 4 * matrix

    def estimate(**settings):
        return activation_estimate(make(width=width, **settings), device)

    assert estimate() == 16 * layer
    assert estimate(residual_scale="learned_from_zero") == 16 * layer + beside
    halved = matrices * matrix // 2 + 64 * 8
    assert estimate(precision="bfloat16") == 16 * halved + beside
    # Four blocks: two segments of two blocks; φ's rows are half of the four batches.
    assert estimate(checkpoint_activations=True) == 2 * matrix + 2 * 4 * layer // 2


def test_checkpointing_a_thousand_layers_takes_a_fraction():
    deep = make(depth=1024, width=256, batch_size=256)
    whole = activation_estimate(deep, "cpu")
    thrifty = deep.model_copy(update={"checkpoint_activations": True})
    assert activation_estimate(thrifty, "cpu") < whole / 8


def test_ranks_share_worlds_and_batch_and_not_the_networks():
    one, four = (estimate_memory(TASK, make(), "cpu", ranks) for ranks in (1, 4))
    assert (four.activations, four.replay) == (one.activations // 4, one.replay // 4)
    assert four.parameters == one.parameters


def test_on_cuda_copies_lie_in_the_hosts_memory():
    actor, critic = GoalActor(4, 2, 2, make().actor_shape), ContrastiveCritic(4, 2, 2, make().critic_shape)
    each = parameter_count(actor), parameter_count(critic)
    assert estimate_memory(TASK, make(), "cuda").parameters == 4 * 4 * sum(each)
    averaging = make(average_decay=0.5)
    for device, averages in (("cuda", 1), ("cpu", 2)):
        plain, average = (estimate_memory(TASK, one, device).parameters for one in (make(), averaging))
        assert average - plain == 4 * averages * each[0]


def test_rounded_kernels_are_counted():
    exact, rounded = (estimate_memory(TASK, make(precision=p), "cpu") for p in ("float32", "bfloat16"))
    actor, critic = GoalActor(4, 2, 2, make().actor_shape), ContrastiveCritic(4, 2, 2, make().critic_shape)
    assert rounded.parameters - exact.parameters == 2 * (parameter_count(actor) + parameter_count(critic))


def test_what_fits_is_let_through(monkeypatch):
    free = estimate_memory(TASK, make(), "cpu").total
    monkeypatch.setattr(memory_estimate, "free_bytes", lambda device: free)
    require_memory(TASK, make(), "cpu")
    free -= 1
    with pytest.raises(SettingsError):
        require_memory(TASK, make(), "cpu")


def test_what_does_not_fit_is_refused_with_depths_that_do(monkeypatch):
    settings = make(depth=1024, width=256, batch_size=256)
    free = int(2.8 * GIB)
    monkeypatch.setattr(memory_estimate, "free_bytes", lambda device: free)
    with pytest.raises(SettingsError) as caught:
        require_memory(TASK, settings, "cpu")
    said = str(caught.value)
    assert "Depth 1024 at width 256" in said and "2.8 GiB are free" in said and "\n" not in said
    found = re.search(r"depth (\d+), or depth (\d+) with checkpoint_activations=true", said)
    assert found is not None
    plain, thrifty = int(found[1]), int(found[2])
    assert 0 < plain < thrifty < 1024
    for depth, change in ((plain, {}), (thrifty, {"checkpoint_activations": True})):
        for deeper, fits in ((depth, True), (depth + 4, False)):
            other = settings.model_copy(update={"depth": deeper} | change)
            estimate = estimate_memory(TASK, other, "cpu")
            assert (estimate.total <= free) == fits


def test_where_nothing_fits_other_settings_are_named(monkeypatch):
    monkeypatch.setattr(memory_estimate, "free_bytes", lambda device: GIB // 2)
    with pytest.raises(SettingsError, match="Lower replay_rows_per_world or num_worlds"):
        require_memory(TASK, make(), "cpu")


@pytest.mark.parametrize("energy", ["norm", "squared", "dot", "cosine"])
@pytest.mark.parametrize("variant", ["forward", "symmetric"])
@pytest.mark.parametrize("compiled", [True, False])
def test_pairs_of_a_batch_are_counted_as_torch_allocates_them(energy, variant, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(compiled_info_nce, "_compiled", lambda dim: None)

    def energies_and_gradients(rows):
        batch = [torch.randn(rows, 64, requires_grad=True) for _ in range(2)]
        loss, _ = contrastive_loss(*batch, energy, variant)
        loss.backward()

    rows = 1024
    with torch.profiler.profile(profile_memory=True) as profile:
        energies_and_gradients(rows)
    held = most = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    settings = make(batch_size=rows, energy=energy, info_nce=variant)
    assert 0.7 < most / logits_estimate(settings, "cpu") < 1.1


def test_pairs_grow_as_the_square_of_a_ranks_batch():
    small, large = (logits_estimate(make(batch_size=size), "cpu") for size in (256, 1024))
    assert large == 16 * small
    assert logits_estimate(make(batch_size=1024), "cpu", ranks=4) == small
    assert logits_estimate(make(batch_size=1024, global_negatives=True), "cpu", ranks=4) == 4 * small


def test_a_batch_whose_pairs_do_not_fit_is_refused_with_one_that_does(monkeypatch):
    monkeypatch.setattr(compiled_info_nce, "_compiled", lambda dim: None)
    monkeypatch.setattr(memory_estimate, "free_bytes", lambda device: 20 * GIB)
    with pytest.raises(SettingsError) as caught:
        require_memory(TASK, make(batch_size=100_000, replay_rows_per_world=1000), "cpu")
    said = str(caught.value)
    assert "pairs of the batch 242.1 GiB" in said and "depth" not in said.partition("What would fit")[2]
    found = re.search(r"What would fit: batch_size (\d+)\.", said)
    assert found is not None
    for batch, fits in ((int(found[1]), True), (2 * int(found[1]), False)):
        needed = estimate_memory(TASK, make(batch_size=batch, replay_rows_per_world=1000), "cpu")
        assert (needed.total <= 20 * GIB) == fits


def test_a_student_that_does_not_fit_is_refused_with_a_batch_that_does(monkeypatch, tmp_path: Path):
    teacher = SimpleNamespace(task=TASK, critic_shape=make(depth=64, width=256).critic_shape)
    dataset = SimpleNamespace(
        path=tmp_path, name="dataset-1", manifest=SimpleNamespace(results={"episodes": 100})
    )
    (tmp_path / "rows.hdf5").write_bytes(bytes(1000))
    settings = DistillSettings(batch_size=2**20, objective="critic")
    monkeypatch.setattr(memory_estimate, "free_bytes", lambda device: 20 * GIB)
    with pytest.raises(SettingsError, match=r"batch_size 1048576 on dataset dataset-1 needs about") as caught:
        require_student_memory(settings, teacher, dataset, "cpu")
    found = re.search(r"What would fit: batch_size (\d+)\.", str(caught.value))
    assert found is not None
    require_student_memory(settings.model_copy(update={"batch_size": int(found[1])}), teacher, dataset, "cpu")
    imitating = DistillSettings(batch_size=2**20)
    assert student_bytes(settings, teacher, dataset) > 10 * student_bytes(imitating, teacher, dataset)
    # Rounds of three times the dataset's episodes, whose files have 1000 bytes.
    none, three = (
        student_bytes(imitating.model_copy(update=values), teacher, dataset)
        for values in ({"dagger_rounds": 0}, {"dagger_rounds": 3, "dagger_episodes": 100})
    )
    (tmp_path / "rows.hdf5").unlink()
    assert three - none == 3 * (none - student_bytes(imitating, teacher, dataset)) > 0


def test_processes_on_one_machine_share_its_memory(monkeypatch):
    needed = estimate_memory(TASK, make(), "cpu", ranks=2).total
    monkeypatch.setattr(memory_estimate, "free_bytes", lambda device: 2 * needed)
    require_memory(TASK, make(), "cpu", processes=2, ranks=2)
    with pytest.raises(SettingsError):
        require_memory(TASK, make(), "cpu", processes=3, ranks=2)


def test_free_memory_is_the_machines_within_the_limit_of_its_group(tmp_path: Path):
    meminfo, group = tmp_path / "meminfo", tmp_path / "group"
    meminfo.write_text("MemTotal:  9000 kB\nMemFree:  100 kB\nMemAvailable:  4000 kB\n")
    group.mkdir()

    def free() -> int:
        return memory_estimate.free_bytes("cpu", meminfo, group)

    assert free() == 4000 * 1024
    (group / "memory.max").write_text("max\n")
    assert free() == 4000 * 1024
    # Of 3000 used, 2000 are files that give way.
    (group / "memory.max").write_text("5000\n")
    (group / "memory.current").write_text("3000\n")
    (group / "memory.stat").write_text("anon 500\ninactive_file 2000\nactive_file 500\n")
    assert free() == 4000


def test_where_free_memory_is_not_told_all_of_it_counts(tmp_path: Path):
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory_estimate.free_bytes("cpu", tmp_path / "meminfo", tmp_path) == whole
    assert memory_estimate.free_bytes("cpu") < whole


def test_a_round_of_a_dataset_that_does_not_fit_is_refused_with_the_worlds_that_do(monkeypatch):
    monkeypatch.setattr(memory_estimate, "free_bytes", lambda device: 2 * GIB)
    long = compile_task("point_u_maze", {"episode_steps": 1_000_000})
    with pytest.raises(SettingsError) as caught:
        require_rollout_memory(long, 256, 1000, alternative_goals=4)
    found = re.search(r"What would fit: num_worlds (\d+)\.", str(caught.value))
    assert found is not None and "\n" not in str(caught.value)
    require_rollout_memory(long, int(found[1]), 1000, alternative_goals=4)
    with pytest.raises(SettingsError):
        require_rollout_memory(long, int(found[1]) + 1, 1000, alternative_goals=4)
    require_rollout_memory(TASK, 256, 1000, alternative_goals=4)
