"""What workers do in the tests of timeouts. Each takes a lifeline when it is about to wait for ever."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import NoReturn

import jobs

from trio_offload_worker._system.linux import STACKS


def wait(line: str) -> NoReturn:
    jobs.hold_for_ever(line)


def stop(line: str) -> NoReturn:
    jobs.take_line(line)
    while True:
        os.kill(os.getpid(), signal.SIGSTOP)


def block_the_signal(line: str) -> NoReturn:
    signal.pthread_sigmask(signal.SIG_BLOCK, {STACKS})
    jobs.hold_for_ever(line)


def ignore_the_signal(line: str) -> NoReturn:
    signal.signal(STACKS, signal.SIG_IGN)
    jobs.hold_for_ever(line)


def let_the_signal_kill(line: str) -> NoReturn:
    signal.signal(STACKS, signal.SIG_DFL)
    jobs.start_family(line)


def replace_the_handler(line: str) -> NoReturn:
    signal.signal(STACKS, lambda *_: None)
    jobs.hold_for_ever(line)


def close_the_record(line: str) -> NoReturn:
    """Its number then belongs to a file of the job's, which must not get the stacks."""
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            if "trio-offload-record" in os.readlink(f"/proc/self/fd/{number}"):
                os.close(int(number))
    jobs.take_line(line)
    jobs.hold_for_ever(line)


def end_itself(line: str) -> NoReturn:
    """What it does when it is asked for its stacks: it dies of another signal."""
    signal.signal(STACKS, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    jobs.hold_for_ever(line)
