"""Handles: objects of this program that its jobs may use, such as callbacks, locks and channels.

A handle belongs to one run of Trio: to that in which it is used first. A job gets a stand-in for
it, made by :func:`trio_offload_worker._requests.handles.attach`, whose pickle names the handle by a
random number. When a pickle with that number comes back, it becomes the handle again.
"""

from __future__ import annotations

import functools
import random
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final

import trio

from trio_offload_worker import PublicType

from .._pickling.payload import current_export
from .._worker.requests import Death, Post, Request

if TYPE_CHECKING:
    from .._pickling.payload import Grant
    from .._worker.conversation import Conversation

_numbers: Final = random.SystemRandom()
_of_run: Final[trio.lowlevel.RunVar[weakref.WeakValueDictionary[int, Any]]] = trio.lowlevel.RunVar("handles")


def new_number() -> int:
    """Return a number for a handle: random, so it is unique and a secret."""
    return _numbers.getrandbits(64) or 1


def resolve(number: int) -> Any | None:
    """Return the handle of this run of Trio with the number, if it has one."""
    try:
        found = _of_run.get(_no_handles).get(number)
        if found is None:
            found = _numbered(number)
    except RuntimeError:  # this is outside of a run
        return None
    return None if found is None else found.resolved()


def _numbered(number: int) -> Handle | None:
    """Return the handle whose copy in a fork has this number, perhaps before its first use here."""
    handle = next((handle for handle in list(_handles) if handle._number == number), None)
    if handle is not None:
        handle.bind()
    return handle


def register(number: int, handle: Any) -> None:
    """Let :func:`resolve` find a handle, as long as it lives."""
    try:
        table = _of_run.get()
    except LookupError:
        table = weakref.WeakValueDictionary()
        _of_run.set(table)
        _let_pickles_find_handles()
    table[number] = handle


def _let_pickles_find_handles() -> None:
    from trio_offload_worker._requests import handles

    if resolve not in handles.resolvers:
        handles.resolvers.append(resolve)


class Handle(metaclass=PublicType):
    """The base of all handles."""

    _internal = frozenset({"bind", "close_in_copy", "details", "grant", "grant_of_copy", "kind", "resolved"})

    kind: ClassVar[str]
    """The name of the job's class, in :mod:`trio_offload_worker._requests.handles`."""

    def __init__(self) -> None:
        self._number = 0
        self._token: trio.lowlevel.TrioToken | None = None
        _handles.add(self)

    def bind(self) -> int:
        """Return the number. The first use binds the handle to the run of Trio.

        Raises:
            RuntimeError: It is used outside of its run.
        """
        token = trio.lowlevel.current_trio_token()
        if self._token is None:
            self._token, self._number = token, self._number or new_number()
            register(self._number, self)
        elif token is not self._token:
            raise RuntimeError(
                f"this {type(self).__name__} belongs to another run of Trio: the one in which it was used first"
            )
        return self._number

    @property
    def handle(self) -> Any:
        """The handle as a job has it, with methods that block.

        Pass it to a job in place of the object itself, for type checkers. A job that runs in a
        thread of Trio's needs it. Its types are in :mod:`trio_offload_worker.handles`.
        """
        from .in_threads import InThread  # few programs need it

        self.bind()
        return InThread(self)

    def resolved(self) -> Any:
        """Return the object that a pickle of the handle becomes in this program."""
        return self

    def grant(self) -> Grant:
        """Return what one call may do with the handle."""
        raise NotImplementedError

    def grant_of_copy(self) -> Grant:
        """Return a grant for one call whose worker, a fork, has a copy of the handle."""
        return self.grant()

    def close_in_copy(self) -> None:
        """Close the descriptors that a fork has inherited. It is called in the fork."""

    def details(self, grant: Grant | None) -> tuple[Any, ...]:
        """Return further arguments of the job's stand-in: builtin objects, and handles.

        Without a grant they are for a copy in a fork.
        """
        return ()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        from trio_offload_worker._requests.handles import attach

        export = current_export()
        if export is None:
            raise TypeError(
                f"a {type(self).__name__} cannot be pickled or copied: pass it as an argument of a job, or send it "
                "through a channel of trio-offload"
            )
        grant = export.grant(id(self), self.grant)
        return attach, (self.kind, grant.id, *self.details(grant))


