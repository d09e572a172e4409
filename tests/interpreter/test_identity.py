"""End to end: the worker is the user's own Python (rule 1 of the design, and rule 10).

A program of its own is started for each case, because most of what is compared is decided when an interpreter starts. It
asks itself and a worker the same questions (programs/interpreter_facts.py); the answers have to be the same.
"""

from __future__ import annotations

import _warnings
import json
import os
import pty
import shutil
import signal
import sys
import termios
import types
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from running import BASE, PACKAGES, PROGRAMS, TIMEOUT, make_environment, plain_environment, run, run_script, started, write

import trio_offload
from trio_offload._interpreter import loader as _loader
from trio_offload._interpreter import locate as _locate
from trio_offload_worker._jobs import compat, settings

VERSION = sys.version_info[:2]
FOLDERS = os.pathsep.join([str(PROGRAMS), *PACKAGES])
# Where nothing can be made. Of a folder whose first part is missing importlib makes all the others in the working directory.
NO_FOLDER = "/dev/null/at/all"


def since(minor: int, *values: Any) -> Any:
    """A case that exists from Python 3.minor on."""
    return pytest.param(*values, marks=pytest.mark.skipif((3, minor) > VERSION, reason=f"new in Python 3.{minor}"))


def compare(
    tmp_path: Path,
    switches: Sequence[str] = (),
    *,
    python: str | Path = sys.executable,
    program: str | bytes | Path = PROGRAMS / "compare_interpreters.py",
    arguments: Sequence[str | bytes] = (),
    environment: Any = None,
    **options: Any,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The facts of a parent and of its worker."""
    answer = tmp_path / "answer.json"
    run([python, *switches, program, FOLDERS, answer, *arguments], environment=environment, **options)
    found = json.loads(answer.read_text())
    return found["parent"], found["worker"]


def differences(parent: dict[str, Any], worker: dict[str, Any]) -> dict[str, Any]:
    return {name: (parent.get(name), worker.get(name)) for name in parent | worker if parent.get(name) != worker.get(name)}


def assert_same(found: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    """Both are the same Python; returns the worker's facts."""
    parent, worker = found
    different = differences(parent, worker)
    # In full: pytest would cut what is the point.
    assert not different, "\n".join(f"{name}:\n  parent {pair[0]}\n  worker {pair[1]}" for name, pair in different.items())
    return worker


# --- what a command line says ----------------------------------------------------------------------

SWITCHES = [
    "",
    "-O",
    "-OO",
    "-B",
    "-b",
    "-bb",
    "-v",
    "-vv",
    "-q",
    "-E",
    "-I",
    "-s",
    "-S",
    since(11, "-P"),
    "-u",
    "-d",
    "-i",
    "-R",
    "-x",
    "-X dev",
    "-X utf8",
    "-X utf8=0",
    "-X importtime",
    since(11, "-X no_debug_ranges"),
    "-X int_max_str_digits=0",
    "-X int_max_str_digits=5000",
    "-X faulthandler",
    "-X tracemalloc",
    "-X tracemalloc=5",
    "-X showrefcount",
    since(11, "-X frozen_modules=off"),
    since(11, "-X frozen_modules=on"),
    f"-X pycache_prefix={NO_FOLDER}",
    "-X warn_default_encoding",
    "-X whatever=a=b -X flag",
    since(12, "-X perf"),
    since(13, "-X cpu_count=3"),
    since(13, "-X gil=1"),
    since(13, "-X perf_jit"),
    since(14, "-X context_aware_warnings=1"),
    since(14, "-X thread_inherit_context=1"),
    since(14, "-X context_aware_warnings=1 -X thread_inherit_context=1 -W error"),
    since(14, "-X disable_remote_debug"),
    since(14, "-X importtime=2"),
    # Not `all`: with that, tricycle 0.4 cannot be imported. What a program sets later is below.
    since(15, "-X lazy_imports=normal"),
    "-W error",
    "-W ignore::DeprecationWarning",
    "-W default",
    "-W error -W ignore::UserWarning -W once:foo.bar:ImportWarning:spam:3",
    "-Wi -Wd",
    "-O -B -s -W error -X dev -X utf8=0",
    "-I -S",
    "-IS -X dev -bb -u",
    "-OO -X dev -W ignore",
    "-b -W error",
    "-bb -W ignore",
    "-X dev -X importtime -X tracemalloc=3 -v",
    since(11, "-E -s -P -B -q"),
]


@pytest.mark.parametrize("switches", SWITCHES)
def test_switches(tmp_path: Path, switches: str) -> None:
    assert_same(compare(tmp_path, switches.split()))


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONOPTIMIZE": "1"},
        {"PYTHONOPTIMIZE": "2"},
        {"PYTHONDONTWRITEBYTECODE": "1"},
        {"PYTHONUNBUFFERED": "1"},
        {"PYTHONWARNINGS": "error"},
        {"PYTHONWARNINGS": "ignore::UserWarning,default"},
        {"PYTHONHASHSEED": "0"},
        {"PYTHONHASHSEED": "42"},
        {"PYTHONHASHSEED": "random"},
        {"PYTHONIOENCODING": "latin-1:replace"},
        {"PYTHONUTF8": "1"},
        {"PYTHONUTF8": "0"},
        {"PYTHONPYCACHEPREFIX": NO_FOLDER},
        {"PYTHONDEVMODE": "1"},
        {"PYTHONNOUSERSITE": "1"},
        {"PYTHONPATH": "/nowhere/at/all:/usr:relative"},
        since(11, {"PYTHONSAFEPATH": "1"}),
        {"PYTHONINTMAXSTRDIGITS": "0"},
        {"PYTHONFAULTHANDLER": "1"},
        {"PYTHONMALLOC": "debug"},
        {"PYTHONMALLOC": "malloc"},
        {"PYTHONTRACEMALLOC": "2"},
        {"PYTHONSTARTUP": "/nowhere/at/all"},
        {"PYTHONNODEBUGRANGES": "1"},
        {"PYTHONVERBOSE": "1"},
        {"PYTHONPROFILEIMPORTTIME": "1"},
        {"PYTHONINSPECT": "1"},
        {"PYTHONDEBUG": "1"},
        {"PYTHONWARNDEFAULTENCODING": "1"},
        {"PYTHONPERFSUPPORT": "1"},
        {"PYTHON_CPU_COUNT": "3"},
        {"PYTHON_GIL": "1"},
        {"PYTHON_FROZEN_MODULES": "off"},
        {"PYTHON_CONTEXT_AWARE_WARNINGS": "1"},
        {"PYTHON_THREAD_INHERIT_CONTEXT": "1"},
        {"PYTHON_DISABLE_REMOTE_DEBUG": "1"},
        {"PYTHON_LAZY_IMPORTS": "normal"},
        {"PYTHON_BASIC_REPL": "1", "PYTHON_COLORS": "0", "PYTHON_HISTORY": "/dev/null"},
        {"PYTHON_JIT": "1"},
        {"PYTHON_PYMALLOC_HUGEPAGES": "1"},
        {"PYTHONWARNINGS": "error", "PYTHONDEVMODE": "1"},
        {"PYTHONOPTIMIZE": "1", "PYTHONWARNINGS": "error", "PYTHONUTF8": "0"},
        {"MALLOC_ARENA_MAX": "1", "EMPTY": "", "ODD NAME": "a=b\nc"},
    ],
    ids=lambda variables: ",".join(f"{name}={value}" for name, value in variables.items()).replace("\n", "\\n"),
)
def test_variables(tmp_path: Path, variables: dict[str, str]) -> None:
    assert_same(compare(tmp_path, environment=plain_environment(**variables)))


