"""Unpickle, call, pickle: the user's code in a Python worker. The twin of ``executor.rs``.

Invariants:

* Any ``BaseException`` of the user's code becomes the answer to the call.
* The function, its arguments and the result are dropped before the worker waits for the next frame.
* A job's output is flushed before its caller continues.
* Each job has its own context variables, a copy of those that ``init`` and imports have set.
* A copy of the process that a job has forked does not return into the session.
* The worker imports only modules that the jobs ask for.
"""

from __future__ import annotations

import _contextvars
import os
import sys

from .._jobs.guards import describe, evaluate_in_main, flush, refuse_asynchronous, report_unraisable
from .._protocol.frames import Kind
from .._protocol.segments import Collector
from .hooks import MultiprocessingFinder, Settings, adopt_imported, describe_main, import_pickle_core, install_main

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Final, NoReturn

    from .._protocol.frames import Buffer
    from .signals import Handlers


class Answer:
    """The answer to a call: the fields of a frame."""

    __slots__ = ("body", "kind", "lengths", "parts")

    def __init__(self, kind: Kind, lengths: list[int], body: dict[str, Any] | None, parts: Sequence[Buffer]) -> None:
        self.kind = kind
        self.lengths = lengths
        self.body = body
        self.parts = parts


class Inherited:
    """The objects that a fork of the parent inherits without a pickle.

    ``init`` and ``retire`` may be None. ``handled`` is the exception that the parent was handling
    at the fork. The copy cannot get rid of it.
    """

    __slots__ = ("handled", "init", "retire")

    def __init__(self, init: Callable[[], Any] | None, retire: Callable[[], Any] | None) -> None:
        self.init = init
        self.retire = retire
        self.handled = sys.exc_info()[1]


