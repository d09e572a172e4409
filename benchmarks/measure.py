"""What a row of the table is, and how its samples become numbers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import attrs

Samples = dict[str, list[float]]
# Of each contender, at each place of the curve.
Places = dict[str, dict[int, list[float]]]


@attrs.frozen
class Settings:
    """How much is done. `full` is for numbers, `quick` shows that everything runs."""

    rounds: int
    starts: int
    calls: int
    transfer_rounds: int
    transfer_size: int
    seconds: float
    items: int
    # Of a channel or queue in a round, and acquisitions of a lock.
    messages: int
    workers: tuple[int, ...]
    waiting: tuple[int, ...]
    parked: tuple[int, ...]
    scale: str
    # Whether the peers take part. Two versions of ours are compared without them.
    peers: bool = True


FULL = Settings(
    rounds=9,
    starts=21,
    calls=400,
    transfer_rounds=7,
    transfer_size=100_000_000,
    seconds=0.7,
    items=200_000,
    messages=5_000,
    workers=(1, 2, 5, 10, 20, 50, 100, 200),
    waiting=(10, 100, 1_000, 10_000),
    parked=(10, 100, 1_000, 10_000),
    scale="full",
)
QUICK = Settings(
    rounds=2,
    starts=2,
    calls=20,
    transfer_rounds=2,
    transfer_size=5_000_000,
    seconds=0.05,
    items=500,
    messages=50,
    workers=(1, 2, 4),
    waiting=(10, 100),
    parked=(10, 100),
    scale="quick",
)


@attrs.frozen
class Goal:
    """Ours divided by the yardstick: at most `limit` where less is better, at least where more is.

    Without a yardstick the limit is one for our own figure, in the row's unit.
    """

    yardstick: str | None
    limit: float


@attrs.frozen
class Row:
    name: str
    unit: str
    better: Literal["less", "more"]
    measure: Callable[[Settings], Awaitable[Samples]]
    goals: tuple[Goal, ...] = ()
    # The contender that is ours here. A version that lacks it is measured without the row.
    ours: str = "trio-offload"


@attrs.frozen
class Curve:
    """What a call costs at several sizes. Its goal is a row of its own: ours at the last size beside ours at `from_place`."""

    name: str
    unit: str
    of_what: str
    measure: Callable[[Settings], Awaitable[Places]]
    from_place: Callable[[Settings], int]
    limit: float
    # As of a row.
    ours: str = "trio-offload"


@attrs.frozen
class Summary:
    """One contender in one row: the median of its rounds, and the quartiles, within which half of the rounds lie."""

    median: float
    low: float
    high: float
    samples: list[float]

    @classmethod
    def of(cls, samples: list[float]) -> Summary:
        if len(samples) < 2:
            return cls(samples[0], samples[0], samples[0], samples)
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, low, high, samples)


async def median_call(call: Callable[..., Awaitable[Any]], times: int, *arguments: Any) -> float:
    """Seconds that one call takes: the median of many."""
    clock = time.perf_counter
    durations = []
    for _ in range(times):
        began = clock()
        await call(*arguments)
        durations.append(clock() - began)
    return statistics.median(durations)


async def one_call(call: Callable[..., Awaitable[Any]], *arguments: Any) -> float:
    """Seconds that a single call takes. What it returns is let go afterwards."""
    began = time.perf_counter()
    returned = await call(*arguments)
    duration = time.perf_counter() - began
    del returned
    return duration
