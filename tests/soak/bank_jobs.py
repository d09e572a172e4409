"""The jobs of the bank."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trio_offload_worker import from_worker


def move(seed: float, locks: list[Any], bank: dict[str, Any]) -> None:
    """Make some transfers, each in two steps."""
    rng = random.Random(f"{seed} {time.monotonic()}")
    for _ in range(5):
        first, second = sorted(rng.sample(range(len(locks)), 2))
        amount = rng.randrange(10)
        with held(first, locks, bank), held(second, locks, bank):
            bank["balance"](first)
            bank["change_first"](first, second, os.getpid(), amount)
            time.sleep(0.001)
            bank["change_second"](first, second, os.getpid(), amount)


@contextmanager
def held(account: int, locks: list[Any], bank: dict[str, Any]) -> Iterator[None]:
    while True:
        try:
            locks[account].acquire()
            break
        except from_worker.AbandonedLockError:
            bank["undo"](account)
            locks[account].recover()
    try:
        yield
    finally:
        locks[account].release()


def borrow(tokens: Any) -> None:
    for _ in range(3):
        with tokens:
            time.sleep(0.001)


def pass_on(receive: Any, send: Any, stop: Any) -> list[int]:
    """Pass items on until the event is set. Return an item that has no place any more."""
    while not stop.is_set():
        try:
            item = receive.receive(timeout=0.01)
        except TimeoutError:
            continue
        while True:
            try:
                send.send(item, timeout=0.05)
                break
            except TimeoutError:
                if stop.is_set():
                    return [item]
    return []


def work(queue: Any) -> None:
    for lease in queue:
        with lease:
            time.sleep(0.001)
