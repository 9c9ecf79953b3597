"""A cell of the stability study: every variant runs, and what is seen inside is measured."""

import pytest

from benchmarks import depth_stability


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A study of seconds: few worlds, a narrow network, short episodes of collection."""
    small = {"width": 8, "batch_size": 16, "num_worlds": 2, "unroll_steps": 101, "updates_per_unroll": 2}
    monkeypatch.setattr(depth_stability, "BASE", depth_stability.BASE | small)
    real = depth_stability.run_episodes
    monkeypatch.setattr(
        depth_stability, "run_episodes", lambda *a, **options: real(*a, **(options | {"episodes": 2}))
    )


@pytest.mark.parametrize("variant", depth_stability.VARIANTS)
def test_every_variant_runs_and_is_looked_into(variant):
    cell = depth_stability.run_cell(8, variant, seed=0, updates=2)
    assert [entry["updates"] for entry in cell["curve"]] == [1, 2]
    assert cell["inside"]["start"] != cell["inside"]["end"]
    for place in ("start", "end"):
        streams = cell["inside"][place]["streams"]
        assert all(stream["block"] == [0, 1, 2] for stream in streams.values())
        assert all(len(norms) == 2 for norms in cell["gradient_by_block"][place].values())
    assert depth_stability.describe_cell("key", cell).startswith("key: pre-tanh")


def test_a_bounded_mean_stays_within_its_limit():
    import torch

    head = torch.nn.Linear(4, 2)
    bounded = depth_stability.BoundedHead(head, 2.0)
    assert bounded(1e4 * torch.randn(16, 4)).abs().max() <= 2.0


def test_depth_mup_divides_the_rates_by_the_root_of_the_blocks():
    settings = depth_stability.make_training(64, "depth_mup", 0).settings
    assert settings.actor_learning_rate == pytest.approx(3e-4 / 4)
    assert settings.critic_learning_rate == pytest.approx(3e-4 / 4)
    assert settings.residual_scale == "inverse_sqrt_blocks"


@pytest.mark.pictures
def test_cells_become_a_table_and_a_picture(tmp_path):
    cells = [
        depth_stability.run_cell(4, variant, seed=0, updates=2) for variant in ("published", "final_norm")
    ]
    table = depth_stability.table(dict(enumerate(cells))).splitlines()
    assert len(table) == 2 + len(cells)
    assert all(line.count("|") == table[0].count("|") for line in table)
    assert [line.split("|")[1].strip() for line in table[2:]] == ["final_norm", "published"]
    depth_stability.draw(cells, tmp_path / "stability.png")
    assert (tmp_path / "stability.png").read_bytes().startswith(b"\x89PNG")
