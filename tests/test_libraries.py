"""What libraries meet in a job, and what they do to pickles: as in an ordinary Python of the program's, in every kind of worker."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jobs
import library_jobs
import numpy
import pytest
from running import PROGRAMS, plain_environment
from test_worker_side import LOOP

from trio_offload import WorkerType, _locate, open_worker_context

Opened = Callable[..., Any]
KINDS = {
    "spawn": WorkerType.SPAWN,
    "loop": WorkerType.SPAWN,
    "fork": WorkerType.FORK,
    "forkserver": WorkerType.FORKSERVER,
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "forkserver" and not _locate.way().is_native:
        pytest.skip("templates need the worker executable, and here workers are run in Python")
    return name


@pytest.fixture
def opened(kind: str, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Opens contexts whose workers are of the kind."""
    if kind == "loop":
        monkeypatch.setattr(_locate, "way", lambda: LOOP)
    return functools.partial(open_worker_context, worker_type=KINDS[kind])


def environment(kind: str, *folders: Path) -> dict[str, str]:
    """Of a program whose workers are of the kind, if it asks for the type too (``KIND``)."""
    path = [*map(str, folders), os.path.dirname(jobs.__file__)]
    if kind == "loop":
        path.insert(0, str(PROGRAMS / "by_the_loop"))
    return plain_environment(PYTHONPATH=os.pathsep.join(path), KIND=KINDS[kind].value)


# --- arrays in init and retire -----------------------------------------------------------------------------

