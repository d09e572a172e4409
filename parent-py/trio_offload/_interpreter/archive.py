"""The archive of an app made by PyInstaller: the first modules, the boot script, the runtime hooks.

It is at the end of the app's file, where the app's bootloader reads it. Its format is defined by
``PyInstaller/archive/readers.py`` and ``bootloader/src/pyi_archive.h``; it is the same from
PyInstaller 5.0 on.
"""

from __future__ import annotations

import importlib.util
import mmap
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from typing import Final

import attrs

from .._exceptions import LocateError

_PYC_MAGIC: Final = importlib.util.MAGIC_NUMBER
_MAGIC: Final = b"MEI\014\013\012\013\016"
# Magic, length of all, offset and length of the table, Python, its library.
_COOKIE: Final = struct.Struct(">8sIIII64s")
# Length of the entry, offset, length, length uncompressed, compressed, type.
_ENTRY: Final = struct.Struct(">IIIIBc")


@attrs.frozen
class Code:
    """Code in the format of ``marshal``, and its name."""

    name: str
    code: bytes = attrs.field(repr=lambda code: f"<{len(code)} bytes>")


@attrs.frozen
class Bundle:
    """The contents of this app's archive, for PyInstaller's bootloader."""

    folder: str
    """``sys._MEIPASS``: the folder of the app's files."""
    pyz: str | None
    """Start of the archive of modules: path, question mark, offset.

    None means that the modules are files.
    """
    modules: tuple[Code, ...]
    scripts: tuple[Code, ...]
    """The boot script and the runtime hooks, in their order."""
    main: Code | None
    """The app's own script."""


def read_bundle(folder: str) -> Bundle:
    """Return the bundle of the app whose files are in this folder.

    Raises:
        LocateError: the app's archive cannot be read.
    """
    looked = []
    for path in _archive_places():
        if path in looked:
            continue
        looked.append(path)
        try:
            found = _read(path, folder)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, struct.error, zlib.error) as error:
            raise LocateError(
                f"the archive of this app, {path}, cannot be read ({error}). Restart the app if its file was replaced"
            ) from error
        if found is not None:
            return found
    raise LocateError(
        "this app was made by PyInstaller (sys._MEIPASS is set). Workers need its archive, which is in none of these files:\n"
        + "\n".join(f"  {path}" for path in looked)
    )


def _archive_places() -> Iterator[str]:
    # Set by the bootloader from 6.10 on. May be inherited from another app that started this one.
    path = os.environ.get("_PYI_ARCHIVE_FILE")
    if path:
        yield path
    yield sys.executable
    yield f"{sys.executable}.pkg"


def _read(path: str, folder: str) -> Bundle | None:
    """Read the archive in a file. Return None if the file lacks one."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = _find_cookie(data)
        if place is None:
            return None
        start, table, length = place
        pyz = None
        modules: list[Code] = []
        scripts: list[Code] = []
        at = table
        while at < table + length:
            size, offset, stored, _, compressed, kind = _ENTRY.unpack_from(data, at)
            if size < _ENTRY.size:
                raise ValueError(f"an entry of {size} bytes in its table")
            name = data[at + _ENTRY.size : at + size].rstrip(b"\0").decode()
            at += size
            if kind in (b"m", b"M", b"s"):
                content = data[start + offset : start + offset + stored]
                if compressed:
                    content = zlib.decompress(content)
                if content[:4] == _PYC_MAGIC:
                    # PyInstaller 5.0 stored whole .pyc files (PEP 552).
                    content = content[16:]
                (scripts if kind == b"s" else modules).append(Code(name, content))
            elif kind == b"z":
                pyz = f"{path}?{start + offset}"
        if at != table + length:
            raise ValueError(f"a table of {at - table} bytes that should have {length}")
    return Bundle(folder, pyz, tuple(modules), tuple(scripts[:-1]), scripts[-1] if scripts else None)


def _find_cookie(data: mmap.mmap) -> tuple[int, int, int] | None:
    """Return the offset of the archive, and the offset and length of its table.

    Uses the last valid cookie: on Linux the archive may be a section of the executable, followed by
    others.
    """
    end = len(data)
    while (at := data.rfind(_MAGIC, 0, end)) >= 0:
        if at + _COOKIE.size <= len(data):
            _, total, offset, length, _, _ = _COOKIE.unpack_from(data, at)
            start = at + _COOKIE.size - total
            if start >= 0 and offset + length <= total:
                return start, start + offset, length
        end = at + len(_MAGIC) - 1
    return None
