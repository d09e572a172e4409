"""End to end: workers that die, and what they started, at every moment and by every hand but the parent's own end.

``test_orphans.py`` has the programs that end, or are killed, themselves.
"""

from __future__ import annotations

import os
import resource
import select
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import jobs
import pytest
import trio
from kinds import environment_of
from lifeline import PATIENCE, Gate, Lifeline, count_descriptors, process_state, until_stopped
from running import run_script
from trio.testing import wait_all_tasks_blocked

from trio_offload import (
    BrokenWorkerError,
    WorkerContextStatistics,
    WorkerStartError,
    open_worker_context,
    run_sync,
)
from trio_offload._transport.channel import Channel
from trio_offload_worker._system import family

pytestmark = pytest.mark.usefixtures("worker_type")

NOTHING = WorkerContextStatistics(idle_workers=0, running_workers=0)


async def expect_death(call: Any, pid: int | None, number: int = signal.SIGKILL) -> BrokenWorkerError:
    with trio.fail_after(PATIENCE), pytest.raises(BrokenWorkerError) as told:
        await call()
    assert told.value.exitcode == -number
    assert told.value.signal == number
    assert told.value.signal is not None
    assert told.value.signal.name in str(told.value)
    assert pid is None or told.value.pid == pid
    return told.value


# --- when it dies --------------------------------------------------------------------------------


async def test_killed_while_it_is_idle() -> None:
    async with open_worker_context() as context:
        pid = await context.run_sync(os.getpid)
        os.kill(pid, signal.SIGKILL)
        # It may have been told the call before it died: then it is lost, and said to be.
        try:
            another = await context.run_sync(os.getpid)
        except BrokenWorkerError as error:
            assert error.pid == pid  # noqa: PT017
            another = await context.run_sync(os.getpid)
        assert another != pid


async def test_killed_right_after_it_was_given_work(line: Lifeline) -> None:
    async with open_worker_context() as context:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_death, lambda: context.run_sync(jobs.hold_for_ever, line.path), None)
            pid = await line.pid()
            os.kill(pid, signal.SIGKILL)
        assert context.statistics() == NOTHING
        assert await context.run_sync(jobs.echo, 5) == 5


async def test_killed_before_it_could_read_the_call() -> None:
    async with open_worker_context() as context:
        pid = await context.run_sync(os.getpid)
        os.kill(pid, signal.SIGSTOP)
        await until_stopped(pid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_death, lambda: context.run_sync(jobs.echo, 5), pid)
            await wait_all_tasks_blocked()
            os.kill(pid, signal.SIGKILL)
        assert await context.run_sync(jobs.echo, 5) == 5


async def test_killed_while_a_large_argument_is_written() -> None:
    async with open_worker_context() as context:
        pid = await context.run_sync(os.getpid)
        os.kill(pid, signal.SIGSTOP)
        await until_stopped(pid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_death, lambda: context.run_sync(len, bytes(50_000_000)), pid)
            await wait_all_tasks_blocked()
            assert context.statistics().running_workers == 1, "the socket takes only a part of it"
            os.kill(pid, signal.SIGKILL)
        assert await context.run_sync(len, bytes(50_000_000)) == 50_000_000


async def test_killed_in_the_middle_of_a_large_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_worker_context() as context:
        pid = await context.run_sync(os.getpid)
        descriptor = os.pidfd_open(pid)
        dead: list[int] = []
        read = Channel._read

        def kill_after_first_read(channel: Any) -> Any:
            frame = read(channel)
            # Far more than a socket holds is still to come. As long as we read, a writer that does not have to
            # wait does not notice the signal either; so nothing more is read before it is dead.
            if not dead:
                os.kill(pid, signal.SIGKILL)
                dead.extend(select.select([descriptor], [], [], PATIENCE)[0])
            return frame

        with monkeypatch.context() as patch:
            patch.setattr(Channel, "_read", kill_after_first_read)
            error = await expect_death(lambda: context.run_sync(bytes, 50_000_000), pid)
        os.close(descriptor)
        assert dead == [descriptor]
        assert "in the middle of its answer to bytes" in str(error)
        assert len(await context.run_sync(bytes, 50_000_000)) == 50_000_000


async def test_the_death_of_one_leaves_the_others_alone(line: Lifeline, gate: Gate, tmp_path: Path) -> None:
    with closing(Lifeline(tmp_path / "another line")) as another_line:
        limiter = trio.CapacityLimiter(3)
        survivors: list[int] = []
        async with open_worker_context() as context:

            async def survive() -> None:
                survivors.append(await context.run_sync(jobs.pass_gate, line.path, gate.path, limiter=limiter))

            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(survive)
                pids = {await line.pid(), await line.pid()}
                nursery.start_soon(
                    expect_death, lambda: context.run_sync(jobs.hold_for_ever, another_line.path, limiter=limiter), None
                )
                os.kill(await another_line.pid(), signal.SIGKILL)
                await another_line.ended()
                gate.open(2)
        assert set(survivors) == pids


