"""Contacts are MuJoCo's own: their number, their places, and which way their tangents point."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch comes with the extra `train`")
mujoco_warp: Any = pytest.importorskip("mujoco_warp", reason="MuJoCo Warp comes with the extra `train`")

from thousandfold.envs.simulators.warp_contacts import match_contacts  # noqa: E402

CAPSULE = """
<mujoco><worldbody>
  <geom type="plane" size="5 5 1"/>
  <body><freejoint/><geom type="capsule" size="0.1 0.3"/></body>
  <body pos="3 0 0.05"><freejoint/><geom size="0.1"/></body>
</worldbody></mujoco>
"""
BOXES = """
<mujoco><worldbody>
  <geom type="box" size="0.3 0.3 0.03"/>
  <body pos="0.29 0 0.05"><freejoint/><geom type="box" size="0.1 0.02 0.04"/></body>
</worldbody></mujoco>
"""


def turned(tilt: float, heading: float) -> np.ndarray:
    """Return the quaternion that tilts the z axis by `tilt` towards `heading`, both in degrees."""
    half, direction = np.radians(tilt) / 2, np.radians(heading)
    return np.array([np.cos(half), *(np.sin(half) * np.array([-np.sin(direction), np.cos(direction), 0]))])


def contacts(text: str, qpos: np.ndarray, matched: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return the contacts of MuJoCo and of MuJoCo Warp: distance, place and frame, sorted by place."""
    model = mujoco.MjModel.from_xml_string(text)
    data = mujoco.MjData(model)
    data.qpos[: len(qpos)] = qpos
    on_warp = mujoco_warp.put_model(model)
    if matched:
        match_contacts(model, on_warp)
    warp_data = mujoco_warp.put_data(model, data, nconmax=32, njmax=256)
    mujoco.mj_forward(model, data)
    mujoco_warp.kinematics(on_warp, warp_data)
    mujoco_warp.collision(on_warp, warp_data)
    expected = np.array([[each.dist, *each.pos, *each.frame] for each in data.contact])
    found = warp_data.contact
    rows = [found.dist.numpy()[:, None], found.pos.numpy(), found.frame.numpy().reshape(-1, 9)]
    number = int(warp_data.nacon.numpy()[0])
    return by_place(expected), by_place(np.hstack(rows)[:number])


def by_place(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort(np.round(rows[:, 1:4], 4).T)]


@pytest.mark.parametrize("tilt", [0, 20, 59, 61, 80, 89])
@pytest.mark.parametrize("heading", [40, 200])
def test_tangents_lie_along_a_capsule_on_a_plane(tilt: float, heading: float) -> None:
    """However steep it stands; of an upright one nothing lies in the plane, and any tangent will do."""
    height = 0.3 * abs(np.cos(np.radians(tilt))) + 0.09
    expected, found = contacts(CAPSULE, np.array([0, 0, height, *turned(tilt, heading)]))
    columns = slice(0, 7) if tilt == 0 else slice(0, 13)  # distance, place and normal; the tangents too
    assert found[:, columns] == pytest.approx(expected[:, columns], abs=1e-5)
    frames = found[:, 4:].reshape(-1, 3, 3)
    assert frames @ frames.transpose(0, 2, 1) == pytest.approx(
        np.tile(np.eye(3), (len(frames), 1, 1)), abs=1e-6
    )
    assert np.linalg.det(frames) == pytest.approx(1.0, abs=1e-6)


def test_boxes_meet_in_as_many_points() -> None:
    """In poses of all kinds at an edge of the larger one."""
    rng = np.random.default_rng(0)
    unlike = {True: 0, False: 0}
    for _ in range(40):
        pose = np.array([0.29, 0, 0.05, 1, 0, 0, 0]) + rng.uniform(-1, 1, 7) * [0.05, 0.05, 0.02, *[0.2] * 4]
        pose[3:] /= np.linalg.norm(pose[3:])
        for matched in unlike:
            expected, found = contacts(BOXES, pose, matched)
            unlike[matched] += expected.shape != found.shape
            if matched and expected.shape == found.shape:
                assert found[:, :4] == pytest.approx(expected[:, :4], abs=1e-4)
    assert unlike[True] == 0 < unlike[False]
