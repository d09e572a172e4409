"""The options of a context and of a ``map``: names, types, defaults and checks, each stated once.

A new option of a context is a field of :class:`ContextOptions` and a paragraph in the docstring of
:func:`~trio_offload.open_worker_context`. Everything else follows: the three functions that take
the options, their signatures, and the attributes of :class:`~trio_offload.WorkerContext`. An option
of ``map`` is a field of :class:`MapSettings`, an entry of ``MapOptions``, and a paragraph too.

A converter normalises a value and passes on any that it cannot convert. The validator, which knows
the option's name, rejects that. All values have been converted when the first validator runs.

Annotations are evaluated here: `typing.get_type_hints` reads them from functions of other modules.
"""

import enum
import functools
import inspect
import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal, ParamSpec, TypedDict, TypeVar

import attrs

from . import _sizes
from ._documented import PublicEnumType, documented
from ._limiter import Limiter

Parameters = ParamSpec("Parameters")
ReturnType = TypeVar("ReturnType")
FunctionType = TypeVar("FunctionType", bound=Callable[..., Any])

MIN_REPORT_INTERVAL: Final = 0.01  # seconds; memory use changes little in less


@documented
class WorkerType(str, enum.Enum, metaclass=PublicEnumType):
    """How a context starts its workers.

    ::

        kind = trio_offload.WorkerType.FORKSERVER if sys.platform == "linux" else "spawn"
        async with trio_offload.open_worker_context(worker_type=kind) as context:
            print(await context.run_sync(parse, path))
    """

    SPAWN = "spawn"
    """A worker is a new process of the worker executable, independent of this program's memory."""

    FORKSERVER = "forkserver"
    """A worker is forked from a template, a process with the modules of ``forkserver_preload``.

    It starts in a tenth of the time and shares memory with the template. Requirements: Linux and
    the worker executable; ``trio-offload doctor`` checks both.

    The context keeps two more processes: the template, and a standby process that becomes the next
    worker. Each takes three open files.

    A worker receives this program's current state when it starts: working directory, environment,
    standard streams, ``sys.path``, ``sys.argv`` and warning filters. All other state is fixed when
    the template starts, at the context's first call. Examples are interpreter flags (``-X`` and
    others), encoding and buffering of the streams, the seed of ``hash()``, resource limits, umask
    and priorities.

    Each worker reseeds :mod:`random` and NumPy's global generator. Any other generator that a
    preloaded module creates yields the same numbers in all workers. Exit handlers of preloaded
    modules run when a worker exits.
    """

    FORK = "fork"
    """A worker is a fork of this process. For experiments.

    It inherits all objects of this process. ``init`` and ``retire`` are inherited as well, so
    lambdas, closures and methods of objects with locks work. Calls are pickled as always. Names in
    them refer to the inherited modules; ``__main__`` is not run again. If ``__main__`` has changed
    since the fork, the next call that mentions it gets a new worker. Other changes in this process
    do not reach existing workers. A worker runs the exit handlers of its jobs, not this process's.

    Forking a process has risks, which ``SPAWN`` avoids:

    * Threads: only the forking thread exists in the worker. A lock that another thread held, in
      Python or in a C library, stays locked. The first job that needs it hangs. Python 3.12 and
      later warn about this; trio-offload suppresses that warning.
    * Libraries with threads or devices (CUDA, OpenMP, gRPC, most system libraries of macOS) break
      in a fork. Use them in workers only.
    * File descriptors: a worker inherits all of them, except Trio's and other workers'. A
      connection closed here stays open there. Both sides share a file's position.
    * Buffers: data that this process wrote to a file but did not flush may be written twice.
      Standard output and standard error are flushed before the fork.
    * Random numbers: each worker reseeds :mod:`random`. ``numpy.random`` and other generators yield
      the same numbers in all workers, unless ``init`` seeds them.
    * Memory: a page is shared until one side writes to it, and a reference count is a write.
      Inherited memory counts towards ``memory_limit`` and :func:`retire_when`. Inherited reference
      cycles are not collected.
    * Time: the fork blocks the event loop while the kernel copies page tables (``docs/fork.md``).
    """


