"""Channels between tasks. What Trio's memory channels promise is tried with both."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import assert_checkpoints, assert_no_checkpoints, wait_all_tasks_blocked

from trio_offload import ReceiveChannel, SendChannel, open_channel
from trio_offload._sync import turns

Open = Callable[..., Any]


@pytest.fixture(params=["trio", "trio_offload"])
def open_any(request: pytest.FixtureRequest) -> Open:
    return trio.open_memory_channel if request.param == "trio" else open_channel


# --- the meaning of Trio's memory channels


async def test_items_come_in_order(open_any: Open) -> None:
    send, receive = open_any(2)
    async with trio.open_nursery() as nursery:

        async def produce() -> None:
            async with send:
                for number in range(10):
                    await send.send(number)

        nursery.start_soon(produce)
        assert [number async for number in receive] == list(range(10))
    with pytest.raises(trio.EndOfChannel):
        await receive.receive()


async def test_rendezvous(open_any: Open) -> None:
    send, receive = open_any(0)
    with pytest.raises(trio.WouldBlock):
        send.send_nowait(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send.send, 1)
        await wait_all_tasks_blocked()
        assert send.statistics().tasks_waiting_send == 1
        assert receive.receive_nowait() == 1
        nursery.start_soon(send.send, 2)
        assert await receive.receive() == 2
    with pytest.raises(trio.WouldBlock):
        receive.receive_nowait()


async def test_nowait_and_full_buffer(open_any: Open) -> None:
    send, receive = open_any(2)
    send.send_nowait(1)
    send.send_nowait(2)
    with pytest.raises(trio.WouldBlock):
        send.send_nowait(3)
    assert send.statistics().current_buffer_used == receive.statistics().current_buffer_used == 2
    assert [receive.receive_nowait(), receive.receive_nowait()] == [1, 2]


async def test_unbounded_buffer(open_any: Open) -> None:
    send, receive = open_any(math.inf)
    for number in range(1000):
        send.send_nowait(number)
    send.close()
    assert [number async for number in receive] == list(range(1000))


async def test_each_wait_is_a_checkpoint(open_any: Open) -> None:
    send, receive = open_any(1)
    with assert_checkpoints():
        await send.send(1)
    with assert_checkpoints():
        await receive.receive()
    with assert_no_checkpoints():
        send.send_nowait(2)
        receive.receive_nowait()
        send.close()
        receive.close()
    with assert_checkpoints():
        await send.aclose()
    with assert_checkpoints():
        await receive.aclose()


async def test_other_tasks_run_at_least_each_millisecond(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations that need not wait let them run after 64 of them, or after a millisecond."""
    now = 0.0
    monkeypatch.setattr(turns, "perf_counter", lambda: now)
    send, receive = open_channel[int](1000)
    ran = 0

    async def other() -> None:
        nonlocal ran
        while True:
            await trio.lowlevel.checkpoint()
            ran += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for number in range(640):
            await send.send(number)
        assert 8 <= ran <= 12
        ran = 0
        assert [await receive.receive() for _ in range(640)] == [*range(640)]
        assert 8 <= ran <= 12
        ran = 0
        for number in range(100):
            now += 0.001
            await send.send(number)
            now += 0.001
            await receive.receive()
        assert ran >= 197
        nursery.cancel_scope.cancel()


async def test_each_operation_is_a_cancellation_point() -> None:
    send, receive = open_channel[int](1000)
    with trio.CancelScope() as scope:
        await send.send(1)
        await send.send(2)
        scope.cancel()
        await send.send(3)
    assert scope.cancelled_caught
    with trio.CancelScope() as scope:
        assert await receive.receive() == 1
        scope.cancel()
        await receive.receive()
    assert scope.cancelled_caught
    assert receive.receive_nowait() == 2
    with pytest.raises(trio.WouldBlock):
        receive.receive_nowait()


async def test_cancelled_send_has_sent_nothing(open_any: Open) -> None:
    send, receive = open_any(1)
    await send.send(1)
    with trio.move_on_after(0) as scope:
        await send.send(2)
    assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send.send, 3)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert send.statistics().tasks_waiting_send == 0
    assert await receive.receive() == 1
    with pytest.raises(trio.WouldBlock):
        receive.receive_nowait()