@pytest.mark.parametrize("switches", ["-E", "-I", "-W error", "-O", "-X utf8=0 -X int_max_str_digits=7000"])
def test_switches_go_before_variables(tmp_path: Path, switches: str) -> None:
    environment = plain_environment(
        PYTHONOPTIMIZE="2",
        PYTHONUTF8="1",
        PYTHONWARNINGS="ignore",
        PYTHONINTMAXSTRDIGITS="0",
        PYTHONDONTWRITEBYTECODE="1",
        PYTHONUNBUFFERED="1",
    )
    assert_same(compare(tmp_path, switches.split(), environment=environment))


@pytest.mark.parametrize("seed", ["0", "42", "random", None])
def test_hashes_are_the_same_where_the_user_has_fixed_them(tmp_path: Path, seed: str | None) -> None:
    program = """
        import trio, trio_offload
        async def main():
            async with trio_offload.open_worker_context() as context:
                print(hash("text") == await context.run_sync(hash, "text"))
        trio.run(main)
    """
    ended = run_script(tmp_path, program, environment=plain_environment(PYTHONHASHSEED=seed))
    assert ended.lines() == [str(seed not in ("random", None))]


def test_a_seed_of_zero_needs_no_variable(tmp_path: Path) -> None:
    """An app made by PyInstaller for Python 3.14 has that seed and no variable."""
    program = """
        import os, trio, trio_offload
        del os.environ["PYTHONHASHSEED"]
        async def main():
            async with trio_offload.open_worker_context() as context:
                print(hash("text") == await context.run_sync(hash, "text"))
        trio.run(main)
    """
    assert run_script(tmp_path, program, environment=plain_environment(PYTHONHASHSEED="0")).lines() == ["True"]


# --- text ------------------------------------------------------------------------------------------

