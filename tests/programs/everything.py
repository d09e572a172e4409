"""Uses the package in every way that could leave something unclosed or warn of something. Prints one line at its end."""

import functools
import math
import threading

import everything_jobs as jobs
import trio

import trio_offload


def of_main(value):
    return Thing(value)


class Thing:
    def __init__(self, value):
        self.value = value


async def expect(kind, call):
    try:
        await call
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


async def use(run_sync):
    assert await run_sync(divmod, 7, 2) == (3, 1)
    assert await run_sync(functools.partial(int, base=16), "ff") == 255
    assert (await run_sync(of_main, 5)).value == 5
    await expect(KeyError, run_sync(jobs.fail))
    await expect(Exception, run_sync(jobs.fail_strangely))
    await expect(trio_offload.BrokenWorkerError, run_sync(jobs.die))
    await expect(Exception, run_sync(threading.Lock()))
    assert await run_sync(jobs.start_child) == b"5\n"
    data = b"x" * 3_000_000
    assert await run_sync(jobs.large, data) == data
    assert await run_sync(jobs.import_multiprocessing)
    for name in ("kill_on_cancel", "cancellable"):
        with trio.move_on_after(0.2) as scope:
            await run_sync(jobs.sleep, 1000, **{name: True})
        assert scope.cancelled_caught
    with trio.move_on_after(0.001):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(functools.partial(run_sync, jobs.sleep, 1000, kill_on_cancel=True))
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(run_sync, bool)


async def main():
    async with trio_offload.open_worker_context(idle_timeout=math.inf, retire=jobs.true) as context:
        await use(context.run_sync)
    async with trio_offload.open_worker_context(init=jobs.true) as context:
        await use(context.run_sync)
        print_free = context.statistics()
        assert print_free.running_workers == 0
    await expect(trio.ClosedResourceError, context.run_sync(bool))
    async with trio_offload.cache_scope():
        await use(trio_offload.run_sync)
    await expect(trio_offload.WorkerStartError, failing_init())
    await use(trio_offload.run_sync)
    await trio.to_thread.run_sync(trio.run, in_thread)


async def failing_init():
    async with trio_offload.open_worker_context(init=jobs.fail) as context:
        await context.run_sync(bool)


async def in_thread():
    await trio_offload.run_sync(bool)


if __name__ == "__main__":
    trio.run(main)
    trio.run(trio_offload.run_sync, bool)
    print("all done")
