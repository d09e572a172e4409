"""Pickle exceptions with traceback, cause, context, notes and groups, and load them.

The worker dumps, the parent loads. Both import this module, because the pickles refer to its
functions by name.

* An exception is rebuilt without its own ``__init__`` or ``__setattr__``. Many constructors reject
  ``args`` alone, and a frozen dataclass forbids setting ``__traceback__``. A class with its own
  ``__reduce__`` is pickled by it, as usual.
* The links between exceptions are set after the exceptions exist, so cycles work.
* A traceback travels as a flat list of frame summaries, whatever its depth. The parent makes a real
  traceback of it with ``tblib``.
* Only :func:`load` raises, whatever the exception's class does.
"""

from __future__ import annotations

import _pickle
import builtins
import os
from types import MemberDescriptorType, TracebackType

from .._protocol.parts import Parts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Final, TypeAlias

FrameSummary: TypeAlias = "tuple[str, str, int, str, str | None]"
"""One traceback entry: the code's file and name, the line, the module's name and file."""


def dump(exception: BaseException, stage: str) -> tuple[list[bytes], str, str, str]:
    """Describe and pickle an exception that a job raised.

    Returns:
        The segments of its pickle (empty if it cannot be pickled), the qualified name of its class,
        its text, and the text of its traceback.
    """
    _without_machinery(exception)
    segments: list[bytes] = []
    problem = ""
    for attempt in (_dump_whole, _dump_with_cloudpickle, _dump_alone):
        try:
            pickled = attempt(exception)
        except BaseException as error:
            problem = problem or f"{type(error).__name__}: {_text(error)}"
        else:
            if pickled is not None:
                segments = [pickled]
                break
    traceback = _traceback_text(exception)
    if not segments:
        traceback += f"(the exception could not be pickled: {problem})\n"
    return segments, _type_name(type(exception)), _text(exception), traceback


def dump_copy(exception: BaseException) -> bytes | None:
    """Pickle an exception, which stays as it is. None means too large, or not picklable."""
    for attempt in (_dump_whole, _dump_alone):
        try:
            pickled = attempt(exception)
        except Exception:
            continue
        return pickled if pickled is not None and len(pickled) <= _MAX_COPY else None
    return None


def load(data: Any) -> BaseException:
    """Load an exception from a pickle that :func:`dump` made.

    Raises:
        BaseException: any exception that unpickling raises.
    """
    exception = _pickle.loads(data)
    if not isinstance(exception, BaseException):
        raise TypeError(f"the pickle must hold an exception, got {type(exception).__name__}")
    return exception


# Pickles refer to these functions by name. The names and arguments are a format that two releases
# share: add to them, but do not change them.


def make_exception(cls: Any, base: Any, args: tuple[Any, ...]) -> BaseException:
    """Make an exception of ``cls`` with its builtin ``base``, bypassing its own constructors."""
    try:
        exception: BaseException = base.__new__(cls, *args)
    except TypeError:
        exception = base.__new__(cls)
    try:
        base.__init__(exception, *args)
    except Exception:
        # User code has replaced `args` with values that the builtin class rejects.
        BaseException.__setattr__(exception, "args", args)
    return exception


def set_state(exception: BaseException, state: tuple[dict[str, Any], dict[str, Any], tuple[Any, ...]]) -> None:
    """Give an exception of :func:`make_exception` its attributes and its links."""
    attributes, slots, links = state
    object.__getattribute__(exception, "__dict__").update(attributes)
    for name, value in slots.items():
        BaseException.__setattr__(exception, name, value)
    set_links(exception, links)


def set_own_state(exception: Any, state: tuple[Any, Any, tuple[Any, ...]]) -> None:
    """Do the same for a class that defines how it is pickled."""
    own, setter, links = state
    if own is not None:
        if setter is not None:
            setter(exception, own)
        elif type(exception).__setstate__ is not BaseException.__setstate__:
            exception.__setstate__(own)
        else:
            for name, value in own.items():
                BaseException.__setattr__(exception, name, value)
    if isinstance(exception, BaseException):
        set_links(exception, links)


def set_links(exception: BaseException, links: tuple[Any, ...]) -> None:
    """Set the traceback, the cause, the context, and whether the context is hidden."""
    summaries, cause, context, suppress_context = links
    BaseException.with_traceback(exception, make_traceback(summaries))
    BaseException.__setattr__(exception, "__cause__", cause)
    BaseException.__setattr__(exception, "__context__", context)
    BaseException.__setattr__(exception, "__suppress_context__", suppress_context)


def make_traceback(summaries: list[FrameSummary]) -> TracebackType | None:
    """Make a real traceback from a list of frame summaries. Return None if it is empty."""
    if not summaries:
        return None
    from types import SimpleNamespace

    from tblib import Traceback  # type: ignore[import-untyped,unused-ignore]

    entry: Any = None
    for filename, name, line, module, file in reversed(summaries):
        names = {"__name__": module} if file is None else {"__name__": module, "__file__": file}
        code = SimpleNamespace(co_filename=filename, co_name=name)
        following = entry
        entry = object.__new__(Traceback)
        entry.tb_frame = SimpleNamespace(f_code=code, f_globals=names, f_locals={}, f_lineno=line)
        entry.tb_lineno = line
        entry.tb_next = following
    made: TracebackType | None = entry.as_traceback()
    return made


# The rest is used only in the worker.

# traceback entries, half from either end: endless recursion repeats itself in the middle
_MAX_FRAMES: Final = 400
_MAX_COPY: Final = 1 << 20  # bytes
_GROUP: Final[Any] = getattr(builtins, "BaseExceptionGroup", ())  # from Python 3.11 on
# Py_TPFLAGS_HEAPTYPE: a class made at run time, as all classes of Python code are
_HEAP_TYPE: Final = 1 << 9


