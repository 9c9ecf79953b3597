"""A window that shows one world of a task while it runs, with the commanded goal drawn in."""

from __future__ import annotations

import copy
import os
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import mujoco
import numpy as np

from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.mujoco_log import compile_spec
from thousandfold.envs.pictures.scene_rendering import (
    Shape,
    add_goal,
    goal_marker,
    scene_camera,
    show_hidden_bodies,
)
from thousandfold.ground.errors import UserError

_SCREENS = ("DISPLAY", "WAYLAND_DISPLAY")
_CLOSING_S = 5.0
_KEYS = {  # GLFW's codes of keys without a letter
    257: "ENTER", 262: "RIGHT", 263: "LEFT", 264: "DOWN", 265: "UP", 266: "PAGE_UP", 267: "PAGE_DOWN",
}  # fmt: skip


class NoScreenError(UserError, RuntimeError):
    """No window can be opened. The message is a reason that completes "no viewer: ..."."""


class Caption(NamedTuple):
    """Lines that are written over the world, in two columns.

    `corner` is a name of `mujoco.mjtGridPos`, such as ``TOPLEFT``.
    """

    corner: str
    left: str
    right: str


class LiveViewer:
    """MuJoCo's window with a world of ours in it. Use it as a context manager, or `close` it.

    Args:
        task: the compiled task; its `scene` says where the camera stands at first.
        on_key: called from the window's own thread with each key that was pressed, letters as capitals, and
            ``ENTER``, ``UP``, ``PAGE_UP`` and the like.
        distribution: the episode distribution whose start gives what a position leaves open, such as where
            bodies that are moved from outside are.
        draggable: whether Ctrl and the right mouse button move the goal, where it is a position. What is
            dragged is a body of the window's own model, and of no other.

    Raises:
        NoScreenError: there is no screen, or it gives no window with OpenGL.
    """

    def __init__(
        self,
        task: CompiledTask,
        on_key: Callable[[str], None],
        *,
        distribution: str = "evaluation",
        draggable: bool = False,
    ) -> None:
        _require_window()
        import mujoco.viewer

        self.task = task
        # A copy, because the window's panels can change a model.
        self._model, self._data = copy.copy(task.model), task.start_data(distribution)
        self._dragged_body: int | None = None
        self._captions: Sequence[Caption] = ()
        if draggable and goal_marker(task, np.zeros(task.goal_dim)) is not None:
            self._add_dragged_body()
        if task.spec.file is not None:
            show_hidden_bodies(self._model)
        others = set(threading.enumerate())
        try:
            self._handle = mujoco.viewer.launch_passive(
                self._model,
                self._data,
                key_callback=lambda code: on_key(_KEYS.get(code) or (chr(code).upper() if code > 0 else "")),
                show_left_ui=False,
                show_right_ui=False,
            )
        except RuntimeError as error:  # on macOS, outside mjpython
            raise NoScreenError(" ".join(str(error).split())) from error
        self._threads = set(threading.enumerate()) - others
        self._place_camera()

    def __enter__(self) -> LiveViewer:
        """Return the viewer itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the window."""
        self.close()

    @property
    def is_open(self) -> bool:
        """False once the user has closed the window."""
        return self._handle.is_running()

    def close(self) -> None:
        """Close the window; nothing can be shown afterwards."""
        self._handle.close()
        # The window's thread draws on for a moment; the X server would end a process that exits under it.
        for thread in self._threads:
            thread.join(_CLOSING_S)

    def show(
        self,
        qpos: np.ndarray,
        goal: np.ndarray,
        *,
        reached: bool,
        shape: Shape | None = None,
        captions: Sequence[Caption] = (),
    ) -> np.ndarray | None:
        """Show a state; does nothing once the window is closed.

        Args:
            qpos: (nq,), positions of the joints.
            goal: (goal_dim,), drawn where it is a position.
            reached: whether it counts as reached, which gives it another colour.
            shape: of a world whose model varies; None: as it was last.
            captions: what to write over it; none: as it was last.

        Returns:
            Where the goal is being dragged to, (3,); None: it is not.
        """
        if not self.is_open:
            return None
        marker, pointer = goal_marker(self.task, goal), self._handle.perturb
        with self._handle.lock():
            if self._dragged_body is not None and marker is not None and not pointer.active:
                self._data.mocap_pos[-1] = marker.position
                pointer.select = self._dragged_body  # what the mouse moves, without a double click before
            for name, values in (shape or {}).items():
                getattr(self._model, name)[:] = values
            self._data.qpos[:] = qpos
            mujoco.mj_forward(self._model, self._data)
            scene = self._handle.user_scn
            if scene is not None:
                scene.ngeom = 0
                if marker is not None:
                    add_goal(scene, marker, reached=reached)
        if captions and captions != self._captions:  # taken with the next frame, which is waited for
            self._captions = captions
            font = mujoco.mjtFontScale.mjFONTSCALE_100
            texts: list[tuple[int | None, int | None, str | None, str | None]] = [
                (font, getattr(mujoco.mjtGridPos, f"mjGRID_{each.corner}"), each.left, each.right)
                for each in captions
            ]
            self._handle.set_texts(texts)
        self._handle.sync()
        is_dragged = pointer.active and pointer.select == self._dragged_body
        return self._data.mocap_pos[-1].copy() if is_dragged else None

    def _add_dragged_body(self) -> None:
        """Give the window's model a body without mass or looks, the last one, that the mouse moves."""
        spec, start = self.task.spec.build_spec(), self._data
        for key in spec.keys:  # of the bodies that are moved from outside, they know one less
            spec.delete(key)
        spec.worldbody.add_body(mocap=True)
        self._model, _ = compile_spec(spec)
        self._data, self._dragged_body = mujoco.MjData(self._model), self._model.nbody - 1
        self._data.qpos[:], self._data.act[:] = start.qpos, start.act
        self._data.mocap_pos[:-1], self._data.mocap_quat[:-1] = start.mocap_pos, start.mocap_quat

    def _place_camera(self) -> None:
        camera, follow = scene_camera(self.task)
        with self._handle.lock():
            ours = self._handle.cam
            ours.azimuth, ours.elevation = camera.azimuth, camera.elevation
            ours.distance, ours.lookat[:] = camera.distance, camera.lookat
            if follow is not None:
                ours.type, ours.trackbodyid = mujoco.mjtCamera.mjCAMERA_TRACKING.value, follow


def _require_window() -> None:
    """Open a hidden window and close it again: MuJoCo's viewer waits for ever for one that never comes."""
    if sys.platform == "linux" and not any(os.environ.get(name) for name in _SCREENS):
        raise NoScreenError(f"there is no screen here ({' and '.join(_SCREENS)} are not set)")
    if sys.platform == "darwin":
        return  # its windows belong to the main thread, which `mjpython` keeps; MuJoCo says so itself
    import glfw

    with warnings.catch_warnings(record=True) as warned:  # how GLFW says what is wrong
        warnings.simplefilter("always")
        window = None
        if glfw.init():
            glfw.window_hint(glfw.VISIBLE, glfw.FALSE)
            window = glfw.create_window(64, 64, "", None, None)
            glfw.terminate()
    if window is None:
        reason = str(warned[0].message).split("b'")[-1].rstrip("'") if warned else "GLFW gives no reason"
        raise NoScreenError(f"the screen gives no window ({reason})")
