"""docs/talking.md says where a handle may be passed: each cell of its table is tried, in every kind of worker."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import passing_jobs as jobs
import pytest
import trio

import trio_offload
from trio_offload import AbandonedLockError, BrokenWorkerError, WorkerContext, WorkerType

TIMEOUT = 20.0  # seconds: a test that hangs fails
PAGE = Path(__file__).resolve().parents[2] / "docs" / "talking.md"
COLUMNS = ["argument", "item", "result", "init", "pickle"]
ENDS = "send channel, receive channel"
MOVED = "`send.move()`, `receive.move()`"
LEASE = "lease, `from_worker.job()`"
TRIO = "Trio's locks, events, channels, cancel scopes"
PASS_IT = "pass it as an argument of a job"


def rows() -> dict[str, list[str]]:
    """The rows of the table, by their first cells."""
    section = PAGE.read_text().partition("## Where a handle may be passed")[2]
    lines = re.findall(r"^\| (.*) \|$", section, re.MULTILINE)
    table = [[cell.strip() for cell in line.split(" |")] for line in lines[1:]]
    return {row[0]: [cell.lstrip("| ") for cell in row[1:]] for row in table}


def cells() -> Iterator[Any]:
    for name, row in rows().items():
        for column, cell in zip(COLUMNS, row, strict=True):
            if cell:
                yield pytest.param(name, column, cell, id=f"{name}-{column}".replace("`", ""))


@pytest.fixture
async def context(of_any_kind: WorkerType) -> AsyncIterator[WorkerContext]:
    with trio.fail_after(TIMEOUT):
        async with trio_offload.open_worker_context(worker_type=of_any_kind) as context:
            yield context


Opened = tuple[trio_offload.SendChannel[Any], trio_offload.ReceiveChannel[Any]]


def open_filled() -> Opened:
    """A channel from which, and to which, a job may go on."""
    ends = trio_offload.open_channel[Any](math.inf)
    for _ in range(20):
        ends[0].send_nowait("for a job")
    return ends


def handles(row: str) -> Iterator[Any]:
    """The objects of a row of the table."""
    if row == ENDS:
        yield from open_filled()
    elif row == MOVED:
        send, receive = open_filled()
        yield send.clone().move()
        yield receive.clone().move()
    elif row == TRIO:
        yield from (trio.Lock(), trio.StrictFIFOLock(), trio.Event(), trio.Condition(), trio.Semaphore(1))
        yield from (trio.CapacityLimiter(1), trio.CancelScope(), *trio.open_memory_channel[None](0))
    else:
        for name in re.findall(r"`(\w+)`", row):
            yield handle(name)


def handle(name: str) -> Any:
    if name == "callback":
        return trio_offload.callback(len)
    arguments: dict[str, list[Any]] = {cls: [1] for cls in ("Barrier", "BoundedSemaphore", "CapacityLimiter", "Semaphore")}
    if name == "SharedArray":
        return trio_offload.SharedArray.allocate(3)
    arguments["SharedObject"] = [[], None]
    return getattr(trio_offload, name)(*arguments.get(name, []))


def name_in_job(handle: Any) -> str:
    names = {"send_channel": "SendChannel", "receive_channel": "ReceiveChannel", "callback": "Callback", "actor": "Proxy"}
    return names.get(handle.kind) or type(handle).__name__.replace("Bounded", "")


# --- what may be passed --------------------------------------------------------------------------


async def is_an_argument(context: WorkerContext, row: str) -> None:
    for handle in handles(row):
        assert await context.run_sync(jobs.use, handle) == name_in_job(handle)
    for handle in handles(row):
        assert await context.run_sync(functools.partial(jobs.use, handle=handle)) == name_in_job(handle)
    for chunk_size in (1, 2):
        for handle in handles(row):
            count = 1 if row == MOVED else 3
            pairs = [(name_in_job(handle), number) for number in range(count)]
            async with context.starmap(
                jobs.use_item, [(handle, number) for number in range(count)], chunk_size=chunk_size
            ) as results:
                assert [result async for result in results] == pairs
        for handle in () if row == MOVED else handles(row):
            pairs = [(name_in_job(handle), number) for number in range(5)]
            function = functools.partial(jobs.use_item, handle)
            async with context.map(function, range(5), chunk_size=chunk_size, workers=1) as results:
                assert [result async for result in results] == pairs


async def is_an_item(context: WorkerContext, row: str) -> None:
    send, receive = trio_offload.open_channel[Any](math.inf)
    queue = trio_offload.WorkQueue[Any]()
    for handle in handles(row):
        send.send_nowait(handle)
        assert await context.run_sync(jobs.use_received, receive) == name_in_job(handle)
    for handle in handles(row):
        queue.put_nowait(handle)
        assert await context.run_sync(jobs.use_leased, queue) == name_in_job(handle)
    for handle in handles(row):
        send.send_nowait(handle)
        got = receive.receive_nowait()
        if row in (ENDS, MOVED):
            assert await context.run_sync(jobs.use, got) == name_in_job(handle)
        else:
            assert got is handle
    if row != MOVED:
        for handle in handles(row):
            await context.run_sync(jobs.send_on, send, handle)
            assert await context.run_sync(jobs.use_received, receive) == name_in_job(handle)


async def is_kept_by_init(context: WorkerContext, row: str) -> None:
    kind = context.worker_type
    for handle in handles(row):
        init = functools.partial(jobs.keep, handle)
        async with trio_offload.open_worker_context(init=init, worker_type=kind) as other:
            for _ in range(2):
                assert await other.run_sync(jobs.use_kept) == name_in_job(handle)


async def is_the_same_as_a_result(context: WorkerContext, row: str) -> None:
    for handle in handles(row):
        (result, nested) = await context.run_sync(jobs.give, handle)
        assert result is handle
        assert nested["again"] is handle


async def is_a_clone_as_a_result(context: WorkerContext, row: str) -> None:
    send, receive = handles(row)
    other, _ = await context.run_sync(jobs.give, send)
    send.close()
    await other.send("through the clone")
    taker, _ = await context.run_sync(jobs.give, receive)
    receive.close()
    assert [await taker.receive() for _ in range(21)][-1] == "through the clone"


# --- what may not --------------------------------------------------------------------------------


async def refusal(function: Callable[..., Awaitable[Any]], *args: Any) -> str:
    with pytest.raises(TypeError) as caught:
        await function(*args)
    return str(caught.value)


async def open_with(option: str, kind: WorkerType, handle: Any) -> None:
    options: Any = {option: functools.partial(jobs.keep, handle)}
    async with trio_offload.open_worker_context(worker_type=kind, **options) as context:
        await context.run_sync(bool)


def our_name(handle: Any) -> str:
    """What the message about an object of Trio names."""
    name = type(handle).__name__
    others = {"StrictFIFOLock": "Lock", "MemorySendChannel": "open_channel", "MemoryReceiveChannel": "open_channel"}
    return "kill_on_cancel" if name == "CancelScope" else f"trio_offload.{others.get(name, name)}"


async def is_refused_as_an_argument(context: WorkerContext, row: str) -> None:
    for handle in handles(row):
        assert our_name(handle) in await refusal(context.run_sync, jobs.use, handle)


async def is_refused_as_an_item(context: WorkerContext, row: str) -> None:
    send, _ = trio_offload.open_channel[Any](1)
    queue = trio_offload.WorkQueue[Any]()
    for handle in handles(row):
        assert our_name(handle) in await refusal(send.send, handle)
        assert our_name(handle) in await refusal(queue.put, handle)


async def leases_are_no_arguments(context: WorkerContext, row: str) -> None:
    queue = queue_of_two()
    assert "a Lease cannot be pickled" in await refusal(context.run_sync, jobs.give, await queue.get())
    async with context.map(jobs.give, [await queue.get()]) as results:
        with pytest.raises(TypeError, match="a Lease cannot be pickled"):
            await results.__anext__()


async def leases_are_no_items(context: WorkerContext, row: str) -> None:
    send, _ = trio_offload.open_channel[Any](1)
    queue = queue_of_two()
    assert "a Lease cannot be pickled" in await refusal(send.send, await queue.get())
    assert "a Lease cannot be pickled" in await context.run_sync(jobs.send_lease, queue, send)
    assert "a Job cannot be pickled" in await context.run_sync(jobs.send_job, send)


async def leases_are_no_results(context: WorkerContext, row: str) -> None:
    queue = queue_of_two()
    with pytest.warns(RuntimeWarning, match="without settling a lease"):
        assert "a Lease cannot be pickled" in await refusal(context.run_sync, jobs.lease, queue)
    assert queue.statistics().current_buffer_used == 2
    assert "a Job cannot be pickled" in await refusal(context.run_sync, jobs.job)


async def leases_are_not_copied(context: WorkerContext, row: str) -> None:
    queue = queue_of_two()
    texts = [*jobs.refusals(await queue.get()), *await context.run_sync(jobs.refusals_of_lease, queue)]
    assert all("a Lease cannot be pickled or copied" in text for text in texts)
    texts = await context.run_sync(jobs.refusals_of_job)
    assert all("a Job cannot be pickled or copied" in text for text in texts)


def queue_of_two() -> trio_offload.WorkQueue[Any]:
    queue = trio_offload.WorkQueue[Any]()
    queue.put_nowait(1)
    queue.put_nowait(2)
    return queue


async def is_not_copied(context: WorkerContext, row: str) -> None:
    for handle in handles(row):
        for text in jobs.refusals(handle):
            assert "cannot be pickled or copied" in text
            assert PASS_IT in text
        if row != MOVED:
            for text in await context.run_sync(jobs.refusals, handle):
                assert "can be pickled only by trio-offload" in text


CHECKS: dict[tuple[str, str], Any] = {
    ("argument", "yes"): is_an_argument,
    ("argument", "a clone for the call"): is_an_argument,
    ("argument", "the end itself; in a `partial` only for one call"): is_an_argument,
    ("item", "yes"): is_an_item,
    ("item", "a clone"): is_an_item,
    ("item", "the end itself"): is_an_item,
    ("result", "the same object"): is_the_same_as_a_result,
    ("result", "a clone"): is_a_clone_as_a_result,
    ("init", "yes"): is_kept_by_init,
    ("init", "a clone for the worker"): is_kept_by_init,
    ("pickle", "`TypeError`"): is_not_copied,
}
CHECKS_OF_ROW = {
    (TRIO, "argument"): is_refused_as_an_argument,
    (TRIO, "item"): is_refused_as_an_item,
    (LEASE, "argument"): leases_are_no_arguments,
    (LEASE, "item"): leases_are_no_items,
    (LEASE, "result"): leases_are_no_results,
    (LEASE, "pickle"): leases_are_not_copied,
}


def is_refused_in_init(cell: Any) -> bool:
    return cell.values[1] == "init" and "`TypeError`" in cell.values[2]


WORKING = [cell for cell in cells() if not is_refused_in_init(cell)]
REFUSED_IN_INIT = [cell for cell in cells() if is_refused_in_init(cell)]


@pytest.mark.parametrize(("row", "column", "cell"), WORKING)
async def test_cell(context: WorkerContext, row: str, column: str, cell: str) -> None:
    check = CHECKS_OF_ROW.get((row, column))
    if check is None:
        check = CHECKS[column, cell]
    else:
        assert "`TypeError`" in cell
    await check(context, row)


# The `init` of a fork is not pickled: see test_global_handle.
@pytest.mark.parametrize("kind", ["spawn", "forkserver", "loop"], indirect=True)
@pytest.mark.parametrize(("row", "column", "cell"), REFUSED_IN_INIT)
async def test_init(of_any_kind: WorkerType, row: str, column: str, cell: str) -> None:
    if row == LEASE:
        found = [(await queue_of_two().get(), "a Lease cannot be pickled")]
    elif row == TRIO:
        found = [(handle, our_name(handle)) for handle in handles(row)]
    else:
        assert row == MOVED
        found = [(handle, "each worker gets the init") for handle in handles(row)]
    assert "`TypeError`" in cell
    for handle, message in found:
        for option in ("init", "retire"):
            with trio.fail_after(TIMEOUT):
                assert message in await refusal(open_with, option, of_any_kind, handle)


async def test_moved_end_for_several_items(context: WorkerContext) -> None:
    """It is refused at once, and the end stays open."""
    send, _ = trio_offload.open_channel[int](5)
    function = functools.partial(jobs.use_item, send.move())
    for chunk_size in (1, 3):
        with pytest.raises(TypeError, match="a map calls its function for each item"):
            async with context.map(function, range(3), chunk_size=chunk_size) as results:
                await results.__anext__()
    send.send_nowait(5)


# --- init and retire ------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["init", "retire"])
async def test_default_context_takes_no_handles(option: str) -> None:
    lock = trio_offload.Lock()
    options: Any = {option: functools.partial(jobs.keep, lock)}
    try:
        trio_offload.configure_default_context(**options)
        with pytest.raises(TypeError, match="default context cannot have locks"):
            await trio_offload.run_sync(bool)
        async with trio_offload.cache_scope(init=functools.partial(jobs.keep, lock)):
            assert await trio_offload.run_sync(jobs.use_kept) == "Lock"
    finally:
        trio_offload.configure_default_context()


async def test_event_in_retire(of_any_kind: WorkerType) -> None:
    """A policy cannot talk, but it may look whether an event is set."""
    event = trio_offload.Event()
    retire = functools.partial(jobs.is_set, event)
    with trio.fail_after(TIMEOUT):
        async with trio_offload.open_worker_context(worker_type=of_any_kind, retire=retire) as context:
            first = await context.run_sync(os.getpid)
            assert await context.run_sync(os.getpid) == first
            event.set()
            # The policy is asked after the job, so this one may still get the first worker.
            await context.run_sync(os.getpid)
            assert await context.run_sync(os.getpid) != first


def opened_with(kind: WorkerType, handle: Any) -> Any:
    return trio_offload.open_worker_context(worker_type=kind, init=functools.partial(jobs.keep, handle))


@pytest.mark.parametrize("kind", ["spawn", "forkserver", "loop"], indirect=True)
async def test_channel_in_init(of_any_kind: WorkerType) -> None:
    """The clone is the worker's: it closes with the worker, or when a job closes it."""
    send, receive = trio_offload.open_channel[str](5)
    with trio.fail_after(TIMEOUT):
        async with opened_with(of_any_kind, send) as context:
            await context.prewarm(1)
            send.close()
            assert await context.run_sync(jobs.use_kept) == "SendChannel"
            assert receive.receive_nowait() == "sent by a job"
            with pytest.raises(trio.WouldBlock):
                receive.receive_nowait()
        with pytest.raises(trio.EndOfChannel):
            await receive.receive()
        send, receive = trio_offload.open_channel[str](5)
        async with opened_with(of_any_kind, send) as context:
            await context.prewarm(1)
            send.close()
            await context.run_sync(jobs.close_kept)
            assert [item async for item in receive] == ["the last one"]
            with pytest.raises(trio.ClosedResourceError):
                await context.run_sync(jobs.use_kept)
        send, receive = trio_offload.open_channel[str](5)
        async with opened_with(of_any_kind, send) as context:
            await context.prewarm(1)
            send.close()
            with pytest.raises(BrokenWorkerError):
                await context.run_sync(jobs.die_with_kept)
            assert await receive.receive() == "before the death"
            with pytest.raises(trio.BrokenResourceError, match="die_with_kept"):
                await receive.receive()


