"""The probes of the doctor. Each is a function that returns facts and reports problems.

Probes are independent of each other. The report has the order of :data:`PROBES`.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import sysconfig
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs
import trio

import trio_offload
from trio_offload._interpreter import loader, locate
from trio_offload._process.oom import group_memory_limit
from trio_offload._process.processors import usable_processors
from trio_offload_worker._protocol.frames import PROTOCOL_VERSION
from trio_offload_worker._system.family import is_marked
from trio_offload_worker._system.linux import has_proc

if TYPE_CHECKING:
    from collections.abc import Callable

    Report: TypeAlias = "Callable[[Problem], None]"
    Facts: TypeAlias = "dict[str, Any]"

_REQUIRED: Final = ("trio", "attrs", "outcome", "cbor2", "tblib", "tricycle")
_OPTIONAL: Final = ("cloudpickle", "rich", "numpy")

_TIMEOUT: Final = 30.0
"""Seconds that a worker has for each answer."""

_COST_OF_THE_LOOP: Final = (
    "starts and empty calls take about 1.5 times as long as with the executable. Each worker has a second process of "
    "about 3 MB, which ends the worker when this program dies"
)
"""Linux x86-64, CPython 3.11, same run, median of 25 rounds; docs/platforms.md has the figures."""

_REINSTALL: Final = "Install it again: pip install --force-reinstall trio-offload"


@attrs.frozen
class Problem:
    """Something that keeps the package from working, and its remedy."""

    what: str
    remedy: str


@attrs.frozen
class Probe:
    """One part of the report."""

    name: str
    examine: Callable[[Report], Facts]
    remedy: str = "Add this report to the bug report."
    """The remedy if the probe itself fails."""


def _versions(report: Report) -> Facts:
    facts: Facts = {"trio-offload": trio_offload.__version__}
    for name in (*_REQUIRED, *_OPTIONAL):
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = None
            if name in _REQUIRED:
                report(Problem(f"{name} is not installed, but trio-offload needs it", f"pip install {name}"))
    return facts


def _python(report: Report) -> Facts:
    implementation = platform.python_implementation()
    if implementation != "CPython":
        report(Problem(f"this Python is {implementation}", "Use CPython 3.10 or newer."))
    try:
        locate.refuse_untried_build()
    except trio_offload.LocateError as error:
        report(_problem_from(error))
    return {
        "version": sys.version,
        "implementation": implementation,
        "build": " ".join(platform.python_build()),
        "executable": sys.executable,
        "prefix": sys.prefix,
        "base prefix": sys.base_prefix,
        "virtual environment": sys.prefix != sys.base_prefix,
        "built with a shared library": bool(sysconfig.get_config_var("Py_ENABLE_SHARED")),
        "free-threaded": locate.is_free_threaded(),
    }


def _system(report: Report) -> Facts:
    if sys.platform != "linux":
        report(Problem(f"the platform is {sys.platform}", "Only Linux is tested so far."))
    libc, libc_version = platform.libc_ver()
    return {
        "platform": platform.platform(),
        "distribution": _distribution(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "libc": f"{libc} {libc_version}".strip() or None,
        "processors": os.cpu_count(),
        "processors for this process": usable_processors(),
        "memory (bytes)": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "memory limit of the control group (bytes)": group_memory_limit(),
        "open files allowed": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "processes allowed": resource.getrlimit(resource.RLIMIT_NPROC)[0],
    }


def _kernel(report: Report) -> Facts:
    if not has_proc():
        report(
            Problem(
                "/proc cannot be read, so memory use is unknown, memory_limit is refused, and orphans of a job are hard to find",
                "Mount it: mount -t proc proc /proc",
            )
        )
    return {
        "/proc": has_proc(),
        "pidfd": _has_pidfd(),
        "lists a thread's children": Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists(),
        "transparent huge pages": _read_line("/sys/kernel/mm/transparent_hugepage/enabled"),
        "largest socket send buffer (bytes)": _read_line("/proc/sys/net/core/wmem_max"),
        "largest socket receive buffer (bytes)": _read_line("/proc/sys/net/core/rmem_max"),
    }


def _environment(report: Report) -> Facts:
    """Show the variables that affect the loading of a worker's libraries and modules."""
    telling = ("PYTHON", "LD_", "MALLOC_", "TRIO_OFFLOAD", "VIRTUAL_ENV", "CONDA_PREFIX")
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(telling)}


