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
import gc
import os
import sys

from ._handlers import complain
from ._protocol.frames import Kind
from ._protocol.segments import Collector

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any, Final, NoReturn

    from ._handlers import Handlers
    from ._protocol.frames import Buffer


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
        self._core = _import_pickle_core()
        self._inherited = inherited
        self._handlers = handlers
        self._process = os.getpid()
        self._settings = Settings(self._core.loads)
        self._retire: Callable[[], Any] | None = None
        self._trampoline: Any = None
        # `trio_offload_worker._settings`, while it may still have something to do.
        self._pending_settings: Any = None

    def set_up(self, eager: bool, segments: list[Any]) -> Answer | None:
        """Take the settings and call ``init``; what is to be said if that failed."""
        settings, init, retire = segments
        try:
            self._handlers.release()
            self._settings.replace(bytes(settings))
            if self._inherited is None:
                _install_main(self._core, self._settings)
            if not _adopt_imported(self._settings):
                sys.meta_path.insert(0, _MultiprocessingFinder(self._settings))
            if eager:
                self._apply_settings()
            function = self._callable(init) if self._inherited is None else self._inherited.init
            if function is not None:
                outcome = self._guarded(function, ())
                _refuse_asynchronous(function, outcome)
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
                _describe_main(self._settings)
            _adopt_imported(self._settings)
            if eager:
                self._apply_settings()
        except BaseException as error:
            complain(error)

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
            _refuse_asynchronous(function, value)
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
            _refuse_asynchronous(retire, verdict)
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
                    code = compile("lambda function, arguments: function(*arguments)", "<trio-offload>", "eval")
                    self._trampoline = eval(code, sys.modules["__main__"].__dict__)
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
            from ._pickling import dumps

            parts: Sequence[Buffer] = dumps(value, error)
            return Answer(Kind.RESULT, [len(part) for part in parts], None, parts)
        parts, lengths, types = collector.segments()
        return Answer(Kind.RESULT, lengths, {"types": types} if types else None, parts)

    def _apply_settings(self) -> None:
        from . import _settings

        _settings.apply(self._settings.get())
        self._pending_settings = _settings

    def _describe(self, error: BaseException, stage: str, kind: Kind) -> Answer:
        """The exception as the parent gets it. Nothing in here may fail, whatever the exception's class does."""
        segments: list[bytes] = []
        try:
            if self._inherited is not None and self._inherited.handled is not None:
                _part(error, self._inherited.handled)
            from ._exceptions import dump

            segments, type_name, message, traceback = dump(error, stage)
        except BaseException as problem:
            type_name = type(error).__qualname__
            try:
                message = str(error).encode("utf-8", "backslashreplace").decode()
            except BaseException:
                message = ""
            traceback = f"{type_name}: {message}\n(the worker could not describe it further: {type(problem).__name__})\n"
        body = {"stage": stage, "type": clip(type_name), "message": clip(message), "traceback": clip(traceback)}
        return Answer(kind, [len(segment) for segment in segments], body, segments)


class Settings:
    """The settings that came last, unpickled whenever they are asked for: that is seldom more than once."""

    def __init__(self, loads: Callable[[bytes], Any]) -> None:
        self._loads = loads
        self._pickled = b""

    def replace(self, pickled: bytes) -> None:
        self._pickled = pickled

    def get(self) -> dict[str, Any]:
        settings: dict[str, Any] = self._loads(self._pickled) if self._pickled else {}
        return settings


def clip(text: str) -> str:
    """Cut a text to what a message carries, and say so at its end: a job may raise with a novel as its message."""
    if len(text) <= _TEXT_LIMIT // 4:
        return text
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= _TEXT_LIMIT:
        return text
    return data[: _TEXT_LIMIT - 16].decode("utf-8", "ignore") + " … (cut)"


