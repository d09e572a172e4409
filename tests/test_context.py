"""Collaboration: contexts, limiters, scopes and the cache, with workers that are fakes in this process.

The fake keeps the contract of ``Worker``; tests/worker/test_worker.py puts both through the same suite.
"""

from __future__ import annotations

import math
import threading
import warnings
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from fakes import Plan, block, block_in_thread
from trio.testing import Sequencer, wait_all_tasks_blocked

import trio_offload
from trio_offload import WorkerContext, WorkerType, _default, cache_scope, open_worker_context, run_sync


async def test_the_last_idle_worker_is_used_first(plan: Plan) -> None:
    async with open_worker_context() as context:
        async with trio.open_nursery() as nursery:
            trio_offload.current_default_worker_limiter().total_tokens = 3
            for _ in range(3):
                nursery.start_soon(context.run_sync, block)
            await wait_all_tasks_blocked()
            assert context.statistics() == trio_offload.WorkerContextStatistics(idle_workers=0, running_workers=3)
            plan.release.set()
        assert context.statistics().idle_workers == 3
        last = list(context._cache._idle)[-1]
        await context.run_sync(bool)
        assert plan.calls[-1][0] is last
    assert len(plan.workers) == 3
    assert all(worker.state.name == "ENDED" for worker in plan.workers)


@pytest.mark.parametrize("taken", [0, 1], ids=["a token is free", "none is free"])
async def test_entry_checkpoint_cancellation_takes_nothing(plan: Plan, taken: int) -> None:
    limiter = trio.CapacityLimiter(1)
    for _ in range(taken):
        limiter.acquire_on_behalf_of_nowait(object())
    async with open_worker_context() as context:
        with trio.CancelScope() as scope:
            scope.cancel()
            await context.run_sync(bool, limiter=limiter)
        assert scope.cancelled_caught
    assert not plan.workers
    assert limiter.borrowed_tokens == taken
    assert limiter.statistics().tasks_waiting == 0


async def test_cancellation_comes_before_a_limiter_of_another_kind(plan: Plan) -> None:
    entered = 0

    @asynccontextmanager
    async def counting() -> Any:
        nonlocal entered
        entered += 1
        yield

    async with open_worker_context() as context:
        with trio.CancelScope() as scope:
            scope.cancel()
            await context.run_sync(bool, limiter=counting())
        assert scope.cancelled_caught
        assert await context.run_sync(int, "5", limiter=counting()) == 5
    assert entered == 1


@pytest.mark.parametrize("option", ["kill_on_cancel", "cancellable"])
async def test_a_call_can_be_cancelled_only_if_it_says_so(plan: Plan, option: str) -> None:
    async with open_worker_context() as context:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(context.run_sync, block)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
            assert plan.running
            plan.release.set()
        plan.release = trio.Event()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: context.run_sync(block, **{option: True}))
                await wait_all_tasks_blocked()
                scope.cancel()
        assert plan.workers[-1].killed
        assert context.statistics() == trio_offload.WorkerContextStatistics(0, 0)


async def test_retirement_sends_crossing_call_elsewhere(plan: Plan) -> None:
    async with open_worker_context() as context:
        await context.run_sync(bool)
        plan.workers[0].retired = True
        assert await context.run_sync(int, "5") == 5
        assert [call[1] for call in plan.calls] == [bool, int]
        assert len(plan.workers) == 2


async def test_workers_that_exit_at_once_are_not_replaced_forever(plan: Plan) -> None:
    plan.born_retired = True
    async with open_worker_context() as context:
        with pytest.raises(
            trio_offload.BrokenWorkerError, match=r"5 workers .* bool exited before they began it, one after the other"
        ) as told:
            await context.run_sync(bool)
        assert told.value.args[1:] == tuple(worker.process for worker in plan.workers)
        assert len(plan.workers) == 5
        assert context.statistics() == trio_offload.WorkerContextStatistics(0, 0)
        plan.born_retired = False
        assert await context.run_sync(int, "5") == 5


async def test_however_many_idle_workers_have_retired_a_call_is_run(plan: Plan) -> None:
    async with open_worker_context() as context:
        limiter = trio.CapacityLimiter(20)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(lambda: context.run_sync(block, limiter=limiter))
            await wait_all_tasks_blocked()
            plan.release.set()
        for worker in plan.workers:
            worker.retired = True
        assert await context.run_sync(int, "5") == 5
        assert len(plan.workers) == 21


