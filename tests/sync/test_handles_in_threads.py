"""A job in a thread of Trio's does the same as in a worker: each method of each handle, and each error."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import channel_jobs
import inherited_jobs
import lock_jobs
import pytest
import trio

import trio_offload
import trio_offload_worker.handles
from trio_offload import AbandonedLockError, DeadlockError, WorkerType, open_worker_context
from trio_offload._wait_graph import WAITS
from trio_offload_worker import from_worker

TIMEOUT = 20.0  # seconds: a test that hangs fails
LOCK_STEPS = (
    ("locked",),
    ("acquire",),
    ("acquire_nowait",),
    ("acquire", 0.01),
    ("locked",),
    ("release",),
    ("release",),
    ("recover",),
)


def of_lock(cls: Callable[[], Any]) -> tuple[Any, tuple[Any, ...]]:
    return lock_jobs.do, (cls().handle, *LOCK_STEPS)


def of_rlock() -> tuple[Any, tuple[Any, ...]]:
    return lock_jobs.nested, (trio_offload.RLock().handle,)


def of_semaphore(semaphore: Any) -> tuple[Any, tuple[Any, ...]]:
    steps = [("value",), ("max_value",), ("acquire",), ("acquire_nowait",), ("acquire", 0.01), ("release",), ("release",)]
    return lock_jobs.do, (semaphore.handle, *steps, ("statistics",))


def of_limiter() -> tuple[Any, tuple[Any, ...]]:
    steps: list[tuple[Any, ...]] = [
        *(("total_tokens",), ("acquire",), ("acquire_nowait",), ("borrowed_tokens",), ("available_tokens",)),
        *(("acquire_on_behalf_of", "x"), ("acquire_on_behalf_of", "y", 0.01), ("acquire_on_behalf_of_nowait", "y")),
        *(("release_on_behalf_of", "x"), ("release_on_behalf_of", "x"), ("release",), ("release",)),
    ]
    return lock_jobs.do, (trio_offload.CapacityLimiter(2).handle, *steps)


def of_event() -> tuple[Any, tuple[Any, ...]]:
    steps: list[tuple[Any, ...]] = [("is_set",), ("wait", 0.01), ("set",), ("is_set",), ("wait",), ("clear",), ("is_set",)]
    return lock_jobs.do, (trio_offload.Event().handle, *steps, ("statistics",))


def of_barrier() -> tuple[Any, tuple[Any, ...]]:
    steps: list[tuple[Any, ...]] = [("parties",), ("n_waiting",), ("wait", 0.01), ("broken",), ("wait",), ("reset",)]
    return lock_jobs.do, (trio_offload.Barrier(2).handle, *steps, ("broken",), ("abort",), ("broken",))


def of_condition() -> tuple[Any, tuple[Any, ...]]:
    steps: list[tuple[Any, ...]] = [("notify",), ("wait",), ("acquire",), ("notify", 2), ("notify_all",), ("wait", 0.01)]
    return lock_jobs.do, (trio_offload.Condition().handle, *steps, ("locked",), ("release",), ("recover",))


def of_wait_for() -> tuple[Any, tuple[Any, ...]]:
    event = trio_offload.Event()
    event.set()
    return lock_jobs.wait_for_items, (trio_offload.Condition().handle, event.handle)


def of_channel() -> tuple[Any, tuple[Any, ...]]:
    send, receive = trio_offload.open_channel[Any](2)
    # Without ends of the program's that stay open.
    return channel_jobs.each_method, (send.handle, receive.handle)


def of_queue() -> tuple[Any, tuple[Any, ...]]:
    return channel_jobs.each_method_of_queue, (trio_offload.WorkQueue[str](2).handle,)


def of_callback() -> tuple[Any, tuple[Any, ...]]:
    return lock_jobs.call_with_lock, (trio_offload.Lock().handle, trio_offload.callback(lambda: None).handle)


CASES: dict[str, Callable[[], tuple[Any, tuple[Any, ...]]]] = {
    "lock": functools.partial(of_lock, trio_offload.Lock),
    "rlock": of_rlock,
    "semaphore": lambda: of_semaphore(trio_offload.Semaphore(2)),
    "bounded semaphore": lambda: of_semaphore(trio_offload.BoundedSemaphore(2)),
    "limiter": of_limiter,
    "event": of_event,
    "barrier": of_barrier,
    "condition": of_condition,
    "wait_for": of_wait_for,
    "queue": of_queue,
    "callback": of_callback,
}


@pytest.mark.parametrize("name", CASES)
async def test_same_as_in_a_worker(of_any_kind: WorkerType, name: str) -> None:
    with trio.fail_after(TIMEOUT):
        job, args = CASES[name]()
        in_thread = await trio.to_thread.run_sync(job, *args)
        job, args = CASES[name]()
        async with open_worker_context(worker_type=of_any_kind) as context:
            in_worker = await context.run_sync(job, *args)
    assert in_thread == in_worker
    assert len(WAITS) == 0


def use_channel(send: Any, receive: Any) -> list[Any]:
    """As :func:`channel_jobs.each_method`, without a count of the ends: a thread shares the program's."""
    found = [
        send.send_nowait(1),
        send.send(2),
        channel_jobs.outcome(send.send_nowait, 3),
        channel_jobs.outcome(send.send, 3, timeout=0.01),
        send.statistics().current_buffer_used,
        receive.receive_nowait(),
        next(receive),
        channel_jobs.outcome(receive.receive_nowait),
        channel_jobs.outcome(receive.receive, timeout=0.01),
    ]
    clone = send.clone()
    send.send_many(iter(["a", "b"]))
    with send:
        pass
    clone.close()
    found += [channel_jobs.outcome(send.send, 4), channel_jobs.outcome(clone.send_nowait, 4), receive.receive_many(5)]
    return [*found, list(receive), channel_jobs.outcome(receive.receive_many, 0)]


