"""The values of a generator that runs as a job, over a fake line: when they are sent, and together with which."""

from __future__ import annotations

import os
import pickle
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fake_line import FakeLine, in_job

from trio_offload_worker._protocol.frames import TAKEN_AT, Frame, Kind
from trio_offload_worker._requests import streams
from trio_offload_worker._requests.errors import Cancelled
from trio_offload_worker._requests.streams import TAG_MASK, TAG_SHIFT, GeneratorCall, PickledValue, ValueSender

HANDLE = 0x1234_5678_9ABC


class Parent:
    """The script of a consumer."""

    def __init__(self, line: FakeLine) -> None:
        self.line = line
        line.script = self.hear
        self.batches: list[list[Any]] = []
        self.asked: list[int] = []
        self.takes = False
        self.taken = 0

    def hear(self, frame: Frame) -> None:
        op = frame.body["op"]
        if op == "values":
            self.batches.append(pickle.loads(frame.segments[0]))
            if self.takes:
                self.take_all()
        elif op == "room":
            self.asked.append(frame.body["count"])
            self.take_all()
            self.line.reply(frame, value=self.taken)
        elif frame.kind is Kind.REQUEST:
            self.batches.append([len(frame.segments[0])])
            self.line.reply(frame)

    def take_all(self) -> None:
        self.taken = sum(map(len, self.batches))
        word = ((HANDLE & TAG_MASK) << TAG_SHIFT) + self.taken
        os.pwrite(self.line._record, struct.pack("=Q", word), TAKEN_AT)


@pytest.fixture
def parent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Parent]:
    with in_job(monkeypatch, FakeLine()) as line:
        yield Parent(line)


@pytest.fixture
def without_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "start_new_thread", lambda function, args: None)


def sender(window: int = 16, chunk: int = 8) -> ValueSender:
    return ValueSender("stream", HANDLE, window, chunk)


def count(end: int) -> Iterator[int]:
    yield from range(end)


@pytest.mark.usefixtures("without_thread")
def test_values_that_are_waited_for_are_sent_at_once(parent: Parent) -> None:
    parent.takes = True
    GeneratorCall(count)(sender(), 5)
    assert parent.batches == [[0], [1], [2], [3], [4]]
    assert parent.asked == []


@pytest.mark.usefixtures("without_thread")
def test_values_travel_together_while_the_consumer_is_behind(parent: Parent) -> None:
    GeneratorCall(count)(sender(), 15)
    assert parent.batches == [[0], [*range(1, 9)], [*range(9, 15)]]
    assert parent.asked == []


@pytest.mark.usefixtures("without_thread")
def test_a_chunk_of_one(parent: Parent) -> None:
    GeneratorCall(count)(sender(chunk=1), 4)
    assert parent.batches == [[0], [1], [2], [3]]


@pytest.mark.usefixtures("without_thread")
def test_a_generator_without_room_asks(parent: Parent) -> None:
    def watched() -> Iterator[int]:
        for number in range(12):
            assert number - parent.taken < 4
            yield number

    GeneratorCall(watched)(sender(window=4, chunk=2))
    assert [value for batch in parent.batches for value in batch] == [*range(12)]
    assert parent.asked == [0, 4, 8]


def test_a_held_value_is_sent_although_the_generator_goes_on(parent: Parent) -> None:
    has_both = threading.Event()
    hear = parent.line.script

    def script(frame: Frame) -> None:
        hear(frame)
        if [1] in parent.batches:
            has_both.set()

    parent.line.script = script

    def waits() -> Iterator[int]:
        yield 0
        yield 1  # is held, because 0 is not taken
        assert has_both.wait(30)

    GeneratorCall(waits)(sender())
    assert parent.batches == [[0], [1]]


def test_values_go_alone_without_a_thread(parent: Parent, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(streams, "start_new_thread", refuse)
    GeneratorCall(count)(sender(), 4)
    assert parent.batches == [[0], [1], [2], [3]]


@pytest.mark.usefixtures("without_thread")
def test_held_values_are_sent_before_an_error(parent: Parent) -> None:
    def fails() -> Iterator[int]:
        yield from range(3)
        raise LookupError

    with pytest.raises(LookupError):
        GeneratorCall(fails)(sender())
    assert parent.batches == [[0], [1, 2]]


@pytest.mark.usefixtures("without_thread")
def test_values_that_may_change_are_pickled_at_once(parent: Parent) -> None:
    def changes() -> Iterator[list[int]]:
        values: list[int] = []
        for number in range(3):
            values.append(number)
            yield values

    GeneratorCall(changes)(sender())
    loaded = [pickle.loads(value.pickled) for batch in parent.batches for value in batch if type(value) is PickledValue]
    assert loaded == [[0], [0, 1], [0, 1, 2]]


@pytest.mark.usefixtures("without_thread")
def test_a_large_value_comes_behind_held_ones(parent: Parent) -> None:
    def mixed() -> Iterator[Any]:
        yield from (1, 2, b"x" * 10_000, 3)

    GeneratorCall(mixed)(sender())
    assert parent.batches[:2] == [[1], [2]]
    assert parent.batches[2][0] > 5
    assert parent.batches[3] == [3]


@pytest.mark.usefixtures("without_thread")
def test_a_cancelled_generator_is_closed(parent: Parent) -> None:
    seen: list[str] = []

    def endless() -> Iterator[int]:
        try:
            yield 1
            parent.line.cancel(parent.line.running)
            yield 2
        except GeneratorExit:
            seen.append("GeneratorExit")
            raise

    with pytest.raises(Cancelled):
        GeneratorCall(endless)(sender())
    assert seen == ["GeneratorExit"]
    assert parent.batches == [[1]]


def test_the_number_of_another_stream_is_ignored(parent: Parent) -> None:
    os.pwrite(parent.line._record, struct.pack("=Q", (7 << TAG_SHIFT) + 1), TAKEN_AT)
    GeneratorCall(count)(sender(window=2, chunk=1), 4)
    assert parent.asked == [0, 2]
