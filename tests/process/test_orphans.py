"""End to end: programs that are killed, or end, with workers that are idle, busy, or just starting.

A lifeline's end proves that the worker and all that it started are gone; how long that took is printed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from kinds import environment_of
from lifeline import PATIENCE, Lifeline, process_state
from running import run_script, started, write

ENVIRONMENT = environment_of()

# The design says one second; a busy machine gets more, and a broken worker would live for ever.
GONE_WITHIN = 15.0


PROGRAM = """
import ctypes, functools, os, signal, sys, threading
import trio, trio_offload, jobs

where, job, line = sys.argv[1], getattr(jobs, sys.argv[2]), sys.argv[3]

async def main():
    if where == "in init":
        trio_offload.configure_default_context(init=functools.partial(job, line))
        await trio_offload.run_sync(bool)
    await trio_offload.run_sync(job, line)
    print("idle", flush=True)
    if where == "os._exit":
        os._exit(7)
    if where == "under a copy":
        # A fork in C that runs none of Python's hooks: the copy holds our end of every worker's socket.
        copy = ctypes.CDLL(None).fork()
        if copy == 0:
            while True:
                ctypes.CDLL(None).pause()
        print(copy, flush=True)
    await trio.sleep_forever()

trio.run(main)
"""


async def gone(line: Lifeline, since: float, what: str) -> None:
    with trio.fail_after(PATIENCE):
        await line.ended()
    seconds = time.monotonic() - since
    print(f"{what}: gone after {seconds:.3f} s")
    assert seconds < GONE_WITHIN


def program(tmp_path: Path, *arguments: str, **options: Any) -> Any:
    script = write(tmp_path / "program.py", PROGRAM)
    return started([sys.executable, script, *arguments], environment=ENVIRONMENT, stdout=subprocess.PIPE, **options)


@pytest.mark.parametrize("where", ["in a job", "in init"])
@pytest.mark.parametrize("job", ["hold_for_ever", "spin", "hold_the_gil", "loop_in_c", "start_family"])
async def test_a_killed_parent_takes_a_busy_worker_along(tmp_path: Path, line: Lifeline, where: str, job: str) -> None:
    with program(tmp_path, where, job, line.path) as parent:
        await line.pid()
        if job == "start_family":
            await line.pid()
        since = time.monotonic()
        parent.kill()
        await gone(line, since, f"{where}, {job}")


WITHOUT_PROC = ["unshare", "--mount", "--propagation", "private", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
ANY_KIND = """
import sys
import trio, trio_offload, jobs

async def main():
    async with trio_offload.open_worker_context(worker_type=trio_offload.WorkerType(sys.argv[1])) as context:
        await context.run_sync(jobs.hold_for_ever, sys.argv[2])

if __name__ == "__main__":
    trio.run(main)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can hide /proc")
async def test_without_proc_a_busy_worker_ends_with_its_parent(tmp_path: Path, line: Lifeline, kind: str) -> None:
    """A sentinel process lists its descriptors there, and writes its name. It has to live without."""
    script = write(tmp_path / "program.py", ANY_KIND)
    command = [*WITHOUT_PROC, sys.executable, script, kind.replace("loop", "spawn"), line.path]
    with started(command, environment=environment_of(kind)) as parent:
        await line.pid()
        since = time.monotonic()
        parent.kill()
        await gone(line, since, kind)


async def test_killed_parent_ends_idle_worker_and_leftovers(tmp_path: Path, line: Lifeline) -> None:
    with program(tmp_path, "idle", "leave_child", line.path) as parent:
        assert parent.stdout.readline() == b"idle\n"
        since = time.monotonic()
        parent.kill()
        await gone(line, since, "idle, with a child of a job's")


@pytest.mark.parametrize("kind", ["SPAWN", "FORKSERVER", "FORK"])
async def test_slowly_dying_parent_ends_leftovers(tmp_path: Path, line: Lifeline, kind: str) -> None:
    """Its descriptors are closed, and then it gets no processor before its worker has come to its end."""
    text = """
    import os, sys
    import trio, trio_offload, jobs

    async def main():
        trio_offload.configure_default_context(worker_type=trio_offload.WorkerType[sys.argv[2]])
        await trio_offload.run_sync(jobs.leave_child, sys.argv[1])
        # From now on it runs when nobody else wants to; the worker does not inherit that.
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        print("idle", flush=True)
        await trio.sleep_forever()

    if __name__ == "__main__":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        trio.run(main)
    """
    busy = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile True: pass"
    script = write(tmp_path / "script.py", text)
    with (
        started([sys.executable, script, line.path, kind], environment=ENVIRONMENT, stdout=subprocess.PIPE) as parent,
        started([sys.executable, "-c", busy], environment=ENVIRONMENT) as hog,
    ):
        assert parent.stdout.readline() == b"idle\n"
        parent.kill()
        try:
            await line.ended()
        finally:
            hog.kill()


