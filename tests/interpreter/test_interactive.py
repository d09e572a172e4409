"""End to end: notebooks, prompts, test runners, and programs that watch a program.

What every form of a main module has in common is in ``test_main_module.py``, a plain prompt among them. Here are the tools
themselves, and (contract) how it is found out that a function has to travel by value.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import json
import pickle
import re
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jobs
import pytest
from running import PROGRAMS, plain_environment, run, typed_in, write

from trio_offload import open_worker_context
from trio_offload._pickling import by_value, calls
from trio_offload._pickling.by_value import FunctionsByValue
from trio_offload._pickling.picklers import Pickling

pytest.importorskip("cloudpickle")

BIN = Path(sys.prefix, "bin")


def answers(text: str) -> list[str]:
    """The lines that the texts below print: a capital letter before each."""
    return [line for line in text.splitlines() if line[1:2] == " " and line[0].isupper() and "print" not in line]


# --- a notebook ------------------------------------------------------------------------------------


@pytest.fixture
def notebook(tmp_path: Path) -> Iterator[Any]:
    """Runs cells in a kernel of their own. What each gave: the texts of its output by their kind, joined."""
    # A socket's path has to be short.
    runtime = tempfile.mkdtemp(prefix="k")
    environment = plain_environment(
        PYTHONPATH=str(PROGRAMS.parent),
        JUPYTER_RUNTIME_DIR=runtime,
        JUPYTER_DATA_DIR=str(tmp_path / "jupyter"),
        IPYTHONDIR=str(tmp_path / "ipython"),
    )

    def run_cells(*cells: Any, how: str = "quit") -> list[dict[str, str]]:
        (tmp_path / "cells").write_text(json.dumps(["%autoawait trio", *cells]))
        run(
            [sys.executable, PROGRAMS / "notebook.py", tmp_path / "cells", tmp_path / "answer", how],
            environment=environment,
            folder=tmp_path,
        )
        answer = json.loads((tmp_path / "answer").read_text())
        assert answer["left"] == []
        given = []
        for outputs in answer["cells"][1:]:
            by_kind: dict[str, str] = {}
            for kind, text in outputs:
                by_kind[kind] = by_kind.get(kind, "") + text
            given.append(by_kind)
        return given

    yield run_cells
    shutil.rmtree(runtime)


def test_a_notebook(notebook: Any) -> None:
    """Functions, classes and exceptions go both ways; what is defined anew is what runs; output arrives in its cell."""
    given = notebook(
        "import trio, trio_offload, os, functools, dataclasses, enum",
        "@dataclasses.dataclass\nclass Point:\n    x: int\n"
        "class Colour(enum.Enum):\n    RED = 1\n"
        "class Trouble(Exception):\n    pass\n"
        "@functools.lru_cache\ndef factor():\n    return 2\n"
        "def double(point):\n    assert isinstance(point, Point)\n    return Point(point.x * factor())\n"
        "def fail():\n    raise Trouble('trouble', Colour.RED)",
        "point = await trio_offload.run_sync(double, Point(4))\npoint, isinstance(point, Point)",
        "def double(point):\n    return Point(point.x * 3)",
        "await trio_offload.run_sync(double, Point(4))",
        # What it uses is as new as it is.
        "def factor():\n    return 7\ndef double(point):\n    return Point(point.x * factor())",
        "await trio_offload.run_sync(double, Point(4))",
        "def factor():\n    return 8",
        "await trio_offload.run_sync(double, Point(4))",
        "class Point(Point):\n    pass",
        "type(await trio_offload.run_sync(double, Point(4))) is Point",
        "try:\n    await trio_offload.run_sync(fail)\nexcept Trouble as error:\n    print(error.args == ('trouble', Colour.RED))",
        "await trio_offload.run_sync(fail)",
        (
            "def speak():\n    print('from the worker')\n    return os.getppid()\nawait trio_offload.run_sync(speak) == os.getpid()",
            {"until": "from the worker\n"},
        ),
        "results = []\nasync def one(number):\n    results.append(await trio_offload.run_sync(lambda: number ** 2))\n"
        "async with trio.open_nursery() as nursery:\n    for number in range(4):\n        nursery.start_soon(one, number)\n"
        "sorted(results)",
        "await trio_offload.run_sync(factor), await trio_offload.run_sync(functools.partial(double, Point(1)))",
        "del double\ntry:\n    double\nexcept NameError:\n    print('gone')",
    )
    assert [cell.get("result") for cell in given] == [
        None,
        None,
        "(Point(x=8), True)",
        None,
        "Point(x=12)",
        None,
        "Point(x=28)",
        None,
        "Point(x=32)",
        None,
        "True",
        None,
        None,
        "True",
        "[0, 1, 4, 9]",
        "(8, Point(x=8))",
        None,
    ]
    assert given[11] == {"stdout": "True\n"}
    assert given[12]["error"] == "Trouble: ('trouble', <Colour.RED: 1>)"
    # IPython reads what is written to the descriptor, and shows it.
    assert given[13]["stdout"] == "from the worker\n"
    assert given[16] == {"stdout": "gone\n"}


def test_the_page_about_notebooks(notebook: Any) -> None:
    """Its blocks are cells, and show below them what they print or give."""
    page = (PROGRAMS.parents[1] / "docs" / "notebooks.md").read_text()
    pattern = r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?"
    cells = re.findall(pattern, page, re.DOTALL | re.MULTILINE)
    given = notebook(*(cell for cell, _ in cells))
    assert ["".join(outputs.values()).rstrip("\n") for outputs in given] == [shown.rstrip("\n") for _, shown in cells]


SCRIPT = """
    import trio, trio_offload

    class Thing:
        pass

    def mine(thing):
        return isinstance(thing, Thing), Thing(), "BODY"

    if __name__ == "__main__":
        same, thing, body = trio.run(trio_offload.run_sync, mine, Thing())
        print(same, type(thing) is Thing, body)
