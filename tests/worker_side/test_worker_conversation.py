"""The worker's half of a conversation: a scripted parent, and each kind of worker that speaks it."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import conversation_jobs
import pytest
from kinds import LOOP
from lifeline import PATIENCE
from test_worker_side import Parent, frame, parent_of

from trio_offload._interpreter import locate as _locate
from trio_offload_worker._jobs.exceptions import load
from trio_offload_worker._protocol.frames import (
    BYTES,
    CANCEL_AT,
    ENTRY_AT,
    FRONT_SIZE,
    HANDED_AT,
    JOBS_AT,
    MEMORY,
    RUNNING_AT,
    Frame,
    Kind,
)
from trio_offload_worker._requests.errors import Cancelled

SOON = 10.0  # seconds; a worker that says nothing for so long is stuck
KINDS = ["native", "loop", "fork"]


@pytest.fixture(params=KINDS)
def parent(request: pytest.FixtureRequest) -> Iterator[Parent]:
    way = _locate.runtime() if request.param == "native" else LOOP
    with parent_of(way, fork=request.param == "fork") as parent:
        parent.bring_to("IDLE")
        parent.socket.settimeout(SOON)
        yield parent


def call(parent: Parent, number: int, function: Any, *args: Any) -> None:
    parent.say(Kind.CALL, number, (pickle.dumps((function, args), 5),))


def reply(parent: Parent, request: Frame, status: str = "value", value: Any = None, **body: Any) -> None:
    segments = (pickle.dumps(value, 5),) if status == "value" else ()
    parent.say(Kind.REPLY, request.id, segments, {"request": request.body["request"], "status": status, **body})


def outcome(parent: Parent, number: int) -> Any:
    got = parent.hear()
    assert got is not None
    assert got.id == number
    if got.kind is Kind.RAISED:
        return load(got.segments[0])
    assert got.kind is Kind.RESULT, got.body
    return pickle.loads(got.segments[0], buffers=[*map(bytearray, got.segments[1:])])


def cancel(parent: Parent, number: int) -> None:
    os.pwrite(parent.record, struct.pack("=Q", number), CANCEL_AT)


def front(parent: Parent) -> tuple[int, ...]:
    return struct.unpack(f"={FRONT_SIZE // 8}Q", os.pread(parent.record, FRONT_SIZE, 0))


def test_job_asks_and_is_answered(parent: Parent) -> None:
    call(parent, 1, conversation_jobs.echo, 3, 5)
    for number in range(1, 4):
        request = parent.expect(Kind.REQUEST)
        assert request.id == 1
        assert request.body == {
            "request": number,
            "op": "run_sync",
            "thread": parent.process.pid,
            "shield": True,
        }
        function, args = pickle.loads(request.segments[0])
        reply(parent, request, value=function(*args))
    assert outcome(parent, 1) == [5, 5, 5]


@pytest.mark.parametrize("size", [40_000, 3_000_000])
def test_large_values_both_ways(parent: Parent, size: int) -> None:
    call(parent, 1, conversation_jobs.ask_with, b"x" * size)
    request = parent.expect(Kind.REQUEST)
    loaded = pickle.loads(request.segments[0], buffers=[*map(bytes, request.segments[1:])])
    assert loaded == b"x" * size
    body = {"request": request.body["request"], "status": "value", "types": bytes([MEMORY, BYTES])}
    # A pickle that takes its second segment as it is.
    parent.say(Kind.REPLY, 1, (b"\x80\x05\x97.", b"y" * size), body)
    assert outcome(parent, 1) == (True, size)


def test_calls_sent_ahead_are_set_aside_in_order(parent: Parent) -> None:
    call(parent, 1, conversation_jobs.echo, 2)
    request = parent.expect(Kind.REQUEST)
    ahead = [frame(Kind.CALL, pickle.dumps((divmod, (number, 7)), 5), id=number) for number in range(2, 16)]
    ahead.insert(3, frame(Kind.SETTINGS, pickle.dumps({}, 5), body={"eager": False}))
    ahead.append(frame(Kind.CALL, b"\x80\x05\x97.", b"z" * 3_000_000, id=16, body={"types": bytes([MEMORY, BYTES])}))
    answer = frame(Kind.REPLY, pickle.dumps(5, 5), id=1, body={"request": request.body["request"], "status": "value"})
    stream = b"".join(ahead) + answer
    # Torn at places that belong to no frame.
    for at in range(0, len(stream), 700_001):
        parent.socket.sendall(stream[at : at + 700_001])
    parent.say(Kind.RETIRE)
    reply(parent, parent.expect(Kind.REQUEST), value=6)
    assert outcome(parent, 1) == [5, 6]
    for number in range(2, 16):
        assert outcome(parent, number) == divmod(number, 7)
    # The last is no call.
    assert isinstance(outcome(parent, 16), TypeError)
    assert parent.expect(Kind.RETIRED).body == {"reason": "asked"}
    parent.expect_end(0)


def test_replies_of_ended_calls_are_dropped(parent: Parent) -> None:
    call(parent, 4, conversation_jobs.post_two)
    assert [parent.expect(Kind.POST).body for _ in range(2)] == [
        {"op": "set", "handle": 9, "thread": parent.process.pid},
        {"op": "release", "handle": 9, "thread": parent.process.pid, "count": 2},
    ]
    assert outcome(parent, 4) is None
    call(parent, 5, conversation_jobs.echo, 1)
    request = parent.expect(Kind.REQUEST)
    body = {"request": request.body["request"], "status": "value"}
    parent.say(Kind.REPLY, 4, (pickle.dumps("wrong", 5),), body)
    parent.say(Kind.CREDIT, 4, (), {"handle": 9, "count": 1})
    parent.say(Kind.CREDIT, 5, (), {"handle": 9, "count": 1})
    reply(parent, request, value="right")
    assert outcome(parent, 5) == ["right"]


@pytest.mark.parametrize("event", ["a reply of a later call", "a greeting", "garbage", "a torn frame"])
def test_nonsense_during_a_wait_ends_the_worker(parent: Parent, event: str) -> None:
    call(parent, 1, conversation_jobs.echo, 1)
    parent.expect(Kind.REQUEST)
    stream, code = {
        "a reply of a later call": (
            frame(Kind.REPLY, id=2, body={"request": 1, "status": "cancelled"}),
            "unexpected_message",
        ),
        "a greeting": (frame(Kind.SETUP, b"", b"", b"", body={"eager": False}), "unexpected_message"),
        "garbage": (b"HTTP/1.1 400 Bad Request\r\n\r\n", "bad_magic"),
        "a torn frame": (frame(Kind.CALL, b"x", id=2)[:-1], "torn_frame"),
    }[event]
    parent.socket.sendall(stream)
    if event == "a torn frame":
        # The sentinel may be quicker, and leave bytes unread.
        parent.socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            got = parent.hear()
            assert got is None or got.body["code"] == code
    else:
        assert parent.expect(Kind.ABORTED).body["code"] == code
        assert parent.hear() is None
    assert parent.process.wait_sync(time.monotonic() + PATIENCE)
    # 6 and SIGKILL are the sentinel's, in the executable and beside a loop.
    assert parent.process.exitcode in (5, 6, -signal.SIGKILL)


def test_end_of_the_parent_during_a_wait(parent: Parent) -> None:
    call(parent, 1, conversation_jobs.echo, 1)
    parent.expect(Kind.REQUEST)
    parent.socket.shutdown(socket.SHUT_WR)
    assert parent.hear() is None
    assert parent.process.wait_sync(time.monotonic() + PATIENCE)
    assert parent.process.exitcode == (6 if parent.process_kind == "native" else -signal.SIGKILL)


def test_cancel_word_is_read(parent: Parent) -> None:
    call(parent, 3, conversation_jobs.until_cancelled)
    call(parent, 4, conversation_jobs.echo, 1)
    cancel(parent, 3)
    assert type(outcome(parent, 3)) is Cancelled
    # It is another call's now.
    reply(parent, parent.expect(Kind.REQUEST), value=1)
    assert outcome(parent, 4) == [1]


def test_cancelled_wait_cleans_up_in_a_shield(parent: Parent) -> None:
    call(parent, 1, conversation_jobs.shield_and_escape)
    request = parent.expect(Kind.REQUEST)
    assert request.body["op"] == "sleep"
    cancel(parent, 1)
    reply(parent, request, "cancelled")
    shielded = parent.expect(Kind.REQUEST)
    assert shielded.body["shield"] is True
    reply(parent, shielded)
    raised = parent.expect(Kind.RAISED)
    assert raised.body["type"] == "trio_offload_worker.from_worker.Cancelled"
    assert type(load(raised.segments[0])) is Cancelled


def test_received_item_is_counted_before_it_is_handed_over(parent: Parent) -> None:
    call(parent, 1, conversation_jobs.receive_one)
    request = parent.expect(Kind.REQUEST)
    assert not any(front(parent)[HANDED_AT // 8 : ENTRY_AT // 8])
    reply(parent, request, value="item")
    assert outcome(parent, 1) == "item"
    number = request.body["request"]
    assert front(parent)[HANDED_AT // 8 + number % 64] == number * 256 + 255


def test_the_record_has_the_running_call_and_the_number_of_jobs(parent: Parent) -> None:
    for number in (1, 2):
        call(parent, number, conversation_jobs.receive_one)
        request = parent.expect(Kind.REQUEST)
        assert (front(parent)[RUNNING_AT // 8], front(parent)[JOBS_AT // 8]) == (number, number - 1)
        reply(parent, request, value="item")
        assert outcome(parent, number) == "item"
        # Before the answer, so that the parent's next call cannot meet the old state.
        assert (front(parent)[RUNNING_AT // 8], front(parent)[JOBS_AT // 8]) == (0, number)


def test_threads_get_their_own_replies(parent: Parent) -> None:
    threads, rounds = 5, 40
    call(parent, 1, conversation_jobs.in_threads, threads, rounds)
    parked: list[Frame] = []
    asked: Counter[int] = Counter()
    for number in range(threads * rounds):
        request = parent.expect(Kind.REQUEST)
        asked[request.body["thread"]] += 1
        parked.append(request)
        waiting = {request.body["thread"] for request in parked}
        finished = sum(count == rounds and thread not in waiting for thread, count in asked.items())
        # Some ask again while others wait. One at least can ask, until all have asked for the last time.
        while len(parked) >= min(3, threads - finished) > 0:
            request = parked.pop(number % len(parked))
            reply(parent, request, value=request.body["thread"])
            if asked[request.body["thread"]] < rounds:
                break
            finished += 1
    assert outcome(parent, 1) == []


@pytest.mark.parametrize("asks", [1, 2])
def test_thread_that_outlives_its_job(parent: Parent, asks: int) -> None:
    """It waits for a reply at the end of its job, or asks again after it."""
    call(parent, 1, conversation_jobs.leave_a_thread, asks)
    requests = {request.body["handle"]: request for request in (parent.expect(Kind.REQUEST), parent.expect(Kind.REQUEST))}
    if asks == 2:
        reply(parent, requests[1])
    reply(parent, requests[7])
    assert outcome(parent, 1) is None
    # Its reply crosses with the result.
    parent.say(Kind.REPLY, 1, (), {"request": requests[1].body["request"], "status": "cancelled"})
    call(parent, 2, conversation_jobs.echo, 1)
    reply(parent, parent.expect(Kind.REQUEST), value="mine")
    assert outcome(parent, 2) == ["mine"]
    call(parent, 3, conversation_jobs.end_of_thread)
    assert outcome(parent, 3) == ["JobEndedError"]


def test_signal_handler_that_raises_gives_the_item_back(parent: Parent) -> None:
    call(parent, 1, conversation_jobs.interrupted)
    request = parent.expect(Kind.REQUEST)
    os.kill(parent.process.pid, signal.SIGUSR1)
    withdraw = parent.expect(Kind.WITHDRAW)
    assert (withdraw.id, withdraw.body) == (1, {"request": request.body["request"]})
    reply(parent, request, value="item")
    post = parent.expect(Kind.POST)
    assert post.body == {
        "op": "return",
        "handle": 9,
        "thread": parent.process.pid,
        "count": request.body["request"],
    }
    assert pickle.loads(post.segments[0]) == "item"
    assert outcome(parent, 1) == "interrupted"


def test_signal_handler_that_returns_ends_nothing(parent: Parent) -> None:
    call(parent, 1, conversation_jobs.counted_signals)
    request = parent.expect(Kind.REQUEST)
    os.kill(parent.process.pid, signal.SIGUSR1)
    time.sleep(0)
    parent.say(Kind.CREDIT, 1, (), {"handle": 9, "count": 1})
    reply(parent, request, value="reply")
    assert outcome(parent, 1) == ("reply", 1)


def test_forked_copy_cannot_talk(parent: Parent) -> None:
    call(parent, 1, conversation_jobs.forked_copy)
    assert outcome(parent, 1) == 7


@pytest.mark.parametrize("deep", [False, True])
def test_handle_may_be_a_result(parent: Parent, deep: bool) -> None:
    call(parent, 1, conversation_jobs.returned_handle, deep)
    got = outcome(parent, 1)
    handle = got["handle"][0] if deep else got
    assert (handle._kind, handle._id, handle._details) == ("callback", 77, ("f",))


def test_silent_job_imports_nothing_of_it(parent: Parent) -> None:
    call(parent, 1, sorted, (3, 1))
    assert outcome(parent, 1) == [1, 3]
    call(parent, 2, eval, "[name for name in __import__('sys').modules if '_requests' in name or 'from_worker' in name]", {})
    names = outcome(parent, 2)
    if parent.process_kind != "fork":
        assert names == []


@pytest.mark.parametrize("kind", KINDS)
def test_reports_come_between_frames(kind: str) -> None:
    """The sentinel writes reports of a running job to the same socket."""
    with parent_of(_locate.runtime() if kind == "native" else LOOP, fork=kind == "fork") as parent:
        parent.bring_to("IDLE", report_interval_ms=1)
        call(parent, 1, conversation_jobs.post_large, 20, 2_000_000)
        sizes, reports = [], 0
        while True:
            got = parent.hear()
            assert got is not None
            if got.kind is Kind.REPORT:
                reports += 1
            elif got.kind is Kind.POST:
                sizes.append([len(segment) for segment in got.segments][1:])
                assert bytes(got.segments[1]) == b"x" * 2_000_000
            else:
                break
        assert got.kind is Kind.RESULT
        assert sizes == [[2_000_000]] * 20
        assert reports


@pytest.mark.parametrize("kind", ["native", "loop"])
def test_init_and_retire_cannot_talk(kind: str) -> None:
    way = _locate.runtime() if kind == "native" else LOOP
    with parent_of(way) as parent:
        parent.bring_to("AWAIT_SETUP")
        retire = pickle.dumps(conversation_jobs.Retire(), 5)
        parent.say(Kind.SETUP, 0, (b"", b"", retire), {"eager": False})
        parent.expect(Kind.READY)
        call(parent, 1, sorted, (3, 1))
        assert outcome(parent, 1) == [1, 3]
        # It says that the worker stays if it was refused.
        call(parent, 2, conversation_jobs.echo, 1)
        reply(parent, parent.expect(Kind.REQUEST), value=1)
        assert outcome(parent, 2) == [1]
    with parent_of(way) as parent:
        parent.bring_to("AWAIT_SETUP")
        parent.say(Kind.SETUP, 0, (b"", pickle.dumps(conversation_jobs.talk, 5), b""), {"eager": False})
        failed = parent.expect(Kind.SETUP_FAILED)
        assert "init, retire and exit handlers" in failed.body["message"]
        parent.expect_end(4)
