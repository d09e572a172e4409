"""Linux features that Python lacks: files of ``/proc``, pidfds, clone, C library functions.

One file, because a Python worker imports all of it at each start.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable, Sequence
    from typing import Any, Final, TypeVar

    T = TypeVar("T")
else:
    # The module `signal` turns its numbers into enumerations, which takes longer than all other
    # imports.
    import _signal


STACKS: Final = getattr(_signal, "SIGSTKFLT", 16)
"""Asks a worker for the stacks of its threads. No other program sends it (signal(7): "unused")."""
# The system call number of clone(2). The order of its arguments differs, but all are zero.

_CLONE: Final = {"x86_64": 56, "aarch64": 220}
_NO_DESCRIPTOR: Final = (24, 23)  # EMFILE and ENFILE
_MAX_DESCRIPTORS: Final = 65536  # to try where they cannot be listed


def has_proc() -> bool:
    """True if ``/proc`` is mounted, so that memory use can be read."""
    try:
        return bool(read("/proc/self/statm"))
    except OSError:
        return False


def open_pidfd(pid: int) -> int | None:
    """Return a pidfd (Linux 5.3). None means that the system cannot provide one.

    The caller makes sure that the number still belongs to the intended process.
    """
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def send_signal(pid: int, pidfd: int | None, number: int) -> None:
    """Send a signal through the pidfd, or to the number if the pidfd is None.

    Raises:
        ProcessLookupError: the process has ended.
        PermissionError: this process may not signal it.
    """
    if pidfd is not None:
        _signal.pidfd_send_signal(pidfd, number)
    else:
        os.kill(pid, number)


def stat_fields(pid: int | str) -> list[bytes] | None:
    """Return the fields of ``/proc/pid/stat`` (proc(5)) from the third, the state.

    None means that the process has ended.

    Args:
        pid: the process, or a thread as ``"pid/task/tid"``.
    """
    try:
        # The name, in parentheses, may contain any bytes.
        return read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return None


def listed_processes() -> list[int] | None:
    try:
        return [int(name) for name in names("/proc") if name.isdigit()] or None
    except OSError:
        return None


def candidate_descriptors() -> Sequence[int]:
    """Return the descriptors of this process. Without ``/proc``, all that it may have.

    One of them is closed again: that of the list.
    """
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return range(min(os.sysconf("SC_OPEN_MAX"), _MAX_DESCRIPTORS))


def hold_reserve() -> None:
    """Reserve a file descriptor for reading ``/proc`` after this process has used up its others."""
    global _reserve
    if _reserve is None and hasattr(os, "memfd_create"):
        try:
            # A memfd, so it cannot be confused with a file that the program opens under this
            # number.

            descriptor = os.memfd_create("trio-offload-reserve")
        except OSError:
            return
        status = os.fstat(descriptor)
        _reserve = descriptor, status.st_dev, status.st_ino


_reserve: tuple[int, int, int] | None = None


def names(path: str) -> list[str]:
    """Return the names in a folder of ``/proc``."""
    return _with_reserve(os.listdir, path)


def read(path: str) -> bytes:
    """Return a file of ``/proc``."""
    return _with_reserve(_read_once, path)


def read_short(path: str) -> bytes:
    """Return a file of ``/proc`` that one read(2) yields whole, such as ``statm``."""
    return _with_reserve(_read_at_once, path)


def write_short(path: str, data: bytes) -> None:
    """Write to a file of ``/proc`` in one write(2)."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def _read_at_once(path: str) -> bytes:
    # Opened anew each time, so that jobs cannot close the descriptor or replace its file.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 65536)
    finally:
        os.close(descriptor)


def field_in_kilobytes(text: bytes, name: bytes) -> int:
    """Return the value, in bytes, of a line such as ``VmHWM:    1234 kB``."""
    for line in text.splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise ValueError(name)


def _read_once(path: str) -> bytes:
    # Twice as fast as a file object.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while part := os.read(descriptor, 65536):
            data += part
        return data
    finally:
        os.close(descriptor)


def _with_reserve(work: Callable[[str], T], path: str) -> T:
    global _reserve
    try:
        return work(path)
    except OSError as error:
        if error.errno not in _NO_DESCRIPTOR or _reserve is None:
            raise
    (descriptor, *identity), _reserve = _reserve, None
    try:
        status = os.fstat(descriptor)
        if [status.st_dev, status.st_ino] == identity:
            os.close(descriptor)
    except OSError:
        pass  # Closed by the program.
    try:
        return work(path)
    finally:
        hold_reserve()


def identity_of(descriptor: int) -> tuple[int, int] | None:
    """Return an open file's device and inode. None means that the descriptor is closed."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def map_for_life(descriptor: int, size: int) -> memoryview:
    """Map the start of a file as integers of eight bytes, until this process ends.

    A mapping has a duplicate of the descriptor. A job may close that, and open a file of its own
    that gets the number. Python would close the number at its exit, perhaps before the data of that
    file is written. So `sys` keeps the mapping: Python clears its attributes last.

    Raises:
        ImportError, OSError, ValueError: it cannot be mapped.
    """
    import mmap  # a worker whose jobs do not need it is spared the import

    words = memoryview(mmap.mmap(descriptor, size)).cast("Q")
    vars(sys).setdefault("_trio_offload_mappings", []).append(words)
    return words


def unmap(words: memoryview) -> None:
    """End a mapping, and close its duplicate of the descriptor."""
    memory: Any = words.obj
    words.release()
    memory.close()


def clone() -> int | None:
    """Fork a child that plain waits ignore, and that sends no SIGCHLD.

    None means that this system cannot.
    """
    number = _CLONE.get(os.uname().machine) if sys.maxsize > 2**32 else None
    if number is None:
        return None
    # The child's exit sends SIGCONT. So this process is resumed if its sentinel is killed after
    # stopping it.
    pid = call_library("syscall", number, int(_signal.SIGCONT), 0, 0, 0, 0)
    return pid if pid is not None and pid >= 0 else None


def call_library(name: str, *arguments: Any, keep_gil: bool = True) -> int | None:
    """Call a function of the C library, without importing ``ctypes``.

    None means that Python lacks ``_ctypes``.

    Args:
        keep_gil: hold the GIL during the call. A clone made without it may copy a GIL that another
            thread holds, and that stays locked in the copy.
    """
    try:
        import _ctypes
    except ImportError:
        return None
    core: Any = _ctypes
    function = _kinds_of_function.get(keep_gil)
    if function is None:
        # Kept: such a class takes 8 KB, and ctypes frees little of it.
        number = type("number", (core._SimpleCData,), {"_type_": "l"})
        flags = core.FUNCFLAG_CDECL | (core.FUNCFLAG_PYTHONAPI if keep_gil else 0)
        function = type("function", (core.CFuncPtr,), {"_flags_": flags, "_restype_": number})
        _kinds_of_function[keep_gil] = function
    result: int = function(core.dlsym(core.dlopen(None, 0), name))(*arguments)
    return result


_kinds_of_function: dict[bool, Any] = {}
