"""End to end: what lives in the user's main module (rule 2 of the design).

Every form in which a Python program can be started, with and without the guard, with and without cloudpickle.
"""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import textwrap
import zipapp
from collections import Counter
from pathlib import Path
from typing import Any

import attrs
import pytest
from running import PROGRAMS, TIMEOUT, Ended, left_in_session, plain_environment, run, write

from trio_offload._interpreter import locate as _locate

MAIN = PROGRAMS / "main_of_all_forms.py"


@attrs.frozen
class Site:
    """A folder for a program, with records of how often its main script was loaded and how many workers were started."""

    folder: Path

    def environment(self, **changes: str | None) -> dict[str, str]:
        return plain_environment(
            LOADS=str(self.folder / "loads"),
            TRIO_OFFLOAD_WORKER=str(self.folder / "worker"),
            STARTS=str(self.folder / "starts"),
            **changes,
        )

    def run(
        self, *arguments: Any, expect: int | None = 0, folder: Path | None = None, stdin: bytes = b"", **changes: str | None
    ) -> Ended:
        return run(
            [sys.executable, *arguments],
            environment=self.environment(**changes),
            folder=folder or self.folder,
            stdin=stdin,
            expect=expect,
        )

    def script(self, text: str, *arguments: str, name: str = "script.py", **options: Any) -> Ended:
        return self.run(write(self.folder / name, LOADS_ITSELF + textwrap.dedent(text)), *arguments, **options)

    def loads(self) -> Counter[str]:
        """How often the main script was loaded, by the name that it had."""
        path = self.folder / "loads"
        return Counter(line.split()[1] for line in path.read_text().splitlines()) if path.exists() else Counter()

    def starts(self) -> int:
        """How many workers were started."""
        path = self.folder / "starts"
        return len(path.read_text().splitlines()) if path.exists() else 0


LOADS_ITSELF = """import os
with open(os.environ["LOADS"], "a") as _file:
    _file.write(f"{os.getpid()} {__name__}\\n")
"""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    worker = tmp_path / "worker"
    worker.write_text(f'#!/bin/sh\necho $$ >> "$STARTS"\nexec "{_locate.worker_executable()}" "$@"\n')
    worker.chmod(0o755)
    return Site(tmp_path)


def without_cloudpickle(site: Site) -> str:
    """A folder for PYTHONPATH in which cloudpickle is, as far as an import can tell, not installed."""
    hidden = site.folder / "hidden"
    write(hidden / "cloudpickle.py", "raise ModuleNotFoundError(\"No module named 'cloudpickle'\", name='cloudpickle')\n")
    return str(hidden)


needs_cloudpickle = pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import cloudpickle"], capture_output=True).returncode != 0,
    reason="cloudpickle is not installed",
)

# --- every form --------------------------------------------------------------------------------------


def package(folder: Path, main: str = "__main__.py") -> Path:
    """A package whose main module needs its siblings."""
    write(folder / "pkg" / "__init__.py", "")
    write(folder / "pkg" / "sibling.py", "VALUE = 'sibling'\n")
    text = MAIN.read_text().replace("import dataclasses\n", "import dataclasses\n\nfrom . import sibling\n", 1)
    (folder / "pkg" / main).write_text(text)
    return folder


def form_script(folder: Path) -> list[str]:
    return [str(shutil.copy(MAIN, folder / "script.py"))]


def form_relative(folder: Path) -> list[str]:
    shutil.copy(MAIN, folder / "script.py")
    return ["script.py"]


def form_no_extension(folder: Path) -> list[str]:
    (folder / "bin").mkdir()
    return [str(shutil.copy(MAIN, folder / "bin" / "console-script"))]


def form_other_extension(folder: Path) -> list[str]:
    return [str(shutil.copy(MAIN, folder / "script.wsgi"))]


def form_link(folder: Path) -> list[str]:
    shutil.copy(MAIN, folder / "real.py")
    (folder / "link.py").symlink_to("real.py")
    return ["link.py"]


def form_compiled(folder: Path) -> list[str]:
    import py_compile

    return [str(py_compile.compile(str(shutil.copy(MAIN, folder / "x.py")), cfile=str(folder / "script.pyc"), doraise=True))]