ARRAYS = {
    "small": numpy.arange(100.0),
    "of a frame's size": numpy.arange(10_000.0),
    "large": numpy.arange(1_000_000.0),
    "in Fortran's order": numpy.asfortranarray(numpy.arange(100_000.0).reshape(400, 250)),
    "a part of another": numpy.arange(200_000.0).reshape(400, 500)[:, ::2],
    "read-only": numpy.frombuffer(bytes(1_000_000), numpy.uint8),
    "empty": numpy.empty((0, 3)),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
async def test_init_and_retire_hold_arrays(opened: Opened, array: Any) -> None:
    keep = functools.partial(library_jobs.keep, array, many=[array, b"x" * 500_000])
    async with opened(init=keep, retire=functools.partial(library_jobs.is_unlike, array)) as context:
        for _ in range(2):
            pid, kept = await context.run_sync(library_jobs.kept)
            assert pid != os.getpid()
            assert type(kept["many"][1]) is bytes
            for back in (kept["value"], kept["many"][0]):
                numpy.testing.assert_array_equal(back, array)
                assert back.flags.f_contiguous == array.flags.f_contiguous or not array.flags.forc


@pytest.mark.parametrize("order", ["C", "F"])
async def test_more_arrays_than_segments(opened: Opened, order: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no segment of its own stays in the pickle."""
    from trio_offload_worker import _segments

    monkeypatch.setattr(_segments, "MAX_SEGMENTS", 3)
    arrays = [numpy.full((300, 100), number, order=order) for number in range(5)]
    async with opened() as context:
        for back, array in zip(await context.run_sync(jobs.echo, arrays), arrays, strict=True):
            numpy.testing.assert_array_equal(back, array)
            assert back.flags.f_contiguous == (order == "F")
            assert back.flags.writeable


@pytest.mark.parametrize("order", ["C", "F"])
async def test_an_exception_that_holds_an_array(opened: Opened, order: Any) -> None:
    array = numpy.asarray(numpy.ones((400, 250)), order=order)
    async with opened() as context:
        with pytest.raises(ValueError, match="1") as raised:
            await context.run_sync(jobs.raise_it, ValueError(array))
        numpy.testing.assert_array_equal(raised.value.args[0], array)


# --- modules that are registered with cloudpickle -----------------------------------------------------------

REGISTERED = """
FACTOR = 1

def scaled(number):
    return number * FACTOR

def begin():
    global begun
    begun = FACTOR

class Scale:
    def __init__(self, number):
        self.number = number

    def apply(self, thing=None):
        return (self if thing is None else thing).number * FACTOR
"""


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A submodule of a registered package, of which there is another version where a worker looks."""
    cloudpickle = pytest.importorskip("cloudpickle")
    package = tmp_path / "by_value_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "inner.py").write_text(REGISTERED)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("by_value_package.inner")
    module.FACTOR = 2
    cloudpickle.register_pickle_by_value(sys.modules["by_value_package"])
    try:
        yield module
    finally:
        if "by_value_package" in cloudpickle.list_registry_pickle_by_value():
            cloudpickle.unregister_pickle_by_value(sys.modules["by_value_package"])
        for name in ("by_value_package", "by_value_package.inner"):
            del sys.modules[name]


async def test_what_is_registered_travels_by_value(opened: Opened, registered: Any) -> None:
    """Twice each: what was found out about a function is remembered."""
    async with opened() as context:
        # A fork has the program's modules as they were at its start.
        assert await context.run_sync(registered.scaled, 7) == 14
        registered.FACTOR = 3
        scale = registered.Scale(7)
        for _ in range(2):
            assert await context.run_sync(registered.scaled, 7) == 21
            assert await context.run_sync(functools.partial(registered.scaled, 7)) == 21
            assert await context.run_sync(scale.apply) == 21
            assert await context.run_sync(jobs.call, scale.apply) == 21
            assert await context.run_sync(jobs.call, registered.Scale.apply, scale) == 21
            back = await context.run_sync(jobs.echo, [scale])
            assert type(back[0]) is registered.Scale
            assert (await context.run_sync(jobs.echo, registered.scaled))(7) == 21
        for chunk_size in (1, 3, "auto"):
            async with context.map(registered.scaled, range(5), chunk_size=chunk_size) as results:
                assert [result async for result in results] == [0, 3, 6, 9, 12]
            async with context.map(jobs.call, [scale.apply] * 5, chunk_size=chunk_size) as results:
                assert [result async for result in results] == [21] * 5


async def test_an_init_that_is_registered(opened: Opened, registered: Any) -> None:
    async with opened(init=registered.begin, retire=registered.Scale(0).apply) as context:
        assert await context.run_sync(registered.scaled, 7) == 14
        assert await context.run_sync(jobs.echo, 5) == 5


async def test_what_is_registered_no_more_is_named_again(opened: Opened, registered: Any, kind: str) -> None:
    import cloudpickle

    async with opened() as context:
        assert await context.run_sync(registered.scaled, 7) == 14
        registered.FACTOR = 3
        assert await context.run_sync(registered.scaled, 7) == 21
        cloudpickle.unregister_pickle_by_value(sys.modules["by_value_package"])
        assert await context.run_sync(registered.scaled, 7) == (14 if kind == "fork" else 7)


async def test_where_something_is_registered_the_rest_is_named_as_ever(opened: Opened, registered: Any) -> None:
    async with opened() as context:
        assert await context.run_sync(jobs.echo, jobs.echo) is jobs.echo


# --- sys.path ------------------------------------------------------------------------------------------------

PLUGIN = "from late_helper import twice\n\ndef work(number):\n    return twice(number)\n"
HELPER = "def twice(number):\n    return 2 * number\n"


@pytest.fixture
def plugin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "late_plugin.py").write_text(PLUGIN)
    (folder / "late_helper.py").write_text(HELPER)
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield str(folder)
    for name in ("late_plugin", "late_helper"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("replaced", [False, True], ids=["changed in place", "replaced"])
async def test_an_idle_worker_follows_the_path(
    opened: Opened, replaced: bool, plugin_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened() as context:
        pid = await context.run_sync(os.getpid)
        if replaced:
            monkeypatch.setattr(sys, "path", [plugin_folder, *sys.path])
        else:
            sys.path.append(plugin_folder)
        plugin = importlib.import_module("late_plugin")
        # By its name only: what a worker needs to find it.
        assert await context.run_sync(eval, "__import__('late_plugin').work(21)") == 42
        assert await context.run_sync(plugin.work, 4) == 8
        assert await context.run_sync(library_jobs.path) == (pid, sys.path)
        sys.path.remove(plugin_folder)
        assert await context.run_sync(library_jobs.path) == (pid, sys.path)


async def test_a_module_whose_folder_has_left_the_path_is_found(opened: Opened, plugin_folder: str) -> None:
    async with opened() as context:
        await context.run_sync(bool)
        sys.path.insert(0, plugin_folder)
        plugin = importlib.import_module("late_plugin")
        # It is looked at while its folder is there.
        await context.run_sync(bool)
        sys.path.remove(plugin_folder)
        assert await context.run_sync(plugin.work, 21) == 42


async def test_what_jobs_have_added_to_the_path_stays_where_it_is(opened: Opened, plugin_folder: str) -> None:
    async with opened() as context:
        await context.run_sync(library_jobs.add_to_path, "/nowhere/first", "/nowhere/last")
        sys.path.insert(1, plugin_folder)
        assert (await context.run_sync(library_jobs.path))[1] == ["/nowhere/first", *sys.path, "/nowhere/last"]
        del sys.path[1]
        sys.path.append(plugin_folder)
        assert (await context.run_sync(library_jobs.path))[1] == ["/nowhere/first", *sys.path, "/nowhere/last"]
        sys.path.remove(plugin_folder)


async def test_calls_of_a_map_follow_the_path(opened: Opened, plugin_folder: str) -> None:
    async with opened() as context:
        await context.run_sync(bool)
        sys.path.append(plugin_folder)
        plugin = importlib.import_module("late_plugin")
        async with context.map(plugin.work, range(5), chunk_size=2) as results:
            assert [result async for result in results] == [0, 2, 4, 6, 8]


async def test_a_path_entry_of_another_type_is_left_out(opened: Opened, plugin_folder: str) -> None:
    async with opened() as context:
        await context.run_sync(bool)
        odd: Any = sys.path
        odd[:] = [Path(plugin_folder), *odd, plugin_folder.encode()]
        assert (await context.run_sync(library_jobs.path))[1] == [entry for entry in odd if isinstance(entry, str)]
