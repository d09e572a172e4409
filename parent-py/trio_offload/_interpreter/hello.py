"""The body of a HELLO: facts about this interpreter that a worker must know before Python runs, see PROTOCOL.md."""

from __future__ import annotations

import os
import sys
from typing import Any

from trio_offload_worker._protocol.frames import PROTOCOL_VERSION

from . import frozen as _frozen
from .command_line import program_name
from .flags import encoded, flags
from .locate import is_free_threaded


def hello(
    libpython: str, environment: dict[bytes, bytes | None], *, forked: tuple[list[int], bool] | None = None
) -> dict[str, Any]:
    """The body of a HELLO.

    Args:
        libpython: the path of the libpython that belongs to this interpreter; empty if it has none.
        environment: the variables that were changed to start the worker, with the values that they get back.
        forked: the worker is forked off a template, which has had all that Python needs to start. Which of the standard streams
            come along, and whether the working directory does.
    """
    return {
        "protocol": PROTOCOL_VERSION,
        "parent_pid": os.getpid(),
        "version": sys.version,
        "libpython": os.fsencode(libpython),
        "environment": [[name, value] for name, value in environment.items()],
        "program_name": os.fsencode(program_name()),
        "argv": encoded(getattr(sys, "argv", ())),
        "orig_argv": encoded(sys.orig_argv),
        "path": encoded(sys.path),
        "warnoptions": encoded(sys.warnoptions),
        "xoptions": [
            os.fsencode(name if value is True else f"{name}={value}")
            for name, value in sys._xoptions.items()
            if isinstance(name, str) and (value is True or isinstance(value, str))
        ],
        "pycache_prefix": None if sys.pycache_prefix is None else os.fsencode(sys.pycache_prefix),
        "flags": flags(),
        **(_frozen.hello_keys() if forked is None else {"streams": forked[0]}),
        **({"directory": True} if forked is not None and forked[1] else {}),
        **({"free_threaded": True} if is_free_threaded() else {}),
    }


def environment() -> dict[bytes, bytes]:
    """A copy of :data:`os.environb`."""
    # That reads itself with Python code, at a microsecond for each variable, which the start of a forked worker would feel. The
    # dictionary behind it is not public; should a later Python have none, the copy is made in the public way.
    behind = getattr(os.environb, "_data", None)
    return behind.copy() if type(behind) is dict else dict(os.environb)
