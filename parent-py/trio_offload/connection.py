"""Connections that speak the wire of ``multiprocessing.connection``, from Trio.

The other side is a plain Python process, or this module again. See ``docs/connections.md``.
"""

from ._connection.connection import Connection
from ._connection.handshake import authenticate
from ._connection.listener import Listener, listen, serve
from ._connection.opening import adopt, open_client, pipe

__all__ = ["Connection", "Listener", "adopt", "authenticate", "listen", "open_client", "pipe", "serve"]

for _name in __all__:
    globals()[_name].__module__ = __name__
del _name
