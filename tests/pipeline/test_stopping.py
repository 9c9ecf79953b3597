"""What Ctrl-C, SIGTERM and SIGHUP do to a stage and to a command."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from thousandfold.ground.errors import StoppedByUser
from thousandfold.pipeline import stopping
from thousandfold.pipeline.distributed import Ranks
from thousandfold.pipeline.stopping import StopRequest, interruptible, stop_on_interrupt

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Begin with the handlers of a terminal, and put back those of the test run."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS[1:]:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def handlers_now() -> list[object]:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("again", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_interrupts(number: signal.Signals, again: signal.Signals):
    before, stop = handlers_now(), StopRequest()
    with pytest.raises(KeyboardInterrupt), stop_on_interrupt(stop):
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
        signal.raise_signal(again)
        raise AssertionError("the second signal was ignored")
    assert handlers_now() == before


def test_a_hang_up_that_a_shell_passes_on_does_not_interrupt():
    stop = StopRequest()
    with stop_on_interrupt(stop):
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
    assert stop.requested


def test_a_hang_up_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopRequest()
    with interruptible(Ranks()), stop_on_interrupt(stop):
        signal.raise_signal(signal.SIGHUP)
    assert not stop.requested and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_terminal_that_is_gone_does_not_keep_a_stage_from_stopping(monkeypatch: pytest.MonkeyPatch):
    def gone(*_: object) -> int:
        raise OSError(5, "Input/output error")

    stop = StopRequest()
    with stop_on_interrupt(stop):
        monkeypatch.setattr(os, "write", gone)
        signal.raise_signal(signal.SIGHUP)
    assert stop.requested


def test_the_handlers_are_put_back():
    before = handlers_now()
    for context in (stop_on_interrupt(StopRequest()), interruptible(Ranks())):
        with context:
            assert not set(handlers_now()) & set(before)
        assert handlers_now() == before


def test_another_thread_runs_without_handlers():
    before, inside = handlers_now(), []

    def work() -> None:
        with interruptible(Ranks()), stop_on_interrupt(StopRequest()):
            inside.append(handlers_now())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


def test_signals_that_torchrun_repeats_are_one_request(capfd: pytest.CaptureFixture[str]):
    stop = StopRequest()
    with interruptible(Ranks(1, 2)), stop_on_interrupt(stop, Ranks(1, 2)):
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
    assert stop.requested and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_command_is_interrupted_once_and_closed_in_peace(number: signal.Signals):
    closed = False
    with pytest.raises(KeyboardInterrupt), interruptible(Ranks()):
        try:
            signal.raise_signal(number)
        finally:
            for again in SIGNALS:
                signal.raise_signal(again)
            closed = True
    assert closed


def test_a_stage_that_was_stopped_is_closed_in_peace():
    closed = False
    with pytest.raises(StoppedByUser), interruptible(Ranks()):
        try:
            with stop_on_interrupt(StopRequest()):
                raise StoppedByUser("saved")
        finally:
            signal.raise_signal(signal.SIGINT)
            closed = True
    assert closed


def test_a_closing_that_hangs_can_be_interrupted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stopping, "_CLOSING_S", -1.0)
    with pytest.raises(KeyboardInterrupt), interruptible(Ranks()):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the second signal was ignored") from None


def test_an_interruption_that_a_callback_swallows_comes_again(capfd: pytest.CaptureFixture[str]):
    class Dropped:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt), interruptible(Ranks()):
        dropped = Dropped()
        del dropped
        time.sleep(30)
    assert capfd.readouterr() == ("", "")