def _dump_whole(exception: BaseException) -> bytes | None:
    class Pickler(_pickle.Pickler):
        def reducer_override(self, value: Any) -> Any:
            return _reduce(value, with_links=True)

    return _dump_with(Pickler, exception)


def _dump_with_cloudpickle(exception: BaseException) -> bytes | None:
    try:
        import cloudpickle  # noqa: F401
    except ImportError:
        return None
    from .cloudpickle import ResultPickler

    class Pickler(ResultPickler):
        def reducer_override(self, value: Any) -> Any:
            reduced = _reduce(value, with_links=True)
            return super().reducer_override(value) if reduced is NotImplemented else reduced

    return _dump_with(Pickler, exception)


def _dump_alone(exception: BaseException) -> bytes | None:
    """Pickle without the linked exceptions: a chain may be too long, or not be picklable."""

    class Pickler(_pickle.Pickler):
        def reducer_override(self, value: Any) -> Any:
            return _reduce(value, with_links=False)

    return _dump_with(Pickler, exception)


def _dump_with(pickler: Any, exception: BaseException) -> bytes:
    file = Parts()
    pickler(file, 5).dump(exception)
    return file.whole()


def _reduce(value: Any, *, with_links: bool) -> Any:
    if isinstance(value, BaseException):
        return _reduce_exception(value, with_links)
    if isinstance(value, TracebackType):
        return make_traceback, (_frame_summaries(value),)
    return NotImplemented


def _reduce_exception(exception: BaseException, with_links: bool) -> Any:
    cls = type(exception)
    base: Any = next(entry for entry in cls.__mro__ if not entry.__flags__ & _HEAP_TYPE)
    summaries = _frame_summaries(BaseException.__getattribute__(exception, "__traceback__"))
    links: tuple[Any, ...] = (summaries, None, None, False)
    if with_links:
        links = (summaries, exception.__cause__, exception.__context__, exception.__suppress_context__)
    if cls.__reduce__ is not base.__reduce__ or cls.__reduce_ex__ is not object.__reduce_ex__:
        reduce: Any = exception.__reduce_ex__
        answer = reduce(5)
        if isinstance(answer, str):
            return NotImplemented
        function, args, state, items, pairs, setter = (*answer, None, None, None, None)[:6]
        return function, args, (state, setter, links), items, pairs, set_own_state
    reduced: Any = base.__reduce__(exception)
    _, args, *rest = reduced
    own: dict[str, Any] = object.__getattribute__(exception, "__dict__")
    # Builtin classes keep some attributes outside the instance's dictionary (ImportError has a name
    # and a path).
    slots: dict[str, Any] = {name: value for name, value in (rest[0] or {} if rest else {}).items() if name not in own}
    slots.update(_slots(exception, base))
    if isinstance(exception, _GROUP):
        # A subclass with more arguments has them in `args`, but the builtin class takes these two.
        slots["args"] = args
        args = (exception.message, exception.exceptions)
    return make_exception, (cls, base, tuple(args)), (dict(own), slots, links), None, None, set_state


def _slots(exception: BaseException, base: type) -> Iterator[tuple[str, Any]]:
    for cls in type(exception).__mro__:
        if cls is base:
            break
        for name, member in vars(cls).items():
            if isinstance(member, MemberDescriptorType):
                try:
                    yield name, member.__get__(exception, cls)
                except AttributeError:
                    pass  # never set


def _frame_summaries(traceback: TracebackType | None) -> list[FrameSummary]:
    summaries: list[FrameSummary] = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        module, file = (traceback.tb_frame.f_globals.get(name) for name in ("__name__", "__file__"))
        summaries.append(
            (
                code.co_filename,
                code.co_name,
                traceback.tb_lineno or code.co_firstlineno,
                module if isinstance(module, str) else "?",
                file if isinstance(file, str) else None,
            )
        )
        traceback = traceback.tb_next
    if len(summaries) > _MAX_FRAMES:
        summaries[_MAX_FRAMES // 2 : -_MAX_FRAMES // 2] = []
    return summaries


def _without_machinery(exception: BaseException) -> None:
    """Remove our own frames from the front of the traceback, so that it starts with user code."""
    traceback = BaseException.__getattribute__(exception, "__traceback__")
    while traceback is not None and _is_ours(traceback.tb_frame.f_code.co_filename):
        traceback = traceback.tb_next
    BaseException.with_traceback(exception, traceback)


_OUR_DIRECTORY: Final = os.path.dirname(os.path.dirname(__file__)) + os.sep
_TRAMPOLINE: Final = "<trio-offload>"


def _is_ours(filename: str) -> bool:
    return filename == _TRAMPOLINE or filename.startswith((_OUR_DIRECTORY, "<frozen importlib"))


def _traceback_text(exception: BaseException) -> str:
    try:
        from traceback import format_exception

        traceback = BaseException.__getattribute__(exception, "__traceback__")
        return _encodable("".join(format_exception(type(exception), exception, traceback)))
    except BaseException as error:
        return f"{_type_name(type(exception))}: {_text(exception)}\n(its traceback could not be written: {_type_name(type(error))})\n"


def _type_name(cls: type) -> str:
    try:
        name, module = str(cls.__qualname__), cls.__module__
        return _encodable(name if module in ("builtins", None) else f"{module}.{name}")
    except BaseException:
        return "BaseException"


def _text(exception: BaseException) -> str:
    try:
        return _encodable(str(exception))
    except BaseException as error:
        return f"(its text is missing: its __str__ raised {_type_name(type(error))})"


def _encodable(text: str) -> str:
    """Escape lone surrogates, which UTF-8 cannot encode."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")
