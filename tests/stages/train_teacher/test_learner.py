"""One update: order, goals, frozen critic, and a state that continues bit for bit."""

import copy
import dataclasses

import pytest
import torch

from tests.models.plain_blocks import unroll_blocks
from thousandfold.envs.registry import compile_task
from thousandfold.models.contrastive_critic import contrastive_loss, pairwise_energy
from thousandfold.models.goal_actor import sample_action
from thousandfold.replay.trajectory_buffer import TransitionBatch
from thousandfold.stages.train_teacher.learner import ContrastiveLearner
from thousandfold.stages.train_teacher.settings import LearnerSettings

TASK = compile_task("point_u_maze")
SMALL = {"depth": 4, "width": 16, "batch_size": 8}


def make_batch(size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((size, 4), (size, 2), (size, 2), (size, 2))
    observation, action, goal, achieved = (torch.randn(shape, generator=generator) for shape in shapes)
    return TransitionBatch(observation, action.tanh(), goal, achieved)


def make_learner(**settings):
    return ContrastiveLearner(TASK, LearnerSettings(**(SMALL | settings)), "cpu")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"depth": 16, "residual_scale": "inverse_sqrt_blocks", "final_norm": True},
        {"depth": 16, "residual_scale": "learned_from_zero", "checkpoint_activations": True},
        {"activation": "relu"},
        {"residual": False},
        {"layer_norm": False},
        {"residual": False, "layer_norm": False, "activation": "relu"},
        {"actor_depth": 8, "critic_depth": 12},
        {"critic_goals": "relative"},
    ],
)
def test_update_is_the_published_formulation_written_out(settings):
    """Actor and α against the old critic, then the critic; a module a layer; three Adams; hindsight goals."""
    learner = make_learner(actor_goals="hindsight", **settings)
    actor, critic = (unroll_blocks(copy.deepcopy(part)) for part in (learner.actor, learner.critic))
    log_alpha = learner.log_alpha.detach().clone().requires_grad_()
    batch = make_batch()
    noise = torch.randn(8, 2, generator=torch.Generator().manual_seed(5))
    for _ in range(3):
        learner.update(batch, torch.Generator().manual_seed(5))

    judged = batch.goal - batch.achieved_goal if settings.get("critic_goals") == "relative" else batch.goal
    optimizers = [
        torch.optim.Adam(p, lr=3e-4) for p in (actor.parameters(), [log_alpha], critic.parameters())
    ]
    for _ in range(3):
        action, log_prob = sample_action(actor(batch.observation, batch.goal), noise)
        energy = -(critic.encode_state_action(batch.observation, action) - critic.encode_goal(judged)).norm(
            dim=1
        )
        losses = [
            (log_alpha.exp().detach() * log_prob - energy).mean(),
            log_alpha.exp() * (-log_prob.detach() + 0.5 * 2).mean(),
        ]
        for loss, optimizer in zip(losses, optimizers[:2], strict=True):
            optimizer.zero_grad()
            loss.backward(retain_graph=True)
            optimizer.step()
        phi, psi = critic.encode_state_action(batch.observation, batch.action), critic.encode_goal(judged)
        optimizers[2].zero_grad()
        contrastive_loss(phi, psi)[0].backward()
        optimizers[2].step()
    for ours, reference in ((learner.actor, actor), (learner.critic, critic)):
        for a, b in zip(unroll_blocks(ours).parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(learner.log_alpha, log_alpha)


def test_every_form_counts_its_layers_and_reports_each_block():
    learner = make_learner(actor_depth=8, critic_depth=12, activation="relu")
    blocks = {"actor": 2, "state_action_encoder": 3, "goal_encoder": 3}
    assert learner.gradient_by_block() == {}
    learner.update(make_batch(), torch.Generator().manual_seed(0))
    norms = learner.gradient_by_block()
    assert {name: len(each) for name, each in norms.items()} == blocks
    kernels = [layer[0].weight.grad for layer in learner.actor.trunk.body[1].layers]
    torch.testing.assert_close(norms["actor"][1], torch.stack([g.norm() for g in kernels]).norm())

    plain = make_learner(residual=False)  # as many layers after the stem as in blocks
    plain.update(make_batch(), torch.Generator().manual_seed(0))
    assert [len(each) for each in plain.gradient_by_block().values()] == [4, 4, 4]


@pytest.mark.parametrize("change", [{"precision": "bfloat16"}, {"checkpoint_activations": True}])
@pytest.mark.parametrize("form", [{"activation": "relu"}, {"residual": False}, {"layer_norm": False}])
def test_only_the_published_form_rounds_and_recomputes(form, change):
    name = next(iter(change))
    with pytest.raises(ValueError, match=f"{name}.* needs residual=true, layer_norm=true and activation=sw"):
        LearnerSettings(**SMALL, **form, **change)


def test_branches_are_tamed_where_no_layer_norm_is():
    assert LearnerSettings(layer_norm=False).residual_scale == "inverse_sqrt_blocks"
    assert LearnerSettings(layer_norm=False, residual_scale="none").residual_scale == "none"
    assert LearnerSettings(residual=False, depth=128).residual_scale == "none"
    with pytest.raises(ValueError, match="residual_scale learned_from_zero needs residual=true"):
        LearnerSettings(residual=False, residual_scale="learned_from_zero")


@pytest.mark.parametrize("name", ["depth", "actor_depth", "critic_depth"])
def test_any_deep_network_gets_the_form_that_learns(name):
    settings = LearnerSettings(**{name: 128})
    assert settings.final_norm and settings.residual_scale == "learned_from_zero"
    with pytest.raises(ValueError, match="not a multiple of 4: use 4 or 8"):
        LearnerSettings(**{name: 6})


@pytest.mark.parametrize(("actor_goals", "moved"), [("hindsight", 0), ("mixed", 4), ("random", 8)])
def test_actor_goals_shuffle_the_share_they_name(actor_goals, moved):
    learner = make_learner(actor_goals=actor_goals)
    order = learner._goal_order(64, torch.Generator().manual_seed(0))
    kept = order[(moved * 8) :]
    assert torch.equal(kept, torch.arange(64)[(moved * 8) :])
    if moved:
        assert not torch.equal(order[: moved * 8], torch.arange(moved * 8))


def test_a_relative_critic_judges_the_goals_of_other_rows_by_the_way_from_here():
    """The actor's half of the loss, with each row given another one's goal, written out."""
    learner, batch = make_learner(critic_goals="relative"), make_batch()
    see_far_away(learner)
    order, noise = torch.arange(8).roll(3), torch.randn(8, 2, generator=torch.Generator().manual_seed(5))
    metrics = learner.loss(batch, order, noise)[1]

    observation, goal = learner.observation_normalizer(batch.observation), batch.goal[order]
    action, _ = sample_action(learner.actor(observation, learner.goal_normalizer(goal)), noise)
    way = (goal - batch.achieved_goal) / learner.goal_normalizer.std
    apart = learner.critic.encode_state_action(observation, action) - learner.critic.encode_goal(way)
    torch.testing.assert_close(metrics["actor_energy"], -apart.norm(dim=1).mean())


@pytest.mark.parametrize("depth", [4, 16, 64])
@pytest.mark.parametrize("critic_goals", ["absolute", "relative"])
def test_goals_that_are_all_zeros_teach_a_critic_of_any_depth(critic_goals, depth):
    """A cube that nothing has touched yet, or a goal that never changes, once inputs are standardised."""
    learner, batch = make_learner(critic_goals=critic_goals, depth=depth), make_batch()
    batch.achieved_goal[2:] = batch.goal[2:] = 0.0
    for _ in range(3):
        metrics = learner.update(batch, torch.Generator().manual_seed(5))
        assert metrics["critic_gradient_norm"] < 1e4


def test_a_relative_critic_sees_how_far_a_goal_is_before_it_has_learned():
    """Without biases the first LayerNorm would leave the direction alone."""
    learner = make_learner(critic_goals="relative")
    near, far = torch.tensor([[0.1, 0.1]]), torch.tensor([[3.0, 3.0]])
    apart = learner.critic.encode_goal(near) - learner.critic.encode_goal(far)
    assert apart.norm() > 0.1


def test_what_leads_to_early_ends_is_far_from_every_goal():
    """States of one half lose their goals, states of the other reach them: the energies tell."""
    settings = {"width": 32, "batch_size": 64, "critic_learning_rate": 3e-3, "actor_goals": "hindsight"}
    learner, generator = make_learner(early_ends="lost", **settings), torch.Generator().manual_seed(0)
    batch = make_batch(64)
    batch.goal.copy_(batch.observation[:, :2])
    lost = batch.observation[:, 3] > 0
    for _ in range(150):
        metrics = learner.update(dataclasses.replace(batch, lost=lost), generator)
    assert metrics["lost"].item() == pytest.approx(lost.float().mean().item())
    with torch.no_grad():
        taken = learner.critic.encode_state_action(batch.observation, batch.action)
        energy = pairwise_energy(taken, learner.critic.encode_goal(batch.goal), "norm").diagonal()
    assert energy[~lost].mean() > energy[lost].mean() + 1.0


def test_an_actor_that_is_told_to_go_on_keeps_away_from_what_ends_episodes():
    """Goals ask for a motion to the right, and half of what moves to the right loses them."""

    def mean_action(weight: float) -> float:
        learner = make_learner(
            early_ends="lost", early_end_weight=weight, width=32, batch_size=128, actor_goals="hindsight",
            actor_learning_rate=3e-3, critic_learning_rate=3e-3, initial_alpha=1e-3,
        )  # fmt: skip
        generator, batch = torch.Generator().manual_seed(0), make_batch(128)
        right = batch.action[:, 0]
        batch.goal.copy_(torch.stack([right, batch.action[:, 1]], 1))
        lost = (right > 0) & (torch.rand(128, generator=generator) < 0.5)
        for _ in range(150):
            learner.update(dataclasses.replace(batch, lost=lost), generator)
        return (
            learner.act(batch.observation, torch.tensor([[1.0, 0.0]]).expand(128, 2), None)[:, 0]
            .mean()
            .item()
        )

    assert mean_action(0.0) > 0.3
    assert mean_action(20.0) < mean_action(0.0) - 0.3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"info_nce": "symmetric"}, "info_nce symmetric does not support lost goals: set early_ends=cut"),
        ({"discount": 1.0}, "discount 1 would lose every goal"),
    ],
)
def test_goals_are_lost_in_the_forward_form_below_a_discount_of_one_alone(change, said):
    with pytest.raises(ValueError, match=said):
        LearnerSettings(early_ends="lost", **change)
    assert not LearnerSettings(early_ends="lost", critic="temporal_difference").learns_lost_futures


