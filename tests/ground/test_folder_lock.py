"""The lock of a folder: one holder at a time, nothing left behind."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from thousandfold.ground.errors import UserError
from thousandfold.ground.files import folder_lock, is_locked


def test_it_is_held_until_the_end_and_then_gone(tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    assert not is_locked(folder)
    with folder_lock(folder):
        assert is_locked(folder)
        with pytest.raises(UserError, match=r"teacher is in use by another process"), folder_lock(folder):
            pass
        assert is_locked(folder), "who was turned away takes no lock with him"
    assert not is_locked(folder) and not list(folder.iterdir())


def test_a_lock_file_of_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("12345\n")
    assert not is_locked(tmp_path)
    with folder_lock(tmp_path):
        assert is_locked(tmp_path)


def test_no_two_hold_it_while_its_file_comes_and_goes(tmp_path: Path) -> None:
    holders, most = threading.Semaphore(1), []

    def work(_: int) -> int:
        done = 0
        for _ in range(25):
            try:
                with folder_lock(tmp_path):
                    most.append(holders.acquire(blocking=False))
                    time.sleep(0.0005)
                    holders.release()
                    done += 1
            except UserError:  # the others kept it for too long
                pass
        return done

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) > 0
    assert all(most)
