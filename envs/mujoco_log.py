"""Keep MuJoCo's own log quiet while a simulator runs.

MuJoCo prints a warning and appends it to MUJOCO_LOG.TXT in the current folder whenever a world diverges. The
simulators count these events themselves. The switch is MuJoCo's log configuration, plain data that its
C code reads: no Python function is ever called from the threads of `mujoco.batch`.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import mujoco

_lock = threading.Lock()
_inside = 0
_saved: mujoco.MjLogConfig | None = None


@contextmanager
def quiet_mujoco() -> Iterator[None]:
    """Send MuJoCo's log nowhere inside the block, and put its configuration back after it.

    The configuration belongs to the process, so blocks may nest and run in several threads: the first to
    enter saves it, the last to leave restores it. About 1 µs.
    """
    global _inside, _saved
    with _lock:
        if _inside == 0:
            _saved = mujoco.MjLogConfig.get()
            silent = mujoco.MjLogConfig.get()
            silent.logto_console = silent.logto_file = False
            silent.set()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _saved is not None:
                _saved.set()
                _saved = None


def compile_spec(spec: mujoco.MjSpec) -> tuple[mujoco.MjModel, list[str]]:
    """Return the compiled model, and what MuJoCo warns of it, each on one line and not printed.

    Raises:
        ValueError: MuJoCo refuses the model.
    """
    with quiet_mujoco(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = spec.compile()
    return model, [" ".join(str(each.message).split()) for each in caught]
