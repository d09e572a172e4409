"""End to end: Ctrl+C, and signals to a program's whole group. Workers swallow SIGINT; what a job starts gets it.

A terminal sends a signal to its foreground group, so the programs here have a terminal of their own and keys are pressed.
"""

from __future__ import annotations

import os
import pty
import random
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from programs import signal_jobs as jobs
from running import PROGRAMS, TIMEOUT, Command, end_session, left_in_session, plain_environment, started, write

from trio_offload import BrokenWorkerError, JobExitError, WorkerType, open_worker_context
from trio_offload._interpreter import locate as _locate

CTRL_C = b"\x03"
CTRL_BACKSLASH = b"\x1c"
CTRL_Z = b"\x1a"

PRELUDE = f"""\
import sys
sys.path.insert(0, {str(PROGRAMS)!r})
import atexit, fcntl, os, resource, signal, termios, time
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
if os.isatty(0):
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # the leader of a session takes it for its terminal
import trio, trio_offload
import signal_jobs as jobs
call = lambda *args, **options: trio.run(lambda: trio_offload.run_sync(*args, **options))
"""


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, ours: int, process: subprocess.Popen[bytes]) -> None:
        self.ours = ours
        self.process = process
        self.said = ""

    def press(self, key: bytes) -> None:
        os.write(self.ours, key)

    def wait_for(self, text: str, times: int = 1) -> None:
        while self.said.count(text) < times:
            assert self._read(), f"it ended without having said {text!r}: {self.said}"

    def end(self) -> int:
        """Wait for the program's end; its exit status, or the ending signal's number made negative."""
        while self._read():
            pass
        return self.process.wait(TIMEOUT)

    def _read(self) -> bool:
        readable, _, _ = select.select([self.ours], [], [], TIMEOUT)
        assert readable, f"nothing happens any more: {self.said}"
        try:
            data = os.read(self.ours, 65536)
        except OSError:  # nobody has the other side any more
            return False
        self.said += data.decode().replace("\r\n", "\n")
        return True


@contextmanager
def on_terminal(command: Command, environment: Any = None) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    attributes = termios.tcgetattr(theirs)
    attributes[3] &= ~termios.ECHO
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**(environment or plain_environment()), "NO_COLOR": "1"},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        with process:
            try:
                yield Terminal(ours, process)
            except BaseException:
                end_session(process.pid)
                raise
    finally:
        os.close(ours)
        left = left_in_session(process.pid)
        if left:
            end_session(process.pid)
    assert not left, f"left behind: {left}"


@pytest.fixture
def program(tmp_path: Path) -> Any:
    def make(text: str) -> list[str | Path]:
        return [sys.executable, write(tmp_path / "script.py", PRELUDE + text.strip("\n"))]

    return make


def one_interrupt(said: str) -> None:
    """What is seen is the program's own KeyboardInterrupt, and nothing of a worker."""
    assert said.count("Traceback (most recent call last)") == 1, said
    assert len(re.findall(r"^KeyboardInterrupt$", said, re.MULTILINE)) == 1, said
    assert "Broken" not in said
    assert "Exception ignored" not in said


# --- Ctrl+C -------------------------------------------------------------------------------------------------------


def test_ctrl_c_in_a_call_that_may_be_cancelled(program: Any) -> None:
    """Trio raises KeyboardInterrupt in the main task; another task's call is cancelled by it, and its worker killed."""
    with on_terminal(
        program(
            """
async def main():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: trio_offload.run_sync(jobs.spin, kill_on_cancel=True))
        await trio.sleep_forever()

try:
    trio.run(main)
except BaseException as error:
    while hasattr(error, "exceptions"):
        error, = error.exceptions
    print(type(error).__name__, flush=True)
"""
        )
    ) as terminal:
        terminal.wait_for("spinning")
        terminal.press(CTRL_C)
        assert terminal.end() == 0
        assert terminal.said.splitlines() == ["spinning", "KeyboardInterrupt"]