async def test_a_job_that_replaces_the_worker_by_another_program(line: Lifeline) -> None:
    """The program has no socket and would never answer."""
    async with open_worker_context() as context:
        with pytest.raises(
            BrokenWorkerError, match="stopped answering without exiting, and was killed while it ran"
        ) as told:
            await context.run_sync(jobs.become_sleeper, line.path)
        assert told.value.pid == await line.pid()
        await line.ended()
        assert await context.run_sync(jobs.echo, 5) == 5


async def test_job_that_closes_socket_writes_no_frame_into_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What makes daemons closes every descriptor above 2; the next file that a job opens gets the socket's number."""
    async with open_worker_context() as context:
        pid = await context.run_sync(os.getpid)
        with pytest.raises(BrokenWorkerError, match="exited with status 5") as told:
            await context.run_sync(jobs.open_instead_of_socket, str(tmp_path / "file"))
        assert told.value.pid == pid
        assert await context.run_sync(jobs.echo, 5) == 5
    assert (tmp_path / "file").read_bytes() == b""
    assert capfd.readouterr().err.count("a job has closed descriptor 3") == 1


async def test_program_without_free_descriptors_loses_nothing() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    outcomes = set()
    highest = max(map(int, os.listdir("/proc/self/fd")))
    # The limit is on numbers: none below it may be free.
    fillers = [os.dup(0)]
    while fillers[-1] < highest:
        fillers.append(os.dup(0))
    async with open_worker_context() as context:
        # What the workers are forked off, if they are, is there before.
        with pytest.raises(BrokenWorkerError):
            await context.run_sync(os._exit, 42)
        before = count_descriptors(context)
        # Some are for what the workers are forked off.
        for free in range(12):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(highest, fillers[-1]) + 1 + free, hard))
            try:
                result = await context.run_sync(os._exit, 42)
            except WorkerStartError as error:
                assert "ulimit -n" in str(error)  # noqa: PT017
                outcomes.add("not started")
            except BrokenWorkerError as error:
                assert error.exitcode == 42  # noqa: PT017
                outcomes.add("started")
            else:
                raise AssertionError(result)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert count_descriptors(context) == before
            assert context.statistics() == NOTHING
    for filler in fillers:
        os.close(filler)
    assert outcomes == {"not started", "started"}


async def test_signal_for_worker_does_not_reach_parent(line: Lifeline) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as received:
        async with open_worker_context() as context, trio.open_nursery() as nursery:
            nursery.start_soon(expect_death, lambda: context.run_sync(jobs.hold_for_ever, line.path), None, signal.SIGTERM)
            os.kill(await line.pid(), signal.SIGTERM)
        with trio.move_on_after(0) as scope:
            await received.__anext__()
        assert scope.cancelled_caught


async def test_sigterm_to_idle_workers_is_a_good_end() -> None:
    """A service manager that ends the whole group ends them so."""
    async with open_worker_context() as context:
        os.kill(await context.run_sync(os.getpid), signal.SIGTERM)


async def test_a_worker_swallows_ctrl_c_and_what_a_job_starts_gets_it(line: Lifeline, gate: Gate) -> None:
    async with open_worker_context() as context:
        pid = await context.run_sync(os.getpid)
        os.kill(pid, signal.SIGINT)
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                assert await context.run_sync(jobs.pass_gate, line.path, gate.path) == pid

            nursery.start_soon(call)
            assert await line.pid() == pid
            os.kill(pid, signal.SIGINT)
            gate.open()
        assert await context.run_sync(jobs.end_of_a_child_after, signal.SIGINT) == -signal.SIGINT
        assert await context.run_sync(os.getpid) == pid


async def test_stuck_worker_is_killed_with_children(line: Lifeline) -> None:
    with pytest.raises(BrokenWorkerError, match="had to be killed") as told:
        async with open_worker_context(grace_period=0.05) as context:
            child = await context.run_sync(jobs.leave_child, line.path)
            pid = await line.pid()
            os.kill(pid, signal.SIGSTOP)
            await until_stopped(pid)
            assert process_state(child) is not None
    assert (told.value.pid, told.value.exitcode) == (pid, -signal.SIGKILL)
    await line.ended()


# --- what it started -----------------------------------------------------------------------------


async def test_a_cancelled_job_takes_its_family_along(line: Lifeline) -> None:
    async with open_worker_context() as context:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: context.run_sync(jobs.start_family, line.path, kill_on_cancel=True))
            worker = await line.pid()
            daemon = await line.pid()
            assert process_state(daemon) is not None
            nursery.cancel_scope.cancel()
        assert process_state(worker) is None
        await line.ended()


async def test_a_cancelled_start_takes_the_family_of_init_along(line: Lifeline) -> None:
    import functools

    async with open_worker_context(init=functools.partial(jobs.start_family, line.path)) as context:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: context.run_sync(jobs.echo, 5, kill_on_cancel=True))
            worker = await line.pid()
            await line.pid()
            nursery.cancel_scope.cancel()
        assert process_state(worker) is None
        await line.ended()
        assert context.statistics() == NOTHING