async def test_cancelled_receive_takes_nothing(open_any: Open) -> None:
    send, receive = open_any(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive.receive)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    send.send_nowait(1)
    with trio.move_on_after(0) as scope:
        await receive.receive()
    assert scope.cancelled_caught
    assert receive.receive_nowait() == 1


async def test_item_and_cancellation_in_one_tick(open_any: Open) -> None:
    """Whichever comes first counts: an item that was handed to a waiting task is received."""
    send, receive = open_any(1)
    received = []

    async def consume() -> None:
        received.append(await receive.receive())

    for cancels_first in (False, True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(consume)
            await wait_all_tasks_blocked()
            if cancels_first:
                nursery.cancel_scope.cancel()
            send.send_nowait(cancels_first)
            nursery.cancel_scope.cancel()
        if cancels_first:
            assert receive.receive_nowait()
    assert received == [False]


async def test_receivers_are_served_in_turn(open_any: Open) -> None:
    send, receive = open_any(0)
    served = []

    async def consume(name: str) -> None:
        served.append((name, await receive.receive()))

    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(consume, name)
            await wait_all_tasks_blocked()
        for number in range(3):
            send.send_nowait(number)
    assert sorted(served) == [("a", 0), ("b", 1), ("c", 2)]


async def test_clones(open_any: Open) -> None:
    send, receive = open_any(5)
    other_send, other_receive = send.clone(), receive.clone()
    assert (send.statistics().open_send_channels, send.statistics().open_receive_channels) == (2, 2)
    send.send_nowait(1)
    other_send.send_nowait(2)
    send.close()
    assert other_receive.receive_nowait() == 1
    other_send.close()
    receive.close()
    assert other_receive.receive_nowait() == 2
    with pytest.raises(trio.EndOfChannel):
        other_receive.receive_nowait()
    for end in (send, receive):
        with pytest.raises(trio.ClosedResourceError):
            end.clone()


async def test_closed_ends_refuse(open_any: Open) -> None:
    send, receive = open_any(5)
    with send, receive:
        pass
    for operation in (send.send_nowait, send.send):
        with pytest.raises(trio.ClosedResourceError):
            if (awaitable := operation(1)) is not None:
                await awaitable
    with pytest.raises(trio.ClosedResourceError):
        receive.receive_nowait()
    with pytest.raises(trio.ClosedResourceError):
        await receive.receive()
    send.close()
    receive.close()


async def test_close_wakes_the_tasks_of_the_end(open_any: Open) -> None:
    send, receive = open_any(0)

    async def expect(error: type[Exception], method: Any, *args: Any) -> None:
        with pytest.raises(error):
            await method(*args)

    async with trio.open_nursery() as nursery:
        other = receive.clone()
        nursery.start_soon(expect, trio.ClosedResourceError, other.receive)
        await wait_all_tasks_blocked()
        other.close()
        nursery.start_soon(expect, trio.EndOfChannel, receive.receive)
        await wait_all_tasks_blocked()
        send.close()

    send, receive = open_any(0)
    async with trio.open_nursery() as nursery:
        other = send.clone()
        nursery.start_soon(expect, trio.ClosedResourceError, other.send, 1)
        await wait_all_tasks_blocked()
        other.close()
        nursery.start_soon(expect, trio.BrokenResourceError, send.send, 1)
        await wait_all_tasks_blocked()
        receive.close()
    with pytest.raises(trio.BrokenResourceError):
        send.send_nowait(2)


async def test_last_receiver_drops_the_buffer(open_any: Open) -> None:
    send, receive = open_any(5)
    send.send_nowait(1)
    receive.close()
    assert send.statistics().current_buffer_used == 0
    with pytest.raises(trio.BrokenResourceError):
        await send.send(2)


@pytest.mark.parametrize(("size", "error"), [(-1, ValueError), (1.5, TypeError), ("1", TypeError)])
async def test_wrong_buffer_size(open_any: Open, size: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="max_buffer_size"):
        open_any(size)


async def test_open_channel_is_subscriptable(open_any: Open) -> None:
    send, receive = open_any[int](1)  # type: ignore[index]
    send.send_nowait(1)
    assert receive.receive_nowait() == 1


# --- what ours promise beyond that


async def test_items_are_pickled_by_send() -> None:
    send, receive = open_channel[list[int]](5)
    item = [1]
    await send.send(item)
    item.append(2)
    assert await receive.receive() == [1]
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        await open_channel[Any](5)[0].send(trio.lowlevel.current_task())


async def test_buffers_are_copied_by_send() -> None:
    np = pytest.importorskip("numpy")
    send, receive = open_channel[Any](5)
    array, text = np.zeros(100_000), bytearray(500_000)
    await send.send((array, text, b"x" * 500_000))
    array[0], text[0] = 1, 1
    received = await receive.receive()
    assert (received[0][0], received[1][0], len(received[2])) == (0, 0, 500_000)
    received[0][0] = 2  # it may be changed


async def test_bytes_are_bounded() -> None:
    send, receive = open_channel[bytes](math.inf, 1000)
    send.send_nowait(bytes(5000))  # alone it passes
    with pytest.raises(trio.WouldBlock):
        send.send_nowait(b"")
    statistics = send.statistics()
    assert statistics.max_buffer_bytes == 1000
    assert 5000 < statistics.current_buffer_bytes < 5100
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send.send, b"next")
        await wait_all_tasks_blocked()
        assert len(await receive.receive()) == 5000
    assert await receive.receive() == b"next"
    assert receive.statistics().current_buffer_bytes == 0


