"""The values in the pictures of a run."""

from __future__ import annotations

from typing import Any

import pytest
from traced_runs import MIB, WORKERS, large_run, run_of_workers

from trio_offload._report.failures import failures_of, section
from trio_offload._report.figures import (
    COLUMNS,
    MAX_BARS,
    MAX_MARKERS,
    MAX_ROWS,
    durations,
    hover,
    lanes,
    largest_of_each_moment,
    load,
    queue,
    rows_of,
)
from trio_offload._report.memory import MAX_CURVES, MAX_NAMED, largest_sum, memory
from trio_offload._report.page import numbers, seconds
from trio_offload._report.run import TracedJob, TracedRun, TracedWorker
from trio_offload._report.style import Picture


def traces(picture: Picture) -> dict[str | None, Any]:
    """The curves, bars and marks of a picture by their names."""
    assert picture.figure is not None
    return {trace.name: trace for trace in picture.figure.data}


def test_few_jobs_are_bars() -> None:
    run = large_run(MAX_BARS - 1)
    found = traces(lanes(run))
    assert list(found) == ["start", "ok", "raised", "died", "failures", "deaths"]
    assert sum(len(found[name].x) for name in ("ok", "raised", "died")) == len(run.jobs)
    assert len(found["start"].x) == WORKERS
    # A failure that is narrower than a pixel has a mark.
    assert len(found["failures"].x) == len(found["raised"].x)
    assert list(found["deaths"].x) == [50.1]
    assert list(found["deaths"].y) == ["worker 0"]