async def test_cancel_between_two_workers(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    plan.born_retired = True

    def begin() -> Any:
        scope.cancel()
        return begin_fake()

    async with open_worker_context() as context:
        begin_fake = plan.begin
        monkeypatch.setattr(plan, "begin", begin)
        with trio.CancelScope() as scope:
            await context.run_sync(bool)
        assert scope.cancelled_caught
    assert len(plan.workers) == 1


async def test_a_failed_start_is_told_once_and_gives_everything_back(plan: Plan) -> None:
    plan.fail_start = trio_offload.WorkerStartError("no")
    limiter = trio.CapacityLimiter(1)
    async with open_worker_context() as context:
        for _ in range(3):
            with pytest.raises(trio_offload.WorkerStartError):
                await context.run_sync(bool, limiter=limiter)
        assert context.statistics() == trio_offload.WorkerContextStatistics(0, 0)
        assert limiter.borrowed_tokens == 0
        assert len(plan.workers) == 3


async def test_any_async_context_manager_limits(plan: Plan) -> None:
    entered: list[str] = []

    @asynccontextmanager
    async def limiter() -> Any:
        entered.append("in")
        yield
        entered.append("out")

    async with open_worker_context() as context:
        await context.run_sync(bool, limiter=limiter())
        async with trio.open_nursery() as nursery:
            semaphore = trio.Semaphore(1)
            nursery.start_soon(lambda: context.run_sync(block, limiter=semaphore))
            nursery.start_soon(lambda: context.run_sync(block, limiter=semaphore))
            await wait_all_tasks_blocked()
            assert context.statistics().running_workers == 1
            plan.release.set()
    assert entered == ["in", "out"]


async def test_the_default_limiter_is_used_and_can_be_changed(plan: Plan) -> None:
    limiter = trio_offload.current_default_worker_limiter()
    assert trio_offload.current_default_process_limiter() is limiter
    limiter.total_tokens = 2
    async with open_worker_context() as context, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(context.run_sync, block)
        await wait_all_tasks_blocked()
        assert context.statistics().running_workers == 2
        assert limiter.borrowed_tokens == 2
        plan.release.set()


async def test_a_token_is_given_back_however_the_call_ends(plan: Plan) -> None:
    limiter = trio.CapacityLimiter(1)
    async with open_worker_context() as context:
        with pytest.raises(ZeroDivisionError):
            await context.run_sync(divmod, 1, 0, limiter=limiter)
        with pytest.raises(Exception, match="pickle"):
            await context.run_sync(threading.Lock().acquire, limiter=limiter)
        plan.breaks = True
        with pytest.raises(trio_offload.BrokenWorkerError):
            await context.run_sync(bool, limiter=limiter)
    assert limiter.borrowed_tokens == 0


async def test_a_closed_context_refuses(plan: Plan) -> None:
    async with open_worker_context() as context:
        pass
    with pytest.raises(trio.ClosedResourceError):
        await context.run_sync(bool)


async def test_closing_waits_for_calls_and_refuses_new_ones_meanwhile(plan: Plan) -> None:
    order = Sequencer()
    context: WorkerContext

    async def caller(task_status: Any) -> None:
        async with order(0):
            pass
        task_status.started()
        await context.run_sync(block)
        finished.append("call")

    finished: list[str] = []
    async with trio.open_nursery() as nursery:
        async with open_worker_context() as context:
            await nursery.start(caller)
            await wait_all_tasks_blocked()

            async def late() -> None:
                await wait_all_tasks_blocked()
                with pytest.raises(trio.ClosedResourceError):
                    await context.run_sync(bool)
                plan.release.set()

            nursery.start_soon(late)
        finished.append("closed")
    assert finished == ["call", "closed"]


async def test_cache_scope_follows_the_task_tree(plan: Plan) -> None:
    async def user() -> Any:
        await run_sync(bool)
        return plan.calls[-1][0]

    outside = await user()
    async with trio.open_nursery() as outer:
        async with cache_scope():
            inside = await user()
            assert inside is not outside
            seen: list[Any] = []

            async def record() -> None:
                seen.append(await user())

            outer.start_soon(record)
            await wait_all_tasks_blocked()
            assert seen == [outside], "a task of a nursery from outside is outside, wherever it is started"
            async with trio.open_nursery() as inner:
                inner.start_soon(record)
            assert seen == [outside, inside]
            async with cache_scope():
                assert await user() not in (outside, inside)
            assert await user() is inside
    assert await user() is outside


async def test_cache_scope_leaves_explicit_contexts_alone(plan: Plan) -> None:
    async with open_worker_context() as context:
        await context.run_sync(bool)
        async with cache_scope():
            await context.run_sync(bool)
    assert len(plan.workers) == 1


async def test_the_settings_reach_the_worker_and_can_be_read(plan: Plan) -> None:
    async with open_worker_context(33, float, int, 5, WorkerType.SPAWN) as context:
        await context.run_sync(bool)
        settings = context._launcher.options
        assert (settings.idle_timeout, settings.init, settings.retire) == (33, float, int)
        assert (context.idle_timeout, context.init, context.retire, context.grace_period) == (33, float, int, 5)
        assert context.worker_type is WorkerType.SPAWN
        with pytest.raises(AttributeError):
            context.idle_timeout = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"idle_timeout": [-1]}, TypeError),
        ({"idle_timeout": True}, TypeError),
        ({"grace_period": None}, TypeError),
        ({"init": 0}, TypeError),
        ({"retire": None}, TypeError),
        ({"idle_timeout": -1}, ValueError),
        ({"idle_timeout": math.nan}, ValueError),
        ({"grace_period": -0.5}, ValueError),
        ({"worker_type": "wrong"}, ValueError),
        ({"worker_type": "forked"}, ValueError),
    ],
)
async def test_wrong_settings_are_refused_by_name(arguments: dict[str, Any], error: type[Exception]) -> None:
    (name,) = arguments
    for opener in (open_worker_context, cache_scope):
        with pytest.raises(error, match=name):
            async with opener(**arguments):
                pytest.fail("the block was entered")
    with pytest.raises(error, match=name):
        trio_offload.configure_default_context(**arguments)


