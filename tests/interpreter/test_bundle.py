"""Collaboration: what an app made by PyInstaller tells its workers, and what a worker makes of it. No app is built here.

The archives and the code are made by hand, so that what PyInstaller never does is among them. `test_frozen.py` has the real
thing.
"""

from __future__ import annotations

import builtins
import marshal
import os
import shutil
import struct
import sys
import zlib
from collections.abc import Iterator
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from typing import Any

import pytest
from running import run, run_script, write

import trio_offload
import trio_offload_worker
from trio_offload import LocateError, WorkerStartError
from trio_offload._interpreter import frozen as _frozen
from trio_offload._interpreter import locate as _locate
from trio_offload._interpreter import main_module as _main_module
from trio_offload._interpreter.archive import Code

MAGIC = b"MEI\014\013\012\013\016"


def compiled(source: str, name: str = "script") -> bytes:
    return marshal.dumps(compile(source, f"{name}.py", "exec"))


@pytest.fixture(autouse=True)
def fresh_answers() -> Iterator[None]:
    """Each is looked for once in the life of a process; here once in each test."""
    remembered = (_frozen.bundle, _frozen._bundle_body, _locate.find_worker_executable, _locate._search_libpython)
    for function in remembered:
        function.cache_clear()
    yield
    for function in remembered:
        function.cache_clear()


# --- the archive -----------------------------------------------------------------------------------------------

Entry = tuple[bytes, str, bytes, bool]  # type, name, content, compressed
BOOT = compiled("boot = 1", "pyiboot01_bootstrap")
MAIN = compiled("main = 1", "app")
ENTRIES: list[Entry] = [
    (b"o", "pyi-contents-directory _internal", b"", False),
    (b"m", "struct", compiled("struct = 1"), True),
    (b"M", "package", MAGIC_NUMBER + bytes(12) + compiled("package = 1"), True),
    (b"s", "pyiboot01_bootstrap", BOOT, True),
    (b"s", "pyi_rth_inspect", b"hook", False),
    (b"s", "näher", b"own hook", False),
    (b"s", "app", MAIN, True),
    (b"b", "libz.so", b"binary", True),
    (b"z", "PYZ.pyz", b"PYZ\0", False),
]


def archive(entries: list[Entry] = ENTRIES) -> bytes:
    """As PyInstaller's CArchiveWriter writes one."""
    blobs = table = b""
    for kind, name, content, compress in entries:
        stored = zlib.compress(content) if compress else content
        encoded = name.encode() + b"\0"
        size = 18 + len(encoded)
        padding = -size % 16
        entry = struct.pack(">IIIIBc", size + padding, len(blobs), len(stored), len(content), compress, kind)
        table += entry + encoded + bytes(padding)
        blobs += stored
    total = len(blobs) + len(table) + 88
    return blobs + table + struct.pack(">8sIIII64s", MAGIC, total, len(blobs), len(table), 311, b"libpython3.11.so.1.0")


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pretends that this process is an app; the path of its executable."""
    path = tmp_path / "app"
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "_MEIPASS", str(tmp_path / "_internal"), raising=False)
    monkeypatch.setattr(sys, "executable", str(path))
    monkeypatch.delenv("_PYI_ARCHIVE_FILE", raising=False)
    return path


BEFORE = b"\x7fELF" + b"bootloader" * 100
# Magic alone, one whose numbers cannot be, and one that is cut off by the end of the file.
IMPOSTORS = MAGIC + b"?", struct.pack(">8sIIII64s", MAGIC, 2**32 - 1, 0, 0, 311, b""), MAGIC


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(BEFORE, b"", id="appended to the bootloader"),
        pytest.param(BEFORE, b"\0.shstrtab\0pydata\0" * 20, id="a section of the executable"),
        pytest.param(BEFORE + b"".join(IMPOSTORS[:2]), b"".join(IMPOSTORS), id="among cookies that are none"),
        pytest.param(b"", b"", id="by itself"),
    ],
)
def test_archive_is_found_and_read(app: Path, before: bytes, after: bytes) -> None:
    app.write_bytes(before + archive() + after)
    found = _frozen.bundle()
    assert found is not None
    assert [(module.name, module.code) for module in found.modules] == [
        ("struct", compiled("struct = 1")),
        ("package", compiled("package = 1")),
    ]
    assert [(script.name, script.code) for script in found.scripts] == [
        ("pyiboot01_bootstrap", BOOT),
        ("pyi_rth_inspect", b"hook"),
        ("näher", b"own hook"),
    ]
    assert found.main == Code("app", MAIN)
    path, _, offset = (found.pyz or "").rpartition("?")
    assert path == str(app)
    assert app.read_bytes()[int(offset) :].startswith(b"PYZ\0")


def test_archive_is_read_once(app: Path) -> None:
    app.write_bytes(archive())
    first = _frozen.bundle()
    app.unlink()
    assert _frozen.bundle() is first


def test_archive_beside_the_executable(app: Path) -> None:
    app.write_bytes(BEFORE)
    app.with_name("app.pkg").write_bytes(archive())
    found = _frozen.bundle()
    assert found is not None
    assert found.pyz is not None
    assert found.pyz.startswith(f"{app}.pkg?")


def test_archive_that_the_bootloader_names(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app.write_bytes(archive([(b"s", "boot", b"", False), (b"s", "another", b"", False)]))
    named = app.with_name("named")
    named.write_bytes(archive())
    monkeypatch.setenv("_PYI_ARCHIVE_FILE", str(named))
    found = _frozen.bundle()
    assert found is not None
    assert found.main is not None
    assert found.main.name == "app"


def test_modules_may_be_files(app: Path) -> None:
    """PyInstaller's --debug noarchive leaves no archive of modules; an app without a script has none."""
    app.write_bytes(archive([(b"m", "struct", b"", False)]))
    found = _frozen.bundle()
    assert found is not None
    assert (found.pyz, found.scripts, found.main) == (None, (), None)
    assert _frozen.hello_keys()["bundle"]["pyz"] is None