def form_package(folder: Path) -> list[str]:
    package(folder)
    return ["-m", "pkg"]


def form_module_in_package(folder: Path) -> list[str]:
    package(folder, "start.py")
    return ["-m", "pkg.start"]


def form_module(folder: Path) -> list[str]:
    shutil.copy(MAIN, folder / "module.py")
    return ["-m", "module"]


def form_folder(folder: Path) -> list[str]:
    (folder / "app").mkdir()
    shutil.copy(MAIN, folder / "app" / "__main__.py")
    return ["app/"]


def form_folder_here(folder: Path) -> list[str]:
    shutil.copy(MAIN, folder / "__main__.py")
    return ["."]


def form_archive(folder: Path) -> list[str]:
    (folder / "app").mkdir()
    shutil.copy(MAIN, folder / "app" / "__main__.py")
    zipapp.create_archive(folder / "app", folder / "app.pyz")
    return ["app.pyz"]


def form_package_in_archive(folder: Path) -> list[str]:
    package(folder / "app")
    (folder / "app" / "__main__.py").write_text(MAIN.read_text())
    zipapp.create_archive(folder / "app", folder / "app.pyz")
    return ["-m", "pkg"]


FORMS = [
    form_script,
    form_relative,
    form_no_extension,
    form_other_extension,
    form_link,
    form_compiled,
    form_package,
    form_module_in_package,
    form_module,
    form_folder,
    form_folder_here,
    form_archive,
    form_package_in_archive,
]


@pytest.mark.parametrize("hidden", [False, True], ids=["", "without cloudpickle"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__.removeprefix("form_"))
def test_every_form_of_a_main_module(site: Site, form: Any, hidden: bool) -> None:
    """What lives in it goes to a worker and comes back as itself, by name, whether there is cloudpickle or not."""
    arguments = form(site.folder)
    path = [without_cloudpickle(site)] if hidden else []
    if form is form_package_in_archive:
        path.append("app.pyz")
    ended = site.run(*arguments, PYTHONPATH=os.pathsep.join(path) or None)
    assert ended.lines() == ["all held"]
    assert ended.stderr == ""
    assert site.loads()["__main__"] == 1
    # One for each context that the program opens, and one more in the nested worker.
    assert site.loads()["__mp_main__"] == 6


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__.removeprefix("form_"))
def test_the_working_directory_may_change_before_a_worker_starts(site: Site, form: Any) -> None:
    """The program's own modules are found by sys.path, so only what is absolute there is found; the main module always is."""
    if form is form_package_in_archive:
        pytest.skip("its folder on sys.path is relative, so after the change Python itself would not find it")
    ended = site.run(*form(site.folder), "--chdir")
    assert ended.lines() == ["all held"]


@needs_cloudpickle
@pytest.mark.parametrize(
    "runner", [("pdb", "-c", "continue", "-c", "quit"), ("cProfile",), ("trace", "--count", "-C", "counts")], ids=" ".join
)
def test_programs_that_run_a_script(site: Site, runner: tuple[str, ...]) -> None:
    """pdb and others run a script in a __main__ of their own making."""
    write(
        site.folder / "script.py",
        LOADS_ITSELF
        + textwrap.dedent(
            """
            import trio, trio_offload

            class Thing:
                pass

            def mine(thing):
                return isinstance(thing, Thing), Thing()

            if __name__ == "__main__":
                same, thing = trio.run(trio_offload.run_sync, mine, Thing())
                print("held", same, type(thing) is Thing)
            """
        ),
    )
    ended = site.run("-m", *runner, "script.py", stdin=b"q\n")
    assert "held True True" in ended.stdout


# --- loaded when it is needed, and not before ------------------------------------------------------------


