"""Set up the dynamic loader (ld.so(8)) of a worker: the right libpython and libraries.

The libpython is preloaded by its full path, which satisfies the executable's need of a library of
that name. Its folder stays out of ``LD_LIBRARY_PATH``: it has other libraries (conda's ``lib``,
``/usr/lib``), and jobs would load those instead of the program's.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Iterable
from typing import BinaryIO, Final

import attrs

PRELOAD: Final = b"LD_PRELOAD"
LIBRARY_PATH: Final = b"LD_LIBRARY_PATH"
_PT_LOAD: Final = 1
_PT_DYNAMIC: Final = 2
_DT_STRTAB: Final = 5
_DT_RPATH: Final = 15
_DT_RUNPATH: Final = 29
_MAX_PATHS_SIZE: Final = 65536  # bytes


def lead(environment: dict[bytes, bytes], libpython: str, *, is_loaded: bool, folders: Iterable[str] = ()) -> None:
    """Change the environment of a worker before its start.

    Args:
        environment: The environment, changed in place.
        libpython: Path of the libpython.
        is_loaded: True if this program has loaded it too.
        folders: Folders of an app with the libraries of its extension modules.
    """
    path = os.fsencode(libpython)
    before = [os.fsencode(folder) for folder in folders]
    after: list[bytes] = []
    if before or not _can_be_preloaded(path):
        before.insert(0, os.path.dirname(path))
    else:
        # After the user's own, which must come first.
        environment[PRELOAD] = b":".join(filter(None, [environment.get(PRELOAD), path]))
        paths = _paths_of_program()
        before += paths.first
        if not is_loaded:
            after += paths.last
    if before or after:
        parts = dict.fromkeys([*before, *filter(None, [environment.get(LIBRARY_PATH)]), *after])
        environment[LIBRARY_PATH] = b":".join(parts)


@attrs.frozen
class SearchPaths:
    """The folders that an executable adds to the search for libraries."""

    first: tuple[bytes, ...] = ()
    """``DT_RPATH``: before ``LD_LIBRARY_PATH``, for all libraries of the process."""
    last: tuple[bytes, ...] = ()
    """``DT_RUNPATH``: after it, for libraries that the executable's own code loads."""


def search_paths(file: BinaryIO, origin: bytes) -> SearchPaths:
    """Return the search paths of an ELF file in the folder ``origin``; empty for other files."""
    header = file.read(64)
    if header[:6] != b"\x7fELF\x02\x01":  # 64 bits, little-endian
        return SearchPaths()
    (start,) = struct.unpack_from("<Q", header, 32)
    size, count = struct.unpack_from("<HH", header, 54)
    file.seek(start)
    table = file.read(size * count)
    segments = [struct.unpack_from("<IIQQQQQQ", table, index * size) for index in range(count)]
    entries: dict[int, int] = {}
    for kind, _, offset, _, _, length, _, _ in segments:
        if kind == _PT_DYNAMIC:
            file.seek(offset)
            entries.update(struct.iter_unpack("<qQ", file.read(length - length % 16)))

    def folders(tag: int) -> tuple[bytes, ...]:
        if tag not in entries or _DT_STRTAB not in entries:
            return ()
        address = entries[_DT_STRTAB]
        for kind, _, offset, begin, _, length, _, _ in segments:
            if kind == _PT_LOAD and begin <= address < begin + length:
                file.seek(offset + address - begin + entries[tag])
                text = file.read(_MAX_PATHS_SIZE).partition(b"\0")[0]
                text = text.replace(b"${ORIGIN}", origin).replace(b"$ORIGIN", origin)
                return tuple(folder for folder in text.split(b":") if folder.startswith(b"/") and b"$" not in folder)
        return ()

    runpath = folders(_DT_RUNPATH)
    return SearchPaths((), runpath) if _DT_RUNPATH in entries else SearchPaths(folders(_DT_RPATH), ())


@functools.cache
def _paths_of_program() -> SearchPaths:
    try:
        with open("/proc/self/exe", "rb") as file:
            return search_paths(file, os.path.dirname(os.fsencode(os.readlink("/proc/self/exe"))))
    except (OSError, struct.error, OverflowError):
        return SearchPaths()


def _can_be_preloaded(path: bytes) -> bool:
    """Return True if the file can be preloaded: with glibc, and a path that can be an entry."""
    # Spaces and colons separate entries, and a dollar sign begins a variable.
    return "CS_GNU_LIBC_VERSION" in os.confstr_names and not any(character in path for character in (b" ", b":", b"$"))
