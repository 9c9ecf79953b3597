"""What the system is asked for: granted, refused in words, and taken back."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from thousandfold.stages.benchmark import host
from thousandfold.stages.benchmark.host import HostRequest, describe_realtime, granted_by_host, refusals

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's scheduler calls")


def raising(error: Exception) -> Any:
    def call(*arguments: object) -> None:
        raise error

    return call


def test_nothing_is_asked_of_the_system_unless_the_settings_do():
    with granted_by_host(HostRequest()) as granted:
        assert {name: granted[name] for name in ("core", "lock_memory", "sched_fifo")} == {
            "core": "off",
            "lock_memory": "off",
            "sched_fifo": "off",
        }


@linux
def test_a_core_is_taken_and_given_back():
    before = os.sched_getaffinity(0)
    core = max(before)
    with pytest.raises(KeyError), granted_by_host(HostRequest(core=core)) as granted:
        assert granted["core"] == "on" and os.sched_getaffinity(0) == {core}
        raise KeyError
    assert os.sched_getaffinity(0) == before


@linux
def test_a_core_that_is_not_there_is_refused_with_those_that_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 5})
    monkeypatch.setattr(os, "sched_setaffinity", raising(OSError(errno.EINVAL, "Invalid argument")))
    with granted_by_host(HostRequest(core=900)) as granted:
        pass
    assert granted["core"] == "refused: no core 900 for this process, which may use 0-2,5"


@linux
def test_the_scheduler_is_changed_for_the_loop_alone(monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(os, "sched_setscheduler", lambda pid, policy, param: calls.append((policy, param)))
    with granted_by_host(HostRequest(fifo_priority=80)) as granted:
        assert granted["sched_fifo"] == "on"
    (policy, param), (after, _) = calls
    assert policy == os.SCHED_FIFO | os.SCHED_RESET_ON_FORK and param.sched_priority == 80
    assert after == os.sched_getscheduler(0)


@linux
def test_a_refusal_says_what_is_needed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_setscheduler", raising(PermissionError(errno.EPERM, "no")))
    with granted_by_host(HostRequest(fifo_priority=80)) as granted:
        pass
    assert "SCHED_FIFO: refused: needs CAP_SYS_NICE or an rtprio limit (ulimit -r)" in refusals(granted)


@linux
@pytest.mark.parametrize("returned", [0, -1])
def test_memory_is_locked_and_unlocked_or_refused(monkeypatch: pytest.MonkeyPatch, returned: int):
    calls = []

    class Library:
        def mlockall(self, flags: int) -> int:
            calls.append(flags)
            ctypes.set_errno(errno.ENOMEM)
            return returned

        def munlockall(self) -> None:
            calls.append("unlocked")

        def prctl(self, option: int, *values: Any) -> int:
            return 50_000 if option == 30 else 0

    monkeypatch.setattr(host.ctypes, "CDLL", lambda *arguments, **names: Library())
    with granted_by_host(HostRequest(lock_memory=True)) as granted:
        pass
    if returned == 0:
        assert granted["lock_memory"] == "on" and calls == [3, "unlocked"]
    else:
        assert calls == [3] and granted["lock_memory"].startswith(
            "refused: Cannot allocate memory; needs CAP_"
        )


@linux
def test_sleeps_end_on_time_within_the_loop_alone():
    def slack_ns() -> int:
        return ctypes.CDLL(None).prctl(30, 0, 0, 0, 0)

    before = slack_ns()
    with granted_by_host(HostRequest()) as granted:
        assert granted["timer_slack"] == "on" and slack_ns() == 1
    assert slack_ns() == before


def test_a_system_without_these_calls_says_so(monkeypatch: pytest.MonkeyPatch):
    for name in ("sched_setscheduler", "sched_setaffinity"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(host.sys, "platform", "darwin")
    with granted_by_host(HostRequest(fifo_priority=1, lock_memory=True, core=0)) as granted:
        pass
    assert len(refusals(granted)) == 4
    assert all("needs Linux" in line for line in refusals(granted))


def test_the_machine_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "cpu0" / "cpufreq").mkdir(parents=True)
    (tmp_path / "cpu0" / "cpufreq" / "scaling_governor").write_text("performance\n")
    monkeypatch.setattr(host, "_CPU", tmp_path)
    described = describe_realtime()
    assert described["governor"] == "performance" and described["isolated_cores"] is None
    assert isinstance(described["preempt_rt"], bool)
