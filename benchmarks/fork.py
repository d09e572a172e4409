"""The yardstick of a fork: a process with nothing but Python in it forks, and the child sends one byte back.

For each byte from standard input it writes the seconds until that byte had come, as a C double.
"""

import os
import struct
import sys
import time


def fork_once() -> float:
    """Fork this process; the seconds until the child's byte had come."""
    reading, writing = os.pipe()
    began = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        os.write(writing, b".")
        os._exit(0)
    os.read(reading, 1)
    duration = time.perf_counter() - began
    os.close(reading)
    os.close(writing)
    os.waitpid(pid, 0)
    return duration


if __name__ == "__main__":
    while os.read(0, 1):
        sys.stdout.buffer.write(struct.pack("d", fork_once()))
        sys.stdout.buffer.flush()
