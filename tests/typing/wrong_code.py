"""Mistakes that a type checker has to find. It is checked with warnings for ignores that are not needed, so each
`type: ignore` is an assertion that the error is reported, with this code."""

from __future__ import annotations

import trio

import trio_offload
from trio_offload import WorkerType, cache_scope, configure_default_context, open_worker_context, run_sync
from trio_offload_worker import from_worker


def shout(text: str, times: int = 1) -> str:
    return text.upper() * times


async def coroutine_function(text: str) -> str:
    return text


async def wrong_arguments() -> None:
    await run_sync(shout, 5)  # type: ignore[arg-type]
    await run_sync(shout)  # type: ignore[arg-type]
    await run_sync(shout, "hello", "often")  # type: ignore[arg-type]
    await run_sync(shout, "hello", timeout="long")  # type: ignore[arg-type]
    await run_sync(shout, "hello", 2, 3)  # type: ignore[arg-type]
    await run_sync("shout", "hello")  # type: ignore[arg-type]
    async with open_worker_context() as context:
        await context.run_sync(shout, 5)  # type: ignore[arg-type]
        await context.run_sync(shout)  # type: ignore[arg-type]


def wrong_job() -> None:
    from_worker.run_sync(shout, 5)  # type: ignore[arg-type]
    from_worker.run(coroutine_function, 5)  # type: ignore[arg-type]
    from_worker.run(shout, "hello", 2)  # type: ignore[arg-type]
    from_worker.sleep("long")  # type: ignore[arg-type]
    from_worker.shielded("long")  # type: ignore[arg-type]


async def wrong_result() -> int:
    return await run_sync(shout, "hello", 2)  # type: ignore[arg-type]


async def wrong_options() -> None:
    await run_sync(shout, "hello", kill_on_cancel="yes")  # type: ignore[arg-type]
    await run_sync(shout, "hello", limiter=3)  # type: ignore[arg-type]
    await run_sync(shout, "hello", 2, times=3)  # type: ignore[call-arg]
    await run_sync(shout, "hello", progress=5)  # type: ignore[arg-type]


async def wrong_options_of_a_context() -> None:
    async with open_worker_context(idle_timeout="long"):  # type: ignore[arg-type]
        pass
    async with open_worker_context(retire=3):  # type: ignore[arg-type]
        pass
    async with open_worker_context(worker_type="thread"):  # type: ignore[arg-type]
        pass
    async with open_worker_context(memory_limit=1.5):  # type: ignore[arg-type]
        pass
    async with open_worker_context(report_interval="1"):  # type: ignore[arg-type]
        pass
    async with open_worker_context(crash_dir=5):  # type: ignore[arg-type]
        pass
    async with open_worker_context(trace=5):  # type: ignore[arg-type]
        pass
    async with open_worker_context(report=5):  # type: ignore[arg-type]
        pass
    async with open_worker_context(forkserver_preload=5):  # type: ignore[arg-type]
        pass
    async with open_worker_context(forkserver_threads=[5]):  # type: ignore[list-item]
        pass
    async with open_worker_context(idle_timout=5):  # type: ignore[call-arg]
        pass
    async with open_worker_context(5, bool, bool, 5, WorkerType.SPAWN, 10**9):  # type: ignore[call-arg]
        pass


async def wrong_options_of_a_scope() -> None:
    async with cache_scope(idle_timeout="long"):  # type: ignore[arg-type]
        pass
    async with cache_scope(retire=3):  # type: ignore[arg-type]
        pass
    async with cache_scope(worker_type="thread"):  # type: ignore[arg-type]
        pass
    async with cache_scope(memory_limit=1.5):  # type: ignore[arg-type]
        pass
    async with cache_scope(report_interval="1"):  # type: ignore[arg-type]
        pass
    async with cache_scope(crash_dir=5):  # type: ignore[arg-type]
        pass
    async with cache_scope(trace=5):  # type: ignore[arg-type]
        pass
    async with cache_scope(forkserver_preload=5):  # type: ignore[arg-type]
        pass
    async with cache_scope(forkserver_threads=[5]):  # type: ignore[list-item]
        pass
    async with cache_scope(idle_timout=5):  # type: ignore[call-arg]
        pass
    async with cache_scope(5, bool, bool, 5, WorkerType.SPAWN, 10**9):  # type: ignore[call-arg]
        pass


def wrong_options_of_the_default_context() -> None:
    configure_default_context(idle_timeout="long")  # type: ignore[arg-type]
    configure_default_context(retire=3)  # type: ignore[arg-type]
    configure_default_context(worker_type="thread")  # type: ignore[arg-type]
    configure_default_context(memory_limit=1.5)  # type: ignore[arg-type]
    configure_default_context(report_interval="1")  # type: ignore[arg-type]
    configure_default_context(crash_dir=5)  # type: ignore[arg-type]
    configure_default_context(trace=5)  # type: ignore[arg-type]
    configure_default_context(forkserver_preload=5)  # type: ignore[arg-type]
    configure_default_context(forkserver_threads=[5])  # type: ignore[list-item]
    configure_default_context(idle_timout=5)  # type: ignore[call-arg]
    configure_default_context(5, bool, bool, 5, WorkerType.SPAWN, 10**9)  # type: ignore[call-arg]


async def wrong_maps() -> None:
    trio_offload.map(shout, [1, 2])  # type: ignore[arg-type]
    trio_offload.map(shout, 5)  # type: ignore[call-overload]
    trio_offload.starmap(shout, ["a"])  # type: ignore[list-item]
    trio_offload.starmap(shout, [("a", "b")])  # type: ignore[arg-type]
    trio_offload.starmap(shout, [("a", 1, 2)])  # type: ignore[arg-type]
    trio_offload.starmap(shout, [("a", 1)], chunksize=5)  # type: ignore[call-overload]
    trio_offload.map(shout, ["a"], chunk_size="large")  # type: ignore[call-overload]
    trio_offload.map(shout, ["a"], timeout="long")  # type: ignore[call-overload]
    trio_offload.map(shout, ["a"], chunksize=5)  # type: ignore[call-overload]
    trio_offload.map(shout, ["a"], limiter=5)  # type: ignore[call-overload]
    async with open_worker_context() as context:
        context.map(shout, ["a"], chunksize=5)  # type: ignore[call-overload]
        context.map(shout, ["a"], window="large")  # type: ignore[call-overload]
        context.idle_timeout = 5  # type: ignore[misc]
    async with trio_offload.map(shout, ["a"]) as texts:
        async for text in texts:
            text + 1  # type: ignore[operator]


async def wrong_lives() -> None:
    trio_offload.stream(shout, "a", windows=2)  # type: ignore[call-overload]
    trio_offload.open_process(shout, 5)  # type: ignore[arg-type]


async def wrong_in_a_nursery(nursery: trio.Nursery) -> None:
    # Not awaited: strict checking says so.
    run_sync(shout, "hello")  # type: ignore[unused-coroutine]
