"""Collaboration with fakes: the warning that a full window waits for one item."""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from fakes import Plan, pass_gate
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_offload
from trio_offload import _clock
from trio_offload._map import pace, stall


@pytest.fixture(autouse=True)
def _machine_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's clock is Trio's."""
    monkeypatch.setattr(_clock, "sleep", trio.sleep)


async def one_by_one(items: Any) -> AsyncIterator[Any]:
    for item in items:
        yield item


def warnings_in(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if "fill the window" in record.getMessage()]


def names() -> Any:
    return (f"file {number}" for number in itertools.count())


def open_gates(plan: Plan, *but: int) -> None:
    for number in range(200):
        if number not in but:
            plan.gate(f"file {number}").set()


@pytest.mark.parametrize("is_async", [False, True], ids=["iterable", "async iterable"])
async def test_it_names_the_item_once(
    plan: Plan, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, is_async: bool
) -> None:
    open_gates(plan, 2, 50)
    source = one_by_one(names()) if is_async else names()
    async with trio_offload.map(pass_gate, source, workers=3, window=6) as results:
        for _ in range(2):
            await results.__anext__()
        for number in (2, 50):
            with trio.move_on_after(60):
                async for result in results:
                    assert result != f"file {number}"
            plan.gate(f"file {number}").set()
    (warning,) = warnings_in(caplog)
    assert warning == (
        "map of fakes.pass_gate: 2 of 3 workers are idle. Item 2 ('file 2') has taken more than 5 seconds, and the items "
        "behind fill the window (6 items). Pass ordered=False, or a larger window"
    )
    assert caplog.records[0].levelno == logging.WARNING
    assert caplog.records[0].name == "trio_offload"


async def test_a_chunk_is_named_by_its_items(
    plan: Plan, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    open_gates(plan, 3)
    async with trio_offload.map(pass_gate, names(), workers=2, window=8, chunk_size=2) as results:
        with trio.move_on_after(60):
            async for _ in results:
                pass
    (warning,) = warnings_in(caplog)
    assert "1 of 2 workers is idle. Items 2 to 3, one chunk, have taken" in warning


@pytest.mark.parametrize(
    ("seconds", "options", "why"),
    [
        (4, {}, "the item is quick enough"),
        (60, {"ordered": False}, "the others go on"),
        (60, {"window": 1000}, "the window has room"),
        (60, {"workers": 1}, "all workers are busy"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_it_is_silent(
    plan: Plan, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, seconds: float, options: Any, why: str
) -> None:
    open_gates(plan, 2)
    items = names() if "window" not in options else [f"file {number}" for number in range(100)]
    async with trio_offload.map(pass_gate, items, **{"workers": 3, "window": 6, **options}) as results:
        with trio.move_on_after(seconds):
            async for _ in results:
                await trio.sleep(0.01)
        plan.gate("file 2").set()
    assert warnings_in(caplog) == [], why


async def test_a_slow_consumer_is_no_slow_item(
    plan: Plan, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    open_gates(plan)
    async with trio_offload.map(pass_gate, names(), workers=3, window=6) as results:
        for _ in range(5):
            await results.__anext__()
            await trio.sleep(30)
    assert warnings_in(caplog) == []


async def test_different_slow_items_are_no_stall(
    plan: Plan, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """At each look the window is full, and waits for another item."""
    async with trio_offload.map(pass_gate, range(100), workers=3, window=6) as results, trio.open_nursery() as nursery:

        async def open_slowly() -> None:
            for first in range(0, 100, 6):
                for number in (*range(first + 1, first + 6), first):
                    await trio.sleep(0.7)
                    plan.gate(number).set()

        nursery.start_soon(open_slowly)
        assert [result async for result in results] == list(range(100))
    assert warnings_in(caplog) == []


async def test_the_watch_begins_with_a_full_window(
    plan: Plan, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other map pays for it."""
    watched = []
    monkeypatch.setattr(stall, "_find_slow_chunk", watched.append)
    plan.gate(0).set()
    for options in ({"window": 1000}, {"ordered": False, "window": 2}):
        async with trio_offload.map(pass_gate, range(5), workers=2, **options) as results:  # type: ignore[arg-type]
            assert await results.__anext__() == 0
            await wait_all_tasks_blocked()
            await trio.sleep(60)
    assert not watched
    async with trio_offload.map(pass_gate, range(5), workers=2, window=2):
        await wait_all_tasks_blocked()
        await trio.sleep(60)
        assert watched


async def test_the_consumer_takes_its_time_while_an_item_does(
    plan: Plan, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    open_gates(plan, 2)
    async with trio_offload.map(pass_gate, names(), workers=3, window=6) as results:
        await results.__anext__()
        await results.__anext__()
        await trio.sleep(60)
    assert warnings_in(caplog) == []


async def test_a_full_window_of_slow_items_keeps_all_busy(
    plan: Plan, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the watch has begun."""
    # The quick items before them would let one worker have all.
    monkeypatch.setattr(pace, "MAX_IN_FLIGHT", 1)
    open_gates(plan, 0, 3, 4, 5)
    async with trio_offload.map(pass_gate, names(), workers=3, window=3) as results:
        await trio.sleep(1)
        plan.gate("file 0").set()
        with trio.move_on_after(60):
            async for _ in results:
                pass
        assert plan.running == 3
    assert warnings_in(caplog) == []


async def test_a_slow_source_is_no_slow_item(
    plan: Plan, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """After the watch has begun."""
    open_gates(plan, 0, 6)

    async def items() -> AsyncIterator[str]:
        for number in range(7):
            yield f"file {number}"
        await trio.sleep_forever()

    async with trio_offload.map(pass_gate, items(), workers=3, window=6) as results:
        await trio.sleep(1)
        plan.gate("file 0").set()
        with trio.move_on_after(60):
            async for _ in results:
                pass
    assert warnings_in(caplog) == []
