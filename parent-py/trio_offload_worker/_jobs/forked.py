"""The start and the exit of a worker that was forked from a template.

The template imports this module, so it is loaded in every such worker.
"""

from __future__ import annotations

import _io
import gc
import os
import sys
import time

from .compat import join_threads, run_exit_handlers
from .guards import flush_at_exit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def refresh(environment: dict[bytes, bytes | None], pycache_prefix: bytes | None) -> None:
    """Apply the parent's changes since the template started, and reseed random numbers.

    Args:
        environment: the changed variables; None means that the variable is gone.
        pycache_prefix: the parent's ``sys.pycache_prefix``.
    """
    for name, value in environment.items():
        if value is not None:
            os.environb[name] = value
        else:
            os.environb.pop(name, None)
    if b"TZ" in environment:
        # The C library read it when the template started.
        time.tzset()
    sys.pycache_prefix = None if pycache_prefix is None else os.fsdecode(pycache_prefix)
    # Python reseeds its own `random` at each fork; NumPy does not.
    random: Any = sys.modules.get("numpy.random")
    seed = getattr(random, "seed", None)
    if seed is not None:
        seed()


def leave() -> bool:
    """Do the visible work of an exit. Return whether standard output could be written.

    Threads are joined, exit handlers run and files flushed; ``__del__`` of live objects is not
    called. A normal exit would finalize the interpreter. That touches every object of the template
    and copies each of its pages, which takes several times as long as the fork. The forked
    processes of multiprocessing exit like this too.
    """
    join_threads()
    run_exit_handlers()
    # The template's own files are shared by all workers. They are frozen, so ``get_objects`` does
    # not list them.
    for file in gc.get_objects():
        if type(file) in _FILES and not file.closed:
            try:
                file.flush()
            except Exception:
                # Python ignores errors of files that it closes at its exit, too.
                pass
    return flush_at_exit()


_FILES = (_io.TextIOWrapper, _io.BufferedWriter, _io.BufferedRandom)
