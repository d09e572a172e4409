"""What the tests run in workers. Importable there, and light: nothing here may import trio.

A job and its test meet in fifos and never by sleeping; the test's ends are in ``lifeline.py``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn


@functools.cache
def cached(value: int) -> int:
    return value


def call(function: Any, *args: Any) -> Any:
    return function(*args)


def echo(value: Any) -> Any:
    return value


def raise_it(error: BaseException) -> NoReturn:
    raise error


def never() -> bool:
    """A ``retire`` that lets the worker go on."""
    return False


def append(path: str, text: str, ballast: bytes = b"") -> str:
    """Write a line in one piece: what several processes append does not mix. ``ballast`` makes the call large."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, text.encode() + b"\n")
    os.close(descriptor)
    return text


# --- meeting the test ----------------------------------------------------------------------------


def take_line(path: str) -> int:
    """Hold a lifeline, for this process and those that it starts, and say the process id through it."""
    descriptor = os.open(path, os.O_WRONLY)
    os.set_inheritable(descriptor, True)
    os.write(descriptor, b"%d\n" % os.getpid())
    return descriptor


def hold(path: str) -> int:
    """Take a lifeline for as long as the worker lives, and return at once."""
    take_line(path)
    return os.getpid()


def hold_for_ever(path: str) -> NoReturn:
    take_line(path)
    while True:
        signal.pause()


def pass_gate(line: str, gate: str) -> int:
    """Say that the job has begun, and return once the test has opened the gate."""
    descriptor = take_line(line)
    with open(gate, "rb", buffering=0) as file:
        file.read(1)
    os.close(descriptor)
    return os.getpid()


_leaving: list[str] = []


def leave_slowly(line: str, gate: str) -> None:
    """At its exit, which comes now if ``leaves_slowly`` is asked, the worker waits at the gate."""
    import atexit

    atexit.register(pass_gate, line, gate)
    _leaving.append(gate)


def say_at_exit(text: str) -> None:
    import atexit

    atexit.register(print, text)


def leaves_slowly() -> bool:
    return bool(_leaving)


# --- endless in different ways -------------------------------------------------------------------


def endless() -> NoReturn:
    while True:
        pass


def spin(path: str) -> NoReturn:
    take_line(path)
    while True:
        pass


def hold_the_gil(path: str) -> NoReturn:
    """An endless wait in C that never lets go of the GIL: no other thread of Python's ever runs again."""
    import ctypes

    take_line(path)
    while True:
        ctypes.PyDLL(None).pause()


def loop_in_c(path: str) -> NoReturn:
    import itertools

    take_line(path)
    sum(itertools.repeat(0))
    raise AssertionError("that was endless")


# --- descendants ---------------------------------------------------------------------------------

SLEEPER = "import signal\nwhile True: signal.pause()"


def start_sleeper(line: int, **options: Any) -> subprocess.Popen[bytes]:
    """A program that holds the lifeline and lives until it is killed."""
    return subprocess.Popen(["sleep", "infinity"], pass_fds=[line], **options)


def leave_child(path: str) -> int:
    """Start a program that outlives the job; its process id."""
    child = start_sleeper(take_line(path), stdin=subprocess.DEVNULL)
    child.returncode = 0  # Popen would complain about a child that is forgotten while it runs.
    return child.pid


def leave_careless_child(path: str) -> int:
    """The same, with every descriptor that may be inherited."""
    os.set_inheritable(take_line(path), True)
    child = subprocess.Popen(["sleep", "infinity"], close_fds=False)
    child.returncode = 0
    return child.pid


def become_sleeper(path: str) -> NoReturn:
    """Replace the worker by another program."""
    take_line(path)
    os.execvp("sleep", ["sleep", "infinity"])


def open_instead_of_socket(path: str) -> None:
    os.closerange(3, 256)
    assert os.open(path, os.O_WRONLY | os.O_CREAT, 0o600) == 3


def leave_fork(path: str) -> int:
    """A copy of the worker that outlives the job."""
    take_line(path)
    pid = os.fork()
    while pid == 0:
        signal.pause()
    return pid


def fork_and_raise() -> None:
    """The copy raises out of the job's function, the worker does not."""
    pid = os.fork()
    if pid == 0:
        os.close(2)
        raise RuntimeError("in the copy")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def end_of_a_child_after(number: int) -> int:
    """What a program that a job starts ends with when it gets a signal."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        # It has been started for good once it answers.
        child.stdin.write(b"x")
        child.stdin.flush()
        assert child.stdout.read(1) == b"x"
        child.send_signal(number)
    return child.returncode


def start_family(path: str) -> NoReturn:
    """A child, a grandchild, one with a session of its own, a daemon (forked twice), and no end."""
    line = take_line(path)
    start_sleeper(line)
    start_sleeper(line, start_new_session=True)
    subprocess.Popen(["sh", "-c", "sleep infinity & sleep infinity & wait"], pass_fds=[line])
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(line, b"%d\n" % os.getpid())
            while True:
                signal.pause()
        os._exit(0)
    os.wait()
    while True:
        signal.pause()


def leave_family(path: str) -> int:
    """A child, one with a session of its own, a daemon that ignores what a terminal's end sends, and a return."""
    line = take_line(path)
    for session in (False, True):
        start_sleeper(line, start_new_session=session).returncode = 0
    subprocess.run(["sh", "-c", "trap '' HUP; (setsid sleep infinity &) & sleep infinity &"], pass_fds=[line], check=True)
    return os.getpid()


