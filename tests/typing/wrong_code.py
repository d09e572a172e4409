"""Mistakes that a type checker has to find. It is checked with warnings for ignores that are not needed, so each
`type: ignore` is an assertion that the error is reported, with this code."""

from __future__ import annotations

import trio

import trio_offload
from trio_offload import open_worker_context, run_sync


def shout(text: str, times: int = 1) -> str:
    return text.upper() * times


async def coroutine_function(text: str) -> str:
    return text


async def wrong_arguments() -> None:
    await run_sync(shout, 5)  # type: ignore[arg-type]
    await run_sync(shout)  # type: ignore[arg-type]
    await run_sync(shout, "hello", "often")  # type: ignore[arg-type]
    await run_sync(shout, "hello", 2, 3)  # type: ignore[arg-type]
    await run_sync("shout", "hello")  # type: ignore[arg-type]
    async with open_worker_context() as context:
        await context.run_sync(shout, 5)  # type: ignore[arg-type]
        await context.run_sync(shout)  # type: ignore[arg-type]


async def wrong_result() -> int:
    return await run_sync(shout, "hello", 2)  # type: ignore[arg-type]


async def wrong_options() -> None:
    await run_sync(shout, "hello", kill_on_cancel="yes")  # type: ignore[arg-type]
    await run_sync(shout, "hello", limiter=3)  # type: ignore[arg-type]
    await run_sync(shout, "hello", 2, times=3)  # type: ignore[call-arg]
    async with open_worker_context(idle_timeout="long"):  # type: ignore[arg-type]
        pass
    async with open_worker_context(retire=3):  # type: ignore[arg-type]
        pass
    async with open_worker_context(worker_type="spawn"):  # type: ignore[arg-type]
        pass


async def wrong_maps() -> None:
    trio_offload.map(shout, [1, 2])  # type: ignore[arg-type]
    trio_offload.map(shout, 5)  # type: ignore[call-overload]
    trio_offload.map(shout, ["a"], chunk_size="large")  # type: ignore[call-overload]
    trio_offload.map(shout, ["a"], timeout="long")  # type: ignore[call-overload]
    async with trio_offload.map(shout, ["a"]) as texts:
        async for text in texts:
            text + 1  # type: ignore[operator]


async def wrong_in_a_nursery(nursery: trio.Nursery) -> None:
    # Not awaited: strict checking says so.
    run_sync(shout, "hello")  # type: ignore[unused-coroutine]