"""


def test_scripts_that_are_run_from_a_notebook(notebook: Any, tmp_path: Path) -> None:
    """Each is the main module for as long as it runs, with the workers that there are; also once it was edited."""
    for name in ("first", "second"):
        write(tmp_path / f"{name}.py", SCRIPT.replace("BODY", name))
    given = notebook(
        "import trio, trio_offload\nawait trio_offload.run_sync(lambda: 5)",
        "%run first.py",
        "%run second.py",
        "import pathlib\npath = pathlib.Path('first.py')\nlength = path.write_text(path.read_text().replace('first', 'edited'))",
        "%run first.py",
        # Its names are the notebook's now.
        "same, thing, body = await trio_offload.run_sync(mine, Thing())\nprint(same, type(thing) is Thing, body)",
        "trio_offload.default_context_statistics().idle_workers",
    )
    assert [cell.get("stdout") for cell in given[1:6]] == [
        "True True first\n",
        "True True second\n",
        None,
        "True True edited\n",
        "True True edited\n",
    ]
    assert given[6] == {"result": "1"}


def test_a_cell_is_interrupted(notebook: Any, tmp_path: Path) -> None:
    """The kernel gets the signal, and so do its workers, which it does not concern. The job is ended by its cancellation."""
    sign = tmp_path / "sign"
    given = notebook(
        "import trio, trio_offload, pathlib, time\n"
        f"def endless():\n    pathlib.Path({str(sign)!r}).touch()\n    while True:\n        time.sleep(1)",
        ("await trio_offload.run_sync(endless, kill_on_cancel=True)", {"interrupt_at": str(sign)}),
        "figures = trio_offload.default_context_statistics()\nfigures.idle_workers, figures.running_workers",
        "await trio_offload.run_sync(lambda: 5)",
    )
    assert given[1]["error"].startswith("KeyboardInterrupt")
    assert given[2]["result"] == "(0, 0)"
    assert given[3] == {"result": "5"}


def test_a_kernel_that_is_killed_takes_its_workers_along(notebook: Any) -> None:
    """As «restart the kernel» may do it; the fixture looks who is left."""
    given = notebook(
        "import trio, trio_offload",
        "async with trio.open_nursery() as nursery:\n    for _ in range(2):\n        nursery.start_soon(trio_offload.run_sync, bool)",
        "trio_offload.default_context_statistics().idle_workers",
        how="kill",
    )
    assert given[2] == {"result": "2"}


# --- prompts -------------------------------------------------------------------------------------

TYPED = """\
import trio, trio_offload
class Point:
    def __init__(self, x):
        self.x = x

