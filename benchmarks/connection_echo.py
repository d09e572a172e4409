"""The other end of a connection: a plain Python process, which sends each message back until the end."""

import sys
from multiprocessing.connection import Client

with Client(sys.argv[1], authkey=bytes.fromhex(sys.argv[2])) as connection:
    try:
        while True:
            connection.send_bytes(connection.recv_bytes())
    except EOFError:
        pass