def test_many_jobs_are_aggregated() -> None:
    run = large_run()
    heat, failures, deaths = traces(lanes(run)).values()
    assert [len(row) for row in heat.z] == [COLUMNS] * WORKERS
    # Each worker is busy half of the time.
    assert heat.z[1][COLUMNS // 2] == pytest.approx(0.5, abs=0.05)
    assert (len(failures.x), failures.name) == (MAX_MARKERS, "failures, 1 of 2")
    assert len(deaths.x) == 1
    (running,) = traces(load(run)).values()
    assert running.y[COLUMNS // 2] == pytest.approx(WORKERS / 2, rel=0.1)
    (histogram,) = traces(durations(run)).values()
    assert sum(histogram.y) == len(run.jobs)


def test_rows_of_few_workers() -> None:
    rows = rows_of(run_of_workers(MAX_ROWS, together=False))
    assert len(set(rows.values())) == MAX_ROWS
    assert rows[7] == "worker 7"


def test_rows_of_many_workers() -> None:
    """A worker takes the row of one that has ended. All that live at once have rows of their own."""
    assert set(rows_of(run_of_workers(500, together=False)).values()) == {"row 1"}
    assert len(set(rows_of(run_of_workers(500, together=True)).values())) == 500
    assert "500 in 1 rows" in lanes(run_of_workers(500, together=False)).caption


def test_text_over_a_job() -> None:
    job = TracedJob(7, "f.<lambda>", 1.0, 1.5, "raised", "ValueError: <b>", "", "item 3: 'a'")
    assert hover(job).split("<br>") == [
        "f.&lt;lambda&gt;",
        "item 3: 'a'",
        "0.5 s from 1.000 s, in worker 7",
        "ValueError: &lt;b&gt;",
    ]


def test_text_over_a_chunk() -> None:
    failures = (("item 4: 'c'", "KeyError: 1", ""), ("item 5: 'd'", "KeyError: 2", ""))
    job = TracedJob(7, "f", 1.0, 1.5, "raised", "", "", "items 3 to 9: 'a' to 'b'", 7, 2, item_failures=failures)
    assert hover(job).split("<br>") == [
        "f",
        "items 3 to 9: 'a' to 'b'",
        "0.5 s from 1.000 s, in worker 7",
        "2 of 7 items have failed, the first of them:",
        "item 4: 'c': KeyError: 1",
    ]


def test_memory_of_few_workers() -> None:
    run = large_run(8)
    run.workers[1].ended, run.workers[1].died = 60.0, "died of SIGKILL"
    run.workers[1].memory.append((60.0, 0))
    run.workers[2].ceiling = 4 * MIB
    found = traces(memory(run))
    curves = [trace for name, trace in found.items() if name is not None and name.startswith("worker")]
    assert len(curves) == WORKERS <= MAX_NAMED
    # The curve of a worker that has ended stays at its last size.
    assert list(curves[1].y) == [1.0, 3.0, 3.0]
    assert curves[1].x[-1] == 60.0
    assert list(found["memory_limit"].y)[:2] == [8.0, 8.0]
    assert list(found["retire_when(rss=)"].y)[:2] == [4.0, 4.0]
    deaths = found["deaths"]
    assert list(zip(deaths.x, deaths.y, strict=True)) == [(50.1, 3.0), (60.0, 3.0)]
    assert deaths.text[1] == "worker 1: died of SIGKILL, without a job"


def test_distant_ceilings_are_a_sentence() -> None:
    """A limit of gigabytes would press the curves of megabytes to the ground."""
    run = large_run(8)
    run.memory_limit = 2048 * MIB
    picture = memory(run)
    assert "memory_limit" not in traces(picture)
    assert picture.caption.endswith("Above the picture: memory_limit of 2,048 MiB.")


def test_memory_of_many_workers() -> None:
    run = run_of_workers(MAX_CURVES + 1, together=True)
    largest, median = traces(memory(run)).values()
    assert largest.y[COLUMNS // 2] == MAX_CURVES + 1
    assert median.y[COLUMNS // 2] == (MAX_CURVES + 2) / 2
    assert largest_sum(run) == sum(range(MAX_CURVES + 2)) * MIB


def test_queue() -> None:
    run = large_run(8)
    assert queue(run).figure is None
    run.waiting = [(0.0, 3), (1.0, 5), (2.0, 0)]
    (curve,) = traces(queue(run)).values()
    assert list(curve.y) == [3, 5, 0, 0]
    assert list(curve.x) == [0.0, 1.0, 2.0, 50.1]


def test_long_curves_keep_their_peaks() -> None:
    points = [(number / 1000, 999 if number == 500 else number % 7) for number in range(10_000)]
    short = largest_of_each_moment(points, 10.0, 20)
    assert len(short) == 40
    assert max(size for _, size in short) == 999
    assert short[-1] == points[-1]
    assert short == sorted(short, key=lambda point: point[0])


def test_failures_by_kind_and_stack() -> None:
    run = large_run(1000)
    run.jobs.append(
        TracedJob(1, "f", 2.0, 3.0, "raised", items=9, failed=3, item_failures=(("item 5: 'x'", "KeyError: 5", "here"),))
    )
    kinds = failures_of(run)
    assert {kind: [len(group) for group in groups] for kind, groups in kinds.items()} == {
        "ValueError": [10],  # their messages differ, their stack does not
        "BrokenWorkerError (SIGSEGV)": [1],
        "KeyError": [1],
    }
    assert kinds["KeyError"][0][0].place == "f, item 5: 'x', at 2.000 s in worker 1"
    assert "no stack of 2 more items" in section(run)


def test_numbers_count_items() -> None:
    run = TracedRun(workers={1: TracedWorker(1, 0.0, 1.0, 11.0)}, waiting=[(0.0, 4)])
    run.jobs = [
        TracedJob(1, "f", 1.0, 4.0, "ok", items=10),
        TracedJob(1, "f", 4.0, 5.0, "raised", items=10, failed=2),
        TracedJob(1, "f", 5.0, 6.0, "raised", "ValueError: no"),
        TracedJob(1, "f", 6.0, 7.0, "BrokenWorkerError", items=5),
    ]
    found = dict(numbers(run))
    expected = {"jobs": "4", "items": "26", "returned": "18", "raised": "3", "died or killed": "1", "workers": "1"}
    assert {name: found[name] for name in expected} == expected
    assert found["workers' time in jobs"] == "60%"
    assert found["longest queue"] == "4"


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0 s"), (2.5e-6, "2.5 µs"), (0.0123, "12.3 ms"), (59.96, "60 s"), (4321.0, "4,321 s")]
)
def test_times_have_units(amount: float, text: str) -> None:
    assert seconds(amount) == text
