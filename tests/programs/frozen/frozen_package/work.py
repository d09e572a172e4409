"""Jobs in a collected package, and with package data."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys


class Refused(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def double(number: int) -> int:
    return 2 * number


def has(name: str) -> bool:
    """Return whether the app has a package that nothing here imports."""
    return importlib.util.find_spec(name) is not None


def has_span() -> bool:
    # PyInstaller must not see that this package imports it.
    trace = importlib.import_module("opentelemetry.trace")
    return bool(trace.get_current_span().get_span_context().is_valid)


def refuse(number: int) -> None:
    raise Refused(number)


def words() -> list[str]:
    import importlib.resources

    file = importlib.resources.files("frozen_package") / "data" / "words.txt"
    return file.read_text(encoding="utf-8").split()


def hooks() -> dict[str, object]:
    """What PyInstaller's own runtime hooks change, one after the other."""
    before = [name for name in ("inspect", "pkgutil", "multiprocessing") if name in sys.modules]
    modules = {
        name: importlib.import_module(name) for name in ("inspect", "pkgutil", "multiprocessing.spawn", "multiprocessing")
    }
    return {
        "there before": before,
        "inspect": modules["inspect"].getsourcefile.__name__,
        "pkgutil": [module.name for module in modules["pkgutil"].iter_modules([os.path.dirname(__file__)])],
        "multiprocessing": modules["multiprocessing.spawn"].freeze_support.__name__,
        "name": modules["multiprocessing"].current_process().name.rpartition("-")[0],
        "parent": getattr(modules["multiprocessing"].parent_process(), "pid", None) == os.getppid(),
    }


def resource_tracker() -> int | None:
    """The descriptor that leads to a resource tracker of multiprocessing's, if this process has started one."""
    module = sys.modules.get("multiprocessing.resource_tracker")
    return None if module is None else module._resource_tracker._fd


def busy() -> None:
    print("busy", flush=True)
    while True:
        pass
