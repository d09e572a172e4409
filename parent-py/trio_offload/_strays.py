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

from . import _frozen

Source: TypeAlias = "tuple[str | None, list[str] | None]"
"""The file of a module (None: it has none) and where its submodules are looked for (None: it is no package)."""


class Strays:
    """What has been found so far. A module is looked at once."""

    __slots__ = ("_count", "_found", "_last", "_seen")

    def __init__(self) -> None:
        self._count = 0
        self._last: str | None = None
        self._seen: dict[str, int] = {}
        self._found: dict[str, Source] = {}

    def find(self) -> dict[str, Source]:
        """All such modules by their names. Almost always there is none; asked before every call."""
        modules = sys.modules
        try:
            # A module that is added is the last one, and changes the number too unless another one has gone.
            last = next(reversed(modules))
        except RuntimeError:
            # Another thread has added one between the two steps of this.
            last = None
        if last != self._last or len(modules) != self._count:
            self._last, self._count = last, len(modules)
            self._look()
        return self._found

    def _look(self) -> None:
        # One name may stand for one module after the other.
        new: dict[str, Any] = {}
        for name, module in sys.modules.copy().items():
            if self._seen.get(name) != id(module):
                self._seen[name] = id(module)
                new[name] = module
        folders: set[str] = set()
        bootstrap = _frozen.bootstrap_modules()
        found = dict(self._found)
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
                folders = folders or _folders_of_path()
                if _lies_in(source, folders):
                    continue
            found[name] = source
        # A new dictionary: another thread may be pickling the one that was there.
        if found != self._found:
            self._found = found


def _folders_of_path() -> set[str]:
    entries: list[Any] = sys.path[:]
    return {os.path.abspath(entry) for entry in entries if isinstance(entry, str)}


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
