"""The OpenGL context that pictures are drawn with: found without a display, EGL first, OSMesa else.

Nothing here needs MuJoCo until a context is opened: importing it fails, with an error of its own, where
MUJOCO_GL names what is not there. Who wants one line for the user calls `check_variable` before.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
import importlib.util
import os
import sys
import warnings
from functools import cache
from typing import Any

from thousandfold.ground.errors import UserError

_OFF = ("disable", "disabled", "off", "false", "0")
_OWN_CHOICE = ("glfw", "glx", "enable", "enabled", "on", "true", "1")
_REMEDY = (
    "install EGL (Debian, Ubuntu: apt install libegl1 libgl1-mesa-dri) or OSMesa (apt install libosmesa6), "
    "and set MUJOCO_GL=egl or osmesa, or leave it unset"
)
_DEVICE_PLATFORM = 0x313F  # EGL_PLATFORM_DEVICE_EXT


class NoOpenGLError(UserError, RuntimeError):
    """There is no OpenGL to draw with. The message is one line with the packages to install."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"drawing needs OpenGL, and {' '.join(reason.split())}: {_REMEDY}.")


class MujocoVariableError(UserError, RuntimeError):
    """MuJoCo cannot be imported, for what MUJOCO_GL says. The message is one line that says what to do."""


def choose_backend() -> str:
    """Return ``egl`` or ``osmesa``, or ``mujoco`` where MuJoCo's own choice of a window system is to serve.

    MUJOCO_GL decides where it is set. Elsewhere EGL is taken on Linux, with or without a display, and OSMesa
    where EGL has no device.

    Raises:
        NoOpenGLError: neither is there, or MUJOCO_GL switches OpenGL off or names nothing that exists.
    """
    asked = os.environ.get("MUJOCO_GL", "").lower().strip()
    if asked in _OFF:
        raise NoOpenGLError(f"MUJOCO_GL={asked} switches it off")
    if sys.platform != "linux":
        return "mujoco"
    if asked in _OWN_CHOICE:
        return "mujoco"
    if asked not in ("", "egl", "osmesa"):
        raise NoOpenGLError(f"MUJOCO_GL={asked} is not egl, osmesa or glfw")
    for backend, is_there in (("egl", _has_egl), ("osmesa", _has_osmesa)):
        if asked in ("", backend) and is_there():
            return backend
    raise NoOpenGLError(f"{asked or 'neither egl nor osmesa'} can{'not' if asked else ''} be opened here")


def check_variable() -> None:
    """Raise NoOpenGLError where MUJOCO_GL asks for what is not there: MuJoCo could not even be imported."""
    if os.environ.get("MUJOCO_GL", "").strip():
        choose_backend()


def check_import() -> None:
    """Import MuJoCo where MUJOCO_GL is set, which may keep it from being imported.

    Nothing else foretells it: some of what is not there MuJoCo passes over until something is drawn.

    Raises:
        MujocoVariableError: the import fails. That MuJoCo is not installed is no matter of this.
    """
    asked = os.environ.get("MUJOCO_GL", "").strip()
    if not asked or asked.lower() in _OFF or importlib.util.find_spec("mujoco") is None:
        return
    try:
        importlib.import_module("mujoco")
    except Exception as error:  # what is raised depends on the platform's binding
        raise MujocoVariableError(
            f"MUJOCO_GL={asked} keeps MuJoCo from being imported: {_REMEDY}."
        ) from error


def open_context(width: int, height: int) -> Any:
    """Return a current OpenGL context with a buffer of so many pixels; it has `make_current` and `free`.

    Raises:
        NoOpenGLError: none could be opened.
    """
    backend = choose_backend()
    try:
        # Chosen here and not by MUJOCO_GL, which MuJoCo reads once, as it is imported.
        module = importlib.import_module("mujoco" if backend == "mujoco" else f"mujoco.{backend}")
        with warnings.catch_warnings(record=True) as warned:  # how GLFW tells of a display that is not there
            warnings.simplefilter("always")
            context = module.GLContext(width, height)
            context.make_current()
    except Exception as error:  # what is raised depends on the platform's binding
        raise NoOpenGLError(f"none could be opened ({type(error).__name__}: {error})") from error
    if warned:
        raise NoOpenGLError(f"none could be opened ({warned[0].message})")
    return context


@cache
def _has_egl() -> bool:
    """Return whether EGL can initialise a device, as MuJoCo's context must: a library is not enough."""
    library = ctypes.util.find_library("EGL")
    if library is None:
        return False
    try:
        egl = ctypes.CDLL(library)
        egl.eglGetProcAddress.restype = ctypes.c_void_p
        query = _function(egl, b"eglQueryDevicesEXT", ctypes.c_uint, 3)
        display_of = _function(egl, b"eglGetPlatformDisplayEXT", ctypes.c_void_p, 3)
    except (OSError, AttributeError, TypeError):
        return False
    devices, count = (ctypes.c_void_p * 16)(), ctypes.c_int(0)
    query(ctypes.c_void_p(len(devices)), ctypes.byref(devices), ctypes.byref(count))
    egl.eglInitialize.argtypes = [ctypes.c_void_p] * 3
    for device in devices[: count.value]:
        display = display_of(ctypes.c_void_p(_DEVICE_PLATFORM), ctypes.c_void_p(device), None)
        if display and egl.eglInitialize(display, None, None):
            return True
    return False


def _function(egl: Any, name: bytes, result: Any, arguments: int) -> Any:
    """Return an extension's function; every argument is passed as wide as a pointer."""
    return ctypes.CFUNCTYPE(result, *[ctypes.c_void_p] * arguments)(egl.eglGetProcAddress(name))


@cache
def _has_osmesa() -> bool:
    """Return whether OSMesa's library can be loaded: it needs no device."""
    library = ctypes.util.find_library("OSMesa")
    try:
        return library is not None and bool(ctypes.CDLL(library))
    except OSError:
        return False
