"""The flags of this interpreter. They differ between versions of Python."""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

from . import frozen


def encoded(values: Any) -> list[bytes]:
    """Return strings as the operating system has them, without other objects.

    Python ignores those too, for example a Path in sys.path.
    """
    try:
        return [*_encoded(tuple(values))]
    except TypeError:  # an object without a hash
        return [os.fsencode(value) for value in values if isinstance(value, str)]


@functools.lru_cache(maxsize=16)
def _encoded(values: tuple[Any, ...]) -> list[bytes]:
    # Each worker is sent the same four lists, and encoding takes a tenth of a forked worker's
    # greeting.
    return [os.fsencode(value) for value in values if isinstance(value, str)]


def flags() -> dict[str, int]:
    """Return the flags for HELLO, by the names of ``PyConfig``."""
    values = {
        **_flags_of_start(),
        "write_bytecode": int(not sys.dont_write_bytecode),
        # -u has no flag, but makes the text streams write through.
        "buffered_stdio": int(not getattr(sys.__stdout__, "write_through", False)),
    }
    if hasattr(sys, "get_int_max_str_digits"):
        values["int_max_str_digits"] = sys.get_int_max_str_digits()
    if hasattr(sys, "get_lazy_imports"):
        values["lazy_imports"] = int(sys.get_lazy_imports() == "all")
    return values


@functools.cache
def _flags_of_start() -> dict[str, int]:
    """Return the flags that cannot change."""
    present = sys.flags
    values = {
        "isolated": present.isolated,
        "use_environment": not present.ignore_environment,
        "dev_mode": present.dev_mode,
        "site_import": not present.no_site,
        "user_site_directory": not present.no_user_site,
        "optimization_level": present.optimize,
        "verbose": present.verbose,
        "quiet": present.quiet,
        "bytes_warning": present.bytes_warning,
        "parser_debug": present.debug,
        "warn_default_encoding": getattr(present, "warn_default_encoding", 0),
    }
    requested = "utf8" in sys._xoptions or (frozen.bundle() is not None and sys.getfilesystemencoding() != "utf-8")
    if present.utf8_mode or requested or sys.version_info >= (3, 15):
        # Otherwise the worker decides by the locale (PEP 540), up to Python 3.14 (PEP 686). The
        # program may have set LC_ALL to C since its start: a worker with UTF-8 mode explicitly off
        # would then use ASCII. An app of PyInstaller does not decide by the locale alone, so its
        # choice is always sent.
        values["utf8_mode"] = present.utf8_mode
    if not present.hash_randomization:
        # Hashes are constant, as in apps of PyInstaller from Python 3.14 on, without a
        # variable.
        values["hash_randomization"] = 0
    if hasattr(present, "safe_path"):
        values["safe_path"] = present.safe_path
    return {name: int(value) for name, value in values.items()}
