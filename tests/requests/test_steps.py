"""`from_worker.progress` and `track`: what they write into the record, over a fake line and without one."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
import timeit
from collections.abc import Iterator
from typing import Any

import pytest
from fake_line import FakeLine, in_job

from trio_offload import JobProgress
from trio_offload._process.record import RecordFile, Step
from trio_offload_worker import from_worker
from trio_offload_worker._protocol.frames import NOTE_SIZE, STEP_AT


class RecordedLine(FakeLine):
    """A line whose record can be read as the parent reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.file = RecordFile()

    def record(self) -> int:
        return self.file.fileno()

    def step(self) -> Step | None:
        return self.file.step()

    def close(self) -> None:
        super().close()
        self.file.close()


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordedLine]:
    with in_job(monkeypatch, line := RecordedLine()):
        yield line


def test_steps_are_in_the_record(line: RecordedLine) -> None:
    assert line.step() is None
    from_worker.progress(3)
    assert line.step() == Step(7, 0, 3, None, None)
    from_worker.progress(4, 10)
    assert line.step() == Step(7, 0, 4, 10, None)
    from_worker.progress(5, 10, "half")
    assert line.step() == Step(7, 0, 5, 10, "half")
    from_worker.progress(6, 10)
    assert line.step() == Step(7, 0, 6, 10, "half")
    from_worker.progress(0.5, 1.0, "")
    assert line.step() == Step(7, 0, 0.5, 1, "")
    from_worker.progress(-2, None)
    assert line.step() == Step(7, 0, -2, None, "")
    assert line.frames == []


def test_numbers_are_numbers(line: RecordedLine) -> None:
    from_worker.progress(2**50, 2**53)
    found = line.step()
    assert found == Step(7, 0, 2**50, 2**53, None)
    assert found is not None
    assert (type(found.done), type(found.total)) == (int, int)
    from_worker.progress(float("inf"), 2**53)
    assert line.step() == Step(7, 0, float("inf"), 2**53, None)
    from_worker.progress(1, float("nan"))
    assert line.step() == Step(7, 0, 1, None, None)


def test_layout_in_the_record(line: RecordedLine) -> None:
    from_worker.progress(4, 10, "ü")
    begun, call, item, done, total, ended, call_of_note, length = struct.unpack_from(
        "=QQQddQQQ", data := _front(line), STEP_AT
    )
    assert begun == ended > 0
    assert (call, item, done, total, call_of_note, length) == (7, 0, 4.0, 10.0, 7, 2)
    assert data[640:642] == "ü".encode()
    from_worker.progress(5, 10)
    assert struct.unpack_from("=QQQddQ", _front(line), STEP_AT) == (begun, 7, 0, 5.0, 10.0, begun)
    from_worker.progress(5, 11)
    assert struct.unpack_from("=Q", _front(line), STEP_AT)[0] > begun


def _front(line: RecordedLine) -> bytes:
    return os.pread(line.record(), 2000, 0)


def test_step_belongs_to_its_call_and_its_item(line: RecordedLine) -> None:
    from_worker.progress(1, 2, "first")
    line.running = 8
    assert line.step() == Step(7, 0, 1, 2, "first")
    from_worker.progress(1, 2)
    assert line.step() == Step(8, 0, 1, 2, None)
    os.pwrite(line.record(), struct.pack("=Q", 5), 0)
    from_worker.progress(1, 2)
    assert line.step() == Step(8, 5, 1, 2, None)


def test_step_in_the_middle_of_its_writing_is_none(line: RecordedLine) -> None:
    from_worker.progress(1, 2)
    begun = struct.unpack_from("=Q", _front(line), STEP_AT)[0]
    os.pwrite(line.record(), struct.pack("=Q", begun + 1), STEP_AT)
    assert line.step() is None
    from_worker.progress(2, 3)
    assert line.step() == Step(7, 0, 2, 3, None)