class Executor:
    """All objects of the user's that a worker keeps."""

    def __init__(self, handlers: Handlers, inherited: Inherited | None = None) -> None:
        self._core = import_pickle_core()
        self._inherited = inherited
        self._handlers = handlers
        self._process = os.getpid()
        self._settings = Settings(self._core.loads)
        self._retire: Callable[[], Any] | None = None
        self._trampoline: Any = None
        # The module `trio_offload_worker._jobs.settings` once settings have been applied.
        self._pending_settings: Any = None

    def set_up(self, eager: bool, segments: list[Any]) -> Answer | None:
        """Apply the settings and call ``init``. Return the answer if that failed."""
        settings, init, retire = segments
        try:
            self._handlers.release()
            self._settings.replace(bytes(settings))
            if self._inherited is None:
                install_main(self._core, self._settings)
            if not adopt_imported(self._settings):
                sys.meta_path.insert(0, MultiprocessingFinder(self._settings))
            if eager:
                self._apply_settings()
            function = self._callable(init) if self._inherited is None else self._inherited.init
            if function is not None:
                outcome = self._guarded(function, ())
                refuse_asynchronous(function, outcome)
            # After `init`, because the function may measure the worker's memory when it is
            # unpickled.
            self._retire = self._callable(retire) if self._inherited is None else _restarted(self._inherited.retire)
            self._handlers.hold()
        except BaseException as error:
            self._handlers.hold()
            return self._describe(error, "setup", Kind.SETUP_FAILED)
        finally:
            flush()
        self._handlers.begin_jobs()
        return None

    def replace_settings(self, eager: bool, segments: list[Any]) -> None:
        """Replace the settings of SETUP. The parent expects no answer, so only print errors."""
        try:
            self._settings.replace(bytes(segments[0]))
            if self._inherited is None:
                describe_main(self._settings)
            adopt_imported(self._settings)
            if eager:
                self._apply_settings()
        except BaseException as error:
            report_unraisable(error)

    def call(self, segments: list[Any]) -> Answer:
        """Unpickle, call, pickle. Return an answer, whatever the user's code does."""
        stage = "unpickle"
        try:
            self._handlers.release()
            job = self._load(segments)
            if type(job) is not tuple or len(job) != 2 or type(job[1]) is not tuple:
                raise TypeError("the parent sent no function with its arguments; this is an error in trio-offload")
            function, arguments = job
            del job
            stage = "call"
            if self._pending_settings is not None and self._pending_settings.pending:
                self._pending_settings.resolve_pending()
            context = _job_context()
            value = context.run(self._guarded, function, arguments)
            refuse_asynchronous(function, value)
            del function, arguments
            stage = "pickle"
            answer: Answer = context.run(self._dump, value)
            self._handlers.hold()
            return answer
        except BaseException as error:
            self._handlers.hold()
            return self._describe(error, stage, Kind.RAISED)
        finally:
            self._handlers.end_job()
            flush()

    def after_answer(self) -> tuple[bool, str]:
        """Call the user's ``retire`` after an answer. Return whether to exit, and any error."""
        retire = self._retire
        if retire is None:
            return False, ""
        try:
            self._handlers.release()
            verdict = _job_context().run(self._guarded, retire, ())
            refuse_asynchronous(retire, verdict)
            leave = bool(verdict)
            self._handlers.hold()
            return leave, ""
        except BaseException as error:
            self._handlers.hold()
            body = self._describe(error, "retire", Kind.RAISED).body or {}
            return True, "the context's retire function raised " + (
                body["traceback"] or f"{body['type']}: {body['message']}"
            )
        finally:
            self._handlers.end_job()
            flush()

    def _load(self, segments: list[Any]) -> Any:
        pickled, *buffers = segments
        segments.clear()
        return self._core.loads(pickled, buffers=buffers) if buffers else self._core.loads(pickled)

    def _callable(self, pickled: Any) -> Any:
        """Unpickle a function. An empty pickle and a pickled ``None`` mean no function."""
        return self._core.loads(pickled) if len(pickled) else None

    def _guarded(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """Call a function of the user's. A copy of this process that it has forked ends here."""
        try:
            if type(function) is _BUILTIN:
                # `eval` and a few others inspect the calling frame, which must belong to the user's
                # main module.
                if self._trampoline is None:
                    self._trampoline = evaluate_in_main("lambda function, arguments: function(*arguments)")
                value = self._trampoline(function, arguments)
            else:
                value = function(*arguments)
        except BaseException as error:
            if os.getpid() != self._process:
                _leave_forked_copy(error)
            raise
        if os.getpid() != self._process:
            _leave_forked_copy(None)
        return value

    def _dump(self, value: Any) -> Answer:
        collector = Collector()
        try:
            self._core.Pickler(collector, 5, buffer_callback=collector.take).dump(value)
        except Exception as error:
            from .._jobs.pickling import dumps

            parts: Sequence[Buffer] = dumps(value, error)
            return Answer(Kind.RESULT, [len(part) for part in parts], None, parts)
        parts, lengths, types = collector.segments()
        return Answer(Kind.RESULT, lengths, {"types": types} if types else None, parts)

    def _apply_settings(self) -> None:
        from .._jobs import settings

        settings.apply(self._settings.get())
        self._pending_settings = settings

    def _describe(self, error: BaseException, stage: str, kind: Kind) -> Answer:
        """Describe an exception for the parent."""
        try:
            if self._inherited is not None and self._inherited.handled is not None:
                _drop_context(error, self._inherited.handled)
        except BaseException:
            pass  # The exception's class forbids it.
        segments, type_name, message, traceback = describe(error, stage)
        body = {"stage": stage, "type": type_name, "message": message, "traceback": traceback}
        return Answer(kind, [len(segment) for segment in segments], body, segments)


def _job_context() -> Any:
    """Return a copy of the worker's context variables for a job."""
    context = _contextvars.copy_context()
    if len(context):
        from .._jobs.contexts import copy_mutable_values

        copy_mutable_values(context)
    return context


_BUILTIN: Final = type(len)


def _restarted(retire: Any) -> Any:
    """Return an inherited ``retire``. Reset a ``retire_when``, as unpickling would."""
    if retire is None or type(retire).__module__ != "trio_offload_worker._jobs.retire":
        return retire
    make, arguments = retire.__reduce__()
    return make(*arguments)


def _drop_context(error: BaseException, handled: BaseException) -> None:
    """Remove the parent's handled exception from the contexts of a job's exception.

    The frames of the parent that handle it are still on the stack, so Python chains it to every
    exception that a job raises.
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        if found.__context__ is handled:
            found.__context__ = None
        waiting += [found.__context__, found.__cause__]


def _leave_forked_copy(error: BaseException | None) -> NoReturn:
    """End the copy of this process that a job has forked, after the job's function returned in it.

    The copy has neither socket nor caller. It ends like any forked Python, but without the exit
    handlers, which belong to the original.
    """
    code = 0
    if isinstance(error, SystemExit):
        code = 0 if error.code is None else error.code if isinstance(error.code, int) else 1
    elif error is not None:
        report_unraisable(error)
        code = 1
    flush()
    os._exit(code & 0xFF)