def test_a_weight_of_early_ends_that_are_cut_is_refused():
    with pytest.raises(ValueError, match="early_end_weight 3 weighs what early_ends=cut does not learn"):
        LearnerSettings(early_end_weight=3)


def test_metrics_are_measured_not_constant():
    learner = make_learner(initial_alpha=0.37)
    generator = torch.Generator().manual_seed(0)
    first = learner.update(make_batch(seed=1), generator)
    second = learner.update(make_batch(seed=2), generator)
    expected = {
        "info_nce", "categorical_accuracy", "positive_logit", "negative_logit", "logsumexp", "entropy",
        "alpha", "actor_gradient_norm", "critic_gradient_norm", "actor_loss", "critic_loss", "actor_energy",
        "saturated_actions", "state_action_encoder_gradient_norm", "goal_encoder_gradient_norm",
    }  # fmt: skip
    assert set(first) == expected
    changing = expected - {"categorical_accuracy", "saturated_actions"}
    assert all(first[name] != second[name] for name in changing)
    assert first["alpha"].item() == pytest.approx(0.37)


def test_gradient_norms_are_those_of_the_losses():
    learner = make_learner()
    reference = copy.deepcopy(learner.critic)
    batch = make_batch()
    metrics = learner.update(batch, torch.Generator().manual_seed(0))
    phi, psi = (
        reference.encode_state_action(batch.observation, batch.action),
        reference.encode_goal(batch.goal),
    )
    contrastive_loss(phi, psi)[0].backward()
    norm = torch.stack([p.grad.norm() for p in reference.parameters()]).norm()
    torch.testing.assert_close(metrics["critic_gradient_norm"], norm)
    encoders = [metrics[f"{name}_encoder_gradient_norm"] for name in ("state_action", "goal")]
    torch.testing.assert_close(torch.stack(encoders).norm(), norm)


