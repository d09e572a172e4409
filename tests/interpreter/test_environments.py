"""End to end: the environments that people install Python packages into, and the surroundings that forbid things.

``test_identity.py`` has what a command line, variables and ``venv`` make of a Python, ``test_locate.py`` what is told where a
file is not found. Here the package is installed as a user installs it, by pip from a wheel, and what is compared is again what
a program and its worker see of themselves.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from running import BASE, PACKAGES, plain_environment, run, run_script, write
from test_identity import assert_same, compare

import trio_offload
from trio_offload import WorkerStartError
from trio_offload._interpreter import locate as _locate

VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
TAG = f"cp{sys.version_info.major}{sys.version_info.minor}"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of what is installed here. It names no dependencies: those are found in this environment."""
    package = Path(trio_offload.__file__).parent
    name = f"trio_offload-{trio_offload.__version__}"
    contents = {
        str(file.relative_to(folder.parent)): file.read_bytes()
        for folder in (package, package.parent / "trio_offload_worker")
        for file in folder.rglob("*")
        if file.suffix in (".py", ".typed")
    }
    contents[f"{name}.data/scripts/{_locate.EXECUTABLE}"] = Path(_locate.worker_executable()).read_bytes()
    contents[f"{name}.dist-info/METADATA"] = (
        f"Metadata-Version: 2.1\nName: trio-offload\nVersion: {trio_offload.__version__}\n".encode()
    )
    contents[f"{name}.dist-info/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: false\nTag: {TAG}-{TAG}-linux_{os.uname().machine}\n".encode()
    )
    record = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for path, data in contents.items()
    ]
    contents[f"{name}.dist-info/RECORD"] = "\n".join([*record, f"{name}.dist-info/RECORD,,", ""]).encode()
    made = tmp_path_factory.mktemp("wheel") / f"{name}-{TAG}-{TAG}-linux_{os.uname().machine}.whl"
    with zipfile.ZipFile(made, "w") as archive:
        for path, data in contents.items():
            member = zipfile.ZipInfo(path)
            member.external_attr = (0o100755 if "/scripts/" in path else 0o100644) << 16
            archive.writestr(member, data)
    return made


