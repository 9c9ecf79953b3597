"""The window: what is shown in it, on a stand-in for MuJoCo's viewer, and what is said without a screen."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import glfw
import mujoco
import mujoco.viewer
import numpy as np
import pytest

from tests.envs.user_tasks.user_pages import ARM, PAGE, STATEFUL_ARM, write
from thousandfold.envs.compiled_task import CompiledTask
from thousandfold.envs.pictures import live_viewer
from thousandfold.envs.pictures.live_viewer import Caption, LiveViewer, NoScreenError
from thousandfold.envs.registry import compile_task


class Handle:
    """What `mujoco.viewer.launch_passive` returns, as far as it is used."""

    def __init__(
        self, model: mujoco.MjModel, data: mujoco.MjData, key_callback: Callable[[int], None]
    ) -> None:
        self.model, self.data, self.press = model, data, key_callback
        self.cam, self.user_scn = mujoco.MjvCamera(), mujoco.MjvScene(model, 100)
        self.perturb, self.texts = mujoco.MjvPerturb(), list[Any]()
        self.running, self.syncs = True, 0

    def lock(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def sync(self) -> None:
        self.syncs += 1
        if self.perturb.active:  # as the window does where the mouse moves what is selected
            mujoco.mjv_applyPerturbPose(self.model, self.data, self.perturb, 0)

    def set_texts(self, texts: list[Any]) -> None:
        self.texts.append(texts)

    def is_running(self) -> bool:
        return self.running

    def close(self) -> None:
        self.running = False


@pytest.fixture
def handles(monkeypatch: pytest.MonkeyPatch) -> list[Handle]:
    found: list[Handle] = []

    def launch(model: Any, data: Any, *, key_callback: Any, **_: bool) -> Handle:
        found.append(Handle(model, data, key_callback))
        return found[-1]

    monkeypatch.setattr(mujoco.viewer, "launch_passive", launch)
    monkeypatch.setattr(live_viewer, "_require_window", lambda: None)
    return found


@pytest.fixture
def task() -> CompiledTask:
    return compile_task("point_u_maze")


def test_bodies_that_are_moved_from_outside_stand_where_episodes_start(
    handles: list[Handle], tmp_path: Path
) -> None:
    task = compile_task(str(write(tmp_path, model=STATEFUL_ARM)))
    with LiveViewer(task, lambda key: None) as viewer:
        viewer.show(np.zeros(2), np.zeros(3), reached=False)
        data = handles[0].data
        assert data.body("marker").xpos == pytest.approx([0.3, 0.2, 0.1])
        assert data.body("marker").xquat == pytest.approx([0, 1, 0, 0])
        assert data.act == pytest.approx([0.25])


def test_the_state_and_the_goal_are_shown(handles: list[Handle], task: CompiledTask) -> None:
    with LiveViewer(task, lambda key: None) as viewer:
        handle = handles[0]
        goal = np.array([1.5, -0.5], np.float32)
        for reached in (False, True):
            viewer.show(np.array([0.25, 0.75]), goal, reached=reached)
        assert handle.data.qpos.tolist() == [0.25, 0.75] and handle.syncs == 2
        core, region = handle.user_scn.geoms[0], handle.user_scn.geoms[1]
        assert handle.user_scn.ngeom == 2  # of this goal alone, not of the one before too
        assert np.allclose(region.pos[:2], goal) and np.allclose(core.pos, region.pos)
        assert region.size[0] == pytest.approx(task.spec.success[0].radius)
        assert handle.model is not task.model  # the window's panels can change it
    assert not handles[0].running


def test_nothing_is_shown_in_a_closed_window(handles: list[Handle], task: CompiledTask) -> None:
    viewer = LiveViewer(task, lambda key: None)
    assert viewer.is_open
    handles[0].running = False
    assert not viewer.is_open
    viewer.show(np.array([0.5, 0.5]), np.zeros(2), reached=False)
    assert handles[0].syncs == 0


def test_the_camera_follows_what_the_task_says(handles: list[Handle]) -> None:
    for name, kind in (("point_u_maze", "FREE"), ("ant", "TRACKING")):
        task = compile_task(name)
        LiveViewer(task, lambda key: None)
        camera = handles[-1].cam
        assert camera.type == getattr(mujoco.mjtCamera, f"mjCAMERA_{kind}").value
        assert (camera.azimuth, camera.elevation) == (task.spec.scene.azimuth, task.spec.scene.elevation)
    assert camera.trackbodyid == task.model.body("torso").id


def test_keys_arrive_as_letters(handles: list[Handle], task: CompiledTask) -> None:
    keys: list[str] = []
    LiveViewer(task, keys.append)
    for code in (glfw.KEY_N, glfw.KEY_UNKNOWN, glfw.KEY_SPACE, glfw.KEY_LEFT, glfw.KEY_PAGE_DOWN):
        handles[0].press(code)
    assert keys == ["N", "", " ", "LEFT", "PAGE_DOWN"]


def test_the_mouse_drags_the_goal_in_the_window_alone(handles: list[Handle], tmp_path: Path) -> None:
    for task in (compile_task("arm_reach"), compile_task(str(write(tmp_path, model=STATEFUL_ARM)))):
        with LiveViewer(task, lambda key: None, draggable=True) as viewer:
            handle, goal = handles[-1], np.array([0.25, 0.0, 0.2])
            qpos = task.model.qpos0
            assert viewer.show(qpos, goal, reached=False) is None
            assert handle.model.nbody == task.model.nbody + 1 and handle.model.nq == task.model.nq
            body = handle.model.nbody - 1
            assert handle.perturb.select == body, "Ctrl and the right button move it, without a double click"
            assert handle.data.xpos[body] == pytest.approx(goal)
            handle.perturb.active = mujoco.mjtPertBit.mjPERT_TRANSLATE.value
            handle.perturb.refpos[:], handle.perturb.refquat[:] = [0.3, 0.1, 0.2], [1, 0, 0, 0]
            assert viewer.show(qpos, goal, reached=False) == pytest.approx([0.3, 0.1, 0.2])
            handle.perturb.active = 0
            assert viewer.show(qpos, goal + 0.01, reached=False) is None
            assert handle.data.xpos[body] == pytest.approx(goal + 0.01)
    assert handles[-1].data.body("marker").xpos == pytest.approx([0.3, 0.2, 0.1])
    assert handles[-1].data.act == pytest.approx([0.25])


def test_captions_are_written_where_they_change(handles: list[Handle], task: CompiledTask) -> None:
    with LiveViewer(task, lambda key: None) as viewer:
        for right in ("1 m", "1 m", "2 m"):
            viewer.show(np.zeros(2), np.zeros(2), reached=False, captions=[Caption("TOPLEFT", "away", right)])
        viewer.show(np.zeros(2), np.zeros(2), reached=False)
    texts = [texts[0] for texts in handles[0].texts]
    assert [text[2:] for text in texts] == [("away", "1 m"), ("away", "2 m")]
    assert texts[0][1] == mujoco.mjtGridPos.mjGRID_TOPLEFT


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have their own way to find a screen")
def test_why_there_is_no_window(task: CompiledTask, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(NoScreenError, match="DISPLAY and WAYLAND_DISPLAY are not set"):
        LiveViewer(task, lambda key: None)
    monkeypatch.setenv("DISPLAY", "localhost:99")
    with pytest.raises(NoScreenError, match="the screen gives no window"):
        LiveViewer(task, lambda key: None)


def test_a_users_robot_of_hidden_geoms_is_shown(handles: list[Handle], tmp_path: Path) -> None:
    users = compile_task(str(write(tmp_path, PAGE, ARM.replace("<geom ", '<geom group="3" '))))
    with LiveViewer(users, lambda _: None):
        assert handles[0].model.geom_group.tolist() == [0, 0]
    assert users.model.geom_group.tolist() == [3, 3], "what is simulated stays"
