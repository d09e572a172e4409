"""Modules that are loaded here and that a worker would not find by their names, with the files that they are of.

pytest's ``--import-mode=importlib`` makes such modules, and whoever loads plugins from a file by
:func:`importlib.util.spec_from_file_location`. A worker is told their files and imports them from there when a job names one:
under the same name, so that what is pickled on either side is found on the other.

Only what lies where the import system would not look counts; that is decided by the folders alone, because to ask the
finders for every module would take longer than the start of a worker. A module that some finder of its own has (an editable
install) may be told without need, which does no harm: a worker asks its finders first.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Final, TypeAlias

import attrs

from . import frozen as _frozen

Source: TypeAlias = "tuple[str | None, list[str] | None]"
"""The file of a module (None: it has none) and where its submodules are looked for (None: it is no package)."""


class Strays:
    """What has been found so far. A module is looked at once."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        # In one piece: several threads may look, and each goes by what one of them has found as a whole.
        self._last = _Look(0, None, [], {}, {})

    def find(self, path: list[Any]) -> dict[str, Source]:
        """All such modules by their names, with this ``sys.path``. Almost always there is none."""
        modules = sys.modules
        try:
            # A module that is added is the last one, and changes the number too unless another one has gone.
            last = next(reversed(modules))
        except RuntimeError:
            # Another thread has added one between the two steps of this.
            last = None
        before = self._last
        if path != before.path:
            # What was found on the path may have been taken off it, and the other way round.
            before = _Look(0, None, path, {}, {})
        if last != before.last or len(modules) != before.count:
            self._last = before = _look(len(modules), last, before)
        return before.found


@attrs.frozen
class _Look:
    count: int
    """How many modules there were."""
    last: str | None
    path: list[Any]
    """``sys.path``; a copy."""
    seen: dict[str, int]
    """The modules that have been looked at, by their names; one name may stand for one after the other."""
    found: dict[str, Source]


def _look(count: int, last: str | None, before: _Look) -> _Look:
    """Look at what is new since. Nothing of ``before`` is changed: another thread may be pickling it, or looking too."""
    new: dict[str, Any] = {}
    seen = before.seen.copy()
    for name, module in sys.modules.copy().items():
        if seen.get(name) != id(module):
            seen[name] = id(module)
            new[name] = module
    folders: set[str] = set()
    bootstrap = _frozen.bootstrap_modules()
    found = before.found.copy()
    # A package comes before its submodules, whatever the order of their imports.
    for name in sorted(new):
        package, _, rest = name.partition(".")
        if name in _MAIN or (rest and package not in found):
            # What is in a package that can be found can be found.
            continue
        if name in bootstrap:
            # Of no file at all, though their specs name one; a worker has been handed them.
            continue
        source = _source(new[name])
        if source is None:
            continue
        if not rest:
            folders = folders or _folders_of(before.path)
            if _lies_in(source, folders):
                continue
        found[name] = source
    return _Look(count, last, before.path, seen, before.found if found == before.found else found)


def _folders_of(path: list[Any]) -> set[str]:
    return {os.path.abspath(entry) for entry in path if isinstance(entry, str)}


_MAIN: Final = ("__main__", "__mp_main__")  # a worker has its own way to these


def _source(module: Any) -> Source | None:
    """Where a module is from; None if no file says so: built in, or made by a program."""
    try:
        spec = module.__spec__
        if spec is None:
            file, places = module.__file__, getattr(module, "__path__", None)
        else:
            file, places = (spec.origin if spec.has_location else None), spec.submodule_search_locations
        locations = None if places is None else [place for place in places if isinstance(place, str)]
    except Exception:
        # A module may be anything that somebody has put there.
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