LOCALES = [
    {"LC_ALL": "C"},
    {"LC_ALL": "POSIX"},
    {"LC_ALL": "C.UTF-8"},
    {"LANG": ""},
    {"LANG": "C"},
    {"LANG": "xx_YY.UTF-8"},
    {"LC_CTYPE": "C"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LANG": "C", "PYTHONUTF8": "0"},
    {"LANG": "C", "PYTHONCOERCECLOCALE": "warn"},
    {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"},
]


@pytest.mark.parametrize(
    "variables", LOCALES, ids=lambda variables: ",".join(f"{name}={value}" for name, value in variables.items())
)
def test_text_in_any_locale(tmp_path: Path, variables: dict[str, str]) -> None:
    """Encodings, and what came through them: arguments, variables and folders, also such as are not text at all."""
    odd = os.fsencode(tmp_path) + "/Größe €".encode() + b" \xff\xfe"
    os.mkdir(odd)
    program = odd + b"/programm \xe9.py"
    shutil.copy(os.fsencode(PROGRAMS / "compare_interpreters.py"), program)
    environment: dict[bytes, bytes] = {
        os.fsencode(name): os.fsencode(value) for name, value in plain_environment(**variables).items()
    }
    environment[b"ODD \xff \xc3\xa4"] = b"\xc3\xa4 \xff \xe2\x82"
    environment[b"PYTHONPATH"] = odd
    worker = assert_same(
        compare(
            tmp_path,
            program=program,
            arguments=["Grüße", b"\xff\xfe", "", " ", "\n"],
            environment=environment,
            folder=Path(os.fsdecode(odd)),
        )
    )
    assert worker["environment"][repr(b"ODD \xff \xc3\xa4")] == repr(b"\xc3\xa4 \xff \xe2\x82")
    assert worker["working directory"] == repr(odd)


@pytest.mark.parametrize("switches", ["", "-u", "-X utf8=0"])
def test_streams_of_a_terminal(tmp_path: Path, switches: str) -> None:
    ours, theirs = pty.openpty()
    try:
        # Nobody reads what the terminal would echo.
        attributes = termios.tcgetattr(theirs)
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(theirs, termios.TCSANOW, attributes)
        answer = tmp_path / "answer.json"
        command: list[str | Path] = [
            sys.executable,
            *switches.split(),
            PROGRAMS / "compare_interpreters.py",
            FOLDERS,
            answer,
        ]
        with started(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
            process.wait(TIMEOUT)
        assert process.returncode == 0
        found = json.loads(answer.read_text())
        worker = assert_same((found["parent"], found["worker"]))
        stdout = worker["streams"]["stdout"]
        assert stdout["write_through"] if switches == "-u" else stdout["line_buffering"]
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2), (1, 2)], ids=str)
def test_streams_that_are_closed(tmp_path: Path, closed: tuple[int, ...]) -> None:
    """Everything but the streams is the same; those are closed, or lead nowhere."""
    redirections = " ".join(f"{number}{'<' if number == 0 else '>'}&-" for number in closed)
    answer = tmp_path / "answer.json"
    program = PROGRAMS / "compare_interpreters.py"
    run(["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, program, FOLDERS, answer])
    found = json.loads(answer.read_text())
    streams = found["parent"].pop("streams"), found["worker"].pop("streams")
    assert_same((found["parent"], found["worker"]))
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if number not in closed:
            assert streams[0][name] == streams[1][name]


# --- what a program changes before the worker starts -------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "import sys; sys.path[:] = ['/made/up', *sys.path, 'relative', '']",
        "import sys; sys.path = ['/another/list', *sys.path]",
        "import sys; sys.argv[:] = ['renamed', 'b']",
        "import sys; sys.argv = []",
        f"import sys; sys.pycache_prefix = '{NO_FOLDER}'",
        "import os; os.chdir('/')",
        "import os; os.umask(0o027)",
        "import os; os.environ['NEW'] = 'value'; os.environ.pop('HOME', None); os.environ['PATH'] += ':/made/up'",
        "import os; os.environ['PYTHONPATH'] = '/made/up'; os.environ['PYTHONSTARTUP'] = '/made/up'",
        "import warnings; warnings.simplefilter('error')",
        "import warnings; warnings.filterwarnings('ignore', 'a (b|c)', UserWarning, 'mod.*', 7)",
        "import warnings; warnings.resetwarnings()",
        since(15, "import sys; sys.set_lazy_imports('all')"),
        "import warnings; warnings.filterwarnings('ignore', 'first'); warnings.filterwarnings('once', module='last', append=True)",
    ],
)
def test_changes_at_run_time(tmp_path: Path, change: str) -> None:
    environment = plain_environment()
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    assert_same(compare(tmp_path, arguments=["change:" + change], environment=environment))


@pytest.mark.parametrize(
    ("flag", "change"),
    [
        ("dont_write_bytecode", "sys.dont_write_bytecode = True"),
        ("dont_write_bytecode", "sys.dont_write_bytecode = False"),
        ("int_max_str_digits", "sys.set_int_max_str_digits(12345)"),
        ("int_max_str_digits", "sys.set_int_max_str_digits(0)"),
    ],
)
def test_what_a_flag_says_of_the_start(tmp_path: Path, flag: str, change: str) -> None:
    """``sys.flags`` tells how Python was started, and a worker is started as the parent is now."""
    parent, worker = compare(tmp_path, arguments=[f"change:import sys; {change}"])
    for facts in (parent, worker):
        facts["flags"].pop(flag, None)
    assert_same((parent, worker))


async def test_a_filter_with_a_pattern_draws_nothing_into_a_worker() -> None:
    """It is a regular expression when a warning is held against it, and is shown as one."""
    drawn_in = "{'re', 'typing', 'warnings'} & set(__import__('sys').modules)"
    with warnings.catch_warnings():
        warnings.resetwarnings()
        async with trio_offload.open_worker_context() as context:
            without = await context.run_sync(eval, drawn_in)
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="a BAD .* day$")
        async with trio_offload.open_worker_context() as context:
            assert await context.run_sync(eval, drawn_in) == without
            with pytest.raises(UserWarning, match="rainy"):
                await context.run_sync(eval, "__import__('warnings').warn('a bad rainy day')")
            await context.run_sync(eval, "__import__('warnings').warn('a bad rainy day for ducks')")
            filters = await context.run_sync(eval, "__import__('warnings').filters")
            assert (filters, str(filters)) == (warnings.filters, str(warnings.filters))


