"""Ends of connections that are arguments of jobs."""

from __future__ import annotations

import copyreg
from math import inf
from multiprocessing.connection import Connection

from .descriptors import DescriptorHandle
from .shields import add_shield, drop_shield

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def connection(kind: str, id: int, readable: bool, writable: bool) -> Connection:
    """Return an end of a connection. It belongs to the job, which may keep it.

    Raises:
        BaseException: as :meth:`DescriptorHandle.fetch`.
    """
    # Else an ordinary pickler would give the number of the descriptor to another process.
    copyreg.pickle(Connection, _refuse)
    # A call that is cancelled now is told so by its code, in which it can react.
    add_shield(inf)
    try:
        received = DescriptorHandle(kind, id).fetch()
    finally:
        drop_shield(inf)
    return Connection(received.take(), readable, writable)


def _refuse(_: Any) -> Any:
    raise TypeError("a Connection can be pickled only by multiprocessing, for a process that it starts")
