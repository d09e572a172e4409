"""docs/migration.md: each row of its tables is tried, in a task and in a job. Its program is run with all others of docs/."""

from __future__ import annotations

import functools
import math
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import migration_jobs as jobs
import pytest
import trio
from lock_support import held_by_another
from migration_support import Ported
from trio.testing import wait_all_tasks_blocked

import trio_offload
from trio_offload import BrokenWorkerError, WorkerContext, WorkerType, retire_when

TIMEOUT = 20.0  # seconds: a test that hangs fails
SOON = 0.01  # seconds until a wait is given up
# The other sections have tests of their own.
PORTED = Ported("Queues and pipes", "Locks and events", "Pools, processes and the rest")
ports = PORTED.ports


def test_each_row_has_a_test() -> None:
    assert sorted(PORTED.tried) == sorted(PORTED.rows())


@pytest.fixture
async def context(of_any_kind: WorkerType) -> AsyncIterator[WorkerContext]:
    with trio.fail_after(TIMEOUT):
        async with trio_offload.open_worker_context(worker_type=of_any_kind) as context:
            yield context


async def gives_up(afn: Callable[..., Awaitable[Any]], *args: Any) -> bool:
    """Return True if it takes too long, in another task."""
    given_up = False

    async def wait() -> None:
        nonlocal given_up
        try:
            with trio.fail_after(SOON):
                await afn(*args)
        except trio.TooSlowError:
            given_up = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
    return given_up


def soon(*step: Any) -> tuple[Any, ...]:
    """A step of a job that gives up."""
    return (*step, {"timeout": SOON})


# --- queues and pipes ----------------------------------------------------------------------------


@ports("Queue(n)", "put(x)", "put(x, timeout=t)", "put_nowait(x): queue.Full", "qsize(), empty(), full()")
async def test_put(context: WorkerContext) -> None:
    send, receive = trio_offload.open_channel[str](2)
    await send.send("a task's")
    assert await context.run_sync(jobs.call, send, ("send", "a job's")) == [None]
    assert (send.statistics().current_buffer_used, send.statistics().max_buffer_size) == (2, 2)
    assert await context.run_sync(jobs.used, send) == (2, 2)
    assert await gives_up(send.send, "given up")
    with pytest.raises(trio.WouldBlock):
        send.send_nowait("too much")
    assert await context.run_sync(jobs.call, send, soon("send", 3), ("send_nowait", 3)) == ["TimeoutError", "WouldBlock"]
    assert [await receive.receive(), await receive.receive()] == ["a task's", "a job's"]
    send.send_nowait("a task's")
    assert await context.run_sync(jobs.call, send, ("send_nowait", "a job's")) == [None]
    assert [receive.receive_nowait(), receive.receive_nowait()] == ["a task's", "a job's"]


@ports("Queue(n)", "get()", "get(timeout=t)", "get_nowait(): queue.Empty")
async def test_get(context: WorkerContext) -> None:
    send, receive = trio_offload.open_channel[int](math.inf)
    for number in range(4):
        send.send_nowait(number)
    assert [await receive.receive(), receive.receive_nowait()] == [0, 1]
    steps = [("receive",), ("receive_nowait",), soon("receive"), ("receive_nowait",)]
    assert await context.run_sync(jobs.call, receive, *steps) == [2, 3, "TimeoutError", "WouldBlock"]
    assert await gives_up(receive.receive)
    with pytest.raises(trio.WouldBlock):
        receive.receive_nowait()


@ports("Queue(n)", "iter(get, None)", "close()")
async def test_end_of_a_stream(context: WorkerContext) -> None:
    send, receive = trio_offload.open_channel[int](math.inf)
    async with send.clone() as other:
        await other.send(1)
    assert await context.run_sync(jobs.call, send, ("send", 2), ("close",), ("send", 3)) == [
        None,
        None,
        "ClosedResourceError",
    ]
    send.close()
    assert [number async for number in receive.clone()] == [1, 2]
    send, receive = trio_offload.open_channel[int](math.inf)
    async with send:
        await send.send_many([1, 2])
    assert await context.run_sync(jobs.iterate, receive) == [1, 2]