class Trouble(Exception):
    pass

def double(point):
    return Point(point.x * 2)

def fail():
    raise Trouble("trouble")

point = await trio_offload.run_sync(double, Point(4))
print("A", point.x, type(point) is Point)
def double(point):
    return Point(point.x * 3)

print("B", (await trio_offload.run_sync(double, Point(4))).x)
try:
    await trio_offload.run_sync(fail)
except Trouble as error:
    print("C", error)

print("D", await trio_offload.run_sync(lambda: 5), isinstance(await trio_offload.run_sync(Point, 1), Point))
print("E", trio_offload.default_context_statistics().idle_workers)
exit()
"""
TYPED_ANSWERS = ["A 8 True", "B 12", "C trouble", "D 5 True", "E 1"]


@pytest.mark.parametrize("program", [(BIN / "ipython",), (sys.executable, "-m", "IPython")], ids=["ipython", "-m IPython"])
def test_ipython(tmp_path: Path, program: tuple[Any, ...]) -> None:
    said = typed_in(
        [
            *program,
            "--simple-prompt",
            "--no-banner",
            "--no-confirm-exit",
            "--colors=NoColor",
            "--HistoryManager.enabled=False",
        ],
        # A prompt of its own for the empty line that ends a block, and none for the lines in it that are indented by IPython.
        "%autoawait trio\n" + TYPED,
        "]: ",
        "...: ",
        environment=plain_environment(TERM="dumb", IPYTHONDIR=str(tmp_path)),
        folder=tmp_path,
    )
    assert answers(said) == TYPED_ANSWERS, said


@pytest.mark.skipif(importlib.util.find_spec("trio.__main__") is None, reason="this release of Trio has no prompt")
def test_the_prompt_of_trio(tmp_path: Path) -> None:
    """``python -m trio``: its main module opens the prompt when it is loaded, so no worker may load it."""
    said = typed_in(
        [sys.executable, "-m", "trio"],
        TYPED,
        ">>> ",
        "... ",
        environment=plain_environment(TERM="dumb", PYTHON_BASIC_REPL="1"),
        folder=tmp_path,
    )
    assert answers(said) == TYPED_ANSWERS, said
    assert said.count("trio REPL") == 1


@pytest.mark.skipif(sys.version_info < (3, 13), reason="new in Python 3.13")
@pytest.mark.parametrize("script", [False, True], ids=["", "-i script.py"])
def test_the_prompt_with_colours(tmp_path: Path, script: bool) -> None:
    """Python's own prompt is a program in Python since 3.13."""
    write(tmp_path / "script.py", "def of_script():\n    return 'of the script'\n")
    # It indents a block by itself.
    text = (
        "import trio, trio_offload\n"
        "run = lambda *call: trio.run(trio_offload.run_sync, *call)\n"
        "class Point: x = 4\n\n"
        "def double(point): return point.x * 2, Point()\n\n"
        "result = run(double, Point())\n"
        "print(chr(65), result[0], type(result[1]) is Point)\n"
        "print(chr(66), run(lambda: 5))\n" + ("print(chr(67), run(of_script))\n" if script else "") + "exit()\n"
    )
    said = typed_in(
        [sys.executable, "-q", *(["-i", "script.py"] if script else [])],
        text,
        ">>> ",
        "... ",
        environment=plain_environment(TERM="xterm", PYTHON_COLORS="0", HOME=str(tmp_path)),
        folder=tmp_path,
    )
    for answer in ["A 8 True", "B 5", *(["C of the script"] if script else [])]:
        assert answer in said, said


# --- pytest ----------------------------------------------------------------------------------------

