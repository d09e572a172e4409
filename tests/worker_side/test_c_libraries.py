"""End to end: libraries in C that a worker meets, made here for the occasion."""

from __future__ import annotations

import _ctypes
import ctypes
import errno
import functools
import os
import platform
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kinds import environment_of
from running import run, run_script, write

from trio_offload import BrokenWorkerError, WorkerStartError, WorkerType, open_worker_context
from trio_offload._interpreter import locate as _locate
from trio_offload_worker._loop import sentinel

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
    not _locate.runtime().is_native, reason="templates need the worker executable, and here workers are run in Python"
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
    return environment_of(LD_PRELOAD=str(library))


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
    assert f"with this C library, because the place of its thread ID is unknown ({name} {release})" in ended.stderr
    assert "Use WorkerType.SPAWN" in ended.stderr


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


# --- libraries that come and go ------------------------------------------------------------------

COUNTING = """
    #include <pthread.h>
    #include <stdlib.h>
    #include <string.h>

    static int count(const char *name)
    {
        char text[2] = {'0' + (getenv(name) ? getenv(name)[0] - '0' : 0) + 1, 0};
        return setenv(name, text, 1);
    }

    static void prepare(void) { count("PREPARED"); }
    static void parent(void) { count("TOLD_PARENT"); }
    static void child(void) { count("TOLD_CHILD"); }

    __attribute__((constructor)) static void begin(void) { pthread_atfork(prepare, parent, child); }
"""
"""It counts its handlers' calls in the environment, which outlives it."""


def counts() -> tuple[int, ...]:
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    return tuple(int(getenv(name) or 0) for name in (b"PREPARED", b"TOLD_PARENT", b"TOLD_CHILD"))


@needs_executable
@pytest.mark.parametrize(
    ("then", "expected"),
    [("close", (0, 0, 0)), ("keep", (1, 0, 1)), ("close and open", (1, 0, 1))],
)
async def test_handlers_of_a_library_that_is_gone(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch, then: str, expected: tuple[int, ...]
) -> None:
    """Preloading tries a library and lets go of it again, as an import does that looks for an optional back end."""
    text = f"""
    import _ctypes
    handle = _ctypes.dlopen({str(build("counting", COUNTING))!r}, 2)
    if "close" in {then!r}:
        _ctypes.dlclose(handle)
    if "open" in {then!r}:
        _ctypes.dlopen({str(build("counting", COUNTING))!r}, 2)
    """
    write(tmp_path / "tries_a_library.py", text)
    monkeypatch.syspath_prepend(tmp_path)
    async with open_worker_context(worker_type=WorkerType.FORKSERVER, forkserver_preload=["tries_a_library"]) as context:
        assert await context.run_sync(counts) == expected


