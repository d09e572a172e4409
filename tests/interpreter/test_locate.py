"""Where the executable and the libpython are found, what is said where they are not, and that a wrong one never runs."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from running import PACKAGES, PROGRAMS, make_environment, plain_environment, run, run_script, write

import trio_offload
from trio_offload import LocateError, WorkerStartError
from trio_offload._cli import doctor
from trio_offload._cli.probes import PROBES
from trio_offload._interpreter import hello as _hello
from trio_offload._interpreter import locate as _locate
from trio_offload._launch import fork as _fork

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
LIBRARY = f"libpython{MINOR}{getattr(sys, 'abiflags', '')}.so.1.0"


@pytest.fixture(autouse=True)
def fresh_answers() -> Iterator[None]:
    """Each is looked for once in the life of a process; here once in each test."""
    finders = (_locate.find_worker_executable, _locate._search_libpython)
    for finder in finders:
        finder.cache_clear()
    yield
    for finder in finders:
        finder.cache_clear()


# --- the executable --------------------------------------------------------------------------------------------


def executable(path: Path, content: bytes = b"") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretends that the package lies somewhere, and that the environment is another one with nothing in it."""
    monkeypatch.delenv(_locate.OVERRIDE, raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])

    def place(package: str) -> Path:
        monkeypatch.setattr(_locate, "__file__", str(tmp_path / package / "_interpreter" / "locate.py"))
        return tmp_path

    return place


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        (f"prefix/lib/python{MINOR}/site-packages/trio_offload", "prefix/bin"),
        (f"usr/local/lib/python{MINOR}/dist-packages/trio_offload", "usr/local/bin"),
        (f"home/.local/lib/python{MINOR}/site-packages/trio_offload", "home/.local/bin"),
        (f"prefix/lib64/python{MINOR}/site-packages/trio_offload", "prefix/bin"),
        ("target/trio_offload", "target/bin"),
        ("checkout/parent-py/trio_offload", "checkout/target/release"),
    ],
)
def test_the_executable_that_came_with_the_package(layout: Any, package: str, expected: str) -> None:
    root = layout(package)
    path = executable(root / expected / _locate.EXECUTABLE)
    assert _locate.worker_executable() == path


def test_it_goes_before_that_of_the_environment(layout: Any) -> None:
    """PYTHONPATH may lead to another release than the one that the environment has."""
    root = layout("target/trio_offload")
    executable(root / "environment" / "bin" / _locate.EXECUTABLE)
    assert _locate.find_worker_executable().how == "in the scripts of this environment"
    _locate.find_worker_executable.cache_clear()
    path = executable(root / "target" / "bin" / _locate.EXECUTABLE)
    assert _locate.worker_executable() == path


