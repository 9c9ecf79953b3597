"""Only regular files of a bounded size are read, and nothing else is waited for."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from thousandfold.ground.plain_files import in_bytes, read_plain, require_plain


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    assert read_plain(tmp_path / "link", 3) == b"abc"
    assert require_plain(tmp_path / "link", 3) == 3


def test_anything_else_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "large").write_bytes(b"abcd")
    listening = socket.socket(socket.AF_UNIX)
    # A socket's path is short, and that of a temporary folder may be long.
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        listening.bind("socket")
    finally:
        os.chdir(here)
    for path, words in (
        (tmp_path, "it is a folder"),
        (tmp_path / "pipe", "it is a named pipe"),
        (tmp_path / "socket", "it is a socket"),
        (Path("/dev/zero"), "it is a device"),
        (tmp_path / "large", "it is larger than 3 bytes"),
        (tmp_path / "loop", "Too many levels"),
        (tmp_path / "gone", "No such file"),
    ):
        for call in (read_plain, require_plain):
            with pytest.raises(OSError) as caught:
                call(path, 3)
            assert words in str(caught.value.strerror) and caught.value.filename == str(path)
    listening.close()


def test_bytes_in_words() -> None:
    assert [in_bytes(count) for count in (0, 3, 2**20, 1.5 * 2**30, 2**50)] == [
        "0 bytes", "3 bytes", "1 MiB", "1.5 GiB", "1024 TiB",
    ]  # fmt: skip
