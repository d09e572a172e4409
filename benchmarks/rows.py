"""The rows of the table: what is measured, beside what, and what must be reached.

Every row alternates: one round of each contender, then the next round. A machine that is slow for a while is then slow
for all of them. How each is measured stands in the module that it comes from.
"""

from __future__ import annotations

from typing import TypeVar

from calls import POOL_MAP, MapRate, lists_of_map, reports_warm, throughput, warm_call
from connecting import IN_A_THREAD, round_trip
from contenders import (
    ANYIO,
    ECHO,
    OURS,
    OURS_ACTORS,
    OURS_CONNECTION,
    OURS_FORKSERVER,
    OURS_MAP,
    OURS_PROGRESS,
    OURS_SHARED,
    OURS_STREAM,
    OURS_TALKING,
    POOL,
    TRIO_PARALLEL,
    TRIO_THREAD,
    WITHOUT_REPORTS,
)
from living import MANAGER, WARM_CALL, actor_call, hosted_dict
from logs import QUEUE_HANDLER, log_records
from measure import Curve, Goal, Row
from memory import Endless, Idle
from scale import many_waiting, many_workers
from starts import (
    BARE_FORK,
    PYTHON_PROCESS,
    OneJob,
    cold_start,
    cold_start_forkserver,
    kill,
    reports_cold,
)
from streaming import MAP_IN_CHUNKS, STREAM_IMAP, stream_rate
from talkers import AIO_QUEUE, JOB_TO_JOB, MANAGER_LOCK, QUEUE, TO_JOB, TO_TASK
from talking import (
    AS_RESULT,
    ArrayThroughChannel,
    Items,
    Parked,
    callback,
    check_cancelled,
    contended_lock,
    step_of_progress,
)
from transfers import AS_ARGUMENT, MEMCPY, Transfer, shared_array