def test_ctrl_c_in_a_call_that_may_not_be_cancelled(program: Any) -> None:
    """Another task's call: its job does not notice and comes to its end; then the program ends as every Trio program."""
    with on_terminal(
        program(
            """
async def main():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio_offload.run_sync, jobs.sleep_and_say, 1.0)
        await trio.sleep_forever()

trio.run(main)
"""
        )
    ) as terminal:
        terminal.wait_for("sleeping")
        terminal.press(CTRL_C)
        assert terminal.end() != 0
        assert "slept" in terminal.said
        # In a nursery, so it is in a group (and, before Python 3.11, shown by a package that does so).
        assert terminal.said.count("KeyboardInterrupt") >= 1
        assert "Broken" not in terminal.said
        assert "signal_jobs" not in terminal.said


def test_ctrl_c_in_a_call_of_the_main_task(program: Any) -> None:
    """Trio interrupts the main task wherever it waits, so a simple script ends at once; the worker is killed."""
    with on_terminal(program("call(jobs.spin)\nprint('not reached')")) as terminal:
        terminal.wait_for("spinning")
        terminal.press(CTRL_C)
        assert terminal.end() == -signal.SIGINT
        one_interrupt(terminal.said)
        assert "not reached" not in terminal.said


def test_ctrl_c_beside_idle_workers(program: Any) -> None:
    """They leave in order, exit handlers and all."""
    with on_terminal(
        program(
            """
async def main():
    await trio_offload.run_sync(jobs.at_exit_say, 'the worker left in order')
    print("ready", flush=True)
    await trio.sleep_forever()

trio.run(main)
"""
        )
    ) as terminal:
        terminal.wait_for("ready")
        terminal.press(CTRL_C)
        assert terminal.end() == -signal.SIGINT
        one_interrupt(terminal.said)
        assert "the worker left in order" in terminal.said


def test_ctrl_c_while_workers_leave(program: Any) -> None:
    """The interpreter waits for them at its end; who cannot wait presses again, and nothing stays behind for it."""
    with on_terminal(program("call(jobs.at_exit_sleep)\natexit.register(jobs.say, 'ready')\n")) as terminal:
        terminal.wait_for("ready")
        time.sleep(0.2)
        terminal.press(CTRL_C)
        terminal.end()
        assert "KeyboardInterrupt" in terminal.said


def test_ctrl_c_many_times(program: Any) -> None:
    """A job that may not be cancelled runs on; a program that handles the interrupt itself has its result."""
    with on_terminal(
        program(
            """
signal.signal(signal.SIGINT, lambda *args: jobs.say("handled"))
print("slept", call(jobs.sleep, 1))
print("read", repr(call(jobs.read_line)))
"""
        )
    ) as terminal:
        terminal.wait_for("sleeping")
        for number in range(5):
            terminal.press(CTRL_C)
            terminal.wait_for("handled", number + 1)
        terminal.wait_for("reading")
        terminal.press(CTRL_C)
        terminal.wait_for("handled", 6)
        terminal.press(b"a line\n")
        assert terminal.end() == 0
        assert "slept True\n" in terminal.said
        assert r"read 'a line\n'" in terminal.said


@pytest.mark.parametrize("how", ["subprocess", "shell", "system", "posix_spawn", "fork and exec"])
def test_ctrl_c_reaches_what_a_job_starts(program: Any, how: str) -> None:
    """Its disposition is the default one there, as if the user had started it from the shell."""
    with on_terminal(
        program(f"signal.signal(signal.SIGINT, lambda *args: None)\nprint('status', call(jobs.run_program, {how!r}))")
    ) as terminal:
        terminal.wait_for("running")
        # The program may not have been started yet; the job waits for it in any case, so press until it ends.
        while terminal.process.poll() is None and "status" not in terminal.said:
            terminal.press(CTRL_C)
            if select.select([terminal.ours], [], [], 0.1)[0] and not terminal._read():
                break
        assert terminal.end() == 0
        # A shell says it in its own way: 130 for a command that was interrupted, if it was not itself.
        assert terminal.said.split("status ")[1].strip() in ("-2", "130")