def test_clipping_bounds_the_step_but_reports_the_whole_norm():
    learner = make_learner(max_gradient_norm=1e-3)
    metrics = learner.update(make_batch(), torch.Generator().manual_seed(0))
    clipped = torch.stack([p.grad.norm() for p in learner.critic.parameters()]).norm()
    assert metrics["critic_gradient_norm"] > 1e-2
    assert clipped.item() == pytest.approx(1e-3, rel=1e-3)


def test_warm_up_raises_the_rates_linearly_from_the_first_update():
    learner = make_learner(warmup_updates=4, actor_learning_rate=8e-4)
    generator, rates = torch.Generator().manual_seed(0), []
    for _ in range(6):
        learner.update(make_batch(), generator)
        rates.append(float(learner._optimizers["actor"].rate))
    assert rates == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 8e-4, 8e-4])


def test_warm_up_goes_on_where_a_checkpoint_left_it():
    learner, other = (make_learner(warmup_updates=8) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    learner.update(make_batch(), generator)
    other.load_state_dict(learner.state_dict())
    for each in (learner, other):
        each.update(make_batch(), torch.Generator().manual_seed(1))
    for name, value in learner.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_centred_kernels_are_a_start_for_all_three_networks():
    learner = make_learner(centred_kernels=True)
    trunks = (learner.critic.state_action_encoder, learner.critic.goal_encoder)
    for trunk in (learner.actor.trunk, learner.averaged_actor.trunk, *(encoder.trunk for encoder in trunks)):
        assert trunk.body.weight.mean(-1).abs().max() < 1e-7
    assert make_learner().actor.trunk.body.weight.mean(-1).abs().max() > 1e-3


def test_bfloat16_takes_nearly_the_same_step():
    exact, rounded = (make_learner(depth=16, width=32, precision=p) for p in ("float32", "bfloat16"))
    for learner in (exact, rounded):
        learner.update(make_batch(), torch.Generator().manual_seed(0))
    for a, b in ((exact.actor, rounded.actor), (exact.critic, rounded.critic)):
        ours, theirs = (torch.cat([p.grad.flatten() for p in network.parameters()]) for network in (a, b))
        assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.97
        assert not torch.equal(ours, theirs)


def test_gradients_by_block_add_up_to_those_of_the_kernels():
    learner = make_learner(depth=16)
    assert learner.gradient_by_block() == {}
    learner.update(make_batch(), torch.Generator().manual_seed(0))
    norms = learner.gradient_by_block()
    assert set(norms) == {"actor", "state_action_encoder", "goal_encoder"}
    assert norms["actor"].shape == (4,)
    torch.testing.assert_close(norms["actor"].norm(), learner.actor.trunk.body.weight.grad.norm())


@pytest.mark.parametrize("depth", [64, 68, 1024])
def test_deep_networks_have_the_form_that_learns_unless_told_otherwise(depth: int):
    deep = depth > 64
    settings = LearnerSettings(depth=depth)
    assert settings.residual_scale == ("learned_from_zero" if deep else "none")
    assert settings.final_norm == deep
    assert settings.max_gradient_norm == (10.0 if deep else None)
    told = {"residual_scale": "none", "final_norm": False, "max_gradient_norm": None}
    assert LearnerSettings(depth=depth, **told).model_dump().items() >= told.items()


def test_averaged_actor_follows_the_actor_at_its_decay():
    learner = make_learner(average_decay=0.9)
    before = learner.averaged_actor.mean_head.weight.clone()
    learner.update(make_batch(), torch.Generator().manual_seed(0))
    expected = 0.9 * before + 0.1 * learner.actor.mean_head.weight
    torch.testing.assert_close(learner.averaged_actor.mean_head.weight, expected)
    assert [each.actor for each in learner.candidates] == [learner.averaged_actor, learner.actor]
    for candidate in learner.candidates:
        kept = learner.weights(candidate)["actor.mean_head.weight"]
        assert torch.equal(kept, candidate.actor.mean_head.weight)


def test_without_averaging_the_kept_actor_is_the_actor():
    learner = make_learner()
    learner.update(make_batch(), torch.Generator().manual_seed(0))
    assert torch.equal(learner.averaged_actor.mean_head.weight, learner.actor.mean_head.weight)
    assert [each.actor for each in learner.candidates] == [learner.averaged_actor]


def see_far_away(learner: ContrastiveLearner) -> None:
    """Show the learner rows around 100 with a spread of 10, and goals around −5 with one of 0.5."""
    generator = torch.Generator().manual_seed(7)
    rows = 100 + 10 * torch.randn(1000, 4, generator=generator)
    goals = [-5 + 0.5 * torch.randn(count, 2, generator=generator) for count in (1000, 10)]
    learner.see(rows, *goals)


@pytest.mark.parametrize("critic_goals", ["absolute", "relative"])
def test_an_update_learns_from_standardised_inputs(critic_goals):
    """The same numbers, shifted and scaled, teach the same as they are once they have been seen."""
    plain, shifted = (make_learner(critic_goals=critic_goals) for _ in range(2))
    see_far_away(shifted)
    batch, seen, scale = make_batch(), shifted.observation_normalizer, shifted.goal_normalizer
    moved = TransitionBatch(
        batch.observation * seen.std + seen.mean,
        batch.action,
        *(goal * scale.std + scale.mean for goal in (batch.goal, batch.achieved_goal)),
    )
    found = [
        learner.update(each, torch.Generator().manual_seed(0))
        for learner, each in ((plain, batch), (shifted, moved))
    ]
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-3, atol=1e-4)


