"""What this process may do: its user, groups, capabilities, root directory and namespaces.

A worker gets them from this process when it starts, and keeps them. If they change here, its jobs
could do more than the program may, or meet another root directory. So each worker keeps the
privileges that it was started with (:class:`Grant`), and takes a call only while they are the
program's.

A full look takes several microseconds, and no cheaper system call tells of a new root directory. So
it is made where one of these says that something may have changed:

* The effective user has changed. This is looked at before each call (0.13 us).
* One of the functions of :mod:`os` that change privileges has been called. They are wrapped once a
  worker is started, since Python has no audit event for them.
* A tenth of a second has passed since the last full look. This finds changes by other means
  (ctypes, extension modules).

Namespaces take longer than all the rest. They are looked at in the first two cases, and otherwise
once a second, and only in a program that may change them (CAP_SYS_ADMIN).

Not seen are restrictions without a number that the system would tell cheaply: Landlock, a change of
the SELinux or AppArmor profile.
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


@attrs.frozen
class Privileges:
    """The privileges of the calling thread.

    The kernel keeps them for each thread; the C library changes those of all.
    """

    users: tuple[int, int, int]
    """Real, effective and saved."""
    groups: tuple[int, int, int]
    more_groups: tuple[int, ...]
    capabilities: bytes
    """As capget(2) writes them; empty without ctypes."""
    restrictions: tuple[int, int]
    """``no_new_privs``, and the mode of seccomp(2)."""
    root: tuple[int, int] | None
    namespaces: tuple[str, ...]


class Grant:
    """The privileges with which a process was started, compared with those of this process now."""

    __slots__ = ("__weakref__", "look_at", "privileges", "user")

    def __init__(self) -> None:
        # Until when they need not be looked at, on the clock of time.monotonic().
        self.look_at = -math.inf
        _grants.add(self)
        self.privileges = current(anew=True)
        self.user = self.privileges.users[1]

    def holds(self, now: float) -> bool:
        """Whether this process still has them. ``now`` is the time by :func:`time.monotonic`.

        The first line stands once more where each call passes (``Worker.submit``).
        """
        if now < self.look_at and os.geteuid() == self.user:
            return True
        anew = self.look_at == -math.inf
        # Before the look: a change that another thread makes from here on counts.
        self.look_at = now + _LOOK_INTERVAL
        if current(anew=anew) == self.privileges:
            return True
        self.look_at = -math.inf
        return False


def current(*, anew: bool = False) -> Privileges:
    """The privileges of the calling thread;

    with ``anew`` its namespaces are looked at in any case.
    """
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
    """What there is no function for in :mod:`os`.

    Without ctypes it finds nothing, and so never a change.
    """

    def __init__(self) -> None:
        self._look: Callable[[], tuple[bytes, tuple[int, int]]] | None = None

    def look(self) -> tuple[bytes, tuple[int, int]]:
        """The capabilities; ``no_new_privs`` and the mode of seccomp."""
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
        # Made anew for each look: several threads may look at once.
        data = kind()
        known = capget(ctypes.byref(thread), ctypes.byref(data)) == 0
        restrictions = prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), prctl(_PR_GET_SECCOMP, 0, 0, 0, 0)
        return bytes(data) if known else b"", restrictions

    return look


def _may_administer(capabilities: bytes) -> bool:
    """Whether CAP_SYS_ADMIN is permitted, without which namespaces cannot be changed."""
    # Three numbers of 32 bits for the lower capabilities (effective, permitted, inheritable), then
    # three for the upper.
    return not capabilities or bool(memoryview(capabilities).cast("I")[1] & _CAP_SYS_ADMIN)


def _namespaces(anew: bool) -> tuple[str, ...]:
    thread, until, found = _last_namespaces.found
    now = time.monotonic()
    if not anew and now < until and thread == threading.get_ident():
        return found
    found = tuple(map(_namespace, _NAMESPACES))
    _last_namespaces.found = threading.get_ident(), now + _NAMESPACES_INTERVAL, found
    return found


def _namespace(name: str) -> str:
    try:
        return os.readlink(f"/proc/thread-self/ns/{name}")
    except OSError:
        return ""


class _LastNamespaces:
    def __init__(self) -> None:
        # In one piece, as several threads may look: who has looked, until when that counts, and
        # what was found.
        self.found: tuple[int, float, tuple[str, ...]] = (0, 0.0, ())


class _Grants:
    """All there are, to be looked at anew when something may have changed."""

    def __init__(self) -> None:
        self._grants: weakref.WeakSet[Grant] = weakref.WeakSet()
        self._lock = threading.RLock()
        os.register_at_fork(after_in_child=self._in_child)

    def add(self, grant: Grant) -> None:
        _watch()
        with self._lock:
            self._grants.add(grant)

    def look_anew(self) -> None:
        with self._lock:
            grants = list(self._grants)
        for grant in grants:
            grant.look_at = -math.inf

    def _in_child(self) -> None:
        # Another thread may have held the lock at the moment of the fork. (It is re-entrant for the
        # sake of signal handlers.)
        self._lock = threading.RLock()


def _noted(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def noted(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        finally:
            _grants.look_anew()

    # By this name pickle finds it; that of the builtin function is the platform's module.
    noted.__module__ = "os"
    return noted


@functools.cache
def _watch() -> None:
    """Wrap the functions of :mod:`os` that change privileges, once in the life of the program."""
    for name in _CHANGERS:
        function = getattr(os, name, None)
        if function is not None:
            setattr(os, name, _noted(function))


_CHANGERS: Final = (
    "chroot", "initgroups", "setegid", "seteuid", "setgid", "setgroups", "setns", "setregid", "setresgid", "setresuid", "setreuid",
    "setuid", "unshare",
)  # fmt: skip
_NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid_for_children", "time_for_children", "user", "uts")
_LOOK_INTERVAL: Final = 0.1  # seconds
_NAMESPACES_INTERVAL: Final = 1.0  # seconds
_CAPABILITY_VERSION: Final = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_CAP_SYS_ADMIN: Final = 1 << 21
_PR_GET_SECCOMP: Final = 21
_PR_GET_NO_NEW_PRIVS: Final = 39
_grants: Final = _Grants()
_system: Final = _System()
_last_namespaces: Final = _LastNamespaces()