def test_ctrl_c_reaches_a_python_that_a_job_starts(program: Any) -> None:
    with on_terminal(program("signal.signal(signal.SIGINT, lambda *args: None)\nprint(call(jobs.run_python))")) as terminal:
        terminal.wait_for("running")
        terminal.press(CTRL_C)
        assert terminal.end() == 0
        assert r"b'interrupted\n'" in terminal.said


def test_ctrl_c_and_a_pool_in_a_job(program: Any) -> None:
    with on_terminal(program("signal.signal(signal.SIGINT, lambda *args: None)\nprint(call(jobs.with_pool))")) as terminal:
        terminal.wait_for("running")
        for _ in range(3):
            terminal.press(CTRL_C)
        assert terminal.end() == 0
        assert terminal.said.splitlines() == ["running", "[0.5, 0.5, 0.5, 0.5]"]


def test_ctrl_c_while_a_worker_starts(program: Any, tmp_path: Path) -> None:
    """From its very first moment: an interrupt between its start and its handler does not end it."""
    wrapper = tmp_path / "worker"
    wrapper.write_text(f'#!/bin/sh\nkill -INT $$\nexec "{_locate.worker_executable()}" "$@"\n')
    wrapper.chmod(0o755)
    with on_terminal(program("print(call(abs, -5))"), plain_environment(TRIO_OFFLOAD_WORKER=str(wrapper))) as terminal:
        assert terminal.end() == 0
        assert terminal.said == "5\n"


@pytest.mark.parametrize("seed", range(12))
def test_an_interrupt_at_any_moment(program: Any, seed: int) -> None:
    """While workers are started, used, killed and seen off. One KeyboardInterrupt comes out, and nothing is left."""
    pause = random.Random(seed).uniform(0, 0.6)
    with on_terminal(
        program(
            """
# The line of `context.run_sync` below is the user's. Ctrl+C between its call and its await leaves a coroutine without an
# await, of which Python warns.
import warnings
warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)

async def use():
    while True:
        async with trio_offload.open_worker_context() as context:
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(context.run_sync, abs, -5)
                nursery.start_soon(trio_offload.run_sync, abs, -5)
            with trio.move_on_after(0.02):
                await context.run_sync(time.sleep, 1000, kill_on_cancel=True)

async def main():
    print("ready", flush=True)
    await use()

try:
    trio.run(main)
except BaseException as error:
    found = []
    def look(error):
        for inner in getattr(error, "exceptions", ()):
            look(inner)
        if not hasattr(error, "exceptions"):
            found.append(type(error).__name__)
    look(error)
    print(*found)
"""
        )
    ) as terminal:
        terminal.wait_for("ready")
        time.sleep(pause)
        terminal.press(CTRL_C)
        assert terminal.end() == 0
        assert terminal.said.splitlines() == ["ready", "KeyboardInterrupt"]


async def test_a_job_that_takes_interrupts_back() -> None:
    """It has asked for it: the KeyboardInterrupt is its own, and does not interrupt its caller."""
    async with open_worker_context() as context:
        with pytest.raises(JobExitError) as told:
            await context.run_sync(jobs.take_interrupts_back)
        assert type(told.value.__cause__) is KeyboardInterrupt
        assert await context.run_sync(abs, -5) == 5


