"""What a program that was written for trio-parallel 1.3.0 may rely on: ``predecessor_contract.py PACKAGE``.

tests/test_interface.py runs it with both packages. What passes with one and not with the other is a difference that a
migration would meet.
"""

import contextlib
import functools
import importlib
import math
import os
import sys
import time
import warnings

import predecessor_jobs as jobs
import trio

trio_parallel = importlib.import_module(sys.argv[1])


def expect(kinds):
    @contextlib.contextmanager
    def manager():
        try:
            yield
        except kinds:
            return
        raise AssertionError(f"no {kinds}")

    return manager()


async def raised(kind, job):
    try:
        await trio_parallel.run_sync(job)
    except kind as error:
        return error
    raise AssertionError(f"no {kind}")


async def values_and_exceptions():
    assert await trio_parallel.run_sync(divmod, 7, 2) == (3, 1)
    assert await trio_parallel.run_sync(functools.partial(int, base=2), "101") == 5
    error = await raised(ValueError, jobs.raise_value_error)
    assert error.args[0] == "a message"
    assert error.args[1] != os.getpid()


async def workers_are_used_again_the_last_one_first():
    pids = {await trio_parallel.run_sync(os.getpid) for _ in range(5)}
    assert len(pids) == 1
    assert os.getpid() not in pids


async def entry_is_a_checkpoint():
    for options in ({}, {"kill_on_cancel": True}, {"cancellable": True}):
        with trio.CancelScope() as scope:
            scope.cancel()
            await trio_parallel.run_sync(bool, **options)
        assert scope.cancelled_caught


async def calls_are_cancelled_only_where_it_was_said():
    start = trio.current_time()
    with trio.move_on_after(0.1) as scope:
        await trio_parallel.run_sync(time.sleep, 0.5)
    assert trio.current_time() - start >= 0.4
    assert not scope.cancelled_caught
    for options in ({"kill_on_cancel": True}, {"cancellable": True}, {"kill_on_cancel": True, "cancellable": False}):
        with trio.move_on_after(0.5) as scope:
            await trio_parallel.run_sync(time.sleep, 1000, **options)
        assert scope.cancelled_caught


async def limiters():
    limiter = trio_parallel.current_default_worker_limiter()
    assert isinstance(limiter, trio.CapacityLimiter)
    assert limiter is trio_parallel.current_default_worker_limiter()
    assert limiter.total_tokens == (os.cpu_count() or 1)
    limiter.total_tokens = 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio_parallel.run_sync, time.sleep, 0.2)
        nursery.start_soon(trio_parallel.run_sync, time.sleep, 0.2)
        await trio.sleep(0.1)
        assert limiter.borrowed_tokens == 1
        # Another limiter does not wait for that one.
        with trio.fail_after(60):
            await trio_parallel.run_sync(bool, limiter=trio.CapacityLimiter(1))
    for other in (trio.Semaphore(1), trio.Lock(), trio.StrictFIFOLock(), contextlib.AsyncExitStack()):
        assert await trio_parallel.run_sync(abs, -5, limiter=other) == 5


async def a_broken_worker():
    error = await raised(trio_parallel.BrokenWorkerError, jobs.exit_hard)
    assert isinstance(error, RuntimeError)
    assert error.args[-1].exitcode == 7
    assert error.args[-1].pid > 0
    assert isinstance(error.args[0], str)
    assert await trio_parallel.run_sync(abs, -5) == 5


