"""A worker's descendants: find them and end them. Used by the parent on its workers, and inside of a worker in Python.

How they are found and in which order they are ended, and why nothing is left whoever is killed in the middle, is explained
in ``family.rs``, whose twin this is. In short: each worker has a mark, which its descendants inherit whatever becomes of their
parents. Nobody but the worker itself is ever stopped, and the kernel resumes that if its parent ends.
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
    # The module `signal` makes enumerations of all this, which takes longer than the rest of a worker's imports.
    import _signal


LIMIT: Final = 10
"""RLIMIT_LOCKS, in which a process has its mark. The module ``resource`` has no name for it."""


def boot_time() -> int:
    """The time that marks have: milliseconds since the system was booted."""
    return time.clock_gettime_ns(_BOOT_CLOCK) // 1_000_000


def new_mark(pid: int, is_watcher: bool = False) -> int:
    """The mark of the worker with this number, or of its watcher, that begins now."""
    return _front(pid, is_watcher) << _TIME_BITS | boot_time() & _TIME


def mark_self(mark: int) -> bool:
    """Give this process a mark; false: the system does not allow that."""
    try:
        _limits().setrlimit(LIMIT, (mark, _limits().getrlimit(LIMIT)[1]))
    except (OSError, ValueError, AttributeError, ImportError):
        return False
    return mark_of(os.getpid()) == mark


def is_marked(pid: int) -> bool:
    """Whether a process has the mark of a worker of its own."""
    return mark_of(pid) >> _TIME_BITS == _front(pid)


def mark_of(pid: int) -> int:
    """The soft limit in which a process may have a mark; -1: there is none, or it is not for this process to know."""
    try:
        limit: int = _limits().prlimit(pid, LIMIT)[0]
    except PermissionError:
        # prlimit compares all of the other's users with the real one of this process, kill is content with less.
        return _mark_in_table(pid)
    except (OSError, AttributeError, ImportError):
        return -1
    return limit


def end_family(root: int, signal_root: Callable[[int], None], since: int, spared: Collection[int] = ()) -> None:
    """SIGKILL a process that has not been reaped, after all its descendants except for those to be spared.

    It is stopped first, so that it starts nothing more and does not react to what becomes of its children. ``since`` is a
    :func:`boot_time` before its start.
    """
    is_self = root == os.getpid()
    if not is_self:
        if not is_marked(root) and not new_children([root], ()):
            # It has hardly begun: it has run nothing yet, and the kernel would not resume it if this process ended now.
            signal_root(_signal.SIGKILL)
            return
        signal_root(_signal.SIGSTOP)
        # Asleep: its threads may be waiting for this very processor, and then do so during the kill too.
        _let_stop(root)
    known = {root, *spared}
    watchers: list[int] = []
    has_family = _end_below(root, since, known, watchers)
    is_certain = is_self or (not has_family and _is_stopped(root))
    signal_root(_signal.SIGKILL)
    if not is_certain:
        # It may not have stopped in time, or somebody has resumed or killed it. From now on it certainly starts nothing more.
        _end_marked(root, since, known)
    # They leave by themselves, and would have gone on with all this if this process had ended before now.
    _kill(watchers, lambda pid: mark_of(pid) >> _TIME_BITS == _front(root, True))


def end_orphans(worker: int, since: int) -> None:
    """SIGKILL what a worker has left that has ended, and was started not before ``since``, a :func:`boot_time`."""
    _end_marked(worker, since, {worker})


def orphans(worker: int, since: int, known: Collection[int] = ()) -> list[int]:
    """The processes with the mark of this worker, except for those that are known, the newest first."""
    front = _front(worker)
    found = []
    for pid in reversed(_processes(worker)):
        mark = mark_of(pid)
        if mark >> _TIME_BITS == front and mark & _TIME >= since and pid not in known and pid != worker:
            found.append(pid)
    return found


def descendants(root: int, since: int, spared: Collection[int] = ()) -> list[int]:
    """All descendants of a process that are there now, except for those to be spared, parents before their children."""
    known = {root, *spared}
    found = _below([root], known)
    if found or _may_have_orphans(root):
        found += orphans(root, since, known)
    return found


def is_ending(parent: int) -> bool:
    """Whether the process that was this one's parent has ended or has begun to, with all its threads.

    A process that ends closes its descriptors first, which wakes its workers, and its children get another parent later; on
    a busy machine they may have come to their end in between. Without /proc only the second is seen.
    """
    # The last of the three: the number may have been another process's by then.
    return os.getppid() != parent or _all_threads_end(parent) or os.getppid() != parent


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
            for thread in names(f"/proc/{parent}/task"):
                found += map(int, read(f"/proc/{parent}/task/{thread}/children").split())
        except OSError:
            # It ended while we looked (ENOENT or ESRCH): what it leaves behind has its mark.
            pass
    return found


def children_by_scan(parents: list[int]) -> list[int]:
    """The same from the table of all processes."""
    wanted = set(parents)
    found = []
    for pid in listed_processes() or ():
        fields = stat_fields(pid)
        if fields is not None and int(fields[1]) in wanted:
            found.append(pid)
    return found


def hold_reserve() -> None:
    """Prepare this process for a time when it has no file descriptors left.

    Keep one back for reading ``/proc``, and import the module that reads marks.
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

# The ninth field of /proc/pid/stat, from include/linux/sched.h: set at the beginning of a thread's end, and for good.
_PF_EXITING: Final = 4

# The bound is for a kernel on which we are slower than what we chase.
_MOST_ROUNDS: Final = 3000
_MOST_PIDFDS: Final = 64
# How many numbers are tried where nothing lists the processes.
_MOST_GUESSES: Final = 65536