# --- other signals to the whole group ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "number"), [(CTRL_BACKSLASH, signal.SIGQUIT), (None, signal.SIGHUP), (signal.SIGTERM, signal.SIGTERM)], ids=str
)
def test_all_are_told_to_end(program: Any, key: Any, number: signal.Signals) -> None:
    """Ctrl+\\, a terminal that is closed, a service manager that stops the whole group: program and workers end of it."""
    with on_terminal(program("call(abs, -5)\ncall(jobs.spin)")) as terminal:
        terminal.wait_for("spinning")
        if key is None:
            os.close(terminal.ours)
            terminal.ours = os.open(os.devnull, os.O_RDONLY)
            assert terminal.process.wait(TIMEOUT) == -number
        elif isinstance(key, bytes):
            terminal.press(key)
            assert terminal.end() == -number
        else:
            os.killpg(terminal.process.pid, key)
            assert terminal.end() == -number


def test_a_program_that_ends_in_order_when_its_group_is_told_to(program: Any) -> None:
    """systemd tells all of a service's processes. Idle workers end of it, and that is no error; a running call's caller is told."""
    with on_terminal(
        program(
            """
async def main():
    async with trio.open_nursery() as nursery:
        async def receive():
            with trio.open_signal_receiver(signal.SIGTERM) as signals:
                print("ready", flush=True)
                async for _ in signals:
                    print("told", flush=True)
                    told.set()
                    return
        told = trio.Event()
        nursery.start_soon(receive)
        async with trio_offload.open_worker_context() as context:
            async with trio.open_nursery() as inner:
                inner.start_soon(context.run_sync, time.sleep, 0.2)
                inner.start_soon(context.run_sync, time.sleep, 0.2)
            assert context.statistics().idle_workers == 2
            try:
                await trio_offload.run_sync(jobs.spin)
            except trio_offload.BrokenWorkerError as error:
                print(error.signal.name, flush=True)
            await told.wait()
            # Once they have ended, which is not at the same moment, new work goes to new workers.
            while context.statistics().idle_workers:
                await trio.sleep(0.01)
            print(await context.run_sync(abs, -5), await trio_offload.run_sync(abs, -6))
    print("done", flush=True)

trio.run(main)
"""
        )
    ) as terminal:
        terminal.wait_for("ready")
        terminal.wait_for("spinning")
        os.killpg(terminal.process.pid, signal.SIGTERM)
        assert terminal.end() == 0, terminal.said
        lines = [line for line in terminal.said.splitlines() if not line.startswith("idle worker")]
        assert sorted(lines[2:4]) == ["SIGTERM", "told"]
        assert lines[4:] == ["5 6", "done"]


def test_stopped_and_continued(program: Any) -> None:
    """Ctrl+Z and ``fg``: all stop, and go on where they were."""
    with on_terminal(program("print('slept', call(jobs.sleep, 1))\nprint(call(abs, -5))")) as terminal:
        terminal.wait_for("sleeping")
        # The group of a session's leader is orphaned, and such a one ignores the key; a stop that is sent does as well.
        os.killpg(terminal.process.pid, signal.SIGSTOP)
        time.sleep(0.3)
        os.killpg(terminal.process.pid, signal.SIGCONT)
        assert terminal.end() == 0
        assert terminal.said.splitlines() == ["sleeping", "slept True", "5"]


