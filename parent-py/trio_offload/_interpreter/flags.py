"""The flags of this interpreter, whatever its version has."""

from __future__ import annotations

import os
import sys
from typing import Any

from . import frozen as _frozen


def encoded(values: Any) -> list[bytes]:
    """Strings as the operating system has them. What is no string (a Path in sys.path) means nothing to Python either."""
    return [os.fsencode(value) for value in values if isinstance(value, str)]


def flags() -> dict[str, int]:
    present = sys.flags
    values = {
        "isolated": present.isolated,
        "use_environment": not present.ignore_environment,
        "dev_mode": present.dev_mode,
        "site_import": not present.no_site,
        "user_site_directory": not present.no_user_site,
        "write_bytecode": not sys.dont_write_bytecode,
        "optimization_level": present.optimize,
        "verbose": present.verbose,
        "quiet": present.quiet,
        "bytes_warning": present.bytes_warning,
        "parser_debug": present.debug,
        "warn_default_encoding": getattr(present, "warn_default_encoding", 0),
        # There is no flag for -u; a text stream over an unbuffered one writes through.
        "buffered_stdio": not getattr(sys.__stdout__, "write_through", False),
    }
    told = "utf8" in sys._xoptions or (_frozen.bundle() is not None and sys.getfilesystemencoding() != "utf-8")
    if present.utf8_mode or told or sys.version_info >= (3, 15):
        # The locale decides nothing from Python 3.15 on (PEP 686). Before that, where nobody has asked for either, the worker decides
        # by the locale, as every Python does (PEP 540). The program may have set LC_ALL to C since, for the output of others: a
        # worker that is told to be without UTF-8 would be in ASCII.
        # An app made by PyInstaller does not decide by the locale alone, so there it may have been left out on purpose.
        values["utf8_mode"] = present.utf8_mode
    if not present.hash_randomization:
        # Hashes start from zero. An app made by PyInstaller for Python 3.14 or newer is so without a variable that tells.
        values["hash_randomization"] = 0
    if hasattr(present, "safe_path"):
        values["safe_path"] = present.safe_path
    if hasattr(sys, "get_int_max_str_digits"):
        values["int_max_str_digits"] = sys.get_int_max_str_digits()
    if hasattr(sys, "get_lazy_imports"):
        values["lazy_imports"] = sys.get_lazy_imports() == "all"
    return {name: int(value) for name, value in values.items()}
