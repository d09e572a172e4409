"""Jobs that fail, in every way, and exceptions that travel badly. Importable in workers, and light, as ``jobs`` is."""

from __future__ import annotations

import builtins
import dataclasses
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from jobs import abort, end_by, exit_quietly, kill_self, raise_it, segfault

# --- failures -------------------------------------------------------------------------------------


class Boom(Exception):
    """Raised on purpose."""


class BaseBoom(BaseException):
    """Raised on purpose, past every ``except Exception``."""


def fail(how: str) -> Any:
    """Fail in one of many ways."""
    failures: dict[str, Callable[[], Any]] = {
        "Exception": lambda: raise_it(Boom("on purpose")),
        "BaseException": lambda: raise_it(BaseBoom("on purpose")),
        "SystemExit": lambda: raise_it(SystemExit("on purpose")),
        "sys.exit": lambda: sys.exit(3),
        "KeyboardInterrupt": lambda: raise_it(KeyboardInterrupt("on purpose")),
        "GeneratorExit": lambda: raise_it(GeneratorExit("on purpose")),
        "MemoryError": lambda: bytes(sys.maxsize - 100),
        "RecursionError": recurse,
        "os._exit": exit_quietly,
        "os.abort": abort,
        "segfault": segfault,
        "SIGKILL": kill_self,
        "SIGTERM": lambda: end_by(signal.SIGTERM),
    }
    return failures[how]()


def recurse() -> Any:
    return recurse()


class Undecided:
    """Neither true nor false."""

    def __bool__(self) -> bool:
        raise ValueError("undecided")


class FailsToUnpickle:
    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> Any:
        return fail, (self.how,)


class FailsToPickle:
    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> Any:
        return fail(self.how)


class ErrorThatFailsToUnpickle(Exception):
    def __reduce__(self) -> Any:
        return fail, self.args


class ErrorThatFailsToPickle(Exception):
    def __reduce__(self) -> Any:
        return fail(*self.args)


def return_what_fails_to_pickle(how: str) -> FailsToPickle:
    return FailsToPickle(how)


def return_what_fails_to_unpickle(how: str) -> FailsToUnpickle:
    return FailsToUnpickle(how)


def raise_what_fails_to_pickle(how: str) -> NoReturn:
    raise ErrorThatFailsToPickle(how)


def raise_what_fails_to_unpickle(how: str) -> NoReturn:
    raise ErrorThatFailsToUnpickle(how)


def return_depth() -> list[Any]:
    """A list in a list in a list: more than any pickler follows."""
    result: list[Any] = []
    for _ in range(100_000):
        result = [result]
    return result


def return_lock() -> Any:
    import threading

    return threading.Lock()


def return_generator() -> Any:
    return (number for number in range(3))


async def coroutine_function() -> None:
    """Not for a worker."""


async def async_generator_function() -> Any:
    yield


def generator_function() -> Any:
    yield


# --- exceptions that travel badly ----------------------------------------------------------------


class NeedsMore(Exception):
    def __init__(self, first: int, second: str) -> None:
        super().__init__(f"{first} {second}")
        self.first = first
        self.second = second


class NeedsKeywords(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(code)
        self.code = code


class TakesNothing(Exception):
    def __init__(self) -> None:
        super().__init__("always the same")


class HasSlots(Exception):
    __slots__ = ("inner",)

    def __init__(self, inner: int) -> None:
        super().__init__(inner)
        self.inner = inner


class NeedsAnArgumentToBeMade(Exception):
    def __new__(cls, value: int) -> NeedsAnArgumentToBeMade:  # noqa: PYI034
        return super().__new__(cls, value)

    def __init__(self, value: int) -> None:
        super().__init__()
        self.value = value


class ReducesItself(Exception):
    def __init__(self, value: int, doubled: int = 0) -> None:
        super().__init__(value)
        self.value = value
        self.doubled = doubled

    def __reduce__(self) -> Any:
        return ReducesItself, (self.value, 2 * self.value)


class KeepsALock(Exception):
    def __init__(self) -> None:
        import threading

        super().__init__("it has a lock")
        self.lock = threading.Lock()


class CannotBeShown(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int
    text: str


class AwkwardOSError(OSError):
    def __init__(self, device: str) -> None:
        super().__init__(5, "no answer", device)
        self.device = device


def raise_made(name: str, *args: Any, **keywords: Any) -> NoReturn:
    """Raise an exception that is made here, so that only what the worker pickles travels."""
    cls = globals().get(name) or getattr(builtins, name)
    raise cls(*args, **keywords)


def raise_frozen_while_unpickling() -> NoReturn:
    raise Frozen(7, "early")


class RaisesFrozenWhenUnpickled:
    def __reduce__(self) -> Any:
        return raise_frozen_while_unpickling, ()


def raise_chain() -> None:
    try:
        try:
            raise_it(KeyError("the first"))
        except KeyError:
            raise NeedsMore(1, "the second")  # noqa: B904
    except NeedsMore as error:
        raise Frozen(3, "the third") from error


def raise_from_none() -> None:
    try:
        raise_it(KeyError("hidden"))
    except KeyError:
        raise Boom("alone") from None


def raise_with_unpicklable_cause() -> None:
    raise Boom("its cause stays behind") from KeepsALock()


def raise_cycle() -> None:
    first, second = Boom("first"), Boom("second")
    first.__cause__, second.__cause__ = second, first
    raise first


def raise_with_notes() -> None:
    error = Boom("with notes")
    error.add_note("one")  # type: ignore[attr-defined,unused-ignore]
    error.add_note("two")  # type: ignore[attr-defined,unused-ignore]
    raise error


def raise_group() -> None:
    def caught(function: Any, *args: Any) -> BaseException:
        try:
            function(*args)
        except BaseException as error:
            return error
        raise AssertionError

    inner = ExceptionGroup("inner", [caught(raise_chain), ValueError("plain")])  # type: ignore[name-defined,unused-ignore]  # noqa: F821
    raise BaseExceptionGroup("outer", [inner, caught(raise_it, KeyboardInterrupt())])  # type: ignore[name-defined,unused-ignore]  # noqa: F821


def raise_local_class() -> None:
    class Local(Exception):
        pass

    raise Local("of a function")


def raise_after(depth: int) -> None:
    if depth:
        raise_after(depth - 1)
    raise Boom("deep")
