"""Actors, as tasks of the program and as jobs have them."""

from __future__ import annotations

import functools
import os
import pickle
import signal
import types
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import actor_jobs as jobs
import pytest
import trio
from actor_jobs import Counter
from trio.testing import wait_all_tasks_blocked

import trio_offload
from trio_offload import BrokenWorkerError, DeadlockError, WorkerContext, WorkerType, callback

Open = Callable[..., AbstractAsyncContextManager[Any]]


class Visit:
    """A callback that tells when a method is inside, and lets it go on."""

    def __init__(self) -> None:
        self.entered = trio.Event()
        self.go_on = trio.Event()
        self.handle = callback(self._wait)
        self.notice = callback(self.entered.set)

    async def _wait(self) -> None:
        self.entered.set()
        await self.go_on.wait()


async def outcome_of(afn: Callable[..., Any], *args: Any) -> str:
    """Return the name of the exception's class, and its text."""
    try:
        return repr(await afn(*args))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


async def catching(results: list[str], afn: Callable[..., Any], *args: Any) -> None:
    results.append(await outcome_of(afn, *args))


# --- methods -------------------------------------------------------------------------------------


async def test_object_keeps_its_state(open_actor: Open) -> None:
    async with open_actor(Counter, 5) as counter:
        assert await counter.add() == 6
        assert await counter.add(2, times=3) == 12
        assert await counter.pid() not in (os.getpid(), None)
        assert await counter.itself() is counter


async def test_partial_gives_keyword_arguments(open_actor: Open) -> None:
    async with open_actor(functools.partial(Counter, step=10), 1) as counter:
        assert await counter.add(2) == 21


async def test_exception_of_a_method_is_raised(open_actor: Open) -> None:
    async with open_actor(Counter) as counter:
        with pytest.raises(ValueError, match="too high"):
            await counter.fail("too high")
        with pytest.raises(TypeError, match="pickle"):
            await counter.unpicklable()
        with pytest.raises(Exception, match="pickle"):
            await counter.add(item for item in ())
        assert await counter.add() == 1


async def test_exception_of_the_class_is_raised(open_actor: Open) -> None:
    with pytest.raises(LookupError, match="no weights"):
        async with open_actor(jobs.Broken):
            pytest.fail("it was not made")


async def test_mistakes_are_noticed_before_a_call() -> None:
    with pytest.raises(TypeError, match="cls must be a class"):
        async with trio_offload.open_actor(jobs.call):
            pass
    with pytest.raises(ValueError, match="restart must be one of"):
        async with trio_offload.open_actor(Counter, restart="always"):  # type: ignore[arg-type]
            pass
    with pytest.raises(TypeError, match="unexpected keyword argument 'step'"):
        async with trio_offload.open_actor(Counter, step=2):  # type: ignore[call-arg]
            pass
    async with trio_offload.open_actor(Counter) as counter:
        for name, message in (
            ("ad", "no method 'ad'"),
            ("_private", "private"),
            ("__class__", "private"),
            ("value", "no method"),
        ):
            with pytest.raises(AttributeError, match=message):
                counter.__getattr__(name)
        with pytest.raises(TypeError, match="asynchronous"):
            _ = counter.later
        with pytest.raises(AttributeError, match=r"Counter\.value cannot be set here, .* await a method that sets it"):
            counter.value = 5
        assert counter.statistics().calls == 0


async def test_callbacks_run_in_the_task_that_calls(open_actor: Open) -> None:
    async with open_actor(Counter) as counter:
        assert await counter.say(callback(lambda number: number + 1), 4) == 5
        here = trio.lowlevel.current_task()
        parents: list[Any] = []

        async def look() -> None:
            nursery = trio.lowlevel.current_task().parent_nursery
            parents.append(None if nursery is None else nursery.parent_task)

        await counter.say(callback(look))
        assert parents == [here]


