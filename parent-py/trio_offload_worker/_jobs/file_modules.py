"""Modules that the parent loaded from files which the import system would not find.

A worker imports them from the same files under the same names when a job names one, see
``trio_offload._interpreter.file_modules``.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final


def install(modules: dict[str, tuple[str | None, list[str] | None]]) -> None:
    """Make these modules importable.

    Args:
        modules: maps each name to the module's file, and to a package's search locations.
    """
    _known.clear()
    _known.update(modules)
    if _Finder not in sys.meta_path:
        # The last finder, so that the usual import system takes precedence.
        sys.meta_path.append(_Finder)


_known: Final[dict[str, tuple[str | None, list[str] | None]]] = {}


class _Finder:
    """A finder for the names that the parent has sent."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        known = _known.get(name)
        if known is None:
            return None
        import importlib.machinery
        import importlib.util

        file, locations = known
        if file is None:
            package = importlib.machinery.ModuleSpec(name, None, is_package=True)
            package.submodule_search_locations = locations
            return package
        spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=locations)
        if spec is None:
            # The extension is unknown, so the parent has loaded the file explicitly as Python
            # source.
            loader = importlib.machinery.SourceFileLoader(name, file)
            spec = importlib.util.spec_from_file_location(name, file, loader=loader, submodule_search_locations=locations)
        return spec
