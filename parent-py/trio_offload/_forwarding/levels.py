"""The levels of this program's loggers, as workers mirror them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

# A key in the root logger's cache of levels. Each change of a level empties the caches of all
# loggers, so a look at this key replaces a look at each logger.
_MARK: Final[Any] = "trio_offload"


class Mirror:
    """The levels for the workers of a context.

    It notices levels that are set by ``setLevel`` or :func:`logging.disable`, as ``logging`` does.
    """

    def __init__(self, thresholds: Mapping[str, int], kept: Sequence[str] = ()) -> None:
        self._thresholds = dict(thresholds)
        self._kept = list(kept)
        self._generation = -1
        self._settings: dict[str, Any] = {}

    def current(self) -> dict[str, Any]:
        """Return the settings for workers, as builtin objects: the same until a level changes.

        * ``thresholds``: the smallest level that is forwarded, by the name of the logger
        * ``levels``: the levels that loggers get in a worker; ``""`` stands for the root
        * ``disable``: the argument of :func:`logging.disable`, if workers follow it
        * ``kept``: the names of a worker's handlers that get forwarded records too, if any
        """
        generation = _current_generation()
        if generation != self._generation:
            settings = self._collect() | ({"kept": self._kept} if self._kept else {})
            if settings != self._settings:
                self._settings = settings
            self._generation = generation
        return self._settings

    def _collect(self) -> dict[str, Any]:
        thresholds, root = self._thresholds, logging.root
        disabled = root.manager.disable
        levels = {
            name: logger.level
            for name, logger in list(root.manager.loggerDict.items())
            if isinstance(logger, logging.Logger) and logger.level
        }
        threshold = thresholds.get("")
        if threshold is not None and len(thresholds) == 1:
            return {
                "thresholds": thresholds,
                "levels": {"": root.level, **levels},
                # A record below the threshold then costs a job the look at this number.
                "disable": max(disabled, threshold - 1),
            }
        # Other loggers of the worker remain as they are.
        levels = {name: level for name, level in levels.items() if any(_is_below(name, one) for one in thresholds)}
        for name in thresholds:
            levels[name] = logging.getLogger(name).getEffectiveLevel()
        return {
            "thresholds": thresholds,
            "levels": {name: max(level, disabled + 1) for name, level in levels.items()},
            "disable": None,
        }


def _is_below(name: str, ancestor: str) -> bool:
    return not ancestor or name.startswith(f"{ancestor}.")


def _current_generation() -> int:
    """Return a number that grows when a level changes."""
    global _generation
    cache: Any = getattr(logging.root, "_cache", None)
    if cache is None or _MARK not in cache:
        if cache is not None:
            # Before the levels are read: a change after this removes it again.
            cache[_MARK] = True
        _generation += 1
    return _generation


_generation = 0