def test_a_call_that_names_nothing_in_main_does_not_run_it_again(site: Site) -> None:
    """Whatever travels and whatever happens: values, exceptions, deaths, init and retire, other modules' functions."""
    shutil.copy(PROGRAMS / "everything_jobs.py", site.folder)
    ended = site.script(
        """
        import everything_jobs as jobs
        import functools, json, trio, trio_offload

        async def main():
            async with trio_offload.open_worker_context(init=jobs.true, retire=jobs.true) as context:
                for _ in range(3):
                    await context.run_sync(json.dumps, {"a": [1, 2.5, None, "__main__"]})
                    await context.run_sync(functools.partial(int, base=2), "101")
                    await context.run_sync(jobs.large, {"__main__": "__main__.double", b"__main__": "__mp_main__"})
                    await context.run_sync(jobs.import_multiprocessing)
                    for job in (jobs.fail, jobs.fail_strangely, jobs.die):
                        try:
                            await context.run_sync(job)
                        except Exception:
                            pass
            print("done")

        trio.run(main)
        """
    )
    assert ended.lines() == ["done"]
    assert site.loads() == {"__main__": 1}
    assert site.starts() > 10


def test_each_worker_loads_it_once(site: Site) -> None:
    ended = site.script(
        """
        import trio, trio_offload

        def pid():
            return os.getpid()

        async def main():
            async with trio_offload.open_worker_context() as context:
                pids = {await context.run_sync(pid) for _ in range(5)}
                print(len(pids))

        if __name__ == "__main__":
            trio.run(main)
        """
    )
    assert ended.lines() == ["1"]
    assert site.loads() == {"__main__": 1, "__mp_main__": 1}


def test_what_a_job_sees_of_main(site: Site) -> None:
    """``import __main__`` works; a look does not load it, and finds nothing until something else has."""
    write(
        site.folder / "looking.py",
        """
        import os, sys

        def introspect():
            import inspect, pickle, typing, warnings
            import __main__
            for name in ("__file__", "__path__", "__wrapped__", "__spec__", "__name__", "__dict__", "__loader__", "__doc__"):
                getattr(__main__, name, None)
            repr(__main__), dir(__main__)
            inspect.getmodule(introspect), inspect.stack(), inspect.getsource(introspect)
            warnings.warn("something")
            pickle.dumps([len, introspect])
            return len(open(os.environ["LOADS"]).readlines())

        def use():
            import __main__
            return __main__.value(), __main__.__file__, __main__ is sys.modules["__main__"] is sys.modules["__mp_main__"]

        def has(name):
            return hasattr(sys.modules["__main__"], name)
        """,
    )
    ended = site.script(
        """
        import looking, trio, trio_offload

        def value():
            return "the value"

        async def main():
            async with trio_offload.open_worker_context() as context:
                print(await context.run_sync(looking.introspect))
                print(await context.run_sync(looking.has, "value"), await context.run_sync(looking.has, "nothing"))
                # A job that imported it before it was loaded holds the module that was there then.
                found = await context.run_sync(looking.use)
                print(found[0], found[1] == __file__)
                print((await context.run_sync(looking.use))[2])
                print(await context.run_sync(looking.has, "value"), await context.run_sync(looking.has, "nothing"))

        if __name__ == "__main__":
            trio.run(main)
        """
    )
    assert ended.lines() == ["1", "False False", "the value True", "True", "True False"]


# --- no guard ------------------------------------------------------------------------------------------


def test_an_unguarded_script_may_call_what_is_not_its_own(site: Site) -> None:
    ended = site.script(
        """
        import math, trio, trio_offload
        print(trio.run(trio_offload.run_sync, math.factorial, 5))
        """
    )
    assert ended.lines() == ["120"]
    assert ended.stderr == ""
    assert site.loads() == {"__main__": 1}
    assert site.starts() == 1


UNGUARDED = {
    "run_sync": """
        trio.run(trio_offload.run_sync, mine)
    """,
    "context": """
        async def main():
            async with trio_offload.open_worker_context() as context:
                await context.run_sync(mine)
        trio.run(main)
    """,
    "scope": """
        async def main():
            async with trio_offload.cache_scope():
                await trio_offload.run_sync(mine)
        trio.run(main)
    """,
    "several at once": """
        async def main():
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(trio_offload.run_sync, mine)
        trio.run(main)
    """,
    "after others": """
        async def main():
            await trio_offload.run_sync(bool)
            await trio_offload.run_sync(mine)
        trio.run(main)
    """,
    "init": """
        async def main():
            async with trio_offload.open_worker_context(init=mine) as context:
                await context.run_sync(bool)
        trio.run(main)
    """,
}


