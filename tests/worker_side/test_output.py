"""End to end: what jobs print, and where it stops."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import trio
from kinds import environment_of
from lifeline import PATIENCE, Lifeline
from running import run_script, started, write

pytestmark = pytest.mark.usefixtures("worker_type")

ENVIRONMENT = environment_of()


PRINTS = """
import os, sys
import trio, trio_offload, jobs

async def main():
    async with trio_offload.open_worker_context(init=jobs.say_init, retire=jobs.say_retire) as context:
        for number in range(3):
            await context.run_sync(print, "job", number)
            os.write(1, b"parent %d\\n" % number)
        try:
            await context.run_sync(jobs.print_and_raise, "a job that raises")
        except RuntimeError:
            os.write(1, b"parent again\\n")
        await context.run_sync(jobs.print_to_stderr, "an error")
        os.write(2, b"parent's error\\n")

trio.run(main)
"""
EXPECTED = ["init", "job 0", "parent 0", "job 1", "parent 1", "job 2", "parent 2", "a job that raises", "parent again"]


@pytest.mark.parametrize("where", ["a pipe", "a file"])
def test_what_a_job_printed_is_out_when_the_call_returns(tmp_path: Path, where: str) -> None:
    if where == "a pipe":
        ended = run_script(tmp_path, PRINTS, environment=ENVIRONMENT)
        out, err = ended.stdout, ended.stderr
    else:
        script = write(tmp_path / "script.py", PRINTS)
        with (tmp_path / "out").open("wb") as out_file, (tmp_path / "err").open("wb") as err_file:
            with started([sys.executable, script], environment=ENVIRONMENT, stdout=out_file, stderr=err_file) as process:
                assert process.wait(PATIENCE) == 0
        out, err = (tmp_path / "out").read_text(), (tmp_path / "err").read_text()
    lines = [text for text in out.splitlines() if text != "retire"]
    assert lines == EXPECTED
    assert out.splitlines().count("retire") == 5
    assert err.splitlines() == ["an error", "parent's error"]


def test_what_a_killed_job_had_flushed_is_out(tmp_path: Path, line: Lifeline) -> None:
    text = """
    import sys
    import trio, trio_offload, jobs

    try:
        trio.run(trio_offload.run_sync, jobs.print_and_die, "last words")
    except trio_offload.BrokenWorkerError:
        print("it died")
    """
    assert run_script(tmp_path, text, environment=ENVIRONMENT).lines() == ["last words", "it died"]


FLOODS = """
import sys
import trio, trio_offload, jobs

async def main():
    with open(sys.argv[2], "rb", buffering=0) as gate:
        async with trio.open_nursery() as nursery:
            async def flood():
                await trio_offload.run_sync(jobs.flood, sys.argv[1], int(sys.argv[3]), kill_on_cancel=True)
            nursery.start_soon(flood)
            await trio.to_thread.run_sync(gate.read, 1)
            nursery.cancel_scope.cancel()
        # The other descriptor, and other workers, are not concerned.
        assert await trio_offload.run_sync(jobs.echo, 5) == 5
    sys.exit(7)

trio.run(main)
"""


@pytest.mark.parametrize("descriptor", [1, 2], ids=["stdout", "stderr"])
async def test_cancel_of_job_that_floods_unread_pipe(tmp_path: Path, line: Lifeline, descriptor: int) -> None:
    """It blocks, as any program would; nothing else does."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = write(tmp_path / "script.py", FLOODS)
    command = [sys.executable, script, line.path, str(gate), str(descriptor)]
    pipe = {"stdout" if descriptor == 1 else "stderr": subprocess.PIPE}
    with started(command, environment=ENVIRONMENT, **pipe) as process:
        stream = process.stdout if descriptor == 1 else process.stderr
        assert stream is not None
        opened = os.open(gate, os.O_WRONLY)
        worker = await line.pid()
        with trio.fail_after(PATIENCE):
            # Nothing but the amount that waits in it tells that a pipe is full.
            while unread(stream.fileno()) < capacity(stream.fileno()):  # noqa: ASYNC110
                await trio.sleep(0.005)
        assert line.held()
        assert worker
        os.write(opened, b"x")
        os.close(opened)
        assert await line.ended() == []
        with trio.fail_after(PATIENCE):
            assert await trio.to_thread.run_sync(process.wait) == 7
        assert stream.read().strip(b"x\n") == b""


def unread(descriptor: int) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0" * 4))
    return int(count)


def capacity(descriptor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ if hasattr(fcntl, "F_GETPIPE_SZ") else 1032)


def test_a_megabyte_on_both_streams_passes_where_somebody_reads(tmp_path: Path) -> None:
    text = """
    import trio, trio_offload, jobs

    trio.run(trio_offload.run_sync, jobs.print_megabytes)
    """
    ended = run_script(tmp_path, text, environment=ENVIRONMENT)
    assert (len(ended.stdout), len(ended.stderr)) == (2**20, 2**20)


@pytest.mark.parametrize("closed", [1, 2])
def test_a_closed_stream_does_not_concern_the_call(tmp_path: Path, closed: int) -> None:
    text = f"""
    import os
    import trio, trio_offload, jobs

    os.close({closed})
    assert trio.run(trio_offload.run_sync, jobs.echo, 5) == 5
    os._exit(9)
    """
    run_script(tmp_path, text, environment=ENVIRONMENT, expect=9)
