"""What to do instead, for mistakes of a caller. Imported when one is made."""

from __future__ import annotations

import builtins
import inspect
import reprlib
import sys
import types
from collections.abc import Mapping
from typing import Any, Final

# Objects of Trio that tasks share, and the objects of ours that tasks and jobs share.
_SHARED: Final = {
    "CapacityLimiter": "trio_offload.CapacityLimiter",
    "Condition": "trio_offload.Condition",
    "Event": "trio_offload.Event",
    "Lock": "trio_offload.Lock",
    "CancelScope": "the grace, kill_on_cancel or timeout of run_sync",
    "MemoryReceiveChannel": "trio_offload.open_channel",
    "MemorySendChannel": "trio_offload.open_channel",
    "Semaphore": "trio_offload.Semaphore",
    "StrictFIFOLock": "trio_offload.Lock",
}
_AWAITABLE: Final = (types.CoroutineType, types.AsyncGeneratorType)


def outside_of_trio() -> RuntimeError:
    """Return the error of a call that Trio does not run."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or asyncio._get_running_loop() is None:
        return RuntimeError("trio_offload must be called inside of trio.run(): start your program with trio.run(main)")
    if hasattr(builtins, "get_ipython"):
        hint = "In a notebook or IPython, run `%autoawait trio` first"
    else:
        hint = "Start your program with trio.run(main), not with asyncio.run(main())"
    return RuntimeError(f"trio_offload must be called from Trio, but asyncio runs this task. {hint}")


def wrong_limiter(limiter: object) -> TypeError:
    """Return the error for a limiter of another type."""
    if isinstance(limiter, int):
        hint = f"For {limiter} calls at once: make trio.CapacityLimiter({limiter}) once, and pass it to each call"
    else:
        hint = "Most often it is a trio.CapacityLimiter"
    return TypeError(f"limiter must be an async context manager, got {limiter!r}. {hint}")


def wrong_function(function: Any, inner: Any, caller: str) -> TypeError:
    """Return the error for a job's function that is not a synchronous function.

    Args:
        function: The function.
        inner: The same, without what a partial or a method adds.
        caller: Name of the function that takes it.
    """
    advice = "Await it in your own task, or pass a synchronous function (one that calls from_worker.run_async, if it must)"
    if isinstance(function, _AWAITABLE):
        name = function.__qualname__
        if isinstance(function, types.CoroutineType):
            # Without this, Python warns that nobody has awaited it.
            function.close()
        return TypeError(
            f"a worker runs synchronous functions, but {name}() is asynchronous, and was called already. {advice}"
        )
    if not callable(function):
        return TypeError(
            f"a worker needs a function and its arguments, got {function!r} as the function. If that is the result of a "
            f"call, write {caller}(fn, argument) instead of {caller}(fn(argument))"
        )
    if inspect.isasyncgenfunction(inner):
        advice += ". In a worker, stream() iterates over its values"
    return TypeError(f"a worker runs synchronous functions, but {inner.__qualname__} is asynchronous. {advice}")


def wrong_map(function: object, items: object) -> TypeError:
    """Return the error for the arguments of a map."""
    if not callable(function):
        if callable(items):
            return TypeError(f"map takes the function first, then the items: write map({_name(items)}, items)")
        return TypeError(f"fn must be a callable, got {function!r}")
    if isinstance(items, (str, bytes)):
        text = reprlib.repr(items)
        return TypeError(
            f"items must be an iterable of items, got the single text {text}. For one item pass [{text}], for its parts list(...)"
        )
    if isinstance(items, types.CoroutineType):
        hint = ". Await it first"
    elif callable(items):
        hint = f". If it makes the items, call it: {_name(items)}()"
    else:
        hint = ""
    return TypeError(f"items must be an iterable or an async iterable, got {items!r}{hint}")


def _name(function: object) -> str:
    return str(getattr(function, "__name__", "fn"))


def unknown_keyword(function: Any, keywords: Mapping[str, object]) -> TypeError:
    """Return the error for keyword arguments that `run_sync` does not have."""
    import difflib

    name = next(iter(keywords))
    ours = difflib.get_close_matches(name, ("kill_on_cancel", "cancellable", "grace", "limiter", "progress", "timeout"), 1)
    hint = f" Did you mean {ours[0]!r}?" if ours else ""
    shown = getattr(function, "__name__", "fn")
    return TypeError(
        f"run_sync() got an unexpected keyword argument {name!r}.{hint} For keyword arguments of the function write "
        f"run_sync(functools.partial({shown}, {name}=…), …)"
    )


def shared_object_of_trio(pickled: bytes) -> str | None:
    """Return the name of Trio's class if a pickle makes an object that tasks share."""
    import pickletools

    memo: list[object] = []
    texts: list[object] = ["", ""]
    made = ""
    previous = ""
    try:
        for operation, argument, _ in pickletools.genops(pickled):
            name = operation.name
            if name == "MEMOIZE":
                memo.append(texts[-1] if previous.endswith("UNICODE") else None)
                continue
            if name.endswith("UNICODE"):
                texts.append(argument)
            elif name.endswith("BINGET") and isinstance(argument, int):
                texts.append(memo[argument])
            elif name == "STACK_GLOBAL":
                made = str(texts[-1]) if texts[-2] == "trio" else ""
            # An object is made by `cls.__new__(cls)`. The class itself is a good argument.
            elif name == "NEWOBJ" and previous == "EMPTY_TUPLE" and made in _SHARED:
                return made
            previous = name
    except (ValueError, IndexError):
        # The part of a longer pickle.
        pass
    return None


def object_of_trio(name: str) -> str:
    """Return the message for an object of Trio as an argument."""
    return (
        f"a trio.{name} is known to the tasks of this program only, and a job would get a copy. Use {_SHARED[name]} instead"
    )


def check_binding(name: str, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise TypeError with the called function's name if the arguments do not fit its signature."""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        import difflib  # it takes a millisecond

        hints = [
            difflib.get_close_matches(word, signature.parameters, 1) for word in kwargs if word not in signature.parameters
        ]
        hint = f". Did you mean {hints[0][0]!r}?" if hints and hints[0] else ""
        raise TypeError(f"{name}(): {error}{hint}") from None