@pytest.mark.parametrize("name", UNGUARDED)
def test_an_unguarded_script_is_taught_the_guard(site: Site, name: str) -> None:
    prelude = """
        import trio, trio_offload

        def mine():
            return 5
    """
    ended = site.script(prelude + UNGUARDED[name], expect=None)
    assert ended.status == 1
    assert 'if __name__ == "__main__":' in ended.stderr
    assert "trio.run(main)" in ended.stderr
    assert "RuntimeError" in ended.stderr
    if name != "several at once":  # there the nursery makes a group, as Trio does with any exception
        assert "ExceptionGroup" not in ended.stderr
        assert ended.stderr.splitlines().count("Traceback (most recent call last):") <= 3
    # The script is loaded once in each worker that was to run a function of it, and none of these starts another.
    # (A call that was waiting for the limit's token may find a worker that another one has tried already.)
    assert site.loads() == {"__main__": 1, "__mp_main__": 3 if name == "several at once" else 1}
    assert site.starts() <= site.loads()["__mp_main__"]


@pytest.mark.parametrize(
    "options",
    ["", ", chunk_size='auto'", ", return_outcomes=True", ", timeout=60, return_outcomes=True", ", ordered=False"],
)
@pytest.mark.parametrize("items", ["function", "items"])
def test_an_unguarded_map_is_no_items_fault(site: Site, items: str, options: str) -> None:
    """Each worker loads the script once, and the error is the end of the iteration."""
    ended = site.script(
        f"""
        import trio, trio_offload

        class Own:
            pass

        def own(item):
            return item

        async def main():
            work = (own, range(200)) if {items!r} == "function" else (bool, [Own() for _ in range(200)])
            count = 0
            try:
                async with trio_offload.map(*work, workers=2{options}) as results:
                    async for _ in results:
                        count += 1
            except RuntimeError as error:
                if __name__ != "__main__":
                    raise
                print(count, 'if __name__ == "__main__":' in str(error), hasattr(error, "item"))
                print(any("item" in note for note in error.__notes__))

        trio.run(main)
        """
    )
    assert ended.lines() == ["0 True False", "False"]
    assert site.loads()["__mp_main__"] <= 2
    assert site.starts() <= 2


def test_a_main_script_that_fails_in_workers_ends_a_map(site: Site) -> None:
    ended = site.script(
        """
        import trio, trio_offload

        def own(item):
            return item

        if __name__ != "__main__":
            raise ValueError("only in a worker")

        async def main():
            async with trio_offload.map(own, range(200), workers=2, return_outcomes=True) as results:
                print([result async for result in results])

        if __name__ == "__main__":
            try:
                trio.run(main)
            except ValueError as error:
                print(error)
        """
    )
    assert ended.lines() == ["only in a worker"]
    assert site.loads()["__mp_main__"] <= 2


def test_the_lesson_comes_as_an_exception_that_can_be_caught(site: Site) -> None:
    ended = site.script(
        """
        import trio, trio_offload

        def mine():
            return 5

        async def main():
            async with trio_offload.open_worker_context() as context:
                for _ in range(2):
                    try:
                        await context.run_sync(mine)
                    except RuntimeError as error:
                        if __name__ != "__main__":
                            raise
                        print(type(error).__name__, "__main__" in str(error))
                # The worker that could not load it goes on with other work.
                print(await context.run_sync(abs, -5), context.statistics().idle_workers)

        trio.run(main)
        """
    )
    assert ended.lines() == ["RuntimeError True", "RuntimeError True", "5 1"]
    assert site.starts() == 1


def test_unguarded_script_that_swallows_errors_makes_no_storm(site: Site) -> None:
    ended = site.script(
        """
        import trio, trio_offload

        def mine():
            return 5

        for _ in range(5):
            try:
                print(trio.run(trio_offload.run_sync, mine))
            except BaseException:
                print("swallowed")
        """
    )
    # In the worker all attempts are refused, the script comes to its end, and so the function is found there after all.
    assert ended.lines() == ["swallowed"] * 5 + ["5"] * 5
    assert site.starts() == 1


