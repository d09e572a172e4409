"""What a worker must be told to become this interpreter: a snapshot, taken when the worker starts.

Two parts, see PROTOCOL.md. The HELLO is what has to be known before Python runs. The settings are what Python code in
the worker may need later, and mostly does not; :func:`current_settings` describes their keys.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Final, TypeAlias

import trio_offload_worker
from trio_offload_worker._protocol.frames import PROTOCOL_VERSION

from . import _frozen, _locate
from ._strays import Source, Strays
from ._version import __version__


def hello(
    libpython: str, environment: dict[bytes, bytes | None], *, forked: tuple[list[int], bool] | None = None
) -> dict[str, Any]:
    """The body of a HELLO.

    Args:
        libpython: the path of the libpython that belongs to this interpreter; empty if it has none.
        environment: the variables that were changed to start the worker, with the values that they get back.
        forked: the worker is forked off a template, which has had all that Python needs to start. Which of the standard streams
            come along, and whether the working directory does.
    """
    return {
        "protocol": PROTOCOL_VERSION,
        "parent_pid": os.getpid(),
        "version": sys.version,
        "libpython": os.fsencode(libpython),
        "environment": [[name, value] for name, value in environment.items()],
        "program_name": os.fsencode(_program_name()),
        "argv": _encoded(getattr(sys, "argv", ())),
        "orig_argv": _encoded(sys.orig_argv),
        "path": _encoded(sys.path),
        "warnoptions": _encoded(sys.warnoptions),
        "xoptions": [
            os.fsencode(name if value is True else f"{name}={value}")
            for name, value in sys._xoptions.items()
            if isinstance(name, str) and (value is True or isinstance(value, str))
        ],
        "pycache_prefix": None if sys.pycache_prefix is None else os.fsencode(sys.pycache_prefix),
        "flags": _flags(),
        **(_frozen.hello_keys() if forked is None else {"streams": forked[0]}),
        **({"directory": True} if forked is not None and forked[1] else {}),
        **({"free_threaded": True} if _locate.is_free_threaded() else {}),
    }


def environment() -> dict[bytes, bytes]:
    """A copy of :data:`os.environb`."""
    # That reads itself with Python code, at a microsecond for each variable, which the start of a forked worker would feel. The
    # dictionary behind it is not public; should a later Python have none, the copy is made in the public way.
    behind = getattr(os.environb, "_data", None)
    return behind.copy() if type(behind) is dict else dict(os.environb)


def loop_command() -> list[str]:
    """The command line of a worker that is a loop in Python: this interpreter, under the name and with the switches that it has.

    What is to be run begins with the program's name, because a list of processes is cut off at the right.
    """
    folder = os.path.dirname(os.path.dirname(os.path.abspath(trio_offload_worker.__file__)))
    # In another locale that Python may be unable to decode more than ASCII, and would run nothing.
    label = program_label().encode("ascii", "replace").decode()
    code = f"# trio-offload worker of {label}\n{_BOOTSTRAP}"
    return [_program_name(), *_interpreter_arguments(), "-c", code, folder, __version__]


def program_label() -> str:
    """What tells a person who looks at a list of processes whose worker one is: this program's name, in one short line."""
    first = next(iter(getattr(sys, "argv", ())), "")
    path = first.rstrip("/") if isinstance(first, str) else ""
    folder, name = os.path.split(path)
    if name == "__main__.py":
        # `python -m PACKAGE`.
        name = os.path.basename(folder) or name
    if name in ("", ".", "-c", "-m"):
        # Typed in: nothing tells more than which Python it is.
        name = os.path.basename(_program_name())
    # It may hold anything; a line break would end a comment in the loop's command line.
    shown = "".join(character if character.isprintable() else "?" for character in name[:_LONGEST_LABEL])
    encoding = sys.getfilesystemencoding()
    return shown.encode(encoding, "replace")[:_LONGEST_LABEL].decode(encoding, "ignore")


def _program_name() -> str:
    # Empty where Python was started under a name that leads to no program; from that name it has found all the rest.
    return sys.executable or (sys.orig_argv or [""])[0]


_LONGEST_LABEL: Final = 60  # bytes

# The first argument is the folder of the package, wherever this process has found it.
_BOOTSTRAP: Final = """\
import sys
# Nothing is to be found in the working directory, which -c puts there.
path = list(filter(None, sys.path))
sys.path[:] = [sys.argv[1], *path]
import trio_offload_worker
sys.path[:] = path
from trio_offload_worker import _loop
_loop.main(sys.argv[2])
"""


