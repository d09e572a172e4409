"""Start workers as forks of this process, and release what a copy has of Trio and of this package.

The rest of the copy's beginning, and its end, is ``trio_offload_worker._loop.fork``. The rules:

* The fork happens in the thread and the task that need the worker, with the whole stack. In the
  copy that thread is the main thread. It keeps its thread-local variables and the locks that it
  holds. A thread made for the fork would have an empty stack, and Trio would not have to be left.
  But in the copy, Python would destroy the thread-local variables of the thread that runs Trio (a
  database session, for example). Its locks would stay locked (of a module that is being imported).
* The copy is outside of ``trio.run``, and does not touch that run. Its epoll instance and its
  sockets are the parent's.
* Text that the parent has printed but not written is written before the fork, so it appears once.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final, NoReturn

from trio._core._run import GLOBAL_RUN_CONTEXT

from trio_offload_worker._jobs.guards import flush
from trio_offload_worker._loop import fork as worker_fork
from trio_offload_worker._loop.executor import Inherited
from trio_offload_worker._protocol.frames import PROTOCOL_VERSION, Buffer, Kind, encode_head
from trio_offload_worker._system.linux import call_library, stat_fields

from .. import _at_exit
from .._exceptions import WorkerStartError
from .._interpreter import locate as _locate
from .._interpreter import settings as _settings
from .._interpreter.main_snapshot import MainSnapshot
from .._process import start as _process
from .._process.output import close_in_copy
from .._process.privileges import current_grant
from .._version import __version__
from .._worker.handshake import WorkerHandshake, reported, setup_frame
from .._worker.launcher import Launcher
from .._worker.worker import Worker
from .spawn import not_forked

if TYPE_CHECKING:
    from trio_offload_worker._protocol.frames import Frame

    from .._pickling.payload import Payload


class ForkLauncher(Launcher):
    """Forks this process for each worker."""

    inherits_main = True

    def _begin(self, call: Payload | None) -> Worker:
        _locate.refuse_untried_build()
        options = self.options
        worker = self._new_worker(_ForkedWorker if options.memory_limit is None else _LimitedFork)
        worker.grant = current_grant(time.monotonic(), anew=True)
        # The worker's Python loop has a process that watches it.
        worker.watch()
        worker.start = handshake = WorkerHandshake(worker, self, call)
        settings = worker.current_settings()
        worker.sent_settings = _settings.current_snapshot()
        eager = _settings.needs_eager_settings(settings)
        # Before the fork, as the snapshot below: other threads may change both facts.
        # What changes after this is sent, or found, before a call.
        greeting: list[Buffer] = [
            encode_head(Kind.HELLO, 0, (), hello()),
            *setup_frame(options, settings, eager, (b"", b"")),
        ]
        worker.main_snapshot = MainSnapshot()
        init = reported(self)
        retire = None if options.retire is bool else options.retire
        handles: Any = sys.modules.get(_HANDLES)
        with ExitStack() as shown:
            if handles is not None:
                from .._worker.lasting import LastingGrants  # few programs need it

                handles.number_all()
                events = shown.enter_context(handles.shown_in_copy(options.init, options.retire))
                worker.keep(LastingGrants(events, handles.grant_of_copy))
            try:
                started = fork(init, retire, worker.open_pipes())
            except (OSError, RuntimeError) as error:
                worker.close_pipes()
                raise not_forked(error) from error
        handshake.greet(started, lambda: greeting)
        return worker


class _ForkedWorker(Worker):
    """A fork of this process."""

    __slots__ = ()
    inherits_program = True

    def current_settings(self) -> dict[str, Any]:
        # The fork has this process's main module and warning filters. Where this process is a
        # worker itself, and has loaded a main script, the number of that.
        inherited = getattr(sys.modules.get("trio_offload_worker._jobs.main_module"), "_number", None)
        return super().current_settings() | {
            "main": {"kind": "none", "why": "is the parent's"},
            "main_number": inherited,
            "warning_filters": None,
        }

    def _cleaned(self, left_behind: str) -> str:
        return without_parents_frames(left_behind)


class _LimitedFork(_ForkedWorker):
    """A fork with a memory limit, which its sentinel process enforces."""

    __slots__ = ()

    def become_ready(self, ready: Frame, call: Payload | None) -> None:
        if stat_fields(self.process.pid) is None:
            # After a change of the user, forks do not see each other with hidepid (proc(5)).
            raise WorkerStartError(
                "memory_limit cannot be enforced here, because /proc hides this program's forks (hidepid, after a change of "
                "the user). Use another worker type, mount /proc without hidepid, or leave memory_limit out",
                self.process,
            )
        super().become_ready(ready, call)


def fork(
    init: Callable[[], Any] | None,
    retire: Callable[[], Any] | None,
    output: Mapping[int, int] = _process.NO_OUTPUT,
) -> _process.Started:
    """Fork a worker. It takes as long as the kernel needs to copy this process's page tables.

    Args:
        init: function that the worker calls first, as it is. None means none.
        retire: function that the worker calls after each job. None means none.
        output: files that replace its descriptors of these numbers.

    Raises:
        OSError, RuntimeError: the system, or Python, does not allow a fork.
    """
    parent = os.getpid()
    quiet = ExitStack()
    filters = _settings.filters_in_force(warnings)

    def child(socket: int, record: int) -> NoReturn:
        quiet.close()
        if output:
            for number, file in output.items():
                os.dup2(file, number)
            close_in_copy()
            # The program may have replaced these, by streams that write elsewhere.
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        if filters is not warnings.filters:
            # The worker runs in an empty context (contextvars).
            warnings.filters[:] = filters  # type: ignore[index]
        _forget_trio()
        _let_handles_speak()
        # Made here: the task that needs the worker may be handling an exception.
        inherited = Inherited(init, retire)
        # The copy skips the exit handlers that it inherits, and runs these: its jobs may use a
        # default context.
        worker_fork.serve(socket, record, parent, inherited, __version__, _at_exit.handlers)

    _flush_output()
    with quiet:
        quiet.enter_context(_quiet_filters())
        mask = worker_fork.block_handled_signals()
        try:
            return _process.fork(child)
        finally:
            worker_fork.restore_signals(mask)


def _let_handles_speak() -> None:
    """Let the program's locks, channels and so on work in the copy, if there are any."""
    handles: Any = sys.modules.get(_HANDLES)
    if handles is not None:
        handles.speak_in_copy()


