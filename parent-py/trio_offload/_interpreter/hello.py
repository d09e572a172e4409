"""The body of HELLO: facts that a worker must know before Python runs. See PROTOCOL.md."""

from __future__ import annotations

import os
import sys
from typing import Any

from trio_offload_worker._protocol.frames import PROTOCOL_VERSION

from . import frozen
from .command_line import program_name
from .flags import encoded, flags
from .locate import is_free_threaded


def hello(
    libpython: str, environment: dict[bytes, bytes | None], *, forked: tuple[list[int], bool] | None = None
) -> dict[str, Any]:
    """Return the body of HELLO.

    Args:
        libpython: Path of this interpreter's libpython; empty without one.
        environment: The variables that were changed for the start, with the values to restore.
        forked: For a worker that a template forks: the standard streams that are passed, and True
            if the working directory is. None for other workers.
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
        **(frozen.hello_keys() if forked is None else {"streams": forked[0]}),
        **({"directory": True} if forked is not None and forked[1] else {}),
        **({"free_threaded": True} if is_free_threaded() else {}),
    }


def environment() -> dict[bytes, bytes]:
    """Return a copy of :data:`os.environb`."""
    # Copying the private dictionary saves a microsecond per variable. Without it the public way is
    # used.
    data = getattr(os.environb, "_data", None)
    return data.copy() if type(data) is dict else dict(os.environb)
