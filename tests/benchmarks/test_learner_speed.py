"""The sides of the speed benchmark compute the same update, and the script writes what it measured."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import learner_speed
from benchmarks.learner_speed import AntDimensions, Measurement, Sizes, batch_arrays
from benchmarks.plain_learner import PlainLearner
from thousandfold.models import dense_products
from thousandfold.replay.trajectory_buffer import TransitionBatch

DEPTH, WIDTH, BATCH, UPDATES = 8, 8, 8, 3
DIMS = AntDimensions()
SIZES = Sizes(depth=4, width=8, batch=8, threads=1, matmul_size=16)
TINY = ["--depth=4", "--width=8", "--batch=8", "--rounds=5", "--round-s=0.001", "--matmul-size=16"]


@pytest.fixture
def jax_learner() -> ModuleType:
    for package in ("jax", "flax", "optax"):
        pytest.importorskip(package, reason="the JAX baselines need `make benchmark-setup`")
    from benchmarks import jax_learner

    return jax_learner


def plain_learner() -> PlainLearner:
    torch.manual_seed(0)
    return PlainLearner(DIMS.observation_dim, DIMS.goal_dim, DIMS.action_dim, depth=DEPTH, width=WIDTH)


def make_jax_learner(module: ModuleType, body: str) -> Any:
    return module.JaxLearner(
        DIMS.observation_dim, DIMS.goal_dim, DIMS.action_dim, depth=DEPTH, width=WIDTH, body=body
    )


def flax_parameters(network: Any, body: str) -> dict[str, Any]:
    """Return a torch network's weights as flax names and stacks them."""

    def dense(layer: Any) -> dict[str, np.ndarray]:
        return {"kernel": layer.weight.detach().numpy().T.copy(), "bias": layer.bias.detach().numpy().copy()}

    def layers(all_layers: list[Any]) -> dict[str, Any]:
        parameters: dict[str, Any] = {}
        for index, layer in enumerate(all_layers):
            scale, bias = (value.detach().numpy().copy() for value in (layer.norm.weight, layer.norm.bias))
            parameters[f"Dense_{index}"] = dense(layer.dense)
            parameters[f"LayerNorm_{index}"] = {"scale": scale, "bias": bias}
        return parameters

    parameters = layers([network.stem])
    parameters |= {f"Dense_{index + 1}": dense(head) for index, head in enumerate(network.heads)}
    blocks: list[Any] = [layers(list(block.layers)) for block in network.blocks]
    if body == "unrolled":
        parameters |= {f"block_{index}": block for index, block in enumerate(blocks)}
    else:
        parameters["blocks"] = {
            layer: {name: np.stack([block[layer][name] for block in blocks]) for name in blocks[0][layer]}
            for layer in blocks[0]
        }
    return {"params": parameters}


def jax_state(learner: Any, plain: PlainLearner, body: str) -> Any:
    import jax

    parameters = {
        "actor": flax_parameters(plain.actor, body),
        "critic": {name: flax_parameters(encoder, body) for name, encoder in plain.critic.items()},
        "alpha": np.zeros((), np.float32),
    }
    return learner.starting_from(jax.tree.map(jax.numpy.asarray, parameters))


# The same weights on both: what equals the one torch update is equal to each other.
@pytest.mark.parametrize("body", ["unrolled", "scan"])
def test_the_jax_update_is_the_plain_torch_update(jax_learner: ModuleType, body: str):
    import jax

    plain, learner = plain_learner(), make_jax_learner(jax_learner, body)
    state, step = jax_state(learner, plain, body), jax.jit(learner.step)
    key = jax.random.key(0)
    for arrays in batch_arrays(BATCH)[:UPDATES]:
        key, own = jax.random.split(key)
        draws = learner.draw(own, BATCH)
        # Less noise: in float32 the log-determinant of a saturated action is mostly rounding.
        draws = draws._replace(noise=0.1 * draws.noise)
        assert sorted(draws.goal_order.tolist()) == list(range(BATCH))
        state, found = step(state, jax_learner.Batch(**arrays), draws)
        batch = TransitionBatch(**{name: torch.from_numpy(array) for name, array in arrays.items()})
        noise, order = (torch.from_numpy(np.array(value)) for value in draws)
        for name, loss in plain.step(batch, noise, order.long()).items():
            assert float(found[name]) == pytest.approx(float(loss), rel=1e-4, abs=1e-4), name


@pytest.mark.parametrize("body", ["unrolled", "scan"])
def test_the_jax_networks_begin_with_the_shapes_of_the_torch_ones(jax_learner: ModuleType, body: str):
    import jax

    learner = make_jax_learner(jax_learner, body)
    begun = jax.eval_shape(learner.initialise, jax.random.key(0))
    copied = jax.eval_shape(lambda: jax_state(learner, plain_learner(), body))
    assert jax.tree.map(lambda leaf: leaf.shape, begun) == jax.tree.map(lambda leaf: leaf.shape, copied)