def test_a_warning_option_from_now_on(tmp_path: Path) -> None:
    """An option that was added to the list has had no effect here; a Python that is started with it heeds it."""
    parent, worker = compare(tmp_path, arguments=["change:import sys; sys.warnoptions.append('ignore::UserWarning')"])
    assert worker["warning filters"] == [["ignore", None, "builtins.UserWarning", None, 0], *parent["warning filters"]]
    assert set(differences(parent, worker)) == {"warning filters"}


@pytest.mark.parametrize("name", ["LC_ALL", "LANG", "LC_CTYPE"])
def test_a_locale_for_programs_that_are_started(tmp_path: Path, name: str) -> None:
    """Set so that another program's output can be parsed. A worker still has to open the files that its parent names."""
    parent, worker = compare(tmp_path, arguments=[f"change:import os; os.environ[{name!r}] = 'C'"])
    assert worker["opened text"][0].lower() == parent["opened text"][0].lower()
    different = differences(parent, worker)
    # The streams of a Python in the C locale take what is no text as well: `surrogateescape` instead of `strict`.
    assert set(different) <= {"flags", "locale", "opened text", "streams"}, different


def test_a_home_of_another_python(tmp_path: Path) -> None:
    """A program may set it to start another Python; then it is told why a worker does not start."""
    program = """
        import os, trio, trio_offload
        os.environ["PYTHONHOME"] = "/made/up"
        try:
            trio.run(trio_offload.run_sync, bool)
        except trio_offload.WorkerStartError as error:
            print(error)
    """
    ended = run_script(tmp_path, program)
    assert "Python did not start in the worker" in ended.stdout
    assert "PYTHONHOME" in ended.stdout + ended.stderr


def test_a_working_directory_that_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    change = "import os; os.rmdir(os.getcwd())"
    assert_same(compare(tmp_path, arguments=["change:" + change], folder=folder))


def test_a_path_entry_that_is_no_string(tmp_path: Path) -> None:
    """Python skips it when it imports, so a worker need not have it; it must not break the start."""
    change = (
        "import pathlib, sys; sys.path.append(pathlib.Path('/made/up')); sys.path.append(None); sys.path.append('/last')"
    )
    parent, worker = compare(tmp_path, arguments=["change:" + change])
    assert set(differences(parent, worker)) == {"path"}
    assert worker["path"].endswith("'/last']")


def test_warning_filter_with_category_of_unused_module(tmp_path: Path) -> None:
    """The filter waits until a job imports the module; it does not import it by itself."""
    write(tmp_path / "heavy.py", "class HeavyWarning(UserWarning):\n    pass\n")
    write(
        tmp_path / "jobs_of_this.py",
        """
        import sys

        def has_heavy():
            return "heavy" in sys.modules

        def warn_heavily():
            import warnings
            import heavy
            try:
                warnings.warn("too heavy", heavy.HeavyWarning)
            except heavy.HeavyWarning:
                return "raised"
            return "warned"
        """,
    )
    ended = run_script(
        tmp_path,
        """
        import heavy, jobs_of_this, trio, trio_offload, warnings
        warnings.simplefilter("error", heavy.HeavyWarning)
        async def main():
            async with trio_offload.open_worker_context() as context:
                print(await context.run_sync(jobs_of_this.has_heavy))
                await context.run_sync(bool)
                print(await context.run_sync(jobs_of_this.has_heavy))
                # The job that imports it runs under the filters that were there when it began; the next has them all.
                await context.run_sync(jobs_of_this.warn_heavily)
                print(await context.run_sync(jobs_of_this.warn_heavily))
        trio.run(main)
        """,
    )
    assert ended.lines() == ["False", "False", "raised"]


