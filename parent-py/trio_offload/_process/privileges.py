"""The privileges of this process: users, groups, capabilities, root directory, namespaces.

A worker inherits them when it starts, and keeps them. If this process changes its own, jobs could
do more than the program may, or use another root directory. So each worker keeps the privileges of
its start (:class:`Grant`), and takes calls only while the program has the same. The kernel has
privileges for each thread. The thread counts that starts a worker, or makes a call.

A full check takes several microseconds, because a new root directory cannot be noticed by a cheaper
system call. It is made in these cases:

* A worker is started.
* The effective user has changed. This is checked before each call (0.13 us).
* One of the functions of :mod:`os` that change privileges was called. They are wrapped once a
  worker is started, because Python has no audit event for them.
* A tenth of a second has passed since the last full check. This finds changes by other means
  (ctypes, extension modules). One check serves all workers.

Reading the namespaces takes longer than the rest. They are read in the first three cases, and
otherwise once a second, and only in a program that may change them (CAP_SYS_ADMIN).

Restrictions that are expensive to read are not noticed: Landlock, a change of the SELinux or
AppArmor profile.
"""

from __future__ import annotations

import functools
import math
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Final

import attrs

_CHANGERS: Final = (
    "chroot", "initgroups", "setegid", "seteuid", "setgid", "setgroups", "setns", "setregid", "setresgid", "setresuid", "setreuid",
    "setuid", "unshare",
)  # fmt: skip
_NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid_for_children", "time_for_children", "user", "uts")
_CHECK_INTERVAL: Final = 0.1  # seconds
_NAMESPACES_INTERVAL: Final = 1.0  # seconds
_CAPABILITY_VERSION: Final = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_CAP_SYS_ADMIN: Final = 1 << 21
_PR_GET_SECCOMP: Final = 21
_PR_GET_NO_NEW_PRIVS: Final = 39


@attrs.frozen
class Privileges:
    """The privileges of a thread. The kernel has them per thread; the C library changes all."""

    users: tuple[int, int, int]
    """Real, effective and saved."""
    groups: tuple[int, int, int]
    more_groups: tuple[int, ...]
    capabilities: bytes
    """Data of capget(2); empty without ctypes."""
    restrictions: tuple[int, int]
    """``no_new_privs``, and the mode of seccomp(2)."""
    root: tuple[int, int] | None
    namespaces: tuple[str, ...]


class Grant:
    """The privileges that a thread has, as its last full check found them.

    All workers that the thread has started with them share one grant.
    """

    __slots__ = ("__weakref__", "check_at", "privileges", "thread", "user")

    def __init__(self, now: float) -> None:
        self.thread = threading.get_ident()
        # Time of the next check, as time.monotonic(). Set before the check, so that a concurrent
        # change causes another.
        self.check_at = now + _CHECK_INTERVAL
        _grants.add(self)
        self.privileges = current(anew=True)
        self.user = self.privileges.users[1]

    def renew(self, now: float, *, anew: bool) -> bool:
        """Check again. Return False if the thread has other privileges now."""
        anew = anew or self.check_at == -math.inf
        self.check_at = now + _CHECK_INTERVAL
        if current(anew=anew) == self.privileges:
            return True
        self.check_at = -math.inf
        return False


def current_grant(now: float, *, anew: bool = False) -> Grant:
    """Return the grant of the calling thread.

    ``Worker.submit`` repeats the tests for one that needs no check, to save a function call.

    Args:
        now: as :func:`time.monotonic`.
        anew: make a full check in any case.
    """
    grant = _of_thread.grant
    if grant is not None:
        if not anew and now < grant.check_at and os.geteuid() == grant.user:
            return grant
        if grant.renew(now, anew=anew):
            return grant
    _of_thread.grant = grant = Grant(now)
    return grant


def same_grant(grant: Grant, now: float) -> Grant | None:
    """Return the grant of the calling thread if it has the privileges of ``grant``, else None."""
    found = current_grant(now)
    # Another object is another thread's, or from before a change that has been undone.
    return found if found is grant or found.privileges == grant.privileges else None