async def test_lock_in_init_belongs_to_the_call(of_any_kind: WorkerType) -> None:
    lock = trio_offload.Lock()
    with trio.fail_after(TIMEOUT):
        async with opened_with(of_any_kind, lock) as context:
            await context.run_sync(jobs.hold_kept)
            with pytest.raises(AbandonedLockError):
                await lock.acquire()
            assert lock.recover()
            assert await context.run_sync(jobs.use_kept) == "Lock"


@pytest.mark.parametrize("kind", ["spawn", "forkserver", "loop"], indirect=True)
async def test_start_that_fails_keeps_nothing(of_any_kind: WorkerType) -> None:
    send, receive = trio_offload.open_channel[str](5)
    with trio.fail_after(TIMEOUT):
        init = functools.partial(jobs.fail_with, send)
        async with trio_offload.open_worker_context(worker_type=of_any_kind, init=init) as context:
            with pytest.raises(trio_offload.WorkerStartError):
                await context.run_sync(bool)
            send.close()
            with pytest.raises(trio.EndOfChannel):
                await receive.receive()


def test_all_handles_are_in_the_table() -> None:
    named = re.findall(r"`(\w+)`", "".join(rows()))
    public = [name for name in trio_offload.__all__ if hasattr(getattr(trio_offload, name), "kind")]
    assert {*public} - {"SendChannel", "ReceiveChannel"} == {*named} - {"callback"}


async def test_global_handle(context: WorkerContext) -> None:
    """Each process has its own object: a job cannot use it as a lock by mistake."""
    with pytest.raises((TypeError, AttributeError), match=r"__enter__|needs `async with`"):
        await context.run_sync(jobs.use_global_lock)
