"""The number of processors that this process may use."""

from __future__ import annotations

import math
import os
import sys

from . import proc
from .cgroups import files


def usable_processors() -> int:
    """Return the number of processors that this process may use now, at least 1.

    Counts as :func:`os.process_cpu_count` of Python 3.13 does, on every Python: ``-X cpu_count`` or
    ``PYTHON_CPU_COUNT``, otherwise the processors of the affinity mask. The latter are bounded by
    the processor time that the control groups allow, rounded up.
    """
    configured = _configured_count()
    if configured is not None:
        return configured
    try:
        count = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        count = os.cpu_count() or 1
    return max(1, min([count, *map(math.ceil, _quotas())]))


def _configured_count() -> int | None:
    value = sys._xoptions.get("cpu_count")
    if value is None and not sys.flags.ignore_environment:
        value = os.environ.get("PYTHON_CPU_COUNT")
    if isinstance(value, str) and value.isdecimal() and int(value) > 0:
        return int(value)
    return None


def _quotas() -> list[float]:
    """Return the time that each control group above this process allows, in processors."""
    found: list[float] = []
    for path in files("cpu", "cpu.max", "cpu.cfs_quota_us"):
        words = proc.read_file(path).split()
        if path.endswith("_quota_us"):
            words += proc.read_file(path.replace("_quota_us", "_period_us")).split()
        # "max", and -1 in version 1, mean no limit.
        if len(words) == 2 and all(word.isdecimal() and int(word) > 0 for word in words):
            found.append(int(words[0]) / int(words[1]))
    return found
