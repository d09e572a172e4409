"""What a lane of the soak does, one scene after the other: calls, maps, contexts of its own; and what may come of it."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import attrs
import ledger
import marked_jobs
import trio
import work
from ledger import Writer
from marked_jobs import marked, started_at

import trio_offload
from trio_offload import (
    BrokenWorkerError,
    WorkerContext,
    WorkerMemoryError,
    WorkerStartError,
    WorkerTimeoutError,
    WorkerType,
)

_DYING: Final = 2.0  # seconds
_SCENE: Final = 5.0  # seconds
RunSync: TypeAlias = Callable[..., Awaitable[Any]]


@attrs.define
class Lane:
    """One of the tasks that make calls."""

    rng: random.Random
    writer: Writer
    folder: Path
    types: list[WorkerType]
    # What it does now, and when something came of it last; for the watchdog, which may cancel it.
    scene: str = ""
    moved: float = attrs.field(factory=time.monotonic)
    task: trio.lowlevel.Task | None = None
    token: trio.lowlevel.TrioToken | None = None
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    # When the scene is to come to its end.
    until: float = 0.0

    async def run(self, until: float) -> None:
        self.task, self.token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()
        while time.monotonic() < until:
            (scene,) = self.rng.choices(list(_SCENES), list(_SCENES.values()))
            self.scene, self.moved = scene.__name__, time.monotonic()
            self.until = min(until, self.moved + _SCENE)
            with trio.CancelScope() as self.scope:
                await scene(self)
        self.scene = ""

    @property
    def goes_on(self) -> bool:
        """Whether there is time for more."""
        return time.monotonic() < self.until

    def ended(self, number: int, how: str) -> None:
        """Write down how a call ended."""
        self.moved = time.monotonic()
        self.writer.ended(number, how)

    def died(self, number: int, how: str, error: BrokenWorkerError, *, expected: bool = False) -> None:
        """Write down that a worker died."""
        self.moved = time.monotonic()
        self.writer.died(number, how, error, expected=expected)

    def give_up(self) -> None:
        """Cancel the scene, from another thread."""
        if self.token is not None:
            self.token.run_sync_soon(self.scope.cancel)


# --- one call ------------------------------------------------------------------------------------


async def one_call(lane: Lane, run_sync: RunSync, *, limited: bool = False, quick: bool = False) -> None:
    """Make a call, perhaps cancel it, and write down what has come of it."""
    number = lane.writer.next_call()
    job = work.quick(lane.rng) if quick else work.choose(lane.rng, number, limited=limited, folder=lane.folder)
    cancels = job.endless or lane.rng.random() < 0.05
    patience = lane.rng.choice([0, 0.001, 0.01, 0.1, 0.5]) if cancels else math.inf
    if job.family is not None:
        patience = lane.rng.uniform(0.1, 1)
    options = {lane.rng.choice(["kill_on_cancel", "cancellable"]): cancels}
    with trio.move_on_after(patience):
        try:
            value = await run_sync(marked, number, job.function, *job.arguments, **options)
        except trio.Cancelled:
            await _look_for_family(lane, number, job)
            lane.ended(number, ledger.CANCELLED)
            raise
        except BaseException as error:
            _note_error(lane, number, job, error)
            if isinstance(error, BrokenWorkerError):
                await _look_for_family(lane, number, job)
        else:
            lane.ended(number, ledger.RETURNED)
            if not job.is_right(value):
                lane.writer.complain("wrong", number, f"{job.function.__name__} returned {str(value)[:200]}")


def _note_error(lane: Lane, number: int, job: work.Job, error: BaseException, *, in_chunk: bool = False) -> None:
    """Write down what a call raised. `in_chunk`: another item may have ended the worker."""
    if isinstance(error, WorkerMemoryError) and job.grows:
        lane.ended(number, ledger.OVER_LIMIT)
    elif isinstance(error, WorkerMemoryError):
        lane.died(number, ledger.BROKEN, error, expected=True)
        lane.writer.complain("undocumented", number, f"{job.function.__name__} does not grow: {error}")
    elif isinstance(error, WorkerStartError):
        lane.died(number, ledger.NOT_RUN, error)
    elif isinstance(error, BrokenWorkerError):
        lane.died(number, ledger.BROKEN, error, expected=job.ends_worker or in_chunk)
    elif isinstance(error, WorkerTimeoutError):
        lane.ended(number, ledger.TIMED_OUT)
    else:
        lane.ended(number, ledger.RAISED)
        if not job.may_raise(error):
            lane.writer.complain("undocumented", number, f"{job.function.__name__} raised {error!r:.500}")


async def _look_for_family(lane: Lane, number: int, job: work.Job) -> None:
    """Nothing that the job has started may be there once the call has returned, but for what has only to get a processor to die."""
    if job.family is None or not job.family.exists():
        return
    lines = [tuple(map(int, line.split())) for line in job.family.read_text().splitlines()]
    # Without a start it had ended, or was killed while it started, before the job could write it down.
    started = [(pid, start) for pid, start in lines if start]
    job.family.unlink()
    with trio.move_on_after(_DYING, shield=True):
        while any(started_at(pid) == start for pid, start in started):  # noqa: ASYNC110 - there is nothing else to wait for
            await trio.sleep(0.02)
    for pid, start in started:
        if started_at(pid) == start:
            lane.writer.complain("outlived", number, f"process {pid}, which the job has started, lives")


# --- scenes --------------------------------------------------------------------------------------


async def calls_in_a_row(lane: Lane) -> None:
    for _ in range(lane.rng.randrange(1, 100)):
        if lane.goes_on:
            await one_call(lane, trio_offload.run_sync, quick=True)


async def mixed_calls(lane: Lane) -> None:
    for _ in range(lane.rng.randrange(1, 10)):
        if lane.goes_on:
            await one_call(lane, trio_offload.run_sync)


async def calls_at_once(lane: Lane) -> None:
    await _several(lane, trio_offload.run_sync)


async def context_of_its_own(lane: Lane) -> None:
    options = _options(lane)
    limited = options.get("memory_limit") is not None
    async with _opened(lane, options) as context:
        for _ in range(lane.rng.randrange(1, 4)):
            if lane.rng.random() < 0.3:
                await _prewarm(lane, context)
            if lane.rng.random() < 0.3:
                await _map(lane, context.map)
            await _several(lane, context.run_sync, limited=limited)
            context.statistics()
    if "trace" in options:
        os.unlink(options["trace"])


async def scope(lane: Lane) -> None:
    options = _options(lane)
    try:
        async with trio_offload.cache_scope(**options):
            await _several(lane, trio_offload.run_sync, limited=options.get("memory_limit") is not None)
    except BrokenWorkerError as error:
        lane.died(0, ledger.BROKEN, error)


async def map_in_the_default_context(lane: Lane) -> None:
    await _map(lane, trio_offload.map)


_SCENES: Final[dict[Callable[[Lane], Awaitable[None]], float]] = {
    calls_in_a_row: 4,
    mixed_calls: 6,
    calls_at_once: 3,
    context_of_its_own: 5,
    scope: 2,
    map_in_the_default_context: 4,
}


async def _several(lane: Lane, run_sync: RunSync, *, limited: bool = False) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(lane.rng.randrange(1, 6)):
            nursery.start_soon(_one, lane, run_sync, limited)


async def _one(lane: Lane, run_sync: RunSync, limited: bool) -> None:
    await one_call(lane, run_sync, limited=limited)


async def _prewarm(lane: Lane, context: WorkerContext) -> None:
    try:
        with trio.move_on_after(lane.rng.choice([0.01, math.inf, math.inf])):
            await context.prewarm(lane.rng.randrange(4))
    except WorkerStartError as error:
        lane.died(0, ledger.NOT_RUN, error)


@asynccontextmanager
async def _opened(lane: Lane, options: dict[str, Any]) -> AsyncIterator[WorkerContext]:
    try:
        async with trio_offload.open_worker_context(**options) as context:
            yield context
    except BrokenWorkerError as error:
        # A worker that did not leave in good order.
        lane.died(0, ledger.BROKEN, error)


def _options(lane: Lane) -> dict[str, Any]:
    """Those of a context, chosen at random."""
    rng = lane.rng
    worker_type = rng.choice(lane.types)
    options: dict[str, Any] = {
        "worker_type": worker_type,
        "idle_timeout": rng.choice([600.0, 600.0, math.inf, 0.0, 0.02, 0.5]),
        "retire": rng.choice(
            [
                bool,
                bool,
                object,
                marked_jobs.sometimes,
                trio_offload.retire_when(jobs=rng.randrange(1, 5)),
                trio_offload.retire_when(rss="400 MB", seconds=0.3),
            ]
        ),
        "report_interval": rng.choice([1.0, 0.05, math.inf]),
    }
    if rng.random() < 0.3:
        options["memory_limit"] = work.MEMORY_LIMIT
    if rng.random() < 0.1:
        options["crash_dir"] = lane.folder / "crashes"
    if rng.random() < 0.1:
        options["trace"] = lane.folder / f"trace-{rng.randrange(2**40)}"
    if worker_type is WorkerType.FORKSERVER and rng.random() < 0.5:
        options["forkserver_preload"] = ["json", "decimal"]
    return options


# --- map -----------------------------------------------------------------------------------------


async def _map(lane: Lane, map_: Callable[..., Any]) -> None:
    rng = lane.rng
    count = rng.choice([0, 1, 10, 100, 1000])
    timeout = rng.choice([None, None, None, 5.0, 0.5])
    options: dict[str, Any] = {
        "ordered": rng.random() < 0.5,
        "chunk_size": 1 if timeout is not None else rng.choice([1, 1, 7, 100, "auto"]),
        "timeout": timeout,
        "return_outcomes": rng.random() < 0.7,
        "window": rng.choice([None, None, 1, 50]),
    }
    if rng.random() < 0.3:
        options["workers"] = rng.randrange(1, 4)
    if rng.random() < 0.3:
        options["limiter"] = trio.CapacityLimiter(rng.randrange(1, 4))
    # Numbers are given as the items are read: those that never are belong to no call.
    open_items: dict[int, work.Job] = {}
    order: list[int] = []

    def items() -> Iterator[tuple[int, Callable[..., Any], tuple[Any, ...]]]:
        for _ in range(count):
            if not lane.goes_on:
                return
            number = lane.writer.next_call()
            open_items[number] = job = work.for_map(rng, hangs=timeout is not None)
            order.append(number)
            yield number, job.function, job.arguments

    async def items_by_and_by() -> AsyncIterator[tuple[int, Callable[..., Any], tuple[Any, ...]]]:
        for item in items():
            await trio.lowlevel.checkpoint()
            yield item

    source = items() if rng.random() < 0.5 else items_by_and_by()
    leaves_after = rng.randrange(count + 1) if rng.random() < 0.1 else None
    got = 0
    try:
        with trio.move_on_after(rng.uniform(0, 1) if rng.random() < 0.1 else math.inf) as cancel_scope:
            async with map_(marked_jobs.marked_item, source, **options) as results:
                async for result in results:
                    _note_item(lane, open_items, order[got] if options["ordered"] else None, result, options)
                    got += 1
                    if got == leaves_after:
                        break
        if options["return_outcomes"] and not cancel_scope.cancelled_caught and got not in (len(order), leaves_after):
            lane.writer.complain("lost", 0, f"a map of {len(order)} items gave {got} results")
    except trio.Cancelled:
        raise
    except BaseException as error:
        _judge_end_of_map(lane, list(open_items.values()), error)
    finally:
        for number in open_items:
            lane.ended(number, ledger.GIVEN_UP)


def _note_item(
    lane: Lane, open_items: dict[int, work.Job], number: int | None, result: Any, options: dict[str, Any]
) -> None:
    """Write down what has come of one item; the number is not known of an error out of order."""
    if options["return_outcomes"]:
        if hasattr(result, "error"):
            if number is not None:
                in_chunk = options["chunk_size"] != 1
                _note_error(lane, number, open_items.pop(number), result.error, in_chunk=in_chunk)
            return
        result = result.value
    told, value = result
    if number is not None and number != told:
        lane.writer.complain("wrong", number, f"in its place came the result of {told}")
    job = open_items.pop(told, None)
    if job is None:
        lane.writer.complain("wrong", told, "a second result of one item")
        return
    lane.ended(told, ledger.RETURNED)
    if not job.is_right(value):
        lane.writer.complain("wrong", told, f"{job.function.__name__} in a map returned {value!r:.200}")


def _judge_end_of_map(lane: Lane, left: list[work.Job], error: BaseException) -> None:
    """Whether one of the items without a result may have ended the map so."""
    if isinstance(error, BrokenWorkerError):
        how = ledger.NOT_RUN if isinstance(error, WorkerStartError) else ledger.BROKEN
        lane.died(0, how, error, expected=any(job.ends_worker for job in left))
    elif not isinstance(error, WorkerTimeoutError) and not any(job.may_raise(error) for job in left):
        lane.writer.complain("undocumented", 0, f"a map raised {error!r:.500}")
