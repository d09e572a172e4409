"""Start workers as new processes: the worker executable, or the interpreter where there is none."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from trio_offload_worker._protocol.frames import Buffer, Kind, encode_head

from .._exceptions import WorkerStartError
from .._interpreter import command_line as _command_line
from .._interpreter import frozen as _frozen
from .._interpreter import hello as _hello
from .._interpreter import loader as _loader
from .._interpreter import locate as _locate
from .._interpreter import settings as _settings
from .._process import start as _process
from .._process.privileges import current_grant
from .._worker.handshake import WorkerHandshake, pickled_functions, setup_frame
from .._worker.launcher import Launcher
from .._worker.worker import Worker

if TYPE_CHECKING:
    from .._pickling.payload import Payload
    from .._process.process import WorkerProcess

_COERCION: Final = b"PYTHONCOERCECLOCALE"
_INSPECT: Final = b"PYTHONINSPECT"
_SPLASH: Final = b"_PYI_SPLASH_IPC"
_PRIVILEGES_HINT: Final = (
    "A worker starts with the privileges and the root directory that the program has at the call. After a change of either, "
    "the program's Python and this file must still be accessible."
)
_REMEDIES: Final = {
    errno.EACCES: "The executable may not be executed. Check its mode, the mount options of its file system (noexec), and the "
    f"security policy (SELinux, AppArmor; see the system's log). {_PRIVILEGES_HINT}",
    errno.EPERM: "A security policy (seccomp, AppArmor, a container's) forbids it; see the system's log.",
    errno.ENOENT: "The executable or its dynamic loader is missing. The usual cause is a build for another C library. "
    f"{_PRIVILEGES_HINT}",
    errno.ENOEXEC: "The executable was built for another processor.",
    errno.EAGAIN: "The limit of processes is reached (ulimit -u, or the container's limit).",
    errno.ENOMEM: "There is not enough memory.",
    errno.EMFILE: "This program has too many files open (ulimit -n).",
    errno.ENFILE: "The system has too many files open.",
    errno.EFBIG: "The limit of file sizes (ulimit -f, LimitFSIZE= of systemd) is too low for the worker's crash record, which "
    "has up to 256 KiB.",
    errno.ENOSPC: "There is no space left for the worker's crash record, in memory or in the directory for temporary files.",
}
"""Error number -> a sentence."""


class SpawnLauncher(Launcher):
    """Starts a new process for each worker."""

    def _begin(self, call: Payload | None) -> Worker:
        runtime = _locate.runtime()
        worker = self._new_worker()
        functions = pickled_functions(self, worker)
        worker.grant = current_grant(time.monotonic(), anew=True)
        if not runtime.is_native:
            worker.watch()
        worker.start = handshake = WorkerHandshake(worker, self, call)

        def greeting() -> list[Buffer]:
            settings = worker.current_settings()
            worker.sent_settings = _settings.current_snapshot()
            hello = _hello.hello(runtime.libpython, original_environment(runtime))
            eager = _settings.needs_eager_settings(settings)
            return [encode_head(Kind.HELLO, 0, (), hello), *setup_frame(self.options, settings, eager, functions)]

        try:
            try:
                output = worker.open_pipes()
            except OSError as error:
                remedy = _REMEDIES.get(error.errno or 0, "")
                raise WorkerStartError(f"a worker could not be started: {error.strerror}. {remedy}".rstrip()) from error
            handshake.greet(spawn(runtime, output=output), greeting)
        except BaseException:
            worker.keep(None)
            worker.close_pipes()
            raise
        return worker

    def failed_start_hint(self, process: WorkerProcess) -> str:
        if process.exitcode != 1 or _locate.runtime().is_native:
            return ""
        # Python's own exit status.
        hint = ". Python did not start in the worker, or did not find its library; standard error has the cause"
        if "PYTHONHOME" in os.environ:
            hint += (
                f". The variable PYTHONHOME is set to {os.environ['PYTHONHOME']!r}; is that where this Python is installed?"
            )
        return hint


def spawn(runtime: _locate.WorkerRuntime, *label: str, output: Mapping[int, int] = _process.NO_OUTPUT) -> _process.Started:
    """Spawn a process that runs the worker executable, or the interpreter.

    Args:
        runtime: what to run.
        label: further words for lists of processes, after the program's name.
        output: files that replace its descriptors of these numbers.

    Raises:
        WorkerStartError: the system refuses it; the message names a remedy.
    """
    environment = _hello.environment()
    if runtime.is_native:
        executable = runtime.executable
        argv = _process.executable_command(executable, _command_line.program_label(), *label)
        bundle = _frozen.bundle()
        # The libraries of the app's extension modules lie in its folder. Elsewhere the loader would
        # find the system's libraries of the same names.
        folders = [] if bundle is None else [bundle.folder]
        if bundle is not None and _SPLASH in environment:
            # A worker does not use the splash screen that the app may show.
            environment[_SPLASH] = b"0"
        _loader.lead(environment, runtime.libpython, is_loaded=runtime.is_loaded, folders=folders)
    else:
        executable = _locate.interpreter()
        if not executable:
            raise WorkerStartError(
                f"a worker could not be started as {sys.executable}: it is missing, or may not be executed. {_PRIVILEGES_HINT}"
            )
        argv = _command_line.loop_command()
        # Python sets LC_CTYPE if it finds the C locale (PEP 538), and the parent has done so where
        # needed. In the worker it would only change the environment that the worker gets.
        environment[_COERCION] = b"0"
        # With this variable, Python starts a prompt instead of exiting.
        environment.pop(_INSPECT, None)
    for name in original_environment(runtime).keys() & environment.keys():
        # Moved to the end. Modules that name a process (setproctitle) find its command line before
        # the first variable, and a variable that the worker restores moves in memory.
        environment[name] = environment.pop(name)
    try:
        return _process.spawn(executable, environment, argv, output)
    except OSError as error:
        raise WorkerStartError(
            f"a worker could not be started as {executable}: {os.strerror(error.errno or 0)}. "
            + _REMEDIES.get(error.errno or 0, "Reinstalling trio-offload may help.")
        ) from error


def original_environment(runtime: _locate.WorkerRuntime) -> dict[bytes, bytes | None]:
    """Return the original values of the variables that are changed to start a worker."""
    names = [_loader.PRELOAD, _loader.LIBRARY_PATH] if runtime.is_native else [_COERCION, _INSPECT]
    return {name: os.environb.get(name) for name in names}


def not_forked(error: OSError | RuntimeError) -> WorkerStartError:
    """Return the error for a fork that the system, or Python, has refused."""
    code = error.errno or 0 if isinstance(error, OSError) else 0
    cause = os.strerror(code) if code else str(error)
    return WorkerStartError(f"a worker could not be forked: {cause}. {_REMEDIES.get(code, '')}".rstrip())
