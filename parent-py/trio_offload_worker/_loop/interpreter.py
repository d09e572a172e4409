"""Check that a Python worker runs the parent's Python, and apply HELLO to this process.

Most values are correct already: the parent has started its own interpreter with its own switches
(``trio_offload._interpreter``). In a fork of the parent all are.
"""

from __future__ import annotations

import os
import sys

from .._protocol.frames import PROTOCOL_VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Refusal(Exception):
    """This process cannot become the wanted worker. ``code`` is as in REFUSED."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def apply_hello(hello: dict[str, Any], release: str, *, is_fork: bool = False) -> dict[str, Any]:
    """Apply HELLO. Return the body of WELCOME.

    Args:
        hello: the body of HELLO.
        release: the release of this package.
        is_fork: True if this process is a fork of the parent, so ``sys`` needs no change.

    Raises:
        Refusal: this process is not the parent's Python, or could not be set up.
    """
    if hello["protocol"] != PROTOCOL_VERSION:
        raise Refusal(
            "protocol_version",
            f"the parent speaks version {hello['protocol']} of the protocol, and this worker version {PROTOCOL_VERSION}. Install "
            "the same release of trio-offload on both sides",
        )
    if os.getppid() != hello["parent_pid"]:
        # The parent may have died, and this message with it.
        raise Refusal("wrong_parent", f"the process {hello['parent_pid']} that asked for this worker has ended")
    free_threaded = "t" in sys.abiflags
    if hello.get("free_threaded", False) is not free_threaded:
        builds = {True: "a free-threaded build", False: "a build with a GIL"}
        raise Refusal(
            "python_version",
            f"the parent's Python is {builds[not free_threaded]}, and the worker's is {builds[free_threaded]}: it was started as "
            f"{sys.executable}. Start the program with that very Python, not by a link that leads to another",
        )
    if sys.version != hello["version"]:
        raise Refusal(
            "python_version",
            f"the worker is another Python than the parent. The parent is {_line(hello['version'])}; the worker was started as "
            f"{sys.executable} and is {_line(sys.version)}. Has it been replaced since the program started?",
        )
    try:
        for name, value in hello["environment"]:
            if value is None:
                os.environb.pop(name, None)
            else:
                os.environb[name] = value
    except (OSError, ValueError) as error:
        raise Refusal("environment", f"an environment variable could not be restored: {error}") from error
    try:
        if not is_fork:
            _set_up_sys(hello)
    except Exception as error:
        raise Refusal("interpreter", f"Python started, but its sys module could not be set up: {error}") from error
    return {
        "protocol": PROTOCOL_VERSION,
        "worker": release,
        "pid": os.getpid(),
        "version": sys.version,
        "libpython": b"",
        "prefix": os.fsencode(sys.prefix),
        "exec_prefix": os.fsencode(sys.exec_prefix),
        **({"free_threaded": True} if free_threaded else {}),
    }


def _set_up_sys(hello: dict[str, Any]) -> None:
    for name in ("path", "argv", "orig_argv", "warnoptions"):
        # In place, because other modules hold the list.
        getattr(sys, name)[:] = map(os.fsdecode, hello[name])
    options = [os.fsdecode(option).partition("=") for option in hello["xoptions"]]
    sys._xoptions.clear()
    sys._xoptions.update({name: value if equals else True for name, equals, value in options})
    prefix = hello["pycache_prefix"]
    sys.pycache_prefix = None if prefix is None else os.fsdecode(prefix)
    sys.dont_write_bytecode = not hello["flags"].get("write_bytecode", True)
    digits = hello["flags"].get("int_max_str_digits")
    if digits is not None and hasattr(sys, "set_int_max_str_digits") and sys.get_int_max_str_digits() != digits:
        sys.set_int_max_str_digits(digits)
    lazy = hello["flags"].get("lazy_imports")
    if lazy is not None and hasattr(sys, "set_lazy_imports"):
        sys.set_lazy_imports("all" if lazy else "normal")


def _line(text: str) -> str:
    return text.replace("\n", " ")
