"""Jobs with an end of a connection."""

from __future__ import annotations

import os
import pickle
import signal
from typing import Any


def echo(theirs: Any) -> str:
    """Send each message back until the end. Return the name of the class."""
    try:
        while True:
            theirs.send(theirs.recv())
    except EOFError:
        pass
    return f"{type(theirs).__module__}.{type(theirs).__name__}"


def facts(theirs: Any) -> dict[str, Any]:
    with theirs:
        return {
            "blocking": os.get_blocking(theirs.fileno()),
            "inheritable": os.get_inheritable(theirs.fileno()),
            "readable": theirs.readable,
            "writable": theirs.writable,
        }


def send_large(theirs: Any, size: int) -> None:
    theirs.send_bytes(bytes(size))


def count(theirs: Any) -> int:
    return len(theirs.recv_bytes())


def close_and_wait(theirs: Any, channel: Any) -> None:
    theirs.close()
    channel.receive()


def die(theirs: Any) -> None:
    theirs.send("last words")
    os.kill(os.getpid(), signal.SIGKILL)


def descriptors(_: Any = None) -> int:
    return len(os.listdir("/proc/self/fd"))


def try_to_pickle(theirs: Any) -> str:
    try:
        pickle.dumps(theirs)
    except TypeError as error:
        return str(error)
    return "pickled"


def give_back(theirs: Any) -> Any:
    return theirs


def echo_from(channel: Any) -> list[Any]:
    """Serve ends that come through a channel."""
    return [echo(theirs) for theirs in channel]


def echo_of_kept(number: int) -> int:
    """With an end that `keep` got."""
    kept.send(number)
    return number


kept: Any = None


def keep(theirs: Any) -> None:
    global kept
    kept = theirs


def echo_captured(theirs: Any) -> Any:
    """Return a function with an end in its closure."""

    def work() -> str:
        theirs.send("from the copy")
        return str(theirs.recv())

    return work


def double(item: tuple[int, Any]) -> int:
    number, theirs = item
    theirs.send(2 * number)
    return number
