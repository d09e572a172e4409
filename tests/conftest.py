"""What every test relies on: the worker is installed, and nothing is left behind.

The proof that nothing is left runs after each test, whatever the test looked at itself. It compares this process
before and after: children (zombies too), descriptors, threads, temporary files. What is still on its way out gets a
moment, so it looks again until a deadline and only then complains, with names.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
from lifeline import Gate, Lifeline

SETTLING_TIME = 5.0  # seconds
# What lives as long as the process, by intent: pytest's own folder, and the one in which multiprocessing puts its sockets.
LASTING_FILES = ("pytest-of-", "pymp-")
PRIVATE_FOLDER = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    _let_programs_be_interrupted()
    _let_programs_be_as_everywhere()
    if not hasattr(config, "workerinput"):  # Under xdist, in the process that hears of every test.
        config.pluginmanager.register(FailuresAtOnce(config))
    # Before collection: without the executable nearly every test would fail, each with the same page of text.
    if config.option.collectonly or config.option.help:
        return
    _give_a_private_temporary_folder(config)
    try:
        import trio_offload
        from trio_offload._interpreter.locate import worker_executable
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("trio_offload"):
            raise
        # The vectors need nothing installed, so this is no reason to stop; each test that imports the package says so.
        return
    if not Path(trio_offload.__file__).is_relative_to(sys.prefix):
        # A checkout's folder on sys.path: then the tests run with that source and an executable from who knows where.
        config.issue_config_time_warning(
            pytest.PytestWarning(f"the tests run with {trio_offload.__file__}, which is not installed here"), 2
        )
    try:
        worker_executable()
    except Exception as error:
        raise pytest.UsageError(
            f"the worker executable must be installed for the tests: `pip install .` in this environment ({sys.prefix}) "
            f"builds and installs it, or use ci/test, which does it all.\n{error}"
        ) from error


@attrs.frozen(eq=False)
class FailuresAtOnce:
    """Names a failed test when it has failed. A run that is ended from outside never comes to pytest's own list."""

    config: pytest.Config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and reporter is not None:
            reporter.write_line(f"\n{report.nodeid} ({report.when}): {self._last_line(report)}")

    def _last_line(self, report: pytest.TestReport) -> str:
        crash = getattr(report.longrepr, "reprcrash", None)
        return crash.message.splitlines()[0] if crash is not None and crash.message else report.longreprtext.strip()


def _let_programs_be_interrupted() -> None:
    """A shell starts its background jobs with some of these ignored, nohup with another; every program below would inherit that, for good."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) == signal.SIG_IGN:
            # What a handler is set for is back at its default in a program that is started.
            signal.signal(number, signal.default_int_handler)


def _let_programs_be_as_everywhere() -> None:
    """What a machine sets for every Python (no buffers, no bytecode) would hide faults that users have."""
    for name in list(os.environ):
        if name.startswith("PYTHON"):
            del os.environ[name]


def _give_a_private_temporary_folder(config: pytest.Config) -> None:
    """So that every file in it is one of ours, also when another program, or another run of the tests, is busy."""
    # A short name: the path of a socket in it has room for 107 bytes.
    folder = tempfile.mkdtemp(prefix="to-")
    config.stash[PRIVATE_FOLDER] = folder
    tempfile.tempdir = os.environ["TMPDIR"] = folder


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    # After a failure the folders of the failed tests (tmp_path) are worth keeping.
    folder = session.config.stash.get(PRIVATE_FOLDER, None)
    if folder is not None and exitstatus != pytest.ExitCode.TESTS_FAILED:
        shutil.rmtree(folder, ignore_errors=True)


# --- nothing is left behind ----------------------------------------------------------------------


@attrs.frozen
class Belongings:
    """What a process has that it could forget to give back. Each maps an identity to a name for people."""

    children: dict[int, str]
    descriptors: dict[int, str]
    threads: dict[int, str]
    files: dict[str, str]

    @classmethod
    def now(cls) -> Belongings:
        return cls(_children(), _descriptors(), _threads(), _temporary_files())

    def since(self, before: Belongings) -> list[str]:
        """What is there now and was not before, a line each."""
        return [
            *(f"process {pid}: {name}" for pid, name in self.children.items() if pid not in before.children),
            # A descriptor's number is used again by the next one, so what it is open on is part of its identity.
            *(f"descriptor {fd}: {name}" for fd, name in self.descriptors.items() if before.descriptors.get(fd) != name),
            *(f"thread {name}" for number, name in self.threads.items() if number not in before.threads),
            *(f"temporary file {path}" for path in self.files if path not in before.files),
        ]


def _children() -> dict[int, str]:
    children = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            pids = (task / "children").read_text().split()
        except OSError:  # the thread has just ended
            continue
        for pid in pids:
            name = _process_name(int(pid))
            if name is not None:
                children[int(pid)] = name
    return children


def _process_name(pid: int) -> str | None:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    return f"{command or fields['Name']} ({fields['State'].strip()})"


def _descriptors() -> dict[int, str]:
    descriptors = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            descriptors[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:  # the one that lists this folder
            continue
    return descriptors


def _threads() -> dict[int, str]:
    # Trio keeps its threads for ten seconds of idleness, on purpose.
    return {
        thread.native_id or 0: thread.name
        for thread in threading.enumerate()
        if not thread.name.lower().startswith("trio thread") and "_thread_cache" not in type(thread).__module__
    }


def _temporary_files() -> dict[str, str]:
    folder = tempfile.gettempdir()
    return {name: folder for name in os.listdir(folder) if not name.startswith(LASTING_FILES)}


def _shut_default_workers_down() -> None:
    """End the workers of the default context, which would otherwise live until this process exits."""
    default = sys.modules.get("trio_offload._default")
    if default is not None:
        default.default_context.shutdown()


def _first_use_is_over() -> None:
    """Open what is opened once in the life of a process and belongs to no test."""
    # random.SystemRandom and tempfile may keep /dev/urandom; Trio's first thread starts its cache.
    os.urandom(1)
    tempfile.gettempdir()


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails the test that leaves a process, a descriptor, a thread or a temporary file behind."""
    _first_use_is_over()
    before = Belongings.now()
    yield
    if request.node.get_closest_marker("leaves_default_workers") is not None:
        _shut_default_workers_down()
    left = _left_after_settling(before)
    if left:
        pytest.fail("left behind:\n  " + "\n  ".join(left), pytrace=False)