@ports("SimpleQueue(): put, get, empty, close")
async def test_simple_queue(context: WorkerContext) -> None:
    send, receive = trio_offload.open_channel[int](math.inf)
    await context.run_sync(jobs.call, send, *[("send", number) for number in range(100)])
    assert await context.run_sync(jobs.used, receive) == (100, math.inf)
    send.close()
    assert await context.run_sync(jobs.iterate, receive) == list(range(100))


@ports("Pipe(), Connection")
async def test_pipe(context: WorkerContext) -> None:
    to_job, in_job = trio_offload.open_channel[int](0)
    from_job, here = trio_offload.open_channel[int](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(context.run_sync, jobs.answer, in_job.move(), from_job.move())
        async with to_job:
            for number in range(5):
                await to_job.send(number)
                assert await here.receive() == number * number


@ports("JoinableQueue(n)", "put(x), get()", "task_done()", "join()")
async def test_joinable_queue(context: WorkerContext) -> None:
    queue = trio_offload.WorkQueue[str](2)
    await queue.put("a task's")
    assert await context.run_sync(jobs.call, queue, ("put", "a job's"), soon("put", "too much")) == [None, "TimeoutError"]
    assert await gives_up(queue.join)
    assert await context.run_sync(jobs.call, queue, soon("join")) == ["TimeoutError"]
    lease = await queue.get()
    assert lease.item == "a task's"
    lease.done()
    await queue.put("another")
    queue.close()
    assert await context.run_sync(jobs.finish, queue) == ["a job's", "another"]
    await queue.join()


# --- locks and events ----------------------------------------------------------------------------

LOCK = "Lock(), RLock()"


@ports(LOCK, "acquire()", "acquire(timeout=t): False", "acquire(block=False): False", "release()", "with lock:")
@pytest.mark.parametrize("make", [trio_offload.Lock, trio_offload.RLock])
async def test_lock(context: WorkerContext, make: Any) -> None:
    lock = make()
    steps: list[tuple[Any, ...]] = [("acquire",), ("release",), ("acquire_nowait",), ("release",), ("release",)]
    assert await context.run_sync(jobs.call, lock, *steps) == [None, None, None, None, "RuntimeError"]
    assert await context.run_sync(jobs.within, lock, ("locked",)) == [True]
    async with lock:
        assert await gives_up(lock.acquire)
    async with held_by_another(lock):
        steps = [soon("acquire"), ("acquire_nowait",)]
        assert await context.run_sync(jobs.call, lock, *steps) == ["TimeoutError", "WouldBlock"]
    lock.acquire_nowait()
    lock.release()
    with pytest.raises(RuntimeError):
        lock.release()
    await lock.acquire()
    lock.release()


@ports("Semaphore(n)")
@ports("BoundedSemaphore(n)", "get_value()")
@pytest.mark.parametrize("make", [trio_offload.Semaphore, trio_offload.BoundedSemaphore])
async def test_semaphore(context: WorkerContext, make: Any) -> None:
    semaphore = make(2)
    await semaphore.acquire()
    async with semaphore:
        assert semaphore.value == 0
        assert await gives_up(semaphore.acquire)
        with pytest.raises(trio.WouldBlock):
            semaphore.acquire_nowait()
        steps: list[tuple[Any, ...]] = [soon("acquire"), ("acquire_nowait",), (".value",), ("release",)]
        assert await context.run_sync(jobs.call, semaphore, *steps) == ["TimeoutError", "WouldBlock", 0, None]
    assert await context.run_sync(jobs.within, semaphore, (".value",)) == [1]
    released = await context.run_sync(jobs.call, semaphore, ("release",))
    assert released == (["ValueError"] if semaphore.max_value else [None])


@ports("Event()", "wait()", "wait(timeout=t): False", "set(), clear(), is_set()")
async def test_event(context: WorkerContext) -> None:
    event = trio_offload.Event()
    assert await gives_up(event.wait)
    assert await context.run_sync(jobs.call, event, soon("wait"), ("is_set",)) == ["TimeoutError", False]
    assert await context.run_sync(jobs.call, event, ("set",), ("is_set",), ("wait",)) == [None, True, None]
    assert event.is_set()
    await event.wait()
    assert await context.run_sync(jobs.call, event, ("clear",), ("is_set",)) == [None, False]
    assert not event.is_set()
    event.set()
    assert await context.run_sync(jobs.call, event, ("wait",)) == [None]
    event.clear()
    assert not event.is_set()


@ports("Condition(lock)", "acquire(), release(), with", "wait()", "wait_for(f)", "notify(n), notify_all()")
@pytest.mark.parametrize("make", [trio_offload.Lock, trio_offload.RLock])
async def test_condition(context: WorkerContext, make: Any) -> None:
    lock = make()
    condition, event = trio_offload.Condition(lock), trio_offload.Event()
    limiter = trio.CapacityLimiter(5)
    notified = []

    async def wait() -> None:
        async with condition:
            await condition.wait()
        notified.append("a task")

    async def wait_in_job() -> None:
        notified.append(await context.run_sync(jobs.wait_in, condition, limiter=limiter))

    async def wait_for() -> None:
        async with condition:
            assert await condition.wait_for(event.is_set)
        notified.append("predicate")

    async def wait_for_in_job() -> None:
        assert await context.run_sync(jobs.wait_for_flag, condition, event, limiter=limiter)
        notified.append("predicate")

    async def until_waiting(number: int) -> None:
        while condition.statistics().tasks_waiting < number:  # noqa: ASYNC110  # a job brings it about
            await trio.sleep(0.001)

    async with trio.open_nursery() as nursery:
        for number, afn in enumerate([wait, wait_in_job, wait_for, wait_for_in_job], 1):
            nursery.start_soon(afn)
            await until_waiting(number)
        await context.run_sync(jobs.notify, condition, 1, limiter=limiter)
        await until_waiting(3)
        async with condition:
            condition.notify(1)
        while len(notified) < 2:  # noqa: ASYNC110
            await trio.sleep(0.001)
        assert notified == ["a task", "notified"]
        async with condition:
            condition.notify_all()
        await until_waiting(2)
        event.set()
        await context.run_sync(jobs.notify_all, condition, limiter=limiter)
    assert notified[2:] == ["predicate"] * 2
    steps: list[tuple[Any, ...]] = [("acquire",), soon("wait"), ("release",), ("notify",), ("notify_all",)]
    assert await context.run_sync(jobs.call, condition, *steps) == [
        *(None, "TimeoutError", None),
        *["RuntimeError"] * 2,
    ]
    await condition.acquire()
    condition.release()


@ports("Barrier(n)")
@ports("Barrier(n, action)", "wait()", "abort(), reset()", "parties, n_waiting, broken")
async def test_barrier(context: WorkerContext) -> None:
    barrier = trio_offload.Barrier(3)
    send, receive = trio_offload.open_channel[str](math.inf)
    indices = []

    async def meet() -> None:
        index = await barrier.wait()
        if index == 0:
            await send.send("the action")
        indices.append(index)

    async def meet_in_job() -> None:
        indices.append(await context.run_sync(jobs.meet, barrier, send))

    async with trio.open_nursery() as nursery:
        for afn in (meet, meet_in_job, meet):
            nursery.start_soon(afn)
    assert sorted(indices) == [0, 1, 2]
    assert receive.statistics().current_buffer_used == 1
    assert await context.run_sync(jobs.call, barrier, (".parties",), (".n_waiting",), (".broken",)) == [3, 0, False]
    assert (barrier.parties, barrier.n_waiting, barrier.broken) == (3, 0, False)
    steps: list[tuple[Any, ...]] = [
        soon("wait"),
        (".broken",),
        ("wait",),
        ("reset",),
        (".broken",),
        ("abort",),
        (".broken",),
    ]
    assert await context.run_sync(jobs.call, barrier, *steps) == [
        *("TimeoutError", True, "BrokenBarrierError", None),
        *(False, None, True),
    ]
    barrier.reset()
    assert await gives_up(barrier.wait)
    assert barrier.broken
    barrier.abort()


# --- pools, processes and the rest ---------------------------------------------------------------

POOL = "Pool(n, initializer, initargs, maxtasksperchild=k)"


@ports(POOL, "apply(f, args, kwargs)", "apply_async(f, args)", "close(), join()", "terminate()")
async def test_pool(of_any_kind: WorkerType) -> None:
    init, retire = functools.partial(jobs.initialize, 5), retire_when(jobs=2)
    with trio.fail_after(TIMEOUT):
        async with trio_offload.open_worker_context(worker_type=of_any_kind, init=init, retire=retire) as context:
            function = functools.partial(jobs.pid_and_state, x=3)
            results = [await context.run_sync(function, 1, 2) for _ in range(4)]
            assert [result[1:] for result in results] == [([5], (1, 2), {"x": 3})] * 4
            assert len({pid for pid, *_ in results}) == 2
            limiter = trio.CapacityLimiter(2)
            send, receive = trio_offload.open_channel[int](math.inf)
            async with trio.open_nursery() as nursery:
                for number in range(5):
                    nursery.start_soon(functools.partial(context.run_sync, limiter=limiter), jobs.put, send, number)
            assert sorted(receive.receive_nowait() for _ in range(5)) == list(range(5))
            with trio.move_on_after(SOON) as scope:
                await context.run_sync(jobs.call, receive, ("receive",), kill_on_cancel=True)
            assert scope.cancelled_caught


@ports(POOL, "map(f, items), imap(f, items)", "imap_unordered(f, items)", "starmap(f, items)")
async def test_maps_of_a_pool(context: WorkerContext) -> None:
    async with context.map(abs, [-1, 2, -3], workers=2) as results:
        assert [result async for result in results] == [1, 2, 3]
    async with context.map(abs, [-1, 2, -3], ordered=False) as results:
        assert sorted([result async for result in results]) == [1, 2, 3]
    async with context.starmap(jobs.add, [(1, 2), (3, 4)]) as results:
        assert [result async for result in results] == [3, 7]


PROCESS = "Process(target=f, args=a, name=n), start()"


@ports(PROCESS, "join()", "join(timeout)", "terminate(), kill()", "pid, name, exitcode, is_alive()")
async def test_process(of_any_kind: WorkerType) -> None:
    open_process = functools.partial(trio_offload.open_process, worker_type=of_any_kind)
    async with open_process(jobs.add, 1, 2, name="adds") as process:
        assert (process.name, process.running, process.exitcode) == ("adds", True, None)
        assert process.pid
        assert await process.wait() == 3
        assert (process.running, process.exitcode) == (False, 0)
    for end in ("terminate", "kill"):
        async with open_process(jobs.call, trio_offload.Event(), ("wait",)) as process:
            with trio.move_on_after(SOON) as scope:
                await process.wait()
            assert scope.cancelled_caught
            getattr(process, end)()
            with pytest.raises(BrokenWorkerError):
                await process.wait()
        assert process.exitcode == -(signal.SIGTERM if end == "terminate" else signal.SIGKILL)
    async with open_process(jobs.exit_with, 7) as process:
        with pytest.raises(BrokenWorkerError):
            await process.wait()
    assert process.exitcode == 7


@ports("Pipe() to a process")
async def test_pipe_to_a_process(of_any_kind: WorkerType) -> None:
    async with trio_offload.open_process(jobs.double, worker_type=of_any_kind) as process:
        await process.send(4)
        assert await process.receive() == 8


@ports("Manager().Queue(), Manager().Lock() and so on")
async def test_objects_of_a_manager(context: WorkerContext) -> None:
    """They can be passed to a job that runs, through a channel."""
    send, receive = trio_offload.open_channel[Any](1)
    lock = trio_offload.Lock()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(context.run_sync, jobs.call, receive, ("receive",))
        await wait_all_tasks_blocked()
        await send.send(lock)
    await send.send(lock)
    assert await receive.receive() is lock


@ports("Lock() used by threads")
async def test_lock_in_a_thread() -> None:
    lock = trio_offload.Lock()

    def acquire() -> bool:
        async def use() -> bool:
            async with lock:
                return lock.locked()

        return trio.from_thread.run(use)

    assert await trio.to_thread.run_sync(acquire)
    assert not lock.locked()