@pytest.mark.parametrize("names", ["as they are", "none of Python's private ones"])
def test_filters_that_change_reach_modules_that_have_warned(names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module remembers which of its warnings have been shown; other filters decide anew."""
    if names != "as they are":
        # A later Python may have other names.
        monkeypatch.setattr(compat, "_warnings", types.SimpleNamespace(filters=_warnings.filters))
    code = compile("import warnings; warnings.warn('told', UserWarning)", "a module", "exec")
    module: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as told:
        for action, count in [("default", 1), ("default", 2), ("ignore", 2), ("always", 4)]:
            settings.apply({"warning_filters": [[action, None, "builtins:UserWarning", None, 0]]})
            exec(code, module)
            exec(code, module)
            assert len(told) == count
        settings.apply({"warning_filters": [["error", None, "builtins:UserWarning", None, 0]]})
        with pytest.raises(UserWarning, match="told"):
            exec(code, module)
    if hasattr(_warnings, "_release_lock"):
        # Nobody holds the lock any more.
        with pytest.raises(RuntimeError):
            _warnings._release_lock()


@pytest.mark.parametrize("kind", ["SPAWN", "FORKSERVER", "FORK"])
@pytest.mark.parametrize("switches", [[], since(14, ["-X", "context_aware_warnings=1"])], ids=["", "of a context"])
def test_filters_that_a_caller_has_for_the_moment(tmp_path: Path, kind: str, switches: list[str]) -> None:
    program = f"""
        import trio, trio_offload, warnings
        def job():
            import warnings
            try:
                warnings.warn("told", UserWarning)
            except UserWarning:
                return "raised"
        async def main():
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                async with trio_offload.open_worker_context(worker_type=trio_offload.WorkerType.{kind}) as context:
                    print(await context.run_sync(job))
        if __name__ == "__main__":
            trio.run(main)
    """
    ended = run([sys.executable, *switches, write(tmp_path / "script.py", program)])
    assert ended.lines() == ["raised"]


# --- the environment ---------------------------------------------------------------------------------

ENVIRONMENT_PROGRAM = """
    import os, subprocess, sys, trio, trio_offload

    def of_subprocess(*command):
        return dict(line.split(b"=", 1) for line in subprocess.check_output(command).split(b"\\0") if line)

    def of_system():
        return os.popen("env | grep LD_LIBRARY_PATH").read()

    def of_c():
        import ctypes
        value = ctypes.CDLL(None).getenv
        value.restype = ctypes.c_char_p
        return value(b"LD_LIBRARY_PATH")

    async def main():
        async with trio_offload.open_worker_context() as context:
            ask = context.run_sync
            assert await ask(dict, os.environb) == dict(os.environb)
            assert await ask(os.getenv, "LD_LIBRARY_PATH") == os.getenv("LD_LIBRARY_PATH")
            assert await ask(of_subprocess, "env", "-0") == of_subprocess("env", "-0")
            # A Python that a job starts is this one, with its own library.
            code = "import os, sys; sys.stdout.buffer.write(b'a=' + os.environb.get(b'LD_LIBRARY_PATH', b'') + sys.version.encode())"
            assert await ask(of_subprocess, sys.executable, "-c", code) == of_subprocess(sys.executable, "-c", code)
            assert await ask(of_system) == of_system()
            assert await ask(of_c) == of_c()
            print(repr(os.environb.get(b"LD_LIBRARY_PATH")), file=sys.stderr)

    if __name__ == "__main__":
        trio.run(main)
"""


@pytest.mark.parametrize("library_path", [None, "", "/nowhere", "/a b:/c:", ":", "/tmp::relative"])
def test_the_library_path_is_the_users_own(tmp_path: Path, library_path: str | None) -> None:
    """Also for what a job starts. Ours is needed only until the worker has been loaded."""
    ended = run_script(tmp_path, ENVIRONMENT_PROGRAM, environment=plain_environment(LD_LIBRARY_PATH=library_path))
    expected = None if library_path is None else library_path.encode()
    assert ended.stderr.strip() == repr(expected)


def test_variables_that_change_while_the_program_runs(tmp_path: Path) -> None:
    """A worker has those of the moment at which it starts. Those that change later do not reach it, as with any process."""
    program = """
        import os, trio, trio_offload
        async def main():
            async with trio_offload.open_worker_context() as context:
                os.environ["LD_LIBRARY_PATH"] = "/first"
                print(await context.run_sync(os.getenv, "LD_LIBRARY_PATH"))
                os.environ["LD_LIBRARY_PATH"] = "/second"
                print(await context.run_sync(os.getenv, "LD_LIBRARY_PATH"))
            del os.environ["LD_LIBRARY_PATH"]
            async with trio_offload.open_worker_context() as context:
                print(await context.run_sync(os.getenv, "LD_LIBRARY_PATH"))
        trio.run(main)
    """
    assert run_script(tmp_path, program).lines() == ["/first", "/first", "None"]


# --- where a Python can live -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [(), ("--system-site-packages",), ("--copies",)], ids=lambda arguments: " ".join(arguments) or "plain"
)
def test_virtual_environments(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    python = make_environment(tmp_path / "environment", *arguments)
    worker = assert_same(compare(tmp_path, python=python))
    assert worker["prefix"] == repr(str(tmp_path / "environment"))
    assert worker["base_prefix"] == repr(sys.base_prefix)
    assert worker["executable"] == repr(str(python))


def test_an_environment_made_from_an_environment(tmp_path: Path) -> None:
    first = make_environment(tmp_path / "first")
    second = make_environment(tmp_path / "second", python=str(first))
    assert_same(compare(tmp_path, python=second))


def test_an_environment_behind_a_link(tmp_path: Path) -> None:
    make_environment(tmp_path / "environment")
    (tmp_path / "link").symlink_to(tmp_path / "environment")
    worker = assert_same(compare(tmp_path, python=tmp_path / "link" / "bin" / "python"))
    assert worker["prefix"] == repr(str(tmp_path / "link"))


@pytest.mark.parametrize("name", ["python", "python3", f"python{VERSION[0]}.{VERSION[1]}"])
def test_each_name_of_an_environments_python(tmp_path: Path, name: str) -> None:
    python = make_environment(tmp_path / "environment").with_name(name)
    assert_same(compare(tmp_path, python=python))


def test_a_python_that_is_called_by_a_relative_name(tmp_path: Path) -> None:
    make_environment(tmp_path / "environment")
    assert_same(compare(tmp_path, python="environment/bin/python", folder=tmp_path))
    assert_same(compare(tmp_path, python="./python", folder=tmp_path / "environment" / "bin"))


def test_a_python_that_is_found_on_the_path(tmp_path: Path) -> None:
    python = make_environment(tmp_path / "environment")
    environment = plain_environment(PATH=f"{python.parent}:{os.environ['PATH']}")
    answer = tmp_path / "answer.json"
    run(["env", "python", PROGRAMS / "compare_interpreters.py", FOLDERS, answer], environment=environment)
    found = json.loads(answer.read_text())
    assert assert_same((found["parent"], found["worker"]))["prefix"] == repr(str(tmp_path / "environment"))


@pytest.mark.parametrize("target", ["base", "environment"])
def test_a_link_to_a_python(tmp_path: Path, target: str) -> None:
    """The link's own folder has no pyvenv.cfg, so it is the base Python, wherever it points."""
    python = BASE if target == "base" else make_environment(tmp_path / "environment")
    link = tmp_path / "bin" / "my-own-python"
    link.parent.mkdir()
    link.symlink_to(python)
    assert_same(compare(tmp_path, python=link))


def test_a_python_that_was_told_another_name(tmp_path: Path) -> None:
    """What a login shell, supervisors and some launchers do: argv[0] is not where the program is."""
    answer = tmp_path / "answer.json"
    command = 'name=$1; shift; exec -a "$name" "$@"'
    for name in ("-python", "/nowhere/python", "no-such-program"):
        run(["bash", "-c", command, "bash", name, BASE, PROGRAMS / "compare_interpreters.py", FOLDERS, answer])
        found = json.loads(answer.read_text())
        assert_same((found["parent"], found["worker"]))


def test_the_home_of_python_from_the_environment(tmp_path: Path) -> None:
    assert_same(compare(tmp_path, python=BASE, environment=plain_environment(PYTHONHOME=sys.base_prefix)))


def test_packages_in_a_folder_of_their_own(tmp_path: Path) -> None:
    """As `pip install --target` makes it: the worker lies in the folder's bin."""
    from trio_offload._interpreter import locate as _locate

    target = tmp_path / "target"
    (target / "bin").mkdir(parents=True)
    for package in ("trio_offload", "trio_offload_worker"):
        (target / package).symlink_to(Path(PACKAGES[0], package).resolve())
    copy = shutil.copy(_locate.worker_executable(), target / "bin")
    environment = plain_environment(PYTHONPATH=os.pathsep.join([str(target), *PACKAGES]))
    environment.pop(_locate.OVERRIDE, None)
    assert_same(compare(tmp_path, python=BASE, environment=environment))
    said = run(
        [BASE, "-c", "from trio_offload._interpreter.locate import worker_executable; print(worker_executable())"],
        environment=environment,
    )
    assert said.stdout.strip() == copy


def test_files_that_python_reads_at_its_start(tmp_path: Path) -> None:
    """.pth files with folders and with code, finders that they install, sitecustomize and usercustomize."""
    python = make_environment(tmp_path / "environment", "--system-site-packages")
    packages = next((tmp_path / "environment" / "lib").glob("python*")) / "site-packages"
    added = tmp_path / "added"
    write(added / "from_added.py", "VALUE = 'a folder that a .pth names'")
    (packages / "folder.pth").write_text(f"{added}\n")
    (packages / "code.pth").write_text("import sys; sys.from_pth = 'code in a .pth'\n")
    # What `pip install --editable` puts there for a project that is not just a folder.
    write(
        packages / "editable_finder.py",
        """
        import importlib.util, sys

        class Finder:
            @staticmethod
            def find_spec(name, path=None, target=None):
                if name == "edited":
                    return importlib.util.spec_from_file_location(name, FILE)

        FILE = sys.prefix + "/../elsewhere/another_name.py"
        sys.meta_path.append(Finder)
        """,
    )
    write(tmp_path / "elsewhere" / "another_name.py", "VALUE = 'an editable finder'")
    (packages / "editable.pth").write_text("import editable_finder\n")
    # Not among the packages: Debian has a sitecustomize of its own before those.
    custom = tmp_path / "custom"
    write(custom / "sitecustomize.py", "import sys; sys.from_site = 'sitecustomize'; print('sitecustomize was here')")
    base = tmp_path / "user"
    version = f"python{VERSION[0]}.{VERSION[1]}"
    write(base / "lib" / version / "site-packages" / "usercustomize.py", "import sys; sys.from_user = 'usercustomize'")
    write(
        tmp_path / "found.py",
        """
        import sys

        def found():
            import edited, from_added
            return [sys.from_pth, sys.from_site, sys.from_user, edited.VALUE, from_added.VALUE]
        """,
    )
    environment = plain_environment(
        PYTHONPATH=str(custom), PYTHONUSERBASE=str(base), PYTHONSTARTUP=str(write(tmp_path / "startup.py", "print('wrong')"))
    )
    ended = run(
        [
            python,
            write(
                tmp_path / "script.py",
                """
                import found, trio, trio_offload
                async def main():
                    async with trio_offload.open_worker_context() as context:
                        assert found.found() == await context.run_sync(found.found)
                        print("the same", flush=True)
                trio.run(main)
                """,
            ),
        ],
        environment=environment,
    )
    # One line is the parent's, one the worker's: what a start prints goes where the user's output goes.
    assert ended.lines() == ["sitecustomize was here", "sitecustomize was here", "the same"]
    assert_same(compare(tmp_path, python=python, environment=environment))


def test_a_sitecustomize_that_raises_is_told_as_python_tells_it(tmp_path: Path) -> None:
    custom = tmp_path / "custom"
    write(custom / "sitecustomize.py", "raise ValueError('of sitecustomize')")
    ended = run_script(
        tmp_path,
        """
        import trio, trio_offload
        async def main():
            async with trio_offload.open_worker_context() as context:
                print(await context.run_sync(int, "5"))
        trio.run(main)
        """,
        environment=plain_environment(PYTHONPATH=str(custom)),
    )
    assert ended.lines() == ["5"]
    assert ended.stderr.count("of sitecustomize") == 2


@pytest.mark.parametrize("change", ["sys.executable = '/nowhere/app'", "sys.prefix = '/nowhere'"])
def test_a_python_that_is_not_what_it_says(tmp_path: Path, change: str) -> None:
    """Told before anything runs: a worker with other packages than the program's would be worse than none."""
    python = make_environment(tmp_path / "environment")
    script = write(
        tmp_path / "script.py",
        f"""
        import sys, trio, trio_offload
        {change}
        for _ in range(2):
            try:
                trio.run(trio_offload.run_sync, print, "this ran")
            except trio_offload.WorkerStartError as error:
                print(error)
        print(trio_offload.default_context_statistics().idle_workers)
        """,
    )
    ended = run([python, script])
    assert len(ended.lines()) == 3
    assert ended.lines()[-1] == "0"
    for line in ended.lines()[:-1]:
        assert line.startswith("the worker is not this Python: its sys.prefix is ")
        assert "/nowhere" in line
    assert ended.stderr == ""


def test_a_long_command_line(tmp_path: Path) -> None:
    """Longer than any buffer on the way, as ``program *.txt`` may make it."""
    assert_same(compare(tmp_path, arguments=["x" * 100_000] * 10 + [str(number) for number in range(20_000)]))


# --- nothing more than that Python (rule 10) -----------------------------------------------------------

MODULES_PROGRAM = """
    import sys, trio, trio_offload, bare

    async def main():
        async with trio_offload.open_worker_context() as context:
            print(*await context.run_sync(bare.modules), sep="\\n")

    if __name__ == "__main__":
        trio.run(main)
"""


def test_a_worker_has_imported_next_to_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Held to the letter, so that whatever costs a start is seen by whoever adds it."""
    write(tmp_path / "bare.py", "import sys\n\ndef modules():\n    return sorted(sys.modules)\n")
    plain = set(run_script(tmp_path, "import sys; print(*sys.modules, sep='\\n')", name="plain.py").lines())
    worker = set(run_script(tmp_path, MODULES_PROGRAM).lines())
    print("imported by a worker beyond a bare Python:", sorted(worker - plain))
    extra = worker - plain
    allowed = {
        "bare",  # the job's own
        "__mp_main__",  # the name that a worker's pickles have for __main__
        "_pickle",
        "faulthandler",  # built in
        "_trio_offload_line",  # an object, which a job that talks looks for
        # What _pickle imports by itself (Modules/_pickle.c, _Pickle_InitState).
        "_compat_pickle",
        "copyreg",
        "_functools",
        # Whether sys.modules has these after a start depends on the minor version.
        "_operator",
        "itertools",
    }
    assert extra <= allowed, sorted(extra - allowed)
    # Python imports that one to install its signal handlers, which a worker has none of.
    assert plain - worker <= {"_signal"}


def test_nothing_of_ours_comes_with_what_a_job_does(tmp_path: Path) -> None:
    """Not with functions of the main module, exceptions, and results that need the slow way either."""
    program = """
        import sys, trio, trio_offload

        OURS = ("trio", "attr", "attrs", "cbor2", "outcome", "tricycle", "sniffio", "pytest", "trio_offload", "multiprocessing")

        def of_main():
            return [name for name in OURS if name in sys.modules]

        class OfMain:
            pass

        async def main():
            async with trio_offload.open_worker_context() as context:
                try:
                    await context.run_sync(divmod, 1, 0)
                except ZeroDivisionError:
                    pass
                print(await context.run_sync(eval, f"[name for name in {OURS} if name in __import__('sys').modules]", {}))

        if __name__ == "__main__":
            trio.run(main)
    """
    assert run_script(tmp_path, program).lines() == ["[]"]


def test_signals_are_left_alone(tmp_path: Path) -> None:
    """No handler of Python's but for SIGINT, which is swallowed; nothing blocked; ignored what Python ignores."""
    write(
        tmp_path / "status.py",
        """
        def status():
            with open("/proc/self/status") as file:
                fields = dict(line.rstrip("\\n").split(":\\t", 1) for line in file)
            return [int(fields[name], 16) for name in ("SigBlk", "SigIgn", "SigCgt")]

        def handles_interrupts():
            import signal
            handler = signal.getsignal(signal.SIGINT)
            return callable(handler) and handler is not signal.default_int_handler
        """,
    )
    ended = run_script(
        tmp_path,
        """
        import signal, status, trio, trio_offload
        async def main():
            async with trio_offload.open_worker_context() as context:
                for facts in [status.status(), await context.run_sync(status.status)]:
                    print(*facts)
                print(await context.run_sync(status.handles_interrupts))
                print(await context.run_sync(signal.getsignal, signal.SIGTERM) == signal.SIG_DFL)
        trio.run(main)
        """,
    )
    parent, worker = ([int(number) for number in line.split()] for line in ended.lines()[:2])
    assert ended.lines()[2:] == ["True", "True"]
    assert worker[0] == parent[0] == 0
    # glibc's own; its posix_spawn ignores them until the program's threads need them.
    of_glibc = {32, 33}
    assert signals(worker[1]) - of_glibc == signals(parent[1]) - of_glibc
    # Python's faulthandler, which is on in every worker, and the signal by which it is asked for the stacks (SIGSTKFLT, which
    # Python 3.10 has no name for).
    faults = {signal.SIGSEGV, signal.SIGFPE, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, 16}
    assert signals(worker[2]) - faults - of_glibc == {signal.SIGINT}


def signals(mask: int) -> set[int]:
    return {number for number in range(1, 65) if mask & 1 << (number - 1)}


# --- a worker adds no noise -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "switches",
    [
        "-X dev -bb -W error",
        "-bb",
        "-X dev -W default",
        "-X warn_default_encoding -W error::EncodingWarning",
        "-O -W error",
    ],
)
def test_no_warning_is_ours(tmp_path: Path, switches: str) -> None:
    """Neither here nor in a worker, whatever is done: calls, exceptions, cancellation, deaths, scopes, the default context."""
    shutil.copy(PROGRAMS / "everything.py", tmp_path)
    shutil.copy(PROGRAMS / "everything_jobs.py", tmp_path)
    ended = run([sys.executable, *switches.split(), tmp_path / "everything.py"])
    assert (ended.stdout, ended.stderr) == ("all done\n", "")