SUITE = """
    import pytest, trio, trio_offload

    class Thing:
        def __init__(self, value):
            self.value = value

    class Trouble(Exception):
        pass

    def more(thing):
        assert isinstance(thing, Thing)
        return Thing(thing.value + 1)

    def fail():
        raise Trouble("trouble")

    def refuse(value):
        assert value == 2

    async def test_both_ways():
        async with trio_offload.open_worker_context() as context:
            thing = await context.run_sync(more, Thing(1))
            assert type(thing) is Thing and thing.value == 2
            assert await context.run_sync(isinstance, Thing(3), Thing)
            with pytest.raises(Trouble):
                await context.run_sync(fail)
            with pytest.raises(AssertionError):
                await context.run_sync(refuse, 1)
            assert await context.run_sync(lambda: more(Thing(3)).value) == 4

    @pytest.mark.parametrize("number", range(3))
    async def test_default(number):
        assert (await trio_offload.run_sync(more, Thing(number))).value == number + 1
"""


@pytest.mark.parametrize("mode", ["prepend", "append", "importlib"])
@pytest.mark.parametrize("processes", [0, 2], ids=["", "xdist"])
def test_what_is_defined_in_tests(tmp_path: Path, mode: str, processes: int) -> None:
    """Two files of one name in ``importlib`` mode, in which no module can be found by its name."""
    write(tmp_path / "tests" / "test_one.py", SUITE)
    write(tmp_path / "tests" / "further" / ("test_one.py" if mode == "importlib" else "test_two.py"), SUITE)
    write(tmp_path / "pytest.ini", "[pytest]\ntrio_mode = true\nfilterwarnings = error\n")
    ended = run(
        [BIN / "pytest", "-q", "-p", "no:cacheprovider", f"--import-mode={mode}", f"-n{processes}"],
        folder=tmp_path,
        expect=None,
    )
    assert ended.status == 0, str(ended)
    assert "8 passed" in ended.stdout


# --- modules that only sys.modules has -------------------------------------------------------------

PLUGIN = """
    class Thing:
        pass

    def mine(thing):
        return isinstance(thing, Thing), Thing()
"""


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads a module from a file under a name, as programs load their plugins."""

    def load(name: str, path: Path, **options: Any) -> Any:
        spec = importlib.util.spec_from_file_location(name, path, **options)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


async def assert_goes_both_ways(context: Any, module: Any) -> None:
    same, thing = await context.run_sync(module.mine, module.Thing())
    assert same
    assert type(thing) is module.Thing


async def test_a_plugin_that_is_loaded_while_workers_run(tmp_path: Path, loaded: Any) -> None:
    async with open_worker_context() as context:
        await context.run_sync(bool)
        await assert_goes_both_ways(context, loaded("plugin_of_the_tests", write(tmp_path / "plugin.py", PLUGIN)))
        await assert_goes_both_ways(context, loaded("another-name", write(tmp_path / "other" / "plugin.py", PLUGIN)))
        assert context.statistics().idle_workers == 1
    async with open_worker_context() as context:
        await assert_goes_both_ways(context, sys.modules["plugin_of_the_tests"])


async def test_a_plugin_that_is_a_package(tmp_path: Path, loaded: Any) -> None:
    write(tmp_path / "plugin" / "inner.py", PLUGIN)
    path = write(tmp_path / "plugin" / "__init__.py", PLUGIN + "\n    from . import inner\n")
    module = loaded("package_of_the_tests", path, submodule_search_locations=[str(path.parent)])
    async with open_worker_context() as context:
        await assert_goes_both_ways(context, module.inner)
        await assert_goes_both_ways(context, module)


async def test_a_plugin_with_an_extension_of_its_own(tmp_path: Path, loaded: Any) -> None:
    import importlib.machinery

    path = write(tmp_path / "settings.conf", PLUGIN)
    loader = importlib.machinery.SourceFileLoader("conf_of_the_tests", str(path))
    async with open_worker_context() as context:
        await assert_goes_both_ways(context, loaded("conf_of_the_tests", path, loader=loader))


async def test_odd_things_in_sys_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever somebody has put there, it does not keep a worker from starting."""

    class Refuses:
        def __getattr__(self, name: str) -> Any:
            raise ValueError("ask me nothing")

    for number, thing in enumerate([None, Refuses(), 5, SimpleNamespace(__spec__=5), SimpleNamespace(__file__=b"x")]):
        monkeypatch.setitem(sys.modules, f"odd{number}", thing)  # type: ignore[arg-type]
    async with open_worker_context() as context:
        assert await context.run_sync(abs, -5) == 5


