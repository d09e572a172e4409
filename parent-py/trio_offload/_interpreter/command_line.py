"""The command line of a worker that is a loop in Python."""

from __future__ import annotations

import os
import sys
from typing import Any, Final

import trio_offload_worker

from .._version import __version__
from .flags import flags as interpreter_flags

_LONGEST_LABEL: Final = 60  # bytes

# The first argument is the folder of the package, wherever this process has found it.
_BOOTSTRAP: Final = """\
import sys
# Nothing is to be found in the working directory, which -c puts there.
path = list(filter(None, sys.path))
sys.path[:] = [sys.argv[1], *path]
import trio_offload_worker
sys.path[:] = path
from trio_offload_worker import _loop
_loop.main(sys.argv[2])
"""


def loop_command() -> list[str]:
    """The command line of a worker that is a loop in Python: this interpreter, under the name and with the switches that it has.

    What is to be run begins with the program's name, because a list of processes is cut off at the right.
    """
    folder = os.path.dirname(os.path.dirname(os.path.abspath(trio_offload_worker.__file__)))
    # In another locale that Python may be unable to decode more than ASCII, and would run nothing.
    label = program_label().encode("ascii", "replace").decode()
    code = f"# trio-offload worker of {label}\n{_BOOTSTRAP}"
    return [program_name(), *_interpreter_arguments(), "-c", code, folder, __version__]


def program_label() -> str:
    """What tells a person who looks at a list of processes whose worker one is: this program's name, in one short line."""
    first = next(iter(getattr(sys, "argv", ())), "")
    path = first.rstrip("/") if isinstance(first, str) else ""
    folder, name = os.path.split(path)
    if name == "__main__.py":
        # `python -m PACKAGE`.
        name = os.path.basename(folder) or name
    if name in ("", ".", "-c", "-m"):
        # Typed in: nothing tells more than which Python it is.
        name = os.path.basename(program_name())
    # It may hold anything; a line break would end a comment in the loop's command line.
    shown = "".join(character if character.isprintable() else "?" for character in name[:_LONGEST_LABEL])
    encoding = sys.getfilesystemencoding()
    return shown.encode(encoding, "replace")[:_LONGEST_LABEL].decode(encoding, "ignore")


def program_name() -> str:
    # Empty where Python was started under a name that leads to no program; from that name it has found all the rest.
    return sys.executable or (sys.orig_argv or [""])[0]


def _interpreter_arguments() -> list[str]:
    """The switches with which ``sys.executable`` becomes a Python like this one.

    What :func:`hello` says comes too late for these. (The standard library has the like of it, for multiprocessing, in
    ``subprocess._args_from_interpreter_flags``; but it leaves out what is meant for a main program only.)
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
    if "utf8_mode" in (asked := interpreter_flags()):
        options["utf8"] = str(asked["utf8_mode"])
    if sys.pycache_prefix is not None:
        options["pycache_prefix"] = sys.pycache_prefix
    for name, value in options.items():
        arguments += ["-X", name if value is True else f"{name}={value}"]
    for option in sys.warnoptions:
        arguments += ["-W", option]
    return arguments
