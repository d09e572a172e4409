"""Jobs for ``test_libraries.py``, to be imported by name in a worker."""

from __future__ import annotations

import os
import sys
from typing import Any

_kept: dict[str, Any] = {}


def keep(value: Any, *, many: list[Any]) -> None:
    """For an ``init``."""
    _kept.update(value=value, many=many)


def kept() -> tuple[int, dict[str, Any]]:
    return os.getpid(), _kept


def is_unlike(value: Any) -> bool:
    """For a ``retire``: whether what was kept is something else."""
    return bool((_kept["value"] != value).any())


def path() -> tuple[int, list[str]]:
    return os.getpid(), sys.path


def add_to_path(first: str, last: str) -> None:
    sys.path[:] = [first, *sys.path, last]
