"""Pictures of a task's world through OpenGL, without a display, with the commanded goal drawn in.

What is drawn is a model of its own, compiled from the task's: background, floor and colours change there, and
never in the model that is simulated. The goal is an extra object of the scene and in no model at all.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mujoco
import numpy as np
from numpy.typing import ArrayLike

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.mujoco_log import compile_spec
from thousandfold.envs.object_names import find_object
from thousandfold.envs.pictures.opengl import NoOpenGLError, open_context

_EXTRA_GEOMS = 1000  # what MuJoCo adds of its own, and what is added here
_TRAIL_PIECES, _TRAIL_WIDTH, _TRAIL_COLOUR = 200, 0.0025, (0.95, 0.55, 0.15, 0.9)
_GOAL_COLOUR, _REACHED_COLOUR = (0.70, 0.84, 0.12), (0.10, 0.68, 0.35)
_GOAL_ALPHA, _CORE_SHARE = 0.40, 0.12
_FLAT_SHARE = 0.25  # half the height of the disc that marks a goal in the plane, in radii
_STARTS_SEEN = 16
_DISTANCE_TO_SEE = 2.7  # in radii of a ball that a camera of 45° shows whole
_SEEN, _SMALL = 1.0, 0.1  # of the model's extent: what the default camera shows, and what is small in it
_NEAR = 0.05  # in distances of the camera
_ROOM = 0.25  # around a followed body and its goal, in distances of the camera that shows the body alone
# Looks: a light background, a quiet floor, one sun, and robots in blue.
_SKY_ABOVE, _SKY_BELOW = (0.80, 0.88, 0.96), (0.97, 0.98, 1.00)
_FLOOR_LIGHT, _FLOOR_DARK = (0.965, 0.970, 0.975), (0.905, 0.915, 0.930)
_FLOOR_CELLS_IN_VIEW = 12.0
_ROBOT_BLUE, _LIMB_BLUE, _FRAME_GREY = (0.13, 0.40, 0.67), (0.45, 0.66, 0.85), (0.55, 0.60, 0.68)
_COLOURS = {
    # Of Gymnasium's models: bodies, the half-cheetah's shins, the frame around the reacher.
    (0.8, 0.6, 0.4): _ROBOT_BLUE,
    (0.9, 0.6, 0.6): _LIMB_BLUE,
    (0.9, 0.4, 0.6): _FRAME_GREY,
    (0.5, 0.5, 0.5): _ROBOT_BLUE,  # what has no colour of its own
}
_DRAWN_GROUPS = 3  # 0 to 2, which MuJoCo draws by default
_FLOOR_NAME, _SKY_NAME = "picture_floor", "picture_sky"


@dataclass(frozen=True)
class Sun:
    """The light that casts shadows.

    Attributes:
        direction: that its light travels in; not of unit length. It has no y: MuJoCo's shadow maps are a
            pixel off at their edges, which draws a pattern on a floor whose depth changes along both axes.
        reach: half the width of what it casts shadows in, in camera distances.
        diffuse: how bright it is.
        ambient: what it gives to faces that it does not see.
        headlight: diffuse light from the camera, so that no face is black.
    """

    direction: tuple[float, float, float]
    reach: float
    diffuse: float
    ambient: float
    headlight: float


SUN = Sun(direction=(-0.5, 0.0, -1.0), reach=1.0, diffuse=0.42, ambient=0.50, headlight=0.12)


@dataclass(frozen=True)
class GoalMarker:
    """Where a goal is, in the world, as far as it is a position.

    Attributes:
        position: x, y and z in metres.
        radius: how far off success lets it be there, in metres.
        dims: how many of x, y and z the goal gives.
    """

    position: tuple[float, float, float]
    radius: float
    dims: int


def goal_marker(task: CompiledTask, goal: np.ndarray) -> GoalMarker | None:
    """Return where to mark a goal, (goal_dim,); None where the goal is no position."""
    position = task.goal_positions(goal)
    if position is None:
        return None
    x, y, z = (*position, *(0.0, 0.0, task.spec.scene.goal_height)[len(position) :])
    return GoalMarker((float(x), float(y), float(z)), task.position_radius, len(position))


Shape = Mapping[str, np.ndarray]
SHAPE = ("geom_size", "geom_rbound", "qpos0")
"""The fields of a model that show where and how large its geoms are, and that may vary."""


def world_shape(model: mujoco.MjModel) -> Shape:
    """Return how large the geoms of a world's model are, and where its joints are at 0."""
    return {name: getattr(model, name).copy() for name in SHAPE}


