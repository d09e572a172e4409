"""Contract: one process, as ``WorkerProcess`` promises to start, await, end and reap it.

Everything here holds with pidfds and, on kernels that have none, without them. The processes are not workers but small
programs, so that they do what a worker hardly ever does.
"""

from __future__ import annotations

import _signal
import os
import pickle
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jobs
import pytest
import trio
from lifeline import PATIENCE, Gate, Lifeline, process_state, until_stopped, wait_for_end
from running import in_fork
from trio.testing import wait_all_tasks_blocked

from trio_offload import BrokenWorkerError
from trio_offload._process import start as _process
from trio_offload._process.process import WorkerProcess
from trio_offload_worker._system import family, figures, linux


@pytest.fixture(params=["with pidfds", "without pidfds"])
def pidfds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the kernel has pidfds, or had better not."""
    if request.param == "without pidfds":
        monkeypatch.delattr(os, "pidfd_open")
        return False
    return True


class Begin:
    """Starts programs as if they were workers; descriptor 3 is their socket."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self.sockets: dict[WorkerProcess, socket.socket] = {}

    def __call__(self, script: str) -> WorkerProcess:
        """Start a shell script."""
        program = self._write("#!/bin/sh\n" + script + "\n")
        process, ours, record = _process.spawn(str(program), os.environb)
        record.close()
        self.sockets[process] = ours
        return process

    def python(self, code: str) -> WorkerProcess:
        """Start a script in Python, with ``jobs`` imported."""
        script = self._write(f"import sys\nsys.path.insert(0, {os.path.dirname(jobs.__file__)!r})\nimport jobs\n{code}\n")
        return self(f"exec '{sys.executable}' '{script}'")

    def worker(self, code: str, *, marked: bool = True) -> WorkerProcess:
        """The same with the mark that a worker has; else as the subreaper that one is which cannot have a mark."""
        return self.python(
            "from trio_offload_worker._loop import sentinel\n"
            + ("" if marked else "sentinel._mark_self = lambda mark: False\n")
            + f"sentinel.begin_life()\n{code}"
        )

    def close(self) -> None:
        for ours in self.sockets.values():
            ours.close()

    def _write(self, text: str) -> Path:
        self._count += 1
        path = self._folder / f"program{self._count}"
        path.write_text(text)
        path.chmod(0o700)
        return path


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    with closing(Begin(tmp_path)) as begin:
        yield begin


async def ended(process: WorkerProcess) -> None:
    with trio.fail_after(PATIENCE):
        await process.wait()


# --- how it ended --------------------------------------------------------------------------------


async def test_every_exit_status_is_told_exactly(pidfds: bool, begin: Begin) -> None:
    for status in range(256) if pidfds else (0, 1, 2, 127, 128, 255):
        process = begin(f"exit {status}")
        await ended(process)
        assert (process.exitcode, process.signal) == (status, None)


ENDING_SIGNALS = [
    number
    for number in sorted(signal.valid_signals())
    if number
    not in (
        *(signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH),
        *(signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
    )
]


async def test_every_ending_signal_is_told_by_name(pidfds: bool, begin: Begin) -> None:
    for number in ENDING_SIGNALS if pidfds else (signal.SIGTERM, signal.SIGKILL, 40):
        process = begin("ulimit -c 0; exec cat <&3")
        # A handler of the test program's parent does not survive exec; what is ignored or blocked does.
        if number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            number = signal.SIGTERM
        os.kill(process.pid, number)
        await ended(process)
        assert process.exitcode == -number
        assert process.signal == (number if number in list(signal.Signals) else None)
        assert process.signal is None or process.signal.name.startswith("SIG")


async def test_while_it_runs_there_is_no_exit_status(pidfds: bool, begin: Begin) -> None:
    process = begin("exec cat <&3")
    assert process.is_alive()
    assert not process.ended
    assert process.exitcode is process.signal is None
    assert not process.poll()
    assert "running" in repr(process)
    process.kill()
    await ended(process)
    assert not process.is_alive()
    assert process.ended
    assert "-9" in repr(process)


async def test_a_status_that_somebody_else_took_is_not_known(pidfds: bool, begin: Begin) -> None:
    process = begin("exit 3")
    assert os.waitpid(-1, 0)[0] == process.pid  # noqa: ASYNC222
    await ended(process)
    assert process.ended
    assert not process.is_alive()
    assert process.exitcode is process.signal is None
    process.kill()


async def test_with_sigchld_ignored_nothing_hangs(pidfds: bool, begin: Begin) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        process = begin("exec cat <&3")
        assert process.is_alive()
        assert process.exitcode is None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ended, process)
            await wait_all_tasks_blocked()
            process.kill()
        assert process.ended
        assert process.exitcode is None
        another = begin("exit 3")
        assert another.wait_sync(time.monotonic() + PATIENCE)
        assert another.exitcode is None
    finally:
        signal.signal(signal.SIGCHLD, before)


