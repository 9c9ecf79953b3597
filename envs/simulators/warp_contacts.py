"""Contacts as MuJoCo has them, where MuJoCo Warp 4.0 has others.

Capsules on planes: a pyramidal friction cone holds less between its edges than along them, so that it
matters which way the tangents of a contact point. MuJoCo lays the first one along the capsule; MuJoCo Warp
does so only while the capsule stands less than 60 degrees steep.

Boxes on boxes: MuJoCo separates them along axes. MuJoCo Warp takes its general search for convex shapes,
which now and then finds one point where two or three hold, unless the model switches that search off.
"""

# Warp's stubs know less of vectors in kernels than its compiler does.
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false

from __future__ import annotations

from typing import Any

import mujoco
import warp as wp
from mujoco_warp import DisableBit

PLANE = wp.constant(int(mujoco.mjtGeom.mjGEOM_PLANE))
CAPSULE = wp.constant(int(mujoco.mjtGeom.mjGEOM_CAPSULE))
_SHORTEST = wp.constant(1e-6)  # of an upright capsule nothing lies in the plane: any tangent will do


def match_contacts(task_model: mujoco.MjModel, model: Any) -> None:
    """Let MuJoCo Warp find the contacts that MuJoCo finds, and turn them the same way.

    Args:
        task_model: the compiled model.
        model: MuJoCo Warp's own of it, which is changed.
    """
    model.opt.disableflags |= DisableBit.NATIVECCD  # in MuJoCo Warp it stands for boxes alone
    kinds = set(task_model.geom_type.tolist())
    if {int(mujoco.mjtGeom.mjGEOM_PLANE), int(mujoco.mjtGeom.mjGEOM_CAPSULE)} <= kinds:
        model.callback.contactfilter = _align_frames


def _align_frames(model: Any, data: Any) -> None:
    wp.launch(
        _align_frame,
        dim=data.naconmax,
        inputs=[
            model.geom_type,
            data.geom_xmat,
            data.nacon,
            data.contact.geom,
            data.contact.worldid,
        ],
        outputs=[data.contact.frame],
    )


@wp.kernel(enable_backward=False)
def _align_frame(
    geom_type: wp.array[int],
    geom_xmat: wp.array2d[wp.mat33],
    num_contacts: wp.array[int],
    contact_geom: wp.array[wp.vec2i],
    contact_world: wp.array[int],
    contact_frame: wp.array[wp.mat33],
):
    contact = wp.tid()
    if contact >= num_contacts[0]:
        return
    geoms = contact_geom[contact]
    if geom_type[geoms[0]] != PLANE or geom_type[geoms[1]] != CAPSULE:
        return
    frame, turned = contact_frame[contact], geom_xmat[contact_world[contact], geoms[1]]
    normal = wp.vec3(frame[0, 0], frame[0, 1], frame[0, 2])
    axis = wp.vec3(turned[0, 2], turned[1, 2], turned[2, 2])
    along = axis - normal * wp.dot(normal, axis)
    if wp.length(along) < _SHORTEST:
        return
    first = wp.normalize(along)
    second = wp.cross(normal, first)
    contact_frame[contact] = wp.matrix_from_rows(normal, first, second)