def _interpreter_arguments() -> list[str]:
    """The switches with which ``sys.executable`` becomes a Python like this one.

    What :func:`hello` says comes too late for these. (The standard library has the like of it, for multiprocessing, in
    ``subprocess._args_from_interpreter_flags``; but it leaves out what is meant for a main program only.)
    """
    flags = sys.flags
    letters = "d" * flags.debug + "v" * flags.verbose + "q" * flags.quiet + "b" * flags.bytes_warning + "O" * flags.optimize
    letters += "B" * bool(sys.dont_write_bytecode) + "S" * flags.no_site
    letters += "u" * bool(getattr(sys.__stdout__, "write_through", False))
    if flags.isolated:
        letters += "I"
    else:
        letters += "E" * flags.ignore_environment + "s" * flags.no_user_site + "P" * bool(getattr(flags, "safe_path", False))
    arguments = ["-" + letters] if letters else []
    options: dict[str, Any] = dict(sys._xoptions)
    if flags.dev_mode:
        options.setdefault("dev", True)
    if getattr(flags, "warn_default_encoding", False):
        options.setdefault("warn_default_encoding", True)
    if "utf8_mode" in (asked := _flags()):
        options["utf8"] = str(asked["utf8_mode"])
    if sys.pycache_prefix is not None:
        options["pycache_prefix"] = sys.pycache_prefix
    for name, value in options.items():
        arguments += ["-X", name if value is True else f"{name}={value}"]
    for option in sys.warnoptions:
        arguments += ["-W", option]
    return arguments


def current_settings() -> dict[str, Any]:
    """What ``trio_offload_worker`` may need, as builtin objects.

    * ``main``: how to load the user's main module, see :func:`main_plan`; and what it is like without being loaded:
      ``attributes``, ``spec`` and ``loader``
    * ``main_number``: which main module that is, counted: IPython's ``%run`` puts one after the other in its place
    * ``authkey``: the key with which multiprocessing's processes recognise each other, bytes; None if this process has
      not imported multiprocessing
    * ``resource_tracker``: the descriptor on which this process reaches multiprocessing's resource tracker, or None if it
      has started none
    * ``parent``: ``name`` and ``pid`` for :func:`multiprocessing.parent_process`
    * ``warning_filters``: the filters, if they are not those that Python starts with, else None; each a list of action,
      pattern of the message or None, ``module:qualified name`` of the category, pattern of the module or None, line
    * ``modules``: the modules that a worker would not find by their names, see :mod:`trio_offload._strays`
    * ``coverage``: whether coverage.py measures this process and was told to measure those of multiprocessing too
    """
    processes = sys.modules.get("multiprocessing.process")
    authkey, resource_tracker, modules, main_number, _ = changing_state()
    return {
        "main": main_plan() | _main_attributes(),
        "main_number": main_number,
        # Of multiprocessing's own type for it, which refuses to be pickled.
        "authkey": None if authkey is None else bytes(authkey),
        "resource_tracker": resource_tracker,
        "parent": {
            "name": processes.current_process().name if processes is not None else "MainProcess",
            "pid": os.getpid(),
        },
        "warning_filters": _warning_filters(),
        "modules": modules,
        "coverage": _measured_with_multiprocessing(),
    }


def new_settings(settings: dict[str, Any], told: ChangingState | None) -> dict[str, Any]:
    """Settings for a worker that has been told others before, when the state was ``told``.

    ``path`` is :data:`sys.path` as it was then and as it is now, if it has changed; it begins as HELLO says.
    """
    now = changing_state()[-1]
    before = now if told is None else told[-1]
    return settings if before == now else {**settings, "path": (before, now)}


def must_be_applied(settings: dict[str, Any]) -> bool:
    """Whether there is something in the settings that a worker has to act on before its first job."""
    return settings["warning_filters"] is not None or bool(settings["modules"]) or settings["coverage"]


ChangingState: TypeAlias = "tuple[bytes | None, int | None, dict[str, Source], int, tuple[str, ...]]"
"""``authkey``, ``resource_tracker``, ``modules`` and ``main_number`` of :func:`current_settings`; :data:`sys.path`."""


def changing_state() -> ChangingState:
    """What may change while a worker lives. As long as it does not, it is the very same object.

    Looked at before every call, so it imports nothing, and calls no function that it can do without.
    """
    modules = sys.modules
    count, last, main, processes, authkey, trackers, descriptor, path, state = _last_look.found
    try:
        if (
            len(modules) == count
            # As a rule the same objects, which are not compared further.
            and sys.path == path
            and modules["__main__"] is main
            # A module that is added is the last one, and changes the number too unless another one has gone.
            and next(reversed(modules)) is last
            and modules.get("multiprocessing.process") is processes
        ):
            if processes is None:
                return state
            if (
                processes.current_process().authkey is authkey
                and modules.get("multiprocessing.resource_tracker") is trackers
                and (trackers is None or trackers._resource_tracker._fd == descriptor)
            ):
                return state
    except (AttributeError, KeyError, RuntimeError):
        pass  # In the middle of an import, or of a change by another thread.
    return _last_look.again()