async def test_no_token_of_the_default_limiter(open_actor: Open) -> None:
    limiter = trio_offload.current_default_worker_limiter()
    async with open_actor(Counter) as counter:
        borrowed: list[float] = []
        await counter.say(callback(lambda: borrowed.append(limiter.borrowed_tokens)))
        assert borrowed == [0]


async def test_statistics() -> None:
    async with trio_offload.open_actor(Counter) as counter:
        await counter.add()
        pid = await counter.pid()
        assert counter.statistics() == trio_offload.ActorStatistics(pid, None, 0, 2, 0)
        inside: list[Any] = []
        await counter.say(callback(lambda: inside.append(counter.statistics().running)))
        assert inside == ["actor_jobs.Counter.say"]


# --- streams -------------------------------------------------------------------------------------


async def test_generator_method_streams(open_actor: Open) -> None:
    async with open_actor(Counter) as counter:
        async with counter.stream.count_to(5) as numbers:
            assert [number async for number in numbers] == [1, 2, 3, 4, 5]
        assert numbers.result == "counted"
        assert await counter.add() == 6


async def test_stream_that_is_left_frees_the_actor(open_actor: Open) -> None:
    async with open_actor(Counter) as counter:
        async with counter.stream(window=1).count_to(1_000_000) as numbers:
            assert await numbers.__anext__() == 1
        assert await counter.add(0) < 10


async def test_errors_of_generator_methods(open_actor: Open) -> None:
    async with open_actor(Counter) as counter:
        with pytest.raises(TypeError, match=r"use actor\.stream\.count_to"):
            await counter.count_to(5)
        with pytest.raises(AttributeError, match="no method"):
            counter.stream.nothing(5)
        with pytest.raises(TypeError, match="takes 2 positional arguments"):
            async with counter.stream.count_to(5, 6) as numbers:
                await numbers.__anext__()
        with pytest.raises(TypeError, match=r"or return an iterable; .*Counter\.add .* returned 1"):
            async with counter.stream.add() as numbers:
                await numbers.__anext__()


# --- turns ---------------------------------------------------------------------------------------


async def test_calls_run_in_order(open_actor: Open) -> None:
    visit = Visit()
    results: list[str] = []
    async with open_actor(Counter) as counter, trio.open_nursery() as nursery:
        nursery.start_soon(counter.say, visit.handle)
        await visit.entered.wait()
        for number in (1, 10, 100):
            nursery.start_soon(catching, results, counter.add, number)
            await wait_all_tasks_blocked()
        assert counter.statistics().pending == 3
        visit.go_on.set()
    assert results == ["1", "11", "111"]


async def test_call_that_is_cancelled_before_its_turn_never_runs(open_actor: Open) -> None:
    visit = Visit()
    async with open_actor(Counter) as counter, trio.open_nursery() as nursery:
        nursery.start_soon(counter.say, visit.handle)
        await visit.entered.wait()
        with trio.move_on_after(0.01) as scope:
            await counter.add(5)
        assert scope.cancelled_caught
        visit.go_on.set()
        assert await counter.add() == 1


async def test_already_cancelled_call_never_runs(open_actor: Open) -> None:
    async with open_actor(Counter) as counter:
        with trio.CancelScope() as scope:
            scope.cancel()
            await counter.add(5)
        assert scope.cancelled_caught
        assert await counter.add() == 1


async def test_max_pending(open_actor: Open) -> None:
    visit = Visit()
    async with open_actor(Counter, max_pending=1) as counter, trio.open_nursery() as nursery:
        nursery.start_soon(counter.say, visit.handle)
        await visit.entered.wait()
        nursery.start_soon(counter.add)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.WouldBlock, match="max_pending"):
            await counter.add(5)
        visit.go_on.set()
        while counter.statistics().calls < 2:
            await trio.lowlevel.checkpoint()
        assert await counter.add() == 2


