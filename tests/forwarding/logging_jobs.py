"""Jobs that log."""

from __future__ import annotations

import gc
import logging
import logging.config
import os
import signal
import sys
import threading
import types
import warnings
from collections.abc import Callable
from typing import Any

import trio
from jobs import take_line

log = logging.getLogger("library.part")


class Unpicklable:
    """A value whose class forbids a pickle."""

    def __reduce__(self) -> Any:
        raise TypeError("not me")

    def __repr__(self) -> str:
        return "<it>"


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no text")

    __reduce__ = Unpicklable.__reduce__


def say(*texts: str, level: int = logging.INFO) -> None:
    for text in texts:
        log.log(level, "%s", text)


def say_to(names: list[str], level: int) -> list[bool]:
    """Log a record with each of these loggers; which of them would have made it."""
    for name in names:
        logging.getLogger(name).log(level, "to %s", name)
    return [logging.getLogger(name).isEnabledFor(level) for name in names]


def say_everything() -> tuple[int, int, int]:
    """One record with all that a record may have."""
    extra = {"number": 7, "point": 1 + 2j, "opaque": Unpicklable(), "dumb": Unprintable(), "where": ("a", 1)}
    try:
        raise ValueError("bad")
    except ValueError:
        log.error("%s and %d", "text", 5, exc_info=True, stack_info=True, extra=extra)
    return os.getpid(), threading.get_ident(), sys._getframe().f_lineno - 1


class OwnError(Exception):
    """An error with attributes."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class OpaqueError(Exception):
    __reduce__ = Unpicklable.__reduce__  # type: ignore[assignment]


def open_files(folder: str) -> None:
    """Add handlers with names, one with a level."""
    for name in ("kept", "strict", "other"):
        handler = logging.FileHandler(os.path.join(folder, name))
        handler.name = name
        logging.getLogger("library").addHandler(handler)
        if name == "strict":
            handler.setLevel(logging.ERROR)


def say_exceptions() -> None:
    try:
        raise LookupError("no row")
    except LookupError as error:
        log.exception("plain")
        try:
            raise OwnError(5) from error
        except OwnError:
            log.exception("chained")
    try:
        raise OpaqueError("with a lock")
    except OpaqueError:
        log.exception("opaque")
    log.error("none", exc_info=True)


def say_and_end(text: str, how: str) -> None:
    log.warning(text)
    if how == "raise":
        raise ValueError("no")
    os.kill(os.getpid(), signal.SIGKILL)


def say_wrongly() -> None:
    log.warning("%d", "no number")
    log.warning("right")


def count(number: int) -> int:
    for index in range(number):
        log.info("record %d", index)
    return number


def say_item(item: int) -> int:
    log.info("item %d", item)
    return item


def say_in_threads(number: int) -> None:
    threads = [threading.Thread(target=say, args=(f"from {index}",), name=f"thread {index}") for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def say_between(callback: Callable[[str], None]) -> None:
    for index in range(3):
        log.info("log %d", index)
        callback(f"call {index}")


def end_by(how: str, line: str = "") -> None:
    """Log, and end the process at once."""
    log.info("first")
    log.warning("last words")
    if line:
        os.write(take_line(line), b"said\n")
        signal.pause()
    if how == "exit":
        os._exit(0)
    os.kill(os.getpid(), getattr(signal, how))


def say_behind_gate(line: str, gate: str) -> None:
    descriptor = take_line(line)
    with open(gate, "rb", buffering=0) as waiting:
        waiting.read(1)
    log.warning("written")
    os.write(descriptor, b"said\n")
    signal.pause()


def say_in_copy() -> int:
    """Log in a copy of this process, and here. The copy's exit status tells whether its own handler got the record."""
    own: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: own.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    pid = os.fork()
    if not pid:
        log.warning("from the copy")
        os._exit(int(own != ["from the copy"]))
    log.warning("from the job")
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    log.removeHandler(handler)
    return status + 10 * len(own)


def configure_and_say(path: str) -> None:
    """As a main script does that configures logging without a guard."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"file": {"class": "logging.FileHandler", "filename": path}},
            "root": {"handlers": ["file"], "level": "DEBUG"},
        }
    )
    logging.getLogger("configured").warning("once")


def say_in_handlers(number: int) -> int:
    """Log in a signal handler, in the middle of anything that the main loop does, which logs too."""
    heard = 0

    def handle(signum: int, frame: Any) -> None:
        nonlocal heard
        heard += 1
        log.info("handler %d", heard)

    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    index = 0
    while heard < number:
        log.info("loop %d", index)
        index += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    return index


def say_in_finalizers(number: int) -> int:
    """Log in `__del__`, which the garbage collector calls in the middle of anything."""

    class Dying:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            nonlocal ended
            ended += 1
            log.info("finalizer %d", ended)

    ended = 0
    gc.set_threshold(50)
    for index in range(number):
        Dying()
        log.info("loop %d", index)
    gc.set_threshold(700)
    gc.collect()
    return ended


def count_into(number: int, path: str) -> None:
    """Log so many records, and write down how many have been."""
    descriptor = os.open(path, os.O_WRONLY)
    for index in range(number):
        log.info("record %d %s", index, "x" * 1000)
        os.pwrite(descriptor, b"%9d" % (index + 1), 0)
    os.close(descriptor)


def nest(kind: str) -> tuple[int, list[str]]:
    """Run a job that logs in a worker of this worker; what this process's own handlers got."""
    import trio_offload

    own: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: own.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)

    async def main() -> int:
        async with trio_offload.open_worker_context(worker_type=kind, forward_logging=True) as context:  # type: ignore[arg-type]
            await context.run_sync(say, "from within")
            return await context.run_sync(os.getpid)

    pid = trio.run(main)
    logging.getLogger().removeHandler(handler)
    return pid, own


def say_after_the_job(line: str, gate: str) -> None:
    """Leave a thread that logs once the gate is open."""
    descriptor = take_line(line)

    def wait() -> None:
        with open(gate, "rb", buffering=0) as waiting:
            waiting.read(1)
        log.warning("from an idle worker")
        os.write(descriptor, b"said\n")

    threading.Thread(target=wait, daemon=True).start()


class OwnWarning(UserWarning):
    pass


def warn_of_module() -> None:
    """Warn with a category of a module that only the worker has."""
    module = types.ModuleType("sqlalchemy_of_jobs")
    module.MovedWarning = type("MovedWarning", (DeprecationWarning,), {"__module__": module.__name__})  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    warnings.warn("moved", module.MovedWarning, stacklevel=1)


def record_warning() -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("recorded", stacklevel=1)
    return [str(one.message) for one in caught]


def has_logging() -> bool:
    return "trio_offload_worker._jobs.logs" in sys.modules


def set_own_level(level: int) -> None:
    logging.getLogger("library").setLevel(level)


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    warnings.warn(text, category, stacklevel=1)
