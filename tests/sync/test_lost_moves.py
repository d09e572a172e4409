"""An end that was moved to a call which never begins: it closes, so nobody waits for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import channel_jobs as jobs
import pytest
import trio
from lifeline import PATIENCE

from trio_offload import open_channel, run_sync

Caller = Callable[[Any, Any], Awaitable[None]]


async def _call_in_cancelled_scope(job: Any, end: Any) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await run_sync(job, end.move())


async def _wait_for_token(job: Any, end: Any) -> None:
    limiter = trio.CapacityLimiter(1)
    await limiter.acquire_on_behalf_of("somebody else")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: run_sync(job, end.move(), limiter=limiter))
        while not limiter.statistics().tasks_waiting:  # noqa: ASYNC110 (nothing tells)
            await trio.sleep(0.001)
        nursery.cancel_scope.cancel()


async def _drop(_job: Any, end: Any) -> None:
    end.move()


@pytest.mark.parametrize("lose", [_call_in_cancelled_scope, _wait_for_token, _drop])
async def test_sender_of_a_call_that_never_begins(lose: Caller) -> None:
    send, receive = open_channel[int](1)
    with trio.fail_after(PATIENCE):
        await lose(jobs.produce_forever, send)
        with pytest.raises(trio.EndOfChannel):
            await receive.receive()


@pytest.mark.parametrize("lose", [_call_in_cancelled_scope, _wait_for_token, _drop])
async def test_receiver_of_a_call_that_never_begins(lose: Caller) -> None:
    send, receive = open_channel[int](0)
    with trio.fail_after(PATIENCE):
        await lose(list, receive)
        with pytest.raises(trio.BrokenResourceError):
            await send.send(1)


async def test_move_that_is_still_there_closes_nothing() -> None:
    send, receive = open_channel[int](1)
    moved = send.move()
    await send.send(1)
    assert await receive.receive() == 1
    del moved
    with pytest.raises(trio.EndOfChannel):
        await receive.receive()


def test_move_that_outlives_its_run() -> None:
    async def move() -> Any:
        send, _ = open_channel[int](1)
        return send.move()

    moved = trio.run(move)
    del moved