async def test_running_method_is_told_of_a_cancellation(open_actor: Open) -> None:
    event = trio_offload.Event()
    async with open_actor(Counter) as counter:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(counter.wait, event)
                nursery.start_soon(cancel_once_waiting, event, scope)
        assert scope.cancelled_caught
        assert await counter.add(0) == -1  # the method noticed, and the object lives


async def cancel_once_waiting(event: trio_offload.Event, scope: trio.CancelScope) -> None:
    while not event.statistics().tasks_waiting:
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_grace_kills_a_deaf_method(open_actor: Open) -> None:
    async with open_actor(Counter, grace=0.01) as counter:
        with trio.CancelScope() as scope:
            await counter.wait_deaf(callback(scope.cancel))
        assert scope.cancelled_caught
        with pytest.raises(trio.BrokenResourceError, match="did not end within its grace"):
            await counter.add()


# --- deaths --------------------------------------------------------------------------------------


async def test_death_ends_all_calls(open_actor: Open) -> None:
    visit = Visit()
    results: list[str] = []
    async with open_actor(Counter) as counter, trio.open_nursery() as nursery:
        nursery.start_soon(counter.say, visit.handle)
        await visit.entered.wait()
        nursery.start_soon(catching, results, counter.die)
        await wait_all_tasks_blocked()
        nursery.start_soon(catching, results, counter.add)
        await wait_all_tasks_blocked()
        visit.go_on.set()
        while len(results) < 2:
            await trio.lowlevel.checkpoint()
        results.append(await outcome_of(counter.add))
    kinds = [result.split(": ")[0] for result in results]
    assert sorted(kinds[:2]) == ["BrokenResourceError", "BrokenWorkerError"]
    assert kinds[2] == "BrokenResourceError"
    assert all("died of SIGKILL while it ran actor_jobs.Counter.die" in result for result in results)


async def test_fresh_actor_goes_on_with_a_new_object(open_actor: Open) -> None:
    visit = Visit()
    results: list[str] = []
    async with open_actor(Counter, 5, restart="fresh") as counter, trio.open_nursery() as nursery:
        await counter.add()
        nursery.start_soon(counter.say, visit.handle)
        await visit.entered.wait()
        nursery.start_soon(catching, results, counter.die)
        await wait_all_tasks_blocked()
        nursery.start_soon(catching, results, counter.add)
        await wait_all_tasks_blocked()
        visit.go_on.set()
        while len(results) < 2:
            await trio.lowlevel.checkpoint()
        assert sorted(result.split(": ")[0] for result in results) == ["6", "BrokenWorkerError"]
        assert counter.statistics().restarts == 1


async def kill(pid: int) -> None:
    """Kill a worker, and return when it is dead."""
    descriptor = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)


async def test_death_between_two_calls(open_actor: Open) -> None:
    async with open_actor(Counter) as counter:
        await kill(await counter.pid())
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError, match="SIGKILL between two calls"):
                await counter.add()


async def test_fresh_actor_after_a_death_between_two_calls(open_actor: Open) -> None:
    async with open_actor(Counter, 5, restart="fresh") as counter:
        await kill(await counter.pid())
        assert await counter.add() == 6


# --- the end of the block ------------------------------------------------------------------------


async def test_end_waits_for_the_running_call(open_actor: Open) -> None:
    visit = Visit()
    results: list[str] = []
    async with trio.open_nursery() as nursery:
        async with open_actor(Counter) as counter:
            nursery.start_soon(catching, results, counter.say_then_add, visit.handle, 3)
            await visit.entered.wait()
            nursery.start_soon(catching, results, counter.add)
            await wait_all_tasks_blocked()
            nursery.start_soon(set_when_blocked, visit.go_on)
    assert results == ["ClosedResourceError: the actor Counter is closed: its block has ended", "3"]
    with pytest.raises(trio.ClosedResourceError):
        await counter.add()