async def test_a_signal_to_a_worker_is_not_its_parents() -> None:
    """They share neither handlers nor the descriptor through which Python wakes up."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with open_worker_context() as context:
            pid = await context.run_sync(os.getpid)
            async with trio.open_nursery() as nursery:

                async def call() -> None:
                    with pytest.raises(BrokenWorkerError) as caught:
                        await context.run_sync(time.sleep, 1000)
                    assert caught.value.signal is signal.SIGTERM

                nursery.start_soon(call)
                await trio.sleep(0.1)
                os.kill(pid, signal.SIGTERM)
        with trio.move_on_after(0.2) as scope:
            async for number in signals:
                pytest.fail(f"signal {number} came here")
        assert scope.cancelled_caught


# --- what jobs do with signals -----------------------------------------------------------------------------------------


async def test_jobs_use_signals_as_a_main_thread_may() -> None:
    """Timers raise in the job; a handler that a job installed runs during later jobs, and while the worker is idle."""
    async with open_worker_context() as context:
        assert await context.run_sync(jobs.alarm) == "alarmed"
        pid = await context.run_sync(jobs.install_handler)
        os.kill(pid, signal.SIGUSR1)
        await trio.sleep(0.1)
        assert await context.run_sync(jobs.get_handled) == [signal.SIGUSR1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(context.run_sync, time.sleep, 0.5)
            await trio.sleep(0.1)
            os.kill(pid, signal.SIGUSR1)
        assert await context.run_sync(jobs.get_handled) == [signal.SIGUSR1] * 2
        assert await context.run_sync(os.getpid) == pid


async def test_handlers_are_saved_and_put_back_as_in_any_process(of_any_kind: WorkerType) -> None:
    async with open_worker_context(worker_type=of_any_kind) as context:
        command = [sys.executable, "-c", "import signal_jobs; print(signal_jobs.dispositions())"]
        plain = await trio.run_process(command, cwd=os.path.dirname(jobs.__file__), capture_stdout=True)
        if of_any_kind is not WorkerType.FORK:
            assert await context.run_sync(jobs.dispositions) == eval(plain.stdout)
        # All below 32, but for the two that nobody handles.
        assert await context.run_sync(jobs.save_and_put_back) == 29


async def test_what_a_job_leaves_of_its_own_is_put_back(of_any_kind: WorkerType) -> None:
    async with open_worker_context(worker_type=of_any_kind, retire=jobs.leave_everything) as context:
        for _ in range(2):
            await context.run_sync(jobs.leave_everything)
            assert await context.run_sync(jobs.what_is_left) == ([], [False] * 3, -1)


async def test_what_init_has_arranged_stays(of_any_kind: WorkerType) -> None:
    async with open_worker_context(worker_type=of_any_kind, init=jobs.block_and_set_in_init) as context:
        for _ in range(2):
            assert await context.run_sync(jobs.what_is_left) == ([signal.SIGUSR2], [False, False, True], -1)


async def test_a_handler_runs_soon_whenever_its_signal_comes(of_any_kind: WorkerType, tmp_path: Path) -> None:
    """Right after a row of calls a worker looks for the next one, and sleeps a moment later."""
    path = tmp_path / "handled"
    async with open_worker_context(worker_type=of_any_kind) as context:
        pid = await context.run_sync(jobs.handle_into, str(path))
        for count in range(1, 16):
            for _ in range(12):
                await context.run_sync(bool)
            os.kill(pid, signal.SIGUSR1)
            with trio.fail_after(TIMEOUT):
                while not path.exists() or path.stat().st_size < count:  # noqa: ASYNC110
                    await trio.sleep(0.005)


def of_glibc_aside(lines: list[str]) -> list[int]:
    # 32 and 33 are glibc's own; its posix_spawn ignores them in what it starts.
    return [int(line.split()[1], 16) & ~(0b11 << 31) for line in lines]


@pytest.mark.parametrize("job", [jobs.masks, jobs.masks_unrestored])
async def test_what_a_job_starts_is_started_as_from_here(job: Any) -> None:
    """Blocked and ignored signals of a job's programs are those that this process's own have."""
    async with open_worker_context() as context:
        assert of_glibc_aside(await context.run_sync(job)) == of_glibc_aside(job())


def test_signals_that_the_program_has_ignored_or_blocked(program: Any) -> None:
    """Ignored ones stay ignored in all that is started (nohup); a thread's blocked ones are nobody else's."""
    command = program(
        """
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2, signal.SIGTERM])

async def main():
    async with trio_offload.open_worker_context() as context:
        blocked, ignored = (int(line.split()[1], 16) for line in await context.run_sync(jobs.masks))
        print(blocked, bool(ignored & 1 << (signal.SIGHUP - 1)))

trio.run(main)
"""
    )
    with started(command, stdout=subprocess.PIPE) as process:
        assert process.communicate(timeout=TIMEOUT)[0] == b"0 True\n"