@needs_executable
async def test_a_handler_that_lets_go_of_a_library_with_handlers(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is run before the fork ends the library that would be told of it."""
    closing = """
        #include <dlfcn.h>
        #include <pthread.h>

        void *library;
        static void prepare(void) { if (library) dlclose(library); library = 0; }
        __attribute__((constructor)) static void begin(void) { pthread_atfork(prepare, 0, 0); }
    """
    text = f"""
    import _ctypes, ctypes
    closing = ctypes.CDLL({str(build("closing", closing))!r})
    ctypes.c_void_p.in_dll(closing, "library").value = _ctypes.dlopen({str(build("counting", COUNTING))!r}, 2)
    """
    write(tmp_path / "tries_a_library.py", text)
    monkeypatch.syspath_prepend(tmp_path)
    async with open_worker_context(worker_type=WorkerType.FORKSERVER, forkserver_preload=["tries_a_library"]) as context:
        # The last to have registered prepares first.
        assert await context.run_sync(counts) == (1, 0, 0)


# --- destructors ---------------------------------------------------------------------------------


def load(path: str) -> None:
    _ctypes.dlopen(path, 2)


async def test_a_library_that_aborts_when_the_process_ends(build: Build) -> None:
    """Python has ended by then, and is left alone."""
    library = build("aborts", "#include <stdlib.h>\n__attribute__((destructor)) static void end(void) { abort(); }")
    with pytest.raises(BrokenWorkerError, match=f"1 ended with exit code {-signal.SIGABRT}"):
        async with open_worker_context() as context:
            await context.run_sync(load, str(library))


async def test_a_library_that_aborts_while_python_runs(build: Build) -> None:
    """As ``os.abort``: the stack is in the record."""
    library = build("aborts", "#include <stdlib.h>\n__attribute__((constructor)) static void begin(void) { abort(); }")
    async with open_worker_context() as context:
        with pytest.raises(BrokenWorkerError, match="SIGABRT") as told:
            await context.run_sync(load, str(library))
    assert told.value.crash is not None
    assert "in load" in told.value.crash.stack


# --- threads of their own ------------------------------------------------------------------------

EXITING = """
    #include <pthread.h>

    static void cleanup(void *cleaned) { *(int *)cleaned = 1; }

    static void *work(void *cleaned)
    {
        pthread_cleanup_push(cleanup, cleaned);
        pthread_exit(cleaned);
        pthread_cleanup_pop(0);
    }

    int cleaned_up_and_joined(void)
    {
        int cleaned = 0;
        void *result = 0;
        pthread_t thread;
        if (pthread_create(&thread, 0, work, &cleaned) || pthread_join(thread, &result)) return -1;
        return cleaned && result == &cleaned;
    }
"""


def join_exiting_thread(path: str) -> int:
    joined: int = ctypes.CDLL(path).cleaned_up_and_joined()
    return joined


async def test_a_thread_that_exits_by_itself(build: Build) -> None:
    """The executable's `pthread_exit` leaves it to the C library's."""
    library = build("exiting", EXITING)
    async with open_worker_context() as context:
        assert await context.run_sync(join_exiting_thread, str(library)) == 1


POOL = """
    #define _GNU_SOURCE
    #include <errno.h>
    #include <pthread.h>
    #include <stdlib.h>
    #include <time.h>
    #include <unistd.h>

    /* Memory with a background thread that the library puts right after a fork, as jemalloc has it. */
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static pthread_cond_t wanted = PTHREAD_COND_INITIALIZER;
    static long rounds;

    static void *work(void *_)
    {
        pthread_setname_np(pthread_self(), NAME);
        pthread_mutex_lock(&lock);
        for (;;) {
            struct timespec until;
            rounds++;
            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_nsec = (until.tv_nsec + 1000000) % 1000000000;
            pthread_cond_timedwait(&wanted, &lock, &until);
        }
        return 0;
    }

    static void start(void)
    {
        pthread_t thread;
        pthread_create(&thread, 0, work, 0);
        pthread_detach(thread);
    }

    static void hold(void) { pthread_mutex_lock(&lock); }
    static void let_go(void) { pthread_mutex_unlock(&lock); }
    static void begin_anew(void) { rounds = 0; pthread_cond_init(&wanted, 0); pthread_mutex_unlock(&lock); }

    __attribute__((constructor)) static void begin(void)
    {
        pthread_atfork(hold, let_go, begin_anew);
        start();
        /* It has its name, and does what it does. */
        for (;;) {
            hold();
            long now = rounds;
            let_go();
            if (now) break;
            usleep(100);
        }
    }

    void *take(size_t size) { hold(); void *memory = malloc(size); let_go(); return memory; }
    void give(void *memory) { hold(); free(memory); let_go(); }
    void thread_again(void) { start(); }
"""


@pytest.fixture
def pool(tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Makes such a library with a thread of this name, and a module that loads it. The module's name."""

    def make(thread: str) -> str:
        library = build("pool", f'#define NAME "{thread}"\n{POOL}')
        write(tmp_path / "pool.py", f"import ctypes; library = ctypes.CDLL({str(library)!r})")
        monkeypatch.syspath_prepend(tmp_path)
        return "pool"

    return make


def threads() -> list[str]:
    return sorted(Path(f"/proc/self/task/{thread}/comm").read_text().strip() for thread in os.listdir("/proc/self/task"))


def use_pool() -> tuple[list[str], bytes]:
    """Take and give memory, import on, start a thread, fork on, change credentials: whatever meets what a fork has left."""
    import json.tool  # noqa: F401
    import threading

    import pool  # type: ignore[import-not-found]

    library = pool.library
    library.take.restype = ctypes.c_void_p
    for size in (10, 10_000, 10_000_000):
        library.give(ctypes.c_void_p(library.take(ctypes.c_size_t(size))))
    found = threads()
    library.thread_again()
    thread = threading.Thread(target=bool)
    thread.start()
    thread.join()
    os.setuid(os.getuid())
    return found, subprocess.run(["true"], check=True, stdout=subprocess.PIPE).stdout


@needs_executable
@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("jemalloc_bg_thd", ()),
        ("knitter", ("other", "knitter")),
        ("io-17", ("io-*",)),
        ("fifteen bytes..", ("fifteen bytes... and more",)),
    ],
)
async def test_a_thread_that_may_be_there(pool: Callable[[str], str], name: str, allowed: tuple[str, ...]) -> None:
    forked = functools.partial(open_worker_context, worker_type=WorkerType.FORKSERVER, retire=object)
    async with forked() as context:
        usual = await context.run_sync(threads)
    async with forked(forkserver_preload=[pool(name)], forkserver_threads=allowed) as context:
        for _ in range(5):
            found, _ = await context.run_sync(use_pool)
            # The thread is the template's alone.
            assert found == usual


