"""Connections as arguments of jobs: each job gets one of ``multiprocessing`` with a duplicate."""

from __future__ import annotations

import contextlib
import os
import weakref
from multiprocessing.connection import Connection as MultiprocessingConnection
from typing import TYPE_CHECKING, Any

import trio

from .._sync.handles import Handle, PlainGrant, new_number, register
from .._sync.pickled_items import note_end
from .._transport.sockets import Descriptors
from .endpoints import Endpoint, endpoint_of

if TYPE_CHECKING:
    from .._pickling.payload import Grant
    from .._worker.requests import Death, Request


class Passable(Handle):
    """The base of :class:`Connection`: a handle for jobs."""

    _internal = Handle._internal | {"with_duplicate"}

    kind = "connection"

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._grants: weakref.WeakSet[ConnectionGrant] = weakref.WeakSet()

    @property
    def handle(self) -> MultiprocessingConnection[Any, Any]:
        """A duplicate of this end as a job has it, for type checkers and for jobs in threads.

        It is closed when its last reference is dropped. This end stays open, as without
        :meth:`move`.
        """
        self._check_passable()
        with contextlib.closing(self._endpoint.duplicate()) as duplicate:
            return _DuplicateInThread(self, os.dup(duplicate.fileno()))

    def move(self) -> MovedConnection:
        """Return an argument for a job that hands this end over: it closes here.

        ::

            await run_sync(work, theirs.move())

        It closes when the call is pickled. So the other end notices when the job closes it, or has
        ended.
        """
        return MovedConnection(self)

    def grant(self) -> Grant:
        """As :meth:`Handle.grant`: a duplicate for one call.

        Raises:
            trio.ClosedResourceError: This end is closed.
            RuntimeError: A part of a message has been sent or received.
        """
        self._check_passable()
        with contextlib.closing(self._endpoint.duplicate()) as duplicate:
            grant = ConnectionGrant(self, Descriptors([duplicate.fileno()]))
        self._grants.add(grant)
        return grant

    def close_in_copy(self) -> None:
        """As :meth:`Handle.close_in_copy`. A fork that kept it would hide the end of the stream."""
        self._endpoint.close()
        for grant in self._grants:
            grant.end(None)

    def details(self, grant: Grant | None) -> tuple[Any, ...]:
        """As :meth:`Handle.details`: the directions."""
        return self._endpoint.is_readable, self._endpoint.is_writable

    def close(self) -> None:
        """Close this end."""
        raise NotImplementedError

    def with_duplicate(self, descriptor: int) -> Passable:
        """Return a further object for this end, with a descriptor of it."""
        return type(self)(endpoint_of(descriptor, self._endpoint.is_readable, self._endpoint.is_writable))

    def _check_passable(self) -> None:
        raise NotImplementedError


class _DuplicateInThread(MultiprocessingConnection):
    """A duplicate for a thread. In a worker it becomes a duplicate there."""

    def __init__(self, connection: Passable, descriptor: int) -> None:
        super().__init__(descriptor, *connection.details(None))
        self._connection = connection

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return self._connection.__reduce_ex__(protocol)


class MovedConnection(Handle):
    """An end that closes when it is passed to a job, made by :meth:`Passable.move`."""

    kind = "connection"

    def __init__(self, connection: Passable) -> None:
        super().__init__()
        self._connection = connection

    def grant(self) -> Grant:
        """As :meth:`Handle.grant`: the end itself for one call."""
        grant = self._connection.grant()
        self._connection.close()
        return grant

    def details(self, grant: Grant | None) -> tuple[Any, ...]:
        """As :meth:`Handle.details`: the directions."""
        return self._connection.details(grant)


class ConnectionGrant(PlainGrant):
    """The right of one call to fetch a duplicate, which is closed here afterwards."""

    handle: Passable

    def __init__(self, handle: Passable, descriptors: Descriptors) -> None:
        self.handle = handle
        # Calls at the same time have different duplicates.
        self.id = new_number()
        self._is_ended = False
        self._descriptors: Descriptors | None = descriptors
        register(self.id, self)

    def resolved(self) -> Passable:
        """Return a connection of this program, for an item of a channel that has this grant."""
        if self._descriptors is None or not self._descriptors.numbers:
            raise trio.ClosedResourceError("this connection has been closed since it was sent")
        connection = self.handle.with_duplicate(os.dup(self._descriptors.numbers[0]))
        note_end(connection)
        return connection

    def for_call(self) -> Grant:
        """See :class:`~.._pickling.payload.Grant`."""
        if self._descriptors is None:
            raise trio.ClosedResourceError("the worker has fetched this connection")
        grant = ConnectionGrant(self.handle, Descriptors(self._descriptors.numbers))
        self.handle._grants.add(grant)
        return grant

    def request(self, request: Request) -> None:
        """See :class:`~.._pickling.payload.Grant`."""
        if request.op != "descriptor":
            super().request(request)
        elif self._descriptors is None:
            request.fail(trio.ClosedResourceError("the job has fetched this connection before"))
        else:
            # From now on the job has the only one, so its `close` is noticed.
            descriptors, self._descriptors = self._descriptors, None
            request.complete_descriptors(descriptors)

    def settle(self, death: Death | None) -> None:
        """Close the duplicate, if the job has not fetched it."""
        if self._descriptors is not None:
            self._descriptors.close()