@pytest.mark.parametrize("sent", ["nothing", "half of HELLO", "HELLO", "all but a byte", "all"])
def test_parent_killed_during_start_leaves_no_worker(tmp_path: Path, sent: str) -> None:
    text = """
    import os, signal, sys
    import trio, trio_offload
    from trio_offload._transport.channel import Channel

    def send(channel, parts):
        hello, rest = parts[0], b"".join(parts[1:])
        data = {
            "nothing": b"", "half of HELLO": hello[: len(hello) // 2], "HELLO": hello,
            "all but a byte": (hello + rest)[:-1], "all": hello + rest,
        }[sys.argv[1]]
        channel._socket.sendall(data)
        os.kill(os.getpid(), signal.SIGKILL)

    if __name__ == "__main__":
        Channel.send_partly = send
        trio.run(trio_offload.run_sync, bool)
    """
    # It is a proof that nobody is left in the program's session.
    run_script(tmp_path, text, sent, environment=ENVIRONMENT, expect=-signal.SIGKILL)


@pytest.mark.parametrize("job", ["hold", "leave_child"])
async def test_living_fork_of_parent_keeps_no_worker(tmp_path: Path, line: Lifeline, job: str) -> None:
    with program(tmp_path, "under a copy", job, line.path) as parent:
        assert parent.stdout.readline() == b"idle\n"
        copy = int(parent.stdout.readline())
        since = time.monotonic()
        parent.kill()
        await gone(line, since, f"a copy holds the socket, {job}")
        assert process_state(copy) is not None
        os.kill(copy, signal.SIGKILL)


async def test_os_exit_takes_the_workers_along(tmp_path: Path, line: Lifeline) -> None:
    with program(tmp_path, "os._exit", "hold", line.path) as parent:
        await gone(line, time.monotonic(), "os._exit")
        assert parent.wait(PATIENCE) == 7


async def test_a_parent_that_a_signal_ends_takes_the_workers_along(tmp_path: Path, line: Lifeline) -> None:
    with program(tmp_path, "in a job", "spin", line.path) as parent:
        await line.pid()
        since = time.monotonic()
        parent.terminate()
        await gone(line, since, "SIGTERM, which Python does not handle")


async def test_a_stopped_parent_keeps_its_workers(tmp_path: Path, line: Lifeline) -> None:
    """Ctrl+Z is not a death: a worker that waits for its parent's next word waits."""
    with program(tmp_path, "idle", "hold", line.path) as parent:
        assert parent.stdout.readline() == b"idle\n"
        worker = await line.pid()
        parent.send_signal(signal.SIGSTOP)
        await trio.sleep(1.5)
        assert line.held()
        assert process_state(worker) == "S"
        parent.kill()
        await line.ended()


# --- an end in order -----------------------------------------------------------------------------


def test_a_program_that_ends_sees_its_idle_workers_off(tmp_path: Path, line: Lifeline) -> None:
    """With their exit handlers, and without a word on standard error."""
    text = """
    import sys
    import trio, trio_offload, jobs

    trio.run(trio_offload.run_sync, jobs.say_at_exit, "the worker has left")
    print("the program has ended", flush=True)
    """
    ended = run_script(tmp_path, text, line.path, environment=ENVIRONMENT)
    assert ended.lines() == ["the program has ended", "the worker has left"]
    assert ended.stderr == ""


def test_a_program_that_ends_under_a_running_job_takes_it_along(tmp_path: Path, line: Lifeline) -> None:
    """The job runs in a thread that nobody waits for."""
    text = """
    import sys, threading
    import trio, trio_offload, jobs

    threading.Thread(target=trio.run, args=(trio_offload.run_sync, jobs.spin, sys.argv[1]), daemon=True).start()
    with open(sys.argv[1] + ".go") as file:
        file.read()
    """
    go = tmp_path / "line.go"
    os.mkfifo(go)
    script = write(tmp_path / "script.py", text)
    with started([sys.executable, script, line.path], environment=ENVIRONMENT) as parent:

        async def main() -> None:
            await line.pid()
            since = time.monotonic()
            go.write_text("")
            await gone(line, since, "the end of the program")

        trio.run(main)
        assert parent.wait(PATIENCE) == 0


def test_worker_that_stays_at_exit_is_killed(tmp_path: Path, line: Lifeline) -> None:
    text = """
    import math, os, signal, sys
    import trio, trio_offload, jobs

    trio_offload.configure_default_context(grace_period=0.1)
    pid = trio.run(trio_offload.run_sync, jobs.hold, sys.argv[1])
    os.kill(pid, signal.SIGSTOP)
    """
    ended = run_script(tmp_path, text, line.path, environment=ENVIRONMENT)
    assert "BrokenWorkerError" in ended.stderr
    assert "killed after the grace period" in ended.stderr
    trio.run(line.ended)
