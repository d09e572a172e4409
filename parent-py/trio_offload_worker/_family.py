"""A process's descendants: find them and end them. Used by the parent on its workers, and inside of a worker in Python.

A worker is a child subreaper (prctl(2)), so whatever its jobs have started stays below it, whoever called ``setsid`` or
lost its parent.
"""

from __future__ import annotations

import _thread
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable, Collection
    from typing import Final
else:
    # The module `signal` makes enumerations of all this, which takes longer than the rest of a worker's imports.
    import _signal


def end_family(root: int, signal_root: Callable[[int], None], spared: Collection[int] = ()) -> None:
    """SIGKILL a process that has not been reaped, and its descendants except for those to be spared.

    Everything found is stopped before its own children are listed, and the round is repeated until it finds nothing
    new: a descendant whose parent ends in between becomes a child of the root, which is a subreaper. A stopped process
    reaps nobody, so the numbers below it stay valid; pidfds help against what is not ours to stop (a set-uid program),
    as far as there are descriptors for them.

    Who is told to stop does so on its way out of the kernel, and may be in the middle of a fork there: what that brings
    to light is listed only afterwards. So the last round is one before which all had come to a stop.
    """
    signal_root(_signal.SIGSTOP)
    family: set[int] = set()
    known = set(spared)
    pidfds: dict[int, int] = {}
    latest: list[int] = []
    begun = time.monotonic()
    if root != os.getpid():
        # First of all, and asleep: its threads may be waiting for this very processor, and then do so during the kill too.
        _let_stop({root}, begun)
    # Told to stop, and not known to have done it.
    moving: set[int] = set()
    # The bound is for a kernel on which we are slower than what we chase.
    for _ in range(_MOST_ROUNDS):
        # Below what was found last first: one that forks its successor and ends, over and over, is only a step ahead.
        found = new_children([root, *latest], known) or (family and new_children([root, *family], known))
        if not found:
            if not moving:
                break
            _let_stop(moving, begun)
            moving = set()
            continue
        # The newest first, for the same reason.
        for child in reversed(found):
            pidfd = open_pidfd(child)
            if _signal_descendant(child, pidfd, _signal.SIGSTOP):
                moving.add(child)
            if pidfd is not None:
                pidfds[child] = pidfd
            elif pidfds:
                # Perhaps there are no descriptors left, and one is needed to go on looking.
                os.close(pidfds.popitem()[1])
        family.update(found)
        known.update(found)
        latest = found
    signal_root(_signal.SIGKILL)
    for child in family:
        _signal_descendant(child, pidfds.get(child), _signal.SIGKILL)
    for pidfd in pidfds.values():
        os.close(pidfd)


def is_ending(parent: int) -> bool:
    """Whether the process that was this one's parent has ended or has begun to, with all its threads.

    A process that ends closes its descriptors first, which wakes its workers, and its children get another parent later; on
    a busy machine they may have come to their end in between. Without /proc only the second is seen.
    """
    # The last of the three: the number may have been another process's by then.
    return os.getppid() != parent or _all_threads_end(parent) or os.getppid() != parent


def open_pidfd(pid: int) -> int | None:
    """A descriptor that names the process (Linux 5.3), or None where there is no such thing.

    The number must still belong to the process that is meant.
    """
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def new_children(parents: list[int], known: Collection[int]) -> list[int]:
    """The children of these processes that are not known yet."""
    found = children(parents) if lists_children() else children_by_scan(parents)
    return [child for child in found if child not in known]


def lists_children() -> bool:
    """Whether the kernel lists a process's children (CONFIG_PROC_CHILDREN). Without /proc there is nothing to find either way."""
    return os.path.exists(f"/proc/self/task/{_thread.get_native_id()}/children") or not os.path.exists("/proc/self/task")


def children(parents: list[int]) -> list[int]:
    """The children of all threads of these processes (proc(5), ``/proc/pid/task/tid/children``)."""
    found: list[int] = []
    for parent in parents:
        try:
            for thread in os.listdir(f"/proc/{parent}/task"):
                found += map(int, _read(f"/proc/{parent}/task/{thread}/children").split())
        except OSError:
            # It ended while we looked (ENOENT or ESRCH): what it leaves behind is the root's now.
            pass
    return found


def children_by_scan(parents: list[int]) -> list[int]:
    """The same from the table of all processes."""
    wanted = set(parents)
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = stat_fields(int(entry))
            if fields is not None and int(fields[1]) in wanted:
                found.append(int(entry))
    return found


def _all_threads_end(pid: int) -> bool:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return False
    fields = [stat_fields(f"{pid}/task/{thread}") for thread in threads]
    return all(int(each[6]) & _PF_EXITING for each in fields if each is not None)


def stat_fields(pid: int | str) -> list[bytes] | None:
    """The fields of ``/proc/pid/stat`` from the third on, the state (proc(5)); None if there is no such process.

    Of a thread, if the argument is ``"pid/task/tid"``.
    """
    try:
        # The name, in parentheses, may contain anything; the state and the parent's number follow it.
        return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return None


# The ninth field of /proc/pid/stat, from include/linux/sched.h: set at the beginning of a thread's end, and for good.
_PF_EXITING: Final = 4

_MOST_ROUNDS: Final = 3000

# How long one that has been told to stop is waited for, in seconds: it does so as soon as it runs, and on a busy machine that
# may take. One that sleeps in the kernel may sleep for ever (a parent of vfork does until its child, which is stopped, has
# gone on), and has hardly begun to fork.
_STOP_PATIENCE: Final = 0.2
_SLEEP_PATIENCE: Final = 0.005
_TELL_PATIENCE: Final = 0.001
_STOP_INTERVAL: Final = 0.00001


def _let_stop(moving: set[int], begun: float) -> None:
    """Wait until nobody moves who was told to stop at that moment."""
    while moving := {pid for pid in moving if _moves(pid, time.monotonic() - begun)}:
        time.sleep(_STOP_INTERVAL)


def _moves(pid: int, since: float) -> bool:
    """Whether a thread of a process that was told to stop that long ago (seconds) may still come out of a fork with a child."""
    if since > _STOP_PATIENCE:
        return False
    # The cheap way first: a look at each thread keeps them from this processor.
    told = _has_told(pid)
    if told or (told is False and since < _TELL_PATIENCE):
        return not told
    still = _AT_REST if since <= _SLEEP_PATIENCE else _AT_REST + _ASLEEP
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            fields = stat_fields(f"{pid}/task/{thread}")
            if fields is not None and fields[0] not in still:
                return True
    except OSError:
        pass  # It has ended.
    return False


def _has_told(pid: int) -> bool | None:
    """Whether a child of this process has come to a stop, all its threads (wait(2)); None: it is none."""
    try:
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return None


# States in /proc/pid/stat (proc(5)): stopped, traced, a zombie, dead; and in a sleep that no signal but SIGKILL ends.
_AT_REST: Final = b"TtZXx"
_ASLEEP: Final = b"D"


def _read(path: str) -> bytes:
    """A file of /proc. A file object for it would take twice as long, and somebody waits for this."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while part := os.read(descriptor, 65536):
            data += part
        return data
    finally:
        os.close(descriptor)


def _signal_descendant(pid: int, pidfd: int | None, number: int) -> bool:
    """Whether it gets the signal."""
    try:
        if pidfd is not None:
            _signal.pidfd_send_signal(pidfd, number)
        else:
            os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        # Gone by itself, or set-uid to somebody whom we may not signal.
        return False
    return True
