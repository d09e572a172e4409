"""The part of the parent's settings that a worker takes over at once.

Its warning filters: a filter names a category of warnings. A category of a module that is not imported here is not imported for that: a
worker's import graph is the jobs' own. Its filter stays pending until a job has imported the module; no warning of the
category can be given before.

Which module its ``__main__`` is by now. What has changed in its ``sys.path``. The modules that it has from files of its own choice (``file_modules.py``); and coverage.py, if that measures the parent and was
told to do so with the processes of multiprocessing: a worker counts as one.
"""

from __future__ import annotations

import sys

from .compat import ChangeOfWarningFilters, warning_filters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

pending = False
"""Whether a filter still waits for its category. Looked at before each job."""


def apply(settings: dict[str, Any]) -> None:
    """Take over what has to be in force before the next job; called for settings that are marked as eager."""
    main = sys.modules.get("trio_offload_worker._jobs.main_module")
    if main is not None:
        main.forget_others(settings)
    path = settings.get("path")
    if path is not None:
        _follow_path(*path)
    modules = settings.get("modules", {})
    if modules or "trio_offload_worker._jobs.file_modules" in sys.modules:
        from .file_modules import install

        install(modules)
    if settings.get("coverage"):
        _measure()
    _apply_filters(settings.get("warning_filters"))


def _follow_path(before: Sequence[str], now: Sequence[str]) -> None:
    """Make ``sys.path`` what it is in the parent. What jobs have put there stays at the end of it where they have put it."""
    path: list[Any] = sys.path
    known = set(before)
    own = [(place, entry) for place, entry in enumerate(path) if entry not in known]
    first = next((place for place, entry in enumerate(path) if entry in known), len(path))
    path[:] = [
        *(entry for place, entry in own if place < first),
        *now,
        *(entry for place, entry in own if place > first),
    ]


def _measure() -> None:
    """As the processes of multiprocessing do it (coverage/multiproc.py); what was measured is saved at Python's end."""
    import coverage

    if coverage.Coverage.current() is None:
        measuring = coverage.Coverage(data_suffix=True, auto_data=True)
        # The modules that are here already are Python's own.
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
            _take(filters, place, entry)
        pending = bool(_waiting)


def resolve_pending() -> None:
    """Put those filters in place whose categories have been imported meanwhile."""
    global pending
    if not any(_find(entry[2]) is not None for entry in _waiting.values()):
        return
    with ChangeOfWarningFilters():
        filters = warning_filters()
        for place, entry in list(_waiting.items()):
            del _waiting[place]
            _take(filters, place, entry)
        pending = bool(_waiting)


# The entries without a category yet, and the filters made from the others, by their place in the parent's list.
_waiting: Final[dict[int, list[Any]]] = {}
_made: Final[dict[int, tuple[Any, ...]]] = {}


def _take(filters: list[Any], place: int, entry: list[Any]) -> None:
    action, message, category_name, module, line = entry
    category = _find(category_name)
    if category is None:
        _waiting[place] = entry
        return
    made = (action, _pattern(message), category, _pattern(module), line)
    # Behind the nearest of the parent's filters that stands before it: the first that matches decides, and a job may have
    # put its own in front or taken some away.
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
        # In the middle of its own import a module may not have the class yet.
        found = getattr(found, part, None)
    return found


def _pattern(value: Any) -> Any:
    """``None`` and a plain string stand for themselves; a list is a regular expression with its flags."""
    if value is None or isinstance(value, str):
        return value
    if "re" in sys.modules:
        import re

        return re.compile(value[0], value[1])
    return Pattern(value[0], value[1])


class Pattern:
    """A regular expression that is compiled when something is asked of it, the first warning as a rule.

    The import of ``re`` takes half as long as the whole start of Python, and NumPy, for one, puts three such filters in place
    in every program that uses it.
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