async def contexts():
    async with trio_parallel.open_worker_context(
        idle_timeout=math.inf, init=jobs.initialise, retire=jobs.after_two, grace_period=50
    ) as context:
        assert isinstance(context, trio_parallel.WorkerContext)
        assert (context.idle_timeout, context.grace_period) == (math.inf, 50)
        assert (context.init, context.retire) == (jobs.initialise, jobs.after_two)
        assert context.worker_type is trio_parallel.WorkerType.SPAWN
        with expect(AttributeError):
            context.idle_timeout = 5
        assert context.statistics() == context.statistics()
        assert (context.statistics().idle_workers, context.statistics().running_workers) == (0, 0)
        assert await context.run_sync(jobs.get_state) == ["ready"]
        assert (context.statistics().idle_workers, context.statistics().running_workers) == (1, 0)
        assert await context.run_sync(jobs.get_state) == ["ready", "used"]
        # That was its second call; the next one gets another worker.
        assert await context.run_sync(jobs.get_state) == ["ready"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(context.run_sync, time.sleep, 0.3)
            await trio.sleep(0.1)
            assert context.statistics().running_workers == 1
    with expect(trio.ClosedResourceError):
        await context.run_sync(bool)
    async with trio_parallel.open_worker_context(retire=jobs.true) as context:
        assert len({await context.run_sync(os.getpid) for _ in range(3)}) == 3


async def a_context_waits_for_its_calls():
    finished = False

    async def child():
        nonlocal finished
        await context.run_sync(time.sleep, 0.5)
        finished = True

    async with trio.open_nursery() as nursery:
        async with trio_parallel.open_worker_context() as context:
            nursery.start_soon(child)
            await trio.sleep(0.1)
        assert finished


async def a_worker_that_does_not_leave():
    start = trio.current_time()
    with expect(trio_parallel.BrokenWorkerError):
        async with trio_parallel.open_worker_context(init=jobs.sleep_at_exit, grace_period=0.5) as context:
            await context.run_sync(bool)
    assert trio.current_time() - start < 100


async def wrong_arguments():
    for options in ({"idle_timeout": [-1]}, {"init": 0}, {"retire": None}, {"grace_period": None}):
        with expect(TypeError):
            async with trio_parallel.open_worker_context(**options):
                pass
        with expect(TypeError):
            async with trio_parallel.cache_scope(**options):
                pass
        with expect(TypeError):
            trio_parallel.configure_default_context(**options)
    for options in ({"worker_type": "wrong"}, {"grace_period": -1}, {"idle_timeout": -0.1}):
        with expect(ValueError):
            async with trio_parallel.open_worker_context(**options):
                pass
        with expect(ValueError):
            async with trio_parallel.cache_scope(**options):
                pass
        with expect(ValueError):
            trio_parallel.configure_default_context(**options)
    with expect(TypeError):
        trio_parallel.WorkerContext()
    with expect(TypeError):
        await trio_parallel.run_sync()
    with expect(TypeError):
        await trio_parallel.run_sync(bool, key=1)
    # As is done: numbers of any kind, a type by its value.
    async with trio_parallel.open_worker_context(5, bool, bool, 10, trio_parallel.WorkerType("spawn")) as context:
        assert await context.run_sync(bool) is False
    for number in numbers():
        async with trio_parallel.open_worker_context(idle_timeout=number, grace_period=number) as context:
            assert await context.run_sync(bool) is False


def numbers():
    yield 20
    yield 20.5
    from fractions import Fraction

    yield Fraction(41, 2)
    try:
        import numpy
    except ImportError:
        return
    yield numpy.float32(20)
    yield numpy.float64(20)
    yield numpy.int64(20)


async def scopes():
    outside = await trio_parallel.run_sync(os.getpid)

    async def check(same, pid):
        assert (await trio_parallel.run_sync(os.getpid) == pid) is same

    async with trio_parallel.cache_scope() as nothing:
        assert nothing is None
        first = await trio_parallel.run_sync(os.getpid)
        assert first != outside
        await check(True, first)
        async with trio_parallel.cache_scope():
            await check(False, first)
            await check(False, outside)
        await check(True, first)
    await check(True, outside)
    # It follows the tree of tasks: a nursery from outside keeps its tasks outside, whoever starts them.
    async with trio.open_nursery() as nursery:
        async with trio_parallel.cache_scope():
            nursery.start_soon(check, True, outside)
    async with trio_parallel.cache_scope():
        inside = await trio_parallel.run_sync(os.getpid)
        for same, pid in ((True, inside), (False, outside)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(check, same, pid)
    async with trio_parallel.open_worker_context() as context:
        pid = await context.run_sync(os.getpid)
        async with trio_parallel.cache_scope():
            assert await context.run_sync(os.getpid) == pid


async def the_default_context():
    statistics = trio_parallel.default_context_statistics()
    assert (statistics.idle_workers, statistics.running_workers) == (0, 0)
    await trio_parallel.run_sync(bool)
    statistics = trio_parallel.default_context_statistics()
    assert (statistics.idle_workers, statistics.running_workers) == (1, 0)


async def configuring_the_default_context():
    with expect(RuntimeError):
        await trio.to_thread.run_sync(trio_parallel.configure_default_context)
    await trio_parallel.run_sync(bool)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trio_parallel.configure_default_context(retire=jobs.true)
    assert [warning.category for warning in told] == [UserWarning]
    assert await trio_parallel.run_sync(os.getpid) != await trio_parallel.run_sync(os.getpid)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trio_parallel.configure_default_context()
    assert await trio_parallel.run_sync(os.getpid) == await trio_parallel.run_sync(os.getpid)


async def pid():
    return await trio_parallel.run_sync(os.getpid)


async def several_runs_at_once():
    async def worker(number):
        for _ in range(30):
            assert await trio_parallel.run_sync(int, number, kill_on_cancel=True) == number

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(trio.to_thread.run_sync, trio.run, worker, number)


TESTS = [
    the_default_context,
    values_and_exceptions,
    workers_are_used_again_the_last_one_first,
    entry_is_a_checkpoint,
    calls_are_cancelled_only_where_it_was_said,
    limiters,
    a_broken_worker,
    contexts,
    a_context_waits_for_its_calls,
    a_worker_that_does_not_leave,
    wrong_arguments,
    scopes,
    configuring_the_default_context,
    several_runs_at_once,
]

if __name__ == "__main__":
    for test in TESTS:
        trio.run(test)
        print(test.__name__, flush=True)
    # One run after another: the workers outlive them.
    assert trio.run(pid) == trio.run(pid)
    assert trio_parallel.default_context_statistics().running_workers == 0
    print("all held")