@needs_executable
@pytest.mark.parametrize("allowed", [(), ("other", "knit", "io-*")])
async def test_a_thread_that_may_not_be_there(pool: Callable[[str], str], allowed: tuple[str, ...]) -> None:
    async with open_worker_context(
        worker_type=WorkerType.FORKSERVER, forkserver_preload=[pool("knitter")], forkserver_threads=allowed
    ) as context:
        with pytest.raises(
            WorkerStartError, match=r"after pool, of .*1 thread beside.*\(knitter\).*MALLOC_CONF.*forkserver_threads"
        ):
            await context.run_sync(bool)


# --- no thread to be had -------------------------------------------------------------------------

SCARCE = """
    #define _GNU_SOURCE
    #include <dlfcn.h>
    #include <errno.h>
    #include <pthread.h>
    #include <stdlib.h>
    #include <unistd.h>

    /* There are as many threads as there may be while a file is there. */
    int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*work)(void *), void *argument)
    {
        static int (*next)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
        if (access(getenv("SCARCE"), F_OK) == 0) return EAGAIN;
        if (!next) next = dlsym(RTLD_NEXT, "pthread_create");
        return next(thread, attributes, work, argument);
    }
"""


@pytest.mark.skipif(not _locate.runtime().is_native, reason="the loop in Python has a process in place of the thread")
@pytest.mark.parametrize("options", ["", "retire=bool, init=bool", "memory_limit=10**12"])
@pytest.mark.parametrize("kind", ["spawn", "forkserver"])
def test_a_worker_that_can_have_no_thread_fails_to_start(tmp_path: Path, build: Build, kind: str, options: str) -> None:
    """The call was not run, and the error is that of a start; the next worker has its thread."""
    text = f"""
    import os, pathlib, trio, trio_offload, trio_offload._launch.template
    # Each worker is forked when it is wanted.
    trio_offload._launch.template.Template.fork_standby = lambda template: None

    async def main():
        scarce = pathlib.Path(os.environ["SCARCE"])
        async with trio_offload.open_worker_context(worker_type={kind!r}, {options}) as context:
            try:
                await context.run_sync(os._exit, 0)
            except trio_offload.BrokenWorkerError:
                pass
            scarce.touch()
            for _ in range(2):
                try:
                    await context.run_sync(os.mkdir, {str(tmp_path / "made")!r})
                except trio_offload.WorkerStartError as error:
                    print(error)
            scarce.unlink()
            print(await context.run_sync(os.mkdir, {str(tmp_path / "made")!r}))

    if __name__ == "__main__":
        trio.run(main)
    """
    environment = {**preloaded(build("scarce", SCARCE)), "SCARCE": str(tmp_path / "scarce")}
    *errors, last = run_script(tmp_path, text, environment=environment).lines()
    assert len(errors) == 2
    for error in errors:
        assert "the thread that watches the parent could not be started" in error
        assert "ulimit -u" in error
    assert last == "None"


@pytest.mark.parametrize("options", [{}, {"retire": bool, "init": bool}, {"memory_limit": 10**12}])
async def test_a_fork_that_can_have_no_watcher_fails_to_start(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def start(*_: object) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    async with open_worker_context(worker_type=WorkerType.FORK, **options) as context:
        with monkeypatch.context() as patch:
            patch.setattr(sentinel, "start", start)
            with pytest.raises(WorkerStartError):
                await context.run_sync(os.mkdir, str(tmp_path / "made"))
        assert os.strerror(errno.EAGAIN) in capfd.readouterr().err
        await context.run_sync(os.mkdir, str(tmp_path / "made"))