def test_nothing_is_standardised_where_that_is_off():
    learner = make_learner(normalize_inputs=False)
    see_far_away(learner)
    assert torch.equal(learner.observation_normalizer.mean, torch.zeros(4))
    assert not [name for name in learner.weights(learner.candidates[0]) if "normalizer" in name]
    assert not [name for name in learner.state_dict() if "normalizer" in name]


def test_what_is_kept_acts_as_the_candidate_did():
    learner, observation, goal = make_learner(average_decay=0.9), torch.randn(3, 4), torch.randn(3, 2)
    see_far_away(learner)
    learner.update(make_batch(), torch.Generator().manual_seed(0))
    kept, expected = learner.weights(learner.candidates[1]), learner.candidates[1](observation, goal)
    for _ in range(3):
        learner.update(make_batch(), torch.Generator().manual_seed(1))
    learner.see(observation, goal, goal)
    found = learner.load_weights(kept)(observation, goal)
    assert torch.equal(found.mean, expected.mean) and torch.equal(found.log_std, expected.log_std)


def test_an_actor_that_is_not_averaged_is_saved_once_and_read_where_it_was_saved_twice():
    learner, other = make_learner(), make_learner(seed=9)
    learner.update(make_batch(), torch.Generator().manual_seed(0))
    state = learner.state_dict()
    assert not [name for name in state if name.startswith("averaged_actor.")]
    twice = {f"averaged_{name}": value + 1 for name, value in state.items() if name.startswith("actor.")}
    other.load_state_dict(state | twice)
    assert other.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