def test_the_executable_that_the_record_names(layout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts in a folder of their own: pip's --install-scripts, distributions' own layouts."""
    root = layout("somewhere/deep/in/a/folder/trio_offload")
    path = executable(root / "scripts" / _locate.EXECUTABLE)
    record = [SimpleNamespace(name="x.py"), SimpleNamespace(name=_locate.EXECUTABLE, locate=lambda: Path(path))]
    monkeypatch.setattr(importlib.metadata, "files", lambda name: record)
    assert _locate.worker_executable() == path


@pytest.mark.parametrize("place", ["bin", "somewhere/bin", "somewhere/deep/bin", "somewhere/deep/target/release"])
def test_an_executable_that_only_lies_nearby(layout: Any, place: str) -> None:
    """Who may write to a folder above the package need not be who installed it: /tmp, a group's folder."""
    root = layout("somewhere/deep/folder/trio_offload")
    executable(root / place / _locate.EXECUTABLE)
    with pytest.raises(LocateError):
        _locate.worker_executable()


@pytest.mark.parametrize("switch", ["-E", "-I"])
def test_the_variable_without_the_environment(switch: str, tmp_path: Path) -> None:
    program = """
        from trio_offload._interpreter import locate as _locate
        print(_locate.find_worker_executable().how)
    """
    script = write(tmp_path / "script.py", program)
    environment = plain_environment(TRIO_OFFLOAD_WORKER="/nowhere/of-somebody-else")
    (how,) = run([sys.executable, switch, script], environment=environment).lines()
    assert how == "in the scripts beside this package"


def test_an_executable_that_is_nowhere(layout: Any) -> None:
    root = layout(f"prefix/lib/python{MINOR}/site-packages/trio_offload")
    with pytest.raises(LocateError) as caught:
        _locate.worker_executable()
    for place in ("prefix/bin", "environment/bin", f"prefix/lib/python{MINOR}/site-packages/bin"):
        assert f"  {root / place / _locate.EXECUTABLE}" in str(caught.value).splitlines()
    assert "pip install --force-reinstall trio-offload" in str(caught.value)
    assert isinstance(caught.value, WorkerStartError)


def test_the_variable_decides_alone(layout: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    layout("target/trio_offload")
    executable(tmp_path / "target" / "bin" / _locate.EXECUTABLE)
    path = executable(tmp_path / "mine")
    monkeypatch.setenv(_locate.OVERRIDE, path)
    assert _locate.worker_executable() == path
    _locate.find_worker_executable.cache_clear()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(_locate.OVERRIDE, "mine")
    assert _locate.worker_executable() == path
    _locate.find_worker_executable.cache_clear()
    monkeypatch.setenv(_locate.OVERRIDE, str(tmp_path / "nothing"))
    with pytest.raises(LocateError, match=re.escape(str(tmp_path / "nothing"))) as caught:
        _locate.worker_executable()
    assert str(tmp_path / "target") not in str(caught.value)


def test_an_executable_without_its_mode(layout: Any, tmp_path: Path) -> None:
    layout("target/trio_offload")
    path = executable(tmp_path / "target" / "bin" / _locate.EXECUTABLE)
    os.chmod(path, 0o644)
    with pytest.raises(LocateError, match=re.escape(f"chmod +x {path}")):
        _locate.worker_executable()


UNUSABLE = {
    "no program at all": (b"\x00\x01\x02\x03", "another processor"),
    "a script without its interpreter": (b"#!/nowhere/interpreter\n", "dynamic loader is missing"),
    "a program of another processor": (
        b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xf3\x00" + bytes(100),
        "another processor",
    ),
    "one that ends at once": (b"#!/bin/sh\nexit 9\n", "exited with status 9"),
    "one that dies at once": (b"#!/bin/sh\nkill -SEGV $$\n", "SIGSEGV"),
    "one that says something else": (b"#!/bin/sh\necho 'Hello, who is there?' >&3; sleep 1000\n", "violates the protocol"),
}


@pytest.mark.parametrize("name", UNUSABLE)
async def test_executables_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each is told in one sentence, and each time anew; nothing stays behind."""
    content, told = UNUSABLE[name]
    path = executable(tmp_path / "worker", content)
    monkeypatch.setenv(_locate.OVERRIDE, path)
    async with trio_offload.open_worker_context() as context:
        for _ in range(2):
            with pytest.raises(WorkerStartError, match=told):
                await context.run_sync(bool)
        assert context.statistics() == trio_offload.WorkerContextStatistics(0, 0)


async def test_a_failed_search_is_the_callers_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_locate.OVERRIDE, str(tmp_path / "nothing"))
    async with trio_offload.open_worker_context() as context:
        for _ in range(2):
            with pytest.raises(LocateError):
                await context.run_sync(bool)
        assert context.statistics() == trio_offload.WorkerContextStatistics(0, 0)


# --- the libpython ------------------------------------------------------------------------------------------------


@pytest.fixture
def static(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretends that this interpreter is linked statically, and lives somewhere with such build variables."""
    monkeypatch.setattr(_locate, "_loaded_libpython", lambda: None)

    def live(prefix: str, **variables: str | None) -> Path:
        root = tmp_path / prefix
        (root / "bin").mkdir(parents=True)
        (root / "bin" / "python3").write_bytes(b"")
        monkeypatch.setattr(sys, "_base_executable", str(root / "bin" / "python3"), raising=False)
        monkeypatch.setattr(sys, "base_exec_prefix", str(root))
        monkeypatch.setattr(sysconfig, "get_config_var", variables.get)
        return root

    return live


def library(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return str(path)


def test_the_one_that_is_loaded_is_the_one() -> None:
    found = _locate.find_libpython()
    maps = Path("/proc/self/maps").read_text()
    if f"/{LIBRARY}" in maps:
        assert found.how == "loaded by this interpreter"
        assert f"{found.path}\n" in maps
    else:
        assert os.path.basename(found.path) == LIBRARY


def test_a_conda_like_layout(static: Any) -> None:
    """The interpreter is static; its variables name the archive only, and the shared library lies beside it."""
    root = static(
        "conda/envs/mine", LDLIBRARY=f"libpython{MINOR}.a", INSTSONAME=f"libpython{MINOR}.a", LIBDIR="/opt/built/lib"
    )
    library(root / "lib" / f"libpython{MINOR}.a")
    path = library(root / "lib" / LIBRARY)
    assert _locate.libpython() == path


def test_a_uv_like_layout(static: Any, tmp_path: Path) -> None:
    """Built elsewhere and unpacked here: the folders in its variables are another machine's."""
    root = static("uv/cpython", LDLIBRARY=LIBRARY, INSTSONAME=LIBRARY, LIBDIR="/install/lib", LIBPL="/install/lib/config")
    path = library(root / "lib" / LIBRARY)
    assert _locate.libpython() == path


def test_a_debian_like_layout(static: Any, tmp_path: Path) -> None:
    folder = tmp_path / "usr" / "lib" / "x86_64-linux-gnu"
    static("usr", LDLIBRARY=f"libpython{MINOR}.so", INSTSONAME=LIBRARY, MULTIARCH="x86_64-linux-gnu", LIBDIR=str(folder))
    path = library(folder / LIBRARY)
    (folder / f"libpython{MINOR}.so.1").symlink_to(LIBRARY)
    assert _locate.libpython() == path


def test_a_fedora_like_layout(static: Any) -> None:
    root = static("usr", LDLIBRARY=f"libpython{MINOR}.so", INSTSONAME=LIBRARY)
    path = library(root / "lib64" / LIBRARY)
    assert _locate.libpython() == path


def test_what_lies_beside_the_interpreter_goes_first(static: Any, tmp_path: Path) -> None:
    root = static("relocated", INSTSONAME=LIBRARY, LIBDIR=str(tmp_path / "another"))
    library(tmp_path / "another" / LIBRARY)
    path = library(root / "lib" / LIBRARY)
    assert _locate.libpython() == path


def test_an_interpreter_behind_a_link(static: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = static("real", INSTSONAME=LIBRARY)
    path = library(root / "lib" / LIBRARY)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(root / "bin" / "python3")
    monkeypatch.setattr(sys, "_base_executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setattr(sys, "base_exec_prefix", str(tmp_path / "nowhere"))
    assert _locate.libpython() == path


def test_no_libpython_at_all(static: Any) -> None:
    root = static("static", LDLIBRARY=f"libpython{MINOR}.a", LIBDIR="/opt/built/lib", MULTIARCH="x86_64-linux-gnu")
    library(root / "lib" / f"libpython{MINOR}.a")
    with pytest.raises(LocateError) as caught:
        _locate.libpython()
    text = str(caught.value)
    for folder in (root / "lib", "/opt/built/lib", root / "lib" / "x86_64-linux-gnu", root / "lib64"):
        assert f"  {folder}/{LIBRARY}" in text.splitlines()
    assert ".a" not in [line[-2:] for line in text.splitlines()]
    for remedy in (f"apt-get install libpython{MINOR}", "--enable-shared", "pyenv install"):
        assert remedy in text
    assert sys.executable in text
    assert sys.version.split()[0] in text


LAYOUTS = {
    "pyenv without --enable-shared": ("versions", {"LDLIBRARY": f"libpython{MINOR}.a", "INSTSONAME": f"libpython{MINOR}.a"}),
    "Debian without its libpython package": ("usr", {"INSTSONAME": LIBRARY, "MULTIARCH": "x86_64-linux-gnu"}),
    "conda without the library": ("conda/envs/mine", {"INSTSONAME": f"libpython{MINOR}.a", "LIBDIR": "/opt/built/lib"}),
}


@pytest.mark.parametrize("name", LAYOUTS)
async def test_a_program_without_libpython_has_workers_in_python(static: Any, name: str) -> None:
    prefix, variables = LAYOUTS[name]
    root = static(prefix, **variables)
    library(root / "lib" / f"libpython{MINOR}.a")
    assert not _locate.runtime().is_native
    async with trio_offload.open_worker_context() as context:
        assert await context.run_sync(abs, -5) == 5
        command = await context.run_sync(Path.read_bytes, Path("/proc/self/cmdline"))
        assert command.split(b"\0")[0] == os.fsencode(sys.executable)


def test_an_executable_is_not_needed_then(static: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    static("static")
    monkeypatch.setenv(_locate.OVERRIDE, "/nowhere")
    assert not _locate.runtime().is_native


@pytest.mark.parametrize("change", ["frozen", "not a Python", "not executable"])
async def test_what_cannot_be_started_as_python_is_not(
    static: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: str
) -> None:
    """A program that embeds Python has itself there, and would be started again, and again."""
    static("static")
    if change == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    elif change == "not a Python":
        monkeypatch.setattr(sys, "executable", executable(tmp_path / "application", b"#!/bin/sh\nexit 9\n"))
    else:
        (tmp_path / "python3").write_bytes(b"")
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    async with trio_offload.open_worker_context() as context:
        with pytest.raises(LocateError, match="made by a freezer" if change == "frozen" else "no shared libpython"):
            await context.run_sync(bool)


def test_an_interpreter_without_a_name_is_found(static: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """``sys.executable`` is empty, or nonsense, where Python was started under a name that leads to no program."""
    static("static")
    assert _locate.interpreter() == sys.executable
    for name in ("", "/nowhere/python3"):
        monkeypatch.setattr(sys, "executable", name)
        assert os.path.samefile(_locate.interpreter(), "/proc/self/exe")


# --- the wrong one ------------------------------------------------------------------------------------------------

REPORT = """
    import os, sys, trio, trio_offload
    from trio_offload._interpreter import locate as _locate

    if len(sys.argv) > 1 and sys.argv[1] != "beside":
        _locate.libpython = lambda: sys.argv[1]
    elif len(sys.argv) > 1:
        import ctypes
        ctypes.CDLL(sys.argv.pop())
    for setting in sys.argv[2:]:
        name, _, value = setting.partition("=")
        os.environ[name] = value

    async def main():
        async with trio_offload.open_worker_context() as context:
            print(await context.run_sync(eval, "__import__('sys').version", {}) == sys.version)

    try:
        trio.run(main)
    except trio_offload.WorkerStartError as error:
        print(type(error).__name__, error.exitcode)
        print(error)
"""


def changed_copy(folder: Path, old: bytes, new: bytes) -> Path:
    """A copy of this interpreter's libpython with another text in it, of the same length."""
    assert len(old) == len(new)
    data = Path(_locate.libpython()).read_bytes()
    if old not in data:
        pytest.skip(f"the library does not hold {old!r} in one piece")
    folder.mkdir()
    copy = folder / LIBRARY
    copy.write_bytes(data.replace(old, new))
    copy.chmod(0o755)
    return copy


@pytest.fixture
def another_version(tmp_path: Path) -> Path:
    """The libpython of the next bug-fix release, as far as it says."""
    number = platform.python_version()
    other = number[:-1] + str((int(number[-1]) + 1) % 10)
    return changed_copy(tmp_path / "another-version", number.encode() + b"\0", other.encode() + b"\0")


@pytest.fixture
def another_build(tmp_path: Path) -> Path:
    """The libpython of the same version, built on another day."""
    date = platform.python_build()[1][:11]
    return changed_copy(
        tmp_path / "another-build", date.encode() + b"\0", (date[:-1] + str((int(date[-1]) + 1) % 10)).encode() + b"\0"
    )


class Starts:
    """Who has started Python: every one that did has left a line."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "starts"
        self.folder = folder / "customized"
        write(
            self.folder / "sitecustomize.py",
            f"with open({str(self.path)!r}, 'a') as file: file.write(open('/proc/self/comm').read())\n",
        )

    def environment(self, **changes: str | None) -> dict[str, str]:
        return plain_environment(PYTHONPATH=str(self.folder), **changes)

    def of_workers(self) -> int:
        return sum(line.startswith("trio-offload") for line in self.path.read_text().splitlines())


@pytest.fixture
def starts(tmp_path: Path) -> Starts:
    return Starts(tmp_path)


def refused(tmp_path: Path, starts: Starts, *arguments: str, **changes: str | None) -> str:
    ended = run_script(tmp_path, REPORT, *arguments, environment=starts.environment(**changes))
    lines = ended.lines()
    assert lines[0] == "WorkerStartError 3", str(ended)
    # Python itself has not been started: not even its site has run.
    assert starts.of_workers() == 0
    return "\n".join(lines[1:])


def test_the_right_one_runs(tmp_path: Path, starts: Starts) -> None:
    ended = run_script(tmp_path, REPORT, environment=starts.environment())
    assert ended.lines() == ["True"]
    assert starts.of_workers() == 1


def test_another_version_is_refused(tmp_path: Path, starts: Starts, another_version: Path) -> None:
    """Found by mistake in place of the right one."""
    text = refused(tmp_path, starts, str(another_version))
    number = platform.python_version()
    assert number in text
    assert number[:-1] + str((int(number[-1]) + 1) % 10) in text
    assert str(another_version) in text
    assert "LD_LIBRARY_PATH" in text
    assert "trio-offload doctor" in text


def test_both_libraries_are_named(tmp_path: Path, starts: Starts, another_version: Path) -> None:
    """The loader has taken another one than it was told to: the text names both."""
    right = _locate.libpython()
    text = refused(tmp_path, starts, right, f"LD_PRELOAD={another_version}")
    assert str(another_version) in text
    assert right in text


def test_another_build_is_refused(tmp_path: Path, starts: Starts, another_build: Path) -> None:
    """The number is the same, and still it is another Python: its extension modules may break here."""
    text = refused(tmp_path, starts, _locate.libpython(), f"LD_PRELOAD={another_build}")
    assert str(another_build) in text


def test_the_users_library_path_may_lead_to_another_one(tmp_path: Path, starts: Starts, another_version: Path) -> None:
    """Ours is in front of it, and a job's programs have the user's again."""
    ended = run_script(
        tmp_path, REPORT, _locate.libpython(), f"LD_LIBRARY_PATH={another_version.parent}", environment=starts.environment()
    )
    assert ended.lines() == ["True"]


def test_missing_library_checks_choice_of_loader(tmp_path: Path, starts: Starts, another_version: Path) -> None:
    """Python was upgraded under a running program, say; then the loader goes on to the next place."""
    text = refused(tmp_path, starts, str(tmp_path / "gone" / LIBRARY), f"LD_LIBRARY_PATH={another_version.parent}")
    assert str(another_version) in text
    assert str(tmp_path / "gone") in text


def test_library_built_after_its_static_interpreter(tmp_path: Path, starts: Starts, another_build: Path) -> None:
    """Distributions build twice. The number is the same and it is the file that belongs to the interpreter: so it runs."""
    ended = run_script(tmp_path, REPORT, str(another_build), environment=starts.environment())
    assert ended.lines() == ["False"]
    assert starts.of_workers() == 1


def test_another_library_that_something_has_loaded_here(tmp_path: Path, starts: Starts, another_version: Path) -> None:
    """An extension module that was linked with a libpython brings that one along; it is not the interpreter's."""
    ended = run_script(tmp_path, REPORT, "beside", str(another_version), environment=starts.environment())
    assert ended.lines() == ["True"]


def test_an_executable_for_another_minor_version(tmp_path: Path, starts: Starts) -> None:
    """It needs a library that is not there; the dynamic loader says so on standard error, and the exception what to do."""
    data = Path(_locate.worker_executable()).read_bytes()
    other = f"libpython{MINOR[:-1]}{'9' if MINOR[-1] != '9' else '8'}.so.1.0".encode()
    assert LIBRARY.encode() in data
    copy = executable(tmp_path / "worker", data.replace(LIBRARY.encode(), other))
    ended = run_script(tmp_path, REPORT, environment=starts.environment(TRIO_OFFLOAD_WORKER=copy))
    assert ended.lines()[0] == "WorkerStartError 127"
    assert "built for another minor version" in ended.stdout
    assert f"{sys.executable} -m pip install --force-reinstall trio-offload" in ended.stdout
    assert other.decode() in ended.stderr
    assert starts.of_workers() == 0


# --- the Pythons of this machine ---------------------------------------------------------------------------------------


def other_builds() -> list[str]:
    """Interpreters of this minor version that are not this one; a machine may have several."""
    root = Path(__file__).resolve().parents[2]
    listed = subprocess.run(
        [sys.executable, root / "ci" / "find_pythons.py", "--all"], capture_output=True, text=True, check=True
    )
    found = []
    for path in listed.stdout.splitlines()[1:]:
        said = subprocess.run(
            [path, "-I", "-c", "import sys; print(sys.version_info[:2] + (sys.version,))"],
            capture_output=True,
            text=True,
            check=True,
        )
        major, minor, version = eval(said.stdout)
        if (major, minor) == sys.version_info[:2] and version != sys.version:
            found.append(path)
    return found


@pytest.fixture(scope="module")
def another_python() -> str:
    found = other_builds()
    if not found:
        pytest.skip("this machine has no other build of this minor version")
    return found[0]


def test_another_python_of_this_version_gets_its_own_library(tmp_path: Path, another_python: str) -> None:
    """One executable serves both: it has no library of its own."""
    python = make_environment(tmp_path / "environment", python=another_python)
    shutil.copy(_locate.worker_executable(), tmp_path / "environment" / "bin")
    answer = tmp_path / "answer"
    folders = os.pathsep.join([str(PROGRAMS), *PACKAGES])
    run([python, PROGRAMS / "compare_interpreters.py", folders, answer])
    found = json.loads(answer.read_text())
    assert found["parent"]["version"] != repr(sys.version)
    for name, value in found["parent"].items():
        assert found["worker"][name] == value, name


def test_two_pythons_do_not_run_with_each_others_library(tmp_path: Path, another_python: str, starts: Starts) -> None:
    said = run(
        [another_python, "-c", "from trio_offload._interpreter.locate import libpython; print(libpython())"],
        environment=plain_environment(PYTHONPATH=os.pathsep.join(PACKAGES)),
    )
    theirs = said.stdout.strip()
    assert theirs != _locate.libpython()
    text = refused(tmp_path, starts, theirs)
    assert theirs in text
    ended = run_script(
        tmp_path, REPORT, _locate.libpython(), f"LD_LIBRARY_PATH={os.path.dirname(theirs)}", environment=starts.environment()
    )
    assert ended.lines() == ["True"]


def test_a_python_that_has_another_ones_library_loaded(tmp_path: Path, another_python: str) -> None:
    """Also where it has none of its own loaded, because it is static."""
    environment = plain_environment(PYTHONPATH=os.pathsep.join(PACKAGES))
    script = write(tmp_path / "script.py", REPORT)
    ended = run([another_python, script, "beside", _locate.libpython()], environment=environment)
    assert ended.lines() == ["True"]


# --- what the executable says of itself ---------------------------------------------------------------------------------


def information(folder: str, *arguments: str) -> Any:
    environment = plain_environment(LD_LIBRARY_PATH=folder)
    said = subprocess.run(
        [_locate.worker_executable(), *arguments], env=environment, capture_output=True, text=True, check=True
    )
    assert said.stderr == ""
    return said.stdout


def test_information() -> None:
    library = _locate.libpython()
    found = json.loads(information(os.path.dirname(library), "--info"))
    assert found["worker"] == trio_offload.__version__
    assert found["protocol"] == 2
    assert found["python"]["version"] == sys.version
    assert found["python"]["libpython"] == os.path.realpath(library)
    assert found["python"]["build"] in sys.version
    assert information(os.path.dirname(library), "--version").split()[-1] == trio_offload.__version__


def test_information_about_the_wrong_library(another_version: Path) -> None:
    found = json.loads(information(str(another_version.parent), "--info"))
    assert found["python"]["version"] != sys.version
    assert found["python"]["libpython"] == str(another_version)


# --- builds that nobody has tried ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["spawn", "fork", "forkserver"])
async def test_a_free_threaded_python_is_refused_by_name(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none to test with: each type of worker says in one sentence what to run instead, and nothing has been started."""
    monkeypatch.setattr(sys, "abiflags", "t")
    async with trio_offload.open_worker_context(worker_type=kind) as context:
        with pytest.raises(
            LocateError, match=r"free-threaded build of 3\.\d+, .*: run the program with the build that has a GIL"
        ):
            await context.run_sync(bool)
        assert context.statistics() == trio_offload.WorkerContextStatistics(0, 0)


def test_the_handshake_and_the_doctor_name_a_free_threaded_build(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "free_threaded" not in _hello.hello("", {})
    monkeypatch.setattr(sys, "abiflags", "t")
    for body in (_hello.hello("", {}), _fork.hello()):
        assert body["free_threaded"] is True
    report = doctor.examine(next(probe for probe in PROBES if probe.name == "python"))
    assert report.facts["free-threaded"] is True
    assert [problem.what for problem in report.problems if "free-threaded build" in problem.what]
