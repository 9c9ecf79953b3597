"""Files of columns as OGBench (``.npz``) and D4RL (``.hdf5``) publish them, read with suspicion.

Every size that a file claims is compared with the bytes that are there, and with the free memory, before
anything is allocated. Nothing is read through pickle, and no other file is read on a file's behalf.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path

import h5py
import numpy as np

from thousandfold.ground.errors import DamagedFileError, UserError
from thousandfold.replay.hdf5 import MOST_UNPACKED, read_numbers, reading

_HDF5_SUFFIXES = (".hdf5", ".h5", ".hdf", ".he5")
_MOST_NAMES = 30
_LONGEST_HEADER = 10_000
"""Bytes that NumPy takes a header of."""


def is_column_file(path: Path) -> bool:
    """Tell whether a path is one of a file of columns, there or not, by its first bytes or its name."""
    return path.is_file() or (not path.exists() and path.suffix.lower() in (".npz", *_HDF5_SUFFIXES))


def read_columns(path: Path, names: Collection[str], limit: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the columns of `names` that a file has, as they are in it, and the names of its others.

    Args:
        path: an ``.npz`` file or one of HDF5.
        names: of the columns to read.
        limit: how many bytes of memory all of them may take.

    Raises:
        UserError: the file is not there.
        DamagedFileError: it is damaged, holds no numbers, or claims more of them than it has.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: name an .npz file, an HDF5 file, or a Minari dataset.")
    with path.open("rb") as file:
        begin = file.read(8)
    is_hdf5 = begin.startswith(b"\x89HDF") or path.suffix.lower() in _HDF5_SUFFIXES
    read = _read_hdf5 if is_hdf5 else _read_npz
    columns, others = {}, []
    try:
        for name, column in read(path, names, limit):
            if column is None:
                others.append(name)
            else:
                columns[name] = column
    except Exception as error:  # whatever zipfile, NumPy and h5py make of bytes that anybody wrote
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        kind = "a file of HDF5" if is_hdf5 else "an .npz file of arrays"
        raise DamagedFileError(f"{path} cannot be read as {kind}: {reason}.") from error
    return columns, others


# -- .npz -----------------------------------------------------------------------------------------


def _read_npz(path: Path, names: Collection[str], limit: int) -> Iterator[tuple[str, np.ndarray | None]]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(member.compress_size for member in members) > path.stat().st_size:
            raise ValueError("its members claim more bytes than it has")
        seen = set()
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name in seen:
                raise ValueError(f"it has two columns {name}")
            seen.add(name)
            column = _read_member(archive, member, name, limit) if name in names else None
            limit -= 0 if column is None else column.nbytes
            yield name, column


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, limit: int) -> np.ndarray:
    """Return the array of a member whose header, size and packed size agree."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is packed in a way that is not read: save with numpy.savez_compressed")
    if member.file_size > MOST_UNPACKED * member.compress_size:
        raise ValueError(f"{name} claims {member.file_size:,} bytes in {member.compress_size:,}")
    with archive.open(member) as file:
        begin = file.read(12)
        file.seek(0)
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name} holds no plain numbers")
        # NumPy reads a header whole before it looks at its length, which is up to 4 GiB in version 2.
        if (length := int.from_bytes(begin[8 : 8 + 2 * version[0]], "little")) > _LONGEST_HEADER:
            raise ValueError(f"{name} has a header of {length:,} bytes: save plain arrays of numbers")
        header = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, is_fortran, dtype = header(file)
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects, which are not read: save plain arrays of numbers")
        if dtype.kind not in "fiub" or dtype.subdtype is not None:
            raise ValueError(f"{name} holds {dtype}, not numbers")
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or file.tell() + size != member.file_size:
            raise ValueError(f"{name} claims {size:,} bytes, and the file holds {member.file_size:,} for it")
        if size > limit:
            raise ValueError(f"{name} claims {size:,} bytes, and {limit:,} of memory are free")
        data = file.read(size)
        if len(data) != size or file.read(1):  # the second read compares the checksum
            raise ValueError(f"{name} is cut off")
    array = np.frombuffer(data, dtype)
    return array.reshape(shape[::-1]).T if is_fortran else array.reshape(shape)


# -- HDF5 -----------------------------------------------------------------------------------------


def _read_hdf5(path: Path, names: Collection[str], limit: int) -> Iterator[tuple[str, np.ndarray | None]]:
    with reading(path) as file:
        found: list[str] = []

        def note(name: str, item: object) -> str | None:
            if isinstance(item, h5py.Dataset):
                found.append(name)
            return name if len(found) >= _MOST_NAMES else None

        file.visititems(note)
        for name in dict.fromkeys([*(name for name in names if name in file), *found]):
            if name not in names:
                yield name, None
                continue
            if not isinstance(item := file[name], h5py.Dataset):
                raise ValueError(f"{name} is a group of others, not a column of numbers")
            column = read_numbers(item, name, limit)
            limit -= column.nbytes
            yield name, column
