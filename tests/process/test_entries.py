"""The entry of a worker in its record: layouts, and reads in the middle of a write."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from trio_offload._pickling.payload import Payload
from trio_offload._process.record import ENTRY, FUNCTION, OPT_OUT, RecordFile
from trio_offload._top.entry import Entry, Hidden, OtherLayout, read_entry
from trio_offload._top.programs import NoProgram, find_program
from trio_offload_worker._protocol.frames import ENTRY_AT, FRONT_SIZE, FUNCTION_AT, JOBS_AT, RUNNING_AT, TIMES_AT


@pytest.fixture
def record() -> Iterator[RecordFile]:
    with closing(RecordFile()) as file:
        yield file


class Call:
    """A call of a function with this name."""

    def __init__(self, name: str) -> None:
        self.function = lambda: None
        self.name = name


def front(record: RecordFile) -> bytes:
    return os.pread(record.fileno(), FRONT_SIZE, 0)


def test_an_entry_is_what_was_written(record: RecordFile) -> None:
    assert read_entry(front(record)) is None
    record.show_function(Call("a.b"))
    assert read_entry(front(record)) is None
    record.show_worker(42, 3, 1.5, None)
    os.pwrite(record.fileno(), (7).to_bytes(8, "little"), RUNNING_AT)
    os.pwrite(record.fileno(), (6).to_bytes(8, "little"), JOBS_AT)
    assert read_entry(front(record)) == Entry(42, os.getpid(), 3, 1.5, 7, 6, "a.b")
    assert record.read() == ""


def test_an_entry_is_valid_once_it_is_shown(record: RecordFile) -> None:
    call = Call("a.b")
    record.enter_worker(42, 3, 1.5, call)
    assert read_entry(front(record)) is None
    record.show_worker(42, 3, 1.5, call)
    assert read_entry(front(record)) == Entry(42, os.getpid(), 3, 1.5, 0, 0, "a.b")


def test_the_fields_lie_where_the_worker_writes_them() -> None:
    assert ENTRY.size == FUNCTION_AT - ENTRY_AT
    assert FUNCTION.size == TIMES_AT - FUNCTION_AT


def test_the_record_cannot_shrink(record: RecordFile) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(record.fileno(), 0)
    os.write(record.fileno(), b"the end")
    assert record.read() == "the end"


@pytest.mark.parametrize("length", [0, 880, FRONT_SIZE - 1])
def test_a_shorter_front_is_of_another_version(length: int, record: RecordFile) -> None:
    with pytest.raises(OtherLayout):
        read_entry(front(record)[:length])


@pytest.mark.parametrize("mark", [b"tro-top\x02", b"tro-tip\x01", b"Fatal Py"])
def test_another_layout_is_refused(mark: bytes, record: RecordFile) -> None:
    record.show_worker(os.getpid(), 1, 0.0, None)
    os.pwrite(record.fileno(), mark, ENTRY_AT)
    with pytest.raises(OtherLayout):
        read_entry(front(record))
    with pytest.raises(NoProgram, match="uses another version of trio-offload, whose workers this version cannot show"):
        find_program(os.getpid())


def test_opting_out_leaves_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPT_OUT, "0")
    with closing(RecordFile()) as record:
        record.show_worker(42, 3, 1.5, Call("a.b"))
        with pytest.raises(Hidden):
            read_entry(front(record))
        assert b"a.b" not in front(record)


def test_functions_that_take_turns_are_written_each_time(record: RecordFile) -> None:
    local = Call("m.local")
    for call, name in [(Payload([], [], len), "len"), (local, "m.local"), (Payload([], [], sum), "sum")] * 2:
        for _ in range(2):
            assert record.show_function(call) is (None if call is local else call.function)
            record.show_worker(42, 3, 1.5, None)
            entry = read_entry(front(record))
            assert entry is not None
            assert entry.function == name


def test_a_name_that_is_half_written_is_unknown(record: RecordFile) -> None:
    record.show_worker(42, 3, 1.5, None)
    record.show_function(Call("the first name"))
    before = front(record)
    record.show_function(Call("another name!!"))
    after = front(record)
    for end in range(FUNCTION_AT + 1, FUNCTION_AT + 22):
        entry = read_entry(after[:end] + before[end:])
        assert entry is not None
        assert entry.function in (None, "the first name", "another name!!")
    assert read_entry(before) != read_entry(after)


def test_a_name_that_is_never_whole_is_shown_as_unknown(record: RecordFile) -> None:
    """A job has written to its record. The worker stays in the table."""
    record.show_worker(os.getpid(), 1, 0.0, None)
    record.show_function(Call("name"))
    os.pwrite(record.fileno(), b"nome", FUNCTION_AT + 8)
    (found,) = find_program(os.getpid()).listings()
    assert found.entry.function is None


def test_a_reader_gets_whole_names_of_running_calls(record: RecordFile) -> None:
    """The writer acts as the program and the worker do: name, call, end of the call."""
    record.show_worker(os.getpid(), 1, 0.0, None)
    ended = threading.Event()

    def write() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            record.show_function(Call(f"{number}:" + "x" * (number % 190)))
            os.pwrite(record.fileno(), number.to_bytes(8, "little"), RUNNING_AT)
            os.pwrite(record.fileno(), bytes(8), RUNNING_AT)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        program = find_program(os.getpid())
        named = 0
        for _ in range(2000):
            (found,) = program.listings()
            if found.entry.call and found.entry.function is not None:
                named += 1
                number, _, rest = found.entry.function.partition(":")
                assert (int(number), len(rest)) == (found.entry.call, found.entry.call % 190)
    finally:
        ended.set()
        writer.join()
    assert named