def _plain_number(value: float) -> float:
    """Convert other real numbers (NumPy's, fractions): Trio's clock takes only int and float."""
    number: Any = value
    if not isinstance(number, (int, float)) and isinstance(number, numbers.Real):
        return float(number)
    return value


def _optional_number(value: float | None) -> float | None:
    return None if value is None else _finite(_plain_number(value))


def _finite(value: float | None) -> float | None:
    return None if value == math.inf else value


def _member(value: WorkerType | Literal["spawn", "forkserver", "fork"]) -> WorkerType:
    try:
        return WorkerType(value)
    except ValueError:
        return value  # type: ignore[return-value]  # for the validator


def _bytes(value: int | str | None) -> int | None:
    return None if value is None else _sizes.parse_size(value, "memory_limit")


def _levels(value: bool | int | str | Mapping[str, int | str] | None) -> Mapping[str, int] | None:
    return _sizes.parse_levels(value)


def _absolute_path(value: str | os.PathLike[str] | None) -> str | None:
    try:
        # The working directory may have changed before the path is used.
        return None if value is None else os.path.abspath(os.fsdecode(value))
    except TypeError:
        return value  # type: ignore[return-value]  # for the validator


def _names(value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, (str, bytes)):
        return value  # type: ignore[return-value]  # for the validator
    try:
        return tuple(value)
    except TypeError:
        return value  # type: ignore[return-value]  # for the validator


def _seconds(**rules: Any) -> Any:
    """Return a validator for a number of seconds, by the rules of :func:`._sizes.check_seconds`."""
    return lambda _, field, value: _sizes.check_seconds(field.name, value, **rules)


def _check_type(options: object, attribute: "attrs.Attribute[WorkerType]", value: object) -> None:
    if not isinstance(value, WorkerType):
        raise ValueError(
            f"{attribute.name} must be WorkerType.SPAWN, WorkerType.FORKSERVER or WorkerType.FORK, or 'spawn', 'forkserver' or "
            f"'fork', got {value!r}"
        )


def _check_names(options: "ContextOptions", attribute: "attrs.Attribute[tuple[str, ...]]", value: object) -> None:
    _sizes.check_names(attribute.name, value, "module" if attribute.name == "forkserver_preload" else "thread")
    if value and options.worker_type is not WorkerType.FORKSERVER:
        raise ValueError(f"{attribute.name} must be empty unless worker_type=WorkerType.FORKSERVER, got {value!r}")


def _check_handlers(options: "ContextOptions", attribute: "attrs.Attribute[tuple[str, ...]]", value: object) -> None:
    _sizes.check_names(attribute.name, value, "handler")
    if value and options.forward_logging is None:
        raise ValueError(f"{attribute.name} must be empty without forward_logging, got {value!r}")


def _check_threads(options: object, attribute: "attrs.Attribute[tuple[str, ...]]", value: tuple[str, ...]) -> None:
    if not all(value):
        raise ValueError(f"{attribute.name} must contain thread names, got the empty string in {value!r}")


_CALLABLE: Final[Any] = lambda _, field, value: _sizes.check_callable(field.name, value)  # noqa: E731
_PATH: Final[Any] = lambda _, field, value: _sizes.check_path(field.name, value)  # noqa: E731
_LIMIT: Final = _seconds(hint=". Use math.inf for no limit")
_INTERVAL: Final = _seconds(at_least=MIN_REPORT_INTERVAL, hint=". Use math.inf for no reports")
_REPORT: Final[Any] = attrs.validators.optional(_seconds(positive=True, hint=". Use None for no report"))
_SECONDS_OR_NONE: Final = attrs.validators.optional(_seconds())
_COUNT_FROM_ZERO: Final = attrs.validators.and_(lambda _, field, value: _sizes.check_count(field.name, value, at_least=0))
_MODULES: Final[Any] = lambda _, field, value: _sizes.check_modules(field.name, value)  # noqa: E731
_COUNT_OR_NONE: Final = attrs.validators.optional(lambda _, field, value: _sizes.check_count(field.name, value))


