"""The eager settings: the part of the parent's settings that a worker applies at once.

* Warning filters. A filter names a category of warnings. A worker does not import a module for its
  category, because its imports belong to the jobs. The filter stays pending until a job has
  imported the module; the category cannot be warned about earlier.
* The identity of the parent's ``__main__``.
* Changes of ``sys.path``.
* Modules loaded from explicit files (``file_modules.py``).
* coverage.py, if it measures the parent and was configured to measure the processes of
  multiprocessing. Workers count as such.
* Standard output that is a pipe to the parent (``output.py``).
* Levels of loggers, if the context forwards log records (``forwarding.py``).
"""

from __future__ import annotations

import sys

from .compat import ChangeOfWarningFilters, warning_filters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

pending = False
"""True if a filter still waits for its category. Checked before each job."""


def apply(settings: dict[str, Any]) -> None:
    """Apply the settings that the next job needs. Called for settings that are marked as eager."""
    main = sys.modules.get("trio_offload_worker._jobs.main_module")
    if main is not None:
        main.unload_stale(settings)
    path = settings.get("path")
    if path is not None:
        _follow_path(*path)
    modules = settings.get("modules", {})
    if modules or "trio_offload_worker._jobs.file_modules" in sys.modules:
        from .file_modules import install

        install(modules)
    if settings.get("coverage"):
        _start_coverage()
    _apply_filters(settings.get("warning_filters"))
    if settings.get("output"):
        from .output import write_at_once

        write_at_once()
    forwarding = settings.get("forwarding")
    if forwarding is not None or "trio_offload_worker._jobs.forwarding" in sys.modules:
        from .forwarding import follow

        follow(forwarding)


def _follow_path(before: Sequence[str], now: Sequence[str]) -> None:
    """Make ``sys.path`` follow the parent's. Entries that jobs added keep their end of the list."""
    path: list[Any] = sys.path
    known = set(before)
    own = [(place, entry) for place, entry in enumerate(path) if entry not in known]
    first = next((place for place, entry in enumerate(path) if entry in known), len(path))
    path[:] = [
        *(entry for place, entry in own if place < first),
        *now,
        *(entry for place, entry in own if place > first),
    ]


def _start_coverage() -> None:
    """Start coverage.py like ``coverage/multiproc.py``. It saves its data at Python's exit."""
    import coverage

    if coverage.Coverage.current() is None:
        measuring = coverage.Coverage(data_suffix=True, auto_data=True)
        # The modules loaded so far are Python's own.
        measuring._warn_preimported_source = False
        measuring.start()


def _apply_filters(wanted: list[list[Any]] | None) -> None:
    global pending
    if wanted is None:
        return
    with ChangeOfWarningFilters():
        _waiting.clear()
        filters = warning_filters()
        filters.clear()
        for place, entry in enumerate(wanted):
            _install_filter(filters, place, entry)
        pending = bool(_waiting)


def resolve_pending() -> None:
    """Install the pending filters whose categories have been imported."""
    global pending
    if not any(_find(entry[2]) is not None for entry in _waiting.values()):
        return
    with ChangeOfWarningFilters():
        filters = warning_filters()
        for place, entry in list(_waiting.items()):
            del _waiting[place]
            _install_filter(filters, place, entry)
        pending = bool(_waiting)


# Entries that wait for their category, and filters made from the others. The keys are indexes in
# the parent's list.
_waiting: Final[dict[int, list[Any]]] = {}
_made: Final[dict[int, tuple[Any, ...]]] = {}


def _install_filter(filters: list[Any], place: int, entry: list[Any]) -> None:
    action, message, category_name, module, line = entry
    category = _find(category_name)
    if category is None:
        _waiting[place] = entry
        return
    made = (action, _pattern(message), category, _pattern(module), line)
    # Insert it behind the nearest preceding filter of the parent. The first match decides, and a
    # job may have prepended filters or removed some.
    position = 0
    for earlier in range(place - 1, -1, -1):
        found = [index for index, present in enumerate(filters) if present is _made.get(earlier)]
        if found:
            position = found[0] + 1
            break
    _made[place] = made
    filters.insert(position, made)


def _find(name: str) -> Any:
    module_name, _, qualified_name = name.partition(":")
    found: Any = sys.modules.get(module_name)
    for part in qualified_name.split("."):
        # A module that is still being imported may lack the class.
        found = getattr(found, part, None)
    return found


def _pattern(value: Any) -> Any:
    """Return None or a string unchanged. Compile a list of a regular expression and its flags."""
    if value is None or isinstance(value, str):
        return value
    if "re" in sys.modules:
        import re

        return re.compile(value[0], value[1])
    return Pattern(value[0], value[1])


class Pattern:
    """A regular expression that is compiled on first use, usually by the first warning.

    Importing ``re`` takes half as long as the whole start of Python. NumPy alone installs three
    such filters in every program that uses it.
    """

    __slots__ = ("_compiled", "_text")

    def __init__(self, text: str, flags: int) -> None:
        self._text = text, flags
        self._compiled: Any = None

    def _real(self) -> Any:
        if self._compiled is None:
            import re

            self._compiled = re.compile(*self._text)
        return self._compiled

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    def __eq__(self, other: object) -> bool:
        return bool(self._real() == (other._real() if isinstance(other, Pattern) else other))

    def __hash__(self) -> int:
        return hash(self._real())

    def __repr__(self) -> str:
        return repr(self._real())

    def __reduce__(self) -> Any:
        import re

        return re.compile, self._text
