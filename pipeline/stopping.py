"""Ctrl-C, SIGTERM and SIGHUP: a stage saves and stops, and is closed without being cut off again."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from thousandfold.ground.errors import StoppedByUser
from thousandfold.pipeline.distributed import Ranks

_HANG_UP = getattr(signal, "SIGHUP", None)
_CLOSING_S = 5.0
"""How long after an interruption further signals are left alone, so that artifacts and records are closed."""


@dataclass
class StopRequest:
    """Set by the first Ctrl-C; a stage that can save its state asks for it and stops."""

    requested: bool = False


class _Interruptions:
    """Turns a signal into KeyboardInterrupt, unless the last one is still being dealt with."""

    def __init__(self) -> None:
        self._closing_since = -float("inf")

    def begin_closing(self) -> None:
        """Leave signals alone for a while: the work has ended, and is being closed."""
        self._closing_since = time.monotonic()

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt; a handler of `signal`."""
        if time.monotonic() - self._closing_since > _CLOSING_S:
            self.begin_closing()
            raise KeyboardInterrupt

    def raise_again(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Interrupt once more where a callback has swallowed the KeyboardInterrupt; a hook of `sys`."""
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(unraisable)
            return
        self._closing_since = -float("inf")
        # Once the callback has returned. A true signal: it wakes the main thread from whatever it waits for.
        main = threading.main_thread().ident
        again = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT))
        again.daemon = True
        again.start()


_interruptions: _Interruptions | None = None
"""Those of the command that runs; None outside `interruptible`."""


def stop_signals() -> list[signal.Signals]:
    """Return what asks a process to stop. A hang-up that is ignored, as nohup does, stays ignored."""
    signals = [signal.SIGINT, signal.SIGTERM]
    if _HANG_UP is not None and signal.getsignal(_HANG_UP) is not signal.SIG_IGN:
        signals.append(_HANG_UP)
    return signals


@contextlib.contextmanager
def interruptible(ranks: Ranks) -> Iterator[None]:
    """Let SIGTERM and SIGHUP interrupt a command as Ctrl-C does, and none of them what closes it afterwards.

    Of several ranks none is interrupted; see `stop_on_interrupt`.
    """
    global _interruptions
    if ranks.size > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    _interruptions = _Interruptions()
    hook, sys.unraisablehook = sys.unraisablehook, _interruptions.raise_again
    try:
        with _handled_by(_interruptions.handle):
            yield
    finally:
        _interruptions, sys.unraisablehook = None, hook


@contextlib.contextmanager
def stop_on_interrupt(stop: StopRequest, ranks: Ranks | None = None) -> Iterator[None]:
    """Turn the first Ctrl-C, SIGTERM or SIGHUP into a request; a second one interrupts at once.

    Of several ranks none is interrupted and none says a word: torchrun passes on a Ctrl-C that they have had
    already, sends SIGTERM when a rank dies, and kills by itself whoever takes too long.
    """
    together = ranks is not None and ranks.size > 1
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        repeated, stop.requested = stop.requested, True
        # A shell that goes passes on the hang-up that its terminal has sent to all already.
        if together or (repeated and number == _HANG_UP):
            return
        if repeated:
            if _interruptions is None:
                raise KeyboardInterrupt
            _interruptions.handle(number, frame)
            return
        # Not print: a handler may interrupt a print that holds the stream's lock.
        with contextlib.suppress(OSError):  # the terminal is gone
            os.write(2, b"Stopping after this round, to save; Ctrl-C again stops at once.\n")

    with _handled_by(handle):
        try:
            yield
        except (StoppedByUser, KeyboardInterrupt):
            if _interruptions is not None:
                _interruptions.begin_closing()
            raise


@contextlib.contextmanager
def _handled_by(handler: signal._HANDLER) -> Iterator[None]:
    """Have the stop signals handled in the `with` block, and as before after it."""
    previous = {number: signal.signal(number, handler) for number in stop_signals()}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
