"""Values of a job to segments and back, and replies to values or exceptions."""

from __future__ import annotations

import _pickle

from .._jobs.notes import add_note
from .._protocol.segments import Collector
from . import errors
from .messages import Segments
from .requests import request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

    from .messages import Reply


def dumps_plain(value: Any) -> bytes | None:
    """Return the pickle of a number or a short text. None means that it is something else."""
    kind = type(value)
    if kind in _NUMBERS or ((kind is str or kind is bytes) and len(value) <= _MAX_SHORT):
        return _pickle.dumps(value, 5)
    return None


def dumps(value: Any) -> Segments:
    """Pickle a value for the parent. The pickle may have handles in it.

    Raises:
        Exception: any exception of the pickler.
    """
    collector = Collector()
    try:
        _pickle.Pickler(collector, 5, buffer_callback=collector.take).dump(value)
    except (_pickle.PicklingError, AttributeError, TypeError) as error:
        # Other exceptions may be a signal handler's, and must not be lost.
        from .._jobs.pickling import dumps as dump_by_value

        parts = dump_by_value(value, error, "the message to the parent")
        return Segments(parts, [_size(part) for part in parts])
    return Segments(*collector.segments())


def loads(segments: Sequence[Any]) -> Any:
    """Unpickle a value of the parent's, or of another job's."""
    pickled, *buffers = segments
    return _pickle.loads(pickled, buffers=buffers)


def ask(op: str, handle: int, value: Any, shield: bool | None) -> Any:
    """Send a request with a value, and return its result."""
    return result(request(op, handle, dumps(value), shield=shield))


def result(reply: Reply) -> Any:
    """Return the value of a reply.

    Raises:
        BaseException: the exception that the reply's status stands for.
    """
    status = reply.status
    if status == "value":
        return loads(reply.segments) if reply.segments else None
    if status == "raised":
        raise remote_exception(reply)
    if status == "refused":
        raise _REFUSALS.get(reply.type, RuntimeError)(reply.message)
    if status == "unknown_handle":
        raise RuntimeError(
            reply.message or "this job was not given that handle: pass it as an argument, or through a channel that it has"
        )
    twin = _TWINS.get(status)
    if twin is None:
        raise RuntimeError(f"the parent replied {status!r} ({reply.message}), which this worker does not know")
    raise twin(reply.message) if reply.message else twin


def remote_exception(reply: Reply) -> BaseException:
    """Return the exception of a reply of the status ``raised``.

    Its traceback in the parent is a note. The traceback that Python prints is the job's.
    """
    exception = _load_exception(reply)
    if reply.traceback:
        add_note(exception, "The traceback in the parent program:\n" + reply.traceback.rstrip())
    return exception


def _load_exception(reply: Reply) -> BaseException:
    problem = ""
    if reply.segments:
        try:
            loaded = loads(reply.segments)
            if isinstance(loaded, Exception):
                return BaseException.with_traceback(loaded, None)
            problem = f"; it is a {type(loaded).__name__}"
        except Exception as error:
            problem = f"; unpickling it failed: {type(error).__name__}: {error}"
    return errors.RemoteError(f"{reply.type}: {reply.message}{problem}")


def _size(part: Any) -> int:
    return part.nbytes if isinstance(part, memoryview) else len(part)


_NUMBERS: Final = frozenset((int, float, bool, complex, type(None)))
_MAX_SHORT: Final = 1024

_TWINS: Final[dict[str, type[Exception]]] = {
    "would_block": errors.WouldBlock,
    "end_of_channel": errors.EndOfChannel,
    "broken": errors.BrokenResourceError,
    "closed": errors.ClosedResourceError,
    "abandoned": errors.AbandonedLockError,
    "deadlock": errors.DeadlockError,
    "broken_barrier": errors.BrokenBarrierError,
}
_REFUSALS: Final[dict[str, type[Exception]]] = {
    "TypeError": TypeError,
    "ValueError": ValueError,
    "RuntimeError": RuntimeError,
}
