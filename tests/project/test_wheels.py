"""One wheel for each CPython: it installs into an empty environment, and its worker is that very Python.

Also with a second build of the same minor version, where the machine has one: a wheel carries no libpython, so its
worker has to load the one that belongs to whoever starts it. And inside of apps that unpack wheels when they start.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import attrs
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
WHEELS = "TRIO_OFFLOAD_WHEELS"  # names a folder of files that ci/test or ci/wheels has built from this checkout
MOST = 1_500_000  # bytes that a wheel may have

ONE_CALL = """
import json, sys, trio, trio_offload

FACTS = "[__import__('sys').version, __import__('sys').prefix, __import__('os').getpid(), 'trio' in __import__('sys').modules]"

async def main():
    async with trio_offload.open_worker_context() as context:
        return await context.run_sync(eval, FACTS, {})

version, prefix, pid, has_trio = trio.run(main)
assert version == sys.version, (version, sys.version)
assert prefix == sys.prefix, (prefix, sys.prefix)
assert not has_trio
print("the worker agrees")
"""


@attrs.frozen
class Interpreter:
    path: Path
    tag: str  # cp311
    version: str  # 3.11.7

    def __str__(self) -> str:
        # The folder tells two builds of one version apart.
        return f"{self.version}-{self.path.parent.parent.name}"


@functools.cache
def interpreters() -> list[Interpreter]:
    program = ROOT / "ci" / "find_pythons.py"
    listed = subprocess.run([sys.executable, program, "--all"], check=True, capture_output=True, text=True)
    found = []
    for path in listed.stdout.splitlines():
        version = _run(Path(path), "-c", "import sys; print(sys.version.split()[0])").strip()
        major, minor = version.split(".")[:2]
        found.append(Interpreter(Path(path), f"cp{major}{minor}", version))
    return found


def _run(program: Path, *arguments: object, environment: dict[str, str] | None = None, folder: Path | None = None) -> str:
    answer = subprocess.run(
        [program, *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=environment,
        cwd=folder,
    )
    assert answer.returncode == 0, f"{program} {arguments} ended with {answer.returncode}:\n{answer.stdout}{answer.stderr}"
    return answer.stdout


def _plain_environment() -> dict[str, str]:
    """What a user's shell would have: nothing of this run of the tests."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "PYTEST", "TRIO_OFFLOAD", "VIRTUAL_ENV", "CARGO_TARGET", "PYO3"))
        and name != "LD_LIBRARY_PATH"
    }