# --- waiting -------------------------------------------------------------------------------------


async def test_the_end_wakes_who_waits(pidfds: bool, begin: Begin) -> None:
    process = begin("exec cat <&3")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ended, process)
        await wait_all_tasks_blocked()
        assert process.is_alive()
        process.kill()
    assert process.exitcode == -signal.SIGKILL


async def test_a_wait_can_be_cancelled_and_taken_up_again(pidfds: bool, begin: Begin) -> None:
    process = begin("exec cat <&3")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.wait)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert process.is_alive()
    process.kill()
    await ended(process)
    assert process.exitcode == -signal.SIGKILL


async def test_a_poll_during_a_wait_reaps_and_the_wait_returns(pidfds: bool, begin: Begin) -> None:
    process = begin("exec cat <&3")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ended, process)
        await wait_all_tasks_blocked()
        process.kill()
        wait_for_end(process.pid)
        # The event loop has not run since: the task still waits.
        assert process.poll()
    assert process.exitcode == -signal.SIGKILL


async def test_a_poll_in_another_thread_does_not_make_a_wait_deaf(pidfds: bool, begin: Begin) -> None:
    for _ in range(20):
        process = begin("exec cat <&3")
        polled = threading.Event()

        def poll(process: WorkerProcess = process, polled: threading.Event = polled) -> None:
            while not process.poll():
                pass
            polled.set()

        thread = threading.Thread(target=poll)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ended, process)
            await wait_all_tasks_blocked()
            thread.start()
            process.kill()
            # Not a checkpoint: the other thread reaps before this one can look.
            polled.wait(PATIENCE)
        thread.join()
        assert process.exitcode == -signal.SIGKILL


async def test_a_blocking_wait_has_a_deadline(pidfds: bool, begin: Begin) -> None:
    process = begin("exec cat <&3")
    assert not process.wait_sync(time.monotonic() - 1)
    assert not process.wait_sync(time.monotonic() + 0.05)
    threading.Timer(0.05, process.kill).start()
    assert process.wait_sync(time.monotonic() + PATIENCE)
    assert process.wait_sync(-1)


# --- signals -------------------------------------------------------------------------------------


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every signal that is sent, by its means; with 0, which is none (kill(2)), only to children of this process.

    Who looks for marks asks with 0 what it may know of processes of other users, whatever there are on the machine.
    """
    sent: list[tuple[str, int]] = []
    by_pidfd, by_number = getattr(_signal, "pidfd_send_signal", None), os.kill

    def send_by_pidfd(pidfd: int, number: int, *rest: Any) -> None:
        sent.append(("pidfd", number))
        by_pidfd(pidfd, number, *rest)  # type: ignore[misc]

    def send_by_number(pid: int, number: int) -> None:
        fields = linux.stat_fields(pid)
        if number or (fields is not None and int(fields[1]) == os.getpid()):
            sent.append(("number", number))
        by_number(pid, number)

    monkeypatch.setattr(_signal, "pidfd_send_signal", send_by_pidfd, raising=False)
    monkeypatch.setattr(os, "kill", send_by_number)
    return sent


async def test_no_signal_is_sent_to_what_was_reaped(pidfds: bool, begin: Begin, signals: list[Any]) -> None:
    process = begin("exit 0")
    await ended(process)
    process.kill()
    process.kill()
    assert not signals


async def test_ended_process_is_reaped_not_signalled(pidfds: bool, begin: Begin, signals: list[Any]) -> None:
    process = begin("exit 7")
    wait_for_end(process.pid)
    process.kill()
    assert process.ended
    assert process.exitcode == 7
    assert not signals


async def test_killing_twice_is_killing(pidfds: bool, begin: Begin, signals: list[Any]) -> None:
    process = begin("exec cat <&3")
    process.kill()
    process.kill()
    await ended(process)
    assert process.exitcode == -signal.SIGKILL
    assert {means for means, _ in signals} == {"pidfd" if pidfds else "number"}
    # The first asks whether it may be signalled at all. It has hardly begun, and the kernel would not resume it if this program were
    # killed between a stop and its end.
    assert {number for _, number in signals} == {0, signal.SIGKILL}


async def test_a_stopped_process_can_be_killed(pidfds: bool, begin: Begin) -> None:
    process = begin("exec cat <&3")
    os.kill(process.pid, signal.SIGSTOP)
    await until_stopped(process.pid)
    process.kill()
    await ended(process)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("refused", [2, 1000])
async def test_a_process_that_is_stopped_after_it_was_hung_up_on(
    pidfds: bool, begin: Begin, refused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This program may not signal it, but for SIGCONT, which came too early. It is sent again; and signals, once they are permitted."""
    # Where it may be killed later, it must not end by itself between the two signals.
    process = begin("read line <&3" if refused == 1000 else "exec sleep 1000")
    process.socket = begin.sockets[process]
    send, sent = process._send_signal, []

    def send_signal(number: int) -> None:
        sent.append(number)
        if len(sent) <= refused and number != signal.SIGCONT:
            raise PermissionError
        send(number)
        if len(sent) == 2:
            os.kill(process.pid, signal.SIGSTOP)

    monkeypatch.setattr(process, "_send_signal", send_signal)
    os.kill(process.pid, signal.SIGSTOP)
    await until_stopped(process.pid)
    process.kill()
    await ended(process)
    assert sent[:2] == [0, signal.SIGCONT]
    if refused == 2:
        assert process.signal == signal.SIGKILL
    else:
        assert process.exitcode == 1


