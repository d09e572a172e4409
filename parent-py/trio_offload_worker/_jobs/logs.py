"""Send a job's records of ``logging`` to the parent, whose loggers of the same names handle them.

:meth:`logging.Logger.callHandlers` is replaced: it is behind the levels and filters of the logger,
and in front of all handlers. So the handlers of this process do not write the record a second time,
and no lock of ``logging`` is held during the write to the socket.

A record takes the original way

* if neither a job nor ``init`` is running: in ``retire``, exit handlers, and threads between jobs;
* in a copy of this process that a job has forked;
* if its logger is not among those that are forwarded.
"""

from __future__ import annotations

import _pickle
import logging
import os
import sys
from itertools import count

from .._protocol.frames import Kind, encode_head
from . import init_calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final


def follow(wanted: dict[str, Any] | None) -> None:
    """Mirror the levels of the parent, and forward records. None means: do not."""
    global _kept, _levels, _line
    logger: Any = logging.Logger
    if wanted is None:
        if logger.callHandlers is _call_handlers:
            logger.callHandlers = _original
        return
    line: Any = sys.modules["_trio_offload_line"]
    if _line is not line:
        # At first, or in a worker that is a fork of a worker.
        _line = line
        _origins.clear()
    _thresholds.clear()
    _thresholds.update(wanted["thresholds"])
    _minimums.clear()
    _kept = frozenset(wanted.get("kept", ()))
    levels = wanted["levels"]
    # Levels that jobs have set stay, unless they change in the parent.
    for name in _levels.keys() - levels.keys():
        logging.getLogger(name).setLevel(logging.NOTSET)
    for name, level in levels.items():
        if _levels.get(name) != level:
            logging.getLogger(name).setLevel(level)
    _levels = levels
    if wanted["disable"] is not None and logging.root.manager.disable != wanted["disable"]:
        logging.disable(wanted["disable"])
    logger.callHandlers = _call_handlers


def _call_handlers(self: logging.Logger, record: logging.LogRecord) -> None:
    if not _forward(self.name, record):
        _original(self, record)
    elif _kept:
        _call_kept(self, record)


def _call_kept(logger: logging.Logger | None, record: logging.LogRecord) -> None:
    """Call the handlers of this process that were asked for, as ``callHandlers`` calls all."""
    while logger is not None:
        for handler in logger.handlers:
            if handler.name in _kept and record.levelno >= handler.level:
                handler.handle(record)
        logger = logger.parent if logger.propagate else None


def _forward(name: str, record: logging.LogRecord) -> bool:
    """Send a record to the parent. Return False if this process must handle it."""
    minimum = _minimums.get(name, _UNKNOWN)
    if minimum is _UNKNOWN:
        minimum = _find_minimum(name)
    if minimum is None:
        return False
    call = _line.call()
    if not (call or init_calls.is_running) or _line.pid() != os.getpid():
        return False
    if record.levelno < minimum:
        return True
    try:
        message = record.getMessage()
        key = (
            name, record.name, record.levelno, record.pathname, record.lineno, record.thread, record.threadName,
            record.process,
        )  # fmt: skip
        number = _origins.get(key)
        origin = None
        if number is None:
            number, origin = next(_numbers), _describe_origin(name, record)
        values = record.__dict__
        rest = None
        if record.exc_info or record.exc_text or record.stack_info or len(values) != _COUNT or values.get("taskName"):
            rest = _describe_rest(record, values)
        chunks = _modules.get("trio_offload_worker._jobs.chunks")
        progress = None if chunks is None else chunks.progress()
        data = _dumps((number, message, record.created, record.msecs, origin, rest, progress), 5)
    except Exception:
        _report_error(record)
        return True
    # The unpickler ignores the rest. Few different lengths: both sides keep the heads of those.
    padding = _PADDING[-len(data) % _STEP]
    length = len(data) + len(padding)
    head = _heads.get((call, length))
    if head is None:
        if len(_heads) >= _MAX_HEADS:
            _heads.clear()
        head = _heads[call, length] = encode_head(Kind.POST, call, (length,), _BODY)
    sent: list[bool] = []
    # In one part, which takes 3 % less of a record's time than two.
    _line.write((b"".join((head, data, padding)),), call, sent)
    if not sent:
        return False
    if origin is not None and len(_origins) < _MAX_ORIGINS:
        # Only now: an exception of a signal handler may come before the write.
        _origins[key] = number
    return True


