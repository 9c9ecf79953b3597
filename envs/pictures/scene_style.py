"""How pictures of tasks look: a light background, a quiet floor, one sun, and robots in blue."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mujoco
import numpy as np

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
_DRAWN_GROUPS = 3  # 0 to 2, as MuJoCo draws them where nobody asks for others
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
        _colour_robot(spec)
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
    square = _round_number(2 * distance / _FLOOR_CELLS_IN_VIEW)
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


def _colour_robot(spec: mujoco.MjSpec) -> None:
    """Turn the colours of Gymnasium's models, and textures of these colours, into those of the others."""
    for geom in spec.geoms:
        for colour, ours in _COLOURS.items():
            if geom.material in ("", "geom") and np.allclose(geom.rgba[:3], colour, atol=1e-3):
                geom.material, geom.rgba[:3] = "", ours
                break


def _round_number(value: float) -> float:
    """Return the number of 1, 2 or 5 times a power of ten that is nearest to `value` as a ratio."""
    power = 10.0 ** math.floor(math.log10(value))
    steps = (1.0, 2.0, 5.0, 10.0)
    return power * min(steps, key=lambda step: abs(math.log(value / power / step)))
