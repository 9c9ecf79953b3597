"""Solids of a task: they are where MuJoCo has its geoms, and a mesh keeps its shape with few triangles."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
import pytest

from tests.envs.user_tasks.user_pages import ARM, PAGE, STATEFUL_ARM, write
from thousandfold.envs.pictures.scene_rendering import world_shape
from thousandfold.envs.pictures.solids import Solids, simplified
from thousandfold.envs.registry import compile_task


def matrix(quaternion: np.ndarray) -> np.ndarray:
    found = np.empty(9)
    mujoco.mju_quat2Mat(found, np.asarray(quaternion, float))
    return found.reshape(3, 3)


@pytest.mark.parametrize("name", ["ant_u_maze", "arm_push_hard", "humanoid"])
def test_every_geom_is_drawn_where_it_is(name: str) -> None:
    task = compile_task(name)
    solids, data = Solids(task), task.start_data("evaluation")
    (data.qpos[:],), _, _ = task.sample_start("evaluation", np.random.default_rng(0), 1)
    mujoco.mj_kinematics(task.model, data)
    poses, model = solids.poses(data.qpos), task.model
    assert len(solids.parts) == model.ngeom and solids.left_out == [] and solids.meshes == []
    for geom, part in enumerate(solids.parts):
        place, turn = np.array(part["place"]), matrix(part["turn"])
        if part["body"] >= 0:
            pose = poses[part["body"]]
            place, turn = pose[:3] + matrix(pose[3:]) @ place, matrix(pose[3:]) @ turn
        assert place == pytest.approx(data.geom_xpos[geom], abs=2e-3)
        assert turn == pytest.approx(data.geom_xmat[geom].reshape(3, 3), abs=2e-3)
        if part["kind"] == "box":
            assert part["size"] == pytest.approx(model.geom_size[geom], rel=1e-3)
        elif part["kind"] == "capsule":
            assert part["size"] == pytest.approx(model.geom_size[geom][[0, 0, 1]], rel=1e-3)
    assert (solids.parts[0]["kind"], solids.parts[0]["body"]) == ("plane", -1)
    assert 0 < len(solids.bodies) < model.nbody, "what does not move is the world's"


def test_the_camera_is_that_of_the_pictures() -> None:
    ant, maze = Solids(compile_task("ant")), Solids(compile_task("point_u_maze"))
    torso = ant.bodies[ant.camera["follow"]]
    assert torso == compile_task("ant").model.body("torso").id and maze.camera["follow"] == -1
    assert maze.camera["azimuth"] == 90 and maze.camera["distance"] == 6


def test_bodies_that_are_moved_from_outside_are_where_episodes_start(tmp_path: Path) -> None:
    model = STATEFUL_ARM.replace('pos="0 1 0"/>', 'pos="0 1 0"><geom size=".01"/></body>')
    solids = Solids(compile_task(str(write(tmp_path, model=model))))
    marker = next(part for part in solids.parts if part["size"] == [0.01] * 3)
    assert marker["place"] == pytest.approx([0, 0, 0], abs=1e-6)
    assert solids.poses(np.zeros(2))[marker["body"]] == pytest.approx([0.3, 0.2, 0.1, 0, 1, 0, 0])


def test_a_users_robot_of_hidden_geoms_is_drawn_and_keeps_its_colour(tmp_path: Path) -> None:
    model = ARM.replace("<geom ", '<geom group="3" rgba="0.5 0.25 1 1" ')
    solids = Solids(compile_task(str(write(tmp_path, PAGE, model))))
    assert [part["colour"] for part in solids.parts] == [[0.5, 0.25, 1.0, 1.0]] * 2


def test_a_part_that_varies_has_its_own_size() -> None:
    task = compile_task("arm_push_hard")
    solids, model = Solids(task), task.model.__copy__()
    assert solids.sizes(None) == solids.sizes(world_shape(model)) == {}
    cube = model.body("cube").geomadr[0]
    model.geom_size[cube] *= 2
    assert solids.sizes(world_shape(model)) == {cube: pytest.approx(model.geom_size[cube])}
    model.qpos0[model.joint("cube").qposadr[0]] += 1.0
    assert solids.poses(task.model.qpos0, world_shape(model)).shape == (len(solids.bodies), 7)


MESHED = ARM.replace(
    "<worldbody>",
    """<asset><mesh name="ball" builtin="sphere" params="4" scale=".1 .1 .1"/>
       <hfield name="hill" nrow="4" ncol="4" size="1 1 .1 .1"/></asset>
     <worldbody><geom type="hfield" hfield="hill"/>""",
).replace("<site", '<geom type="mesh" mesh="ball"/><site')


def test_meshes_are_simplified_and_heightfields_left_out(tmp_path: Path) -> None:
    task = compile_task(str(write(tmp_path, PAGE, MESHED)))
    assert task.model.mesh_facenum[0] > 400
    solids = Solids(task)
    (mesh,), (part,) = solids.meshes, [part for part in solids.parts if part["kind"] == "mesh"]
    assert part["mesh"] == 0 and part["size"] == [1, 1, 1] and solids.left_out == ["heightfields"]
    assert 100 < len(mesh["triangles"]) <= 400
    assert np.linalg.norm(mesh["vertices"], axis=1) == pytest.approx(0.1, rel=0.1)


def test_a_small_mesh_stays_as_it_is() -> None:
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0.001, 0.001, 0.5]])
    triangles = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]])
    found = simplified(corners, triangles)
    assert found["vertices"] == corners.tolist() and found["triangles"] == triangles.tolist()