def test_this_environment_has_no_file_modules(tmp_path: Path) -> None:
    """The usual modules are found by the folders that they lie in."""
    program = """
        import json, sys, trio, trio_offload, unittest.mock, xml.etree, encodings.idna
        from trio_offload._interpreter.file_modules import FileModules
        print(FileModules().find(sys.path))
    """
    assert run([sys.executable, write(tmp_path / "script.py", program)]).lines() == ["{}"]


# --- programs that watch -----------------------------------------------------------------------------

MEASURED = {
    "measured.py": """
        def job(number):
            total = 0
            for value in range(number):
                total += value
            if number < 5:
                return -1
            return total

        def in_a_process():
            import multiprocessing
            process = multiprocessing.get_context("spawn").Process(target=of_the_process)
            process.start()
            process.join()
            return process.exitcode

        def of_the_process():
            return 5
    """,
    "script.py": """
        import sys, trio, trio_offload, measured

        def mine(number):
            if number:
                return number + 1
            return number

        def modules():
            return "coverage" in sys.modules

        async def main():
            async with trio_offload.open_worker_context() as context:
                print(await context.run_sync(measured.job, 10))
                print(await context.run_sync(measured.in_a_process))
            # Workers that leave at the program's end.
            print(await trio_offload.run_sync(mine, 10))
            print(await trio_offload.run_sync(modules))

        if __name__ == "__main__":
            trio.run(main)
    """,
}


def measure(folder: Path, configuration: str, *command: str, **variables: str | None) -> tuple[dict[str, list[int]], str]:
    """The lines of each file that coverage.py saw run, and the last line that the program printed."""
    for name, text in MEASURED.items():
        write(folder / name, text)
    write(folder / ".coveragerc", "[run]\nparallel = true\nsource = .\n" + configuration)
    environment = plain_environment(**variables)
    ended = run([sys.executable, *command, "script.py"], folder=folder, environment=environment)
    assert ended.lines()[:3] == ["45", "0", "11"]
    assert ended.stderr == ""
    coverage = [sys.executable, "-m", "coverage"]
    run([*coverage, "combine", "-q"], folder=folder, environment=plain_environment())
    run([*coverage, "json", "-q", "-o", "found.json"], folder=folder, environment=plain_environment())
    found = json.loads((folder / "found.json").read_text())
    return {name: file["executed_lines"] for name, file in found["files"].items()}, ended.lines()[3]


def line_of(name: str, text: str) -> int:
    lines = [line.strip() for line in MEASURED[name].strip("\n").splitlines()]
    return lines.index(text) + 1


@pytest.mark.parametrize(
    "asked", ["concurrency = multiprocessing", "concurrency = multiprocessing,thread", "patch = subprocess"]
)
def test_coverage_measures_jobs_where_it_is_asked_to(tmp_path: Path, asked: str) -> None:
    executed, has_coverage = measure(tmp_path, asked + "\n", "-m", "coverage", "run")
    assert has_coverage == "True"
    for text in ("total += value", "return total", "return 5"):
        assert line_of("measured.py", text) in executed["measured.py"], text
    assert line_of("measured.py", "return -1") not in executed["measured.py"]
    assert line_of("script.py", "return number + 1") in executed["script.py"]
    assert line_of("script.py", "return number") not in executed["script.py"]


def test_coverage_that_every_process_starts(tmp_path: Path) -> None:
    """As its documentation says: the variable, and a .pth file in which coverage is imported."""
    write(tmp_path / "custom" / "sitecustomize.py", "import coverage; coverage.process_startup()")
    executed, has_coverage = measure(
        tmp_path, "", COVERAGE_PROCESS_START=str(tmp_path / ".coveragerc"), PYTHONPATH=str(tmp_path / "custom")
    )
    assert has_coverage == "True"
    assert line_of("measured.py", "return total") in executed["measured.py"]
    assert line_of("script.py", "return number + 1") in executed["script.py"]


def test_coverage_of_one_process_is_of_that_one(tmp_path: Path) -> None:
    executed, has_coverage = measure(tmp_path, "", "-m", "coverage", "run")
    assert has_coverage == "False"
    assert line_of("measured.py", "return total") not in executed["measured.py"]
    assert line_of("script.py", "trio.run(main)") in executed["script.py"]