# --- scripts that do not load ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("raise ValueError('only in a worker')", "ValueError: only in a worker"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(3)", "SystemExit(3)"),
        ("import sys; sys.exit()", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("exec('1 +')", "SyntaxError"),
        ("raise BaseException('base')", "BaseException: base"),
    ],
)
def test_a_script_that_does_not_load(site: Site, statement: str, told: str) -> None:
    """Its exception is the caller's, with a word on what was going on; the worker is as good as before."""
    ended = site.script(
        f"""
        import traceback, trio, trio_offload

        def mine():
            return 5

        async def main():
            async with trio_offload.open_worker_context() as context:
                for _ in range(2):
                    try:
                        await context.run_sync(mine)
                    except BaseException as error:
                        traceback.print_exception(type(error), error, error.__traceback__)
                        print(*getattr(error, "__notes__", []), sep="\\n")
                        print(error)
                print(await context.run_sync(abs, -5))

        if __name__ == "__main__":
            trio.run(main)
        elif "worker" not in globals():
            worker = True
            {statement}
        """
    )
    assert ended.stderr.count(told) >= 2
    assert ended.stdout.count(f"main script {site.folder / 'script.py'}") == 2
    assert ended.lines()[-1] == "5"
    assert site.starts() == 1
    assert site.loads()["__mp_main__"] == 2
    if "exit" in statement.lower():
        assert 'if __name__ == "__main__":' in ended.stdout


def test_a_script_that_ends_the_process(site: Site) -> None:
    ended = site.script(
        """
        import trio, trio_offload

        def mine():
            return 5

        async def main():
            try:
                await trio_offload.run_sync(mine)
            except trio_offload.BrokenWorkerError as error:
                print(error.exitcode)
            print(await trio_offload.run_sync(abs, -5))

        if __name__ == "__main__":
            trio.run(main)
        else:
            os._exit(7)
        """
    )
    assert ended.lines() == ["7", "5"]


def test_a_name_that_the_script_has_only_here(site: Site) -> None:
    """Defined behind the guard: multiprocessing cannot find it either."""
    ended = site.script(
        """
        import trio, trio_offload

        if __name__ == "__main__":
            def mine():
                return 5
            try:
                print(trio.run(trio_offload.run_sync, mine))
            except AttributeError as error:
                print(error)
        """
    )
    assert "mine" in ended.stdout
    assert site.starts() == 1


# --- a script that goes away or changes -----------------------------------------------------------------------


GONE = """
    import trio, trio_offload

    class Thing:
        def __init__(self, value):
            self.value = value

    def mine(thing):
        return Thing(thing.value + 1)

    async def main():
        os.unlink(__file__)
        async with trio_offload.open_worker_context() as context:
            print(await context.run_sync(abs, -5))
            thing = await context.run_sync(mine, Thing(4))
            print(thing.value, type(thing) is Thing)

    if __name__ == "__main__":
        trio.run(main)
"""


@needs_cloudpickle
def test_a_script_that_is_gone_travels_by_value(site: Site) -> None:
    assert site.script(GONE).lines() == ["5", "5 True"]
    assert site.loads() == {"__main__": 1}


def test_a_script_that_is_gone_without_cloudpickle(site: Site) -> None:
    ended = site.script(GONE, expect=1, PYTHONPATH=without_cloudpickle(site))
    assert ended.lines() == ["5"]
    assert "Install the package cloudpickle" in ended.stderr
    assert str(site.folder / "script.py") in ended.stderr
    assert "__main__.mine" in ended.stderr


@needs_cloudpickle
def test_a_script_that_goes_once_a_worker_has_loaded_it(site: Site) -> None:
    ended = site.script(
        """
        import trio, trio_offload

        class Thing:
            pass

        def mine(thing):
            return isinstance(thing, Thing), Thing()

        async def main():
            async with trio_offload.open_worker_context() as context:
                for _ in range(2):
                    same, thing = await context.run_sync(mine, Thing())
                    print(same, type(thing) is Thing)
                    if os.path.exists(__file__):
                        os.unlink(__file__)

        if __name__ == "__main__":
            trio.run(main)
        """
    )
    assert ended.lines() == ["True True", "True True"]


# --- no file at all ------------------------------------------------------------------------------------------