def start_on_and_on(path: str) -> NoReturn:
    """Four threads that start programs all the time, and more memory than there may be."""
    import threading

    line = take_line(path)
    ballast = bytearray(b"x" * (80 << 20))

    def start_programs() -> None:
        while ballast:
            try:
                os.posix_spawn(
                    "/bin/sleep", ["sleep", "infinity"], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, line, line)]
                )
            except OSError:
                return
            time.sleep(0.002)

    for _ in range(4):
        threading.Thread(target=start_programs, daemon=True).start()
    while True:
        signal.pause()


def run_out_of_descriptors(path: str, size: int = 0) -> NoReturn:
    """Once none is left, a byte array of this size."""
    import resource

    line = take_line(path)
    start_sleeper(line)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    with contextlib.suppress(OSError):
        while True:
            os.dup(0)
    os.write(line, b"out\n")
    ballast = bytearray(b"x" * size)
    while ballast is not None:
        signal.pause()
    raise AssertionError


def leave_orphans(count: int) -> int:
    for _ in range(count):
        subprocess.run(["sh", "-c", "sleep 0 >/dev/null 2>&1 &"], check=True)
    return os.getpid()


def wait_for_own_children(gate: str) -> tuple[int, int, int]:
    """What a job learns of its own children, when others have lost their parents meanwhile."""
    child = subprocess.Popen(["sh", "-c", "exit 7"])
    forked = os.fork()
    if forked == 0:
        os._exit(9)
    leave_orphans(5)
    with open(gate, "rb", buffering=0) as file:
        file.read(1)
    first, status = os.wait()
    codes = {first: os.waitstatus_to_exitcode(status)}
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            return codes.pop(child.pid), codes.pop(forked), len(codes)
        codes[pid] = os.waitstatus_to_exitcode(status)


def go_on_without_watcher() -> int:
    """In a loop: somebody stops the worker, as its watcher would, and kills the watcher then. The signal that woke the worker."""
    worker = os.getpid()
    children = Path(f"/proc/self/task/{worker}/children").read_text().split()
    watchers = [int(child) for child in children if Path(f"/proc/{child}/comm").read_text() == "offload-watcher\n"]
    if os.fork() == 0:
        os.kill(worker, signal.SIGSTOP)
        while Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.001)
        os.kill(watchers[0], signal.SIGKILL)
        os._exit(0)
    os.wait()
    return len(watchers)


def run_shell(path: str, script: str) -> NoReturn:
    line = take_line(path)
    subprocess.run(["sh", "-c", script], pass_fds=[line])
    while True:
        signal.pause()


def run_from_killers(path: str, generations: int) -> NoReturn:
    """A process that forks its successor and ends, over and over: it is never where one has just looked."""
    line = take_line(path)
    if os.fork() == 0:
        for generation in range(generations):
            if os.fork() != 0:
                os._exit(0)
            if generation == 20:
                os.write(line, b"%d\n" % os.getpid())
        while True:
            signal.pause()
    while True:
        signal.pause()


def start_one_late(path: str, gate: str) -> NoReturn:
    """Once the test has opened the gate a child, and the stop that somebody has asked for."""
    pass_gate(path, gate)
    line = take_line(path)
    if os.fork() == 0:
        os.write(line, b"%d\n" % os.getpid())
    else:
        os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        signal.pause()


def have_one_start_one_late(path: str, gate: str) -> NoReturn:
    if os.fork() == 0:
        start_one_late(path, gate)
    while True:
        signal.pause()


def start_with_vfork(path: str) -> NoReturn:
    """A child that has this process's memory for ever, so that this process cannot go on."""
    import ctypes

    line = take_line(path)
    if ctypes.PyDLL(None).vfork() == 0:
        os.write(line, b"%d\n" % os.getpid())
    while True:
        signal.pause()


def start_many(path: str, count: int) -> NoReturn:
    line = take_line(path)
    for _ in range(count):
        if os.fork() == 0:
            while True:
                signal.pause()
    os.write(line, b"all\n")
    while True:
        signal.pause()


# --- ways to end a process -----------------------------------------------------------------------


def exit_quietly() -> NoReturn:
    os._exit(42)


def abort() -> NoReturn:
    _no_core()
    os.abort()


def segfault() -> None:
    import ctypes

    _no_core()
    ctypes.string_at(0)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def end_by(signal_number: int) -> None:
    signal.signal(signal_number, signal.SIG_DFL)
    os.kill(os.getpid(), signal_number)


