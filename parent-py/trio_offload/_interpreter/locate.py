"""Find the worker executable and this interpreter's libpython.

Both are searched for in an ordered list of places. The first place wins; the error lists all of
them. The result does not change while this interpreter runs, so each search is made once.

Without a shared libpython a worker is a second process of this interpreter, with a loop in Python
(``trio_offload_worker._loop.main``): :func:`runtime`.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Final

import attrs

from .._exceptions import LocateError
from . import frozen

EXECUTABLE: Final = "trio-offload-worker"
OVERRIDE: Final = "TRIO_OFFLOAD_WORKER"
_LOADED: Final = "loaded by this interpreter"
_HOW_TO_GET_EXECUTABLE: Final = (
    "It is installed together with this package; `pip install --force-reinstall trio-offload` restores it"
)


@attrs.frozen
class Found:
    """A file, and the place where it was found."""

    path: str
    how: str


@attrs.frozen
class WorkerRuntime:
    """How workers run here.

    They run the worker ``executable`` with ``libpython``, or a loop in Python if both are empty.
    """

    executable: str
    libpython: str
    reason: str
    is_loaded: bool = False
    """True if this program has loaded the libpython too."""

    @property
    def is_native(self) -> bool:
        """True if workers run the executable."""
        return bool(self.executable)


def runtime() -> WorkerRuntime:
    """Return how workers run here.

    Raises:
        LocateError: they cannot. The message names the missing part and the remedy.
    """
    frozen.refuse_unsupported()
    refuse_untried_build()
    try:
        library = libpython()
    except LocateError:
        if not interpreter():
            raise
        return WorkerRuntime("", "", _no_libpython())
    reason = "the worker executable and the libpython of this interpreter are there"
    found = _search_libpython()[0]
    return WorkerRuntime(worker_executable(), library, reason, found is not None and found.how == _LOADED)


def is_free_threaded() -> bool:
    """Return True if this is a free-threaded build (PEP 703), also while its GIL is on."""
    return "t" in getattr(sys, "abiflags", "")


def refuse_untried_build() -> None:
    """Refuse builds of Python with which workers of any type, forks included, were not tested.

    Raises:
        LocateError: this is such a build.
    """
    if is_free_threaded():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise LocateError(
            f"this Python is a free-threaded build of {version}, with which trio-offload is untested: run the program with "
            f"the build that has a GIL (python{version}, not python{version}t)"
        )


def worker_executable() -> str:
    """Return the path of the worker executable.

    Raises:
        LocateError: it is in none of the places; the message lists them.
    """
    return find_worker_executable().path


def libpython() -> str:
    """Return the path of this interpreter's shared libpython.

    Raises:
        LocateError: it is in none of the places; the message lists them and the remedies.
    """
    return find_libpython().path


def interpreter() -> str:
    """Return the path of this interpreter; empty if it cannot be started as Python again.

    ``sys.executable`` of a frozen program, and of one that embeds Python, often is that program. A
    worker would start the program again.
    """
    # `sys.executable` may be a name that is not a program's.
    path = sys.executable if os.path.exists(sys.executable or "") else os.path.realpath("/proc/self/exe")
    named = any("python" in os.path.basename(name).lower() for name in (path, os.path.realpath(path)))
    return path if named and not getattr(sys, "frozen", False) and _may_execute(path) else ""


def _may_execute(path: str) -> bool:
    # `os.access` checks the real user by default, and the effective user starts programs.
    return os.access(path, os.X_OK, effective_ids=os.access in os.supports_effective_ids)


@functools.cache
def find_worker_executable() -> Found:
    """Return the result of :func:`worker_executable` with its place."""
    frozen.refuse_unsupported()
    looked: list[str] = []
    for path, how in _executable_places():
        if path in looked:
            continue
        looked.append(path)
        if os.path.isfile(path):
            if not _may_execute(path):
                raise LocateError(f"{path} may not be executed; {_remedy_for_execution(path)}")
            return Found(path, how)
    raise LocateError(
        f"the worker executable ({EXECUTABLE}) was not found. "
        + (frozen.how_to_get_executable() or _HOW_TO_GET_EXECUTABLE)
        + f", or set {OVERRIDE} to its path. Looked at:\n"
        + _listing(looked)
    )


def find_libpython() -> Found:
    """Return the result of :func:`libpython` with its place."""
    frozen.refuse_unsupported()
    found, looked = _search_libpython()
    if found is None:
        raise LocateError(
            f"{_no_libpython()}, and a worker needs it. {'. '.join(remedies())}. Looked at:\n" + _listing(looked)
        )
    return found


@functools.cache
def _search_libpython() -> tuple[Found | None, list[str]]:
    """Return the libpython or None, and the places.

    None is cached too, because each start asks.
    """
    loaded = _loaded_libpython()
    if loaded is not None:
        return Found(loaded, _LOADED), []
    looked: list[str] = []
    for path in _libpython_places():
        if path in looked:
            continue
        looked.append(path)
        if os.path.isfile(path):
            return Found(os.path.realpath(path), "beside this interpreter, by its build variables"), []
    return None, looked


def remedies() -> list[str]:
    """Return how to get a shared libpython, one remedy for each kind of Python."""
    number = sys.version.split()[0]
    return [
        f"On Debian and Ubuntu: apt-get install libpython{sys.version_info.major}.{sys.version_info.minor}",
        f'With pyenv: PYTHON_CONFIGURE_OPTS="--enable-shared" pyenv install --force {number}',
        "Built by hand: ./configure --enable-shared",
    ]


def _no_libpython() -> str:
    return f"there is no shared libpython that belongs to {sys.executable} ({sys.version.split()[0]})"


def _remedy_for_execution(path: str) -> str:
    status = os.stat(path)
    if not status.st_mode & 0o111:
        return f"give it back its mode with: chmod +x {path}"
    return (
        f"its mode ({status.st_mode & 0o7777:o}, owner {status.st_uid}) permits some users. Is user {os.getuid()}, who runs this "
        "program, one of them? Is its file system mounted noexec? Does a security policy forbid it? Permit all users (chmod a+x), "
        f"or install trio-offload on a file system for programs; {OVERRIDE} can name another copy"
    )


def _executable_places() -> Iterator[tuple[str, str]]:
    # With -E and -I Python ignores the environment, and so does this.
    override = "" if sys.flags.ignore_environment else os.environ.get(OVERRIDE)
    if override:
        yield os.path.abspath(override), f"named by {OVERRIDE}"
        return
    bundled = frozen.bundle()
    if bundled is not None:
        yield os.path.join(bundled.folder, EXECUTABLE), "in this app's bundle"
        return
    # The executable that was installed with this package comes first: the environment may have
    # another release. pip puts scripts beside the library folder. This package is
    # <prefix>/lib/pythonX.Y/site-packages/trio_offload (also with --user and Debian's /usr/local),
    # or <target>/trio_offload with --target.
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # Other folders above the package may be writable by other users.
    folder = os.path.dirname(package)
    yield os.path.join(folder, "bin", EXECUTABLE), "in the scripts beside this package"
    prefix = _prefix_of(folder)
    if prefix is not None:
        yield os.path.join(prefix, "bin", EXECUTABLE), "in the scripts beside this package"
    yield os.path.join(sys.prefix, "bin", EXECUTABLE), "in the scripts of this environment"
    yield from ((path, "in the scripts that the package's own record names") for path in _recorded_executables())
    # A checkout, used in place.
    checkout = os.path.dirname(folder)
    if os.path.basename(folder) == "parent-py":
        yield os.path.join(checkout, "target", "release", EXECUTABLE), "built in this checkout"


def _prefix_of(library_folder: str) -> str | None:
    """Return PREFIX of ``PREFIX/lib/pythonX.Y/site-packages``. None means another folder."""
    above, name = os.path.split(library_folder)
    above, python = os.path.split(above)
    prefix, library = os.path.split(above)
    if name in ("site-packages", "dist-packages") and python.startswith("python") and library in ("lib", "lib64"):
        return prefix
    return None


def _recorded_executables() -> Iterator[str]:
    # A slow import that is seldom needed.
    import importlib.metadata

    try:
        files = importlib.metadata.files("trio-offload") or ()
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name == EXECUTABLE:
            yield os.path.normpath(str(file.locate()))


def _loaded_libpython() -> str | None:
    """Return the libpython that this interpreter runs from. None means linked statically.

    It is the file that holds the interpreter's own objects. Its name proves little: an extension
    module that was linked with another libpython loads that one too.
    """
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}".encode()
    address = id(int)
    try:
        with open("/proc/self/maps", "rb") as maps:
            for line in maps:
                fields = line.rstrip(b"\n").split(None, 5)
                first, last = (int(number, 16) for number in fields[0].split(b"-"))
                if first <= address < last:
                    path = fields[5] if len(fields) == 6 else b""
                    return os.fsdecode(path) if os.path.basename(path).startswith(name) else None
    except OSError:
        pass
    return None


def _libpython_places() -> Iterator[str]:
    import sysconfig

    names = _existing(
        sysconfig.get_config_var("INSTSONAME"),
        sysconfig.get_config_var("LDLIBRARY"),
        f"libpython{sys.version_info.major}.{sys.version_info.minor}{getattr(sys, 'abiflags', '')}.so.1.0",
    )
    base = os.path.dirname(os.path.dirname(os.path.realpath(getattr(sys, "_base_executable", sys.executable))))
    multiarch = sysconfig.get_config_var("MULTIARCH")
    folders = _existing(
        # Beside the interpreter first: a relocated build (uv's standalone Pythons, conda) has paths
        # of another machine in its variables.
        os.path.join(base, "lib"),
        os.path.join(sys.base_exec_prefix, "lib"),
        sysconfig.get_config_var("LIBDIR"),
        os.path.join(sys.base_exec_prefix, "lib", multiarch) if multiarch else None,
        os.path.join(sys.base_exec_prefix, "lib64"),
        sysconfig.get_config_var("LIBPL"),
    )
    for folder in folders:
        for name in names:
            if ".so" in name or ".dylib" in name:
                yield os.path.join(folder, name)


def _existing(*values: str | None) -> list[str]:
    return [value for value in dict.fromkeys(values) if value]


def _listing(paths: Iterable[str]) -> str:
    return "\n".join(f"  {path}" for path in paths)