# --- the search for libraries ------------------------------------------------------------------------


@pytest.mark.parametrize("preload", [None, "libc.so.6"])
def test_libraries_come_from_where_the_program_takes_them(tmp_path: Path, preload: str | None) -> None:
    """Two libraries of one name: one in a folder of the user's, one beside libpython. What is preloaded stays the user's own, too."""
    library = Path(_locate.libpython())
    mine = tmp_path / "mine"
    beside = tmp_path / "beside"
    mine.mkdir()
    beside.mkdir()
    for folder in (mine, beside):
        shutil.copy(library, folder / "libtwofold.so")
    copy = beside / library.name
    shutil.copy(library, copy)
    program = f"""
        import ctypes, os, trio, trio_offload
        from trio_offload._interpreter import locate as _locate

        def loaded():
            ctypes.CDLL("libtwofold.so", os.RTLD_LOCAL)
            with open("/proc/self/maps") as maps:
                return {{line.split()[5] for line in maps if "twofold" in line}}, os.getenv("LD_PRELOAD"), os.getenv("LD_LIBRARY_PATH")

        if __name__ == "__main__":
            _locate.libpython = lambda: {str(copy)!r}
            print(trio.run(trio_offload.run_sync, loaded) == loaded())
    """
    environment = plain_environment(LD_LIBRARY_PATH=str(mine), LD_PRELOAD=preload)
    assert run_script(tmp_path, program, environment=environment).lines() == ["True"]


