"""Frozen apps: detect the freezer, and collect the facts that workers of such an app need.

An app of PyInstaller is a Python without an installation. HELLO carries the start of the app's
archive to a worker, see PROTOCOL.md and :mod:`trio_offload._interpreter.archive`.

zipapp, shiv and pex keep the user's Python. Only the executable lies elsewhere.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from .._exceptions import LocateError

if TYPE_CHECKING:
    from .archive import Bundle

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


@functools.cache
def bundle() -> Bundle | None:
    """Return the bundle of this process, read once. None means another kind of program.

    Raises:
        LocateError: the app's archive cannot be read.
    """
    folder = getattr(sys, "_MEIPASS", None)
    if folder is None or not getattr(sys, "frozen", False):
        return None
    # Needed in such apps only, and takes a millisecond.
    from .archive import read_bundle

    return read_bundle(folder)


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
            f"trio_offload was imported from the zip file {archive}, from which the worker cannot be started. Install "
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
