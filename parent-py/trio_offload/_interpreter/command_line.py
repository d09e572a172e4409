"""The command line of a worker that is a loop in Python."""

from __future__ import annotations

import os
import sys
from typing import Any, Final

import trio_offload_worker

from .._version import __version__
from .flags import flags as interpreter_flags

_MAX_LABEL_SIZE: Final = 60  # bytes

# The first argument is the folder in which this process has found the package.
_BOOTSTRAP: Final = """\
import sys
# Remove the working directory, which -c adds.
path = list(filter(None, sys.path))
sys.path[:] = [sys.argv[1], *path]
import trio_offload_worker
sys.path[:] = path
from trio_offload_worker._loop import main
main.main(sys.argv[2])
"""


def loop_command() -> list[str]:
    """Return the command line of a worker in Python: this interpreter with its name and switches.

    The code begins with the program's name, because a list of processes is cut off at the right.
    """
    folder = os.path.dirname(os.path.dirname(os.path.abspath(trio_offload_worker.__file__)))
    # ASCII: in another locale that Python may be unable to decode other characters.
    label = program_label().encode("ascii", "replace").decode()
    code = f"# trio-offload worker of {label}\n{_BOOTSTRAP}"
    return [program_name(), *_interpreter_arguments(), "-c", code, folder, __version__]


def program_label() -> str:
    """Return this program's name in one short line, for a list of processes."""
    first = next(iter(getattr(sys, "argv", ())), "")
    path = first.rstrip("/") if isinstance(first, str) else ""
    folder, name = os.path.split(path)
    if name == "__main__.py":
        # `python -m PACKAGE`.
        name = os.path.basename(folder) or name
    if name in ("", ".", "-c", "-m"):
        # A prompt or `-c`: the name of the interpreter.
        name = os.path.basename(program_name())
    # A line break would end the comment in the loop's code.
    shown = "".join(character if character.isprintable() else "?" for character in name[:_MAX_LABEL_SIZE])
    encoding = sys.getfilesystemencoding()
    return shown.encode(encoding, "replace")[:_MAX_LABEL_SIZE].decode(encoding, "ignore")


def program_name() -> str:
    """Return the name by which Python finds its installation."""
    # `sys.executable` is empty if Python was started under a name that is not a program's.
    return sys.executable or (sys.orig_argv or [""])[0]


def _interpreter_arguments() -> list[str]:
    """Return the switches that make ``sys.executable`` a Python like this one.

    HELLO arrives too late for these. (``subprocess._args_from_interpreter_flags``, for
    multiprocessing, leaves out the switches that concern a main program only.)
    """
    flags = sys.flags
    letters = "d" * flags.debug + "v" * flags.verbose + "q" * flags.quiet + "b" * flags.bytes_warning + "O" * flags.optimize
    letters += "B" * bool(sys.dont_write_bytecode) + "S" * flags.no_site
    letters += "u" * bool(getattr(sys.__stdout__, "write_through", False))
    if flags.isolated:
        letters += "I"
    else:
        letters += "E" * flags.ignore_environment + "s" * flags.no_user_site + "P" * bool(getattr(flags, "safe_path", False))
    arguments = ["-" + letters] if letters else []
    options: dict[str, Any] = dict(sys._xoptions)
    if flags.dev_mode:
        options.setdefault("dev", True)
    if getattr(flags, "warn_default_encoding", False):
        options.setdefault("warn_default_encoding", True)
    if "utf8_mode" in (values := interpreter_flags()):
        options["utf8"] = str(values["utf8_mode"])
    if sys.pycache_prefix is not None:
        options["pycache_prefix"] = sys.pycache_prefix
    for name, value in options.items():
        arguments += ["-X", name if value is True else f"{name}={value}"]
    for option in sys.warnoptions:
        arguments += ["-W", option]
    return arguments
