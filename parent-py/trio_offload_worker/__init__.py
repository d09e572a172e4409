"""The part of trio-offload that jobs import. It imports nothing from Trio.

What to use in a job:

======================  ===============================================================
``from_worker``         talk to the parent: call it back, show progress, see a cancellation
``handles``             the classes of locks, channels and so on, for annotations
``memory_info``         the memory use of the worker, in bytes
``resident_memory``     its resident memory only, in bytes, which is quicker
``single_threaded``     a block without the worker's native thread
======================  ===============================================================

Use :func:`memory_info` in a ``retire`` function too. The other modules are private. Each is
imported when something first needs it, and a plain call needs none.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["MemoryInfo", "memory_info", "resident_memory", "single_threaded"]

_BY_SYNTAX = frozenset(
    f"__{name}__" for name in ("aenter", "aexit", "aiter", "anext", "enter", "exit", "iter", "next", "len", "call", "array")
)


class PublicType(type):
    """The type of public classes. ``dir()`` and ``help()`` show their public members only.

    Those are the names without an underscore in front, and the methods behind ``with``, ``for``,
    ``len()`` and the like. `pydoc` would show all special names, attrs' own ones too.
    """

    _internal: frozenset[str] = frozenset()
    """Names of other members that are for trio-offload itself."""
    _is_constructible = True
    """False if a function makes the instances. The help shows no parameters of the class then."""

    def __dir__(cls) -> list[str]:
        names = set(super().__dir__()) - cls._internal
        return [name for name in names if not name.startswith("_") or name in _BY_SYNTAX]

    @property
    def __signature__(cls) -> Any:
        if cls._is_constructible:
            raise AttributeError  # it is the signature of `__init__`
        import inspect

        return inspect.Signature()


def publish(module: str, *things: Any) -> None:
    """Name functions, and classes with their methods, as of the public module that has them.

    Tracebacks, pickles and ``help()`` show the names, whatever has been imported. From Python 3.13
    on, `pydoc` adds the module of a method to its signature unless its class is of the same one.
    """
    for thing in things:
        thing.__module__ = module
        if isinstance(thing, type):
            for member in vars(thing).values():
                function = getattr(member, "__func__", member)
                if type(function) is type(publish) and function.__qualname__.startswith(thing.__qualname__ + "."):
                    function.__module__ = module


def import_late(module: dict[str, Any], places: dict[str, str], name: str) -> Any:
    """Import a public name of a module from `_requests`, and keep it in the module's namespace.

    Args:
        module: The namespace.
        places: The module in `_requests` of each such name.
        name: The name.

    Raises:
        AttributeError: It is no such name.
    """
    if name not in places:
        raise AttributeError(f"module {module['__name__']!r} has no attribute {name!r}")
    value = getattr(__import__(f"{__package__}._requests.{places[name]}", fromlist=(name,)), name)
    module[name] = value
    return value


class MemoryInfo(metaclass=PublicType):
    """The memory use of a process, in bytes.

    ::

        before = trio_offload_worker.memory_info()
        table = load(path)
        after = trio_offload_worker.memory_info()
        print(f"{after.rss - before.rss} bytes, {after.peak_rss - before.rss} at the peak")
    """

    __slots__ = {  # noqa: RUF023 (in the order of the parameters)
        "rss": "Resident memory, in bytes.",
        "peak_rss": "Highest resident memory so far, in bytes.",
        "vms": "Size of the address space, in bytes.",
    }

    def __init__(self, rss: int, peak_rss: int, vms: int) -> None:
        self.rss = rss
        self.peak_rss = peak_rss
        self.vms = vms

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MemoryInfo):
            return NotImplemented
        return (self.rss, self.peak_rss, self.vms) == (other.rss, other.peak_rss, other.vms)

    def __hash__(self) -> int:
        return hash((self.rss, self.peak_rss, self.vms))

    def __repr__(self) -> str:
        return f"MemoryInfo(rss={self.rss}, peak_rss={self.peak_rss}, vms={self.vms})"


def memory_info() -> MemoryInfo:
    """Return the memory use of this process. Takes about 30 µs.

    ::

        def was_large():
            return trio_offload_worker.memory_info().peak_rss > 2**31

        async with trio_offload.open_worker_context(retire=was_large) as context:
            await context.run_sync(parse, path)

    It works outside of workers too. The figures are ``VmRSS``, ``VmHWM`` and ``VmSize`` of
    ``/proc/self/status``, see proc(5). :func:`resident_memory` is quicker if the resident memory is
    enough.

    Raises:
        RuntimeError: ``/proc`` is not mounted.
    """
    wanted = {b"VmRSS": 0, b"VmHWM": 0, b"VmSize": 0}
    for line in _read("/proc/self/status").splitlines():
        name, _, value = line.partition(b":")
        if name in wanted:
            wanted[name] = int(value.split()[0]) * 1024
    rss = wanted[b"VmRSS"]
    # The kernel updates its counters lazily, so the two may be of different moments.
    return MemoryInfo(rss, max(rss, wanted[b"VmHWM"]), wanted[b"VmSize"])


class single_threaded(metaclass=PublicType):  # noqa: N801 (used as a function)
    """Run a block without the worker's native thread, so that only the job's threads exist.

    The worker executable has a native thread that watches over running jobs. It steps aside without
    being asked for ``os.fork``, and for ``unshare`` and ``setns`` as Python and most libraries call
    them. Use this class for calls that bypass those functions: a direct system call, or a C library
    opened by its file name. ::

        with trio_offload_worker.single_threaded():
            ctypes.CDLL("libc.so.6").unshare(CLONE_NEWUSER)

    Keep the block short. Until its end, the job is neither killed when the parent dies nor checked
    against its ``memory_limit``. Use it in the main thread. In other threads, and in processes
    without a native thread, it does nothing.

    Raises:
        OSError: At the end of the block, if the system cannot start a thread at that moment. The
            worker tries again when the job ends.
    """

    def __enter__(self) -> None:
        self._switch(1)

    def __exit__(self, *error: object) -> None:
        if self._switch(0):
            import errno
            import os

            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN) + ": the worker's native thread cannot be started again")

    @staticmethod
    def _switch(wanted: int) -> int:
        try:
            import ctypes

            switch: Any = ctypes.CDLL(None).trio_offload_single_threaded
        except (ImportError, AttributeError):
            return 0  # Not in the worker executable.
        return int(switch(wanted))


def resident_memory() -> int:
    """Return the resident memory of this process, in bytes.

    ::

        def parse_all(paths):
            for path in paths:
                parse(path)
                if trio_offload_worker.resident_memory() > 2**30:
                    clear_caches()

    Raises:
        RuntimeError: As for :func:`memory_info`.
    """
    import os

    return int(_read("/proc/self/statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError as error:
        raise RuntimeError(f"the memory use of a process is unavailable on this system: {path}: {error.strerror}") from error