def test_state_dict_is_a_copy():
    learner = make_learner(average_decay=0.5)
    learner.update(make_batch(), torch.Generator().manual_seed(0))
    state = learner.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    learner.update(make_batch(), torch.Generator().manual_seed(1))
    assert all(torch.equal(value, before[name]) for name, value in state.items())


@pytest.mark.parametrize("average_decay", [0.0, 0.5])
def test_state_dict_continues_bit_for_bit(average_decay: float):
    generator = torch.Generator().manual_seed(0)
    learner = make_learner(average_decay=average_decay)
    for seed in range(3):
        learner.update(make_batch(seed=seed), generator)
    other = make_learner(average_decay=average_decay, seed=9)
    other.load_state_dict(learner.state_dict())
    other_generator = torch.Generator()
    other_generator.set_state(generator.get_state())
    for seed in range(3, 6):
        learner.update(make_batch(seed=seed), generator)
        other.update(make_batch(seed=seed), other_generator)
    for name, value in learner.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_acting_without_noise_is_the_squashed_mean():
    learner = make_learner()
    batch = make_batch()
    expected = learner.actor(batch.observation, batch.goal).mean.tanh()
    assert torch.equal(learner.act(batch.observation, batch.goal, None), expected)
    sampled = learner.act(batch.observation, batch.goal, torch.Generator().manual_seed(0))
    assert sampled.abs().max() < 1 and not torch.equal(sampled, expected)


def test_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, same, other = make_learner(), make_learner(), make_learner(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.actor.mean_head.weight, same.actor.mean_head.weight)
    assert not torch.equal(first.actor.mean_head.weight, other.actor.mean_head.weight)
