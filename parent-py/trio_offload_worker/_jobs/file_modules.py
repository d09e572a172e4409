"""Modules that the parent has loaded from files where the import system does not look.

They are imported here from the same files and under the same names, when a job names one; see ``trio_offload._interpreter.file_modules``.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final


def install(modules: dict[str, tuple[str | None, list[str] | None]]) -> None:
    """Let these be imported: ``modules`` maps each name to the file, and to where a package's submodules are looked for."""
    _known.clear()
    _known.update(modules)
    if _Finder not in sys.meta_path:
        # The last to be asked: what can be found in the usual way is.
        sys.meta_path.append(_Finder)


_known: Final[dict[str, tuple[str | None, list[str] | None]]] = {}


class _Finder:
    """Knows the names that the parent has told, and no other."""

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
            # The extension says nothing, so somebody has said there that it is Python.
            loader = importlib.machinery.SourceFileLoader(name, file)
            spec = importlib.util.spec_from_file_location(name, file, loader=loader, submodule_search_locations=locations)
        return spec
