"""Find and end a worker's descendants. Used by the parent, and by a Python worker on itself.

The twin ``family.rs`` explains the method: how descendants are found, in which order they are
ended, and why all are ended even if a participant is killed midway. In short, each worker has a
mark, which its descendants inherit even when they are orphaned. Only the worker itself is ever
stopped, and the kernel resumes it if its parent ends.
"""

from __future__ import annotations

import _thread
import os
import time

from . import linux
from .linux import listed_processes, names, open_pidfd, read, send_signal, stat_fields

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable, Collection, Sequence
    from typing import Any, Final
else:
    # The module `signal` makes enumerations of its numbers, which takes longer than all other
    # imports.
    import _signal


LIMIT: Final = 10
"""RLIMIT_LOCKS, which holds a process's mark. The module ``resource`` has no name for it."""


def boot_time() -> int:
    """Return the time used in marks: milliseconds since boot."""
    return time.clock_gettime_ns(_BOOT_CLOCK) // 1_000_000


def new_mark(pid: int, is_sentinel: bool = False) -> int:
    """Return the mark of a worker, or of its sentinel, that starts now."""
    return _front(pid, is_sentinel) << _TIME_BITS | boot_time() & _TIME


def mark_self(mark: int) -> bool:
    """Mark this process. Return False if the system does not allow it."""
    try:
        _limits().setrlimit(LIMIT, (mark, _limits().getrlimit(LIMIT)[1]))
    except (OSError, ValueError, AttributeError, ImportError):
        return False
    return mark_of(os.getpid()) == mark


def is_marked(pid: int) -> bool:
    """Return True if the process has the mark of a worker itself, not an inherited one."""
    return mark_of(pid) >> _TIME_BITS == _front(pid)


def mark_of(pid: int) -> int:
    """Return the soft limit that may hold a mark. -1 means that it cannot be read."""
    try:
        limit: int = _limits().prlimit(pid, LIMIT)[0]
    except PermissionError:
        # prlimit compares all user IDs of the target with this process's real one; kill needs less.
        return _mark_in_table(pid)
    except (OSError, AttributeError, ImportError):
        return -1
    return limit


def end_family(root: int, signal_root: Callable[[int], None], since: int, spared: Collection[int] = ()) -> None:
    """SIGKILL a process that has not been reaped, after its descendants except ``spared``.

    The process is stopped first, so that it cannot fork or react to the end of its children.
    ``since`` is a :func:`boot_time` before its start.
    """
    is_self = root == os.getpid()
    if not is_self:
        if not is_marked(root) and not new_children([root], ()):
            # It has just started and run nothing yet. The kernel would not resume it if this
            # process ended now.
            signal_root(_signal.SIGKILL)
            return
        signal_root(_signal.SIGSTOP)
        # Sleep in between: its threads may need this CPU to stop, and would need it during the kill
        # too.
        _let_stop(root)
    known = {root, *spared}
    sentinels: list[int] = []
    has_family = _end_below(root, since, known, sentinels)
    is_certain = is_self or (not has_family and _is_stopped(root))
    signal_root(_signal.SIGKILL)
    if not is_certain:
        # It may have failed to stop in time, or been resumed or killed. From now on it cannot
        # fork.
        _end_marked(root, since, known)
    # Sentinels exit by themselves. They would have finished this work if this process had died
    # earlier.
    _kill(sentinels, lambda pid: mark_of(pid) >> _TIME_BITS == _front(root, True))


def end_orphans(worker: int, since: int) -> None:
    """SIGKILL the orphans of an ended worker started at or after ``since`` (:func:`boot_time`)."""
    _end_marked(worker, since, {worker})


def orphans(worker: int, since: int, known: Collection[int] = ()) -> list[int]:
    """Return the processes with the mark of this worker except ``known``, newest first."""
    front = _front(worker)
    found = []
    for pid in reversed(_processes(worker)):
        mark = mark_of(pid)
        if mark >> _TIME_BITS == front and mark & _TIME >= since and pid not in known and pid != worker:
            found.append(pid)
    return found


def descendants(root: int, since: int, spared: Collection[int] = ()) -> list[int]:
    """Return all current descendants of a process except ``spared``, parents before children."""
    known = {root, *spared}
    found = _below([root], known)
    if found or _may_have_orphans(root):
        found += orphans(root, since, known.union(found))
    return found


