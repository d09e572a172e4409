"""Warnings of jobs: this program's filters decide about each, once for all workers of a context."""

from __future__ import annotations

import pickle
import sys
import traceback
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trio_offload_worker._protocol.frames import Frame


class Warner:
    """Warns of the warnings of a context's jobs."""

    def __init__(self) -> None:
        # By the file. Each notes the warnings that were shown, as a module's `__warningregistry__`.
        self._registries: dict[str, dict[Any, Any]] = {}

    def warn(self, worker: Any, frame: Frame) -> None:
        """Handle a warning of a worker's running job.

        If a filter makes it an error, or showing it fails, the error is printed.
        """
        try:
            text, classes, pickled, file, line, module = pickle.loads(frame.segments[0])
            category = _find_category(classes)
            message: Any = text
            if f"{category.__module__}:{category.__qualname__}" != classes[0]:
                message = f"{classes[0].rpartition(':')[2]}: {text}"
            elif pickled is not None:
                message = _load(pickled, text)
            registry = self._registries.setdefault(file, {})
            warnings.warn_explicit(message, category, file, line, module, registry)
        except Exception:
            if sys.stderr is not None:
                print(f"--- Error while a warning of worker {worker.process.pid} was shown ---", file=sys.stderr)
                traceback.print_exc()


def _find_category(classes: list[str]) -> type[Warning]:
    """Return the first of these classes that this program has imported.

    To import another could run any code in the event loop.
    """
    for name in classes:
        module, _, path = name.partition(":")
        found: Any = sys.modules.get(module)
        for part in path.split("."):
            found = getattr(found, part, None)
        if isinstance(found, type) and issubclass(found, Warning):
            return found
    return UserWarning


def _load(pickled: bytes, text: str) -> Any:
    """Return the warning, or its text if the pickle fails."""
    try:
        return pickle.loads(pickled)
    except Exception:
        return text
