"""A job that does random operations, and notes the call and the return of each."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

TIMEOUT = 0.005  # seconds
Note = Callable[..., Any]


def act(kind: str, handle: Any, seed: str, number: int, note: Note) -> None:
    rng = random.Random(seed)
    if kind == "channel":
        use_channel(rng, *handle, seed, number, note)
    else:
        use_holder(rng, handle, number, note)


def use_holder(rng: random.Random, handle: Any, number: int, note: Note) -> None:
    """Acquire and release a lock or a semaphore."""
    is_held = False
    for _ in range(number):
        if is_held:
            operate(note, handle, "release")
            is_held = False
            continue
        name = rng.choice(("acquire", "acquire_nowait"))
        outcome = operate(note, handle, name, *([TIMEOUT] if name == "acquire" else []))
        is_held = outcome is None
        if outcome == "AbandonedLockError" and rng.random() < 0.7:
            operate(note, handle, "recover")
        elif is_held and rng.random() < 0.5:
            time.sleep(rng.random() * 0.004)
    if is_held:
        operate(note, handle, "release")


def use_channel(rng: random.Random, send: Any, receive: Any, seed: str, number: int, note: Note) -> None:
    for index in range(number):
        name = rng.choice(("send", "send_nowait", "receive", "receive_nowait"))
        if name.startswith("send"):
            options = {"timeout": TIMEOUT} if name == "send" else {}
            operate(note, send, name, f"{seed} {index}", **options)
        else:
            options = {"timeout": TIMEOUT} if name == "receive" else {}
            operate(note, receive, name, **options)


def operate(note: Note, handle: Any, name: str, *args: Any, **options: Any) -> Any:
    """Do one operation. Return its value, or the name of its error."""
    note("call", name, args[0] if args else None, time.monotonic())
    try:
        outcome = getattr(handle, name)(*args, **options)
    except Exception as error:
        outcome = type(error).__name__
    note("return", outcome, time.monotonic())
    return outcome
