"""The fingerprint of a model: deaf to the last bits of a processor, not to a change of the robot."""

from __future__ import annotations

import copy

import mujoco
import numpy as np
import pytest

from thousandfold.envs.model_hash import model_sha256, rounded
from thousandfold.envs.registry import compile_task, task_names

# What compiling on x86-64 and on ARM64 was seen to differ by, ten times.
RELATIVE_NOISE, ABSOLUTE_NOISE = 2e-13, 2e-13

BALL_AND_BOX = """
<mujoco>
  <worldbody>
    <body name="ball"><freejoint/><geom name="ball" size="0.1"/></body>
    <body name="box" pos="0 0 1">
      <joint name="hinge" axis="0 1 0"/>
      <geom type="box" size="0.1 0.1 0.2"/>
    </body>
  </worldbody>
  <actuator><motor joint="hinge" ctrlrange="-1 1"/></actuator>
</mujoco>
"""


def compiled(text: str = BALL_AND_BOX) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(text)


def add_noise(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    """Change every number of double precision in its last bits, as another processor might."""
    for name in dir(model):
        value = None if name.startswith("_") else getattr(model, name)
        if isinstance(value, np.ndarray) and value.dtype == np.float64:
            value *= 1 + RELATIVE_NOISE * rng.uniform(-1, 1, value.shape)
            value += ABSOLUTE_NOISE * rng.uniform(-1, 1, value.shape)


@pytest.mark.parametrize("name", task_names())
def test_last_bits_do_not_count(name: str):
    model = copy.copy(compile_task(name).model)
    plain = model_sha256(model)
    add_noise(model, np.random.default_rng(0))
    assert model_sha256(model) == plain


@pytest.mark.parametrize(
    "field", ["body_mass", "body_ipos", "body_inertia", "geom_size", "geom_friction", "jnt_axis", "qpos0"]
)
def test_a_change_of_a_number_counts(field: str):
    model = compiled()
    plain = model_sha256(model)
    getattr(model, field)[-1] += 1e-6
    assert model_sha256(model) != plain


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('name="hinge" axis', 'name="elbow" axis'),
        ('axis="0 1 0"', 'axis="1 0 0"'),
        ("<mujoco>", '<mujoco><option timestep="0.001"/>'),
        ("<mujoco>", '<mujoco><option integrator="RK4"/>'),
        ('ctrlrange="-1 1"', 'ctrlrange="-1 1.001"'),
        ('size="0.1"', 'size="0.1" contype="0"'),
    ],
)
def test_another_robot_has_another_fingerprint(before: str, after: str):
    changed = BALL_AND_BOX.replace(before, after)
    changed = changed.replace('joint="hinge"', 'joint="elbow"') if "elbow" in after else changed
    assert model_sha256(compiled(changed)) != model_sha256(compiled())


def test_equal_moments_may_have_any_axes():
    model = compiled()
    plain, box = model_sha256(model), mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, "box")
    model.body_iquat[box] = [np.cos(0.3), 0, 0, np.sin(0.3)]  # about the axis of its third moment
    assert model.body_inertia[box, 0] == pytest.approx(model.body_inertia[box, 1])
    assert model_sha256(model) == plain
    model.body_iquat[box] = [np.cos(0.3), np.sin(0.3), 0, 0]
    assert model_sha256(model) != plain


def test_numbers_are_rounded_to_the_grid():
    values = np.array([0.1, -0.0, 1e-9, 3.0, 1e5 + 1e-5, np.inf, -np.inf])
    np.testing.assert_allclose(rounded(values)[[0, 3]], [0.1, 3.0], atol=2.0**-26)
    assert rounded(values)[2] == 0 and not np.signbit(rounded(values)[1:3]).any()
    assert rounded(values)[4] == 1e5 and list(rounded(values)[5:]) == [np.inf, -np.inf]
    assert rounded(np.array([1 / 3], np.float32))[0] * 2**18 == round(2**18 / 3)
    # On either side of a power of two the grids meet.
    assert rounded(np.array([2 - 1e-15]))[0] == rounded(np.array([2.0]))[0] == 2