# How long one that has been told to stop is waited for, in seconds: it does so as soon as it runs, and on a busy machine that
# may take. One that sleeps in the kernel may sleep for ever (a parent of vfork does until its child has gone on).
_STOP_PATIENCE: Final = 0.2
_SLEEP_PATIENCE: Final = 0.005
_TELL_PATIENCE: Final = 0.001
_STOP_INTERVAL: Final = 0.00001


def _front(pid: int, is_watcher: bool = False) -> int:
    """The part of a mark that says whose it is."""
    return 1 << 23 | is_watcher << 22 | pid & 0x3FFFFF


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


def _end_below(root: int, since: int, known: set[int], watchers: list[int]) -> bool:
    """SIGKILL all descendants that are not known, as long as there are any; whether there may have been one.

    Watchers of the root's are only noted.
    """
    family: list[int] = []
    may_have_orphans = False
    mark_of_watcher = _front(root, True)

    def is_meant(pid: int) -> bool:
        if mark_of(pid) >> _TIME_BITS == _front(root):
            return True
        fields = stat_fields(pid)
        return fields is not None and int(fields[1]) in known

    for _ in range(_MOST_ROUNDS):
        # Those who have lost their parents are looked for at last: it takes longer, and one that forks its successor and
        # ends, over and over, is only a step ahead.
        found = _below([root, *family], known)
        if not found:
            may_have_orphans = may_have_orphans or bool(family) or _may_have_orphans(root)
            if may_have_orphans:
                found = orphans(root, since, known)
        if not found:
            break
        known.update(found)
        noted = [child for child in found if mark_of(child) >> _TIME_BITS == mark_of_watcher]
        watchers += noted
        found = [child for child in found if child not in noted]
        _kill(found, is_meant)
        family += found
    return may_have_orphans


def _end_marked(worker: int, since: int, known: set[int]) -> None:
    front = _front(worker)
    for _ in range(_MOST_ROUNDS):
        found = orphans(worker, since, known)
        if not found:
            break
        known.update(found)
        _kill(found, lambda pid: mark_of(pid) >> _TIME_BITS == front)


def _below(parents: list[int], known: Collection[int]) -> list[int]:
    """The descendants of these processes that are not known yet, parents before their children, of one level the newest first."""
    found: list[int] = []
    level = new_children(parents, known)
    while level:
        found += reversed(level)
        level = [child for child in new_children(level, known) if child not in found]
    return found


def _may_have_orphans(root: int) -> bool:
    """Whether a process without children may ever have had one: then there may be descendants that have lost their parents."""
    fields = stat_fields(root)
    if fields is None or fields[0] in _AT_END:
        return True
    # What those had of minor page faults whom it has waited for; every process has some.
    if int(fields[8]) != 0:
        return True
    try:
        status = read(f"/proc/{root}/status")
    except OSError:
        return True
    # Of a process that ignores SIGCHLD the kernel reaps the children, and counts nothing.
    ignored = status.rpartition(b"SigIgn:")[2].split()[:1]
    return not ignored or bool(int(ignored[0], 16) >> (_signal.SIGCHLD - 1) & 1)


def _processes(near: int) -> Sequence[int]:
    """The numbers of all processes, in ascending order as far as possible."""
    listed = listed_processes()
    # Numbers are given out in a row.
    return range(near + 1, near + _MOST_GUESSES) if listed is None else listed


def _all_threads_end(pid: int) -> bool:
    try:
        threads = names(f"/proc/{pid}/task")
    except OSError:
        return False
    fields = [stat_fields(f"{pid}/task/{thread}") for thread in threads]
    return all(int(each[6]) & _PF_EXITING for each in fields if each is not None)


def _let_stop(root: int) -> None:
    """Wait until a process does not move that was told to stop at this moment."""
    begun = time.monotonic()
    while _moves(root, time.monotonic() - begun):
        time.sleep(_STOP_INTERVAL)


def _is_stopped(pid: int) -> bool:
    """Whether a process has stopped with all its threads, as far as that can be known, and was not resumed."""
    try:
        status = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        # It is another's child.
        fields = stat_fields(pid)
        return fields is not None and fields[0] in _STOPPED
    return status is not None and status.si_code in (os.CLD_STOPPED, os.CLD_TRAPPED)


def _moves(pid: int, since: float) -> bool:
    """Whether a thread of a process that was told to stop that long ago (seconds) still runs."""
    if since > _STOP_PATIENCE:
        return False
    # The cheap way first: a look at each thread keeps them from this processor.
    told = _has_told(pid)
    if told or (told is False and since < _TELL_PATIENCE):
        return not told
    still = _AT_REST if since <= _SLEEP_PATIENCE else _AT_REST + _ASLEEP
    try:
        for thread in names(f"/proc/{pid}/task"):
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
_STOPPED: Final = b"Tt"
_AT_END: Final = b"ZXx"
_AT_REST: Final = _STOPPED + _AT_END
_ASLEEP: Final = b"D"


def _kill(pids: list[int], is_meant: Callable[[int], bool]) -> None:
    """SIGKILL those that are still meant when nobody else can have their numbers.

    They start nothing more then: copy_process() in kernel/fork.c gives a fork up under a pending SIGKILL.
    """
    # All are looked at before the first is killed, because that changes whose children the others are.
    meant = []
    for index, pid in enumerate(pids):
        # Other threads of this process need descriptors too.
        pidfd = open_pidfd(pid) if index < _MOST_PIDFDS else None
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
        pass  # Gone by itself, or set-uid to somebody whom we may not signal.
