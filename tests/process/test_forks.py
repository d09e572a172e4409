"""End to end: a program that forks, with and without its knowledge, while it has workers.

A copy that held a worker's end of the socket would hide the worker's death; one that took the parent's workers for its
own would disturb them. Each program runs in a process of its own.
"""

from __future__ import annotations

from pathlib import Path

from kinds import environment_of
from running import Ended, run_script

ENVIRONMENT = environment_of()


def run_program(folder: Path, text: str, *arguments: str) -> Ended:
    # Forking a process with threads is what these programs are about; newer Pythons warn of it.
    return run_script(
        folder, "import warnings\nwarnings.simplefilter('ignore')\n" + text, *arguments, environment=ENVIRONMENT
    )


FORKS_WHILE_WORKERS_START = """
import os, signal, threading
import trio, trio_offload

children, enough = [], threading.Event()

def fork_on_and_on():
    while not enough.is_set() and len(children) < 500:
        pid = os.fork()
        if pid == 0:
            # It lives until the end of the program, with a copy of every descriptor that there was.
            signal.pause()
        children.append(pid)

async def main():
    for _ in range(30):
        async with trio_offload.open_worker_context() as context:
            try:
                await context.run_sync(os._exit, 42)
            except trio_offload.BrokenWorkerError as error:
                assert error.exitcode == 42

if __name__ == "__main__":
    thread = threading.Thread(target=fork_on_and_on)
    thread.start()
    try:
        trio.run(main)
    finally:
        enough.set()
        thread.join()
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    print("every death was seen beside", "many" if len(children) > 30 else len(children), "copies")
"""


def test_forks_in_another_thread_never_hold_a_socket(tmp_path: Path) -> None:
    ended = run_program(tmp_path, FORKS_WHILE_WORKERS_START)
    assert ended.lines() == ["every death was seen beside many copies"]


FORK_WITH_IDLE_WORKERS = """
import os, sys
import trio, trio_offload

async def two_pids():
    # Two at once, so that there are two workers afterwards.
    pids = []
    async def one():
        pids.append(await trio_offload.run_sync(os.getpid))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        nursery.start_soon(one)
    return set(pids)

if __name__ == "__main__":
    ours = trio.run(two_pids) | trio.run(two_pids)
    before = trio_offload.default_context_statistics().idle_workers
    pid = os.fork()
    if pid == 0:
        opened = [os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")[:-1]]
        assert not [name for name in opened if name.startswith(("socket:", "anon_inode:[pidfd]"))], opened
        assert trio_offload.default_context_statistics().idle_workers == 0
        theirs = trio.run(two_pids)
        assert not theirs & ours, (theirs, ours)
        assert trio_offload.default_context_statistics().idle_workers in (1, 2)
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert trio_offload.default_context_statistics().idle_workers == before
    assert trio.run(trio_offload.run_sync, os.getpid) in ours
    print("well")
"""


def test_fork_of_program_has_its_own_workers(tmp_path: Path) -> None:
    ended = run_program(tmp_path, FORK_WITH_IDLE_WORKERS)
    assert ended.lines() == ["well"]
    assert ended.stderr == ""


FORK_BESIDE_A_CALL = """
import os, sys, threading
import trio, trio_offload, jobs

async def call(gate):
    return await trio_offload.run_sync(jobs.pass_gate, *gate)

if __name__ == "__main__":
    line, gate = sys.argv[1:]
    os.mkfifo(line), os.mkfifo(gate)
    results = []
    thread = threading.Thread(target=lambda: results.append(trio.run(call, (line, gate))))
    thread.start()
    with open(line) as file:
        file.readline()
        pid = os.fork()
        if pid == 0:
            # The copy has no call running, and no thread; it ends as a program ends, with its exit handlers.
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        with open(gate, "wb") as opened:
            opened.write(b"x")
    thread.join()
    assert results, "the call has failed"
    print("well")
"""


def test_a_fork_beside_a_call_does_not_disturb_it(tmp_path: Path) -> None:
    ended = run_program(tmp_path, FORK_BESIDE_A_CALL, str(tmp_path / "line"), str(tmp_path / "gate"))
    assert ended.lines() == ["well"]
    assert ended.stderr == ""


FORK_UNDER_A_WAIT = """
import os
import trio
from trio.testing import wait_all_tasks_blocked
from trio_offload._launch.select import launcher_for
from trio_offload._options import ContextOptions

async def main():
    worker = launcher_for(ContextOptions()).begin()
    await worker.finish(cancellable=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.wait)
        await wait_all_tasks_blocked()
        pid = os.fork()
        if pid == 0:
            # The hooks have run by now; the epoll instance of Trio is the parent's too.
            os._exit(0)
        os.waitpid(pid, 0)
        with trio.fail_after(60):
            worker.kill()
            while not worker.process.ended:
                await trio.sleep(0.01)
    print("well")

if __name__ == "__main__":
    trio.run(main)
"""


def test_a_fork_does_not_make_a_wait_deaf(tmp_path: Path) -> None:
    ended = run_program(tmp_path, FORK_UNDER_A_WAIT)
    assert ended.lines() == ["well"]