def current(*, anew: bool = False) -> Privileges:
    """Return the privileges of the calling thread. ``anew`` reads its namespaces in any case."""
    root: tuple[int, int] | None
    try:
        status = os.stat("/")
        root = status.st_dev, status.st_ino
    except OSError:
        root = None
    capabilities, restrictions = _system.look()
    return Privileges(
        os.getresuid(),
        os.getresgid(),
        tuple(os.getgroups()),
        capabilities,
        restrictions,
        root,
        _namespaces(anew) if _may_administer(capabilities) else (),
    )


class _System:
    """Privileges without a function in :mod:`os`. Without ctypes they count as unchanged."""

    def __init__(self) -> None:
        self._look: Callable[[], tuple[bytes, tuple[int, int]]] | None = None

    def look(self) -> tuple[bytes, tuple[int, int]]:
        """Return the capabilities; ``no_new_privs`` and the mode of seccomp."""
        if self._look is None:
            self._look = _prepare()
        return self._look()


def _prepare() -> Callable[[], tuple[bytes, tuple[int, int]]]:
    try:
        import ctypes

        library = ctypes.CDLL(None)
        capget, prctl = library.capget, library.prctl
    except (ImportError, OSError, AttributeError):
        return lambda: (b"", (0, 0))
    kind = ctypes.c_uint32 * 6
    thread = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)

    def look() -> tuple[bytes, tuple[int, int]]:
        # A new buffer each time, because several threads may call this.
        data = kind()
        known = capget(ctypes.byref(thread), ctypes.byref(data)) == 0
        restrictions = prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), prctl(_PR_GET_SECCOMP, 0, 0, 0, 0)
        return bytes(data) if known else b"", restrictions

    return look


def _may_administer(capabilities: bytes) -> bool:
    """Return True if CAP_SYS_ADMIN is permitted, which a change of namespaces needs."""
    # Three numbers of 32 bits for the lower capabilities (effective, permitted, inheritable), then
    # three for the upper.
    return not capabilities or bool(memoryview(capabilities).cast("I")[1] & _CAP_SYS_ADMIN)


def _namespaces(anew: bool) -> tuple[str, ...]:
    until, found = _of_thread.namespaces
    now = time.monotonic()
    if anew or now >= until:
        found = tuple(map(_namespace, _NAMESPACES))
        _of_thread.namespaces = now + _NAMESPACES_INTERVAL, found
    return found


def _namespace(name: str) -> str:
    try:
        return os.readlink(f"/proc/thread-self/ns/{name}")
    except OSError:
        return ""


class _OfThread(threading.local):
    grant: Grant | None = None
    # Time of the next read, and the result of the last.
    namespaces: tuple[float, tuple[str, ...]] = -math.inf, ()


class _Grants:
    """All grants, to be checked again when something may have changed."""

    def __init__(self) -> None:
        self._grants: weakref.WeakSet[Grant] = weakref.WeakSet()
        self._lock = threading.RLock()
        os.register_at_fork(after_in_child=self._in_child)

    def add(self, grant: Grant) -> None:
        _watch()
        with self._lock:
            self._grants.add(grant)

    def expire(self) -> None:
        with self._lock:
            grants = list(self._grants)
        for grant in grants:
            grant.check_at = -math.inf

    def _in_child(self) -> None:
        # Another thread may have held the lock at the moment of the fork. It is re-entrant, because
        # a signal handler may run while it is held.
        self._lock = threading.RLock()
        # New threads may get the numbers of those that are not in the copy.
        self.expire()


def _noted(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def noted(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        finally:
            _grants.expire()

    # pickle finds it by this name; the module of the builtin function depends on the platform.
    noted.__module__ = "os"
    return noted


@functools.cache
def _watch() -> None:
    """Wrap the functions of :mod:`os` that change privileges, once in the life of the program."""
    for name in _CHANGERS:
        function = getattr(os, name, None)
        if function is not None:
            setattr(os, name, _noted(function))


_grants: Final = _Grants()
_system: Final = _System()
_of_thread: Final = _OfThread()
