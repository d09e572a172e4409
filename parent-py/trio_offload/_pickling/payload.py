"""A pickled call: its bytes, its function's name for messages, and the handles in it.

A handle, such as a lock or an end of a channel, may be pickled for a job only. The picklers of this
package open an *export* while they work. A handle asks for it, enters its grants for the job, and
refuses every other pickler.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

import attrs

from trio_offload_worker._protocol.frames import Buffer

# Bytes. More than the pickler gathers into one frame: a larger part is one object's data.
SMALL: Final = 128 * 1024
MAIN: Final = b"__main__"


class Grant(Protocol):
    """A handle that a call may use: a callback, a lock, an end of a channel."""

    @property
    def id(self) -> int:
        """The number by which the job names it."""

    def begin(self, conversation: Any) -> None:
        """Let a worker have it: its :class:`~.._worker.conversation.Conversation` is the argument.

        A call that one worker did not run goes to another with its grants.
        """

    def for_call(self) -> Grant:
        """Return a grant of the same handle, with the same number, for one call of a worker.

        This one belongs to the worker as a whole, such as a handle in ``init``.
        """

    def request(self, request: Any) -> None:
        """Complete a request of the job (:class:`~.._worker.requests.Request`), or park it."""

    def post(self, post: Any) -> None:
        """Handle a message of the job that has no reply (:class:`~.._worker.requests.Post`)."""

    def end(self, death: Any) -> None:
        """Settle the grants of the call, which has ended. May be called again.

        Args:
            death: the :class:`~.._worker.requests.Death` of its worker. None means an orderly end,
                or a call that was never sent.
        """


@attrs.define
class Payload:
    """A pickled call."""

    parts: Sequence[Buffer]
    """The bytes of all segments, in the order in which they are written."""
    lengths: Sequence[int]
    """Length of each segment, in bytes."""
    function: Callable[..., Any]
    types: bytes = b""
    """Type of each segment. Empty if all are memory."""
    small: bool = False
    """True if the payload is one ``bytes`` that is cheap to copy."""
    grants: Sequence[Grant] = ()
    """The handles in it."""

    @property
    def name(self) -> str:
        """The function's name, for messages."""
        return function_name(self.function)


def function_name(function: Callable[..., Any]) -> str:
    """Return the name of a function for a message."""
    inner: Any = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    try:
        name = getattr(inner, "__qualname__", None)
        if name is None:
            return repr(function)
        module = getattr(inner, "__module__", None)
        return name if module in (None, "builtins") else f"{module}.{name}"
    except Exception:
        # Callables may have or lack any attribute; a message must not fail.
        return f"an instance of {type(inner).__qualname__}"


def mentions_main(payload: Payload) -> bool:
    """Return True if a pickle may name an object of ``__main__``. Large data is not searched."""
    return mentions(payload, (MAIN,))


def mentions(payload: Payload, names: Sequence[bytes]) -> bool:
    """Return True if a small part of a pickle contains one of the names.

    A false alarm is harmless.
    """
    # `find`, because `in` first tries its operand as a number and handles an exception.
    return any(
        part.find(name) >= 0 for part in payload.parts if len(part) <= SMALL and isinstance(part, bytes) for name in names
    )


class Export:
    """The grants of one pickle. A second attempt to pickle the same objects uses them again."""

    __slots__ = ("grants",)

    def __init__(self) -> None:
        self.grants: dict[Hashable, Grant] = {}

    def grant(self, key: Hashable, make: Callable[[], Grant]) -> Grant:
        """Return the grant with this key. The first request makes it."""
        if key not in self.grants:
            self.grants[key] = make()
        return self.grants[key]

    def cancel(self) -> None:
        """End the grants: the pickle is not used."""
        for grant in self.grants.values():
            grant.end(None)
        self.grants.clear()


class _Current(threading.local):
    export: Export | None = None
    repetition: str = ""


_current: Final = _Current()


def current_export() -> Export | None:
    """Return the export of this thread's pickler. None means another pickler."""
    return _current.export


@contextmanager
def repeated(reason: str) -> Iterator[None]:
    """Pickle something in the block for several workers or calls.

    So an end of a channel cannot be moved. The reason completes the sentence about this.
    """
    _current.repetition = reason
    try:
        yield
    finally:
        _current.repetition = ""


def refuse_if_repeated() -> None:
    """Raise TypeError if the object that is being pickled goes to several workers or calls."""
    if _current.repetition:
        raise TypeError(
            f"move() passes an end of a channel to one call, but {_current.repetition}. Pass the end itself, of which each "
            "gets a clone, and close it afterwards"
        )


@contextmanager
def exporting() -> Iterator[Export]:
    """Let handles be pickled in the block. An exception ends what was granted."""
    outer, export = _current.export, Export()
    _current.export = export
    try:
        yield export
    except BaseException:
        export.cancel()
        raise
    finally:
        _current.export = outer


def with_grants(dump: Callable[..., Payload], *args: Any) -> Payload:
    """Return the payload of ``dump(*args)`` with the grants of the handles that it holds."""
    # Without a context manager: every call with larger arguments comes here.
    outer, export = _current.export, Export()
    _current.export = export
    try:
        payload = dump(*args)
    except BaseException:
        export.cancel()
        raise
    finally:
        _current.export = outer
    if export.grants:
        payload.grants = tuple(export.grants.values())
    return payload


def release(payload: Payload) -> None:
    """End the grants of a call that may not have been run. Ended ones stay as they are."""
    for grant in payload.grants:
        grant.end(None)