def hello() -> dict[str, Any]:
    """Return the body of HELLO for a fork, which has inherited everything else."""
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


def without_parents_frames(stack: str) -> str:
    """Return the text of a worker's record without the stack frames of this process."""
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


def _flush_output() -> None:
    """Write the output of Python and C code now, so that the copy does not repeat it."""
    flush()
    # Without the GIL, because the reader may be a thread of this process.
    call_library("fflush", None, keep_gil=False)


@contextmanager
def _quiet_filters() -> Iterator[None]:
    """Suppress the warning about other threads that :func:`os.fork` gives from Python 3.12 on.

    The documentation of ``WorkerType.FORK`` warns of them. The filter is for one module. It is
    removed from the list to which it was added, even if other threads have replaced the list.
    Python is not told of the change, because it would forget which other warnings it has shown.
    """
    if not _WARNS_OF_THREADS:
        yield
        return
    entry = ("ignore", None, DeprecationWarning, _FORKING_MODULE, 0)
    filters = _settings.filters_in_force(warnings)
    # From Python 3.14 on a lock guards the filters.
    lock: Any = getattr(warnings, "_lock", nullcontext())
    with lock:
        filters.insert(0, entry)
    try:
        yield
    finally:
        with lock:
            filters.remove(entry)


# Loaded in programs with handles only.
_HANDLES: Final = "trio_offload._sync.handles"
_WARNS_OF_THREADS: Final = sys.hexversion >= 0x030C0000
_FORKING_MODULE: Final = re.compile(re.escape(_process.__name__) + r"\Z")


def _forget_trio() -> None:
    """Leave ``trio.run`` in the copy. Its resources are only closed: the parent uses them."""
    context: Any = GLOBAL_RUN_CONTEXT
    runner = getattr(context, "runner", None)
    vars(context).clear()
    library = getattr(sys.modules.get("sniffio"), "thread_local", None)
    if library is not None:
        library.name = None
    # Older releases of Trio do not notice that the idle threads are missing. A job would wait for
    # them.
    idle = getattr(getattr(sys.modules.get("trio._core._thread_cache"), "THREAD_CACHE", None), "_idle_workers", None)
    if idle is not None:
        idle.clear()
    if runner is None:
        return
    for owner, name in ((runner, "io_manager"), (getattr(runner, "entry_queue", None), "wakeup")):
        try:
            getattr(owner, name).close()
        except Exception:
            # Another release of Trio may keep them elsewhere. Then they stay open, which is
            # harmless.
            pass
    signal.set_wakeup_fd(-1)