# --- what it is known by -------------------------------------------------------------------------


async def test_a_number_that_was_closed_under_us_and_is_another_files(begin: Begin, signals: list[Any]) -> None:
    process = begin("exec cat <&3")
    number = process._pidfd
    if number is None:
        pytest.skip("there are no pidfds here")
    os.dup2(0, number)
    assert process.is_alive()
    process.kill()
    await ended(process)
    assert process.exitcode == -signal.SIGKILL
    # Neither signalled through nor closed.
    assert {means for means, _ in signals} == {"number"}
    os.close(number)


@pytest.mark.parametrize("is_waited_for", [True, False])
async def test_descriptor_number_names_another_process(begin: Begin, is_waited_for: bool) -> None:
    process, other = begin("exec cat <&3"), begin("exec cat <&3")
    if process._pidfd is None or other._pidfd is None:
        pytest.skip("there are no pidfds here")
    number = process._pidfd
    os.dup2(other._pidfd, number)
    if is_waited_for:
        # The other one has ended, and its status is not ours.
        os.kill(other.pid, signal.SIGTERM)
        wait_for_end(other.pid)
        assert process.is_alive()
        assert other.exitcode == -signal.SIGTERM
    else:
        process.kill()
        await ended(process)
        assert process.exitcode == -signal.SIGKILL
        assert other.is_alive()
    for each in (process, other):
        each.kill()
        await ended(each)
    os.close(number)


def reap(pid: int) -> None:
    os.waitpid(pid, 0)