@pytest.mark.parametrize(
    ("before", "path", "expected"),
    [
        ({}, "/a/libpython.so", {b"LD_PRELOAD": b"/a/libpython.so"}),
        (
            {b"LD_PRELOAD": b"mine.so", b"LD_LIBRARY_PATH": b"/mine"},
            "/a/libpython.so",
            {b"LD_PRELOAD": b"mine.so:/a/libpython.so", b"LD_LIBRARY_PATH": b"/mine"},
        ),
        # Such a path cannot be preloaded.
        ({b"LD_LIBRARY_PATH": b"/mine"}, "/a b/libpython.so", {b"LD_LIBRARY_PATH": b"/a b:/mine"}),
    ],
)
def test_what_the_loader_is_told(
    before: dict[bytes, bytes], path: str, expected: dict[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_loader, "_paths_of_program", _loader.SearchPaths)
    environment = dict(before)
    _loader.lead(environment, path, is_loaded=True)
    assert environment == expected


def test_what_the_loader_is_told_for_the_executables_own_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """DT_RPATH comes before the user's path, as it does in the program; DT_RUNPATH behind, if Python is in the executable."""
    monkeypatch.setattr(_loader, "_paths_of_program", lambda: _loader.SearchPaths((b"/first",), (b"/last",)))
    for is_loaded, expected in ((True, b"/first:/mine"), (False, b"/first:/mine:/last")):
        environment = {b"LD_LIBRARY_PATH": b"/mine"}
        _loader.lead(environment, "/a/libpython.so", is_loaded=is_loaded)
        assert environment[b"LD_LIBRARY_PATH"] == expected


@pytest.mark.parametrize("tags", ["--disable-new-dtags", "--enable-new-dtags"])
def test_the_search_paths_of_an_executable(tmp_path: Path, tags: str) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    source = write(tmp_path / "main.c", "int main(void) { return 0; }\n")
    run([compiler, source, "-o", tmp_path / "main", f"-Wl,{tags},-rpath,$ORIGIN/../lib:/there:$LIB"])
    with open(tmp_path / "main", "rb") as file:
        found = _loader.search_paths(file, b"/here/bin")
    folders = (b"/here/bin/../lib", b"/there")
    assert found == (_loader.SearchPaths(folders) if tags.startswith("--disable") else _loader.SearchPaths((), folders))
