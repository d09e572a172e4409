"""Jobs of the runs whose reports are tested."""

from __future__ import annotations

import time


def die_of(number: int) -> int:
    """Return the number, but die of 9."""
    if number == 9:
        import jobs  # not on the path of every worker

        jobs.segfault()
    return number


def parse(text: str) -> int:
    """Return the number in a text."""
    return int(text)


def nap(text: str) -> None:
    """Sleep for some seconds."""
    time.sleep(float(text))
