"""Which OpenGL is taken, and the one line that says what to install where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from thousandfold.envs.pictures import opengl
from thousandfold.envs.pictures.opengl import NoOpenGLError, check_variable, choose_backend, open_context

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = "apt install libegl1 libgl1-mesa-dri"


def pretend(monkeypatch: pytest.MonkeyPatch, variable: str | None, *, egl: bool, osmesa: bool) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(opengl, "_has_egl", lambda: egl)
    monkeypatch.setattr(opengl, "_has_osmesa", lambda: osmesa)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    if variable is not None:
        monkeypatch.setenv("MUJOCO_GL", variable)


@pytest.mark.parametrize(
    ("variable", "egl", "osmesa", "backend"),
    [
        (None, True, True, "egl"),
        ("", True, True, "egl"),
        (None, False, True, "osmesa"),
        ("osmesa", True, True, "osmesa"),
        (" EGL ", True, True, "egl"),
        ("glfw", False, False, "mujoco"),
    ],
)
def test_egl_comes_first_and_the_variable_decides(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, egl: bool, osmesa: bool, backend: str
) -> None:
    pretend(monkeypatch, variable, egl=egl, osmesa=osmesa)
    assert choose_backend() == backend


@pytest.mark.parametrize(
    ("variable", "reason"),
    [
        (None, "neither egl nor osmesa can be opened here"),
        ("egl", "egl cannot be opened here"),
        ("osmesa", "osmesa cannot be opened here"),
        ("off", "MUJOCO_GL=off switches it off"),
        ("nonsense", "MUJOCO_GL=nonsense is not egl, osmesa or glfw"),
    ],
)
def test_what_is_missing_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, reason: str
) -> None:
    pretend(monkeypatch, variable, egl=False, osmesa=False)
    with pytest.raises(NoOpenGLError) as caught:
        open_context(16, 16)
    message = str(caught.value)
    assert reason in message and PACKAGES in message and "libosmesa6" in message
    assert "\n" not in message


def test_the_variable_alone_is_checked_before_mujoco_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, None, egl=False, osmesa=False)
    check_variable()  # what is chosen for the user is looked for when it is needed
    pretend(monkeypatch, "egl", egl=False, osmesa=False)
    with pytest.raises(NoOpenGLError, match="egl cannot be opened"):
        check_variable()


def test_a_binding_that_fails_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, None, egl=True, osmesa=False)

    def fail(name: str) -> None:
        raise AttributeError("'NoneType' object has\nno attribute 'eglQueryString'")

    monkeypatch.setattr(opengl.importlib, "import_module", fail)
    with pytest.raises(NoOpenGLError, match=r"none could be opened \(AttributeError: .* has no attribute"):
        open_context(16, 16)


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("nonsense", "MUJOCO_GL=nonsense keeps MuJoCo from being imported"),
        ("off", "drawing needs OpenGL, and MUJOCO_GL=off switches it off"),
    ],
)
def test_the_command_line_refuses_without_a_traceback(tmp_path: Path, variable: str, said: str) -> None:
    outcome = subprocess.run(
        [sys.executable, "-m", "thousandfold.pipeline", "--workspace", str(tmp_path), "render"],
        cwd=ROOT,
        env={**os.environ, "MUJOCO_GL": variable},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert outcome.returncode == 2
    (line,) = outcome.stderr.splitlines()
    assert line.startswith(f"Error: {said}") and PACKAGES in line
    assert not list(tmp_path.iterdir())