def main_plan() -> dict[str, Any]:
    """How a worker can load what ``__main__`` is here: a ``kind`` and what that kind needs.

    * ``path``: run the file ``path``
    * ``module``: run the module ``name`` (``python -m``)
    * ``archive``: run the ``__main__`` of the directory or zip file ``path``
    * ``code``: run ``code``, as ``marshal`` writes it, which was made of the file ``path`` (an app made by PyInstaller)
    * ``none``: it cannot; ``why`` completes the sentence «a __main__ that …»
    """
    bundle = _frozen.bundle()
    if bundle is not None and bundle.main is not None:
        return {"kind": "code", "code": bundle.main.code, "path": os.path.join(bundle.folder, f"{bundle.main.name}.py")}
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name == _PROMPT:
        return {"kind": "none", "why": "was typed in and has no file"}
    if spec is not None and spec.name != "__main__":
        return {"kind": "module", "name": spec.name}
    if spec is not None and spec.origin is not None:
        return {"kind": "archive", "path": os.path.abspath(os.path.dirname(spec.origin))}
    file = getattr(main, "__file__", None)
    if not isinstance(file, str):
        return {"kind": "none", "why": "was typed in and has no file"}
    path = os.path.join(_FIRST_DIRECTORY, file)
    if not os.path.isfile(path):
        return {"kind": "none", "why": f"has no file: there is no {path}"}
    return {"kind": "path", "path": path}


def filters_in_force(warnings: Any) -> list[tuple[Any, ...]]:
    """The list itself: that of the whole process, or of the current context if ``catch_warnings`` has changed it there only."""
    # The latter is what it does with `-X context_aware_warnings`, from Python 3.14 on. There is no public way to those filters; in
    # a later Python where this one is gone as well, those of the process have to do.
    if getattr(sys.flags, "context_aware_warnings", False) and hasattr(warnings, "_get_filters"):
        filters: list[tuple[Any, ...]] = warnings._get_filters()
    else:
        filters = warnings.filters
    return filters


def _main_attributes() -> dict[str, Any]:
    """What the main module has of the attributes that the import system gives to one, as builtin objects.

    * ``attributes``: their values, if those are text or None
    * ``spec``: the name, the origin and whether that is a place; None if the module has none
    * ``loader``: of the loaders for files the class, the name and the path; None for any other
    """
    values: dict[str, Any] = getattr(sys.modules.get("__main__"), "__dict__", {})
    spec = values.get("__spec__")
    loader: Any = values.get("__loader__")
    kind = type(loader).__name__
    return {
        "attributes": {name: values[name] for name in _PLAIN_ATTRIBUTES if isinstance(values.get(name, ...), str | None)},
        "spec": None if spec is None else (spec.name, spec.origin, spec.has_location),
        "loader": (kind, loader.name, loader.path) if kind in _FILE_LOADERS else None,
    }


_PLAIN_ATTRIBUTES: Final = ("__file__", "__cached__", "__package__", "__doc__")
_FILE_LOADERS: Final = ("SourceFileLoader", "SourcelessFileLoader")


