"""Jobs of the runs whose reports are tested."""

from __future__ import annotations

import jobs


def die_of(number: int) -> int:
    """Return the number, but die of 9."""
    if number == 9:
        jobs.segfault()
    return number


def parse(text: str) -> int:
    """Return the number in a text."""
    return int(text)
