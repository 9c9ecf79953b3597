"""A task's world as solids that are fixed to bodies: what anybody needs who draws it without MuJoCo.

MuJoCo says what is to be seen and in which colour, as it does for its own pictures; no OpenGL is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.pictures.scene_rendering import SHAPE, Shape, picture_model, scene_camera

_GEOM, _OBJECT = mujoco.mjtGeom, mujoco.mjtObj
_KINDS = {
    int(_GEOM.mjGEOM_PLANE): "plane", int(_GEOM.mjGEOM_SPHERE): "ellipsoid",
    int(_GEOM.mjGEOM_ELLIPSOID): "ellipsoid", int(_GEOM.mjGEOM_CAPSULE): "capsule",
    int(_GEOM.mjGEOM_CYLINDER): "cylinder", int(_GEOM.mjGEOM_BOX): "box", int(_GEOM.mjGEOM_MESH): "mesh",
}  # fmt: skip
_MOST_TRIANGLES = 400  # of a mesh: a robot has dozens of them
_FINEST, _COARSEST = 32, 2  # cells along a mesh's longest side, in each of which its vertices become one
_DIGITS = 6
_ROOM = 1000


class Solids:
    """What is drawn of a task, and where its bodies are in a state.

    Attributes:
        bodies: (bodies,) ids of the bodies that move and show; those welded to one count as part of it.
        parts: the solids, each with ``kind`` (plane, box, ellipsoid, capsule, cylinder or mesh), ``body``
            (an index of `bodies`; −1: the world), ``size`` (half of its extent along each axis, in metres; 0
            for a plane without end; of a capsule two radii and half the length between its ends' centres; 1
            for a mesh, which has its own), ``place`` (x, y, z) and ``turn`` (quaternion w, x, y, z) in the
            body's frame, ``colour`` (red, green, blue and opacity from 0 to 1), and ``mesh``, an index.
        meshes: ``vertices`` in metres and ``triangles``, with fewer of both than the model has.
        camera: azimuth and elevation in degrees, distance and lookat in metres, ``field`` of view from bottom
            to top in degrees, and ``follow``, the index of the body that it follows; −1: none.
        left_out: kinds of what is not drawn, such as heightfields.

    Args:
        task: the compiled task.
        distribution: the episode distribution whose start says where bodies that are moved from outside are.
    """

    def __init__(self, task: CompiledTask, distribution: str = "evaluation") -> None:
        self._task = task
        view, follow = scene_camera(task)
        self._model, option = picture_model(task, view.distance, (640, 480))
        self._own = {name: getattr(self._model, name).copy() for name in SHAPE}
        self._data, start = mujoco.MjData(self._model), task.start_data(distribution)
        self._data.qpos[:], self._data.mocap_pos[:] = start.qpos, start.mocap_pos
        self._data.mocap_quat[:] = start.mocap_quat
        self._move()
        scene, model = mujoco.MjvScene(self._model, self._model.ngeom + _ROOM), self._model
        every = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(model, self._data, option, None, view, every, scene)
        drawn = [
            (geom, body)
            for geom in scene.geoms[: scene.ngeom]
            if (body := self._body_of(geom)) is not None and geom.rgba[3] > 0
        ]
        seen = {body for geom, body in drawn if geom.type in _KINDS} | ({follow} if follow else set())
        self.bodies = np.array(sorted(seen - {0}), int)
        index = {body: place for place, body in enumerate(self.bodies.tolist())} | {0: -1}
        self.parts, self._geoms, meshes = list[dict[str, Any]](), list[int](), dict[int, int]()
        left_out = {str(_GEOM(geom.type).name) for geom, _ in drawn if geom.type not in _KINDS}
        left_out |= {"mjGEOM_SKIN"} if model.nskin else set()
        left_out |= {"mjGEOM_FLEX"} if model.nflex else set()
        names = {"HFIELD": "heightfields", "SDF": "signed distance fields", "SKIN": "skins", "FLEX": "flexes"}
        self.left_out = sorted(names.get(each.removeprefix("mjGEOM_"), each) for each in left_out)
        for geom, body in drawn:
            if geom.type in _KINDS:
                self.parts.append(self._part(geom, body, index[body], meshes))
                self._geoms.append(int(geom.objid) if geom.objtype == _OBJECT.mjOBJ_GEOM.value else -1)
        self.meshes = [simplified(*_mesh(model, mesh)) for mesh in meshes]
        self.camera = {
            "azimuth": float(view.azimuth), "elevation": float(view.elevation),
            "distance": float(view.distance), "lookat": _rounded(view.lookat),
            "field": float(model.vis.global_.fovy), "follow": index.get(follow or 0, -1),
        }  # fmt: skip

    def poses(self, qpos: np.ndarray, shape: Shape | None = None) -> np.ndarray:
        """Return where the bodies are, (bodies, 7): x, y, z in metres and a quaternion w, x, y, z.

        Args:
            qpos: (nq,), positions of the joints.
            shape: of a world whose model varies; None: the task's.
        """
        self._model.qpos0[:] = self._own["qpos0"] if shape is None else shape["qpos0"]
        self._data.qpos[:] = qpos
        self._move()
        return np.concatenate([self._data.xpos[self.bodies], self._data.xquat[self.bodies]], axis=1)

    def sizes(self, shape: Shape | None) -> dict[int, list[float]]:
        """Return the ``size`` of the parts, by index, that have another one in a world whose model varies."""
        found = {}
        for place, (part, geom) in enumerate(zip(self.parts, self._geoms, strict=True)):
            if shape is None or geom < 0 or part["kind"] in ("plane", "mesh"):
                continue
            if not np.allclose(shape["geom_size"][geom], self._task.model.geom_size[geom]):
                kind, size = int(self._model.geom_type[geom]), np.array(shape["geom_size"][geom])
                drawn = mujoco.MjvGeom()
                mujoco.mjv_initGeom(drawn, kind, size, np.zeros(3), np.eye(3).ravel(), np.ones(4, np.float32))
                found[place] = _rounded(drawn.size)
        return found

    def _move(self) -> None:
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)

    def _body_of(self, geom: mujoco.MjvGeom) -> int | None:
        """Return the body that a geom of the scene moves with, 0: the world; None: it is no part of one."""
        if geom.objtype == _OBJECT.mjOBJ_GEOM.value:
            return int(self._model.body_weldid[self._model.geom_bodyid[geom.objid]])
        if geom.objtype == _OBJECT.mjOBJ_BODY.value:  # its inertia
            return int(self._model.body_weldid[geom.objid])
        return None

    def _part(self, geom: mujoco.MjvGeom, body: int, index: int, meshes: dict[int, int]) -> dict[str, Any]:
        kind, size = _KINDS[int(geom.type)], geom.size
        place, turn = np.asarray(geom.pos, float), np.asarray(geom.mat, float).reshape(3, 3)
        if kind == "plane":  # the scene has one without end where the camera looks, as far as it sees
            size = np.array([*self._model.geom_size[geom.objid][:2], 0.0])
            place = self._data.geom_xpos[geom.objid]
        frame = self._data.xmat[body].reshape(3, 3)
        quaternion = np.empty(4)
        mujoco.mju_mat2Quat(quaternion, (frame.T @ turn).ravel())
        part = {
            "kind": kind, "body": index, "size": _rounded(np.ones(3) if kind == "mesh" else size),
            "place": _rounded(frame.T @ (place - self._data.xpos[body])), "turn": _rounded(quaternion),
            "colour": [round(float(each), 3) for each in geom.rgba],
        }  # fmt: skip
        if kind == "mesh":
            mesh = int(geom.dataid) // 2  # each has two: whole, and its hull
            part["mesh"] = meshes.setdefault(mesh, len(meshes))
        return part


def simplified(vertices: np.ndarray, triangles: np.ndarray) -> dict[str, list[list[float]]]:
    """Return a mesh with few triangles: the vertices within a cell of a grid become their mean.

    Source: Rossignac and Borrel 1993, Multi-resolution 3D approximations for rendering complex scenes.

    Args:
        vertices: (vertices, 3), in metres.
        triangles: (triangles, 3), indices.
    """
    low, side = vertices.min(0), float(np.ptp(vertices, axis=0).max()) or 1.0
    for cells in range(_FINEST, _COARSEST - 1, -1):
        keys = np.floor((vertices - low) / side * cells).astype(int)
        _, cluster, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
        cluster = cluster.reshape(-1)
        if len(triangles) <= _MOST_TRIANGLES and cells == _FINEST:
            cluster, counts = np.arange(len(vertices)), np.ones(len(vertices))
        kept = cluster[triangles]
        whole = (kept[:, 0] != kept[:, 1]) & (kept[:, 1] != kept[:, 2]) & (kept[:, 2] != kept[:, 0])
        if (count := int(whole.sum())) <= _MOST_TRIANGLES and count:
            break
    means = np.stack([np.bincount(cluster, column, len(counts)) / counts for column in vertices.T], axis=1)
    return {"vertices": [_rounded(row) for row in means], "triangles": kept[whole].tolist()}


def _mesh(model: mujoco.MjModel, mesh: int) -> tuple[np.ndarray, np.ndarray]:
    first, number = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
    face, faces = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
    return model.mesh_vert[first : first + number], model.mesh_face[face : face + faces]


def _rounded(numbers: Sequence[float] | np.ndarray) -> list[float]:
    return [float(f"{round(number, _DIGITS):.{_DIGITS}g}") for number in np.asarray(numbers, float).tolist()]