async def test_replacing_a_default_context_in_use_warns(plan: Plan) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trio_offload.configure_default_context(idle_timeout=5)
    await run_sync(bool)
    with pytest.warns(UserWarning, match="configure_default_context"):
        trio_offload.configure_default_context()
    await run_sync(bool)
    assert len(plan.workers) == 2
    _default.default_context.shutdown()
    assert all(worker.state.name == "ENDED" for worker in plan.workers)


async def test_default_context_needs_main_thread_to_configure() -> None:
    with pytest.raises(RuntimeError, match="main thread"):
        await trio.to_thread.run_sync(trio_offload.configure_default_context)


def test_the_older_name_sets_the_grace_period(plan: Plan) -> None:
    assert trio_offload.atexit_shutdown_grace_period() == 30.0
    assert trio_offload.atexit_shutdown_grace_period(7.5) == 7.5
    assert trio_offload.atexit_shutdown_grace_period(-1) == 7.5
    _default.default_context._grace_period = None


def test_statistics_can_be_asked_for_outside_of_trio(plan: Plan) -> None:
    assert trio_offload.default_context_statistics() == trio_offload.WorkerContextStatistics(0, 0)


async def test_the_default_context_is_shared_by_runs_in_threads(plan: Plan) -> None:
    def elsewhere() -> Any:
        return trio.run(run_sync, int, "3")

    await run_sync(bool)
    assert await trio.to_thread.run_sync(elsewhere) == 3
    assert len(plan.workers) == 1


async def test_a_context_waits_for_a_call_in_another_thread(plan: Plan) -> None:
    entered = threading.Event()
    results: list[Any] = []

    async with trio.open_nursery() as nursery:
        async with open_worker_context() as context:

            async def elsewhere() -> Any:
                async def announce() -> None:
                    await wait_all_tasks_blocked()
                    entered.set()

                async with trio.open_nursery() as inner:
                    inner.start_soon(announce)
                    return await context.run_sync(block_in_thread)

            async def thread() -> None:
                results.append(await trio.to_thread.run_sync(trio.run, elsewhere))

            nursery.start_soon(thread)
            await trio.to_thread.run_sync(entered.wait)
            plan.thread_release.set()
        assert plan.running == 0
    assert results == ["released"]


async def test_functools_partial_and_names_in_messages(plan: Plan) -> None:
    import functools

    from trio_offload._pickling.payload import function_name

    async with open_worker_context() as context:
        assert await context.run_sync(functools.partial(int, base=2), "11") == 3
    assert function_name(functools.partial(functools.partial(int), base=2)) == "int"
    assert function_name(functools.reduce) == "_functools.reduce"
    assert function_name(threading.Lock().acquire) == "lock.acquire"