def test_viztracer(tmp_path: Path) -> None:
    """It runs a script in a __main__ of its own making; the trace is of the program itself."""
    script = write(tmp_path / "script.py", SCRIPT)
    ended = run([BIN / "viztracer", "--quiet", "-o", "trace.json", script], folder=tmp_path)
    assert ended.lines()[0] == "True True BODY"
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert any(event["name"].startswith("run_sync (") for event in events)


# --- by value or by name: found out once -----------------------------------------------------------------


@pytest.fixture
def picklers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The picklers that are tried, and a memory of this test's own."""
    tried: list[str] = []
    original = Pickling.dump

    def dump(pickling: Any, *rest: Any) -> Any:
        tried.append(type(pickling.pickler).__module__)
        return original(pickling, *rest)

    monkeypatch.setattr(Pickling, "dump", dump)
    monkeypatch.setattr(calls, "_by_value", FunctionsByValue())
    return tried


ORDINARY, CLOUD = "_pickle", "trio_offload_worker._jobs.cloudpickle"


def known() -> int:
    return len(calls._by_value)


def calls_of_one_function() -> dict[str, Any]:
    def inner(*values: Any) -> Any:
        return values

    class Inner:
        def method(self) -> None: ...

        @classmethod
        def of_class(cls) -> None: ...

        def __call__(self) -> None: ...

    return {
        "lambda": lambda: 5,
        "function": inner,
        "class": Inner,
        "method": Inner().method,
        "class method": Inner.of_class,
        "instance": Inner(),
        "partial": functools.partial(inner, 5),
        "partial of a partial": functools.partial(functools.partial(inner, 5), 6),
    }


@pytest.mark.parametrize("form", calls_of_one_function())
def test_it_is_found_out_once(picklers: list[str], form: str) -> None:
    function = calls_of_one_function()[form]
    for _ in range(3):
        calls.dump_call(function, ())
    assert picklers == [ORDINARY, CLOUD, CLOUD, CLOUD]
    assert known() == 1


def test_it_is_the_functions_sake_and_not_the_arguments(picklers: list[str]) -> None:
    for _ in range(2):
        calls.dump_call(jobs.echo, (lambda: 5,))
    calls.dump_call(jobs.echo, ([5],))
    assert picklers == [ORDINARY, CLOUD, ORDINARY, CLOUD, ORDINARY]
    assert known() == 0


def test_one_function_says_nothing_of_another(picklers: list[str]) -> None:
    """Of the same name and code: as a cell that is run again makes it."""
    made = [calls_of_one_function()["function"] for _ in range(3)]
    for function in made:
        calls.dump_call(function, ())
    assert picklers == [ORDINARY, CLOUD] * 3
    assert known() == 3


def test_a_function_that_is_gone_is_forgotten(picklers: list[str]) -> None:
    function = calls_of_one_function()["function"]
    # A cycle, as a recursive inner function makes it.
    function.itself = function
    calls.dump_call(function, ())
    assert known() == 1
    gone = weakref.ref(function)
    del function
    gc.collect()
    assert gone() is None
    assert known() == 0


def test_a_new_function_with_the_number_of_another_one(picklers: list[str]) -> None:
    """Forced: the entry of that number is of something else, or of something that is gone."""
    function, other = (calls_of_one_function()["function"] for _ in range(2))
    memory = FunctionsByValue()
    memory.remember(other)
    (reference,) = memory.known.values()
    memory.known[id(function)] = reference
    assert not memory.holds(function)
    memory.remember(function)
    assert memory.holds(function)
    # The end of the other one leaves the entry alone that has taken its place.
    del other
    gc.collect()
    assert reference() is None
    assert memory.holds(function)
    assert len(memory) == 1


