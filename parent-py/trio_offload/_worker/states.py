"""The states of a worker, seen from the parent."""

from __future__ import annotations

import enum
from typing import Final


class CallNotRun(Exception):
    """The worker had left before it began with the call: another worker can run it."""


class State(enum.Enum):
    """Where the conversation is; see the table in PROTOCOL.md."""

    STARTING = enum.auto()
    SETTING_UP = enum.auto()
    IDLE = enum.auto()
    RUNNING = enum.auto()
    RETIRING = enum.auto()
    ENDED = enum.auto()


# Module-level names, because enumerations of Python 3.11 and older look up a member slowly. A call
# looks up six.
STARTING: Final = State.STARTING
SETTING_UP: Final = State.SETTING_UP
IDLE: Final = State.IDLE
RUNNING: Final = State.RUNNING
RETIRING: Final = State.RETIRING
ENDED: Final = State.ENDED