async def test_a_cancelled_job_that_forks_on_and_on_is_caught(line: Lifeline) -> None:
    async with open_worker_context() as context:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: context.run_sync(jobs.run_from_killers, line.path, 5000, kill_on_cancel=True))
            await line.pid()
            await line.pid()
            nursery.cancel_scope.cancel()
        await line.ended()


@pytest.mark.parametrize("way", ["forked", "started with every descriptor"])
async def test_surviving_child_does_not_hide_death(line: Lifeline, tmp_path: Path, way: str) -> None:
    with closing(Lifeline(tmp_path / "another line")) as another_line:
        async with open_worker_context() as context:
            job = jobs.leave_fork if way == "forked" else jobs.leave_careless_child
            child = await context.run_sync(job, line.path)
            # Without its mark nobody finds it when it has lost its parent.
            resource.prlimit(child, family.LIMIT, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            worker = await line.pid()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect_death, lambda: context.run_sync(jobs.hold_for_ever, another_line.path), worker)
                assert await another_line.pid() == worker
                os.kill(worker, signal.SIGKILL)
            assert line.held(), "the child is still there"
            os.kill(child, signal.SIGKILL)
            await line.ended()


async def test_the_idle_worker_of_a_child_that_lives_on_goes_on_too(line: Lifeline) -> None:
    async with open_worker_context() as context:
        child = await context.run_sync(jobs.leave_fork, line.path)
        worker = await line.pid()
        assert await context.run_sync(os.getpid) == worker
        os.kill(child, signal.SIGKILL)
        assert await context.run_sync(os.getpid) == worker


async def test_ordinary_retirement_leaves_a_jobs_children_alone(line: Lifeline) -> None:
    async with open_worker_context() as context:
        child = await context.run_sync(jobs.leave_child, line.path)
        worker = await line.pid()
    assert process_state(worker) is None
    assert line.held()
    os.kill(child, signal.SIGKILL)
    await line.ended()


async def test_a_copy_of_the_worker_that_a_job_forked_never_answers(line: Lifeline) -> None:
    """It returns from the job's function too; there is one answer, and the copy ends."""
    async with open_worker_context() as context:
        for _ in range(5):
            forked = await context.run_sync(os.fork)
            assert forked > 0
            with trio.fail_after(PATIENCE):
                assert await context.run_sync(os.waitpid, forked, 0) == (forked, 0)
        assert await context.run_sync(jobs.fork_and_raise) is None


# --- whose status it is --------------------------------------------------------------------------

STATUS_IS_LOST = """
import os, signal, sys, threading
import trio, trio_offload, jobs

def reap_all():
    # What some frameworks do in a thread.
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            if enough.wait(0.001):
                return

async def main():
    async with trio_offload.open_worker_context() as context:
        for _ in range(5):
            assert await context.run_sync(jobs.echo, 5) == 5
            try:
                await context.run_sync(os._exit, 42)
            except trio_offload.BrokenWorkerError as error:
                assert error.exitcode is None or how == "waitpid" and error.exitcode == 42, error.exitcode
                assert error.exitcode is not None or "other code in this program reaped it" in str(error), error
                unknown.append(error.exitcode is None)
            with trio.move_on_after(0.05):
                await context.run_sync(jobs.endless, kill_on_cancel=True)
        assert await context.run_sync(jobs.echo, 6) == 6
    try:
        async with trio_offload.open_worker_context(init=jobs.exit_quietly) as context:
            await context.run_sync(bool)
    except trio_offload.WorkerStartError as error:
        assert error.exitcode in (None, 42)

how, unknown, enough = sys.argv[1], [], threading.Event()
if how == "ignored":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
else:
    thread = threading.Thread(target=reap_all, daemon=True)
    thread.start()
trio.run(main)
trio.run(trio_offload.run_sync, bool)
if how == "ignored":
    assert all(unknown) and len(unknown) == 5
enough.set()
print("well")
"""


@pytest.mark.parametrize("how", ["ignored", "waitpid"])
def test_with_sigchld_ignored_or_a_foreign_waitpid_nothing_hangs(tmp_path: Path, how: str) -> None:
    environment = environment_of()
    ended = run_script(tmp_path, STATUS_IS_LOST, how, environment=environment)
    assert ended.lines() == ["well"]
    assert ended.stderr == ""


# --- who started it ------------------------------------------------------------------------------


@pytest.mark.leaves_default_workers
async def test_a_worker_outlives_the_thread_that_started_it() -> None:
    """PR_SET_PDEATHSIG would have killed it with that thread."""
    import threading

    pids: list[int] = []
    thread = threading.Thread(target=lambda: pids.append(trio.run(run_sync, os.getpid)))
    thread.start()
    await trio.to_thread.run_sync(thread.join)
    assert await run_sync(os.getpid) == pids[0]