def _describe_origin(name: str, record: logging.LogRecord) -> tuple[Any, ...]:
    """Return the parts that records of one line of code and one thread have in common."""
    process_name = record.processName
    if process_name == "MainProcess":
        # Without multiprocessing, a process does not know better.
        process_name = f"trio-offload-worker-{record.process}"
    return (
        name, record.name, record.levelno, record.levelname, record.pathname, record.lineno, record.funcName,
        record.thread, record.threadName, record.process, process_name,
    )  # fmt: skip


def _describe_rest(record: logging.LogRecord, values: dict[str, Any]) -> tuple[Any, ...] | None:
    """Return the parts that few records have."""
    exception, pickled = record.exc_text, None
    if record.exc_info:
        if exception is None:
            exception = logging.Formatter().formatException(record.exc_info)
        if isinstance(record.exc_info[1], BaseException):
            from .exceptions import dump_copy

            pickled = dump_copy(record.exc_info[1])
    extra = None
    if len(values) != _COUNT:
        extra = _encode_extra({key: value for key, value in values.items() if key not in _STANDARD})
    return exception, record.stack_info, values.get("taskName"), extra, pickled


def _encode_extra(extra: dict[str, Any]) -> tuple[dict[str, Any], dict[str, tuple[bytes | None, str]]]:
    """Return the values of builtin types, and the others as pickles with their ``repr``."""
    plain: dict[str, Any] = {}
    others: dict[str, tuple[bytes | None, str]] = {}
    for key, value in extra.items():
        if type(value) in _PLAIN:
            plain[key] = value
            continue
        try:
            text = repr(value)
        except Exception:
            text = f"<{type(value).__qualname__}, whose repr raises>"
        try:
            others[key] = _pickle.dumps(value, 5), text
        except Exception:
            others[key] = None, text
    return plain, others


def _report_error(record: logging.LogRecord) -> None:
    """Print an error as a handler does: arguments that do not fit their message, for example."""
    global _reporter
    if _reporter is None:
        _reporter = logging.Handler()
    _reporter.handleError(record)


def _find_minimum(name: str) -> int | None:
    """Return the smallest level of a logger that is forwarded. None means never."""
    ancestor = "" if name == "root" else name
    while ancestor and ancestor not in _thresholds:
        ancestor = ancestor.rpartition(".")[0]
    found: int | None = _thresholds.get(ancestor)
    if len(_minimums) < _MAX_MINIMUMS:
        _minimums[name] = found
    return found


_A_RECORD: Final = logging.makeLogRecord({})
_STANDARD: Final = frozenset(_A_RECORD.__dict__) | {"message", "asctime"}
_COUNT: Final = len(_A_RECORD.__dict__)
_PLAIN: Final = frozenset((str, int, float, bool, type(None), bytes))
# The parent knows the job from the call, and the record has the thread.
_BODY: Final = {"op": "log", "thread": 0}
_STEP: Final = 64
_PADDING: Final = tuple(bytes(length) for length in range(_STEP))
_MAX_HEADS: Final = 64
_MAX_ORIGINS: Final = 10_000
_MAX_MINIMUMS: Final = 4096
_UNKNOWN: Final[Any] = object()

_original: Final[Callable[[logging.Logger, logging.LogRecord], None]] = logging.Logger.callHandlers
_dumps: Final = _pickle.dumps
_modules: Final = sys.modules
_line: Any = None
_thresholds: Final[dict[str, int]] = {}
_minimums: Final[dict[str, int | None]] = {}
_levels: dict[str, int] = {}
_kept: frozenset[str] = frozenset()
_numbers: Final = count(1)
# The numbers of the origins that the parent knows.
_origins: Final[dict[tuple[Any, ...], int]] = {}
_heads: Final[dict[tuple[int, int], bytes]] = {}
_reporter: logging.Handler | None = None