def test_without_permutation_the_jax_actor_gets_the_goal_of_its_state(jax_learner: ModuleType):
    import jax

    learner = jax_learner.JaxLearner(1, 1, 1, depth=4, width=4, actor_goals="hindsight")
    assert learner.draw(jax.random.key(0), BATCH).goal_order.tolist() == list(range(BATCH))


@pytest.mark.parametrize("side", ["torch-plain", "thousandfold", "matmul"])
def test_a_torch_side_works(side: str):
    works = learner_speed.SIDES[side](SIZES)
    assert works
    for work in works.values():
        result = learner_speed.run_round(work, 0.001)
        assert result["calls"] >= 2
        assert result["median_s"] > 0


@pytest.mark.slow
def test_the_script_writes_a_cell_beside_the_others(tmp_path):
    output = tmp_path / "speed.json"
    output.write_text('{"D64 W256 B256": "kept", "D4 W8 B8": "of another processor"}')
    learner_speed.main([*TINY, "--sides=torch-plain", "--threads=1", f"--output={output}"])
    cells = json.loads(output.read_text())
    assert cells["D64 W256 B256"] == "kept"
    (own,) = set(cells) - {"D64 W256 B256", "D4 W8 B8"}
    assert own.startswith("D4 W8 B8, ")  # the processor follows
    side = cells[own]["sides"]["torch-plain"]
    assert len(side["rounds"]) == 5
    assert side["seconds_per_update"]["min"] <= side["seconds_per_update"]["median"]
    assert {"float32"} <= set(side["share_of_matmul"]) <= set(learner_speed.PRODUCTS)
    assert cells[own]["matmul"]["float32"]["gflops"]["median"] > 0


@pytest.mark.slow
def test_without_bfloat16_its_sides_say_why_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(learner_speed, "bfloat16_refusal", lambda: "no instructions for it")
    output = tmp_path / "speed.json"
    sides = "--sides=torch-plain,thousandfold-bf16"
    learner_speed.main([*TINY, sides, "--threads=1", f"--output={output}"])
    (cell,) = json.loads(output.read_text()).values()
    assert cell["sides"]["thousandfold-bf16"] == {"not_measured": "no instructions for it"}
    assert len(cell["sides"]["torch-plain"]["rounds"]) == 5


@pytest.mark.parametrize("refusal", [None, "no instructions for it"])
@pytest.mark.parametrize("onednn", [False, True])
def test_products_are_timed_by_what_there_is(
    refusal: str | None, onednn: bool, monkeypatch: pytest.MonkeyPatch
):
    if onednn and not dense_products.has_onednn():
        pytest.skip("this torch comes without oneDNN")
    monkeypatch.setattr(learner_speed, "bfloat16_refusal", lambda: refusal)
    monkeypatch.setattr(dense_products, "has_onednn", lambda: onednn)
    products = learner_speed.matmul_side(SIZES)
    missing = {"bfloat16": refusal, "float32 oneDNN": not onednn}
    assert list(products) == [name for name in learner_speed.PRODUCTS if not missing.get(name)]
    for product in products.values():
        product()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--sides=torch", "no such side: torch"),
        ("--depth=6", "multiple of 4"),
        ("--threads=0", "--threads must lie in"),
    ],
)
def test_a_senseless_option_is_refused(option: str, message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        learner_speed.parse_options(["--sides=torch-plain", option])
    assert message in capsys.readouterr().err


def test_ratios_are_taken_round_by_round():
    measured = {
        "jax-unrolled": Measurement(rounds={"update": [4.0, 9.0, 8.0]}),
        "jax-scan": Measurement(failure="given up after 1 s"),
        "thousandfold": Measurement(rounds={"update": [2.0, 3.0, 8.0]}),
        "matmul": Measurement(rounds={"float32": [1.0, 1.0, 2.0], "bfloat16": [0.5, 0.5, 1.0]}),
    }
    figures = learner_speed.side_figures("thousandfold", measured, gflop=12.0, product_gflop=6.0)
    assert figures["speedup_over"] == {"jax-unrolled": {"median": 2.0, "min": 1.0, "max": 3.0}}
    assert figures["gflops"] == {"median": 4.0, "min": 1.5, "max": 6.0}
    assert figures["share_of_matmul"]["float32"] == {"median": 0.66667, "min": 0.5, "max": 1.0}
    failed = learner_speed.side_figures("jax-scan", measured, gflop=12.0, product_gflop=6.0)
    assert failed == {"not_measured": "given up after 1 s"}


def test_the_plain_update_at_depth_64_is_25_8_gflop():
    assert learner_speed.plain_update_gflop(64, 256, 256) == pytest.approx(25.77, abs=0.01)