class SceneRenderer:
    """Draws one world of a task. Use it as a context manager, or `close` it.

    Args:
        task: the compiled task; its `scene` says where the camera stands.
        width, height: of the pictures, in pixels.
        distribution: the episode distribution whose start says where bodies that are moved from outside are.

    Raises:
        NoOpenGLError: there is no OpenGL to draw with.
        TaskError: the body to follow is not in the model.
    """

    def __init__(
        self, task: CompiledTask, width: int = 640, height: int = 480, *, distribution: str = "evaluation"
    ) -> None:
        self.task, self.width, self.height = task, width, height
        self._camera, self._follow = scene_camera(task)
        self._distance = float(self._camera.distance)
        self._model, self._option = picture_model(task, self._distance, (width, height))
        self._own = {name: getattr(self._model, name).copy() for name in SHAPE}
        self._data, start = mujoco.MjData(self._model), task.start_data(distribution)
        self._data.mocap_pos[:], self._data.mocap_quat[:] = start.mocap_pos, start.mocap_quat
        self._scene = mujoco.MjvScene(self._model, self._model.ngeom + _EXTRA_GEOMS)
        self._rectangle = mujoco.MjrRect(0, 0, width, height)
        self._opengl = open_context(width, height)
        try:
            self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        except mujoco.FatalError as error:
            self._opengl.free()
            raise NoOpenGLError(f"MuJoCo cannot use the one that was opened ({error})") from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        # Not __del__: at the interpreter's exit OpenGL is gone before objects are.
        self._finalizer = weakref.finalize(self, _free, self._opengl, self._context)

    def __enter__(self) -> SceneRenderer:
        """Return the renderer itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Free what OpenGL holds."""
        self.close()

    def close(self) -> None:
        """Free what OpenGL holds; nothing can be drawn afterwards."""
        self._finalizer()

    def draw(
        self,
        qpos: np.ndarray,
        goal: np.ndarray | None = None,
        *,
        reached: bool = False,
        trail: np.ndarray | None = None,
        shape: Shape | None = None,
    ) -> np.ndarray:
        """Return a picture of the world, (height, width, 3) uint8.

        Args:
            qpos: (nq,), positions of the joints.
            goal: (goal_dim,), the goal to draw; None draws none.
            reached: whether it counts as reached, which gives it another colour.
            trail: (steps, goal_dim), what was achieved until now, to draw as a line; None draws none.
            shape: of a world whose model varies, as `world_shape` returns it; None: the task's.

        Raises:
            RuntimeError: the renderer is closed.
        """
        if not self._finalizer.alive:
            raise RuntimeError("the renderer is closed")
        marker = None if goal is None else goal_marker(self.task, goal)
        model, data, camera = self._model, self._data, self._camera
        for name, own in self._own.items():  # what the picture has of its own, such as its floor, stays
            field, nominal = getattr(model, name), getattr(self.task.model, name)
            field[:] = own if shape is None else np.where(shape[name] != nominal, shape[name], own)
        data.qpos[:] = qpos  # kinematics follow; no dynamics and no contacts
        for compute in (
            mujoco.mj_kinematics, mujoco.mj_comPos, mujoco.mj_camlight, mujoco.mj_flex, mujoco.mj_tendon,
        ):  # fmt: skip
            compute(model, data)
        self._aim(marker)
        every = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(model, data, self._option, None, camera, every, self._scene)
        light_scene(self._scene, np.asarray(camera.lookat), camera.distance)
        if marker is not None:
            add_goal(self._scene, marker, reached=reached)
        if trail is not None:
            self._add_trail(trail)
        picture = np.empty((self.height, self.width, 3), np.uint8)
        # Shadows of what is in view and no more: all that they cover shares one resolution.
        self._context.shadowClip = SUN.reach * camera.distance
        self._opengl.make_current()
        mujoco.mjr_render(self._rectangle, self._scene, self._context)
        mujoco.mjr_readPixels(picture, None, self._rectangle, self._context)
        return picture[::-1].copy()  # OpenGL's first row is the lowest

    def _aim(self, marker: GoalMarker | None) -> None:
        """Point a camera that follows a body midway to the goal, far enough away to show them both."""
        if self._follow is None:
            return
        body, half = self._data.xpos[self._follow][:2], np.zeros(3)
        self._camera.lookat[:2], self._camera.distance = body, self._distance
        if marker is None:
            return
        given = min(marker.dims, 2)
        half[:given] = (np.array(marker.position[:2]) - body)[:given] / 2
        self._camera.lookat[:2] += half[:2]
        room = max(1.25 * marker.radius, _ROOM * self._distance)
        # The camera is so far from the middle that it shows both ends, at ±half, with room around them.
        azimuth, elevation = np.radians((self._camera.azimuth, self._camera.elevation))
        level = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
        forward = np.cos(elevation) * level + np.array([0.0, 0.0, np.sin(elevation)])
        right = np.array([level[1], -level[0], 0.0])
        up = np.cross(right, forward)
        slope = np.tan(np.radians(self._model.vis.global_.fovy) / 2)
        across = max(abs(up @ half) + room, (abs(right @ half) + room) * self.height / self.width)
        self._camera.distance = max(self._distance, float(across / slope + abs(forward @ half)))

    def _add_trail(self, trail: np.ndarray) -> None:
        """Add a line through what was achieved; a long one gets no more pieces, but longer ones."""
        kept = np.unique(
            np.linspace(0, len(trail) - 1, min(len(trail), _TRAIL_PIECES + 1)).round().astype(int)
        )
        markers = [goal_marker(self.task, achieved) for achieved in trail[kept]]
        places = [np.array(marker.position) for marker in markers if marker is not None]
        width, kind = _TRAIL_WIDTH * self._camera.distance, mujoco.mjtGeom.mjGEOM_CAPSULE
        for start, stop in pairwise(places):
            geom = _next_geom(self._scene, kind, np.zeros(3), start, _TRAIL_COLOUR)
            mujoco.mjv_connector(geom, kind.value, width, start, stop)
            geom.type = mujoco.mjtGeom.mjGEOM_BOX.value  # of 6 faces: capsules would take most of the time