def _left_after_settling(before: Belongings) -> list[str]:
    left = Belongings.now().since(before)
    deadline = time.monotonic() + SETTLING_TIME
    pause = 0.001
    while left and time.monotonic() < deadline:
        # What only a reference cycle keeps is no leak, but a collection costs too much to have one after every test.
        gc.collect()
        time.sleep(pause)
        pause = min(pause * 2, 0.1)
        left = Belongings.now().since(before)
    return left


# --- what holds for every type of worker ---------------------------------------------------------


@pytest.fixture(params=["spawn", "forkserver"])
def worker_type(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Contexts that do not ask for a type have this one. A file whose tests hold for all types uses it by a mark."""
    import trio_offload
    from trio_offload import WorkerType
    from trio_offload._interpreter import locate as _locate

    worker_type = WorkerType(request.param)
    if worker_type is WorkerType.FORKSERVER and not _locate.runtime().is_native:
        pytest.skip("templates need the worker executable, and here workers are run in Python")
    contexts: Any = type(trio_offload.WorkerContext)
    create = contexts._create

    def create_with_type(cls: Any, options: Any) -> Any:
        if options.worker_type is WorkerType.SPAWN:
            options = attrs.evolve(options, worker_type=worker_type)
        return create(cls, options)

    monkeypatch.setattr(contexts, "_create", create_with_type)
    return worker_type


@pytest.fixture(params=["spawn", "forkserver", "fork", "loop"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each kind of worker by turns; see ``kinds.py``."""
    from kinds import use_loops

    from trio_offload._interpreter import locate as _locate

    if request.param == "loop":
        use_loops(monkeypatch)
    elif request.param == "forkserver" and not _locate.runtime().is_native:
        pytest.skip("templates need the worker executable, and here workers are run in Python")
    return str(request.param)


@pytest.fixture
def of_any_kind(kind: str) -> Any:
    """The type for a context, whose workers are of each kind by turns."""
    from kinds import type_of

    return type_of(kind)


# --- for everyone --------------------------------------------------------------------------------


@pytest.fixture
async def context() -> AsyncIterator[Any]:
    """An open context without options. A file that needs another has a fixture of its own."""
    from trio_offload import open_worker_context

    async with open_worker_context() as context:
        yield context


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Contexts use the fakes of ``fakes.py``; the default context is a new one for the test."""
    from fakes import Plan

    from trio_offload import WorkerContext, _context, _default
    from trio_offload._options import ContextOptions

    plan = Plan()
    monkeypatch.setattr(_context, "launcher_for", plan.launcher_for)
    monkeypatch.setattr(_default.default_context, "_current", WorkerContext._create(ContextOptions()))
    yield plan
    assert not plan.running, "a worker was left running"


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Lifeline]:
    with closing(Lifeline(tmp_path / "line")) as line:
        yield line


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with closing(Gate(tmp_path / "gate")) as gate:
        yield gate


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def cargo() -> str:
    """The path of cargo; a test that needs it is skipped where there is none."""
    found = shutil.which("cargo")
    if found is None:
        pytest.skip("cargo is not installed")
    return found