def is_ending(parent: int) -> bool:
    """Return True if the process that was this one's parent has ended or begun to, in all threads.

    An exiting process first closes its descriptors, which wakes its workers. Its children are
    reparented later, and on a busy machine may end in between. Without /proc only the second is
    seen.
    """
    # Check the parent again last: its number may have been reused before the second check.
    return os.getppid() != parent or _all_threads_end(parent) or os.getppid() != parent


def new_children(parents: list[int], known: Collection[int]) -> list[int]:
    """Return the children of these processes except ``known``."""
    found = children(parents) if lists_children() else children_by_scan(parents)
    return [child for child in found if child not in known]


def lists_children() -> bool:
    """Return True if the kernel lists children (CONFIG_PROC_CHILDREN), or if /proc is missing."""
    return os.path.exists(f"/proc/self/task/{_thread.get_native_id()}/children") or not os.path.exists("/proc/self/task")


def children(parents: list[int]) -> list[int]:
    """Return the children of all threads of these processes (``/proc/pid/task/tid/children``)."""
    found: list[int] = []
    for parent in parents:
        try:
            for thread in names(f"/proc/{parent}/task"):
                found += map(int, read(f"/proc/{parent}/task/{thread}/children").split())
        except OSError:
            # It ended during the reading (ENOENT or ESRCH). Its children have its mark.
            pass
    return found


def children_by_scan(parents: list[int]) -> list[int]:
    """Return the same from the table of all processes."""
    wanted = set(parents)
    found = []
    for pid in listed_processes() or ():
        fields = stat_fields(pid)
        if fields is not None and int(fields[1]) in wanted:
            found.append(pid)
    return found


def hold_reserve() -> None:
    """Prepare for a time when this process has used up its file descriptors.

    Reserve one for reading ``/proc``, and import the module that reads marks.
    """
    try:
        _limits()
    except ImportError:
        pass
    linux.hold_reserve()


# The layout of a mark; see `family.rs`.
_TIME_BITS: Final = 39
_TIME: Final = 2**_TIME_BITS - 1
_BOOT_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

# In the ninth field of /proc/pid/stat (include/linux/sched.h). Set when a thread starts to exit.
_PF_EXITING: Final = 4

# A bound for kernels on which descendants fork faster than this process kills them.
_MAX_ROUNDS: Final = 3000
_MAX_PIDFDS: Final = 64
# The number of PIDs to try if processes cannot be listed.
_MAX_GUESSES: Final = 65536

# Seconds to wait for a process to stop. It stops when it next runs, which takes time on a busy
# machine. Uninterruptible sleep may last forever (vfork's parent sleeps until the child continues).
_STOP_TIMEOUT: Final = 0.2
_SLEEP_TIMEOUT: Final = 0.005
_REPORT_TIMEOUT: Final = 0.001
_STOP_INTERVAL: Final = 0.00001


def _front(pid: int, is_sentinel: bool = False) -> int:
    """Return the part of a mark that identifies its owner."""
    return 1 << 23 | is_sentinel << 22 | pid & 0x3FFFFF


def _limits() -> Any:
    import resource

    return resource


def _mark_in_table(pid: int) -> int:
    try:
        os.kill(pid, 0)
        table = read(f"/proc/{pid}/limits")
    except OSError:
        return -1
    line = next((line for line in table.splitlines() if line.startswith(b"Max file locks")), b"")
    value = line[len(b"Max file locks") :].split()[:1]
    return int(value[0]) if value and value[0].isdigit() else -1


def _end_below(root: int, since: int, known: set[int], sentinels: list[int]) -> bool:
    """SIGKILL the descendants except ``known``. Return True if there may have been one.

    The root's sentinels are only collected in ``sentinels``.
    """
    family: list[int] = []
    may_have_orphans = False
    mark_of_sentinel = _front(root, True)

    def is_meant(pid: int) -> bool:
        if mark_of(pid) >> _TIME_BITS == _front(root):
            return True
        fields = stat_fields(pid)
        return fields is not None and int(fields[1]) in known

    for _ in range(_MAX_ROUNDS):
        # Look for orphans last. It takes longer, and a process that forks its successor and exits,
        # over and over, is only one step ahead. Without marks orphans are children of the root. So
        # the root comes last here: a parent that ends during the look makes one.
        found = _below([*family, root], known)
        if not found:
            may_have_orphans = may_have_orphans or bool(family) or _may_have_orphans(root)
            if may_have_orphans:
                found = orphans(root, since, known)
        if not found:
            break
        known.update(found)
        noted = [child for child in found if mark_of(child) >> _TIME_BITS == mark_of_sentinel]
        sentinels += noted
        found = [child for child in found if child not in noted]
        _kill(found, is_meant)
        family += found
    return may_have_orphans