async def set_when_blocked(event: trio.Event) -> None:
    await wait_all_tasks_blocked()
    event.set()


async def test_exception_tells_the_running_call(open_actor: Open) -> None:
    results: list[str] = []
    event = trio_offload.Event()
    async with trio.open_nursery() as nursery:
        with pytest.raises(KeyError):
            async with open_actor(Counter) as counter:
                nursery.start_soon(catching, results, counter.wait, event)
                while not event.statistics().tasks_waiting:
                    await trio.lowlevel.checkpoint()
                raise KeyError
    assert [result.split(":")[0] for result in results] == ["JobExitError"]


async def test_cancelled_block_ends_a_deaf_method(open_actor: Open) -> None:
    results: list[str] = []
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with open_actor(Counter, grace=0.01) as counter:
                nursery.start_soon(catching, results, counter.wait_deaf, callback(scope.cancel))
                await trio.sleep_forever()
        assert scope.cancelled_caught
    assert [result.split(":")[0] for result in results] == ["BrokenWorkerError"]


# --- jobs ----------------------------------------------------------------------------------------


async def test_job_calls_methods(open_actor: Open, context: WorkerContext) -> None:
    async with open_actor(Counter) as counter:
        assert await context.run_sync(jobs.call, counter, "add", 10) == 10
        assert await context.run_sync(jobs.call_with_keywords, counter) == 16
        assert await context.run_sync(jobs.add_often, counter, 3) == [17, 18, 19]
        assert await context.run_sync(jobs.call, counter, "itself") is counter
        data = b"x" * 1_000_000
        assert await context.run_sync(jobs.call, counter, "give_back", data) == data
        assert await context.run_sync(jobs.call, counter, "give_back", bytearray(data)) == data


async def test_errors_of_a_jobs_call(open_actor: Open, context: WorkerContext) -> None:
    async with open_actor(Counter) as counter:
        for call, kind, text in (
            (("fail", "no"), "ValueError", "no"),
            (("nothing",), "AttributeError", "Counter has no method 'nothing'"),
            (("_private",), "AttributeError", "'Counter' has no method '_private' for jobs"),
            (("later",), "TypeError", "Counter.later is asynchronous; methods of an actor are synchronous"),
        ):
            assert await context.run_sync(jobs.catch, counter, *call) == (kind, text)
        with pytest.raises(AttributeError, match=r"Counter\.value cannot be set from a job, .* call a method that sets it"):
            await context.run_sync(jobs.execute, counter, "it.value = 5")
        kind, text = await context.run_sync(jobs.catch, counter, "unpicklable")
        assert kind == "TypeError"
        assert "pickle" in text


async def test_handles_in_a_jobs_call(open_actor: Open, context: WorkerContext) -> None:
    lock = trio_offload.Lock()
    async with open_actor(Counter) as counter:
        assert await context.run_sync(jobs.call, counter, "say", callback(lambda number: number + 1), 4) == 5
        assert await context.run_sync(jobs.call, counter, "give_back", lock) is lock
        assert await context.run_sync(jobs.call, counter, "give_back", counter) is counter


async def test_several_jobs_share_an_actor(open_actor: Open, context: WorkerContext) -> None:
    results: list[str] = []
    async with open_actor(Counter) as counter:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(catching, results, context.run_sync, jobs.add_often, counter, 20)
            for _ in range(20):
                await counter.add()
        assert await counter.add(0) == 80


async def test_waiting_call_of_a_cancelled_job_never_runs(open_actor: Open, context: WorkerContext) -> None:
    inside, job = Visit(), Visit()
    async with open_actor(Counter) as counter, trio.open_nursery() as nursery:
        nursery.start_soon(counter.say, inside.handle)
        await inside.entered.wait()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as calls:
                calls.start_soon(context.run_sync, jobs.call_until_cancelled, job.notice, counter, "add", 5)
                while not counter.statistics().pending:
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        assert scope.cancelled_caught
        assert counter.statistics().pending == 0
        inside.go_on.set()
        assert await counter.add() == 1