@documented
@attrs.frozen(eq=False, slots=False)
class ContextOptions:
    """How the workers of a context start, work and exit.

    The first five may be positional; trio-parallel has the same five.
    """

    idle_timeout: float = attrs.field(default=600.0, converter=_plain_number, validator=_LIMIT)
    """Seconds after which an idle worker exits. :data:`math.inf` keeps it."""

    init: Callable[[], Any] = attrs.field(default=bool, validator=_CALLABLE)
    """Function that each worker calls before its first job."""

    retire: Callable[[], Any] = attrs.field(default=bool, validator=_CALLABLE)
    """Function that a worker calls after each job. If it returns a true value, the worker exits."""

    grace_period: float = attrs.field(default=30.0, converter=_plain_number, validator=_LIMIT)
    """Seconds that workers get to exit when the context closes. Then they are killed."""

    worker_type: WorkerType = attrs.field(default=WorkerType.SPAWN, converter=_member, validator=_check_type)
    """How workers are started."""

    memory_limit: int | None = attrs.field(default=None, kw_only=True, converter=_bytes)
    """Bytes that a job may use, with its child processes. None means unlimited."""

    min_idle: int = attrs.field(default=0, kw_only=True, validator=_COUNT_FROM_ZERO)
    """Number of idle workers to keep ready for the next calls."""

    report_interval: float = attrs.field(default=1.0, kw_only=True, converter=_plain_number, validator=_INTERVAL)
    """Seconds between a worker's reports while a job runs. :data:`math.inf` disables them."""

    max_waiting_jobs: int = attrs.field(default=1000, kw_only=True, validator=_COUNT_FROM_ZERO)
    """Number of jobs that may wait for this program while other jobs have their tokens."""

    stall_report: float | None = attrs.field(default=60.0, kw_only=True, converter=_optional_number, validator=_REPORT)
    """Seconds without progress after which waits of all jobs are logged. None means never."""

    forward_logging: Mapping[str, int] | None = attrs.field(default=None, kw_only=True, converter=_levels)
    """Levels from which log records of jobs are handled here, by logger. None means never."""

    keep_handlers: tuple[str, ...] = attrs.field(default=(), kw_only=True, converter=_names, validator=_check_handlers)
    """Handlers of workers that handle these records too, by name."""

    output: Literal["inherit", "lines"] | Callable[[str | None, str, bytes], Any] = attrs.field(
        default="inherit", kw_only=True, validator=lambda _, field, value: _sizes.check_output(field.name, value)
    )
    """What becomes of the text that workers write to standard output and standard error."""

    crash_dir: str | None = attrs.field(default=None, kw_only=True, converter=_absolute_path, validator=_PATH)
    """Directory for crash records. None means disabled."""

    trace: str | None = attrs.field(default=None, kw_only=True, converter=_absolute_path, validator=_PATH)
    """File for a trace of the run, in the Chrome trace-event format. None means disabled."""

    report: str | None = attrs.field(default=None, kw_only=True, converter=_absolute_path, validator=_PATH)
    """File for an HTML page about the run, written when the context closes. None means disabled."""

    forkserver_preload: tuple[str, ...] = attrs.field(
        default=(), kw_only=True, converter=_names, validator=[_check_names, _MODULES]
    )
    """Modules that the template imports. For :attr:`WorkerType.FORKSERVER` only."""

    forkserver_threads: tuple[str, ...] = attrs.field(
        default=(), kw_only=True, converter=_names, validator=[_check_names, _check_threads]
    )
    """Threads that may run in the template when it forks. For the same type only."""


def _truth(value: bool) -> bool:
    return bool(value)


def _chunk_size(value: int | Literal["auto"]) -> int | None:
    if isinstance(value, str) and value == "auto":
        return None
    _sizes.check_count("chunk_size", value, alternative=" or 'auto'")
    return value


def _check_timeout(settings: "MapSettings", attribute: "attrs.Attribute[float | None]", value: float | None) -> None:
    if value is None:
        return
    _sizes.check_seconds(attribute.name, value, positive=True)
    if settings.chunk_size not in (1, None):
        raise ValueError(
            f"chunk_size must be 1 or 'auto' with a timeout, got {settings.chunk_size!r}. A slow item would "
            "otherwise end other items of its chunk"
        )


