"""Fuzzing of `.npz` files of columns: python -m tests.fuzz.npz --minutes 10."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from tests.fuzz.runner import damaged, main
from thousandfold.stages.dataset.foreign_episodes import ENDS, ForeignEpisode, GoalChoice, read_foreign

NAMES = ("observations", "actions", "next_observations", "rewards", *ENDS)
SIZES = st.sampled_from([0, 1, 2, 3, 4, 7, 8, 12, 2**16, 2**31, 2**40, 2**63, -1])


HEADERS = (
    "{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (3,)}",
    "{'descr': ('<f4', (2, 2)), 'fortran_order': False, 'shape': (3,)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "(" * 300 + ")" * 300 + ",)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (3,)",
    "__import__('os').getpid()",
)


@st.composite
def arrays(draw: st.DrawFn, name: str, rows: int) -> bytes:
    """Draw what a member holds: as a rule an array that fits, now and then another one or a lying header."""
    width = () if name in ENDS or name == "rewards" else (4 if "observ" in name else 2,)
    data = np.random.default_rng(rows).integers(0, 2, (rows, *width)).astype("f4")
    file, odd = io.BytesIO(), draw(st.integers(0, 29))
    if odd == 11:
        data = data.astype(draw(st.sampled_from(["f8", "f2", "?", "u1", "i8", "c8", "S3", "M8[s]"])))
    if odd == 12:
        np.save(file, np.array([None] * rows, object), allow_pickle=True)
    elif odd in (13, 14):
        shape, order = tuple(draw(st.lists(SIZES, max_size=3))), draw(st.booleans())
        honest = repr({"descr": data.dtype.str, "fortran_order": order, "shape": shape})
        header = draw(st.sampled_from([honest, honest, *HEADERS]) | st.text(max_size=40)).encode(
            "utf-8", "replace"
        )
        version, length = (
            draw(st.sampled_from([1, 1, 1, 2, 3, 9])),
            draw(st.sampled_from([len(header)] * 4 + [65535])),
        )
        file.write(b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", length))
        file.write(header + data.tobytes())
    else:
        np.save(file, np.asfortranarray(data) if odd % 2 else data)
    return file.getvalue()


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """Draw an archive of some columns, each packed in one way or another, now and then twice."""
    file, rows = io.BytesIO(), draw(st.sampled_from([12, 12, 12, 300, 2, 1, 0]))
    names = ["observations", "actions", *draw(st.lists(st.sampled_from(NAMES), max_size=3))]
    packings = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]
    with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names if draw(st.integers(0, 9)) == 7 else dict.fromkeys(names):
            odd = draw(st.integers(0, 29))
            member = zipfile.ZipInfo(f"{name}.npy")
            member.compress_type = zipfile.ZIP_LZMA if odd == 11 else draw(st.sampled_from(packings))
            with archive.open(member, "w", force_zip64=odd % 2 == 1) as part:
                part.write(draw(arrays(name, rows + (odd == 12))))
    return file.getvalue()


def read(path: Path) -> None:
    """Read a file as an import does."""
    foreign = read_foreign(str(path), GoalChoice((0, 1)), episode_steps=100, limit=2**28)
    for episode in foreign.episodes():
        if isinstance(episode, ForeignEpisode):
            np.isfinite(episode.observation).all()
            assert len(episode.observation) == len(episode.action) + 1


CASES = damaged(archives())

if __name__ == "__main__":
    main("tests.fuzz.npz:read", CASES, ".npz")
