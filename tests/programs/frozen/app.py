"""The app that `test_frozen.py` builds: does everything that a job may do in it, and prints what came of it as JSON."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import sys

import trio
from frozen_package import work

import trio_offload

FACTS = ("prefix", "exec_prefix", "base_prefix", "executable", "argv", "path", "flags", "_MEIPASS", "frozen", "warnoptions")
# Extension modules that need a library each; imported by name, and collected as hidden imports.
WITH_LIBRARIES = ("ssl", "sqlite3", "zlib", "lzma", "bz2", "ctypes")


class Point:
    def __init__(self, x: int) -> None:
        self.x = x


def square(number: int) -> int:
    return number * number


def moved(point: Point) -> Point:
    return Point(point.x + 1)


def where() -> list[object]:
    module = sys.modules["__main__"]
    return [
        __name__, __file__, name_from_the_hook, module is sys.modules["__mp_main__"],  # type: ignore[name-defined]  # noqa: F821
        module.__loader__.get_code("__main__").co_name,  # type: ignore[union-attr]
    ]  # fmt: skip


def facts() -> dict[str, str]:
    return {name: repr(getattr(sys, name)) for name in FACTS} | {"hook": getattr(sys, "effect_of_the_hook", "")}


def libraries() -> list[str]:
    for name in WITH_LIBRARIES:
        importlib.import_module(name)
    with open("/proc/self/maps") as maps:
        return sorted({line.split(None, 5)[5].rstrip("\n") for line in maps if "/" in line and ".so" in line})


def spawned(number: int) -> int:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work.double, (number,))


def child_environment() -> dict[str, str]:
    """As a program sees it that a job starts."""
    import subprocess

    lines = subprocess.run(["env", "-0"], stdout=subprocess.PIPE, check=True).stdout.split(b"\0")
    return dict(os.fsdecode(line).split("=", 1) for line in lines if line)


async def all_jobs() -> dict[str, object]:
    run_sync = trio_offload.run_sync
    seen: dict[str, object] = {
        "builtin": await run_sync(abs, -3),
        # Before anything else has been imported there.
        "modules": await run_sync(eval, "sorted(__import__('sys').modules)"),
        "package": await run_sync(work.double, 21),
        "data": await run_sync(work.words),
        "main": await run_sync(square, 7),
        "where": await run_sync(where),
        "environment": dict(os.environ) == await run_sync(eval, "dict(__import__('os').environ)"),
        "libraries": await run_sync(libraries),
    }
    point = await run_sync(moved, Point(1))
    seen["class of main"] = isinstance(point, Point) and point.x
    try:
        await run_sync(work.refuse, 5)
    except work.Refused as error:
        seen["exception"] = error.number
    mine, theirs = facts(), await run_sync(facts)
    seen["facts"] = {name: [mine[name], theirs[name]] for name in mine if mine[name] != theirs[name]}
    seen["hook"] = theirs["hook"]
    async with trio_offload.open_worker_context() as context:
        seen["hooks"] = await context.run_sync(work.hooks)
    # As the bootloader of an app with a splash screen sets it.
    os.environ["_PYI_SPLASH_IPC"] = "4711"
    async with trio_offload.open_worker_context() as context:
        seen["splash"] = await context.run_sync(os.getenv, "_PYI_SPLASH_IPC")
    del os.environ["_PYI_SPLASH_IPC"]
    seen["closure"] = await closure()
    seen["trackers"] = [work.resource_tracker(), await run_sync(work.resource_tracker)]
    if "--environment" in sys.argv:
        # As an app does before it starts the system's programs (PyInstaller's manual, «LD_LIBRARY_PATH considerations»).
        os.environ.pop("LD_LIBRARY_PATH", None)
        async with trio_offload.open_worker_context() as context:
            theirs_now = await context.run_sync(child_environment)
            seen["restored environment"] = theirs_now.get("LD_LIBRARY_PATH")
            seen["libraries then"] = await context.run_sync(libraries)
    if "--multiprocessing" in sys.argv:
        seen["spawn in the app"] = await trio.to_thread.run_sync(spawned, 4)
        seen["spawn in a job"] = await run_sync(spawned, 5)
    return seen


async def closure() -> object:
    try:
        numpy = importlib.import_module("numpy")
        importlib.import_module("cloudpickle")
    except ModuleNotFoundError as error:
        return f"without {error.name}"
    factor = numpy.arange(4)
    return int(await trio_offload.run_sync(lambda numbers: (factor * numbers).sum(), numpy.ones(4, int)))


if __name__ == "__main__":
    multiprocessing.freeze_support()
    if "--busy" in sys.argv:
        trio.run(trio_offload.run_sync, work.busy)
    else:
        json.dump(trio.run(all_jobs), sys.stdout)
