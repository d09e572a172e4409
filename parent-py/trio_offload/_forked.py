"""A worker that is a fork of this process: what is told to it, and what of Trio and of this package its copy lets go of.

The rest of the copy's beginning, and its end, is ``trio_offload_worker._loop.fork``. Rules that the code below keeps:

* The fork happens in the thread and the task that need the worker, with all that is on the stack by then. In the copy that
  thread is the main thread, with its thread-local variables, and owns the locks that it owned. A thread made for the fork would
  have an empty stack and no Trio to forget; but with the copy of the thread that runs Trio, Python would destroy its
  thread-local variables (a session with a database, say), and what it has locked (a module that is just being imported) would
  stay locked.
* The copy is not in ``trio.run`` any more, and touches nothing of that run. Its epoll instance and its sockets are the parent's.
* What the parent has printed and not written is written before the fork, so that it comes out once.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final, NoReturn

from trio._core._run import GLOBAL_RUN_CONTEXT

from trio_offload_worker._jobs.guards import flush
from trio_offload_worker._loop import fork as worker_fork
from trio_offload_worker._loop.executor import Inherited
from trio_offload_worker._protocol.frames import PROTOCOL_VERSION
from trio_offload_worker._system.linux import call_library

from . import _at_exit
from ._interpreter import locate as _locate
from ._interpreter import settings as _settings
from ._process import start as _process
from ._version import __version__

if TYPE_CHECKING:
    import socket

    from ._process.process import WorkerProcess
    from ._process.record import RecordFile


def start(
    init: Callable[[], Any] | None, retire: Callable[[], Any] | None
) -> tuple[WorkerProcess, socket.socket, RecordFile]:
    """Fork a worker; its process, our end of its socket, and the file that it writes to before it dies.

    ``init`` and ``retire`` are called there, as they are; None: there is nothing to call. Takes as long as the kernel needs to copy
    this process's page tables.

    Raises:
        OSError, RuntimeError: the system, or Python, does not allow a fork.
    """
    parent = os.getpid()

    quiet = ExitStack()
    filters = _settings.filters_in_force(warnings)

    def child(socket: int, record: int) -> NoReturn:
        quiet.close()
        if filters is not warnings.filters:
            # The worker runs in an empty context (contextvars).
            warnings.filters[:] = filters  # type: ignore[index]
        _forget_trio()
        # Of the task that waits for this worker; it may be in the middle of an `except`.
        inherited = Inherited(init, retire)
        # The parent's exit handlers are not called there, this one among them; but its jobs may use a default context.
        worker_fork.serve(socket, record, parent, inherited, __version__, _at_exit.handlers)

    _write_out()
    with quiet:
        quiet.enter_context(_quiet_filters())
        mask = worker_fork.block_handled_signals()
        try:
            return _process.fork(child)
        finally:
            worker_fork.restore_signals(mask)


def hello() -> dict[str, Any]:
    """The body of a HELLO to a fork: it has all the rest."""
    lists: dict[str, list[Any]] = {
        name: [] for name in ("environment", "argv", "orig_argv", "path", "warnoptions", "xoptions")
    }
    return {
        "protocol": PROTOCOL_VERSION,
        "parent_pid": os.getpid(),
        "version": sys.version,
        "libpython": b"",
        "program_name": b"",
        "pycache_prefix": None,
        "flags": {},
        **({"free_threaded": True} if _locate.is_free_threaded() else {}),
        **lists,
    }


def settings() -> dict[str, Any]:
    """:func:`_settings.current_settings` for a fork: it has this process's main module and warning filters."""
    inherited = getattr(sys.modules.get("trio_offload_worker._jobs.main_module"), "_number", None)
    return _settings.current_settings() | {
        "main": {"kind": "none", "why": "is the parent's"},
        # Where this process is a worker itself, and has loaded a main script: as there.
        "main_number": inherited,
        "warning_filters": None,
    }


class Definitions:
    """The functions and classes that are in ``__main__`` at this moment, by which a fork of this moment finds them there."""

    def __init__(self) -> None:
        self._main = sys.modules.get("__main__")
        self._known = {name: weakref.ref(value) for name, value in self._current()}

    def are_current(self) -> bool:
        """Whether none has been added since, or defined anew. What has been deleted is no matter: no call can name it."""
        if sys.modules.get("__main__") is not self._main:
            return False
        for name, value in self._current():
            known = self._known.get(name)
            if known is None or known() is not value:
                return False
        return True

    def _current(self) -> Iterator[tuple[str, Any]]:
        # A copy in one step, whatever other threads define meanwhile.
        for name, value in list(vars(self._main).items()) if self._main is not None else []:
            if isinstance(value, (types.FunctionType, type)):
                yield name, value


def without_parents_frames(stack: str) -> str:
    """What a worker left behind, without the frames that it has from this process; they say nothing of its death."""
    lines: list[str] = []
    inside = True
    for line in stack.splitlines():
        if not line.startswith("  "):
            inside = True
        if inside:
            lines.append(line)
        if line.startswith("  File ") and line.endswith(" in serve") and "_loop/fork.py" in line:
            inside = False
    return "\n".join(lines)


def _write_out() -> None:
    """Also what C code has printed: the copy ends without the C library's exit, which would write it a second time."""
    flush()
    # Without the GIL, because whoever reads it may be a thread of this process.
    call_library("fflush", None, keep_gil=False)


@contextmanager
def _quiet_filters() -> Iterator[None]:
    """From Python 3.12 on :func:`os.fork` warns where there are other threads. Who asks for forks has been told of that.

    The filter is for this module alone, and is taken out of the list that it was put into, whatever other threads do to the
    filters meanwhile. Python is not told of the change: it would forget which other warnings it has shown already.
    """
    if not _WARNS_OF_THREADS:
        yield
        return
    entry = ("ignore", None, DeprecationWarning, _FORKING_MODULE, 0)
    filters = _settings.filters_in_force(warnings)
    # From Python 3.14 on there is a lock for them.
    lock: Any = getattr(warnings, "_lock", nullcontext())
    with lock:
        filters.insert(0, entry)
    try:
        yield
    finally:
        with lock:
            filters.remove(entry)


_WARNS_OF_THREADS: Final = sys.hexversion >= 0x030C0000
_FORKING_MODULE: Final = re.compile(re.escape(_process.__name__) + r"\Z")


def _forget_trio() -> None:
    """In the copy: it is not inside of ``trio.run``. What belongs to that is let go of, and not ended: it is the parent's too."""
    context: Any = GLOBAL_RUN_CONTEXT
    runner = getattr(context, "runner", None)
    vars(context).clear()
    library = getattr(sys.modules.get("sniffio"), "thread_local", None)
    if library is not None:
        library.name = None
    # Older releases do not see by themselves that the threads which wait for work are not there; a job's would wait for them.
    idle = getattr(getattr(sys.modules.get("trio._core._thread_cache"), "THREAD_CACHE", None), "_idle_workers", None)
    if idle is not None:
        idle.clear()
    if runner is None:
        return
    for owner, name in ((runner, "io_manager"), (getattr(runner, "entry_queue", None), "wakeup")):
        try:
            getattr(owner, name).close()
        except Exception:
            # Another release of Trio may keep them elsewhere. Then they stay open here, which nobody notices.
            pass
    signal.set_wakeup_fd(-1)
