"""End to end: apps made by PyInstaller, built for real and run as a user runs them.

Few builds, because each takes ten seconds and more; so a run of an app does everything, and the tests look at what it
has printed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import PROGRAMS, TEST_PACKAGES, in_session, plain_environment, run, started

pytestmark = pytest.mark.slow

SOURCES = PROGRAMS / "frozen"
DATA = f"--add-data={SOURCES}/frozen_package/data{os.pathsep}frozen_package/data"
HOOK = f"--runtime-hook={SOURCES}/runtime_hook.py"
# The C library's own: what a bundle takes from the system it runs on.
C_LIBRARY = ("ld-linux", "libc.so", "libm.so", "libdl.so", "libpthread.so", "librt.so", "libutil.so", "libresolv.so")


def build(folder: Path, script: str, *options: str, keeps: str = "") -> Path:
    """What the app consists of: its folder, or its one file. ``keeps`` may be collected."""
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "PyInstaller",
        "--noconfirm",
        "--log-level=WARN",
        "--distpath",
        folder / "dist",
    ]
    for name in {*TEST_PACKAGES} - {keeps}:
        command += ["--exclude-module", name]
    run([*command, *options, SOURCES / script], folder=folder)
    return folder / "dist" / Path(script).stem


@pytest.fixture(scope="module")
def folder_app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The executable of the app as a folder, with everything in it."""
    options = [DATA, HOOK, "--hidden-import=sqlite3", "--hidden-import=numpy"]
    return build(tmp_path_factory.mktemp("folder"), "app.py", *options) / "app"


@pytest.fixture(scope="module")
def file_app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as one file without NumPy and without a console."""
    options = [DATA, HOOK, "--hidden-import=sqlite3", "--exclude-module=numpy"]
    return build(tmp_path_factory.mktemp("file"), "app.py", "--onefile", "--windowed", *options)


@pytest.fixture(scope="module")
def bare_app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An app without a guard and without freeze_support(), made where OpenTelemetry is installed."""
    return build(tmp_path_factory.mktemp("bare"), "bare.py", "--exclude-module=numpy", keeps="opentelemetry") / "bare"


@pytest.fixture(scope="module")
def folder_run(folder_app: Path) -> dict[str, Any]:
    return everything([folder_app, "--environment", "--multiprocessing"])


def everything(command: list[str | Path], **environment: str | None) -> dict[str, Any]:
    ended = run(command, environment=plain_environment(**environment))
    assert ended.stderr == ""
    seen: dict[str, Any] = json.loads(ended.stdout)
    return seen


def contents(folder: Path) -> str:
    """Where the files of an app lie. Before PyInstaller 6.0 there was no folder for them."""
    inner = folder / "_internal"
    return str(inner if inner.is_dir() else folder)


def check_jobs(seen: dict[str, Any], bundle: str) -> None:
    assert seen["builtin"] == 3
    assert seen["package"] == 42
    assert seen["data"] == ["näher", "am", "Kern"]
    assert seen["main"] == 49
    assert seen["class of main"] == 2
    assert seen["exception"] == 5
    assert seen["environment"] is True
    assert seen["facts"] == {}, "the worker differs from the app"
    assert seen["where"] == ["__main__", f"{bundle}/app.py", "left in __main__", True, "<module>"]


def test_jobs_of_every_kind(folder_app: Path, folder_run: dict[str, Any]) -> None:
    check_jobs(folder_run, contents(folder_app.parent))


def test_closure_over_an_extension_module(folder_run: dict[str, Any]) -> None:
    assert folder_run["closure"] == 6


def test_runtime_hooks_have_run(folder_run: dict[str, Any]) -> None:
    assert folder_run["hook"] == "runtime_hook.py ran in __main__"
    assert folder_run["hooks"] == {
        "there before": [],
        "inspect": "_pyi_getsourcefile",
        "pkgutil": ["work"],
        "multiprocessing": "_freeze_support",
        "name": "trio-offload-worker",
        "parent": True,
    }


def test_plain_job_imports_next_to_nothing(folder_run: dict[str, Any]) -> None:
    unwanted = {
        "trio",
        "inspect",
        "pkgutil",
        "multiprocessing",
        "subprocess",
        "typing",
        "trio_offload_worker._jobs.settings",
    }
    assert not unwanted & set(folder_run["modules"])


def test_no_resource_tracker_is_started(folder_run: dict[str, Any]) -> None:
    """To start one is to run the app once more."""
    assert folder_run["trackers"] == [None, None]


def test_multiprocessing_goes_on_working(folder_run: dict[str, Any]) -> None:
    assert (folder_run["spawn in the app"], folder_run["spawn in a job"]) == (8, 10)


def test_libraries_are_the_bundles_own(folder_app: Path, folder_run: dict[str, Any]) -> None:
    """Also when the app has given the system's programs their library path back."""
    assert folder_run["restored environment"] is None
    for libraries in (folder_run["libraries"], folder_run["libraries then"]):
        assert [path for path in libraries if "_ssl" in path], "the job has not imported ssl"
        assert foreign(libraries, folder_app.parent) == []


