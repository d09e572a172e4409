"""Contract: processes with a channel both ways, and async functions in jobs. With each kind of worker."""

from __future__ import annotations

import functools
import os
import pickle
import re
import signal
from collections.abc import Callable
from typing import Any

import process_jobs as jobs
import pytest
import trio
from lifeline import PATIENCE

import trio_offload
from trio_offload import BrokenWorkerError, JobExitError, WorkerMemoryError, WorkerType, callback

Open = Callable[..., Any]


@pytest.fixture
def open_process(of_any_kind: WorkerType) -> Open:
    def opened(*call: Any, **options: Any) -> Any:
        return trio_offload.open_process(*call, worker_type=of_any_kind, **options)

    return opened


@pytest.fixture(autouse=True)
async def patience() -> Any:
    with trio.fail_after(PATIENCE):
        yield


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_items_go_both_ways(open_process: Open) -> None:
    async with open_process(jobs.echo) as process:
        for number in range(50):
            await process.send(number)
            assert await process.receive() == number
        process.send_nowait("last")
        await process.send_eof()
        assert [item async for item in process] == ["last"]
        assert await process.wait() == "done"
        assert (process.running, process.exitcode, process.crash) == (False, 0, None)
        with pytest.raises(trio.ClosedResourceError):
            await process.send(1)
    assert process.statistics() is None


async def test_each_method_of_the_channel_in_the_job(open_process: Open) -> None:
    async with open_process(jobs.each_method) as process:
        for item in ("a", "b", "c"):
            await process.send(item)
        assert [item async for item in process] == [1, 2, 3, 4, 5]
        with pytest.raises(trio.EndOfChannel):
            process.receive_nowait()
        await process.send("d")
        await process.send_eof()
        assert await process.wait() == ["a", "b", ["c"], "WouldBlock", "TimeoutError", ["d"]]


async def test_the_process_is_its_own(open_process: Open) -> None:
    async with open_process(jobs.pid, name="number one") as process:
        assert process.name == "number one"
        assert await process.wait() == process.pid != os.getpid()
    assert not is_alive(process.pid)


async def test_its_name_is_the_function_s(open_process: Open) -> None:
    async with open_process(jobs.echo) as process:
        assert process.name == "process_jobs.echo"
        assert repr(process) == f"<process process_jobs.echo, pid {process.pid}>"
        assert process.statistics().pid == process.pid
        assert (process.running, process.exitcode) == (True, None)
    assert repr(process) == "<process process_jobs.echo, has ended>"


async def test_it_takes_no_token_of_the_default_limiter(open_process: Open) -> None:
    limiter = trio_offload.current_default_worker_limiter()
    async with open_process(jobs.echo) as process:
        await process.send(1)
        assert await process.receive() == 1
        assert limiter.borrowed_tokens == 0


async def test_the_block_waits_for_the_function(open_process: Open) -> None:
    async with open_process(jobs.echo) as process:
        await process.send(1)
    assert await process.wait() == "done"


async def test_the_block_raises_the_function_s_exception(open_process: Open) -> None:
    with pytest.raises(LookupError, match="by itself"):
        async with open_process(jobs.fails) as process:
            pass
    assert process.exitcode == 1


async def test_an_exception_that_was_handled_is_not_raised_again(open_process: Open) -> None:
    async with open_process(jobs.fails) as process:
        with pytest.raises(LookupError, match="by itself"):
            await process.wait()


async def test_several_tasks_wait_for_the_value(open_process: Open) -> None:
    values = []

    async def wait() -> None:
        values.append(await process.wait())

    async with open_process(jobs.pid) as process, trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wait)
    assert values == [process.pid] * 2
    assert await process.wait() == process.pid


async def test_the_exception_is_raised_in_each_wait(open_process: Open) -> None:
    async with open_process(jobs.fails) as process:
        for _ in range(2):
            with pytest.raises(LookupError, match="by itself"):
                await process.wait()


async def test_another_exception_in_the_block_names_it(open_process: Open) -> None:
    with pytest.raises(trio.EndOfChannel) as caught:
        async with open_process(jobs.fails) as process:
            await process.receive()
    assert caught.value.__notes__ == ["(the process process_jobs.fails raised LookupError: by itself)"]


@pytest.mark.parametrize(("code", "exitcode"), [(3, 3), (None, 0), ("a text", 1)])
async def test_exit_codes(code: Any, exitcode: int) -> None:
    async with trio_offload.open_process(jobs.exits, code) as process:
        with pytest.raises(JobExitError):
            await process.wait()
    assert process.exitcode == exitcode


async def test_a_death(open_process: Open) -> None:
    async with open_process(jobs.dies) as process:
        assert await process.receive() == "last words"
        with pytest.raises(trio.BrokenResourceError):
            await process.receive()
        with pytest.raises(BrokenWorkerError) as caught:
            await process.wait()
    assert process.exitcode == -signal.SIGKILL
    assert process.crash is caught.value.crash is not None