ROWS = [
    Row(
        "cold start: context opened → first result",
        "ms",
        "less",
        cold_start,
        (Goal(PYTHON_PROCESS, 0.75), Goal(TRIO_PARALLEL, 0.1)),
    ),
    Row(
        "cold start, forkserver: template up → first result",
        "ms",
        "less",
        cold_start_forkserver,
        (Goal(BARE_FORK, 2.5), Goal(TRIO_PARALLEL, 1 / 40)),
        ours=OURS_FORKSERVER,
    ),
    Row(
        "one job a worker, forkserver",
        "jobs/s",
        "more",
        OneJob(OURS_FORKSERVER, OURS, f"{TRIO_PARALLEL}, forkserver", TRIO_PARALLEL, f"{POOL}, forkserver"),
        (Goal(None, 200),),
        ours=OURS_FORKSERVER,
    ),
    Row("one job a worker, spawn", "jobs/s", "more", OneJob(OURS, TRIO_PARALLEL, POOL)),
    Row(
        "warm call of bool()",
        "µs",
        "less",
        warm_call,
        (Goal(ECHO, 1.5), Goal(TRIO_PARALLEL, 0.34), Goal(ANYIO, 0.75), Goal(TRIO_THREAD, 0.6)),
    ),
    Row("warm call, memory reported every second", "µs", "less", reports_warm, (Goal(WITHOUT_REPORTS, 1.02),)),
    Row("cold start, memory reported every second", "ms", "less", reports_cold, (Goal(WITHOUT_REPORTS, 1.02),)),
    Row("small calls, 4 tasks over 2 workers", "calls/s", "more", throughput, (Goal(TRIO_PARALLEL, 3),)),
    Row("map over 2 workers, item by item", "items/s", "more", MapRate(1), ours=OURS_MAP),
    Row("map over 2 workers, chunks of 100", "items/s", "more", MapRate(100), (Goal(POOL_MAP, 0.8),), ours=OURS_MAP),
    Row("map over 2 workers, chunks of 1,000", "items/s", "more", MapRate(1000), (Goal(POOL_MAP, 0.8),), ours=OURS_MAP),
    Row(
        "map in batches: a list, chunks of 1,000",
        "items/s",
        "more",
        lists_of_map,
        (Goal(POOL_MAP, 1.2),),
        ours=OURS_PROGRESS,
    ),
    Row("map over 2 workers, chunks as it chooses", "items/s", "more", MapRate(None), (Goal(POOL_MAP, 0.8),), ours=OURS_MAP),
    Row(
        "100 MB NumPy array → worker",
        "GB/s",
        "more",
        Transfer("array", to_worker=True),
        (Goal(MEMCPY, 0.5), Goal(TRIO_PARALLEL, 10)),
    ),
    Row(
        "100 MB NumPy array ← worker",
        "GB/s",
        "more",
        Transfer("array", to_worker=False),
        (Goal(MEMCPY, 0.5), Goal(TRIO_PARALLEL, 10)),
    ),
    Row("100 MB bytes → worker", "GB/s", "more", Transfer("bytes", to_worker=True), (Goal(TRIO_PARALLEL, 4),)),
    Row("100 MB bytes ← worker", "GB/s", "more", Transfer("bytes", to_worker=False), (Goal(TRIO_PARALLEL, 4),)),
    Row("100 MB bytearray → worker", "GB/s", "more", Transfer("bytearray", to_worker=True), (Goal(TRIO_PARALLEL, 4),)),
    Row("100 MB bytearray ← worker", "GB/s", "more", Transfer("bytearray", to_worker=False), (Goal(TRIO_PARALLEL, 4),)),
    Row(
        "100 MB SharedArray → worker, an item read",
        "µs",
        "less",
        shared_array,
        (Goal(AS_ARGUMENT, 0.25),),
        ours=OURS_SHARED,
    ),
    Row("idle worker, resident memory", "MB", "less", Idle("Rss"), (Goal(TRIO_PARALLEL, 0.4),)),
    Row("idle worker, its share of memory (PSS)", "MB", "less", Idle("Pss")),
    Row("idle worker, memory of its own (USS)", "MB", "less", Idle("Private_Clean", "Private_Dirty")),
    Row("kill: cancelled → returned, nothing left", "ms", "less", kill, (Goal(TRIO_PARALLEL, 1),)),
    Row(
        "endless map, slow reader: most memory of the parent",
        "MB",
        "less",
        Endless(pause=0.001),
        (Goal(f"{POOL}.imap", 1),),
        ours=OURS_MAP,
    ),
    Row(
        "endless map, fast reader: most memory of the parent",
        "MB",
        "less",
        Endless(pause=0),
        (Goal(f"{POOL}.imap", 1),),
        ours=OURS_MAP,
    ),
    Row("callback: a job's round trip", "µs", "less", callback, (Goal(ECHO, 1.3),), ours=OURS_TALKING),
    Row(
        "items, job → task",
        "items/s",
        "more",
        Items(TO_TASK),
        (Goal(AIO_QUEUE, 3), Goal(QUEUE, 1)),
        ours=OURS_TALKING,
    ),
    Row(
        "items, task → job",
        "items/s",
        "more",
        Items(TO_JOB),
        (Goal(AIO_QUEUE, 3), Goal(QUEUE, 1)),
        ours=OURS_TALKING,
    ),
    Row("items, job → job", "items/s", "more", Items(JOB_TO_JOB), (Goal(QUEUE, 0.5),), ours=OURS_TALKING),
    Row(
        "lock that 2 jobs contend for, an acquisition",
        "µs",
        "less",
        contended_lock,
        (Goal(MANAGER_LOCK, 0.2),),
        ours=OURS_TALKING,
    ),
    Row(
        "100 MB NumPy array through a channel, job → task",
        "GB/s",
        "more",
        ArrayThroughChannel(to_job=False),
        (Goal(AS_RESULT, 0.7),),
        ours=OURS_TALKING,
    ),
    Row(
        "100 MB NumPy array through a channel, task → job",
        "GB/s",
        "more",
        ArrayThroughChannel(to_job=True),
        ours=OURS_TALKING,
    ),
    Row("log records of a job", "records/s", "more", log_records, (Goal(QUEUE_HANDLER, 2),), ours=OURS_TALKING),
    Row("check_cancelled", "ns", "less", check_cancelled, (Goal(None, 150),), ours=OURS_TALKING),
    Row("a tick of progress", "ns", "less", step_of_progress, (Goal(None, 200),), ours=OURS_PROGRESS),
    Row(
        "stream of small values",
        "values/s",
        "more",
        stream_rate,
        (Goal(STREAM_IMAP, 5), Goal(MAP_IN_CHUNKS, 0.5)),
        ours=OURS_STREAM,
    ),
    Row("actor call", "µs", "less", actor_call, (Goal(WARM_CALL, 1.1),), ours=OURS_ACTORS),
    Row("hosted dict: set and get from a job", "µs", "less", hosted_dict, (Goal(MANAGER, 0.5),), ours=OURS_ACTORS),
    Row(
        "connection: 100 bytes to a plain process and back",
        "µs",
        "less",
        round_trip,
        (Goal(IN_A_THREAD, 0.5),),
        ours=OURS_CONNECTION,
    ),
]

CURVES = [
    Curve("a call over many workers", "µs", "workers", many_workers, lambda settings: settings.workers[1], 1.25),
    Curve("a call among many that wait", "µs", "calls", many_waiting, lambda settings: settings.waiting[1], 1.25),
    Curve(
        "a callback among requests that wait",
        "µs",
        "requests",
        Parked(wakes=False),
        lambda settings: settings.parked[0],
        1.25,
        ours=OURS_TALKING,
    ),
    Curve(
        "a request that waits: answered, and made again",
        "µs",
        "requests",
        Parked(wakes=True),
        lambda settings: settings.parked[0],
        1.25,
        ours=OURS_TALKING,
    ),
]

Key = TypeVar("Key")
SCALES = {"ms": 1e3, "µs": 1e6, "ns": 1e9}


def scaled(unit: str, samples: dict[Key, list[float]]) -> dict[Key, list[float]]:
    """Samples in the row's unit; times are measured in seconds."""
    scale = SCALES.get(unit, 1.0)
    return {name: [value * scale for value in values] for name, values in samples.items()}
