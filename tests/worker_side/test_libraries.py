"""What libraries meet in a job, and what they do to pickles: as in an ordinary Python of the program's, in every kind of worker."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jobs
import library_jobs
import numpy
import pytest
from kinds import environment_of, type_of
from running import run, run_script, write

from trio_offload import WorkerType, open_worker_context

Opened = Callable[..., Any]


@pytest.fixture
def opened(of_any_kind: WorkerType) -> Opened:
    """Opens contexts whose workers are of the kind."""
    return functools.partial(open_worker_context, worker_type=of_any_kind)


def environment(kind: str, *folders: Path) -> dict[str, str]:
    """Of a program whose workers are of the kind, if it asks for the type too (``KIND``)."""
    return environment_of(kind, *folders, KIND=type_of(kind).value)


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
    from trio_offload_worker._protocol import segments

    monkeypatch.setattr(segments, "MAX_SEGMENTS", 3)
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


# --- looks at __main__ ---------------------------------------------------------------------------------------

LOOKER = '''
import io, pickle, sys

def nameless():
    pass

del nameless.__module__

class Unknown:
    """Says that it is of the main module, as what was sent by value does."""

Unknown.__module__ = "__main__"

def look():
    """What a library finds that asks whether there is something."""
    import __main__
    import inspect
    found = [hasattr(__main__, "mine"), getattr(__main__, "mine", "default"), getattr(sys.modules.get("__mp_main__"), "mine", 0)]
    found += ["mine" in vars(__main__), "mine" in dir(__main__), [name for name, _ in inspect.getmembers(__main__) if name == "mine"]]
    return found

def search():
    """What pickle does to find an object that does not say where it is from, or says wrong."""
    refused = []
    for dumps in (pickle.dumps, pickle._dumps):
        try:
            dumps(Unknown)
        except pickle.PicklingError:
            refused.append(True)
    return b"looker" in pickle.dumps(nameless), b"looker" in pickle._dumps(nameless), refused

def catch():
    """An attribute that the script does not have anywhere."""
    import __main__
    try:
        return __main__.nothing_of_the_kind
    except AttributeError:
        return "caught"

def attributes():
    import __main__
    names = ("__name__", "__file__", "__cached__", "__package__", "__doc__")
    spec, loader = __main__.__spec__, __main__.__loader__
    return (
        [getattr(__main__, name, "missing") for name in names],
        spec and (spec.name, spec.origin, spec.has_location, spec.cached, spec.parent),
        [type(loader).__name__, getattr(loader, "name", None), getattr(loader, "path", None)],
    )

def unpickled(data):
    """In each of the ways."""
    class Derived(pickle.Unpickler):
        def find_class(self, module, name):
            return super().find_class(module, name)
    file = io.BytesIO(data)
    return [
        pickle.loads(data), pickle.load(io.BytesIO(data)), pickle.Unpickler(io.BytesIO(data)).load(), Derived(file).load(),
        pickle._loads(data), pickle._load(io.BytesIO(data)),
    ]

def first_unpickled(data, way):
    value = {"in C": pickle.loads, "in Python": pickle._loads}[way](data)
    return value.value, type(value).__module__

def by_attribute():
    import __main__
    return __main__.mine(1)

def by_import():
    from __main__ import mine
    return mine(1)
'''

SCRIPT = '''
"""A program."""
import os, sys
import looker
import trio, trio_offload

with open(os.environ["LOADS"], "a") as file:
    file.write(__name__ + "\\n")

KIND = os.environ["KIND"]

def loads():
    with open(os.environ["LOADS"]) as file:
        return file.read().split()

def mine(number):
    return number + 1

class Thing:
    def __init__(self, value):
        self.value = value

async def first(function, *args, init=bool):
    """Of a worker of its own."""
    async with trio_offload.open_worker_context(worker_type=KIND, init=init) as context:
        return await context.run_sync(function, *args)
'''


@pytest.fixture
def script(kind: str, tmp_path: Path) -> Callable[..., Any]:
    """Runs a program that can look; its lines, and the names under which it was run."""
    write(tmp_path / "looker.py", LOOKER)

    def run_it(text: str, *command: str, as_input: bool = False, name: str = "program.py") -> tuple[list[str], list[str]]:
        loads = tmp_path / "loads"
        loads.write_text("")
        program = SCRIPT.lstrip() + textwrap.dedent(text)
        path = write(tmp_path / name, program)
        arguments: list[Any] = [*(command or [path])]
        if command == ("-c",):
            arguments = ["-c", program]
        ended = run(
            [sys.executable, *arguments],
            environment=environment(kind, tmp_path) | {"LOADS": str(loads)},
            stdin=program.encode() if as_input else b"",
            folder=tmp_path,
        )
        return ended.lines(), loads.read_text().split()

    return run_it


FORMS: dict[str, tuple[str, ...]] = {"script": (), "module": ("-m", "program"), "-c": ("-c",), "standard input": ("-",)}


@pytest.mark.parametrize("form", FORMS)
def test_a_look_into_main_finds_nothing_and_runs_nothing(script: Any, form: str, kind: str) -> None:
    """Without a guard too."""
    lines, loads = script(
        """
        if __name__ != "__main__":
            raise SystemExit("it was run again")
        print(trio.run(first, looker.look))
        print(trio.run(first, looker.search))
        print(trio.run(first, looker.catch))
        """,
        *FORMS[form],
        as_input=form == "standard input",
    )
    found = "[False, 'default', 0, False, False, []]"
    if kind == "fork":
        # It has the program's own.
        assert lines[0].startswith("[True, ")
        lines[0] = found
    assert lines == [found, "(True, True, [True, True])", "caught"]
    assert loads == ["__main__"]


@pytest.mark.parametrize("form", FORMS)
def test_the_main_module_looks_like_the_programs(script: Any, form: str) -> None:
    lines, _ = script(
        """
        if __name__ == "__main__":
            here = looker.attributes()
            before = trio.run(first, looker.attributes)
            print(before == here or (before, here))
            async def afterwards():
                async with trio_offload.open_worker_context(worker_type=KIND) as context:
                    await context.run_sync(mine, 1)
                    return await context.run_sync(looker.attributes)
            after = trio.run(afterwards) if main_module_spec()["kind"] != "none" else here
            print(after == here or (after, here))
        """.replace(
            "main_module_spec()",
            "__import__('trio_offload._interpreter.main_module')._interpreter.main_module.main_module_spec()",
        ),
        *FORMS[form],
        as_input=form == "standard input",
    )
    assert lines == ["True", "True"]


def test_a_job_unpickles_what_is_of_the_main_script(script: Any, kind: str) -> None:
    lines, loads = script(
        """
        import pickle
        if __name__ == "__main__":
            data = pickle.dumps(Thing(5))
            named_otherwise = pickle.dumps(Thing(6), 2).replace(b"__main__", b"__mp_main__")
            for way in ("in C", "in Python"):
                print(trio.run(first, looker.first_unpickled, data, way))
            values = trio.run(first, looker.unpickled, data)
            print({type(value) is Thing and value.value for value in values})
            if KIND != "fork":
                values = trio.run(first, looker.unpickled, named_otherwise)
                print({type(value) is Thing and value.value for value in values})
            print(trio.run(first, looker.by_attribute), trio.run(first, looker.by_import))
        """
    )
    assert lines == ["(5, '__main__')"] * 2 + ["{5}"] + ["{6}"] * (kind != "fork") + ["2 2"]
    assert loads == ["__main__"] + ["__mp_main__"] * (0 if kind == "fork" else 6)


def test_a_script_that_cannot_be_loaded_when_a_job_unpickles(script: Any, kind: str) -> None:
    """Each time anew, with the lesson; and what needs no script still works."""
    if kind == "fork":
        pytest.skip("a fork has the script")
    lines, loads = script(
        """
        import pickle
        if __name__ != "__main__":
            raise LookupError("not in a worker")

        async def main():
            async with trio_offload.open_worker_context(worker_type=KIND) as context:
                for _ in range(2):
                    try:
                        await context.run_sync(looker.first_unpickled, pickle.dumps(Thing(5)), "in C")
                    except LookupError as error:
                        print(error)
                    print((await context.run_sync(looker.look))[:2])

        trio.run(main)
        """
    )
    assert lines == ["not in a worker", "[False, 'default']"] * 2
    assert loads == ["__main__", "__mp_main__", "__mp_main__"]


# --- what a job pickles ----------------------------------------------------------------------------------------


def test_a_pickle_that_a_job_writes_is_read_by_the_next_run(script: Any, tmp_path: Path) -> None:
    program = """
        import collections, dataclasses, enum, functools, pickle, typing

        class Outer:
            class Inner(Thing):
                @staticmethod
                def static(): pass
                @property
                def attribute(self): return 1

        class Colour(enum.Enum):
            RED = 1

        @dataclasses.dataclass
        class Record:
            value: "Outer.Inner"

        class Typed(typing.NamedTuple):
            value: int

        Plain = collections.namedtuple("Plain", "value")
        Variable = typing.TypeVar("Variable")

        class Generic(typing.Generic[Variable]):
            pass

        @functools.lru_cache
        def cached(value):
            return value

        def wrapping(function):
            @functools.wraps(function)
            def wrapper(*args):
                return function(*args)
            return wrapper

        @wrapping
        def wrapped(value):
            return value

        class Proxy:
            def __getattr__(self, name):
                raise RuntimeError("asked")
            def __setattr__(self, name, value):
                raise RuntimeError("set")

        proxy = Proxy()

        def save(path):
            values = [Thing(1), Outer.Inner(2), Colour.RED, Record(3), Typed(4), Plain(5), Generic, Variable, cached, wrapped, mine]
            values += [Outer.Inner.static, functools.partial(mine, 5), typing.get_type_hints(Record)]
            with open(path, "wb") as file:
                pickle.dump(values, file)

        def load(path):
            with open(path, "rb") as file:
                return pickle.load(file)

        if __name__ == "__main__":
            path = "checkpoint.pickle"
            if os.path.exists(path):
                values = load(path)
                print(values[0].value, values[4:6] == [Typed(4), Plain(5)], values[8] is cached, values[-1] == {"value": Outer.Inner})
                print(sorted({type(value).__module__ for value in values[:6]}), proxy is not None)
            else:
                trio.run(first, save, path)
    """
    assert script(program)[0] == []
    assert b"__mp_main__" not in (tmp_path / "checkpoint.pickle").read_bytes()
    assert script(program)[0] == ["1 True True True", "['__main__'] True"]


def test_cloudpickle_in_job_returns_objects_of_script(script: Any) -> None:
    pytest.importorskip("cloudpickle")
    lines, _ = script(
        """
        def mixed():
            return lambda: Thing(5), Thing, mine

        def fail():
            raise KeyError(lambda: Thing(6))

        if __name__ == "__main__":
            make, kind, function = trio.run(first, mixed)
            print(type(make()) is Thing, kind is Thing, function is mine)
            try:
                trio.run(first, fail)
            except KeyError as error:
                print(type(error.args[0]()) is Thing)
        """
    )
    assert lines == ["True True True", "True"]


# --- pools and debuggers in jobs -------------------------------------------------------------------------------

POOLS = {
    "multiprocessing, spawn": "multiprocessing.get_context('spawn').Pool(2).map(mine, range(3))",
    "multiprocessing, fork": "multiprocessing.get_context('fork').Pool(2).map(mine, range(3))",
    "an executor": (
        "list(concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context('spawn')).map(mine, range(3)))"
    ),
    "loky": "list(loky.ProcessPoolExecutor(2).map(mine, range(3)))",
    "joblib": "joblib.Parallel(n_jobs=2)(joblib.delayed(mine)(number) for number in range(3))",
    "threads": "list(concurrent.futures.ThreadPoolExecutor(2).map(mine, range(3)))",
    "a program": (
        "[int(subprocess.run([sys.executable, '-c', f'print({n} + 1)'], capture_output=True).stdout) for n in range(3)]"
    ),
}


@pytest.mark.parametrize("pool", POOLS)
def test_a_job_of_the_script_has_a_pool_of_its_own(script: Any, pool: str) -> None:
    for library in ("loky", "joblib"):
        if pool == library:
            pytest.importorskip(library)
    lines, _ = script(
        f"""
        def many():
            import concurrent.futures, multiprocessing, subprocess
            {"import " + pool if pool in ("loky", "joblib") else "pass"}
            return {POOLS[pool]}

        if __name__ == "__main__":
            print(trio.run(first, many))
        """
    )
    assert lines == ["[1, 2, 3]"]


def test_breakpoint_in_a_job(kind: str, tmp_path: Path) -> None:
    """The debugger reads its commands from the program's standard input, and the job goes on untraced."""
    text = """
        import os, sys, trio, trio_offload

        def job(number):
            answer = number * 2
            breakpoint()
            return answer

        def is_untraced():
            return sys.gettrace() is None

        async def main():
            async with trio_offload.open_worker_context(worker_type=os.environ["KIND"]) as context:
                print("result", await context.run_sync(job, 21))
                print("untraced", await context.run_sync(is_untraced))

        if __name__ == "__main__":
            trio.run(main)
    """
    ended = run_script(tmp_path, text, environment=environment(kind), stdin=b"p answer * 100\nc\n")
    assert "4200" in ended.stdout
    assert ended.lines()[-2:] == ["result 42", "untraced True"] or "result 42" in ended.stdout
    assert "untraced True" in ended.stdout