async def test_running_call_of_a_cancelled_job_is_told(open_actor: Open, context: WorkerContext) -> None:
    event = trio_offload.Event()
    async with open_actor(Counter) as counter:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(context.run_sync, jobs.call, counter, "wait", event)
                nursery.start_soon(cancel_once_waiting, event, scope)
        assert scope.cancelled_caught
        assert await counter.add(0) == -1


async def test_job_gets_would_block(open_actor: Open, context: WorkerContext) -> None:
    visit = Visit()
    async with open_actor(Counter, max_pending=0) as counter, trio.open_nursery() as nursery:
        nursery.start_soon(counter.say, visit.handle)
        await visit.entered.wait()
        kind, text = await context.run_sync(jobs.catch, counter, "add")
        assert (kind, "max_pending" in text) == ("WouldBlock", True)
        visit.go_on.set()


async def test_job_hears_of_the_actors_death(open_actor: Open, context: WorkerContext) -> None:
    async with open_actor(Counter) as counter:
        for name in ("die", "add"):
            kind, text = await context.run_sync(jobs.catch, counter, name)
            assert kind == "BrokenResourceError"
            assert "died of SIGKILL while it ran actor_jobs.Counter.die" in text


async def test_job_hears_of_the_blocks_end(open_actor: Open, context: WorkerContext) -> None:
    async with open_actor(Counter) as counter:
        pass
    kind, text = await context.run_sync(jobs.catch, counter, "add")
    assert (kind, text) == ("ClosedResourceError", "the actor Counter is closed: its block has ended")


# --- jobs in threads -----------------------------------------------------------------------------


async def test_job_in_a_thread() -> None:
    in_thread = trio.to_thread.run_sync
    async with trio_offload.open_actor(Counter) as counter, trio_offload.share(jobs.Table()) as table:
        assert await in_thread(jobs.add_often, counter.handle, 3) == [1, 2, 3]
        assert await in_thread(jobs.call_with_keywords, counter.handle) == 9
        assert await in_thread(jobs.compute, counter.handle, "it.itself() is it")
        assert await in_thread(jobs.catch, counter.handle, "fail", "no") == ("ValueError", "no")
        assert (await in_thread(jobs.catch, counter.handle, "nothing"))[0] == "AttributeError"
        assert await in_thread(jobs.compute, table.handle, "(len(it.put('a', 1)), it.keys())") == (1, ["a"])
        assert await in_thread(jobs.catch, counter.handle, "die") != ("", "")
        assert (await in_thread(jobs.catch, counter.handle, "add"))[0] == "BrokenResourceError"
    async with trio_offload.open_actor(types.SimpleNamespace) as namespace:
        await in_thread(jobs.execute, namespace.handle, "it.x = 5")
        assert await namespace.get("x") == 5


# --- handles of the object -----------------------------------------------------------------------


async def test_handles_of_the_class_last(open_actor: Open) -> None:
    reports: list[Any] = []
    lock = trio_offload.Lock()
    send, receive = trio_offload.open_channel[Any](10)
    async with receive:
        async with open_actor(jobs.Keeper, lock, send.move(), callback(reports.append)) as keeper:
            await keeper.guarded(1)
            await keeper.guarded(2)
            assert not lock.locked()
        assert [value async for value in receive] == [1, 2]  # its end was closed
    assert reports == ["made", 1, 2]


async def test_lock_that_a_method_keeps_is_abandoned(open_actor: Open) -> None:
    reports: list[Any] = []
    lock = trio_offload.Lock()
    send, receive = trio_offload.open_channel[Any](10)
    async with receive, send, open_actor(jobs.Keeper, lock, send, callback(reports.append)) as keeper:
        await keeper.keep_the_lock()
        with pytest.raises(trio_offload.AbandonedLockError, match=r"Keeper\.keep_the_lock"):
            await lock.acquire()
        assert lock.recover()
        await keeper.guarded(1)  # the object and its other handles are as before
        assert not lock.locked()


