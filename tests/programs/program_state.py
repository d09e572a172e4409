"""Tries what of a program's state reaches its workers, and what its jobs leave to later jobs: ``program_state.py KIND``.

Prints two lines of JSON. The first has for each row the first moment at which a change in the program is seen: ``call``: by an
idle worker at the next call, ``worker``: by a new worker, ``template``: by a worker of a new template, ``never``. The second has
for each row whether a change that a job makes is seen by the next job in its worker.
"""

from __future__ import annotations

import builtins
import contextvars
import csv
import ctypes
import decimal
import faulthandler
import gc
import json
import locale
import logging
import os
import random
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
import tracemalloc
import warnings
from collections.abc import Callable
from typing import Any

import trio

import trio_offload
from trio_offload import WorkerType

VARIABLE: contextvars.ContextVar[int] = contextvars.ContextVar("VARIABLE", default=0)
LOCAL = threading.local()
AUDITED: list[str] = []
NUMBER = 200  # of a descriptor
HANDLED = signal.SIGUSR2
REGISTERED = signal.SIGRTMIN + 3
GENERATOR = random.Random()
PR_SET_DUMPABLE, PR_GET_DUMPABLE, PR_SET_TIMERSLACK, PR_GET_TIMERSLACK = 4, 3, 29, 30
FE_TOWARDZERO = {"x86_64": 0xC00, "aarch64": 0xC00000}
MATH = ctypes.CDLL("libm.so.6")
wakeup_descriptor = -2


class Finder:
    def find_spec(self, *_: Any) -> None: ...


def trace(*_: Any) -> None: ...


def audit(event: str, _: Any) -> None:
    if event == "program_state":
        AUDITED.append(event)


def audited() -> bool:
    AUDITED.clear()
    sys.audit("program_state")
    return bool(AUDITED)


def umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


def lower_limit() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def set_time_zone() -> None:
    os.environ["TZ"] = "XYZ-5"
    time.tzset()


def set_stdout(**options: Any) -> None:
    sys.stdout.reconfigure(**options)  # type: ignore[union-attr]


def replace_stdout() -> None:
    # The copy of the program that runs this has told what it found by then on a descriptor of its own.
    sys.stdout = open(os.devnull, "a")  # noqa: SIM115


def score(value: str | None = None) -> str:
    path = "/proc/self/oom_score_adj"
    if value is None:
        with open(path) as file:
            return file.read()
    with open(path, "w") as file:
        file.write(value)
    return value


def open_descriptor() -> None:
    reader, writer = os.pipe()
    os.dup2(writer, NUMBER, inheritable=True)
    os.close(reader)
    os.close(writer)


def is_open() -> bool:
    return os.path.exists(f"/proc/self/fd/{NUMBER}")


def set_title() -> None:
    # Here, and not at the top: it looks for the command line when it is imported.
    import setproctitle

    setproctitle.setproctitle("a title")


def has_title() -> bool:
    with open("/proc/self/cmdline") as file:
        return file.read().startswith("a title")


def forbid_privileges(value: bool | None = None) -> int:
    library = ctypes.CDLL(None)
    if value is None:
        return int(library.prctl(39, 0, 0, 0, 0))
    library.prctl(38, 1, 0, 0, 0)
    # A change by ctypes is seen within a tenth of a second, but after this at the next call.
    os.setegid(os.getegid())
    return 1


def prctl(option: int, value: int = 0) -> int:
    return int(ctypes.CDLL(None).prctl(option, value, 0, 0, 0))


def io_priority(value: int | None = None) -> int:
    # The C library has no functions for the two system calls.
    get, set_ = {"x86_64": (252, 251), "aarch64": (31, 30)}[os.uname().machine]
    arguments = (get, 1, 0) if value is None else (set_, 1, 0, value)
    return int(ctypes.CDLL(None).syscall(*arguments))


LOCKED = ctypes.create_string_buffer(1)


def lock_page() -> None:
    ctypes.CDLL(None).mlock(LOCKED, 1)


def locked_memory() -> str:
    with open("/proc/self/status") as file:
        return next(line for line in file if line.startswith("VmLck"))


def catches() -> bool:
    """Whether this process has a handler for a signal, Python's or another."""
    with open("/proc/self/status") as file:
        mask = next(line for line in file if line.startswith("SigCgt")).split()[1]
    return bool(int(mask, 16) >> (REGISTERED - 1) & 1)


def set_wakeup_descriptor() -> None:
    global wakeup_descriptor
    wakeup_descriptor = os.open(os.devnull, os.O_WRONLY | os.O_NONBLOCK)
    signal.set_wakeup_fd(wakeup_descriptor)


def has_wakeup_descriptor() -> bool:
    found = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(found)
    return found == wakeup_descriptor