async def test_cancel_tells_the_function(open_process: Open) -> None:
    async with open_process(jobs.waits) as process:
        assert await process.receive() == "begun"
        process.cancel()
        assert [item async for item in process] == ["cleaned up"]
        with pytest.raises(trio.BrokenResourceError, match="was cancelled"):
            await process.wait()
    assert process.exitcode == 1


async def test_cancel_kills_after_the_grace(open_process: Open) -> None:
    async with open_process(jobs.ignores_all, grace=0.05) as process:
        assert await process.receive() == "begun"
        process.cancel()
    assert process.exitcode == -signal.SIGKILL
    assert not is_alive(process.pid)


async def test_an_exception_in_the_block_cancels_it(open_process: Open) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_process(jobs.ignores_all, grace=0.05) as process:
            await process.receive()
            raise KeyError("mine")
    assert not is_alive(process.pid)


async def test_a_cancelled_block_cancels_it(open_process: Open) -> None:
    with trio.CancelScope() as scope:
        async with open_process(jobs.waits) as process:
            await process.receive()
            scope.cancel()
    assert scope.cancelled_caught
    assert not is_alive(process.pid)


async def test_terminate_is_a_signal(open_process: Open) -> None:
    async with open_process(jobs.handles_sigterm) as process:
        assert await process.receive() == "begun"
        process.terminate()
        assert await process.wait() == "SIGTERM"
        process.terminate()  # without effect


async def test_kill(open_process: Open) -> None:
    async with open_process(jobs.ignores_all) as process:
        assert await process.receive() == "begun"
        process.kill()
        with pytest.raises(BrokenWorkerError):
            await process.wait()
    assert process.exitcode == -signal.SIGKILL


async def test_a_memory_limit(open_process: Open) -> None:
    async with open_process(jobs.allocates, memory_limit="300 MiB") as process:
        with pytest.raises(WorkerMemoryError):
            await process.wait()


async def test_cancelled_at_any_moment(open_process: Open) -> None:
    for number in range(30):
        with trio.move_on_after(number * 0.001):
            async with open_process(jobs.echo) as process:
                while True:
                    await process.send(number)
                    assert await process.receive() == number


async def test_wrong_uses() -> None:
    with pytest.raises(TypeError, match="asynchronous"):
        trio_offload.open_process(jobs.count_slowly, 1)
    with pytest.raises(ValueError, match="grace must be 0 seconds or more"):
        trio_offload.open_process(jobs.pid, grace=-1)
    with pytest.raises(TypeError, match=r"got 5 as the function\. .* write open_process\(fn, argument\)"):
        trio_offload.open_process(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="name must be a string, got 5"):
        trio_offload.open_process(jobs.pid, name=5)  # type: ignore[arg-type]
    process = trio_offload.open_process(jobs.pid)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(process)
    for wait in (process.wait, process.receive, process.__anext__, functools.partial(process.send, 1)):
        with pytest.raises(TypeError, match="inside a block: write `async with open_process"):
            await wait()
    async with process:
        with pytest.raises(RuntimeError, match="entered once"):
            await process.__aenter__()
    async with trio_offload.open_worker_context() as context:
        assert "only a function of open_process" in await context.run_sync(jobs.no_channel)


# --- async functions in jobs ---------------------------------------------------------------------


async def test_an_async_function_in_a_job(open_process: Open) -> None:
    async with open_process(jobs.run_async, jobs.count_slowly, 5) as process:
        assert await process.wait() == 5


async def test_an_exception_of_an_async_function(open_process: Open) -> None:
    async with open_process(jobs.run_async, jobs.fail_async) as process:
        with pytest.raises(LookupError, match="async"):
            await process.wait()


async def test_what_is_no_async_function(open_process: Open) -> None:
    async with open_process(jobs.misuse_run_async) as process:
        called, synchronous, number = await process.wait()
    assert called.startswith(
        "TypeError: run_async needs an async function and its arguments, got <coroutine object count_slowly"
    )
    assert called.endswith("write run_async(afn, argument) instead of run_async(afn(argument))")
    assert re.fullmatch("TypeError: run_async needs an async function, but <function pid .*> returned [0-9]+", synchronous)
    assert number.startswith("TypeError: run_async needs an async function and its arguments, got 5")


async def test_an_async_function_is_cancelled_with_its_job(open_process: Open) -> None:
    reports: list[str] = []
    async with open_process(jobs.run_async, jobs.sleep_and_report, callback(reports.append)) as process:
        while reports != ["begun"]:  # noqa: ASYNC110  # the job brings it about
            await trio.sleep(0.001)
        process.cancel()
    assert reports == ["begun", "finally"]
    assert process.exitcode == 1


async def test_an_async_function_in_a_thread_of_trio() -> None:
    assert await trio.to_thread.run_sync(jobs.run_async, jobs.count_slowly, 3) == 3