@pytest.mark.parametrize("length", [NOTE_SIZE - 1, NOTE_SIZE, NOTE_SIZE + 1, 10_000])
@pytest.mark.parametrize("letter", ["x", "ü", "…", "😀"])
def test_long_note_is_cut(line: RecordedLine, length: int, letter: str) -> None:
    note = letter * (length // len(letter.encode()))
    from_worker.progress(1, 2, note)
    found = line.step()
    assert found is not None
    cut = found.note or ""
    if len(note.encode()) <= NOTE_SIZE:
        assert cut == note
    else:
        assert cut.endswith("…")
        assert note.startswith(cut[:-1])
        assert NOTE_SIZE - 6 <= len(cut.encode()) <= NOTE_SIZE


@pytest.mark.parametrize("wrong", [("x",), (1, "x"), (1, 2, 3), (None,), (1, 2, b"note")])
def test_wrong_types(line: RecordedLine, wrong: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        from_worker.progress(*wrong)
    assert line.step() is None
    from_worker.progress(1, 2)
    with pytest.raises(TypeError):
        from_worker.progress(*wrong)
    assert line.step() == Step(7, 0, 1, 2, None)


def test_thread_of_an_earlier_job_is_ignored(line: RecordedLine) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def run() -> None:
        from_worker.progress(1, 4)
        begun.set()
        may_end.wait(30)
        from_worker.progress(2, 4)
        from_worker.progress(3, 5, "late")

    thread = threading.Thread(target=run)
    thread.start()
    begun.wait(30)
    assert line.step() == Step(7, 0, 1, 4, None)
    line.running = 8
    from_worker.progress(1, 4)
    may_end.set()
    thread.join(30)
    assert line.step() == Step(8, 0, 1, 4, None)


def test_threads_of_a_job_share_its_progress(line: RecordedLine) -> None:
    for number in range(1, 4):
        thread = threading.Thread(target=from_worker.progress, args=(number, 3))
        thread.start()
        thread.join(30)
    assert line.step() == Step(7, 0, 3, 3, None)


def test_between_two_jobs_nothing_happens(line: RecordedLine) -> None:
    line.running = 0
    from_worker.progress(1, 2, "note")
    assert line.step() is None


def test_track_tells_each_item(line: RecordedLine) -> None:
    seen = [(item, line.step()) for item in from_worker.track("abc")]
    assert seen == [(letter, Step(7, 0, place, 3, None)) for place, letter in enumerate("abc")]
    assert line.step() == Step(7, 0, 3, 3, None)


def test_track_without_a_length(line: RecordedLine) -> None:
    numbers = from_worker.track(number for number in range(3))
    assert next(numbers) == 0
    assert line.step() == Step(7, 0, 0, None, None)
    assert list(numbers) == [1, 2]
    assert line.step() == Step(7, 0, 3, 3, None)


class WrongHint:
    """Its hint says five, and three items come."""

    def __length_hint__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


def test_track_with_a_hint(line: RecordedLine) -> None:
    numbers = from_worker.track(WrongHint())
    next(numbers)
    assert line.step() == Step(7, 0, 0, 5, None)
    assert list(numbers) == [1, 2]
    assert line.step() == Step(7, 0, 3, 3, None)
    assert list(from_worker.track([])) == []
    assert line.step() == Step(7, 0, 0, 0, None)


def test_track_with_a_total_of_the_caller_and_an_early_end(line: RecordedLine) -> None:
    for item in from_worker.track(iter(range(10)), total=20):
        if item == 4:
            break
    assert line.step() == Step(7, 0, 4, 20, None)


def test_fraction() -> None:
    cases = [(1, 4, 0.25), (5, 4, 1), (-1, 4, 0), (1, None, None), (1, 0, None), (float("nan"), 4, None), (0.5, 1, 0.5)]
    for done, total, fraction in cases:
        assert JobProgress(done, total, None).fraction == fraction


def test_outside_of_a_worker_nothing_happens() -> None:
    from_worker.progress(1, 2, "note")
    from_worker.progress(1)
    assert list(from_worker.track([1, 2])) == [1, 2]


def do_nothing(done: float, total: float | None = None, note: str | None = None) -> None:
    """Takes 20 ns where a step takes 100."""


def test_step_is_quick(line: RecordedLine) -> None:
    """It takes as long as ten calls of an empty function at most: 200 ns where such a call takes 20."""
    from_worker.progress(0, 100)
    number = 20_000
    times = {do_nothing: float("inf"), from_worker.progress: float("inf")}
    for _ in range(50):
        for step, least in times.items():
            times[step] = min(least, timeit.timeit("step(5, 100)", globals={"step": step}, number=number) / number)
    empty, best = times.values()
    print(f"a tick: {best * 1e9:.0f} ns, an empty call: {empty * 1e9:.0f} ns")
    assert best <= 10 * empty
    assert line.frames == []


def test_job_without_progress_imports_nothing_for_it() -> None:
    program = "import sys; from trio_offload_worker import from_worker; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "trio_offload_worker._requests.progress" not in ran.stdout.split()
