"""End to end: libraries in C that a worker meets, made here for the occasion."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import jobs
import pytest
from running import plain_environment, run, run_script, write

from trio_offload import _locate

Build = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Makes a library out of C."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path / "libraries"
    folder.mkdir()

    def build(name: str, text: str) -> Path:
        library = folder / f"lib{name}.so"
        run([compiler, "-shared", "-fPIC", "-O1", write(folder / f"{name}.c", text), "-o", library, "-ldl", "-lpthread"])
        return library

    return build


needs_executable = pytest.mark.skipif(
    not _locate.way().is_native, reason="templates need the worker executable, and here workers are run in Python"
)


# --- what a C library tells of itself ------------------------------------------------------------

SILENT = """
    #define _GNU_SOURCE
    #include <dlfcn.h>
    #include <errno.h>
    #include <pthread.h>
    #include <stdarg.h>

    const unsigned _thread_db_pthread_tid[3] = {TOLD};

    int prctl(int option, ...)
    {
        static int (*next)(int, ...);
        unsigned long a[4];
        va_list arguments;
        va_start(arguments, option);
        for (int i = 0; i < 4; i++) a[i] = va_arg(arguments, unsigned long);
        va_end(arguments);
        if (option == 40) { errno = EINVAL; return -1; }
        if (!next) next = dlsym(RTLD_NEXT, "prctl");
        return next(option, a[0], a[1], a[2], a[3]);
    }

    #ifdef HIDDEN
    int pthread_getcpuclockid(pthread_t thread, clockid_t *clock) { return ESRCH; }
    #endif
"""
"""A C library that tells neither debuggers nor the kernel where it keeps a thread's number."""

NUMBERS = """
    import trio, trio_offload, template_jobs

    async def main():
        async with trio_offload.open_worker_context(worker_type="forkserver", retire=object) as context:
            for _ in range(2):
                pid, native, signalled = await context.run_sync(template_jobs.thread_numbers)
                print(pid == native, signalled)

    if __name__ == "__main__":
        trio.run(main)
"""


def preloaded(library: Path) -> dict[str, str]:
    return plain_environment(PYTHONPATH=os.path.dirname(jobs.__file__), LD_PRELOAD=str(library))


@needs_executable
@pytest.mark.parametrize("told", ["0", "32, 1, 8", "32, 1, 100000", "64, 1, 720"])
def test_a_worker_knows_its_number_whatever_the_c_library_tells(tmp_path: Path, build: Build, told: str) -> None:
    library = build("silent", SILENT.replace("TOLD", told))
    ended = run_script(tmp_path, NUMBERS, environment=preloaded(library))
    assert ended.lines() == ["True True"] * 2
    assert ended.stderr == ""


@needs_executable
def test_a_c_library_that_shows_no_number_is_named(tmp_path: Path, build: Build) -> None:
    library = build("hidden", "#define HIDDEN\n" + SILENT.replace("TOLD", "0"))
    ended = run_script(tmp_path, NUMBERS, environment=preloaded(library), expect=1)
    name, release = platform.libc_ver()
    assert ended.stderr.splitlines()[-1].startswith("trio_offload.WorkerStartError")
    assert (
        f"with this C library, which keeps the number of a thread where no worker finds it ({name} {release})"
        in ended.stderr
    )
    assert "use WorkerType.SPAWN" in ended.stderr


KEEPING = """
    #define _GNU_SOURCE
    #include <pthread.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    /* A part of the thread's control block that no glibc for this processor uses. */
    #define KEPT ((volatile int *)((char *)pthread_self() + 256))

    __attribute__((constructor)) static void keep(void) { *KEPT = syscall(SYS_getpid); }

    pid_t getpid(void)
    {
        if (*KEPT == 0) *KEPT = syscall(SYS_getpid);
        return *KEPT;
    }
"""
"""A C library that keeps the process's number in the thread's control block, as glibc did before 2.25."""


@needs_executable
@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="where there is room in a control block is known for this one only"
)
def test_a_c_library_that_keeps_the_process_number(tmp_path: Path, build: Build) -> None:
    ended = run_script(tmp_path, NUMBERS, environment=preloaded(build("keeping", KEEPING)))
    assert ended.lines() == ["True True"] * 2
    assert ended.stderr == ""