def add_goal(scene: mujoco.MjvScene, marker: GoalMarker, *, reached: bool) -> None:
    """Add a goal to a scene: a translucent shape as large as its success region around a small opaque core.

    Args:
        scene: has room for two more geoms.
        marker: where the goal is.
        reached: whether it counts as reached, which gives it another colour.
    """
    colour = _REACHED_COLOUR if reached else _GOAL_COLOUR
    geom, radius, flat = mujoco.mjtGeom, marker.radius, _FLAT_SHARE * marker.radius
    kind, size = {
        1: (geom.mjGEOM_BOX, (radius, 2 * radius, flat)),
        2: (geom.mjGEOM_CYLINDER, (radius, flat, 0.0)),
        3: (geom.mjGEOM_SPHERE, (radius, radius, radius)),
    }[marker.dims]
    core = _CORE_SHARE * radius
    _next_geom(scene, geom.mjGEOM_SPHERE, (core, core, core), marker.position, (*colour, 1.0))
    _next_geom(scene, kind, size, marker.position, (*colour, _GOAL_ALPHA))


def _next_geom(
    scene: mujoco.MjvScene,
    kind: mujoco.mjtGeom,
    size: ArrayLike,
    position: ArrayLike,
    rgba: Sequence[float],
) -> mujoco.MjvGeom:
    """Return a geom that was added to the scene."""
    geom = scene.geoms[scene.ngeom]
    frame, colour = np.eye(3).ravel(), np.array(rgba, np.float32)
    mujoco.mjv_initGeom(geom, kind.value, np.array(size), np.array(position), frame, colour)
    geom.category = mujoco.mjtCatBit.mjCAT_DECOR.value
    scene.ngeom += 1
    return geom