async def test_fresh_object_gets_the_handles_again(open_actor: Open) -> None:
    reports: list[Any] = []
    lock = trio_offload.Lock()
    send, receive = trio_offload.open_channel[Any](10, on_death="ignore")
    arguments = (jobs.Keeper, lock, send, callback(reports.append))
    async with receive, send, open_actor(*arguments, restart="fresh") as keeper:
        with pytest.raises(BrokenWorkerError):
            await keeper.die_with_the_lock()
        with pytest.raises(trio_offload.AbandonedLockError):
            await lock.acquire()
        lock.recover()
        await keeper.guarded(1)
    assert reports == ["made", "made", 1]
    send, receive = trio_offload.open_channel[Any](10)
    async with send, receive:
        with pytest.raises(TypeError, match="each new object gets the same arguments"):
            async with open_actor(jobs.Keeper, lock, send.move(), None, restart="fresh"):
                pass


# --- where an actor may be passed ----------------------------------------------------------------


async def test_actor_passes_through_a_channel(open_actor: Open, context: WorkerContext) -> None:
    send, receive = trio_offload.open_channel[Any](1)
    async with open_actor(Counter) as counter, send, receive:
        await send.send(counter)
        assert await context.run_sync(receive_and_call, receive) == 7
        await send.send(counter)
        assert await receive.receive() is counter


def receive_and_call(receive: Any) -> Any:
    return receive.receive().add(7)


async def test_actor_and_shared_object_in_init_and_map(of_any_kind: WorkerType, open_actor: Open) -> None:
    open_context = functools.partial(trio_offload.open_worker_context, worker_type=of_any_kind)
    async with open_actor(Counter) as counter, trio_offload.share(Counter()) as shared:
        for handle in (counter, shared):
            async with open_context(init=functools.partial(jobs.remember, handle)) as context:
                assert await context.run_sync(jobs.call_remembered, "add", 3) == 3
                async with context.map(functools.partial(jobs.call, handle, "add"), [1, 10]) as sums:
                    assert max([total async for total in sums]) == 14


async def test_actor_cannot_be_pickled_or_copied() -> None:
    async with trio_offload.open_actor(Counter) as counter:
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            pickle.dumps(counter)


def test_actor_belongs_to_one_run() -> None:
    async def add(counter: Any) -> None:
        async with trio_offload.open_worker_context() as context:
            await context.run_sync(jobs.call, counter, "add")

    async def open_one() -> Any:
        async with trio_offload.open_actor(Counter) as counter:
            await add(counter)
        return counter

    counter = trio.run(open_one)
    with pytest.raises(RuntimeError, match="another run of Trio"):
        trio.run(add, counter)


# --- deadlocks -----------------------------------------------------------------------------------


async def test_method_that_calls_its_own_actor(open_actor: Open) -> None:
    async with open_actor(Counter) as counter:
        with pytest.raises(DeadlockError, match="would wait for the actor Counter"):
            await counter.call(counter, "add")
        assert await counter.add() == 1
    with pytest.raises(TypeError, match="unexpected keyword argument 'reentrant'"):
        async with open_actor(Counter, reentrant=True):
            pass


async def test_two_actors_that_call_each_other(open_actor: Open) -> None:
    async with open_actor(Counter) as first, open_actor(Counter) as second:
        with pytest.raises(DeadlockError, match="would wait for the actor Counter"):
            await first.call(second, "call", first, "add")
        assert (await first.add(), await second.add()) == (1, 1)


async def test_callback_that_calls_the_actor(open_actor: Open) -> None:
    async with open_actor(Counter) as counter:

        async def add() -> Any:
            return await counter.add()

        with pytest.raises(DeadlockError):
            await counter.say(callback(add))
        assert await counter.add() == 1


