"""Orientations as six numbers: the angle between them, and how they are drawn."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from thousandfold.envs.orientations import Orientations, are_orientations, from_quaternions, rotation_angle


def about(axis: list[float], angle: float) -> np.ndarray:
    """Return the six numbers of a turn about an axis, (6,) float32, as simulators give them."""
    unit = np.array(axis) / np.linalg.norm(axis)
    return from_quaternions(np.array([[np.cos(angle / 2), *np.sin(angle / 2) * unit]]))[0].astype(np.float32)


@pytest.mark.parametrize("angle", [0.0, 1e-5, 1e-3, 0.1, 1.5, 3.1])
def test_the_angle_is_that_of_the_turn_between(angle: float) -> None:
    one = about([1, 2, 3], 0.7)
    turn, both = np.zeros(4), np.zeros(4)
    mujoco.mju_axisAngle2Quat(turn, np.array([0.6, 0.0, 0.8]), angle)
    axis = np.array([1, 2, 3]) / np.sqrt(14)
    mujoco.mju_mulQuat(both, turn, np.array([np.cos(0.35), *np.sin(0.35) * axis]))
    other = from_quaternions(both[None])[0].astype(np.float32)
    assert rotation_angle(one, other) == pytest.approx(angle, rel=1e-3, abs=3e-7)
    assert rotation_angle(other, one) == rotation_angle(one, other)


def test_a_quaternion_and_its_negative_are_one_orientation() -> None:
    quaternion = np.array([[0.3, -0.4, 0.5, 0.6]])
    assert np.array_equal(from_quaternions(quaternion), from_quaternions(-quaternion))
    assert np.allclose(from_quaternions(3 * quaternion), from_quaternions(quaternion))


def test_torch_says_the_same_of_batches() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    goals = Orientations(within=np.pi).sample(rng, 10).astype(np.float32)
    one, other = goals[:5, None], goals[None, 5:]
    expected = rotation_angle(one, other)
    assert expected.shape == (5, 5)
    found = rotation_angle(torch.from_numpy(one), torch.from_numpy(other))
    assert found.numpy() == pytest.approx(expected, abs=1e-5)


def test_numbers_that_are_no_rotation_are_made_one() -> None:
    one = about([0, 0, 1], 0.5)
    longer = np.concatenate([2 * one[:3], 3 * one[3:] + one[:3]])
    assert rotation_angle(longer, one) == pytest.approx(0.0, abs=1e-6)
    assert np.isfinite(rotation_angle(np.zeros(6), one))


class TestDraws:
    def test_all_orientations_are_as_likely(self) -> None:
        """Their mean is nothing, and the angle between two has the density (1 − cos θ) / π (Miles 1965)."""
        drawn = Orientations(within=3.1416).sample(np.random.default_rng(0), 4000)
        assert are_orientations(drawn)
        assert np.abs(drawn.mean(0)).max() < 0.05
        angles = rotation_angle(drawn[:2000], drawn[2000:])
        assert (angles < 1.5).mean() == pytest.approx((1.5 - np.sin(1.5)) / np.pi, abs=0.03)

    def test_near_a_given_one(self) -> None:
        given = about([0, 1, 0], 1.0)
        quat = (np.cos(0.5), 0.0, np.sin(0.5), 0.0)
        drawn = Orientations((quat,), within=0.3).sample(np.random.default_rng(0), 500)
        angles = rotation_angle(drawn, given)
        assert 0.28 < angles.max() <= 0.3001 and np.median(angles) == pytest.approx(
            0.3 * 0.5 ** (1 / 3), abs=0.01
        )

    def test_about_an_axis(self) -> None:
        drawn = Orientations(axis=(0, 0, 2), low=-0.5, high=1.0).sample(np.random.default_rng(0), 500)
        assert np.allclose(drawn[:, [2, 5]], 0.0)
        turned = np.arctan2(drawn[:, 1], drawn[:, 0])
        assert -0.5 <= turned.min() < -0.45 and 0.95 < turned.max() <= 1.0

    def test_one_of_several(self) -> None:
        drawn = Orientations(((1, 0, 0, 0), (0, 1, 0, 0))).sample(np.random.default_rng(0), 50)
        assert {tuple(each) for each in drawn.round(6)} == {(1, 0, 0, 0, 1, 0), (1, 0, 0, 0, -1, 0)}