async def test_a_number_that_has_become_another_childs_is_left_alone(
    begin: Begin, signals: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without pidfds a foreign waitpid may have freed it, and the program may have started something since."""
    monkeypatch.delattr(os, "pidfd_open")
    process, other = begin("exit 3"), begin("exec cat <&3")
    reap(process.pid)
    process.pid = other.pid
    # They may have been started within one tick of the kernel's clock.
    process._start_time = b"1"
    process.kill()
    assert process.ended
    assert process.exitcode is None
    assert not signals
    other.kill()
    await ended(other)
    assert other.exitcode == -signal.SIGKILL


def test_fork_does_not_close_a_closed_pidfd(begin: Begin) -> None:
    process = begin("exec cat <&3")
    number = process._pidfd
    if number is None:
        pytest.skip("there are no pidfds here")
    os.dup2(0, number)

    def look() -> None:
        os.fstat(number)

    assert in_fork(look) == 0
    process.kill()
    assert process.wait_sync(time.monotonic() + PATIENCE)
    os.close(number)


# --- its family ----------------------------------------------------------------------------------


@pytest.fixture(params=["listed by the kernel", "found by a scan"])
def way_to_find_children(request: pytest.FixtureRequest, pidfds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two ways to find children; the second is for kernels without CONFIG_PROC_CHILDREN."""
    if request.param == "found by a scan":
        monkeypatch.setattr(family, "lists_children", lambda: False)


@pytest.fixture(params=[True, False], ids=["marked", "subreaper"])
def marked(request: pytest.FixtureRequest) -> bool:
    """How orphans are found."""
    return bool(request.param)


async def test_children_of_every_kind_end_with_it(
    way_to_find_children: None, marked: bool, begin: Begin, line: Lifeline
) -> None:
    process = begin.worker(f'jobs.start_family("{line.path}")', marked=marked)
    await line.pid()
    daemon = await line.pid()
    assert process_state(daemon) is not None
    process.kill()
    await ended(process)
    await line.ended()


async def test_one_that_forks_faster_than_one_looks_is_caught(marked: bool, begin: Begin, line: Lifeline) -> None:
    # It ends by itself after so many generations, so that a failure does not leave it for ever.
    process = begin.worker(f'jobs.run_from_killers("{line.path}", 5000)', marked=marked)
    await line.pid()
    await line.pid()
    process.kill()
    await ended(process)
    await line.ended()


async def test_start_that_ignores_stop_leaves_nothing(
    way_to_find_children: None, begin: Begin, line: Lifeline, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may not get round to stop in time, or somebody resumes it: then it starts a process when all others are dead."""
    process = begin.worker(f'jobs.start_one_late("{line.path}", "{gate.path}")')
    await line.pid()
    end_below = family._end_below

    def end_below_and_resume(*arguments: Any) -> bool:
        has_family = end_below(*arguments)
        assert not has_family
        os.kill(process.pid, signal.SIGCONT)
        gate.open()
        while process_state(process.pid) != "T" or not family.children([process.pid]):
            time.sleep(0.001)
        return has_family

    monkeypatch.setattr(family, "_end_below", end_below_and_resume)
    # It stops itself once it has forked.
    monkeypatch.setattr(family, "_is_stopped", lambda pid: False)
    process.kill()
    await ended(process)
    await line.ended()


async def test_nobody_looks_below_one_that_has_not_stopped(
    way_to_find_children: None, begin: Begin, line: Lifeline, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = begin.worker(f'jobs.start_one_late("{line.path}", "{gate.path}")')
    await line.pid()
    look = family.new_children
    states: list[str | None] = []

    def look_at_state_too(parents: list[int], known: Collection[int]) -> list[int]:
        states.append(process_state(process.pid))
        return look(parents, known)

    def stop_later(number: int) -> None:
        if number == signal.SIGSTOP:
            gate.open()
        else:
            os.kill(process.pid, number)

    monkeypatch.setattr(family, "_STOP_TIMEOUT", PATIENCE)
    monkeypatch.setattr(family, "new_children", look_at_state_too)
    family.end_family(process.pid, stop_later, process._since)
    await ended(process)
    await line.ended()
    # On a busy machine also in a sleep that only SIGKILL ends, out of which it comes stopped.
    assert states
    assert set(states) <= {"T", "D"}


async def test_each_descendant_is_found_and_counted_once(begin: Begin, line: Lifeline) -> None:
    """A child is found below its parent, and by its mark."""
    process = begin.worker(f'jobs.run_shell("{line.path}", "sleep infinity; :")')
    await line.pid()
    with trio.fail_after(PATIENCE):
        while len(family.descendants(process.pid, 0)) < 2:  # noqa: ASYNC110
            await trio.sleep(0.001)
    shell, sleep = family.descendants(process.pid, 0)
    assert shell != sleep
    # Their shares, which are what is resident and not shared with others; so the sum of the resident parts is more.
    held = figures.family_above(process.pid, 0, 0, ())
    assert held is not None
    assert held < sum(resident_memory(pid) for pid in (process.pid, shell, sleep))
    process.kill()
    await ended(process)
    await line.ended()


def resident_memory(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_who_reacts_to_the_end_of_a_child_ends_before_it(begin: Begin, line: Lifeline, tmp_path: Path) -> None:
    """A shell goes on when its program has ended; killed later than that it would have done so."""
    trace = tmp_path / "gone on"
    process = begin.worker(f'jobs.run_shell("{line.path}", "sleep infinity; echo > {trace}")')
    await line.pid()
    with trio.fail_after(PATIENCE):
        while len(family.descendants(process.pid, 0)) < 2:  # noqa: ASYNC110
            await trio.sleep(0.001)
    process.kill()
    await ended(process)
    await line.ended()
    assert not trace.exists()


async def test_one_that_waits_for_a_vfork_is_not_waited_for(
    begin: Begin, line: Lifeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = begin.worker(f'jobs.start_with_vfork("{line.path}")')
    assert process_state(await line.pid()) is not None
    with trio.fail_after(PATIENCE):
        while process_state(process.pid) != "D":  # noqa: ASYNC110 - nothing else tells that it has come that far
            await trio.sleep(0.001)
    monkeypatch.setattr(family, "_STOP_TIMEOUT", PATIENCE)
    monkeypatch.setattr(family, "_MAX_ROUNDS", 10**9)
    begun = time.monotonic()
    process.kill()
    assert time.monotonic() - begun < PATIENCE / 2
    await ended(process)
    await line.ended()


async def test_more_descendants_than_descriptors(begin: Begin, line: Lifeline) -> None:
    process = begin.worker(f'jobs.start_many("{line.path}", 60)')
    await line.pid()
    assert await line.line() == "all"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, hard))
    try:
        process.kill()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await ended(process)
    await line.ended()


def test_both_ways_find_the_same_children(begin: Begin, line: Lifeline) -> None:
    async def main() -> None:
        process = begin.worker(f'jobs.start_family("{line.path}")')
        await line.pid()
        await line.pid()
        with trio.fail_after(PATIENCE):
            # The daemon's parent may be there still, and gone in the middle of a comparison.
            for parent in (os.getpid(), process.pid):
                while sorted(family.children([parent])) != sorted(family.children_by_scan([parent])):  # noqa: ASYNC110
                    await trio.sleep(0.01)
        assert len(family.children([process.pid])) >= 3
        assert process.pid in family.children([os.getpid()])
        process.kill()
        await ended(process)
        await line.ended()
        assert family.children([process.pid]) == family.children_by_scan([process.pid]) == []

    trio.run(main)


# --- the start -----------------------------------------------------------------------------------


async def test_the_new_process_has_its_socket_and_only_sigint_blocked(begin: Begin, tmp_path: Path) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        process = begin.python(f"print(jobs.own_mask(), jobs.what_descriptor_is(3), file=open('{tmp_path}/seen', 'w'))")
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    await ended(process)
    mask, descriptor = (tmp_path / "seen").read_text().split()
    assert descriptor.startswith("socket:")
    # Ctrl+C has to wait until the worker swallows it.
    assert int(mask, 16) == 1 << (signal.SIGINT - 1)


def test_the_worker_gets_its_descriptor_whichever_are_free(tmp_path: Path) -> None:
    """In a process without a descriptor 3 the worker's end of the pair is 3 itself, or ours is."""
    import subprocess

    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexec cat <&3 >&3\n")
    program.chmod(0o700)
    code = f"""
import os, sys
import trio
from trio_offload._process import start as _process
for spare in range(6):
    # As many numbers from 3 on are free.
    os.closerange(3, 10)
    for number in range(3 + spare, 10):
        os.dup2(0, number)
    process, ours, record = _process.spawn({str(program)!r}, os.environb)
    record.close()
    ours.setblocking(True)
    ours.sendall(b"there")
    assert ours.recv(5) == b"there"
    assert ours.fileno() != -1
    ours.close()
    process.wait_sync(float("inf"))
    assert process.exitcode == 0, process.exitcode
print("well")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert result.stdout == "well\n", result.stderr


async def test_a_program_that_cannot_be_started_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        _process.spawn(str(tmp_path / "missing"), os.environb)
    (tmp_path / "no program").write_text("")
    with pytest.raises(PermissionError):
        _process.spawn(str(tmp_path / "no program"), os.environb)


async def test_the_end_of_the_process_is_the_end_of_the_stream(begin: Begin) -> None:
    """Nobody else holds the worker's end, whatever was started meanwhile."""
    program = "exec cat <&3"
    first = begin(program)
    others = [begin(program) for _ in range(3)]
    first.kill()
    await ended(first)
    assert begin.sockets[first].recv(1) == b""
    for other in others:
        other.kill()
        await ended(other)


# --- handles travel ------------------------------------------------------------------------------


async def test_a_handle_and_its_error_can_be_pickled(pidfds: bool, begin: Begin) -> None:
    process = begin("exit 42")
    await ended(process)
    error = BrokenWorkerError("it broke", process)
    for copy in (pickle.loads(pickle.dumps(process)), pickle.loads(pickle.dumps(error)).process):
        assert (copy.pid, copy.exitcode, copy.signal) == (process.pid, 42, None)
        assert copy.ended
        assert not copy.is_alive()
        copy.kill()
    copied = pickle.loads(pickle.dumps(error))
    assert type(copied) is BrokenWorkerError
    assert str(copied) == "it broke"
    assert (copied.pid, copied.exitcode, copied.signal) == (process.pid, 42, None)


async def test_the_record_of_a_running_process_cannot_signal_it(pidfds: bool, begin: Begin) -> None:
    process = begin("exec cat <&3")
    copy = pickle.loads(pickle.dumps(process))
    copy.kill()
    assert process.is_alive()
    process.kill()
    await ended(process)
    assert process.exitcode == -signal.SIGKILL
