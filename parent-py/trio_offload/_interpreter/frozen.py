"""Apps that a freezer has made of a program: which freezer, and what their workers need.

An app made by PyInstaller is a Python without an installation. Its bootloader takes the first modules, the boot script and
the runtime hooks out of an archive at the end of the app's file. A worker is handed the same, see PROTOCOL.md; the
archive's format is that of ``PyInstaller/archive/readers.py`` and ``bootloader/src/pyi_archive.h``, and the same from
PyInstaller 5.0 on.

zipapp, shiv and pex keep the user's Python: nothing is special about their workers but where the executable lies.
"""

from __future__ import annotations

import functools
import importlib.util
import mmap
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from typing import Any, Final

import attrs

from .._exceptions import LocateError


@attrs.frozen
class Code:
    """Code as ``marshal`` writes it, and what it is called."""

    name: str
    code: bytes = attrs.field(repr=lambda code: f"<{len(code)} bytes>")


@attrs.frozen
class Bundle:
    """What PyInstaller's bootloader has found in this app's archive."""

    folder: str
    """``sys._MEIPASS``: where the files of the app lie."""
    pyz: str | None
    """Where the archive of its modules begins: path, question mark, offset. None: they are files."""
    modules: tuple[Code, ...]
    scripts: tuple[Code, ...]
    """The boot script and the runtime hooks, in their order."""
    main: Code | None
    """The app's own script."""


@functools.cache
def bundle() -> Bundle | None:
    """The bundle that this process runs from, read once; None if it is no app made by PyInstaller.

    Raises:
        LocateError: it is one, and its archive cannot be read.
    """
    folder = getattr(sys, "_MEIPASS", None)
    if folder is None or not getattr(sys, "frozen", False):
        return None
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
                f"the archive of this app, {path}, cannot be read ({error}). Was the app's file replaced while it ran? Start it anew"
            ) from error
        if found is not None:
            return found
    raise LocateError(
        "this app says that PyInstaller has made it, and its archive, which its workers need, is in none of these files:\n"
        + "\n".join(f"  {path}" for path in looked)
    )


def bootstrap_modules() -> frozenset[str]:
    """The names of the modules that were there before anything could be imported; none if this is no such app."""
    found = bundle()
    return frozenset() if found is None else frozenset(module.name for module in found.modules)


def hello_keys() -> dict[str, Any]:
    """What a HELLO says more if this is an app made by PyInstaller; nothing otherwise."""
    found = bundle()
    if found is None:
        return {}
    return {
        "home": os.fsencode(found.folder),
        "search_path": [os.fsencode(path) for path in _search_path(found.folder)],
        "bundle": _bundle_body(),
    }


def refuse_unsupported() -> None:
    """Say so if this is an app of a freezer that leaves no Python that a worker could be.

    Raises:
        LocateError: it is one; the message names the freezer.
    """
    if "__compiled__" in globals():
        raise LocateError(
            "this program was compiled by Nuitka: its modules are machine code inside of its executable, where a worker cannot "
            f"import them. {_REMEDY}. Nuitka's accelerated mode, which compiles the main script and leaves packages alone, works too"
        )
    if getattr(sys, "frozen", False) and bundle() is None:
        # The startup script of cx_Freeze is a module of this name (cx_Freeze/initscripts/__startup__.py).
        freezer = "cx_Freeze" if "__startup__" in sys.modules else "a freezer that trio-offload does not know"
        raise LocateError(f"this app was made by {freezer}, and trio-offload cannot start workers in such an app. {_REMEDY}")


def how_to_get_executable() -> str | None:
    """What helps where the executable was not found, if that is another thing than installing the package again."""
    if bundle() is not None:
        return (
            "PyInstaller collects it into the app by a hook that trio-offload brings. Build the app in an environment in which "
            "trio-offload was installed by pip; a copy of its source is not enough"
        )
    archive = getattr(getattr(__spec__, "loader", None), "archive", None)
    if archive is not None:
        return (
            f"trio_offload was imported from the zip file {archive}, and no program can be started inside of one. Install "
            "trio-offload for the Python that runs it, or make the app with shiv or pex, which unpack themselves"
        )
    return None


_REMEDY: Final = "PyInstaller makes apps in which trio-offload works; shiv and pex do too"
_DEFERRED: Final = {
    # Each changes something in this module only, and imports it first, which takes ten milliseconds and with pkg_resources four
    # hundred. The other hooks that PyInstaller has set variables, say, which must be done early and is soon done.
    "pyi_rth_inspect": "inspect",
    "pyi_rth_pkgutil": "pkgutil",
    "pyi_rth_multiprocessing": "multiprocessing",
    "pyi_rth_pkgres": "pkg_resources",
    "pyi_rth_django": "django.utils.autoreload",
}


@functools.cache
def _bundle_body() -> dict[str, Any]:
    found = bundle()
    if found is None:
        raise RuntimeError("this is no app made by PyInstaller")
    return {
        "folder": os.fsencode(found.folder),
        "pyz": None if found.pyz is None else os.fsencode(found.pyz),
        "modules": [[module.name, module.code] for module in found.modules],
        "scripts": [[script.name, script.code, _DEFERRED.get(script.name)] for script in found.scripts],
    }


def _search_path(folder: str) -> list[str]:
    """``sys.path`` as the bootloader has set it. Its entries differ by version; the app may have added others since."""
    inside = [path for path in map(str, sys.path) if path == folder or path.startswith(folder + os.sep)]
    needed = [os.path.join(folder, "base_library.zip"), folder]
    return [*inside, *(path for path in needed if path not in inside)]


def _archive_places() -> Iterator[str]:
    # From 6.10 on the bootloader says it; in a process that such an app has started by other means it may be another app's.
    said = os.environ.get("_PYI_ARCHIVE_FILE")
    if said:
        yield said
    yield sys.executable
    yield f"{sys.executable}.pkg"


_PYC_MAGIC: Final = importlib.util.MAGIC_NUMBER
_MAGIC: Final = b"MEI\014\013\012\013\016"
_COOKIE: Final = struct.Struct(">8sIIII64s")  # magic, length of all, offset and length of the table, Python, its library
_ENTRY: Final = struct.Struct(">IIIIBc")  # length of the entry, offset, length, length uncompressed, compressed, type


def _read(path: str, folder: str) -> Bundle | None:
    """The archive in a file; None if there is none in it."""
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
                    # PyInstaller 5.0 stored the modules as whole .pyc files (PEP 552).
                    content = content[16:]
                (scripts if kind == b"s" else modules).append(Code(name, content))
            elif kind == b"z":
                pyz = f"{path}?{start + offset}"
        if at != table + length:
            raise ValueError(f"a table of {at - table} bytes that should have {length}")
    return Bundle(folder, pyz, tuple(modules), tuple(scripts[:-1]), scripts[-1] if scripts else None)


def _find_cookie(data: mmap.mmap) -> tuple[int, int, int] | None:
    """Where the archive begins, and where its table lies and how long that is.

    The last cookie in the file that is one: on Linux the archive may be a section of the executable, and others follow.
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