class _MainModules:
    """How many modules have been ``__main__`` so far, as far as anybody has looked."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        # In one piece: of two threads that find another one at the same time neither counts it twice.
        self._last: tuple[object, int] = None, 0

    def number_of(self, main: object) -> int:
        """Return the number of this module, the last that anybody has found to be ``__main__``."""
        last, number = self._last
        if main is not last:
            number += 1
            self._last = main, number
        return number


class _LastLook:
    """What :func:`changing_state` found last, and what it would find otherwise if anything had changed."""

    __slots__ = ("found",)

    def __init__(self) -> None:
        # In one piece: several threads may look. The number of modules, the last one's name, the main module, multiprocessing's module
        # for processes, its authkey, its module for the resource tracker, the descriptor, `sys.path`, and what all this comes to.
        self.found: tuple[int, str | None, Any, Any, bytes | None, Any, int | None, list[Any], ChangingState] = (
            -1, None, None, None, None, None, None, [], (None, None, {}, 0, ()),
        )  # fmt: skip

    def again(self) -> ChangingState:
        modules = sys.modules
        count = len(modules)
        try:
            last = next(reversed(modules))
        except RuntimeError:
            # Another thread has added one between the two steps of this.
            last = None
        main = modules.get("__main__")
        main_number = _main_modules.number_of(main)
        # A copy: the list is changed in place.
        path: list[Any] = list(sys.path)
        strays = _strays.find(path)
        processes, trackers = modules.get("multiprocessing.process"), modules.get("multiprocessing.resource_tracker")
        authkey = descriptor = None
        if processes is not None:
            try:
                authkey = processes.current_process().authkey
                if trackers is not None:
                    descriptor = trackers._resource_tracker._fd
            except AttributeError:
                pass  # In the middle of its own import a module is there and its contents are not.
        entries = tuple(entry for entry in path if isinstance(entry, str))
        state = authkey, descriptor, strays, main_number, entries
        before = self.found[-1]
        if state == before:
            state = before
        self.found = count, last, main, processes, authkey, trackers, descriptor, path, state
        return state


# Since Python 3.13 the prompt is a module that runs as __main__, and what is typed in becomes part of it.
_PROMPT: Final = "_pyrepl.__main__"
_strays: Final = Strays()
_main_modules: Final = _MainModules()
_last_look: Final = _LastLook()

# A script's __file__ may be relative to the directory in which Python was started.
_FIRST_DIRECTORY: Final = os.getcwd() if os.path.isdir(".") else "/"


def _encoded(values: Any) -> list[bytes]:
    """Strings as the operating system has them. What is no string (a Path in sys.path) means nothing to Python either."""
    return [os.fsencode(value) for value in values if isinstance(value, str)]


def _flags() -> dict[str, int]:
    flags = sys.flags
    values = {
        "isolated": flags.isolated,
        "use_environment": not flags.ignore_environment,
        "dev_mode": flags.dev_mode,
        "site_import": not flags.no_site,
        "user_site_directory": not flags.no_user_site,
        "write_bytecode": not sys.dont_write_bytecode,
        "optimization_level": flags.optimize,
        "verbose": flags.verbose,
        "quiet": flags.quiet,
        "bytes_warning": flags.bytes_warning,
        "parser_debug": flags.debug,
        "warn_default_encoding": getattr(flags, "warn_default_encoding", 0),
        # There is no flag for -u; a text stream over an unbuffered one writes through.
        "buffered_stdio": not getattr(sys.__stdout__, "write_through", False),
    }
    told = "utf8" in sys._xoptions or (_frozen.bundle() is not None and sys.getfilesystemencoding() != "utf-8")
    if flags.utf8_mode or told or sys.version_info >= (3, 15):
        # The locale decides nothing from Python 3.15 on (PEP 686). Before that, where nobody has asked for either, the worker decides
        # by the locale, as every Python does (PEP 540). The program may have set LC_ALL to C since, for the output of others: a
        # worker that is told to be without UTF-8 would be in ASCII.
        # An app made by PyInstaller does not decide by the locale alone, so there it may have been left out on purpose.
        values["utf8_mode"] = flags.utf8_mode
    if not flags.hash_randomization:
        # Hashes start from zero. An app made by PyInstaller for Python 3.14 or newer is so without a variable that tells.
        values["hash_randomization"] = 0
    if hasattr(flags, "safe_path"):
        values["safe_path"] = flags.safe_path
    if hasattr(sys, "get_int_max_str_digits"):
        values["int_max_str_digits"] = sys.get_int_max_str_digits()
    if hasattr(sys, "get_lazy_imports"):
        values["lazy_imports"] = sys.get_lazy_imports() == "all"
    return {name: int(value) for name, value in values.items()}


def _measured_with_multiprocessing() -> bool:
    """Whether coverage.py runs here with ``concurrency = multiprocessing``.

    The mark that it leaves on the module is how it knows itself (coverage/multiproc.py), and the variable is where the
    processes that it starts are told its configuration file. Asked for in another way (``patch = subprocess``,
    COVERAGE_PROCESS_START) it starts in a worker by itself, as in any Python.
    """
    processes = sys.modules.get("multiprocessing")
    return getattr(processes, "_coverage$patched", False) is True and "COVERAGE_RCFILE" in os.environ


def _warning_filters() -> list[list[Any]] | None:
    warnings = sys.modules.get("warnings")
    if warnings is None:
        return None
    filters = [
        [action, _pattern(message), f"{category.__module__}:{category.__qualname__}", _pattern(module), line]
        for action, message, category, module, line in filters_in_force(warnings)
    ]
    return None if filters == _DEFAULT_FILTERS else filters


def _pattern(value: Any) -> Any:
    """The text of a filter's pattern. One that Python's C code put there is a plain string, to be matched as a whole."""
    return value if value is None or isinstance(value, str) else [value.pattern, value.flags]


# What Python starts with, see init_filters() in Python/_warnings.c. A debug build starts with none.
_DEFAULT_FILTERS: Final = [
    ["default", None, "builtins:DeprecationWarning", "__main__", 0],
    ["ignore", None, "builtins:DeprecationWarning", None, 0],
    ["ignore", None, "builtins:PendingDeprecationWarning", None, 0],
    ["ignore", None, "builtins:ImportWarning", None, 0],
    ["ignore", None, "builtins:ResourceWarning", None, 0],
]