class MapOptions(TypedDict, total=False):
    """The options of ``map`` for type checkers, without the two that select an overload."""

    ordered: bool
    chunk_size: int | Literal["auto"]
    timeout: float | None
    grace: float | None
    workers: int | None
    window: int | None
    limiter: Limiter | None
    progress: Callable[[float, float | None, str | None], object] | None


@attrs.frozen(kw_only=True, eq=False, slots=False)
class MapSettings:
    """The options of one ``map``, with their defaults, checked."""

    ordered: bool = attrs.field(default=True, converter=_truth)
    """True if results come in the order of the items."""

    chunk_size: int | None = attrs.field(default=1, converter=_chunk_size)
    """Number of items that travel together. None means "auto": chosen by measurement."""

    timeout: float | None = attrs.field(default=None, converter=_finite, validator=_check_timeout)
    """Seconds that an item may take. None means unlimited."""

    grace: float | None = attrs.field(default=None, validator=_SECONDS_OR_NONE)
    """Seconds that an item has to end by itself before its worker is killed. None means no time."""

    return_outcomes: bool = attrs.field(default=False, converter=_truth)
    """True if each result is an :class:`outcome.Outcome`."""

    return_items: bool = attrs.field(default=False, converter=_truth)
    """True if each result comes in a tuple behind its item."""

    workers: int | None = attrs.field(default=None, validator=_COUNT_OR_NONE)
    """Largest number of workers. None means as many as the limiter has tokens."""

    window: int | None = attrs.field(default=None, validator=_COUNT_OR_NONE)
    """Largest number of items between source and consumer. None means one that suits them."""

    limiter: Limiter | None = None
    """Async context manager that each busy worker enters. None means the default."""

    progress: Callable[[float, float | None, str | None], object] | None = None
    """Function that is told the progress. The map checks it."""


def takes_options(
    options: Callable[Parameters, ContextOptions],
) -> Callable[[Callable[[ContextOptions], ReturnType]], Callable[Parameters, ReturnType]]:
    """Give a function that takes a :class:`ContextOptions` the parameters of that class.

    Type checkers, :func:`inspect.signature` and :func:`help` see each of them.
    """
    parameters = _signature(options)

    def decorate(function: Callable[[ContextOptions], ReturnType]) -> Callable[Parameters, ReturnType]:
        @functools.wraps(function)
        def wrapper(*args: Parameters.args, **kwargs: Parameters.kwargs) -> ReturnType:
            try:
                checked = options(*args, **kwargs)
            except TypeError:
                from ._slips import check_binding

                check_binding(function.__name__, parameters, args, kwargs)
                raise
            return function(checked)

        returned = inspect.unwrap(function).__annotations__["return"]
        _publish(wrapper, parameters.replace(return_annotation=returned))
        return wrapper

    return decorate


def takes_map_options(function: FunctionType) -> FunctionType:
    """Show the fields of :class:`MapSettings` in the signature, in place of ``**options``."""
    signature = inspect.signature(function)
    own = list(signature.parameters.values())[:-1]
    _publish(function, signature.replace(parameters=[*own, *_signature(MapSettings).parameters.values()]))
    return function


def map_settings(options: dict[str, Any], function: str = "map") -> MapSettings:
    """Return the settings for the keyword arguments of a ``map`` or ``starmap``.

    Raises:
        TypeError, ValueError: an option is wrong.
    """
    try:
        return MapSettings(**options)
    except TypeError:
        from ._slips import check_binding

        check_binding(function, _signature(MapSettings), (), options)
        raise


_signature: Final = functools.cache(inspect.signature)  # each saves 20 µs of the import


def _publish(function: Any, signature: inspect.Signature) -> None:
    """Set the function's signature, for :mod:`inspect` and :mod:`typing`."""
    function.__signature__ = signature
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in signature.parameters.values()}
    function.__annotations__["return"] = signature.return_annotation