def flush() -> None:
    """Write out what has been printed. A closed or broken stream is the user's affair, and Python says so at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass


def _job_context() -> Any:
    """The context variables of a job, which begin as those that the worker has."""
    context = _contextvars.copy_context()
    if len(context):
        from ._contexts import part

        part(context)
    return context


_BUILTIN: Final = type(len)
_TEXT_LIMIT: Final = 2**20  # bytes


def _begun(retire: Any) -> Any:
    """An inherited ``retire``. One of ``retire_when`` counts from here on, as its pickle would make it do."""
    if retire is None or type(retire).__module__ != "trio_offload_worker._retire":
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


def _import_pickle_core() -> Any:
    """Import ``_pickle`` without the import of ``functools`` that it makes, which draws in ``collections`` and five more.

    All that it wants of it is ``partial`` (Modules/_pickle.c, ``_Pickle_InitState``), and that is the one of the builtin
    module ``_functools``. So it gets this under the name that it asks for, and for that moment only.
    """
    if "functools" in sys.modules:
        import _pickle

        return _pickle
    import _functools  # type: ignore[import-not-found]

    stand_in: Any = type(sys)("functools")
    stand_in.partial = _functools.partial
    sys.modules["functools"] = stand_in
    try:
        import _pickle
    finally:
        if sys.modules.get("functools") is stand_in:
            del sys.modules["functools"]
    return _pickle


def _install_main(core: Any, settings: Settings) -> None:
    """``__main__`` looks like the program's and is empty until something uses the user's script; see ``_stand_in.py``.

    It answers to the name ``__mp_main__`` too, as in the processes of multiprocessing.
    """
    global _stand_in
    _stand_in = main = sys.modules["__main__"]
    any_use = not _intercept_unpickler(core, settings)

    def find(name: str) -> Any:
        # The import system and introspection ask for these of any module (`__path__`, `__wrapped__`, …).
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(f"module '__main__' has no attribute '{name}'")
        from ._stand_in import look_up

        return look_up(name, settings.get, any_use, sys._getframe(1))

    main.__dict__["__getattr__"] = find
    _describe_main(settings)
    sys.modules["__mp_main__"] = main


_stand_in: ModuleType | None = None


def _describe_main(settings: Settings) -> None:
    """Give the stand-in for the main module the attributes that the module has in the parent."""
    if _stand_in is None:
        return
    plan = settings.get().get("main") or {}
    values = _stand_in.__dict__
    values.update(plan.get("attributes") or {})
    if plan.get("loader") is not None:
        kind, name, path = plan["loader"]
        values["__loader__"] = getattr(sys.modules["_frozen_importlib_external"], kind)(name, path)
    if plan.get("spec") is not None:
        name, origin, has_location = plan["spec"]
        spec = sys.modules["_frozen_importlib"].ModuleSpec(name, values.get("__loader__"), origin=origin)
        spec.has_location = has_location
        values["__spec__"] = spec


def _intercept_unpickler(core: Any, settings: Settings) -> bool:
    """Have the script loaded before any unpickler looks for a name in ``__main__``; whether that could be done.

    Each unpickler calls the method ``find_class`` for a name (Modules/_pickle.c), also the ones that no class of Python's is
    derived from. So that method of the class in C is replaced, which takes the dictionary behind the class. It stays replaced:
    Python's cache of methods would not hear of the change back.
    """
    attributes = next((one for one in gc.get_referents(core.Unpickler.__dict__) if type(one) is dict), {})
    original: Any = attributes.get("find_class")
    seen = False

    def find_class(self: Any, module: str, name: str, /) -> Any:
        nonlocal seen
        seen = True
        if module == "__main__" or module == "__mp_main__":
            loaded = sys.modules.get("trio_offload_worker._main")
            if loaded is None or not loaded.is_loaded():
                from ._main import load

                load(settings.get())
        return original(self, module, name)

    if original is not None:
        attributes["find_class"] = find_class
        core.loads(b"cbuiltins\nbool\n.")
        if not seen:
            # Somebody has unpickled before, and the cache has the other one.
            attributes["find_class"] = original
    return seen


def _adopt_imported(settings: Settings) -> bool:
    """Give ``multiprocessing`` the process's identity if it is imported; whether it is."""
    if "multiprocessing.process" not in sys.modules:
        return False
    from ._multiprocessing import adopt

    adopt(settings.get())
    return True


class _MultiprocessingFinder:
    """First on ``sys.meta_path``; knows one name. Once that is looked for it is gone from there."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "multiprocessing.process":
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        from ._multiprocessing import find_spec

        return find_spec(self._settings.get(), name, path, target)


async def _coroutine() -> None: ...


async def _asynchronous_generator() -> Any:
    yield


_made: Any = _coroutine()
# As the module `types` finds them, which is not imported for that.
_ASYNCHRONOUS: Final = (type(_made), type(_asynchronous_generator()))
_made.close()
del _made


def _refuse_asynchronous(function: Any, value: Any) -> None:
    """A coroutine or an asynchronous generator is closed, so that Python does not complain of its never having been awaited."""
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
        "an event loop could run. Await it in your own task, or pass a synchronous function (one that calls trio.run, if it must)"
    )


def _leave_forked_copy(error: BaseException | None) -> NoReturn:
    """A job has forked and its function has come to its end in the copy too: that copy has no socket and no caller.

    It ends as a forked Python does, without the exit handlers, which are the original's.
    """
    code = 0
    if isinstance(error, SystemExit):
        code = 0 if error.code is None else error.code if isinstance(error.code, int) else 1
    elif error is not None:
        complain(error)
        code = 1
    flush()
    os._exit(code & 0xFF)
