"""The jobs of run_picture.py. A module of their own, so that workers do not import matplotlib."""

import ctypes
import time

CRASHES, GREEDY = 5, 14
"""Two of the files."""
LEAK, GREED = 5 << 20, 12 << 20

everything_ever_parsed: list[bytearray] = []


def parse(number: int) -> None:
    everything_ever_parsed.append(bytearray(b"leak") * LEAK)
    time.sleep(0.08 + 0.02 * (number * 7 % 5))
    if number == CRASHES:
        ctypes.string_at(0)
    while number == GREEDY:
        everything_ever_parsed.append(bytearray(b"more") * GREED)
        time.sleep(0.03)
