"""The user's code in a worker in Python: unpickle, call, pickle. What ``executor.rs`` is to the worker executable.

Rules that the code below keeps:

* whatever the user's code raises, a ``BaseException`` of any kind, becomes the answer to the call;
* the function, its arguments and the result are dropped before the next frame is waited for;
* what a job printed is out before its caller goes on;
* a job has context variables of its own, which begin as those that ``init`` and imports have set;
* a copy of the process that a job forked off never comes back into the session;
* nothing is imported that the jobs have not asked for.
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
    """What is to be said to a call."""

    __slots__ = ("body", "kind", "lengths", "parts")

    def __init__(self, kind: Kind, lengths: list[int], body: dict[str, Any] | None, parts: Sequence[Buffer]) -> None:
        self.kind = kind
        self.lengths = lengths
        self.body = body
        self.parts = parts


class Inherited:
    """What a fork of the parent has from it without a pickle: its functions (None: nothing to call), and the exception that
    was being handled there, which the copy cannot get rid of."""

    __slots__ = ("handled", "init", "retire")

    def __init__(self, init: Callable[[], Any] | None, retire: Callable[[], Any] | None) -> None:
        self.init = init
        self.retire = retire
        self.handled = sys.exc_info()[1]


class Executor:
    """Everything of the user's that a worker keeps."""

    def __init__(self, handlers: Handlers, inherited: Inherited | None = None) -> None:
        self._core = import_pickle_core()
        self._inherited = inherited
        self._handlers = handlers
        self._process = os.getpid()
        self._settings = Settings(self._core.loads)
        self._retire: Callable[[], Any] | None = None
        self._trampoline: Any = None
        # `trio_offload_worker._jobs.settings`, while it may still have something to do.
        self._pending_settings: Any = None

    def set_up(self, eager: bool, segments: list[Any]) -> Answer | None:
        """Take the settings and call ``init``; what is to be said if that failed."""
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
            # After `init`: it may look at what the worker holds by then.
            self._retire = self._callable(retire) if self._inherited is None else _begun(self._inherited.retire)
            self._handlers.hold()
        except BaseException as error:
            self._handlers.hold()
            return self._describe(error, "setup", Kind.SETUP_FAILED)
        finally:
            flush()
        self._handlers.begin_jobs()
        return None

    def replace_settings(self, eager: bool, segments: list[Any]) -> None:
        """Other settings instead of those of SETUP. Nobody waits for an answer; Python has a place for such errors."""
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
        """Unpickle, call, pickle. Nothing that the user's code does keeps it from giving an answer."""
        stage = "unpickle"
        try:
            self._handlers.release()
            job = self._load(segments)
            if type(job) is not tuple or len(job) != 2 or type(job[1]) is not tuple:
                raise TypeError(
                    "what the parent sent is not a function with its arguments; this is an error in trio-offload"
                )
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

    def settle(self) -> tuple[bool, str]:
        """The answer has been sent: ask the user's ``retire``. Whether to leave, and why if it raised."""
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
        """An empty pickle, and one of ``None``, stand for nothing to call."""
        return self._core.loads(pickled) if len(pickled) else None

    def _guarded(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """Call a function of the user's; a copy of this process that it has forked off ends here."""
        try:
            if type(function) is _BUILTIN:
                # `eval` and its like look at the frame that calls them; to them it has to be the user's main module.
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
        """The exception as the parent gets it."""
        try:
            if self._inherited is not None and self._inherited.handled is not None:
                _part(error, self._inherited.handled)
        except BaseException:
            pass  # The exception's class forbids it.
        segments, type_name, message, traceback = describe(error, stage)
        body = {"stage": stage, "type": type_name, "message": message, "traceback": traceback}
        return Answer(kind, [len(segment) for segment in segments], body, segments)


def _job_context() -> Any:
    """The context variables of a job, which begin as those that the worker has."""
    context = _contextvars.copy_context()
    if len(context):
        from .._jobs.contexts import part

        part(context)
    return context


_BUILTIN: Final = type(len)


def _begun(retire: Any) -> Any:
    """An inherited ``retire``. One of ``retire_when`` counts from here on, as its pickle would make it do."""
    if retire is None or type(retire).__module__ != "trio_offload_worker._jobs.retire":
        return retire
    make, arguments = retire.__reduce__()
    return make(*arguments)


def _part(error: BaseException, handled: BaseException) -> None:
    """Python takes what a job raises for raised while the parent's exception is handled: it still is, in frames that never go on."""
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
    """A job has forked and its function has come to its end in the copy too: that copy has no socket and no caller.

    It ends as a forked Python does, without the exit handlers, which are the original's.
    """
    code = 0
    if isinstance(error, SystemExit):
        code = 0 if error.code is None else error.code if isinstance(error.code, int) else 1
    elif error is not None:
        report_unraisable(error)
        code = 1
    flush()
    os._exit(code & 0xFF)
