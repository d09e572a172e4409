"""How a worker ended, and the error that says so."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import trio

from trio_offload_worker._jobs.notes import add_note
from trio_offload_worker._protocol.frames import Frame, WireError

from .. import _exceptions
from .._exceptions import BrokenWorkerError, JobExitError, RemoteError, WorkerMemoryError
from .._pickling import calls as _calls
from .._pickling import payload as _payload
from .._process import oom as _oom
from .._process import record as _record
from .._sizes import readable_limit, readable_size
from .._transport.channel import EndOfStream

if TYPE_CHECKING:
    from .._crash import CrashRecord
    from .._process.process import WorkerProcess

# PROTOCOL.md, "The worker's exit codes". A sentinel that is a process ends the worker by a signal.
# Before that the worker writes its stacks. `faulthandler` reads frames of threads that run on, so
# it may meet one that is gone (CPython, Python/traceback.c, _Py_DumpTracebackThreads).
MEMORY_LIMIT_EXITS: Final = (7, -signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS)
MAX_LOST: Final = 5  # new workers that may exit before they begin one call
# Raised in the parent, these would end it, or confuse Trio.
_CONTROLLING: Final = (SystemExit, KeyboardInterrupt, GeneratorExit, trio.Cancelled)
# By name: few programs need the module.
_ERRORS_OF_JOBS: Final = "trio_offload_worker.from_worker"
_STAGES: Final = {
    "unpickle": "(while the worker unpickled the function and its arguments)",
    "pickle": "(while the worker pickled the result)",
}


def describe_ending(process: WorkerProcess) -> str:
    """Describe the end of a process, in words that follow `the worker`."""
    code = process.exitcode
    if code is None:
        return "ended with an unknown status: other code in this program reaped it (SIGCHLD ignored, or a foreign waitpid)"
    if code >= 0:
        return f"exited with status {code}"
    if process.killed and code == -signal.SIGKILL:
        # It closed its end of the socket. A worker that replaces its program (exec) does so too.
        return "stopped answering without exiting, and was killed"
    if process.signal is None:
        return f"died of signal {-code}"
    return f"died of {process.signal.name}"


def judge_death(
    process: WorkerProcess,
    when: str,
    told: _record.MemoryLimit | None,
    crash: CrashRecord,
    kills: _oom.OomKills,
    began: float,
    memory_limit: int | None,
) -> BrokenWorkerError:
    """Return the error for a worker that ended in a call, without having been told to.

    Args:
        process: the process, reaped.
        when: the end of the message's first clause.
        told: the memory limit that the worker says it exceeded.
        crash: the record of the death.
        kills: the counters of the OOM killer when the worker was last known to live.
        began: when the call began, on the clock of `time.monotonic`; for the first call, when the
            process did.
        memory_limit: of the context, in bytes.
    """
    error: BrokenWorkerError
    if process.exitcode in MEMORY_LIMIT_EXITS and told is not None and memory_limit is not None:
        error = WorkerMemoryError(
            f"worker {process.pid} was ended {when}: it used {readable_size(told.reached, like=told.limit)} with its child "
            f"processes, and memory_limit is {readable_limit(told.limit)}",
            process,
        )
        error.limit, error.reached = told.limit, told.reached
        return error
    killer = None
    if process.signal is signal.SIGKILL and not process.killed:
        killer = _oom.explain_kill(kills, crash.rss, began)
    if killer is not None and killer.certain:
        error = WorkerMemoryError(f"worker {process.pid} was killed (SIGKILL) {when}, {killer.text}", process)
        error.limit, error.reached = memory_limit, crash.rss
        return error
    hint = "" if killer is None else f", {killer.text}"
    return BrokenWorkerError(f"worker {process.pid} {describe_ending(process)} {when}{hint}", process)


def describe_failed_start(
    process: WorkerProcess,
    error: EndOfStream | WireError,
    left_behind: str,
    init: Callable[[], Any],
    hint: str,
) -> str:
    """Describe the end of a worker before it was ready, with a remedy.

    Args:
        process: its process, reaped.
        error: the failed read.
        left_behind: the text of its record.
        init: the function that it had to call first.
        hint: the launcher's remedy, for an end without a known cause.
    """
    if isinstance(error, WireError):
        return f"worker {process.pid} was ended: its first message violates the protocol ({error})"
    told, stack = _record.parse_record(left_behind)
    if process.exitcode in MEMORY_LIMIT_EXITS and told is not None:
        return (
            f"worker {process.pid} was ended while it ran init, {_payload.function_name(init)}: it used "
            f"{readable_size(told.reached, like=told.limit)}, and memory_limit is {readable_limit(told.limit)}"
        )
    if process.exitcode == 127:
        # The dynamic loader's exit status; standard error names the missing file.
        hint = secure_execution_hint() or (
            ". The dynamic loader could not load the executable or a library that it needs; standard error has its message. "
            f"Most likely the executable was built for another minor version of Python than {sys.version.split()[0]}. "
            f"Reinstall trio-offload with this interpreter: {sys.executable} -m pip install --force-reinstall trio-offload"
        )
    elif stack:
        hint = f". Python stack at the end:\n{stack}"
    return f"worker {process.pid} {describe_ending(process)} before it was ready{hint}"


def workers_lost(function_name: str, lost: Sequence[WorkerProcess]) -> BrokenWorkerError:
    """Return the error of a call whose new workers exited before they began it."""
    return BrokenWorkerError(
        f"{len(lost)} workers for a call of {function_name} exited before they began it, one after the other. "
        "Check whether init starts something that ends them",
        *lost,
    )


def with_lost(lost: list[WorkerProcess] | None, process: WorkerProcess, function_name: str) -> list[WorkerProcess]:
    """Return the new workers that exited before they began a call, with one more.

    Raises:
        BrokenWorkerError: they are too many. If each new one exits, this must end.
    """
    lost = [*(lost or ()), process]
    if len(lost) == MAX_LOST:
        raise workers_lost(function_name, lost) from None
    return lost


def load_exception(frame: Frame) -> BaseException:
    """Return the exception of a RAISED or SETUP_FAILED, or a stand-in."""
    told = RemoteError(frame.body["type"], frame.body["message"], frame.body["traceback"])
    if not frame.segments:
        return told
    try:
        error = _calls.load(frame.segments)
    except BaseException as why:
        told.__cause__ = why
        return told
    if not isinstance(error, BaseException):
        return told
    if type(error).__module__ == _ERRORS_OF_JOBS:
        error = _as_here(error)
    stage = _STAGES.get(frame.body["stage"])
    if stage is not None:
        add_note(error, stage)
    return error


def is_cancellation(error: BaseException) -> bool:
    """Return True for the exception that a cancelled job raises."""
    kind = type(error)
    return kind.__name__ == "Cancelled" and kind.__module__ == _ERRORS_OF_JOBS


def _as_here(error: BaseException) -> BaseException:
    """Return the exception for which one of a job stands, such as :exc:`trio.EndOfChannel`."""
    name = type(error).__name__
    kind = getattr(_exceptions, name, None) or getattr(trio, name, None)
    if name in ("Cancelled", "RemoteError") or kind is None:
        return error
    twin: BaseException = kind(*error.args).with_traceback(error.__traceback__)
    twin.__dict__.update(error.__dict__)
    twin.__cause__, twin.__context__ = error.__cause__, error.__context__
    twin.__suppress_context__ = error.__suppress_context__
    return twin


async def raise_cancelled(error: BaseException) -> None:
    """Raise Trio's Cancelled for that of a job, whose caller is cancelled.

    Raises:
        JobExitError: the caller is no longer cancelled.
    """
    if is_cancellation(error):
        await trio.lowlevel.checkpoint_if_cancelled()
        raise contained(error)


def contained(error: BaseException) -> BaseException:
    """Return the error of a call for the exception of its job."""
    if isinstance(error, Exception) or not _controls_process(error):
        return error
    shown = f"{type(error).__name__}: {error}".removesuffix(": ")
    instead = JobExitError(f"the job raised {shown}")
    instead.__cause__ = error
    for note in getattr(error, "__notes__", ()):
        add_note(instead, str(note))
    return instead


def _controls_process(error: BaseException) -> bool:
    inner: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    return isinstance(error, _CONTROLLING) or is_cancellation(error) or any(map(_controls_process, inner))


def secure_execution_hint() -> str:
    """Return why the loader ignores its environment: effective and real user differ (ld.so(8))."""
    if os.getuid() == os.geteuid() and os.getgid() == os.getegid():
        return ""
    return (
        f" (The effective user and group of this program, {os.geteuid()} and {os.getegid()}, differ from the real ones, "
        f"{os.getuid()} and {os.getgid()}. So the dynamic loader of a worker ignores its search path: secure-execution mode, "
        "ld.so(8). Change the real ones too, with os.setresuid and os.setresgid.)"
    )