def attribute(owner: Any, name: str, value: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    return lambda: setattr(owner, name, value), lambda: getattr(owner, name, None) == value


ROWS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "`sys.path`": (lambda: sys.path.append("/there"), lambda: "/there" in sys.path),
    "`sys.argv`": (lambda: sys.argv.append("more"), lambda: "more" in sys.argv),
    "`sys.warnoptions`": (lambda: sys.warnoptions.append("default"), lambda: "default" in sys.warnoptions),
    "`sys.setrecursionlimit`": (lambda: sys.setrecursionlimit(2345), sys.getrecursionlimit),
    "`sys.setswitchinterval`": (lambda: sys.setswitchinterval(0.25), lambda: round(sys.getswitchinterval(), 3)),
    "`sys.set_int_max_str_digits`": (lambda: sys.set_int_max_str_digits(1234), lambda: sys.get_int_max_str_digits()),
    "`sys.dont_write_bytecode`": attribute(sys, "dont_write_bytecode", True),
    "`sys.pycache_prefix`": attribute(sys, "pycache_prefix", "/there"),
    "`sys.tracebacklimit`": attribute(sys, "tracebacklimit", 3),
    "`sys.setdlopenflags`": (lambda: sys.setdlopenflags(os.RTLD_LAZY | os.RTLD_GLOBAL), sys.getdlopenflags),
    "`sys.excepthook`, `sys.displayhook`, `sys.unraisablehook`": attribute(sys, "excepthook", trace),
    "`sys.settrace`, `sys.setprofile`": (lambda: sys.setprofile(trace), lambda: sys.getprofile() is trace),
    "`sys.addaudithook`": (lambda: sys.addaudithook(audit), audited),
    "`sys.meta_path`, `sys.path_hooks`": (
        lambda: sys.meta_path.append(Finder()),
        lambda: any(type(finder).__name__ == "Finder" for finder in sys.meta_path),
    ),
    "encoding of `sys.stdout`": (lambda: set_stdout(encoding="latin-1"), lambda: sys.stdout.encoding),
    "error handler of `sys.stdout`": (lambda: set_stdout(errors="replace"), lambda: sys.stdout.errors),
    "another object as `sys.stdout`": (replace_stdout, lambda: sys.stdout.name == os.devnull),
    "names in `builtins`": attribute(builtins, "added", 1),
    "working directory": (lambda: os.chdir(tempfile.gettempdir()), os.getcwd),
    "`os.environ`": (lambda: os.environ.update(ADDED="1"), lambda: os.environ.get("ADDED")),
    "`os.umask`": (lambda: os.umask(0o137), umask),
    "`os.nice`": (lambda: os.nice(1), lambda: os.getpriority(os.PRIO_PROCESS, 0)),
    "`os.sched_setaffinity`": (
        lambda: os.sched_setaffinity(0, {max(os.sched_getaffinity(0))}),
        lambda: sorted(os.sched_getaffinity(0)),
    ),
    "`os.sched_setscheduler`": (
        lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
        lambda: os.sched_getscheduler(0) & 3,
    ),
    "process group": (lambda: os.setpgid(0, 0), os.getpgrp),
    "session and controlling terminal": (os.setsid, lambda: os.getsid(0)),
    "`oom_score_adj`": (lambda: score("7"), score),
    "I/O priority (`ionice`), NUMA policy (`numactl`)": (lambda: io_priority(2 << 13 | 7), io_priority),
    "timer slack, transparent huge pages (prctl)": (
        lambda: prctl(PR_SET_TIMERSLACK, 777000),
        lambda: prctl(PR_GET_TIMERSLACK),
    ),
    "locked memory (`mlock`, `mlockall`)": (lock_page, locked_memory),
    "PR_SET_DUMPABLE": (lambda: prctl(PR_SET_DUMPABLE), lambda: prctl(PR_GET_DUMPABLE)),
    "rounding and flush to zero of the processor (`fesetround`)": (
        lambda: MATH.fesetround(FE_TOWARDZERO[os.uname().machine]),
        lambda: (MATH.fegetround(), 1 / 10 + 2 / 10),
    ),
    "`no_new_privs`": (lambda: forbid_privileges(True), forbid_privileges),
    "`resource.setrlimit`": (lower_limit, lambda: resource.getrlimit(resource.RLIMIT_NOFILE)),
    "title of the process (`setproctitle`)": (set_title, has_title),
    "open descriptors, inheritable ones too": (open_descriptor, is_open),
    "ignored signals": (
        lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
        lambda: signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN,
    ),
    "signal handlers": (lambda: signal.signal(HANDLED, trace), lambda: signal.getsignal(HANDLED) is trace),
    "`faulthandler.register`": (lambda: faulthandler.register(REGISTERED), catches),
    "`signal.set_wakeup_fd`": (set_wakeup_descriptor, has_wakeup_descriptor),
    "blocked signals": (
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]),
        lambda: signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, []),
    ),
    "`signal.setitimer`, `signal.alarm`": (
        lambda: signal.setitimer(signal.ITIMER_REAL, 10000),
        lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0,
    ),
    "time zone (`TZ` and `time.tzset`)": (set_time_zone, lambda: time.tzname[0]),
    "`locale.setlocale`": (
        lambda: locale.setlocale(locale.LC_NUMERIC, "C.UTF-8"),
        lambda: locale.setlocale(locale.LC_NUMERIC),
    ),
    "decimal context": (lambda: setattr(decimal.getcontext(), "prec", 5), lambda: decimal.getcontext().prec),
    "`decimal.DefaultContext`": (lambda: setattr(decimal.DefaultContext, "prec", 7), lambda: decimal.DefaultContext.prec),
    "context variables": (lambda: VARIABLE.set(1), VARIABLE.get),
    "`threading.local`": attribute(LOCAL, "value", 1),
    "`threading.stack_size`": (lambda: threading.stack_size(2**20), threading.stack_size),
    "`threading.settrace`, `threading.setprofile`": (
        lambda: threading.settrace(trace),
        lambda: threading.gettrace() is trace,
    ),
    "`sys.set_asyncgen_hooks`": (
        lambda: sys.set_asyncgen_hooks(finalizer=trace),
        lambda: sys.get_asyncgen_hooks().finalizer is trace,
    ),
    "`gc.set_debug`, `gc.callbacks`": (lambda: gc.set_debug(gc.DEBUG_UNCOLLECTABLE), gc.get_debug),
    "`gc.disable`": (gc.disable, gc.isenabled),
    "`gc.set_threshold`": (lambda: gc.set_threshold(123, 4, 5), lambda: gc.get_threshold()[0]),
    "warning filters": (
        lambda: warnings.simplefilter("error", UserWarning),
        lambda: any(action == "error" and category is UserWarning for action, _, category, _, _ in warnings.filters),
    ),
    "`tracemalloc`": (tracemalloc.start, tracemalloc.is_tracing),
    "`random.seed`": (lambda: random.seed(5), lambda: random.getstate()[1][:3]),
    "`random.Random` objects, `numpy.random`": (lambda: GENERATOR.seed(5), lambda: GENERATOR.getstate()[1][:3]),
    "state of other modules (`copyreg`, `csv.field_size_limit`)": (lambda: csv.field_size_limit(777), csv.field_size_limit),
    "`logging`": (lambda: logging.getLogger().setLevel(7), lambda: logging.getLogger().level),
    "`socket.setdefaulttimeout`": (lambda: socket.setdefaulttimeout(7), socket.getdefaulttimeout),
}
if not hasattr(sys, "set_int_max_str_digits"):
    del ROWS["`sys.set_int_max_str_digits`"]