def _end_marked(worker: int, since: int, known: set[int]) -> None:
    front = _front(worker)
    for _ in range(_MAX_ROUNDS):
        found = orphans(worker, since, known)
        if not found:
            break
        known.update(found)
        _kill(found, lambda pid: mark_of(pid) >> _TIME_BITS == front)


def _below(parents: list[int], known: Collection[int]) -> list[int]:
    """Return descendants except ``known``, parents before children, in a level newest first."""
    found: list[int] = []
    level = new_children(parents, known)
    while level:
        found += reversed(level)
        level = [child for child in new_children(level, known) if child not in found]
    return found


def _may_have_orphans(root: int) -> bool:
    """Return True if a process without children may have orphaned descendants."""
    fields = stat_fields(root)
    if fields is None or fields[0] in _AT_END:
        return True
    # Minor page faults of reaped children; every process has some.
    if int(fields[8]) != 0:
        return True
    try:
        status = read(f"/proc/{root}/status")
    except OSError:
        return True
    # If a process ignores SIGCHLD, the kernel reaps its children without counting them.
    ignored = status.rpartition(b"SigIgn:")[2].split()[:1]
    return not ignored or bool(int(ignored[0], 16) >> (_signal.SIGCHLD - 1) & 1)


def _processes(near: int) -> Sequence[int]:
    """Return the PIDs of all processes, in ascending order if possible."""
    listed = listed_processes()
    # PIDs are assigned in ascending order.
    return range(near + 1, near + _MAX_GUESSES) if listed is None else listed


def _all_threads_end(pid: int) -> bool:
    try:
        threads = names(f"/proc/{pid}/task")
    except OSError:
        return False
    fields = [stat_fields(f"{pid}/task/{thread}") for thread in threads]
    return all(int(each[6]) & _PF_EXITING for each in fields if each is not None)


def _let_stop(root: int) -> None:
    """Wait until a process that was just told to stop has stopped."""
    begun = time.monotonic()
    while _moves(root, time.monotonic() - begun):
        time.sleep(_STOP_INTERVAL)


def _is_stopped(pid: int) -> bool:
    """Return True if all threads of a process are known to have stopped and not been resumed."""
    try:
        status = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        # It is the child of another process.
        fields = stat_fields(pid)
        return fields is not None and fields[0] in _STOPPED
    return status is not None and status.si_code in (os.CLD_STOPPED, os.CLD_TRAPPED)


def _moves(pid: int, since: float) -> bool:
    """Return True if a thread still runs, ``since`` seconds after its process was told to stop."""
    if since > _STOP_TIMEOUT:
        return False
    # The cheap check first: checking each thread keeps them from this CPU.
    told = _reports_stop(pid)
    if told or (told is False and since < _REPORT_TIMEOUT):
        return not told
    still = _AT_REST if since <= _SLEEP_TIMEOUT else _AT_REST + _ASLEEP
    try:
        for thread in names(f"/proc/{pid}/task"):
            fields = stat_fields(f"{pid}/task/{thread}")
            if fields is not None and fields[0] not in still:
                return True
    except OSError:
        pass  # The process has ended.
    return False


def _reports_stop(pid: int) -> bool | None:
    """Return True if a child has stopped in all threads (wait(2)). None means it is not a child."""
    try:
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return None


# States in /proc/pid/stat (proc(5)): stopped, traced; zombie, dead; uninterruptible sleep.
_STOPPED: Final = b"Tt"
_AT_END: Final = b"ZXx"
_AT_REST: Final = _STOPPED + _AT_END
_ASLEEP: Final = b"D"


def _kill(pids: list[int], is_meant: Callable[[int], bool]) -> None:
    """SIGKILL the processes that are still meant, once their numbers cannot be reused.

    They cannot fork any more: copy_process() in kernel/fork.c fails under a pending SIGKILL.
    """
    # Check all before killing the first, because a kill reparents others.
    meant = []
    for index, pid in enumerate(pids):
        # Other threads of this process need descriptors too.
        pidfd = open_pidfd(pid) if index < _MAX_PIDFDS else None
        if is_meant(pid):
            meant.append((pid, pidfd))
        elif pidfd is not None:
            os.close(pidfd)
    for pid, pidfd in meant:
        _kill_one(pid, pidfd)
        if pidfd is not None:
            os.close(pidfd)


def _kill_one(pid: int, pidfd: int | None) -> None:
    try:
        send_signal(pid, pidfd, _signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # Already gone, or set-uid to a user whom this process may not signal.
