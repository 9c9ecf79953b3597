"""A policy file opened to act: its formula's numbers, and one line for every file that is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.stages.policy_file.handmade_policy import (
    ACTION_DIM,
    GOAL_DIM,
    OBSERVATION_DIM,
    expected_action,
    expected_control,
    graph,
    metadata,
    tamper,
    write_policy,
)
from thousandfold.ground.errors import DamagedFileError, NonFiniteError
from thousandfold.stages.policy_file.golden import golden_error
from thousandfold.stages.policy_file.onnx_policy import OnnxPolicy, OtherModelError


@pytest.fixture
def policy(tmp_path: Path) -> OnnxPolicy:
    return OnnxPolicy(write_policy(tmp_path / "policy.onnx"))


def states(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(count)
    draw = rng.standard_normal((count, OBSERVATION_DIM + GOAL_DIM)).astype(np.float32)
    return draw[:, :OBSERVATION_DIM], draw[:, OBSERVATION_DIM:]


@pytest.mark.parametrize("count", [1, 3, 64])
def test_a_batch_of_any_size_gives_actions_and_controls_in_actuator_units(policy: OnnxPolicy, count: int):
    observation, goal = states(count)
    action, control = policy.run(observation, goal)
    assert action.shape == control.shape == (count, ACTION_DIM)
    np.testing.assert_allclose(action, expected_action(observation, goal), atol=1e-6)
    np.testing.assert_allclose(control, expected_control(action), atol=1e-6)
    np.testing.assert_array_equal(policy(observation, goal), action)


def test_single_steps_agree_with_the_batch_and_keep_what_they_returned(policy: OnnxPolicy):
    observation, goal = states(8)
    outputs = [policy.step(*pair) for pair in zip(observation, goal, strict=True)]
    action, control = policy.run(observation, goal)
    np.testing.assert_allclose([output.action for output in outputs], action, atol=1e-6)
    np.testing.assert_allclose([output.control for output in outputs], control, atol=1e-6)
    assert outputs[0].action.shape == (ACTION_DIM,) and outputs[0].action.dtype == np.float32


def test_states_of_another_kind_of_number_and_layout_are_taken(policy: OnnxPolicy):
    observation, goal = states(6)
    strided = np.asfortranarray(observation.astype(np.float64))
    np.testing.assert_allclose(policy(strided, goal.tolist()), policy(observation, goal))  # pyright: ignore[reportArgumentType]
    single = policy.step(strided[2], goal[2].astype(np.float64))
    np.testing.assert_array_equal(single.action, policy.step(observation[2], goal[2]).action)


@pytest.mark.parametrize(("observation_dim", "goal_dim"), [(3, 2), (4, 1), (1, 2)])
def test_states_of_the_wrong_size_are_refused(policy: OnnxPolicy, observation_dim: int, goal_dim: int):
    with pytest.raises(ValueError, match="shape"):
        policy.run(np.zeros((2, observation_dim)), np.zeros((2, goal_dim)))
    with pytest.raises(ValueError, match="shape"):
        policy.step(np.zeros(observation_dim), np.zeros(goal_dim))


def test_the_metadata_says_what_a_deployer_must_know(policy: OnnxPolicy):
    found = policy.metadata
    assert (found.task, found.role, found.control_dt_s, found.episode_steps) == (
        "point_u_maze",
        "student",
        0.1,
        100,
    )
    assert [element.name for element in found.inputs.observation] == [
        "qpos:x[0]",
        "qpos:y[0]",
        "qvel:x[0]",
        "qvel:y[0]",
    ]
    assert [(element.low, element.high) for element in found.outputs.control] == [(-1.0, 1.0), (-1.0, 1.0)]
    assert found.evaluation is not None and found.evaluation.episodes == 256
    assert found.sizes() == {"observation": 4, "goal": 2, "action": 2, "control": 2}
    assert found.model_validate_json(found.model_dump_json()) == found


def test_metadata_that_a_newer_version_added_to_is_read(tmp_path: Path):
    path = write_policy(tmp_path / "policy.onnx", json.dumps(metadata(colour="blue")))
    assert OnnxPolicy(path, task="point_u_maze").metadata.task == "point_u_maze"


def assert_refused(path: Path, *words: str, task: str | None = None) -> None:
    with pytest.raises(DamagedFileError) as caught:
        OnnxPolicy(path, task=task)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < 500, message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("kept", [0, 1, 40, 0.3, 0.6, 0.95, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float, capfd: pytest.CaptureFixture[str]):
    path = write_policy(tmp_path / "policy.onnx")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    assert_refused(path, "pipeline export-onnx")
    assert capfd.readouterr() == ("", "")


def test_files_of_others_are_refused(tmp_path: Path):
    foreign = write_policy(tmp_path / "foreign.onnx", key="")
    assert_refused(foreign, "Thousandfold did not write")
    assert_refused(write_policy(tmp_path / "other.onnx", key="else"), "Thousandfold did not write")
    text = tmp_path / "notes.onnx"
    text.write_text("not a graph at all")
    assert_refused(text, "no ONNX file")
    assert_refused(tmp_path / "absent.onnx", "missing")


def test_a_policy_of_another_task_is_refused(tmp_path: Path):
    path = write_policy(tmp_path / "policy.onnx")
    assert_refused(path, "'point_u_maze'", "'point_big_maze'", task="point_big_maze")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "metadata"),
        ("[]", "metadata"),
        ('{"format_version": 3}', "role"),
        (json.dumps(metadata(format_version=1)), "of format 1, this version reads 3 and 4: export"),
        (json.dumps(metadata(format_version=2)), "of format 2, this version reads 3 and 4: export"),
        (json.dumps(metadata(format_version=5)), "update thousandfold"),
        (json.dumps(metadata(format_version="two")), 'of format "two", this version reads 3 and 4: export'),
        (json.dumps(metadata(format_version=True)), "of format true, this version reads 3 and 4: export"),
        ("{}", "without a format_version, this version reads 3 and 4: export"),
        (json.dumps(metadata(control_dt_s=0.0)), "control_dt_s"),
        (json.dumps(metadata(inputs=metadata()["inputs"] | {"goal": []})), "its metadata says"),
    ],
)
def test_damaged_metadata_is_refused(tmp_path: Path, text: str, word: str):
    assert_refused(write_policy(tmp_path / "policy.onnx", text), word)


def test_a_graph_with_a_fixed_batch_is_refused(tmp_path: Path):
    assert_refused(write_policy(tmp_path / "policy.onnx", batch=1), "its metadata says")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("place", "name"), [(0, r"observation\[0\] \(qpos:x\[0\]\)"), (3, "observation"), (5, r"goal\[1\]")]
)
def test_what_is_not_finite_is_refused(policy: OnnxPolicy, value: float, place: int, name: str):
    state = np.zeros(OBSERVATION_DIM + GOAL_DIM, np.float32)
    state[place] = value
    observation, goal = state[:OBSERVATION_DIM], state[OBSERVATION_DIM:]
    with pytest.raises(NonFiniteError, match=rf"{name}.* is {value}"):
        policy.step(observation, goal)
    rows = np.zeros((3, OBSERVATION_DIM), np.float32), np.zeros((3, GOAL_DIM), np.float32)
    rows[0][2], rows[1][2] = observation, goal
    with pytest.raises(NonFiniteError, match=name):
        policy.run(*rows)
    assert np.isfinite(policy.step(np.zeros(4), np.zeros(2)).action).all()


def test_large_numbers_are_finite_and_clipped(policy: OnnxPolicy):
    observation, goal = np.full(4, 3e38, np.float32), np.full(2, -3e38, np.float32)
    expected = expected_action(observation[None], goal[None])
    np.testing.assert_allclose(policy.step(observation, goal).action, expected[0], atol=1e-6)
    np.testing.assert_allclose(policy.run(observation[None], goal[None]).action, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.complex64, "U4", object])
def test_what_is_no_real_number_is_refused(policy: OnnxPolicy, dtype: type):
    wrong = np.zeros(OBSERVATION_DIM).astype(dtype)
    with pytest.raises(ValueError, match="real numbers"):
        policy.step(wrong, np.zeros(GOAL_DIM))
    with pytest.raises(ValueError, match="observation holds"):
        policy.run(wrong[None], np.zeros((1, GOAL_DIM)))


def test_whole_numbers_are_taken(policy: OnnxPolicy):
    ones = policy.step(np.ones(4, int), np.ones(2, bool))
    np.testing.assert_array_equal(ones.action, policy.step(np.ones(4), np.ones(2)).action)


def test_as_many_goals_as_observations(policy: OnnxPolicy):
    with pytest.raises(ValueError, match="3 observations and 2 goals"):
        policy.run(np.zeros((3, 4)), np.zeros((2, 2)))


def test_a_changed_weight_is_refused_unless_the_hash_is_not_to_be_looked_at(tmp_path: Path):
    path = tamper(write_policy(tmp_path / "policy.onnx"))
    assert_refused(path, "changed since it was exported", "recorded hash")
    opened = OnnxPolicy(path, check_hash=False)
    assert opened.metadata.task == "point_u_maze"


def test_a_policy_of_another_model_is_refused(policy: OnnxPolicy):
    policy.expect_model(policy.metadata.model_sha256)
    with pytest.raises(OtherModelError, match=r"another model of task 'point_u_maze' \(hash .*, here 123"):
        policy.expect_model("123" + "0" * 61)


def test_the_golden_rows_come_with_it(policy: OnnxPolicy, tmp_path: Path):
    assert golden_error(policy.run, policy.golden(), policy.metadata) < 1e-6
    without = graph().with_metadata({"thousandfold": json.dumps(metadata())})
    path = tmp_path / "without.onnx"
    path.write_bytes(without.joined())
    with pytest.raises(DamagedFileError, match="no golden rows"):
        OnnxPolicy(path, check_hash=False).golden()