async def test_many_at_once() -> None:
    send, receive = open_channel[int](3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send.send_many, range(10))
        await wait_all_tasks_blocked()
        assert await receive.receive_many(2) == [0, 1]
        assert await receive.receive_many(100) == list(range(2, 10))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send.send_many, range(10))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert await receive.receive_many(100) == [0, 1, 2]
    with assert_checkpoints():
        await send.send_many([])
    with pytest.raises(ValueError, match="max_items must be positive, got 0"):
        await receive.receive_many(0)


class Unloadable:
    def __reduce__(self) -> Any:
        return _fail, ()


def _fail() -> None:
    raise LookupError("not today")


async def test_unpickling_raises_in_the_receiver() -> None:
    send, receive = open_channel[Any](5)
    await send.send(Unloadable())
    await send.send(1)
    with pytest.raises(LookupError, match="not today"):
        await receive.receive()
    assert await receive.receive() == 1


async def test_ends_are_pickled_for_jobs_only() -> None:
    send, receive = open_channel[Any](5)
    for end in (send, receive):
        for refused in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="pass it as an argument of a job"):
                refused(end)


async def test_channel_in_a_channel() -> None:
    """A clone is pinned while it lies in the buffer, and belongs to the task that takes it."""
    outer_send, outer_receive = open_channel[Any](5)
    send, receive = open_channel[int](5)
    await outer_send.send({"answers": send})
    assert receive.statistics().open_send_channels == 2
    send.close()
    taken = (await outer_receive.receive())["answers"]
    assert isinstance(taken, SendChannel)
    assert receive.statistics().open_send_channels == 1
    await taken.send(7)
    taken.close()
    assert [number async for number in receive] == [7]

    await outer_send.send(receive)
    receive.close()
    with await outer_receive.receive() as other:
        assert isinstance(other, ReceiveChannel)


async def test_dropped_items_free_their_handles() -> None:
    outer_send, outer_receive = open_channel[Any](1)
    send, receive = open_channel[int](5)
    await outer_send.send(send)
    with pytest.raises(trio.WouldBlock):
        outer_send.send_nowait(send)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outer_send.send, send)
        await wait_all_tasks_blocked()
        assert receive.statistics().open_send_channels == 3
        nursery.cancel_scope.cancel()
    assert receive.statistics().open_send_channels == 2
    outer_receive.close()
    assert receive.statistics().open_send_channels == 1
    with pytest.raises(trio.BrokenResourceError):
        await outer_send.send(send)
    assert receive.statistics().open_send_channels == 1


def test_channel_belongs_to_one_run() -> None:
    async def use(channel: SendChannel[int]) -> None:
        channel.send_nowait(1)

    send, _ = open_channel[int](5)
    trio.run(use, send)
    with pytest.raises(RuntimeError, match=r"belongs to another trio\.run"):
        trio.run(use, send)
    with pytest.raises(RuntimeError, match=r"belongs to another trio\.run"):
        trio.run(use, send.clone())
    send.close()


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="on_death must be one of 'raise', 'ignore', got 'x'"):
        open_channel(1, on_death="x")
    with pytest.raises(ValueError, match="max_buffer_bytes must be more than zero bytes"):
        open_channel(1, 0)
