from __future__ import annotations

import threading

import mujoco
import pytest

from thousandfold.envs.mujoco_log import quiet_mujoco


def logs() -> bool:
    configuration = mujoco.MjLogConfig.get()
    return configuration.logto_console and configuration.logto_file


def test_quiet_inside_and_restored_after_even_an_exception() -> None:
    assert logs()
    with pytest.raises(KeyError), quiet_mujoco():
        with quiet_mujoco():
            assert not logs()
        assert not logs()
        raise KeyError
    assert logs()


def test_a_users_own_configuration_comes_back() -> None:
    before = mujoco.MjLogConfig.get()
    changed = mujoco.MjLogConfig.get()
    changed.logto_console = False
    changed.set()
    try:
        with quiet_mujoco():
            pass
        after = mujoco.MjLogConfig.get()
        assert (after.logto_console, after.logto_file) == (False, True)
    finally:
        before.set()


def test_threads_leave_it_restored() -> None:
    def enter_often() -> None:
        for _ in range(500):
            with quiet_mujoco():
                loud.append(logs())

    loud: list[bool] = []
    threads = [threading.Thread(target=enter_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loud) == 2000
    assert not any(loud)
    assert logs()
