"""`from_worker` in a job over a fake line, in a thread of Trio's, and anywhere else."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import timeit
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from fake_line import FakeLine, in_job

import trio_offload_worker._requests.pickles as pickles
from trio_offload_worker import from_worker
from trio_offload_worker._protocol.frames import Kind


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLine]:
    with in_job(monkeypatch, FakeLine()) as line:
        yield line


def test_functions_run_in_the_parent(line: FakeLine) -> None:
    def script(frame: Any) -> None:
        function, args = pickles.loads(frame.segments)
        line.reply(frame, value=(function.__name__, args))

    line.script = script
    assert from_worker.run(trio.sleep, 5) == ("sleep", (5,))
    assert from_worker.run_sync(divmod, 7, 2) == ("divmod", (7, 2))
    assert [frame.body["op"] for frame in line.frames] == ["run", "run_sync"]
    assert [frame.body.get("shield") for frame in line.frames] == [None, True]


def test_cancellation_is_noticed(line: FakeLine) -> None:
    from_worker.check_cancelled()
    assert not from_worker.cancelled()
    line.cancel(7)
    for _ in range(2):
        assert from_worker.cancelled()
        with pytest.raises(from_worker.Cancelled):
            from_worker.check_cancelled()
    with from_worker.shielded():
        from_worker.check_cancelled()
        assert not from_worker.cancelled()
        with from_worker.shielded(0):
            assert not from_worker.cancelled()
    with from_worker.shielded(0):
        assert from_worker.cancelled()
    assert from_worker.cancelled()


def test_cancellation_of_another_call_is_not(line: FakeLine) -> None:
    line.cancel(6)
    for _ in range(2):
        from_worker.check_cancelled()
    # A call that was sent ahead has been cancelled before it begins.
    line.cancel(8)
    for _ in range(2):
        from_worker.check_cancelled()
    line.running = 8
    assert from_worker.cancelled()
    line.running = 0
    assert not from_worker.cancelled()
    line.running = 9
    assert not from_worker.cancelled()


def test_a_shield_is_a_threads_own(line: FakeLine) -> None:
    line.cancel(7)
    seen = []
    with from_worker.shielded():
        thread = threading.Thread(target=lambda: seen.append(from_worker.cancelled()))
        thread.start()
        thread.join(30)
    assert seen == [True]


def test_check_is_quick(line: FakeLine) -> None:
    from_worker.check_cancelled()
    number = 100_000
    best = min(timeit.repeat(from_worker.check_cancelled, number=number, repeat=20)) / number
    print(f"check_cancelled: {best * 1e9:.0f} ns")
    line.cancel(6)
    from_worker.check_cancelled()
    after = min(timeit.repeat(from_worker.check_cancelled, number=number, repeat=20)) / number
    assert max(best, after) <= 150e-9


def test_sleep_ends_by_its_time_or_early(line: FakeLine) -> None:
    line.script = lambda frame: line.reply(frame, "withdrawn") if frame.kind is Kind.WITHDRAW else None
    began = time.monotonic()
    from_worker.sleep(0.02)
    assert time.monotonic() - began >= 0.02
    assert line.kinds() == ["REQUEST", "WITHDRAW"]
    line.script = lambda frame: line.reply(frame, "cancelled")
    with pytest.raises(from_worker.Cancelled):
        from_worker.sleep(1000)
    from_worker.sleep(0)


def test_plain_calls() -> None:
    from_worker.check_cancelled()
    assert not from_worker.cancelled()
    from_worker.sleep(0)
    with from_worker.shielded(5):
        pass
    for call in (
        lambda: from_worker.run(trio.sleep, 0),
        lambda: from_worker.run_sync(int),
        from_worker.job,
    ):
        with pytest.raises(RuntimeError):
            call()


def test_plain_calls_import_nothing_of_trio() -> None:
    program = """
from trio_offload_worker import from_worker
import sys
from_worker.check_cancelled()
from_worker.sleep(0)
try:
    from_worker.run_sync(int)
except RuntimeError as error:
    assert "this is no job" in str(error), error
else:
    raise SystemExit("it ran")
assert not {"trio", "trio_offload", "threading", "pickle", "typing", "inspect"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{program}"], check=True)


def test_package_does_not_import_it() -> None:
    program = "import trio_offload_worker, sys; assert 'trio_offload_worker.from_worker' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


async def double(value: int) -> int:
    await trio.lowlevel.checkpoint()
    return 2 * value


async def test_thread_of_trio_runs_a_job_unchanged() -> None:
    caller = trio.lowlevel.current_task()

    def job() -> tuple[int, bool, bool]:
        from_worker.check_cancelled()
        from_worker.sleep(0)
        same = from_worker.run_sync(trio.lowlevel.current_task) is caller
        return from_worker.run(double, 5), same, from_worker.cancelled()

    assert await trio.to_thread.run_sync(job) == (10, True, False)


async def test_thread_of_trio_is_cancelled() -> None:
    saved = []

    def job() -> None:
        while not from_worker.cancelled():
            pass
        with from_worker.shielded():
            from_worker.check_cancelled()
            saved.append(from_worker.run(double, 4))
        from_worker.sleep(1000)

    with trio.move_on_after(0.01) as scope:
        await trio.to_thread.run_sync(job)
    assert scope.cancelled_caught
    assert saved == [8]


async def test_threads_of_a_thread_of_trio_are_adopted() -> None:
    def job() -> list[Any]:
        mine = from_worker.job()
        seen: list[Any] = []

        def work() -> None:
            try:
                from_worker.run(double, 3)
            except RuntimeError as error:
                seen.append(type(error))
            mine.adopt()
            from_worker.sleep(0)
            seen.append(from_worker.run(double, 3))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return seen

    assert await trio.to_thread.run_sync(job) == [RuntimeError, 6]