INTERACTIVE = """\
import trio, trio_offload, dataclasses, enum, functools
run = lambda function, *args: trio.run(trio_offload.run_sync, function, *args)

@dataclasses.dataclass
class Point:
    x: int
    def moved(self):
        return Point(self.x + 1)

class Colour(enum.Enum):
    RED = 1

class Trouble(Exception):
    pass

def double(point):
    return helper(point)

def helper(point):
    return Point(point.x * 2)

def fail():
    raise Trouble("trouble")

def body():
    return "first"

def outer(n):
    def inner(m):
        return n + m
    return inner

point = run(double, Point(4))
print("A", point, type(point) is Point)
print("B", run(abs, -3))
print("C", run(functools.partial(double, point)) == Point(16))
print("D", run(lambda: Colour.RED) is Colour.RED)
print("E", run(point.moved).x, isinstance(run(Point, 1), Point))
print("F", run(body))

def body():
    return "second"

print("G", run(body))
print("H", run(outer(3), 4), run(outer, 3)(9))

try:
    run(fail)
except Trouble as error:
    print("I", type(error) is Trouble, error)

print("J", run(list, map(double, [Point(1)])) == [Point(2)])
print("K", run(isinstance, Point(1), Point))
"""
ANSWERS = [
    "A Point(x=8) True",
    "B 3",
    "C True",
    "D True",
    "E 9 True",
    "F first",
    "G second",
    "H 7 12",
    "I True trouble",
    "J True",
    "K True",
]


def answers(text: str) -> list[str]:
    # A prompt stands before what is printed at it.
    lines = [line.replace(">>> ", "").replace("... ", "").strip() for line in text.splitlines()]
    return [line for line in lines if line[1:2] == " " and line[0] in "ABCDEFGHIJK" and "print" not in line]


@needs_cloudpickle
def test_a_command_line_program(site: Site) -> None:
    ended = site.run("-c", INTERACTIVE)
    assert answers(ended.stdout) == ANSWERS
    assert ended.stderr == ""


@needs_cloudpickle
@pytest.mark.parametrize("arguments", [(), ("-",), ("-i",), ("-i", "-")], ids=" ".join)
def test_a_program_from_standard_input(site: Site, arguments: tuple[str, ...]) -> None:
    text = INTERACTIVE
    if "-i" in arguments:
        # A prompt takes a block to be at its end at an empty line, and one in the middle of a class not.
        text = text.replace("    def moved", "    def moved").replace("\nprint", "\n\nprint").replace("\ntry:", "\n\ntry:")
    ended = site.run(*arguments, stdin=text.encode())
    assert answers(ended.stdout) == ANSWERS
    if "-i" not in arguments:
        assert ended.stderr == ""


