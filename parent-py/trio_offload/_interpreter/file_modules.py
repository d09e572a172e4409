"""Modules loaded from files that the import system would not find.

pytest's ``--import-mode=importlib`` makes such modules, and so do plugin loaders that call
:func:`importlib.util.spec_from_file_location`. A worker gets their paths, and imports a module
under the same name when a job needs it. So both sides find the same objects by name.

A module counts if its file lies outside of the folders that the import system searches. The finders
themselves are not asked, which would take longer than the start of a worker. A module of a special
finder (an editable install) may be listed needlessly; a worker asks its finders first.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Final, TypeAlias

import attrs

from . import frozen

_MAIN: Final = ("__main__", "__mp_main__")  # workers load these differently

Source: TypeAlias = "tuple[str | None, list[str] | None]"
"""Path of the module, or None; the folders of its submodules, or None if it is not a package."""


class FileModules:
    """The modules found so far. Each module is examined once."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        # One object, because several threads may search: each uses a complete result.
        self._last = _Search(0, None, [], {}, {})

    def find(self, path: list[Any]) -> dict[str, Source]:
        """Return these modules by their names, for this ``sys.path``. Usually empty."""
        modules = sys.modules
        try:
            # A new module is the last one, and changes the number unless another was removed.
            last = next(reversed(modules))
        except RuntimeError:
            # Another thread has added a module between the two steps.
            last = None
        before = self._last
        if path != before.path:
            # The path has changed, so every module must be examined again.
            before = _Search(0, None, path, {}, {})
        if last != before.last or len(modules) != before.count:
            self._last = before = _search(len(modules), last, before)
        return before.found


@attrs.frozen
class _Search:
    count: int
    """Number of modules."""
    last: str | None
    path: list[Any]
    """``sys.path``; a copy."""
    seen: dict[str, int]
    """Identity of the examined module of each name; a module may be replaced."""
    found: dict[str, Source]


def _search(count: int, last: str | None, before: _Search) -> _Search:
    """Examine the new modules. ``before`` stays unchanged, because another thread may use it."""
    new: dict[str, Any] = {}
    seen = before.seen.copy()
    for name, module in sys.modules.copy().items():
        if seen.get(name) != id(module):
            seen[name] = id(module)
            new[name] = module
    folders: set[str] = set()
    bootstrap = frozen.bootstrap_modules()
    found = before.found.copy()
    # Sorted, so that a package comes before its submodules.
    for name in sorted(new):
        package, _, rest = name.partition(".")
        if name in _MAIN or (rest and package not in found):
            # The submodules of an importable package are importable.
            continue
        if name in bootstrap:
            # Their specs name files that do not exist; a worker has them already.
            continue
        source = _source(new[name])
        if source is None:
            continue
        if not rest:
            folders = folders or _folders_of(before.path)
            if _lies_in(source, folders):
                continue
        found[name] = source
    return _Search(count, last, before.path, seen, before.found if found == before.found else found)


def _folders_of(path: list[Any]) -> set[str]:
    return {os.path.abspath(entry) for entry in path if isinstance(entry, str)}


def _source(module: Any) -> Source | None:
    """Return the source of a module. None means built in, or made by a program."""
    try:
        spec = module.__spec__
        if spec is None:
            file, places = module.__file__, getattr(module, "__path__", None)
        else:
            file, places = (spec.origin if spec.has_location else None), spec.submodule_search_locations
        locations = None if places is None else [place for place in places if isinstance(place, str)]
    except Exception:
        # A program may put any object into sys.modules.
        return None
    if file is not None and not isinstance(file, str):
        return None
    return None if file is None and not locations else (file, locations)


def _lies_in(source: Source, folders: set[str]) -> bool:
    file, locations = source
    if file is None:
        return all(os.path.dirname(place) in folders for place in locations or ())
    folder = os.path.dirname(file)
    return folder in folders or (locations is not None and os.path.dirname(folder) in folders)
