"""Connections that speak the wire of ``multiprocessing.connection``, from Trio.

What to use:

==============  =========================================================================
open_client     connect to a listener, such as a ``multiprocessing.connection.Listener``
serve           listen, and run an async function for each client
listen          listen, and accept each client in a loop
pipe            two connected ends, one of them for a job
adopt           a connection of ``multiprocessing``, a socket or a pipe that exists
authenticate    the handshake with an ``authkey`` for an adopted connection
==============  =========================================================================

A :class:`Connection` sends and receives messages. Its other end is in a plain Python process, or
was made by this module too. See ``docs/connections.md``.
"""

from trio_offload_worker import publish as _publish

from ._connection.connection import Connection
from ._connection.handshake import authenticate
from ._connection.listener import Listener, listen, serve
from ._connection.opening import adopt, open_client, pipe

__all__ = ["Connection", "Listener", "adopt", "authenticate", "listen", "open_client", "pipe", "serve"]

_publish(__name__, *(globals()[name] for name in __all__))
