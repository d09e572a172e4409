"""Frozen apps: detect the freezer, and collect the facts that workers of such an app need.

An app of PyInstaller is a Python without an installation. Its bootloader reads the first modules,
the boot script and the runtime hooks from an archive at the end of the app's file. HELLO carries
the same to a worker, see PROTOCOL.md. The archive's format is defined by
``PyInstaller/archive/readers.py`` and ``bootloader/src/pyi_archive.h``; it is the same from
PyInstaller 5.0 on.

zipapp, shiv and pex keep the user's Python. Only the executable lies elsewhere.
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

_REMEDY: Final = "PyInstaller makes apps in which trio-offload works; shiv and pex do too"
_DEFERRED: Final = {
    # Each hook changes one module and imports it first, which takes 10 ms, or 400 ms for
    # pkg_resources. PyInstaller's other hooks are fast and must run early.
    "pyi_rth_inspect": "inspect",
    "pyi_rth_pkgutil": "pkgutil",
    "pyi_rth_multiprocessing": "multiprocessing",
    "pyi_rth_pkgres": "pkg_resources",
    "pyi_rth_django": "django.utils.autoreload",
}
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


@functools.cache
def bundle() -> Bundle | None:
    """Return the bundle of this process, read once. None means another kind of program.

    Raises:
        LocateError: the app's archive cannot be read.
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
        "PyInstaller made this app (sys._MEIPASS is set), and its archive, which workers need, is in none of these files:\n"
        + "\n".join(f"  {path}" for path in looked)
    )


def bootstrap_modules() -> frozenset[str]:
    """Return the names of the modules that an app's bootloader loads before any import."""
    found = bundle()
    return frozenset() if found is None else frozenset(module.name for module in found.modules)


def hello_keys() -> dict[str, Any]:
    """Return the keys of HELLO for an app of PyInstaller; empty for other programs."""
    found = bundle()
    if found is None:
        return {}
    return {
        "home": os.fsencode(found.folder),
        "search_path": [os.fsencode(path) for path in _search_path(found.folder)],
        "bundle": _bundle_body(),
    }


def refuse_unsupported() -> None:
    """Refuse apps of freezers that leave no Python for a worker.

    Raises:
        LocateError: this is such an app; the message names the freezer.
    """
    if "__compiled__" in globals():
        raise LocateError(
            "this program was compiled by Nuitka: its modules are machine code inside of its executable, where a worker cannot "
            f"import them. {_REMEDY}. Nuitka's accelerated mode, which compiles the main script and leaves packages alone, works too"
        )
    if getattr(sys, "frozen", False) and bundle() is None:
        # The startup script of cx_Freeze is a module of this name
        # (cx_Freeze/initscripts/__startup__.py).
        freezer = "cx_Freeze" if "__startup__" in sys.modules else "a freezer that trio-offload does not know"
        raise LocateError(f"this app was made by {freezer}, and trio-offload cannot start workers in such an app. {_REMEDY}")


def how_to_get_executable() -> str | None:
    """Return the remedy for a missing executable, if not installing the package again."""
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
    """Return ``sys.path`` as the bootloader sets it.

    The entries differ by version; the app may have added others.
    """
    inside = [path for path in map(str, sys.path) if path == folder or path.startswith(folder + os.sep)]
    needed = [os.path.join(folder, "base_library.zip"), folder]
    return [*inside, *(path for path in needed if path not in inside)]


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