@needs_cloudpickle
def test_a_prompt_on_a_terminal(site: Site) -> None:
    ours, theirs = pty.openpty()
    # A dumb terminal gets the plain prompt, whatever the version.
    environment = site.environment(TERM="dumb", PYTHON_BASIC_REPL="1")
    text = INTERACTIVE.replace("\nprint", "\n\nprint").replace("\ntry:", "\n\ntry:") + "\nexit()\n"
    process = subprocess.Popen(
        [sys.executable, "-q"], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    said = b""
    try:
        with process:
            pending = text.encode().splitlines(keepends=True)
            while True:
                try:
                    data = os.read(ours, 65536)
                except OSError:  # how a terminal says that nobody is at its other side any more
                    break
                said += data
                # A line for each prompt: so nothing depends on how much a terminal keeps.
                while pending and said.count(b">>> ") + said.count(b"... ") > len(text.splitlines()) - len(pending):
                    os.write(ours, pending.pop(0))
            process.wait(TIMEOUT)
    finally:
        os.close(ours)
        assert left_in_session(process.pid) == []
    assert answers(said.decode()) == ANSWERS, said.decode()


@needs_cloudpickle
def test_code_interact(site: Site) -> None:
    """A console inside of a program: what is typed there lives in no module."""
    text = INTERACTIVE.replace("\nprint", "\n\nprint").replace("\ntry:", "\n\ntry:")
    ended = site.script(
        """
        import code
        if __name__ == "__main__":
            code.interact(banner="", exitmsg="", local={"__name__": "__console__"})
        """,
        stdin=text.encode(),
    )
    # dataclasses look for the module of a class; the console's is not there. Everything else has to work.
    assert answers(ended.stdout)[1:] == ANSWERS[1:] or answers(ended.stdout) == ANSWERS, str(ended)


NOTEBOOK = """
    import sys, types

    # What IPython's kernel does: a __main__ of its own, and cells that have no file.
    shell = types.ModuleType("__main__")
    shell.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = shell
    cells = sys.stdin.read().split("# cell\\n")
    for number, cell in enumerate(cells):
        exec(compile(cell, f"<ipython-input-{number}>", "exec"), shell.__dict__)
"""


@needs_cloudpickle
def test_a_notebook(site: Site) -> None:
    text = (
        INTERACTIVE.replace("\ndef", "\n# cell\ndef")
        .replace("\nprint", "\n# cell\nprint")
        .replace("\nclass", "\n# cell\nclass")
    )
    ended = site.script(NOTEBOOK, stdin=text.replace("dataclass\n# cell\n", "dataclass\n").encode())
    assert answers(ended.stdout) == ANSWERS, str(ended)
    assert site.loads() == {"__main__": 1}


@pytest.mark.parametrize("form", ["-c", "-", "notebook"])
def test_without_cloudpickle_it_says_what_would_help(site: Site, form: str) -> None:
    program = """if 1:
        import trio, trio_offload
        class Thing: pass
        def mine(): return 5
        print(trio.run(trio_offload.run_sync, abs, -5))
        for call in [(mine,), (type, Thing()), (lambda: 5,), (Thing,)]:
            try:
                trio.run(trio_offload.run_sync, *call)
            except Exception as error:
                print(type(error).__name__, "cloudpickle" in "".join([str(error), *getattr(error, "__notes__", [])]))
    """
    environment: Any = {"PYTHONPATH": without_cloudpickle(site)}
    if form == "-c":
        ended = site.run("-c", program, **environment)
    elif form == "-":
        ended = site.run("-", stdin=program.encode(), **environment)
    else:
        ended = site.script(NOTEBOOK, stdin=program.encode(), **environment)
    assert ended.lines()[0] == "5"
    assert [line.split()[1] for line in ended.lines()[1:]] == ["True"] * 4
    assert ended.stderr == ""


@needs_cloudpickle
def test_lambdas_and_inner_functions_of_a_script(site: Site) -> None:
    """The ordinary pickler refuses them; cloudpickle takes them with what they use, without the script being run again."""
    ended = site.script(
        """
        import trio, trio_offload

        FACTOR = 3

        def helper(n):
            return n * FACTOR

        class Thing:
            def __init__(self, value):
                self.value = value

        def adder(n):
            def add(m):
                return Thing(helper(m) + n)
            return add

        async def main():
            async with trio_offload.open_worker_context() as context:
                thing = await context.run_sync(adder(1), 2)
                print(thing.value, type(thing) is Thing)
                print(await context.run_sync(lambda: helper(5)))
                inner = await context.run_sync(adder, 10)
                print(inner(1).value)

        if __name__ == "__main__":
            trio.run(main)
        """
    )
    assert ended.lines() == ["7 True", "15", "13"]


@needs_cloudpickle
def test_what_came_by_value_goes_back_without_the_script(site: Site) -> None:
    """Its class says that it is of the main module. That is no reason to load it: an unguarded one would not survive that."""
    ended = site.script(
        """
        import trio, trio_offload

        class Thing:
            pass

        class Trouble(Exception):
            pass

        def fail():
            raise Trouble("trouble", Thing())

        async def main():
            async with trio_offload.open_worker_context() as context:
                print(type(await context.run_sync(lambda: Thing())) is Thing)
                try:
                    await context.run_sync(lambda: fail())
                except Trouble as error:
                    print(error.args[0], type(error.args[1]) is Thing)

        trio.run(main)
        """
    )
    assert ended.lines() == ["True", "trouble True"]
    assert site.loads() == {"__main__": 1}


@needs_cloudpickle
def test_what_is_typed_after_a_script(site: Site) -> None:
    """``python -i script.py``: the script has a file, and what is typed afterwards is not in it."""
    write(
        site.folder / "script.py",
        LOADS_ITSELF + "import trio, trio_offload\n\ndef of_script():\n    return 'of the script'\n",
    )
    typed = """\
print("A", trio.run(trio_offload.run_sync, of_script))

def typed():
    return "typed"

print("B", trio.run(trio_offload.run_sync, typed))

def of_script():
    return "typed anew"

print("C", trio.run(trio_offload.run_sync, of_script))
"""
    ended = site.run("-i", "script.py", stdin=typed.encode())
    assert answers(ended.stdout) == ["A of the script", "B typed", "C typed anew"], str(ended)


# --- scripts as they are ---------------------------------------------------------------------------------------


def test_what_stands_at_the_top_of_scripts(site: Site) -> None:
    """Arguments parsed, the future imported, an encoding declared, a first line for the shell, a byte order mark."""
    text = (
        "#!/usr/bin/env python\n"
        "# -*- coding: latin-1 -*-\n"
        '"""Documentation."""\n'
        "from __future__ import annotations\n"
        "import argparse, typing, trio, trio_offload\n"
        "arguments = argparse.ArgumentParser().parse_args(namespace=argparse.Namespace(own=1)) if 0 else None\n"
        "parser = argparse.ArgumentParser()\n"
        "parser.add_argument('number', type=int)\n"
        "arguments = parser.parse_args()\n"
        "class Typed(typing.NamedTuple):\n"
        "    value: Unknown = 1\n"
        "def mine():\n"
        "    return arguments.number, 'Grö\xdfe', Typed(), __doc__, __file__, __spec__, __package__, __name__, __builtins__ is not None\n"
        "if __name__ == '__main__':\n"
        "    there = trio.run(trio_offload.run_sync, mine)\n"
        "    here = mine()\n"
        "    print(there[:7] == here[:7], there[7])\n"
    )
    path = site.folder / "script.py"
    path.write_bytes(text.encode("latin-1"))
    assert site.run(path, "12").lines() == ["True __main__"]
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("latin-1", "utf-8").encode())
    assert site.run(path, "12").lines() == ["True __main__"]