async def test_channel_in_a_thread(of_any_kind: WorkerType) -> None:
    with trio.fail_after(TIMEOUT):
        send, receive = trio_offload.open_channel[Any](2)
        in_thread = await trio.to_thread.run_sync(use_channel, send.handle, receive.handle)
        with pytest.raises(trio.ClosedResourceError):
            send.send_nowait(5)
        send, receive = trio_offload.open_channel[Any](2)
        async with open_worker_context(worker_type=of_any_kind) as context:
            in_worker = await context.run_sync(use_channel, send.move(), receive.handle)
    assert in_thread == in_worker


async def test_class_of_a_handle_in_a_worker(of_any_kind: WorkerType) -> None:
    """It is the class of this name in the public module."""
    names = {"CapacityLimiter": (1,), "Barrier": (1,), "Semaphore": (1,)}
    async with open_worker_context(worker_type=of_any_kind) as context:
        for name in trio_offload_worker.handles.__all__:
            cls = getattr(trio_offload_worker.handles, name)
            if name in ("Callback", "Lease", "ReceiveChannel", "SendChannel", "SharedArray"):
                continue  # they are not made by a call of the class
            handle = getattr(trio_offload, name)(*names.get(name, ())).handle
            assert await context.run_sync(lock_jobs.kind_of, handle) == f"{cls.__module__}.{name}"
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        getattr(trio_offload_worker.handles, "Nothing")  # noqa: B009
    assert {*trio_offload_worker.handles.__all__} <= {*dir(trio_offload_worker.handles)}


def wait(handle: Any, method: str) -> None:
    getattr(handle, method)()


@pytest.mark.parametrize("method", ["acquire", "wait", "receive"])
async def test_cancelled_wait_in_a_thread(method: str) -> None:
    handle: Any = {"acquire": trio_offload.Semaphore(0), "wait": trio_offload.Event()}.get(method)
    if handle is None:
        _, handle = trio_offload.open_channel[int](1)
    with trio.move_on_after(0.05) as scope:
        await trio.to_thread.run_sync(wait, handle.handle, method)
    assert scope.cancelled_caught
    assert handle.statistics().tasks_waiting == 0 if method != "receive" else True


def fails_with(lock: Any) -> list[bool]:
    """The error is of the job's class, and of the program's."""
    try:
        lock.acquire()
    except from_worker.AbandonedLockError as error:
        return [isinstance(error, AbandonedLockError), isinstance(error, trio.BrokenResourceError), error.pid is not None]
    return []


async def test_abandoned_lock_in_a_thread() -> None:
    lock = trio_offload.Lock()
    with pytest.raises(trio_offload.BrokenWorkerError):
        await trio_offload.run_sync(lock_jobs.hold, lock, "kill")
    assert await trio.to_thread.run_sync(fails_with, lock.handle) == [True, True, True]


async def test_holder_in_a_thread() -> None:
    """The task that awaits the thread holds the lock, so a callback cannot have it too."""
    lock = trio_offload.Lock()
    with trio.fail_after(TIMEOUT):
        assert await trio.to_thread.run_sync(lock_jobs.run_with_lock, lock.handle, acquire_it) == "refused"


async def acquire_it(lock: Any) -> str:
    with pytest.raises((DeadlockError, RuntimeError)):
        await lock._handle.acquire()
    return "refused"


async def test_handles_as_items_in_a_thread() -> None:
    send, receive = trio_offload.open_channel[Any](2)
    await send.send(trio_offload.Lock())
    assert await trio.to_thread.run_sync(hold_received, receive.handle)


def hold_received(receive: Any) -> bool:
    return inherited_jobs.hold(receive.receive())


async def test_block_of_the_object_itself() -> None:
    """It is refused. A job that forgot the handle would not be excluded."""
    for held in (trio_offload.Lock(), trio_offload.Condition(), trio_offload.CapacityLimiter(1)):
        with pytest.raises(TypeError, match="in a thread, `with` works with its `handle`"):
            await trio.to_thread.run_sync(lock_jobs.with_lock, held, abs, 1)


async def test_task_keeps_a_lock_of_its_thread() -> None:
    lock = trio_offload.Lock()
    await trio.to_thread.run_sync(lock_jobs.hold, lock.handle)
    assert lock.locked()
    lock.release()
    assert not lock.locked()
    assert "Lock" in repr(lock.handle)
    assert lock.handle == lock.handle
    assert {lock.handle: 1}[lock.handle] == 1
    with pytest.raises(AttributeError, match="has no 'send' in a job"):
        lock.handle.send  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(TypeError, match="not iterable"):
        iter(lock.handle)  # type: ignore[call-overload]
    assert isinstance(from_worker.EndOfChannel(), Exception)