@functools.cache
def wheel_of(interpreter: Interpreter, folder: Path) -> Path:
    """The wheel for an interpreter: that of ci/test, or one that is built now."""
    ready = os.environ.get(WHEELS)
    if ready is not None:
        # ci/wheels may have made some for another processor too.
        wheels = list(Path(ready).glob(f"trio_offload-*-{interpreter.tag}-{interpreter.tag}-*{platform.machine()}.whl"))
        assert len(wheels) == 1, f"{WHEELS}={ready} has {len(wheels)} wheels for {interpreter.tag}"
        return wheels[0]
    _run(interpreter.path, "-m", "venv", folder / "builder")
    out = folder / "wheel"
    # Cargo's folder under build/ is shared with nobody, and kept: the next build is a short one.
    environment = _plain_environment() | {"CARGO_TARGET_DIR": str(ROOT / "build" / f"wheel-{interpreter.tag}")}
    pip = folder / "builder" / "bin" / "pip"
    _run(pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", out, ROOT, environment=environment)
    (wheel,) = out.iterdir()
    return wheel


@pytest.mark.parametrize("interpreter", interpreters(), ids=str)
def test_wheel_in_an_empty_environment(interpreter: Interpreter, tmp_path: Path) -> None:
    wheel = wheel_of(interpreter, tmp_path)
    tag = rf"trio_offload-[^-]+-{interpreter.tag}-{interpreter.tag}-((linux|manylinux[\w.]*_2_(?P<minor>\d+))_\w+)\.whl"
    found = re.fullmatch(tag, wheel.name)
    assert found is not None, wheel.name
    assert wheel.stat().st_size < MOST

    names = zipfile.ZipFile(wheel).namelist()
    assert "trio_offload/__init__.py" in names
    assert "trio_offload/py.typed" in names
    assert "trio_offload_worker/__init__.py" in names
    scripts = {Path(name).name for name in names if ".data/scripts/" in name}
    assert scripts == {"trio-offload", "trio-offload-worker"}
    assert not [name for name in names if "libpython" in name or ".libs/" in name], "a wheel must not carry a libpython"
    if found["minor"] is not None:
        assert newest_glibc(wheel) <= int(found["minor"])

    assert_installs_and_runs(wheel, interpreter, tmp_path)


def newest_glibc(wheel: Path) -> int:
    """The minor version of the C library that the executable in a wheel needs, by the names in its table of strings."""
    with zipfile.ZipFile(wheel) as archive:
        (executable,) = (name for name in archive.namelist() if name.endswith("/scripts/trio-offload-worker"))
        data = archive.read(executable)
    return max(int(minor) for minor in re.findall(rb"\0GLIBC_2\.(\d+)[\0.]", data))


def assert_installs_and_runs(
    package: Path, interpreter: Interpreter, tmp_path: Path, environment: dict[str, str] | None = None
) -> None:
    empty = tmp_path / "empty"
    plain = _plain_environment()
    _run(interpreter.path, "-m", "venv", empty)
    _run(empty / "bin" / "pip", "install", "--quiet", package, environment=plain | (environment or {}))
    program = tmp_path / "program.py"
    program.write_text(ONE_CALL)
    assert _run(empty / "bin" / "python", program, environment=plain) == "the worker agrees\n"
    # Also without the environment being activated, and from a folder that is not the program's.
    assert "map" in _run(empty / "bin" / "trio-offload", "--help", environment=plain)
    described = _run(empty / "bin" / "python", "-m", "trio_offload", "doctor", "--json", environment=plain)
    assert interpreter.version in described


def test_an_editable_install(tmp_path: Path) -> None:
    """``pip install --editable .``: the packages are those of the checkout, the executable lies in the environment."""
    main = next(interpreter for interpreter in interpreters() if interpreter.version == platform.python_version())
    environment = tmp_path / "environment"
    _run(main.path, "-m", "venv", environment)
    python = environment / "bin" / "python"
    plain = _plain_environment()
    cargo = {"CARGO_TARGET_DIR": str(ROOT / "build" / f"wheel-{main.tag}")}
    _run(python, "-m", "pip", "install", "--quiet", "--editable", ROOT, environment=plain | cargo)
    program = tmp_path / "program.py"
    program.write_text(ONE_CALL)
    assert _run(python, program, environment=plain) == "the worker agrees\n"
    ask = "import trio_offload; from trio_offload._interpreter import locate as _locate; print(trio_offload.__file__, _locate.worker_executable())"
    package, worker = _run(python, "-c", ask, environment=plain).split()
    assert Path(package).is_relative_to(ROOT)
    assert Path(worker).is_relative_to(environment)


def test_the_source_distribution(tmp_path: Path) -> None:
    """It has all that a wheel is made of: pip makes one on the way into an empty environment."""
    main = next(interpreter for interpreter in interpreters() if interpreter.version == platform.python_version())
    _run(main.path, "-m", "venv", tmp_path / "builder")
    bin = tmp_path / "builder" / "bin"
    ready = os.environ.get(WHEELS)
    archives = list(Path(ready).glob("trio_offload-*.tar.gz")) if ready is not None else []
    if not archives:
        _run(bin / "pip", "install", "--quiet", "maturin>=1.7,<2", environment=_plain_environment())
        _run(bin / "python", ROOT / "ci" / "source_distribution.py", tmp_path / "out", environment=_plain_environment())
        archives = list((tmp_path / "out").iterdir())
    (archive,) = archives
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    assert {"Cargo.lock", "LICENSE-MIT", "LICENSE-APACHE", "CHANGELOG.md", "PROTOCOL.md", "README.md"} <= names
    assert "worker-bin/src/main.rs" in names
    assert not [name for name in names if name.startswith(("build/", "target/", "."))]
    cargo = {"CARGO_TARGET_DIR": str(ROOT / "build" / f"wheel-{main.tag}")}
    assert_installs_and_runs(archive, main, tmp_path, cargo)


ONE_APP = """
import sys, trio, trio_offload

def in_the_app(number):
    return 2 * number

async def main():
    async with trio_offload.open_worker_context() as context:
        print(await context.run_sync(in_the_app, 21), await context.run_sync(abs, -3))
    print(trio_offload._interpreter.locate.worker_executable())

def run():
    trio.run(main)
"""
APP_MAKERS = {
    "shiv": ["--entry-point", "app:run", "--output-file", "app.pyz", "--site-packages", "source"],
    "pex": ["--entry-point", "app:run", "--output-file", "app.pyz", "--sources-directory", "source"],
    "pex --venv": [
        "--entry-point",
        "app:run",
        "--output-file",
        "app.pyz",
        "--sources-directory",
        "source",
        "--venv",
        "prepend",
    ],
}


@pytest.mark.parametrize("maker", APP_MAKERS)
def test_wheel_in_an_app_that_unpacks_itself(maker: str, tmp_path: Path) -> None:
    """By a Python that has nothing installed; the executable is that of the archive."""
    interpreter = interpreters()[0]
    wheel = wheel_of(interpreter, tmp_path)
    plain = _plain_environment()
    program = maker.split()[0]
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "app.py").write_text(ONE_APP)
    _run(interpreter.path, "-m", "venv", tmp_path / "makers")
    _run(tmp_path / "makers" / "bin" / "pip", "install", "--quiet", program, environment=plain)
    environment = plain | {"SHIV_ROOT": str(tmp_path / "unpacked"), "PEX_ROOT": str(tmp_path / "unpacked")}
    _run(tmp_path / "makers" / "bin" / program, *APP_MAKERS[maker], wheel, environment=environment, folder=tmp_path)
    _run(interpreter.path, "-m", "venv", "--without-pip", tmp_path / "empty")
    said = _run(tmp_path / "empty" / "bin" / "python", tmp_path / "app.pyz", environment=environment).splitlines()
    assert said[0] == "42 3"
    assert Path(said[1]).is_relative_to(tmp_path / "unpacked")