def pip(python: str | Path, *arguments: str | Path, **variables: str | None) -> None:
    """The pip of another Python, or the one of this environment run by it: an environment may have been made without."""
    has_own = subprocess.run([python, "-c", "import pip"], capture_output=True, env=plain_environment()).returncode == 0
    if not has_own:
        variables.setdefault("PYTHONPATH", PACKAGES[0])
    run(
        [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--ignore-installed", *arguments],
        environment=plain_environment(
            PIP_DISABLE_PIP_VERSION_CHECK="1",
            PIP_ROOT_USER_ACTION="ignore",
            # Debian's Python wants its own packages only.
            PIP_BREAK_SYSTEM_PACKAGES="1",
            **variables,
        ),
    )


def add_dependencies(site_packages: Path) -> None:
    """What the package needs is found in this environment, after all that is installed there."""
    write(site_packages / "zz_packages_of_the_tests.pth", "\n".join(PACKAGES) + "\n")


def assert_runs(
    tmp_path: Path, python: str | Path, *switches: str, installed: Path, environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """A program and its worker are the same Python, with the package and the executable that are ``installed`` below a folder."""
    environment = environment or plain_environment()
    ask = "import trio_offload, trio_offload._interpreter.locate as l; print(trio_offload.__file__, l.worker_executable(), sep='\\n')"
    for path in run([python, *switches, "-c", ask], environment=environment).lines():
        assert Path(path).is_relative_to(installed), path
    return assert_same(compare(tmp_path, switches, python=python, environment=environment))


# --- where pip puts it ---------------------------------------------------------------------------------


def test_installed_for_one_user(tmp_path: Path, wheel: Path) -> None:
    """``pip install --user``, for a Python that is no environment."""
    base = tmp_path / "home" / ".local"
    pip(BASE, "--user", wheel, PYTHONUSERBASE=str(base))
    add_dependencies(base / "lib" / VERSION / "site-packages")
    environment = plain_environment(PYTHONUSERBASE=str(base))
    assert_runs(tmp_path, BASE, installed=base, environment=environment)
    # As it is found where nobody says where: below the home.
    assert_runs(tmp_path, BASE, "-B", installed=base, environment=plain_environment(HOME=str(tmp_path / "home")))


def test_installed_into_a_folder(tmp_path: Path, wheel: Path) -> None:
    """``pip install --target``: as for the bundles of serverless functions, and as some editors ship packages."""
    target = tmp_path / "a folder" / "vendor"
    pip(BASE, "--target", target, wheel)
    environment = plain_environment(PYTHONPATH=os.pathsep.join([str(target), *PACKAGES]))
    assert_runs(tmp_path, BASE, installed=target, environment=environment)
    # It may be moved, and the program may put it on its path by itself.
    moved = target.rename(tmp_path / "moved")
    script = """
        import sys
        sys.path[:0] = FOLDERS
        import trio, trio_offload
        if __name__ == "__main__":
            print(trio.run(trio_offload.run_sync, eval, "__import__('sys').path[:1]", {}))
    """
    ended = run([BASE, write(tmp_path / "script.py", script.replace("FOLDERS", repr([str(moved), *PACKAGES])))])
    assert ended.lines() == [repr([str(moved)])]


def test_installed_with_a_prefix(tmp_path: Path, wheel: Path) -> None:
    """``pip install --prefix``, as packagers and Guix, Nix and Spack do it."""
    prefix = tmp_path / "prefix"
    pip(BASE, "--prefix", prefix, wheel)
    places = [path for path in prefix.rglob("trio_offload") if path.is_dir()]
    assert len(places) == 1
    environment = plain_environment(PYTHONPATH=os.pathsep.join([str(places[0].parent), *PACKAGES]))
    assert_runs(tmp_path, BASE, installed=prefix, environment=environment)


def test_a_virtualenv(tmp_path: Path, wheel: Path) -> None:
    """The package of that name, which makes its environments in its own way."""
    folder = tmp_path / "environment"
    options = ["--without-pip"] if _understands_without_pip() else ["--no-pip"]
    run([sys.executable, "-m", "virtualenv", "--quiet", *options, "--app-data", tmp_path / "data", "--python", BASE, folder])
    python = folder / "bin" / "python"
    pip(python, wheel)
    add_dependencies(folder / "lib" / VERSION / "site-packages")
    assert_runs(tmp_path, python, installed=folder)
    assert_runs(tmp_path, python, "-I", installed=folder)


def _understands_without_pip() -> bool:
    return "--without-pip" in run([sys.executable, "-m", "virtualenv", "--help"]).stdout


def test_an_environment_that_sees_the_systems_packages(tmp_path: Path, wheel: Path) -> None:
    """The package is in the one below, or in both: then the program's own is what runs."""
    below = tmp_path / "below"
    run([BASE, "-m", "venv", "--without-pip", below])
    packages = below / "lib" / VERSION / "site-packages"
    pip(below / "bin" / "python", wheel)
    add_dependencies(packages)
    above = tmp_path / "above"
    run([BASE, "-m", "venv", "--without-pip", "--system-site-packages", above])
    python = above / "bin" / "python"
    # What a second environment sees of the first one, by a .pth file.
    write(above / "lib" / VERSION / "site-packages" / "below.pth", f"{packages}\n" + "\n".join(PACKAGES) + "\n")
    assert_runs(tmp_path, python, installed=below)
    pip(python, wheel)
    assert_runs(tmp_path, python, installed=above)


def test_an_editable_install(tmp_path: Path, wheel: Path) -> None:
    """As ``pip install --editable`` leaves it: the sources where they are, the executable in the environment."""
    folder = tmp_path / "environment"
    run([BASE, "-m", "venv", "--without-pip", folder])
    python = folder / "bin" / "python"
    packages = folder / "lib" / VERSION / "site-packages"
    pip(python, wheel)
    sources = tmp_path / "checkout" / "parent-py"
    sources.mkdir(parents=True)
    for name in ("trio_offload", "trio_offload_worker"):
        (packages / name).rename(sources / name)
    write(packages / "trio_offload.pth", f"{sources}\n")
    add_dependencies(packages)
    assert_runs(tmp_path, python, installed=tmp_path)
    # Without it, what cargo has built in the checkout.
    built = tmp_path / "checkout" / "target" / "release"
    built.mkdir(parents=True)
    (folder / "bin" / _locate.EXECUTABLE).rename(built / _locate.EXECUTABLE)
    assert_runs(tmp_path, python, installed=tmp_path)


# --- Pythons that are elsewhere than they were built -------------------------------------------------------


@pytest.fixture(scope="session")
def static_interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has all of Python in itself, as conda, uv and Debian have it, from this Python's own archive."""
    folder = tmp_path_factory.mktemp("static")
    archive = Path(sysconfig.get_config_var("LIBPL"), f"lib{VERSION}{getattr(sys, 'abiflags', '')}.a")
    compiler = shutil.which("cc")
    if not archive.exists() or compiler is None:
        pytest.skip("this Python has no archive to link an interpreter from, or there is no C compiler")
    source = folder / "main.c"
    source.write_text("int Py_BytesMain(int, char **);\nint main(int c, char **v) { return Py_BytesMain(c, v); }\n")
    libraries = " ".join(sysconfig.get_config_var(name) or "" for name in ("LIBS", "SYSLIBS")).split()
    # Not every distribution compiles the archive so that it fits into an executable that can be moved (PIE).
    linked = run(
        [compiler, "-O1", "-no-pie", source, archive, *libraries, "-Wl,-export-dynamic", "-o", folder / VERSION],
        expect=None,
    )
    if "undefined reference" in linked.stderr:
        # Debian's has modules in it whose libraries (zlib, expat, ...) have to be linked as well, and are not there to link.
        pytest.skip(f"this Python's archive needs libraries that are not installed: {linked.stderr.splitlines()[-2]}")
    assert linked.status == 0, linked
    return folder / VERSION


def make_prefix(folder: Path, interpreter: Path) -> Path:
    """A Python of its own in a folder: its interpreter, a libpython beside it, and the standard library. Its interpreter."""
    python = folder / "bin" / VERSION
    python.parent.mkdir(parents=True)
    shutil.copy(interpreter, python)
    (folder / "bin" / "python").symlink_to(VERSION)
    library = folder / "lib" / VERSION
    library.mkdir(parents=True)
    for entry in Path(os.__file__).parent.iterdir():
        if entry.name not in ("site-packages", "dist-packages", "__pycache__"):
            (library / entry.name).symlink_to(entry)
    (library / "site-packages").mkdir()
    shutil.copy(_locate.libpython(), folder / "lib")
    return python


def forget_where_it_was_built(folder: Path) -> None:
    """What the build variables say is true of another machine, as in a Python that was built there and unpacked here."""
    library = folder / "lib" / VERSION
    for data in library.glob("_sysconfigdata*.py"):
        text = data.read_text().replace(sys.base_prefix, "/install")
        data.unlink()
        data.write_text(text)


@pytest.mark.parametrize("kind", ["conda", "uv"])
def test_a_python_with_its_library_beside_it(tmp_path: Path, static_interpreter: Path, wheel: Path, kind: str) -> None:
    """Alone, and below an environment."""
    folder = tmp_path / "python"
    python = make_prefix(folder, static_interpreter)
    if kind == "uv":
        forget_where_it_was_built(folder)
    pip(python, "--prefix", folder, wheel)
    add_dependencies(folder / "lib" / VERSION / "site-packages")
    worker = assert_runs(tmp_path, python, installed=folder)
    assert worker["prefix"] == repr(str(folder))
    ask = "from trio_offload._interpreter import locate as _locate; print(_locate.find_libpython().path, _locate._loaded_libpython())"
    library = folder / "lib" / os.path.basename(_locate.libpython())
    assert run([python, "-c", ask]).lines() == [f"{library} None"]

    environment = tmp_path / "environment"
    run([folder / "bin" / "python", "-m", "venv", "--without-pip", environment])
    python = environment / "bin" / "python"
    pip(python, wheel)
    add_dependencies(environment / "lib" / VERSION / "site-packages")
    worker = assert_runs(tmp_path, python, installed=environment)
    assert worker["base_prefix"] == repr(str(folder))
    assert run([python, "-c", ask]).lines() == [f"{library} None"]


def test_a_python_that_was_moved(tmp_path: Path, static_interpreter: Path, wheel: Path) -> None:
    folder = tmp_path / "first"
    pip(make_prefix(folder, static_interpreter), "--prefix", folder, wheel)
    add_dependencies(folder / "lib" / VERSION / "site-packages")
    moved = folder.rename(tmp_path / "Größe und mehr")
    worker = assert_runs(tmp_path, moved / "bin" / "python", installed=moved)
    assert worker["prefix"] == repr(str(moved))


# --- what may be forbidden ----------------------------------------------------------------------------------

ONE_CALL = """
    import os, sys, tempfile, trio, trio_offload

    def mine():
        with tempfile.TemporaryFile() as file:
            file.write(b"x")
        return os.getppid()

    if __name__ == "__main__":
        for _ in range(2):
            try:
                print(trio.run(trio_offload.run_sync, mine) == os.getpid())
            except trio_offload.WorkerStartError as error:
                print(error)
"""


def let_everybody_in(folder: Path) -> None:
    """To a folder below the temporary folder of this run, which is for its owner only."""
    for each in (folder, *folder.parents):
        each.chmod(0o755)
        if each == Path(tempfile.gettempdir()):
            return


def needs(*command: str) -> pytest.MarkDecorator:
    """Some of this needs a privilege or a tool that not every machine grants."""
    try:
        granted = subprocess.run([*command, "true"], capture_output=True).returncode == 0
    except OSError:
        granted = False
    return pytest.mark.skipif(not granted, reason=f"«{' '.join(command)}» cannot be done here")


NO_NEW_PRIVILEGES = ("setpriv", "--no-new-privs")
OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private")
NOBODY = 65534


@needs(*NO_NEW_PRIVILEGES)
def test_without_new_privileges(tmp_path: Path) -> None:
    """prctl(PR_SET_NO_NEW_PRIVS), as containers, systemd and bubblewrap set it."""
    script = write(tmp_path / "script.py", ONE_CALL)
    assert run([*NO_NEW_PRIVILEGES, sys.executable, script]).lines() == ["True", "True"]


@needs(*OWN_MOUNTS)
def test_a_temporary_folder_that_is_mounted_noexec(tmp_path: Path) -> None:
    """A hardened server has it so. Nothing of a worker is executed from there."""
    script = write(tmp_path / "script.py", ONE_CALL)
    folder = tmp_path / "temporary"
    folder.mkdir()
    mount = 'mount -t tmpfs -o noexec,nosuid,nodev tmpfs "$0" && exec "$@"'
    command = [*OWN_MOUNTS, "sh", "-c", mount, folder, sys.executable, script]
    assert run(command, environment=plain_environment(TMPDIR=str(folder))).lines() == ["True", "True"]


@needs(*OWN_MOUNTS)
def test_packages_that_are_mounted_noexec(tmp_path: Path, wheel: Path) -> None:
    """A home on a network, say. An interpreter from elsewhere runs what lies there, but the kernel starts nothing from it."""
    script = write(tmp_path / "script.py", ONE_CALL)
    folder = tmp_path / "packages"
    folder.mkdir()
    pip(BASE, "--target", tmp_path / "target", wheel)
    mount = 'mount -t tmpfs -o noexec tmpfs "$0" && cp -r "$1/." "$0" && shift && exec "$@"'
    environment = plain_environment(PYTHONPATH=os.pathsep.join([str(folder), *PACKAGES]))
    ended = run([*OWN_MOUNTS, "sh", "-c", mount, folder, tmp_path / "target", BASE, script], environment=environment)
    for line in ended.lines():
        assert str(folder / "bin" / _locate.EXECUTABLE) in line
        assert "mounted noexec" in line
    assert len(ended.lines()) == 2


@needs(*OWN_MOUNTS)
def test_an_environment_that_cannot_be_written(tmp_path: Path, wheel: Path) -> None:
    """An image of a container: neither a .pyc nor anything else can be put there, and there is no home."""
    folder = tmp_path / "environment"
    run([BASE, "-m", "venv", "--without-pip", folder])
    pip(folder / "bin" / "python", wheel, "--no-compile")
    add_dependencies(folder / "lib" / VERSION / "site-packages")
    script = write(tmp_path / "script.py", ONE_CALL)
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && ! touch "$0/x" 2>&- && exec "$@"'
    command = [*OWN_MOUNTS, "sh", "-c", mount, folder, folder / "bin" / "python", script]
    assert run(command, environment=plain_environment(HOME="/nowhere")).lines() == ["True", "True"]
    assert not list(folder.rglob("*.pyc"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can have another effective user than the real one")
def test_a_program_with_another_effective_user(tmp_path: Path) -> None:
    """As daemons have it, and what setuid programs start: the loader heeds no variable then."""
    program = """
        import os, trio, trio_offload

        async def main():
            for user in (os.geteuid(), 65534):
                # The first call imports what that user may not be able to read.
                os.seteuid(user)
                async with trio_offload.open_worker_context() as context:
                    try:
                        print(await context.run_sync(os.getuid) == os.getuid())
                    except trio_offload.WorkerStartError as error:
                        print(error)

        trio.run(main)
    """
    copy = shutil.copy(_locate.worker_executable(), tmp_path / "worker")
    let_everybody_in(tmp_path)
    ended = run_script(tmp_path, program, environment=plain_environment(TRIO_OFFLOAD_WORKER=str(copy)))
    first, *rest = ended.lines()
    assert first == "True"
    # Where the loader finds the right library by itself all is well.
    assert rest == ["True"] or "os.setresuid" in "\n".join(rest), str(ended)


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EACCES, "SELinux"),
        (errno.EPERM, "seccomp"),
        (errno.ENOMEM, "not enough memory"),
        (errno.EAGAIN, "limit of processes"),
    ],
    ids=lambda value: errno.errorcode.get(value, "") if isinstance(value, int) else "",
)
async def test_a_policy_that_forbids_to_start_it(monkeypatch: pytest.MonkeyPatch, number: int, told: str) -> None:
    """Staged where the kernel would say it: SELinux and AppArmor give EACCES, seccomp what it was told to, mostly EPERM."""

    def refuse(*args: Any, **options: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_spawn", refuse)
    async with trio_offload.open_worker_context() as context:
        for _ in range(2):
            with pytest.raises(WorkerStartError, match=told) as caught:
                await context.run_sync(bool)
            assert _locate.worker_executable() in str(caught.value)
        assert context.statistics() == trio_offload.WorkerContextStatistics(0, 0)


@needs("setpriv", "--reuid", str(NOBODY), "--clear-groups", BASE, "-c", "")
def test_a_user_who_may_not_read_it(tmp_path: Path, wheel: Path) -> None:
    """Installed by the superuser with a umask of 077, used by somebody else."""
    target = tmp_path / "target"
    pip(BASE, "--target", target, wheel)
    let_everybody_in(tmp_path)
    (target / "bin" / _locate.EXECUTABLE).chmod(0o700)
    ask = "from trio_offload._interpreter import locate as _locate; print(_locate.worker_executable())"
    command = ["setpriv", "--reuid", str(NOBODY), "--clear-groups", BASE, "-c", ask]
    environment = plain_environment(PYTHONPATH=os.pathsep.join([str(target), *PACKAGES]))
    ended = run(command, environment=environment, expect=None)
    if "LocateError" not in ended.stderr:
        pytest.skip(f"that user cannot run this Python at all: {ended.stderr}")
    assert f"{target / 'bin' / _locate.EXECUTABLE} may not be executed; its mode (700, owner 0)" in ended.stderr
    assert f"user {NOBODY}" in ended.stderr
