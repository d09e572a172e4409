"""Classes of actors, and jobs that call them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from typing import Any

from trio_offload_worker import from_worker

remembered: Any = None


class Counter:
    """Counts, and tells a callback what it does."""

    def __init__(self, start: int = 0, *, step: int = 1) -> None:
        self.value = start
        self.step = step
        self.lock: Any = None

    def add(self, number: int = 1, *, times: int = 1) -> int:
        self.value += number * times * self.step
        return self.value

    def pid(self) -> int:
        return os.getpid()

    def fail(self, message: str) -> None:
        raise ValueError(message)

    def itself(self) -> Counter:
        return self

    def say(self, function: Any, *args: Any) -> Any:
        return function(*args)

    def say_then_add(self, function: Any, number: int) -> int:
        function()
        return self.add(number)

    def wait(self, event: Any) -> str:
        """Wait for an event, or for the end of the call."""
        try:
            event.wait()
        except BaseException:
            self.value = -1
            raise
        return "waited"

    def wait_deaf(self, entered: Any) -> None:
        """Never hear a cancellation."""
        entered()
        threading.Event().wait()

    def end_by(self, cause: str) -> None:
        """End the process."""
        if cause == "_exit":
            os._exit(3)
        os.kill(os.getpid(), getattr(signal, cause))
        threading.Event().wait()

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def unpicklable(self) -> Any:
        return threading.Lock()

    def give_back(self, thing: Any) -> Any:
        return thing

    def call(self, other: Any, *args: Any) -> Any:
        """Call another actor's method."""
        name, *rest = args
        return getattr(other, name)(*rest)

    def count_to(self, number: int) -> Generator[int, None, str]:
        while self.value < number:
            yield self.add()
        return "counted"

    async def later(self) -> None: ...

    def _private(self) -> None: ...


class Keeper:
    """Uses what it was made with."""

    def __init__(self, lock: Any, send: Any, report: Any) -> None:
        self.lock = lock
        self.send = send
        self.report = report
        report("made")

    def guarded(self, value: Any) -> None:
        with self.lock:
            self.send.send(value)
            self.report(value)

    def keep_the_lock(self) -> None:
        self.lock.acquire()

    def die_with_the_lock(self) -> None:
        self.lock.acquire()
        os.kill(os.getpid(), signal.SIGKILL)


class Table:
    """An object of the program."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}

    def put(self, key: str, value: int) -> Table:
        self.rows[key] = value
        return self

    def __len__(self) -> int:
        return len(self.rows)

    def keys(self) -> Any:
        return self.rows.keys()

    async def wait(self, event: Any) -> str:
        await event.wait()
        return "waited"

    def fail(self) -> None:
        raise ValueError("no row")


class Broken:
    def __init__(self) -> None:
        raise LookupError("no weights")


def call(actor: Any, name: str, *args: Any) -> Any:
    return getattr(actor, name)(*args)


def remember(thing: Any) -> None:
    """An init."""
    global remembered
    remembered = thing


def call_remembered(name: str, *args: Any) -> Any:
    return getattr(remembered, name)(*args)


def call_with_keywords(actor: Any) -> int:
    result: int = actor.add(2, times=3)
    return result


def call_and_stay(entered: Any, actor: Any, name: str, *args: Any) -> None:
    """Have a result, and wait to be killed."""
    getattr(actor, name)(*args)
    entered()
    threading.Event().wait()


def add_often(actor: Any, times: int) -> list[int]:
    return [actor.add() for _ in range(times)]


def catch(actor: Any, name: str, *args: Any) -> tuple[str, str]:
    """Return the name and the text of the error of a call."""
    try:
        getattr(actor, name)(*args)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def say_and_call(entered: Any, actor: Any, name: str, *args: Any) -> Any:
    entered()
    return getattr(actor, name)(*args)


def call_until_cancelled(entered: Any, actor: Any, name: str, *args: Any) -> str:
    entered()
    try:
        getattr(actor, name)(*args)
    except from_worker.Cancelled:
        with from_worker.shielded():
            entered()
        raise
    return "not cancelled"


def compute(actor: Any, expression: str) -> Any:
    """Evaluate an expression in which `it` is the object."""
    return eval(expression, {"it": actor})


def execute(actor: Any, statement: str) -> Any:
    """Execute a statement in which `it` is the object, and return `it`."""
    variables = {"it": actor}
    exec(statement, variables)
    return variables["it"] is actor