def _runtime(report: Report) -> Facts:
    """Show which of the two kinds of worker runs, the reason, and its cost.

    Other probes report missing parts.
    """
    try:
        runtime = locate.runtime()
    except trio_offload.LocateError:
        return {"in use": None}
    if runtime.is_native:
        return {"in use": "the worker executable, with this Python's own libpython", "reason": runtime.reason}
    return {
        "in use": "a loop in Python, run by this interpreter",
        "reason": runtime.reason,
        "cost": _COST_OF_THE_LOOP,
        "how to use the executable": "; ".join(locate.remedies()),
    }


def _executable(report: Report) -> Facts:
    try:
        found = locate.find_worker_executable()
    except trio_offload.LocateError as error:
        if not _runs_the_loop():
            report(_problem_from(error))
        return {"path": None}
    return {"path": found.path, "found": found.how}


def _libpython(report: Report) -> Facts:
    try:
        found = locate.find_libpython()
    except trio_offload.LocateError as error:
        if not _runs_the_loop():
            report(_problem_from(error))
        return {"path": None}
    return {"path": found.path, "found": found.how}


def _runs_the_loop() -> bool:
    """Return True if workers run the loop, which needs only the interpreter."""
    try:
        return not locate.runtime().is_native
    except trio_offload.LocateError:
        return False


def _worker_info(report: Report) -> Facts:
    """Run ``--info`` of the executable, without the package's process handling."""
    try:
        executable = locate.worker_executable()
        library = locate.libpython()
    except trio_offload.LocateError:
        # The probe of the missing part reports it.
        return {"not run": "the executable or the libpython is missing"}
    environment = dict(os.environb)
    loader.lead(environment, library, is_loaded=True)
    ran = subprocess.run(
        [executable, "--info"],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="backslashreplace",
        timeout=_TIMEOUT,
        check=False,
    )
    try:
        info = json.loads(ran.stdout)
    except ValueError:
        output = " ".join((ran.stderr or ran.stdout).split()) or "nothing"
        report(Problem(f"{executable} --info exited with status {ran.returncode} and printed: {output}", _REINSTALL))
        return {"exit status": ran.returncode, "output": output}
    facts: Facts = info if isinstance(info, dict) else {"output": info}
    python = facts.get("python")
    for what, theirs, ours in (
        ("version", facts.get("worker"), trio_offload.__version__),
        ("protocol version", facts.get("protocol"), PROTOCOL_VERSION),
        ("Python", python.get("version") if isinstance(python, dict) else None, sys.version),
        (
            "build without a GIL",
            bool(python.get("free_threaded")) if isinstance(python, dict) else None,
            locate.is_free_threaded(),
        ),
    ):
        if theirs != ours:
            report(Problem(f"the worker's {what} must be {ours!r}, as in this program, got {theirs!r}", _REINSTALL))
    return facts


def _trial(report: Report) -> Facts:
    """Start a worker and run a few calls."""
    seconds: list[float] = []
    marked: list[bool] = []

    async def call() -> None:
        with trio.fail_after(_TIMEOUT):
            opened = time.perf_counter()
            async with trio_offload.open_worker_context(grace_period=_TIMEOUT) as context:
                for _ in range(51):
                    await context.run_sync(bool, kill_on_cancel=True)
                    seconds.append(time.perf_counter() - opened)
                    opened = time.perf_counter()
                marked.append(is_marked(await context.run_sync(os.getpid, kill_on_cancel=True)))

    try:
        trio.run(call)
    except trio.TooSlowError:
        report(Problem(f"a trial call had no result after {_TIMEOUT:g} s", "Add this report to the bug report."))
        return {"result": None}
    except trio_offload.LocateError:
        return {"not run": "the executable or the libpython is missing"}
    except trio_offload.BrokenWorkerError as error:
        report(_problem_from(error, "a trial call failed: "))
        return {"result": None}
    return {
        "result": "ok",
        "processes of jobs are found by": "a mark" if marked[0] else "their parents only (RLIMIT_LOCKS cannot be set here)",
        "cold start (ms)": round(seconds[0] * 1e3, 2),
        "warm call, median of 50 (ms)": round(statistics.median(seconds[1:]) * 1e3, 3),
    }


PROBES: Final = (
    Probe("versions", _versions),
    Probe("python", _python),
    Probe("system", _system),
    Probe("kernel", _kernel),
    Probe("environment", _environment),
    Probe("worker runtime", _runtime),
    Probe("worker executable", _executable),
    Probe("libpython", _libpython),
    Probe("worker --info", _worker_info, remedy=_REINSTALL),
    Probe("trial call", _trial),
)


def _problem_from(error: BaseException, prefix: str = "") -> Problem:
    """Return a problem from a message: the first line, then the searched places and the remedy."""
    first, _, rest = str(error).partition("\n")
    return Problem(prefix + first, rest or "Add this report to the bug report.")


def _distribution() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def _has_pidfd() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def _read_line(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
