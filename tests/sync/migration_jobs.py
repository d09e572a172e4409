"""The job's side of docs/migration.md."""

from __future__ import annotations

import os
from typing import Any

from trio_offload_worker import from_worker


def call(thing: Any, *steps: tuple[Any, ...], **options: Any) -> list[Any]:
    """Call methods, and read attributes, of an object one after the other. An exception is told by its name.

    A step is a name and its arguments. An attribute is a name alone, with a dot before it.
    """
    return [_step(thing, *step) for step in steps]


def _step(thing: Any, name: str, *args: Any) -> Any:
    options = args[-1] if args and isinstance(args[-1], dict) else {}
    if options:
        args = args[:-1]
    try:
        if name.startswith("."):
            return getattr(thing, name[1:])
        result = getattr(thing, name)(*args, **options)
    except Exception as error:
        return type(error).__name__
    return result if isinstance(result, (int, str, list, type(None))) else type(result).__name__


def within(thing: Any, *steps: tuple[Any, ...]) -> list[Any]:
    with thing:
        return call(thing, *steps)


def used(channel: Any) -> tuple[int, float]:
    """What ``qsize``, ``empty`` and ``full`` need."""
    statistics = channel.statistics()
    return statistics.current_buffer_used, statistics.max_buffer_size


def iterate(receive: Any) -> list[Any]:
    return list(receive)


def finish(queue: Any) -> list[Any]:
    """Finish all items: one by a method, the others at the end of a block."""
    lease = queue.get()
    items = [lease.item]
    lease.done()
    for other in queue:
        with other:
            items.append(other.item)
    queue.join()
    return items


def answer(receive: Any, send: Any) -> None:
    """The other side of a pipe in both directions."""
    for number in receive:
        send.send(number * number)


def wait_for_flag(condition: Any, event: Any) -> bool:
    with condition:
        return bool(condition.wait_for(event.is_set, timeout=20))


def wait_in(condition: Any) -> str:
    with condition:
        condition.wait()
    return "notified"


def notify(condition: Any, *number: int) -> None:
    with condition:
        condition.notify(*number)


def notify_all(condition: Any) -> None:
    with condition:
        condition.notify_all()


def meet(barrier: Any, send: Any) -> int:
    """Wait; the first that arrives does what ``action`` is for."""
    index: int = barrier.wait()
    if index == 0:
        send.send("the action")
    return index


state: list[int] = []


def initialize(number: int) -> None:
    state[:] = [number]


def pid_and_state(*args: int, **kwargs: int) -> tuple[int, list[int], tuple[int, ...], dict[str, int]]:
    return os.getpid(), state, args, kwargs


def add(first: int, second: int) -> int:
    return first + second


def exit_with(status: int) -> None:
    os._exit(status)


def put(queue: Any, item: Any) -> None:
    queue.send(item)


def double() -> None:
    channel = from_worker.channel()
    channel.send(2 * channel.receive())