class InheritedHandle(Handle):
    """A handle of the program in a worker that is its fork. It forwards to a job's stand-in."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        return getattr(stand_in(self), name)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        from trio_offload_worker._requests.handles import pickled

        return pickled(stand_in(self), sys._getframe(1))

    def __repr__(self) -> str:
        return repr(stand_in(self))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return stand_in(self)(*args, **kwargs)

    def __enter__(self) -> Any:
        return stand_in(self).__enter__()

    def __exit__(self, *error: object) -> Any:
        return stand_in(self).__exit__(*error)

    def __iter__(self) -> Any:
        return iter(stand_in(self))

    def __next__(self) -> Any:
        return next(stand_in(self))


def stand_in(handle: Handle) -> Any:
    """Return the job's object for a copy."""
    attributes: dict[str, Any] = object.__getattribute__(handle, "__dict__")
    found = attributes.get(_STAND_IN)
    if found is None:
        from trio_offload_worker._requests.handles import attach

        kind, number, details = attributes[_COPY]
        if not number:
            raise RuntimeError(
                "this object of the program was made at the moment of the fork, so its copy here has no effect. Pass it to the "
                "job as an argument"
            )
        found = attributes[_STAND_IN] = attach(
            kind, number, *(stand_in(detail) if isinstance(detail, Handle) else detail for detail in details)
        )
    return found


def number_all() -> None:
    """Give each handle a number, by which its copy names it. Call this before a fork."""
    _let_pickles_find_handles()
    for handle in list(_handles):
        handle._number = handle._number or new_number()


@contextmanager
def shown_in_copy(*functions: Any) -> Iterator[list[Grant]]:
    """Let a worker that is forked in the block see the events in the arguments of these functions.

    The functions are its ``init`` and ``retire``, which cannot ask.

    Returns:
        Grants of the events, for the worker.
    """
    events = {id(event): event for function in functions for event in _events_of(function)}.values()
    grants = []
    try:
        for event in events:
            with suppress(RuntimeError):  # it belongs to another run
                grants.append(event.grant())
                event.details(grants[-1])
                event._is_shown_in_copy = True
        yield grants
    finally:
        for event in events:
            event._is_shown_in_copy = False


def _events_of(function: Any) -> Iterator[Any]:
    while isinstance(function, functools.partial):
        for argument in (*function.args, *function.keywords.values()):
            if isinstance(argument, Handle) and argument.kind == "event":
                yield argument
        function = function.func


def speak_in_copy() -> None:
    """Let all handles forward to a job's stand-ins, in a worker that has just been forked."""
    for handle in list(_handles):
        handle.close_in_copy()
        vars(handle)[_COPY] = handle.kind, handle._number, handle.details(None)
    for handle in list(_handles):
        handle.__class__ = InheritedHandle
    # A job may have a run of Trio, with handles of its own.
    _handles.clear()


def grant_of_copy(number: int) -> Grant | None:
    """Return a grant for one call of the handle whose copy in a fork has this number."""
    try:
        handle = _numbered(number)
        grant: Any = None if handle is None else handle.grant_of_copy()
    except (RuntimeError, trio.ClosedResourceError):  # it belongs to another run, or was moved
        return None
    if grant is not None:
        grant.id = number
    found: Grant | None = grant
    return found


_handles: Final[weakref.WeakSet[Handle]] = weakref.WeakSet()
_no_handles: Final[weakref.WeakValueDictionary[int, Any]] = weakref.WeakValueDictionary()
# Names of attributes of copies.
_COPY: Final = "_copy"
_STAND_IN: Final = "_stand_in"


class Acquirable(Handle):
    """A handle that is held in an ``async with`` block."""

    _internal = Handle._internal | {"__enter__", "__exit__"}

    async def acquire(self) -> None:
        """Acquire it. The block begins then."""
        raise NotImplementedError

    def release(self) -> None:
        """Release it, at the end of the block."""
        raise NotImplementedError

    if not TYPE_CHECKING:  # type checkers refuse such a block

        def __enter__(self):
            raise TypeError(
                f"a {type(self).__name__} needs `async with` in a task. Pass it to a job as an argument, where `with` works; in "
                "a thread, `with` works with its `handle`"
            )

        def __exit__(self, *error):
            raise NotImplementedError

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> None:
        await self.acquire()

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class PlainGrant:
    """A grant with the handle's own number, which counts as long as the call runs.

    A subclass answers requests and posts. :meth:`settle` is called once.
    """

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.id = handle.bind()
        self._is_ended = False

    def begin(self, conversation: Conversation) -> None:
        """See :class:`~.._pickling.payload.Grant`."""

    def for_call(self) -> Grant:
        """See :class:`~.._pickling.payload.Grant`."""
        return self.handle.grant()

    def request(self, request: Request) -> None:
        """See :class:`~.._pickling.payload.Grant`."""
        request.fail(ValueError(f"a {type(self.handle).__name__} has no {request.op}; this is an error in trio-offload"))

    def post(self, post: Post) -> None:
        """See :class:`~.._pickling.payload.Grant`."""

    def settle(self, death: Death | None) -> None:
        """Settle what the call holds."""

    def end(self, death: Death | None) -> None:
        """See :class:`~.._pickling.payload.Grant`."""
        if not self._is_ended:
            self._is_ended = True
            self.settle(death)