async def test_a_function_that_is_out_of_reach_for_a_while(picklers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a patch that a test applies and takes back: the function itself travels, by value and then by name again."""
    original = jobs.echo
    async with open_worker_context() as context:
        with monkeypatch.context() as patch:
            patch.setattr(jobs, "echo", lambda value: "patched")
            assert await context.run_sync(original, [5]) == [5]
            assert known() == 1
        assert await context.run_sync(original, [6]) == [6]
    assert picklers == [ORDINARY, CLOUD, ORDINARY]
    assert known() == 0


def test_a_main_module_that_gets_a_file(picklers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be found in it, because no worker could load it, can be found."""
    plan = {"kind": "none", "why": "is a test's"}
    monkeypatch.setattr(calls, "main_module_spec", lambda: plan)
    monkeypatch.setattr(by_value, "main_module_spec", lambda: plan)
    function = calls_of_one_function()["function"]
    function.__module__, function.__qualname__ = "__main__", "of_the_tests"
    monkeypatch.setattr(sys.modules["__main__"], "of_the_tests", function, raising=False)
    for _ in range(2):
        calls.dump_call(function, ([],))
    assert picklers == [ORDINARY, CLOUD, CLOUD]
    plan["kind"] = "path"
    for _ in range(2):
        calls.dump_call(function, ([],))
    assert picklers[3:] == [ORDINARY, ORDINARY]
    assert known() == 0


def test_the_body_that_is_there_now_travels(picklers: list[str]) -> None:
    """Remembered is the way, and not what went along it."""
    value = 1

    def body() -> int:
        return value

    def negated() -> int:
        return -value

    def there() -> Any:
        function, arguments = pickle.loads(b"".join(calls.dump_call(body, ()).parts))
        return function(*arguments)

    assert there() == 1
    value = 2
    assert there() == 2
    body.__code__ = negated.__code__
    assert there() == -2


async def test_functions_with_a_cache() -> None:
    """They say of themselves that they are pickled by name, where there may be nothing of that name."""

    @functools.cache
    def square(number: int) -> int:
        return number * number

    class Squares:
        @functools.lru_cache(maxsize=3, typed=True)  # noqa: B019
        def of(self, number: int) -> int:
            return square(number)

    async with open_worker_context() as context:
        assert await context.run_sync(square, 5) == 25
        assert await context.run_sync(Squares().of, 6) == 36
        assert await context.run_sync(jobs.call, square, 7) == 49
        squares = await context.run_sync(Squares)
        assert type(squares) is Squares
        assert squares.of(8) == 64
        back = await context.run_sync(jobs.echo, square)
        assert back(9) == 81
        assert back.cache_parameters() == {"maxsize": None, "typed": False}
        # One that is found travels by name, also beside one that is not.
        assert (await context.run_sync(jobs.echo, [square, jobs.cached]))[1] is jobs.cached


# --- from outside --------------------------------------------------------------------------------


@pytest.mark.skipif(sys.version_info < (3, 14), reason="new in Python 3.14")
@pytest.mark.parametrize("kind", ["SPAWN", "FORKSERVER", "FORK"])
def test_a_debugger_reaches_a_job(tmp_path: Path, kind: str) -> None:
    """``python -m pdb -p PID`` has the job's process run a script (PEP 768), in the middle of a loop that never waits."""
    program = f"""
        import os, sys, trio, trio_offload

        def spin(writer, answer):
            os.write(writer, b"%d" % os.getpid())
            while not os.path.exists(answer):
                pass
            with open(answer) as file:
                return file.read()

        async def main():
            reader, writer = os.pipe()
            os.set_inheritable(writer, True)
            path = f"/proc/{{os.getpid()}}/fd/{{writer}}"
            async with trio_offload.open_worker_context(worker_type=trio_offload.WorkerType.{kind}) as context:
                async with trio.open_nursery() as nursery:
                    async def call():
                        print(await context.run_sync(start, path, "answer"))
                    nursery.start_soon(call)
                    await trio.lowlevel.wait_readable(reader)
                    sys.remote_exec(int(os.read(reader, 20)), "script_for_it.py")

        def start(path, answer):
            return spin(os.open(path, os.O_WRONLY), answer)

        if __name__ == "__main__":
            trio.run(main)
    """
    write(
        tmp_path / "script_for_it.py",
        """
        import os, sys
        with open("answer.part", "w") as file:
            file.write(sys._getframe(1).f_code.co_name)
        os.rename("answer.part", "answer")
        """,
    )
    script = write(tmp_path / "script.py", program)
    assert run([sys.executable, script], folder=tmp_path).lines() == ["spin"]