def scene_camera(task: CompiledTask) -> tuple[mujoco.MjvCamera, int | None]:
    """Return the camera that the task's scene describes, and the id of the body that it follows."""
    scene, model = task.spec.scene, task.model
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE.value
    camera.azimuth, camera.elevation = scene.azimuth, scene.elevation
    camera.distance = 1.5 * model.stat.extent if scene.distance is None else scene.distance
    camera.lookat[:] = model.stat.center if scene.lookat is None else scene.lookat
    if task.spec.file is not None and scene.follow is scene.lookat is scene.distance is None:
        _look_at_starts(task, camera)
    if scene.follow is None:
        return camera, None
    body = find_object(model, mujoco.mjtObj.mjOBJ_BODY, scene.follow, f"Task {task.name!r}")
    if scene.lookat is None:
        # Its height at rest: a camera that bobs with every step is hard to watch.
        camera.lookat[2] = model.qpos0[2] if model.body_dofnum[body] == 6 else model.body_pos[body][2]
    return camera, body


def _look_at_starts(task: CompiledTask, camera: mujoco.MjvCamera) -> None:
    """Point a camera at robot and goals where the model's own centre and extent would not show them.

    That is where they lie outside of what the camera sees, or are small in it, as on a large box as floor.
    """
    model, data = task.model, task.start_data("evaluation")
    qpos, _, goals = task.sample_start("evaluation", np.random.default_rng(0), _STARTS_SEEN)
    moving = model.body_weldid[model.geom_bodyid] > 0
    places = [marker.position for goal in goals if (marker := goal_marker(task, goal)) and marker.dims >= 2]
    for start in qpos:
        data.qpos[:] = start
        mujoco.mj_kinematics(model, data)
        places += [*data.geom_xpos[moving], *data.xpos[model.body_weldid > 0]]
    if not places:
        return
    low, high = np.min(places, axis=0), np.max(places, axis=0)
    middle = (low + high) / 2
    reach = float(np.linalg.norm(high - low) / 2 + model.geom_rbound[moving].max(initial=0.0))
    reach *= 1.0 if moving.any() else 2.0  # bodies without geoms show their inertia
    seen = float(np.linalg.norm(middle - camera.lookat)) + reach <= _SEEN * model.stat.extent
    if reach > 0 and not (seen and reach >= _SMALL * model.stat.extent):
        camera.lookat[:], camera.distance = middle, _DISTANCE_TO_SEE * reach


def _free(opengl: Any, context: mujoco.MjrContext) -> None:
    with opengl.as_current():
        context.free()
    opengl.free()


def picture_model(
    task: CompiledTask, distance: float, size: tuple[int, int]
) -> tuple[mujoco.MjModel, mujoco.MjvOption]:
    """Return the model of a task as pictures show it, and what of it they show.

    Args:
        task: the compiled task, whose own model stays as it is.
        distance: of the camera, in metres.
        size: width and height of the pictures, in pixels.
    """
    spec = task.spec.build_spec()
    apply_style(spec, distance, own=task.spec.file is None)
    # Nothing nearer is drawn: a share of the extent, which may be far larger than what is looked at.
    spec.visual.map.znear = min(spec.visual.map.znear, _NEAR * distance / task.model.stat.extent)
    spec.visual.global_.offwidth, spec.visual.global_.offheight = size
    model, _ = compile_spec(spec)
    if task.spec.file is not None:
        show_hidden_bodies(model)
    option = mujoco.MjvOption()
    option.sitegroup[:] = 0  # frames of reference, not things
    if not (model.geom_bodyid > 0).any():  # bodies of inertia alone
        option.flags[mujoco.mjtVisFlag.mjVIS_INERTIA] = 1
    return model, option


