"""A plain Python process with one end of a connection, for any version: nothing of ours is imported.

`connection_peer.py client|listener ADDRESS KEY`: the address and the key as Python literals. A listener prints its address.
At the end each prints how it went. Then it does as the messages say:
"bytes": sends the next message back; "count": its size; "large N": a message of N zeros; anything else is sent back.
"""

import ast
import mmap
import sys
from multiprocessing.connection import Client, Listener


def obey(connection):
    while True:
        message = connection.recv()
        if message == "bytes":
            connection.send_bytes(connection.recv_bytes())
        elif message == "count":
            connection.send(len(connection.recv_bytes()))
        elif isinstance(message, str) and message.startswith("large "):
            # Pages that are only read take no memory.
            connection.send_bytes(mmap.mmap(-1, int(message[6:])))
        elif message == "bye":
            return
        else:
            connection.send(message)


def main():
    role, address, key = sys.argv[1], ast.literal_eval(sys.argv[2]), ast.literal_eval(sys.argv[3])
    try:
        if role == "client":
            connection = Client(address, authkey=key)
        else:
            listener = Listener(address, authkey=key)
            print(repr(listener.address), flush=True)
            connection = listener.accept()
        obey(connection)
    except Exception as error:
        print(type(error).__name__, flush=True)
    else:
        print("bye", flush=True)


main()
