"""Runs as records, for the tests of figures and pages."""

from __future__ import annotations

from trio_offload._report.run import TracedJob, TracedRun, TracedWorker

WORKERS = 4
MIB = 1 << 20


def large_run(count: int = 100_000) -> TracedRun:
    """Four workers that are busy half of the time; every hundredth job raises, and one dies."""
    run = TracedRun(memory_limit=8 * MIB)
    for pid in range(WORKERS):
        run.workers[pid] = TracedWorker(pid, 0.0, 0.1, None, [(0.1, MIB), (50.0, 3 * MIB)])
    for number in range(count):
        began = number // WORKERS * 0.002
        outcome = "raised" if number % 100 == 1 else "ok"
        error = f"ValueError: no {number}" if outcome == "raised" else ""
        stack = '  File "jobs.py", line 1, in work\n' if outcome == "raised" else ""
        run.jobs.append(TracedJob(number % WORKERS, "jobs.work", began, began + 0.001, outcome, error, stack))
    run.jobs.append(
        TracedJob(0, "jobs.die", 50.0, 50.1, "BrokenWorkerError", "BrokenWorkerError: gone", "in die", ended_by="SIGSEGV")
    )
    return run


def run_of_workers(count: int, *, together: bool) -> TracedRun:
    """Workers with one job of a second each, side by side or one after the other."""
    run = TracedRun()
    for pid in range(1, count + 1):
        began = 0.0 if together else float(pid)
        run.workers[pid] = TracedWorker(pid, began, began, began + 1, [(began, pid * MIB), (began + 1, 0)])
        run.jobs.append(TracedJob(pid, "f", began, began + 1, "ok"))
    return run