# Rows side by side may get into each other's way. These change what a program may do, or need new workers.
ALONE = ["`no_new_privs`", "PR_SET_DUMPABLE"]
BATCHES = [*([name] for name in ALONE), *([name for name in ROWS if name not in ALONE][start::3] for start in range(3))]


def make(names: list[str]) -> None:
    for name in names:
        ROWS[name][0]()


def look(names: list[str]) -> dict[str, Any]:
    return {name: ROWS[name][1]() for name in names}


def open_context(**options: Any) -> Any:
    return trio_offload.open_worker_context(worker_type=WorkerType(KIND), **options)


async def when_seen(names: list[str]) -> dict[str, str]:
    async with open_context() as idle, open_context(retire=object) as used, open_context() as new:
        for context in (idle, used):
            await context.run_sync(look, names)
        before = look(names)
        make(names)
        here = look(names)
        unchanged = [name for name in names if here[name] == before[name]]
        if unchanged:
            raise RuntimeError(f"these have been so before: {unchanged}")
        seen = dict.fromkeys(names, "never")
        for moment, context in (("template", new), ("worker", used), ("call", idle)):
            there = await context.run_sync(look, names)
            seen.update((name, moment) for name in names if there[name] == here[name])
        return seen


async def is_kept(names: list[str]) -> dict[str, bool]:
    async with open_context() as context:
        before = await context.run_sync(look, names)
        await context.run_sync(make, names)
        after = await context.run_sync(look, names)
        return {name: after[name] != before[name] for name in names}


def in_a_copy(function: Callable[[list[str]], Any], names: list[str]) -> Any:
    """What comes of it in a copy of this program that nothing else happens in."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.write(writer, json.dumps(trio.run(function, names)).encode())
            status = 0
        except BaseException:
            sys.__excepthook__(*sys.exc_info())  # type: ignore[arg-type]
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as answer:
        found = answer.read()
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError(f"{function.__name__} failed for {names}")
    return json.loads(found)


if __name__ == "__main__":
    KIND = sys.argv[1]
    for function in (when_seen, is_kept):
        found: dict[str, Any] = {}
        for names in BATCHES:
            found |= in_a_copy(function, names)
        print(json.dumps(found), flush=True)