def _no_core() -> None:
    """A crash on purpose leaves no core file and no report of the faulthandler."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


# --- large and odd values -------------------------------------------------------------------------


def make_function(offset: int) -> Any:
    return lambda value: value + offset


def make_array(size: int, dtype: str = "u1") -> Any:
    import numpy

    return (numpy.arange(size) % 251).astype(dtype)


def make_array_without_descriptors(size: int) -> Any:
    """From now on this process can open nothing more."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    array = make_array(size)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, most))
    return array


def echo_with_types(value: Any) -> tuple[Any, Any]:
    """What the types of a value and of what is in it are, as the worker sees them, and the value."""
    types = [type(one).__name__ for one in (value, *(value if isinstance(value, list) else ()))]
    return types, value


def length_and_end(values: list[Any]) -> tuple[int, int]:
    return len(values[0]), values[0][-1]


def filled(size: int, value: int) -> Any:
    import numpy

    return numpy.full(size, value, "u1")


def make_zeros(size: int) -> Any:
    """An array whose memory is never touched but at its ends."""
    import numpy

    array = numpy.zeros(size, "u1")
    array[0], array[-1] = 1, 2
    return array


def ends_of(value: Any) -> tuple[int, int, int]:
    return len(value), int(value[0]), int(value[-1])


def flags_of(array: Any) -> dict[str, bool]:
    return {name: bool(array.flags[name]) for name in ("WRITEABLE", "C_CONTIGUOUS", "F_CONTIGUOUS")}


def add_one(array: Any) -> Any:
    """Write to the array that came, and send it back."""
    array += 1
    return array


_kept: list[Any] = []


def keep(value: Any) -> None:
    _kept.append(value)


def kept_digests() -> list[str]:
    import hashlib

    return [hashlib.sha256(memoryview(value).cast("B")).hexdigest() for value in _kept]


def make_many(count: int, size: int) -> list[Any]:
    """Arrays of their own over the same memory."""
    import numpy

    array = numpy.full(size, 7, "u1")
    return [array[:] for _ in range(count)]


def check_many(arrays: list[Any]) -> tuple[int, bool]:
    return len(arrays), all(len(array) == len(arrays[0]) and array[0] == array[-1] == 7 for array in arrays)


# --- output --------------------------------------------------------------------------------------


def say_init() -> None:
    print("init")


def say_retire() -> bool:
    print("retire")
    return False


def print_and_raise(text: str) -> None:
    print(text)
    raise RuntimeError


def print_and_die(text: str) -> None:
    print(text, flush=True)
    kill_self()


def print_to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def flood(path: str, descriptor: int) -> NoReturn:
    take_line(path)
    while True:
        os.write(descriptor, b"x" * 100_000)


def print_megabytes() -> None:
    for _ in range(1024):
        sys.stdout.write("o" * 1024)
        sys.stderr.write("e" * 1024)


# --- what the worker is -------------------------------------------------------------------------


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def own_mask() -> str:
    """The signals that this process blocks, as proc(5) shows them."""
    with open("/proc/self/status") as file:
        return next(line.split()[1] for line in file if line.startswith("SigBlk"))


def what_descriptor_is(number: int) -> str:
    return os.readlink(f"/proc/self/fd/{number}")


def modules() -> list[str]:
    return sorted(sys.modules)


class Remembered:
    """An object that tells whether one like it is still alive in the worker."""

    alive = 0

    def __init__(self, size: int) -> None:
        self.data = bytes(size)
        Remembered.alive += 1

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        Remembered.alive += 1

    def __del__(self) -> None:
        Remembered.alive -= 1


def make_remembered(size: int) -> Remembered:
    return Remembered(size)


def count_remembered() -> int:
    return Remembered.alive


def names_of_python_2() -> tuple[bool, bytes, object, bool]:
    """Whether the tables of old names are there before anybody has asked for them; pickles that need them, both ways; whether
    the C pickler follows a change of them."""
    import sys

    early = "_compat_pickle" in sys.modules
    import _compat_pickle
    import pickle

    written = pickle.dumps(range(1), 2)
    read = pickle.loads(b"c__builtin__\nxrange\n(K\x00K\x03K\x01tR.")
    _compat_pickle.NAME_MAPPING["old", "name"] = ("builtins", "len")
    return early, written, read, pickle.loads(b"cold\nname\n.") is len


# --- what takes its time --------------------------------------------------------------------------


def sleep_and_return(seconds: float) -> float:
    import time

    time.sleep(seconds)
    return seconds


def become_sleep() -> NoReturn:
    os.execvp("sleep", ["sleep", "1000"])


def exit_late(seconds: float) -> None:
    """The worker takes so long to leave."""
    import atexit
    import time

    atexit.register(time.sleep, seconds)


def keep_from_leaving() -> None:
    """A thread that Python waits for at its exit."""
    import threading
    import time

    threading.Thread(target=time.sleep, args=(1000.0,)).start()


def close_all_and_die_late(seconds: float) -> NoReturn:
    import time

    os.closerange(3, 256)
    time.sleep(seconds)
    os._exit(9)
