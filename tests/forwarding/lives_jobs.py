"""An actor's class, and the function of a process, that log and print."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator

logger = logging.getLogger("library.part")


class Talkative:
    """Logs in each method."""

    def __init__(self) -> None:
        logger.info("made")

    def say(self, text: str) -> None:
        logger.info(text)
        logger.debug("not wanted")

    def steps(self, number: int) -> Iterator[int]:
        for step in range(number):
            logger.info("step %d", step)
            yield step

    def write(self) -> None:
        os.system("echo printed")

    def die(self) -> None:
        logger.info("last words")
        os.write(1, b"last text")
        os.kill(os.getpid(), signal.SIGKILL)


def say_for(actor: Talkative, text: str) -> None:
    """In a job."""
    actor.say(text)


def say_and_die() -> None:
    """In a process of its own."""
    logger.info("not wanted")
    logger.warning("begun")
    print("printed")
    Talkative.die(None)  # type: ignore[arg-type]