def apply_style(spec: mujoco.MjSpec, distance: float, *, own: bool) -> None:
    """Give a model the background and, where it is one of ours, floor and colours; in place.

    Args:
        spec: the model to be drawn.
        distance: of the camera, in metres: it sets how large the floor's squares are.
        own: whether the model is a built-in task's. A user's keeps its looks and gets a background where it
            has none.
    """
    skyboxes = [each for each in spec.textures if each.type == mujoco.mjtTexture.mjTEXTURE_SKYBOX]
    if own:
        for skybox in skyboxes:
            spec.delete(skybox)
    if own or not skyboxes:
        spec.add_texture(
            name=_SKY_NAME,
            type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
            builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
            rgb1=_SKY_ABOVE,
            rgb2=_SKY_BELOW,
            width=128,
            height=768,
        )
    if own:
        _lay_floor(spec, distance)
        for geom in spec.geoms:
            for colour, ours in _COLOURS.items():
                if geom.material in ("", "geom") and np.allclose(geom.rgba[:3], colour, atol=1e-3):
                    geom.material, geom.rgba[:3] = "", ours
                    break
    spec.visual.rgba.haze[:] = (*_SKY_BELOW, 1.0)
    spec.visual.quality.shadowsize, spec.visual.quality.offsamples = 2048, 4


def show_hidden_bodies(model: mujoco.MjModel) -> None:
    """Show all geoms of bodies that nothing would be drawn of: in hidden groups, or transparent; in place.

    Robots of collision geoms alone are meant. A model with skins shows these instead.
    """
    if model.nskin:
        return
    alpha = model.geom_rgba[:, 3].copy()
    material = model.geom_matid >= 0
    alpha[material] *= model.mat_rgba[model.geom_matid[material], 3]
    shown = np.unique(model.geom_bodyid[(model.geom_group < _DRAWN_GROUPS) & (alpha > 0)])
    hidden = (model.geom_bodyid > 0) & ~np.isin(model.geom_bodyid, shown)
    model.geom_group[hidden] = 0
    model.geom_matid[hidden & (alpha == 0)] = -1
    model.geom_rgba[hidden & (alpha == 0)] = (*_FRAME_GREY, 1.0)


def light_scene(scene: mujoco.MjvScene, lookat: np.ndarray, distance: float) -> None:
    """Replace the scene's lights by the sun, above what the camera looks at, and a headlight; in place."""
    direction = np.array(SUN.direction) / np.linalg.norm(SUN.direction)
    head, sun = scene.lights[0], scene.lights[1]
    for light in (head, sun):
        light.type = mujoco.mjtLightType.mjLIGHT_DIRECTIONAL.value
        light.ambient[:], light.specular[:] = 0.0, 0.0
    head.headlight, head.castshadow = 1, 0
    # All of it here: MuJoCo adds nothing of a light where its shadow falls.
    head.ambient[:], head.diffuse[:] = SUN.ambient, SUN.headlight
    forward = np.mean([scene.camera[eye].forward for eye in range(2)], axis=0)
    head.pos[:], head.dir[:] = scene.camera[0].pos, forward
    sun.headlight, sun.castshadow = 0, 1
    sun.diffuse[:], sun.specular[:] = SUN.diffuse, 0.15
    sun.pos[:], sun.dir[:] = lookat - 2.0 * distance * direction, direction
    scene.nlight = 2


def _lay_floor(spec: mujoco.MjSpec, distance: float) -> None:
    """Give the world's planes no end and squares of a round number of metres."""
    side = 2 * distance / _FLOOR_CELLS_IN_VIEW
    power = 10.0 ** math.floor(math.log10(side))
    square = power * min((1.0, 2.0, 5.0, 10.0), key=lambda step: abs(math.log(side / power / step)))
    spec.add_texture(
        name=_FLOOR_NAME,
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=_FLOOR_LIGHT,
        rgb2=_FLOOR_DARK,
        width=512,
        height=512,
    )
    material = spec.add_material(name=_FLOOR_NAME, texuniform=True, texrepeat=[0.5 / square] * 2)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = _FLOOR_NAME
    material.specular, material.shininess, material.reflectance = 0.0, 0.0, 0.0
    for geom in spec.worldbody.geoms:
        if geom.type == mujoco.mjtGeom.mjGEOM_PLANE:
            geom.material, geom.rgba[:] = _FLOOR_NAME, 1.0
            geom.size[:] = (0.0, 0.0, 1.0)
