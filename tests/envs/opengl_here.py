"""Whether pictures can be drawn here, for the tests that draw them."""

from __future__ import annotations

import pytest

from thousandfold.envs.pictures.opengl import NoOpenGLError, open_context


def why_not() -> str:
    """Return why no picture can be drawn here; nothing where one can."""
    try:
        open_context(16, 16).free()
    except NoOpenGLError as error:
        return str(error)
    return ""


REASON = why_not()
needs_opengl = pytest.mark.skipif(bool(REASON), reason=REASON or "OpenGL is there")
