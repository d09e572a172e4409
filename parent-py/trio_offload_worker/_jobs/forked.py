"""What a worker that was forked off a template takes over of the parent before its first job, and how it ends.

Imported by the template, so that it is there in every worker.
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


def catch_up(environment: dict[bytes, bytes | None], pycache_prefix: bytes | None) -> None:
    """Take over what has changed in the parent since the template was started, and have random numbers of one's own.

    Args:
        environment: the variables that have changed; None: it is gone.
        pycache_prefix: ``sys.pycache_prefix`` as the parent has it.
    """
    for name, value in environment.items():
        if value is not None:
            os.environb[name] = value
        else:
            os.environb.pop(name, None)
    if b"TZ" in environment:
        # The C library has read it when the template was started.
        time.tzset()
    sys.pycache_prefix = None if pycache_prefix is None else os.fsdecode(pycache_prefix)
    # Python's own `random` does it by itself at each fork; NumPy does not.
    random: Any = sys.modules.get("numpy.random")
    seed = getattr(random, "seed", None)
    if seed is not None:
        seed()


def leave() -> bool:
    """Do at the end of a worker what has to be done for others to see; whether standard output could be written.

    As the processes that multiprocessing forks, and unlike those that start Python themselves, it does not take the interpreter
    apart: every object of the template's would be touched, and each page copied for that, which takes several times as long as
    the fork. So threads are joined, exit handlers run and files written out; ``__del__`` of what lives on is not called.
    """
    join_threads()
    run_exit_handlers()
    # Those that the template has had belong to all workers; they are not among the objects that are listed.
    for file in gc.get_objects():
        if type(file) in _FILES and not file.closed:
            try:
                file.flush()
            except Exception:
                # A file that Python closes at its end tells nobody either.
                pass
    return flush_at_exit()


_FILES = (_io.TextIOWrapper, _io.BufferedWriter, _io.BufferedRandom)