def foreign(libraries: list[str], bundle: Path) -> list[str]:
    return [
        path
        for path in libraries
        if not Path(path).is_relative_to(bundle) and not Path(path).name.startswith(C_LIBRARY) and "gconv" not in path
    ]


def test_splash_screen_is_left_alone(folder_run: dict[str, Any]) -> None:
    assert folder_run["splash"] == "0"


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "POSIX"])
def test_moved_to_a_path_with_a_blank_and_an_umlaut(folder_app: Path, tmp_path: Path, locale: str) -> None:
    place = tmp_path / "Grüße an alle"
    shutil.copytree(folder_app.parent, place, symlinks=True)
    seen = everything([place / "app"], LC_ALL=locale)
    check_jobs(seen, contents(place))
    assert foreign(seen["libraries"], place) == []


def test_started_by_a_symbolic_link(folder_app: Path, tmp_path: Path) -> None:
    link = tmp_path / "link to the app"
    link.symlink_to(folder_app)
    check_jobs(everything([link]), contents(folder_app.parent))


# --- one file --------------------------------------------------------------------------------------------------


def test_one_file(file_app: Path, tmp_path: Path) -> None:
    """Unpacked when it starts, removed when it ends: the workers are gone by then."""
    seen = everything([file_app, "--environment", "--multiprocessing"], TMPDIR=str(tmp_path))
    bundle = seen["where"][1].removesuffix("/app.py")
    assert Path(bundle).parent == tmp_path
    check_jobs(seen, bundle)
    assert seen["hook"] == "runtime_hook.py ran in __main__"
    assert (seen["spawn in the app"], seen["spawn in a job"]) == (8, 10)
    assert foreign([*seen["libraries"], *seen["libraries then"]], Path(bundle)) == []
    assert seen["closure"] == "without numpy"
    assert list(tmp_path.iterdir()) == []


def test_one_file_whose_app_is_killed(file_app: Path, tmp_path: Path) -> None:
    """A worker that is busy ends with it, and its bootloader removes the files."""
    environment = plain_environment(TMPDIR=str(tmp_path))
    with started([file_app, "--busy"], environment=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"busy\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 1, "the bootloader of an app in one file has one child, the app"
        os.kill(int(children[0]), 9)
        process.stdout.read()
        process.wait()
    assert in_session(process.pid) == {}
    assert list(tmp_path.iterdir()) == []


# --- an app that knows nothing of processes ----------------------------------------------------------------------


def test_without_guard_and_freeze_support(bare_app: Path) -> None:
    ended = run([bare_app])
    assert (ended.lines(), ended.stderr) == (["the app runs", "42 3", "without OpenTelemetry"], "")


def test_job_in_a_main_without_guard(bare_app: Path) -> None:
    """The script begins to run in the worker, and that is where it ends, with the remedy."""
    ended = run([bare_app, "--job-in-main"], expect=1)
    # Through a pipe, the worker's line is out before the app's.
    assert sorted(ended.lines()) == ["42 3", "the app runs", "the app runs", "without OpenTelemetry"]
    assert 'if __name__ == "__main__":' in ended.stderr


# --- an app with OpenTelemetry -------------------------------------------------------------------------------------


def test_spans_of_jobs(tmp_path: Path) -> None:
    """The worker's hook ignores that the worker imports the package. The app imports it too."""
    app = build(tmp_path, "spans.py", "--exclude-module=numpy", keeps="opentelemetry") / "spans"
    ended = run([app])
    expected = ["True", "call frozen_package.work.has_span run frozen_package.work.has_span start worker"]
    assert (ended.lines(), ended.stderr) == (expected, "")


# --- a machine without Python --------------------------------------------------------------------------------------


@pytest.fixture
def empty_machine(tmp_path: Path, folder_app: Path) -> Path:
    """A root folder that holds the C library, what PyInstaller's bootloader is linked with, the kernel's folders, and nothing else."""
    root = tmp_path / "root"
    for name in ("proc", "dev", "tmp"):
        (root / name).mkdir(parents=True)
    linked = [Path(word) for word in run(["ldd", folder_app]).stdout.split() if word.startswith("/")]
    loader_and_library = {path.parent for path in linked if path.name.startswith(C_LIBRARY)}
    parts = [path for folder in loader_and_library for path in folder.iterdir() if path.name.startswith(C_LIBRARY)]
    for path in [*linked, *parts]:
        copy = root / str(path).lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return root


def test_machine_without_python(folder_app: Path, empty_machine: Path) -> None:
    """The app in a root of its own. Whatever it needs from outside of its folder would be missing."""
    namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this system does not give its users mount namespaces")
    shutil.copytree(folder_app.parent, empty_machine / "app", symlinks=True)
    script = 'mount --rbind /proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" /app/app'
    seen = everything([*namespace, "sh", "-c", script, empty_machine])
    check_jobs(seen, contents(folder_app.parent).replace(str(folder_app.parent), "/app"))
    assert seen["closure"] == 6
    assert foreign(seen["libraries"], Path("/app")) == []
