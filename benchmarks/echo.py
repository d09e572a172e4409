"""The other end of the bare echo: reads what comes and writes it back, until the end."""

import socket
import sys

connection = socket.socket(fileno=int(sys.argv[1]))
while received := connection.recv(65536):
    connection.sendall(received)
