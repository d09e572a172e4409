"""Mistakes of a caller: one sentence says what was wrong and what to do, before a worker is started."""

from __future__ import annotations

import asyncio
import builtins
import functools
import gc
import inspect
import warnings
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio

import trio_offload
from trio_offload import open_worker_context


async def asynchronous(number: int = 0) -> int:
    return number


async def asynchronous_generator() -> AsyncIterator[int]:
    yield 1


class Owner:
    async def method(self) -> None: ...


async def refused(context: trio_offload.WorkerContext, function: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(TypeError) as told:
        await context.run_sync(function, *args, **options)
    assert context.statistics().workers == ()
    return str(told.value)


@pytest.mark.parametrize("limiter", [3, "3", object(), trio.CapacityLimiter])
async def test_a_limiter_that_is_none(limiter: Any) -> None:
    async with open_worker_context() as context:
        said = await refused(context, abs, -5, limiter=limiter)
    assert said.startswith(f"limiter must be an async context manager, got {limiter!r}. ")
    assert ("trio.CapacityLimiter(3)" in said) == (limiter == 3)


@pytest.mark.parametrize("kind", list(trio_offload.WorkerType))
@pytest.mark.parametrize(
    "function",
    [
        asynchronous,
        asynchronous_generator,
        Owner().method,
        functools.partial(asynchronous, 5),
        functools.partial(functools.partial(Owner().method)),
    ],
)
async def test_an_asynchronous_function(function: Callable[..., Any], kind: trio_offload.WorkerType) -> None:
    async with open_worker_context(worker_type=kind) as context:
        for _ in range(2):
            said = await refused(context, function)
            assert said.startswith("a worker runs synchronous functions, but ")
            assert " is asynchronous. Await it in your own task" in said
            assert "(one that calls from_worker.run_async, if it must)" in said
            assert said.endswith("stream() iterates over its values") == (function is asynchronous_generator)
        with pytest.raises(TypeError, match="Await it in your own task"):
            async with context.map(function, [1, 2, 3]):
                raise AssertionError("the block was entered")


async def test_a_call_in_place_of_a_function() -> None:
    with warnings.catch_warnings():
        # No coroutine that was never awaited.
        warnings.simplefilter("error")
        async with open_worker_context() as context:
            said = await refused(context, asynchronous(5))
            assert "asynchronous() is asynchronous, and was called already" in said
            said = await refused(context, abs(-9))
            assert said.startswith("a worker needs a function and its arguments, got 9 as the function. ")
            assert "run_sync(fn, argument)" in said
        gc.collect()


@pytest.mark.parametrize("of_a_context", [False, True], ids=["run_sync", "of a context"])
async def test_keyword_arguments_of_the_function(of_a_context: bool) -> None:
    async with open_worker_context() as context:
        await refuses_unknown_keywords(context.run_sync if of_a_context else trio_offload.run_sync)


async def refuses_unknown_keywords(anything: Any) -> None:
    assert "unexpected" not in inspect.signature(anything).parameters
    with pytest.raises(TypeError, match=r"argument 'base'\. For .* write run_sync\(functools\.partial\(int, base=…\), …\)"):
        await anything(int, "101", base=2)
    with pytest.raises(TypeError, match=r"argument 'limitter'\. Did you mean 'limiter'\?"):
        await anything(abs, -5, limitter=None)


async def open_a_context() -> None:
    async with open_worker_context():
        pass


async def open_a_scope() -> None:
    async with trio_offload.cache_scope():
        pass


async def map_some() -> None:
    async with trio_offload.map(abs, [1]):
        pass


CALLS = {
    "run_sync": functools.partial(trio_offload.run_sync, abs, -5),
    "prewarm": functools.partial(trio_offload.prewarm, 1),
    "context": open_a_context,
    "scope": open_a_scope,
    "map": map_some,
}


@pytest.mark.parametrize("name", CALLS)
def test_asyncio(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        RuntimeError, match=r"must be called from Trio, but asyncio runs this task\. Start .* trio\.run\(main\)"
    ):
        asyncio.run(CALLS[name]())
    monkeypatch.setattr(builtins, "get_ipython", lambda: None, raising=False)
    with pytest.raises(RuntimeError, match="run `%autoawait trio` first"):
        asyncio.run(CALLS[name]())


@pytest.mark.parametrize("name", CALLS)
def test_no_loop_at_all(name: str) -> None:
    with pytest.raises(RuntimeError, match=r"must be called inside of trio\.run\(\)"):
        CALLS[name]().send(None)


def test_a_context_whose_run_is_over() -> None:
    async def leave() -> trio_offload.WorkerContext:
        async with open_worker_context() as context:
            await context.run_sync(abs, -5)
        return context

    context = trio.run(leave)
    with pytest.raises(trio.ClosedResourceError, match=r"its block has ended. Open it around all of its calls"):
        trio.run(context.run_sync, abs, -5)


# --- objects of Trio as arguments --------------------------------------------------------------------------------


def objects_of_trio() -> dict[str, tuple[Any, str]]:
    """Objects that pickle well, and the name of ours that does what was meant."""
    send, receive = trio.open_memory_channel[int](1)
    return {
        "Lock": (trio.Lock(), "trio_offload.Lock"),
        "StrictFIFOLock": (trio.StrictFIFOLock(), "trio_offload.Lock"),
        "Event": (trio.Event(), "trio_offload.Event"),
        "Semaphore": (trio.Semaphore(1), "trio_offload.Semaphore"),
        "CapacityLimiter": (trio.CapacityLimiter(1), "trio_offload.CapacityLimiter"),
        "Condition": (trio.Condition(), "trio_offload.Condition"),
        "MemorySendChannel": (send, "trio_offload.open_channel"),
        "MemoryReceiveChannel": (receive, "trio_offload.open_channel"),
        "CancelScope": (trio.CancelScope(), "kill_on_cancel"),
    }


@pytest.mark.parametrize("worker_type", ["spawn", "fork"])
@pytest.mark.parametrize("name", objects_of_trio())
async def test_object_of_trio_as_argument(name: str, worker_type: str) -> None:
    found, ours = objects_of_trio()[name]
    async with open_worker_context(worker_type=worker_type) as context:
        for argument in (found, ["in a list", {"of dicts": found}], functools.partial(print, found)):
            message = await refused(context, repr, argument)
            assert message.startswith(f"a trio.{name} is known to the tasks of this program only")
            assert ours in message
        with pytest.raises(TypeError, match=f"a trio.{name} is known"):
            async with context.map(repr, [found]) as results:
                [_ async for _ in results]


async def test_other_arguments_that_name_trio() -> None:
    """A class, an exception and a text are no shared objects."""
    async with open_worker_context() as context:
        assert await context.run_sync(repr, (trio.Lock, (), "Lock")) == repr((trio.Lock, (), "Lock"))
        assert await context.run_sync(repr, ["trio", "Lock", trio.TooSlowError()]) == repr(
            ["trio", "Lock", trio.TooSlowError()]
        )
