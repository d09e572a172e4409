"""Guards that keep a job's output, exceptions and results from harming the worker."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_TEXT_LIMIT: Final = 2**20  # bytes


def clip(text: str) -> str:
    """Clip a text to the size that a frame may carry, and mark the cut.

    An exception of a job may have a message of any length.
    """
    if len(text) <= _TEXT_LIMIT // 4:
        return text
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= _TEXT_LIMIT:
        return text
    return data[: _TEXT_LIMIT - 16].decode("utf-8", "ignore") + " … (cut)"


def describe(error: BaseException, stage: str) -> tuple[list[bytes], str, str, str]:
    """Return the segments of an exception's pickle, its type, its message and its traceback.

    It does not raise, whatever the exception's class does.
    """
    segments: list[bytes] = []
    try:
        from .exceptions import dump

        segments, type_name, message, traceback = dump(error, stage)
    except BaseException as problem:
        type_name = type(error).__qualname__
        try:
            message = str(error).encode("utf-8", "backslashreplace").decode()
        except BaseException:
            message = ""
        traceback = f"{type_name}: {message}\n(the worker could not describe it further: {type(problem).__name__})\n"
    return segments, clip(type_name), clip(message), clip(traceback)


def evaluate_in_main(expression: str) -> Any:
    """Evaluate an expression in ``__main__``.

    `eval` and a few other builtins inspect the calling frame. A function made here gives them the
    frame of the user's main module.
    """
    return eval(compile(expression, "<trio-offload>", "eval"), sys.modules["__main__"].__dict__)


def refuse_asynchronous(function: Any, value: Any) -> None:
    """Raise if a job returned a coroutine or an asynchronous generator.

    Close it first, so that Python does not warn about a coroutine that was not awaited.

    Raises:
        TypeError: the value can only be run by an event loop.
    """
    if type(value) not in _ASYNCHRONOUS:
        return
    if hasattr(value, "close"):
        value.close()
    try:
        name = repr(function)
    except Exception:
        name = "it"
    raise TypeError(
        f"a worker runs synchronous functions, but {name} is asynchronous: calling it gave {type(value).__name__}, which only "
        "an event loop could run. Await it in your own task, or pass a synchronous function (one that calls "
        "from_worker.run_async, if it must)"
    )


async def _coroutine() -> None: ...


async def _asynchronous_generator() -> Any:
    yield


_made: Any = _coroutine()
# As in the module `types`, which takes longer to import.
_ASYNCHRONOUS: Final = (type(_made), type(_asynchronous_generator()))
_made.close()
del _made


def flush() -> None:
    """Flush the standard streams. Ignore broken ones: Python reports them at its exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass


def flush_at_exit() -> bool:
    """Flush the standard streams, and report a failure of standard output, as Python does at exit.

    Return False if a stream failed.
    """
    return _flush_at_exit(sys.stdout) & _flush_at_exit(sys.stderr)


def _flush_at_exit(stream: Any) -> bool:
    try:
        if stream is not None and not getattr(stream, "closed", False):
            stream.flush()
    except BaseException as error:
        # Python calls `sys.unraisablehook`, whose argument cannot be created in Python code.
        if stream is sys.stdout:
            report_unraisable(error)
        return False
    return True


def report_unraisable(error: BaseException) -> None:
    """Print the traceback of an exception that does not reach a caller."""
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except BaseException:
        pass
