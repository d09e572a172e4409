"""Records of :mod:`logging` from workers: each is handled here by the logger of its name.

A job writes a record to its socket before its logging call returns. The records of a call are read
before its answer, and from the socket of a worker that has died. So they are handled in order, and
before :func:`~trio_offload.run_sync` returns or raises.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from .._pickling import calls as _calls
from .._process.record import Progress
from .levels import Mirror
from .warned import Warner

if TYPE_CHECKING:
    from trio_offload_worker._protocol.frames import Frame

    from .._worker.call_sender import ItemsOfCall


class LogForwarder:
    """Handles the records and warnings of a context's jobs. Its workers mirror the levels here."""

    def __init__(self, thresholds: Mapping[str, int], kept: Sequence[str] = ()) -> None:
        """``kept`` are names of handlers that go on in the workers."""
        self.settings: Final = Mirror(thresholds, kept).current
        self.receivers: Final[Mapping[str, Callable[[Any, Frame], None]]] = {"log": handle, "warn": Warner().warn}


class Source(Protocol):
    """The worker of a record."""

    items_in_flight: Sequence[ItemsOfCall]

    @property
    def running_function(self) -> str | None:
        """Name of the running function."""


def handle(worker: Any, frame: Frame) -> None:
    """Handle a record of a worker's running job, or of its ``init``.

    An exception of a filter or a handler is printed, as ``logging`` does for handlers.
    """
    try:
        number, message, created, milliseconds, origin, rest, progress = _loads(frame.segments[0])
        if origin is None:
            logger, level, attributes = worker.origins[number]
        else:
            if worker.origins is None:
                worker.origins = {}
            logger, level, attributes = worker.origins[number] = _load_origin(worker.process.pid, *origin)
        if not logger.isEnabledFor(level):
            return
        attributes = attributes.copy()
        attributes["msg"] = message
        attributes["created"] = created
        attributes["msecs"] = milliseconds
        attributes["relativeCreated"] = created * 1000 - _STARTED
        if frame.id:  # else it is of `init`
            attributes["job"] = worker.running_function
        if frame.id and worker.items_in_flight:
            attributes["item"] = _item_of(worker, progress)
        if rest is not None:
            _add_rest(attributes, *rest)
        if logging.getLogRecordFactory() is logging.LogRecord:
            record = _new_record(logging.LogRecord)
            record.__dict__ = attributes
        else:
            record = logging.makeLogRecord(attributes)
        logger.handle(record)
    except Exception:
        if logging.raiseExceptions and sys.stderr is not None:
            print(f"--- Error while a log record of worker {worker.process.pid} was handled ---", file=sys.stderr)
            traceback.print_exc()


def _load_origin(
    worker: int,
    logger: str,
    name: str,
    number: int,
    level: str,
    path: str,
    line: int,
    function: str,
    thread: int,
    thread_name: str,
    process: int,
    process_name: str,
) -> tuple[logging.Logger, int, dict[str, Any]]:
    """Return the logger, the level and the attributes of records with this origin."""
    if level.startswith("Level "):
        level = logging.getLevelName(number)  # this program may have a name for it
    file = os.path.basename(path)
    attributes = _TEMPLATE | {
        "name": name,
        "args": None,
        "levelname": level,
        "levelno": number,
        "pathname": path,
        "filename": file,
        "module": os.path.splitext(file)[0],
        "lineno": line,
        "funcName": function,
        "thread": thread,
        "threadName": thread_name,
        "processName": process_name,
        "process": process,
        # A template may tell later which process it has forked.
        "worker": worker or process,
        "job": None,
        "item": None,
    }
    return logging.getLogger(logger), number, attributes


def _add_rest(
    attributes: dict[str, Any], exception: str | None, stack: str | None, task: str | None, extra: Any, pickled: bytes | None
) -> None:
    """Add the parts that few records have. A value of ``extra`` replaces an attribute of ours."""
    attributes["exc_text"] = exception
    if pickled is not None:
        attributes["exc_info"] = _load_exception(pickled)
    attributes["stack_info"] = stack
    if task is not None:
        attributes["taskName"] = task
    if extra is not None:
        plain, others = extra
        attributes.update(plain)
        attributes.update((key, _load_extra(*value)) for key, value in others.items())


def _item_of(worker: Source, progress: tuple[int, int, int] | None) -> int | None:
    """Return the index of the item of a map, if it is known."""
    if not worker.items_in_flight:
        return None
    item = worker.items_in_flight[0].item_at(Progress(*(progress or (0, 0, 0))))
    return None if item is None else item[0]


def _load_exception(pickled: bytes) -> tuple[Any, Any, Any] | None:
    """Return an exception as ``sys.exc_info`` does, or None if the pickle fails."""
    try:
        error = _calls.load([pickled])
    except Exception:
        return None
    return (type(error), error, error.__traceback__) if isinstance(error, BaseException) else None


def _load_extra(pickled: bytes | None, text: str) -> Any:
    """Return a value of ``extra``, or its ``repr`` if a pickle fails."""
    if pickled is not None:
        try:
            return pickle.loads(pickled)
        except Exception:
            pass
    return text


# A record of this Python, with the attributes that it has.
_A_RECORD: Final = logging.makeLogRecord({})
_TEMPLATE: Final = _A_RECORD.__dict__ | {"exc_info": None, "exc_text": None, "stack_info": None}
# The time in milliseconds from which `relativeCreated` counts.
_STARTED: Final = _A_RECORD.created * 1000 - _A_RECORD.relativeCreated
_new_record: Final = logging.LogRecord.__new__
_loads: Final = pickle.loads