async def test_chain_of_actors_is_no_deadlock(open_actor: Open) -> None:
    async with open_actor(Counter) as first, open_actor(Counter) as second:
        assert await first.call(second, "add", 5) == 5


# --- hosted objects ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("it['a']", 1),
        ("len(it)", 2),
        ("sorted(it)", ["a", "b"]),
        ("list(reversed(it))", ["b", "a"]),
        ("'a' in it, 'c' in it", (True, False)),
        ("bool(it)", True),
        ("list(it.items())", [("a", 1), ("b", 2)]),
        ("it.get('c', 3)", 3),
        ("it | {'c': 3}", {"a": 1, "b": 2, "c": 3}),
    ],
)
async def test_expressions_of_a_hosted_dict(context: WorkerContext, expression: str, expected: object) -> None:
    async with trio_offload.open_actor(dict, {"a": 1, "b": 2}) as hosted:
        assert await context.run_sync(jobs.compute, hosted, expression) == expected


@pytest.mark.parametrize(
    ("cls", "arguments", "statement", "left"),
    [
        (dict, (), "it['a'] = 1", {"a": 1}),
        (dict, ({"a": 1},), "del it['a']", {}),
        (dict, ({"a": 1},), "it |= {'b': 2}", {"a": 1, "b": 2}),
        (list, ([1, 2],), "it[0] = 5", [5, 2]),
        (list, ([1, 2],), "it += [3]", [1, 2, 3]),
        (list, ([1, 2],), "it *= 2", [1, 2, 1, 2]),
        (list, ([1, 2],), "del it[0:1]", [2]),
        (list, ([1, 2],), "it.append(len(it))", [1, 2, 2]),
        (set, ({1, 2},), "it -= {1}", {2}),
        (set, ({1, 2},), "it |= {3} if it <= {1, 2} and it < {1, 2, 3} and not it > {1} else {4}", {1, 2, 4}),
    ],
)
async def test_statements_about_a_hosted_container(
    context: WorkerContext, cls: type, arguments: tuple[Any, ...], statement: str, left: object
) -> None:
    async with trio_offload.open_actor(cls, *arguments) as hosted:
        assert await context.run_sync(jobs.execute, hosted, statement)
        assert await hosted.copy() == left


async def test_job_has_only_the_special_methods_of_the_class(context: WorkerContext) -> None:
    names = ("__call__", "__or__", "__len__", "__lt__", "__getitem__", "__iter__")
    expression = f"[name for name in {names} if hasattr(it, name)]"
    async with trio_offload.open_actor(Counter) as counter, trio_offload.open_actor(set) as numbers:
        assert await context.run_sync(jobs.compute, counter, expression) == ["__lt__"]  # of each object
        assert await context.run_sync(jobs.compute, numbers, expression) == [
            "__or__",
            "__len__",
            "__lt__",
            "__iter__",
        ]


async def test_hosted_namespace(context: WorkerContext, open_actor: Open) -> None:
    async with open_actor(types.SimpleNamespace) as namespace:
        await context.run_sync(jobs.execute, namespace, "it.x = 5; it.y = [it.x]; del it.x")
        assert await namespace.get("y") == [5]
        with pytest.raises(AttributeError):
            await namespace.get("x")
        await namespace.set("x", 6)
        with pytest.raises(AttributeError, match=r"await set\('x', value\)"):
            namespace.x = 7
        assert await context.run_sync(jobs.compute, namespace, "it.x") == 6
        await namespace.delete("x")
        assert await context.run_sync(jobs.compute, namespace, "hasattr(it, 'x')") is False


async def test_tasks_await_special_methods_by_name() -> None:
    async with trio_offload.open_actor(dict) as hosted:
        await hosted.__setitem__("a", 1)
        assert await hosted.__getitem__("a") == 1
        assert await hosted.__len__() == 1