def test_archive_is_nowhere(app: Path) -> None:
    app.write_bytes(BEFORE)
    with pytest.raises(LocateError, match="none of these files") as caught:
        _frozen.bundle()
    for path in (app, f"{app}.pkg"):
        assert f"\n  {path}" in f"{caught.value}\n"


def torn(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


WHOLE = archive()
TABLE = struct.unpack_from(">8sIIII64s", WHOLE, len(WHOLE) - 88)[2]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(torn(WHOLE, 0, bytes(40)), id="a blob"),
        pytest.param(torn(WHOLE, TABLE, bytes(4)), id="an entry of no length"),
        pytest.param(torn(WHOLE, len(WHOLE) - 88 + 16, struct.pack(">I", 10)), id="the length of the table"),
        pytest.param(torn(WHOLE, TABLE + 20, b"\xff\xff"), id="a name"),
    ],
)
def test_damaged_archive(app: Path, content: bytes) -> None:
    app.write_bytes(content)
    with pytest.raises(LocateError, match=r"cannot be read .*Restart the app"):
        _frozen.bundle()


def test_hello_of_an_app(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app.write_bytes(archive())
    folder = str(app.parent / "_internal")
    inside = [f"{folder}/base_library.zip", f"{folder}/lib-dynload", folder, f"{folder}/added by the app"]
    monkeypatch.setattr(sys, "path", ["/elsewhere", *inside, f"{folder} of another"])
    keys = _frozen.hello_keys()
    assert keys["home"] == os.fsencode(folder)
    assert keys["search_path"] == [os.fsencode(path) for path in inside]
    assert [(name, after) for name, _, after in keys["bundle"]["scripts"]] == [
        ("pyiboot01_bootstrap", None),
        ("pyi_rth_inspect", "inspect"),
        ("näher", None),
    ]
    assert _main_module.main_module_spec() == {"kind": "code", "code": MAIN, "path": f"{folder}/app.py"}


def test_search_path_of_an_app_that_has_emptied_its_own(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app.write_bytes(archive())
    folder = str(app.parent / "_internal")
    monkeypatch.setattr(sys, "path", [])
    assert _frozen.hello_keys()["search_path"] == [os.fsencode(f"{folder}/base_library.zip"), os.fsencode(folder)]


def test_app_without_the_executable(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app.write_bytes(archive())
    monkeypatch.delenv(_locate.OVERRIDE, raising=False)
    with pytest.raises(LocateError, match="by a hook that trio-offload brings") as caught:
        _locate.worker_executable()
    assert str(caught.value).endswith(f"\n  {app.parent}/_internal/trio-offload-worker")


def test_app_with_the_executable(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app.write_bytes(archive())
    monkeypatch.delenv(_locate.OVERRIDE, raising=False)
    path = app.parent / "_internal" / _locate.EXECUTABLE
    path.parent.mkdir()
    path.touch(mode=0o755)
    assert _locate.find_worker_executable() == _locate.Found(str(path), "in this app's bundle")


# --- other freezers ----------------------------------------------------------------------------------------------


def test_ordinary_python_is_not_frozen() -> None:
    assert _frozen.bundle() is None
    assert _frozen.hello_keys() == {}
    _frozen.refuse_unsupported()


@pytest.mark.parametrize("startup", [True, False])
async def test_another_freezer_is_named(monkeypatch: pytest.MonkeyPatch, startup: bool) -> None:
    """As cx_Freeze leaves the process, and as one that nobody knows might."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    if startup:
        monkeypatch.setitem(sys.modules, "__startup__", builtins)
    with pytest.raises(LocateError) as caught:
        async with trio_offload.open_worker_context() as context:
            await context.run_sync(abs, -3)
    assert ("cx_Freeze" in str(caught.value)) is startup
    assert "PyInstaller makes apps in which trio-offload works" in str(caught.value)


async def test_nuitka_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it compiles has this name in its globals (Nuitka's manual, «How to detect if running in Nuitka»)."""
    monkeypatch.setitem(vars(_frozen), "__compiled__", object())
    with pytest.raises(LocateError, match="compiled by Nuitka"):
        async with trio_offload.open_worker_context() as context:
            await context.run_sync(abs, -3)


ZIPAPP = """
import importlib.metadata, sys, trio, trio_offload

def in_main(number):
    return 2 * number

async def main():
    async with trio_offload.open_worker_context() as context:
        print(await context.run_sync(in_main, 21), trio_offload.__file__)

if __name__ == "__main__":
    if "--nothing-installed" in sys.argv:
        sys.prefix = "/nowhere"
        importlib.metadata.files = lambda name: None
    trio.run(main)
"""


@pytest.fixture
def zipapp(tmp_path: Path) -> Path:
    """An archive with both packages in it; what they need is installed."""
    source = tmp_path / "source"
    for module in (trio_offload, trio_offload_worker):
        assert module.__file__ is not None
        shutil.copytree(Path(module.__file__).parent, source / module.__name__, ignore=shutil.ignore_patterns("__pycache__"))
    write(source / "__main__.py", ZIPAPP)
    run([sys.executable, "-m", "zipapp", source, "-o", tmp_path / "app.pyz"])
    return tmp_path / "app.pyz"


def test_zipapp_finds_the_executable_of_the_environment(zipapp: Path) -> None:
    assert run([sys.executable, zipapp]).lines() == [f"42 {zipapp}/trio_offload/__init__.py"]


def test_zipapp_without_an_installed_executable(zipapp: Path) -> None:
    ended = run([sys.executable, zipapp, "--nothing-installed"], expect=1)
    assert f"trio_offload was imported from the zip file {zipapp}" in ended.stderr
    assert "or make the app with shiv or pex" in ended.stderr


# --- a worker that is handed a bundle ------------------------------------------------------------------------------


class Handed:
    """What is put into the HELLO of the next worker, as an app would."""

    def __init__(self, folder: Path) -> None:
        self.bundle: dict[str, Any] = {"folder": os.fsencode(folder), "pyz": None, "modules": [], "scripts": []}

    def module(self, name: str, source: str) -> None:
        self.bundle["modules"].append([name, compiled(source, name)])

    def script(self, name: str, source: str, after: str | None = None) -> None:
        self.bundle["scripts"].append([name, compiled(source, name), after])


@pytest.fixture
def handed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Handed:
    handed = Handed(tmp_path)
    monkeypatch.setattr(_frozen, "hello_keys", lambda: {"bundle": handed.bundle})
    return handed


async def in_worker(*expressions: str) -> list[Any]:
    """The values of expressions, one after the other in one worker."""
    async with trio_offload.open_worker_context() as context:
        return [await context.run_sync(eval, expression, {}) for expression in expressions]


SYS = "__import__('sys')"


async def test_modules_and_scripts_run_in_their_order(handed: Handed, tmp_path: Path) -> None:
    handed.module("first_of_two", "import sys; seen = [__name__, __spec__.name, sys._MEIPASS]")
    handed.module("second_of_two", "import first_of_two; first_of_two.seen.append(__name__)")
    handed.script("boot", "import first_of_two; first_of_two.seen.append((__name__, __file__)); left = 1")
    handed.script("hook", "first_of_two.seen.append(left)")
    seen, main, spec = await in_worker(
        "__import__('first_of_two').seen",
        f"vars({SYS}.modules['__main__'])['left'], getattr({SYS}.modules['__main__'], '__file__', None)",
        "__import__('importlib.util').util.find_spec('second_of_two').name",
    )
    folder = str(tmp_path)
    assert seen == ["first_of_two", "first_of_two", folder, "second_of_two", ("__main__", f"{folder}/boot.py"), 1]
    # There is none where `python -c` runs the suite, as xdist does.
    assert main == (1, getattr(sys.modules["__main__"], "__file__", None))
    assert spec == "second_of_two"


@pytest.mark.parametrize("taken", ["sys.path.remove(seen)", "del sys._pyinstaller_pyz"])
async def test_archive_is_handed_over_in_one_of_two_ways(handed: Handed, taken: str) -> None:
    """Before PyInstaller 6.0 and since; whichever the boot script does not take is gone afterwards too."""
    handed.bundle["pyz"] = b"/caf\xe9/app?123"
    handed.script("boot", f"import sys; seen = sys.path[-1]; assert seen == sys._pyinstaller_pyz; {taken}; sys.seen = seen")
    handed.script("hook", "import sys; sys.left = [seen in sys.path, hasattr(sys, '_pyinstaller_pyz')]")
    seen, left = await in_worker(f"{SYS}.seen", f"{SYS}.left")
    assert os.fsencode(seen) == b"/caf\xe9/app?123"
    assert left == [False, False]


async def test_script_that_waits_for_a_module(handed: Handed) -> None:
    handed.script("boot", "import sys; sys.seen = []")
    handed.script("late", "import colorsys, sys; sys.seen.append((__name__, hasattr(colorsys, 'rgb_to_hsv')))", "colorsys")
    handed.script("other", "import sys; sys.seen.append('other')", "no_such_module")
    handed.script("there", "import sys; sys.seen.append('at once')", "sys")
    handed.script("user", "import sys; sys.seen.append('user' if 'colorsys' not in sys.modules else 'too late')")
    before, _, after, loader = await in_worker(
        f"list({SYS}.seen)",
        "__import__('colorsys') and None",
        f"{SYS}.seen",
        "'exec_module' in vars(__import__('colorsys').__loader__)",
    )
    assert before == ["at once", "user"]
    assert after == ["at once", "user", ("__main__", True)]
    assert loader is False


async def test_hook_that_imports_the_module_for_which_another_waits(handed: Handed) -> None:
    handed.script("boot", "import sys; sys.seen = []")
    handed.script("late", "import sys; sys.seen.append('late')", "colorsys")
    handed.script("user", "import sys, colorsys; sys.seen.append('user')")
    assert await in_worker(f"{SYS}.seen") == [["late", "user"]]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("raise LookupError('a hook of the app')", "LookupError: a hook of the app"),
        ("import sys; sys.exit(5)", "SystemExit: 5"),
    ],
)
async def test_script_that_fails(handed: Handed, source: str, told: str) -> None:
    handed.script("boot", "pass")
    handed.script("own_hook", source)
    with pytest.raises(WorkerStartError, match="PyInstaller's code that runs before the app failed") as caught:
        await in_worker("1")
    assert told in str(caught.value)
    assert 'File "own_hook.py", line 1' in str(caught.value)


@pytest.mark.parametrize("code", [b"", b"\xff", marshal.dumps("no code")], ids=["nothing", "not marshal", "a text"])
@pytest.mark.parametrize("place", ["modules", "scripts"])
async def test_what_is_no_code(handed: Handed, code: bytes, place: str) -> None:
    handed.bundle[place].append(["it", code] if place == "modules" else ["it", code, None])
    with pytest.raises(WorkerStartError, match="PyInstaller's code that runs before the app failed"):
        await in_worker("1")


async def test_home_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Python itself says that it cannot start there; the worker hands that on."""
    keys = {"home": os.fsencode(tmp_path), "search_path": [os.fsencode(tmp_path)]}
    monkeypatch.setattr(_frozen, "hello_keys", lambda: keys)
    with pytest.raises(WorkerStartError, match="Python did not start in the worker"):
        await in_worker("1")


def test_main_that_travels_as_code(tmp_path: Path) -> None:
    """A job of the script, whose file is gone: its code was kept, as an archive keeps it."""
    text = """
        import marshal, os, sys, trio, trio_offload
        from trio_offload._pickling import calls
        from trio_offload._interpreter import settings

        def where():
            return __name__, __file__, sys.modules["__main__"] is sys.modules["__mp_main__"]

        async def main():
            with open(__file__) as file:
                code = marshal.dumps(compile(file.read(), "script.py", "exec"))
            os.unlink(__file__)
            settings.main_module_spec = calls.main_module_spec = lambda: {"kind": "code", "code": code, "path": "/app/script.py"}
            print(*await trio_offload.run_sync(where))

        if __name__ == "__main__":
            trio.run(main)
    """
    assert run_script(tmp_path, text).lines() == ["__main__ /app/script.py True"]