def test_a_nested_worker_runs_a_function_of_main(site: Site) -> None:
    """Also where it is the nested call only that needs the script."""
    write(
        site.folder / "between.py",
        """
        import trio, trio_offload

        def pass_on(function, *args):
            return trio.run(trio_offload.run_sync, function, *args)
        """,
    )
    ended = site.script(
        """
        import between, trio, trio_offload

        class Thing:
            def __init__(self, value):
                self.value = value

        def mine(thing):
            return Thing(thing.value + 1)

        if __name__ == "__main__":
            thing = trio.run(trio_offload.run_sync, between.pass_on, mine, Thing(4))
            print(thing.value, type(thing) is Thing)
            print(trio.run(trio_offload.run_sync, between.pass_on, between.pass_on, between.pass_on, mine, Thing(4)).value)
            print(trio.run(trio_offload.run_sync, between.pass_on, between.pass_on, abs, -5))
        """
    )
    assert ended.lines() == ["5 True", "5", "5"]


@needs_cloudpickle
def test_a_nested_worker_of_a_command_line_program(site: Site) -> None:
    write(
        site.folder / "between.py",
        """
        import trio, trio_offload

        def pass_on(function, *args):
            return trio.run(trio_offload.run_sync, function, *args)
        """,
    )
    program = """if 1:
        import between, trio, trio_offload
        class Thing:
            pass
        def mine(n):
            thing = Thing()
            thing.value = n + 1
            return thing
        thing = trio.run(trio_offload.run_sync, between.pass_on, mine, 4)
        print(thing.value, type(thing) is Thing)
    """
    assert site.run("-c", program).lines() == ["5 True"]


def test_multiprocessing_from_a_function_of_main(site: Site) -> None:
    ended = site.script(
        """
        import multiprocessing, trio, trio_offload

        def square(n):
            return n * n

        def with_pool(method):
            with multiprocessing.get_context(method).Pool(2) as pool:
                return pool.map(square, range(4))

        if __name__ == "__main__":
            for method in ("spawn", "fork", "forkserver"):
                print(trio.run(trio_offload.run_sync, with_pool, method))
        """
    )
    assert ended.lines() == ["[0, 1, 4, 9]"] * 3
