"""HDF5: files that are read with suspicion, and files that are written so that a full disk is an error.

A file of HDF5 may name other files that its numbers come from, ask for libraries that unpack them, and claim
any size. What is read here lies in the file itself, is packed with the library's own filters, and is no
larger than the bytes that are there can be.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from h5py import h5l  # pyright: ignore[reportAttributeAccessIssue]

MOST_UNPACKED = 1100
"""No byte that deflate has packed becomes more bytes than that; its own bound is 1032."""

_USUAL_CHUNK = 4 * 2**20
"""Bytes of a chunk that is taken however little memory is free: h5py makes them of 1 MiB at most."""

# gzip, shuffle, fletcher32, szip, nbit, scaleoffset and lzf; any other is a library that HDF5 would load.
_OWN_FILTERS = (1, 2, 3, 4, 5, 6, 32000)

_NUMBERS = (h5py.h5t.FLOAT, h5py.h5t.INTEGER, h5py.h5t.ENUM, h5py.h5t.BITFIELD)  # flags are an ENUM


@contextlib.contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """Open a file to read that has no link into another one.

    Raises:
        OSError: it is not there, or damaged.
        ValueError: it has such a link.
    """
    with h5py.File(path, "r") as file:

        def leaves(name: bytes, info: h5l.LinkInfo) -> bytes | None:
            return None if info.type in (h5l.TYPE_HARD, h5l.TYPE_SOFT) else name

        # Links are listed, none is followed.
        if (name := file.id.links.visit(leaves, info=True)) is not None:
            shown = name.decode("utf-8", "backslashreplace")[:100]
            raise ValueError(f"{shown} is a link into another file, which is not followed")
        yield file


def own_shape(dataset: h5py.h5d.DatasetID, name: str, limit: int | None = None) -> tuple[int, ...]:
    """Return the shape of a dataset of which a read takes just its own numbers.

    Args:
        dataset: in a file of `reading`.
        name: of the dataset, for the message.
        limit: how many bytes of memory its numbers, and one packed chunk of them, may take.

    Raises:
        ValueError: it holds no numbers, claims more of them than it has, or takes them from elsewhere.
    """
    # Only numbers that lie unpacked in one piece of the file have a place in it; that is quick to ask.
    if dataset.get_offset() is None:
        _require_own_chunks(dataset, name, limit)
    if (shape := dataset.shape) is None:
        raise ValueError(f"{name} has no shape")
    kind = dataset.get_type()  # asked of HDF5: to make NumPy's type of it takes as long as all the rest
    if kind.get_class() not in _NUMBERS:
        raise ValueError(f"{name} holds {dataset.dtype}, not numbers")
    claimed, stored = math.prod(shape) * kind.get_size(), dataset.get_storage_size()
    # Flags that were never written are all false.
    is_flags = limit is not None and kind.get_class() != h5py.h5t.FLOAT
    if claimed > MOST_UNPACKED * stored and not is_flags:
        raise ValueError(f"{name} claims {claimed:,} bytes, and the file holds {stored:,} of it")
    if limit is not None and claimed > limit:
        raise ValueError(f"{name} claims {claimed:,} bytes, and {limit:,} of memory are free")
    return shape


def _require_own_chunks(dataset: h5py.h5d.DatasetID, name: str, limit: int | None) -> None:
    """Raise ValueError where numbers come from another file, or are packed as `own_shape` does not take."""
    creation = dataset.get_create_plist()
    layout = creation.get_layout()
    if layout == h5py.h5d.VIRTUAL or creation.get_external_count():
        raise ValueError(f"{name} takes its numbers from another file, which is not read")
    filters = [creation.get_filter(index)[0] for index in range(creation.get_nfilters())]
    if foreign := [number for number in filters if number not in _OWN_FILTERS]:
        raise ValueError(f"{name} is packed with filter {foreign[0]}, which is not read: pack it with gzip")
    if filters and layout == h5py.h5d.CHUNKED:
        packed = [0]
        dataset.chunk_iter(lambda chunk: packed.append(chunk.size))
        # Packing makes a chunk a little longer at most; HDF5 unpacks one until it ends, however much that is.
        most = math.prod(creation.get_chunk()) * dataset.dtype.itemsize * 1.01 + 1024
        if max(packed) > (most if limit is None else min(most, max(limit / MOST_UNPACKED, _USUAL_CHUNK))):
            raise ValueError(f"{name} has a packed chunk of {max(packed):,} bytes, which is too large for it")


def read_numbers(dataset: h5py.Dataset, name: str, limit: int) -> np.ndarray:
    """Return a dataset's numbers. Raises as `own_shape`, and OSError where it is damaged."""
    numbers = np.empty(own_shape(dataset.id, name, limit), dataset.dtype)
    if numbers.size:
        dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, numbers)
    return numbers


@contextlib.contextmanager
def writing(path: Path) -> Iterator[h5py.File]:
    """Yield a file in memory, and write its bytes to `path` when all is in it.

    HDF5 does not survive a disk that fills up: closing such a file ends in a segmentation fault (h5py#914).
    """
    memory = io.BytesIO()
    with h5py.File(memory, "w", track_order=True) as file:
        yield file
    path.write_bytes(memory.getbuffer())
