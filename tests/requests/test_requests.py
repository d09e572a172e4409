"""Requests of a job over a fake line: replies, timeouts, cancellation, threads and signal handlers."""

from __future__ import annotations

import gc
import os
import pickle
import random
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fake_line import FakeLine, in_job
from running import in_fork

from trio_offload_worker import from_worker
from trio_offload_worker._protocol.frames import HANDED_AT, Frame, Kind, encode_head
from trio_offload_worker._requests import credit, requests
from trio_offload_worker._requests.errors import Cancelled, JobEndedError
from trio_offload_worker._requests.messages import Segments, encode_request
from trio_offload_worker._requests.pickles import dumps
from trio_offload_worker._requests.requests import post, request


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLine]:
    with in_job(monkeypatch, FakeLine()) as line:
        yield line


def joined(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_request_carries_all_that_was_said(line: FakeLine) -> None:
    line.script = lambda frame: line.reply(frame, value="done")
    reply = request("send", 2**63, dumps({"a": b"x" * 300_000}), count=3)
    (frame,) = line.frames
    assert (frame.kind, frame.id) == (Kind.REQUEST, 7)
    assert frame.body == {
        "request": 1,
        "op": "send",
        "handle": 2**63,
        "thread": os.getpid(),
        "count": 3,
        "types": bytes([0, 1]),
    }
    assert pickle.loads(frame.segments[0], buffers=frame.segments[1:]) == {"a": b"x" * 300_000}
    assert (reply.status, reply.request, pickle.loads(reply.segments[0])) == ("value", 1, "done")


def test_plain_request_has_a_short_body(line: FakeLine) -> None:
    line.script = line.reply
    request("acquire")
    assert line.frames[0].body == {"request": 1, "op": "acquire", "thread": os.getpid()}
    assert line.frames[0].segments == []


@pytest.mark.parametrize("length", [None, 0, 255, 70_000])
@pytest.mark.parametrize("number", [1, 24, 300, 2**40])
def test_quick_head_is_the_general_one(number: int, length: int | None) -> None:
    segments = Segments((), () if length is None else (length,))
    for body in ({"op": "run"}, {"op": "run", "handle": 1}, {"op": "run", "count": 1, "shield": True}, {"op": "run"}):
        expected = encode_head(Kind.REQUEST, number, segments.lengths, body | {"request": number})
        assert encode_request(number, number, body, segments) == expected


def test_post_waits_for_nothing(line: FakeLine) -> None:
    post("set", 5)
    assert line.kinds() == ["POST"]
    assert line.frames[0].body == {"op": "set", "thread": os.getpid(), "handle": 5}
    assert line.reads == 0


def test_timeout_withdraws_and_waits_for_the_reply(line: FakeLine) -> None:
    line.script = lambda frame: line.reply(frame, "withdrawn") if frame.kind is Kind.WITHDRAW else None
    with pytest.raises(TimeoutError):
        request("acquire", 1, timeout=0.01)
    assert line.kinds() == ["REQUEST", "WITHDRAW"]
    assert line.frames[1].body == {"request": 1}


def test_item_that_crosses_with_a_withdrawal_counts(line: FakeLine) -> None:
    line.script = lambda frame: line.reply(frame, value="late") if frame.kind is Kind.WITHDRAW else None
    reply = request("receive", 1, timeout=0)
    assert pickle.loads(reply.segments[0]) == "late"
    assert line.kinds() == ["REQUEST", "WITHDRAW"]


def test_cancelled_job_does_not_ask(line: FakeLine) -> None:
    line.cancel(7)
    with pytest.raises(Cancelled):
        request("receive", 1)
    assert line.frames == []
    post("release", 1)
    assert line.kinds() == ["POST"]


def test_cancellation_ends_a_parked_request(line: FakeLine) -> None:
    line.script = lambda frame: line.reply(frame, "cancelled")
    with pytest.raises(Cancelled):
        request("receive", 1)


def test_shielded_request_says_so(line: FakeLine) -> None:
    line.script = line.reply
    line.cancel(7)
    with from_worker.shielded():
        request("receive", 1)
    request("receive", 1, shield=True)
    assert [frame.body.get("shield") for frame in line.frames] == [True, True]
    with from_worker.shielded(), pytest.raises(Cancelled):
        request("receive", 1, shield=False)


def test_shield_of_a_time_ends_a_parked_request(line: FakeLine) -> None:
    line.cancel(7)
    line.script = lambda frame: line.reply(frame, "withdrawn") if frame.kind is Kind.WITHDRAW else None
    with from_worker.shielded(0.01), pytest.raises(Cancelled):
        request("receive", 1)
    assert line.kinds() == ["REQUEST", "WITHDRAW"]


def test_shield_of_a_time_hears_a_later_cancellation(line: FakeLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_LOOK_EVERY", 0.001)
    line.script = lambda frame: line.reply(frame, "withdrawn") if frame.kind is Kind.WITHDRAW else None
    line.before_read = lambda: line.cancel(7) if line.reads > 20 else None
    with from_worker.shielded(0.001), pytest.raises(Cancelled):
        request("receive", 1)


def test_item_is_recorded_as_handed_over(line: FakeLine) -> None:
    line.script = line.reply
    for _ in range(65):
        reply = request("receive", 1)
    requests.hand_over(reply)
    assert line.front()[HANDED_AT // 8 + 1] == 65 * 256 + 255
    requests.hand_over(reply, 3)  # a place never gets a smaller number
    assert line.front()[HANDED_AT // 8 + 1] == 65 * 256 + 255


def test_credit_is_used_up_and_ends_with_its_call(line: FakeLine) -> None:
    def script(frame: Frame) -> None:
        line.credit(9, 2)
        line.credit(9, 1)
        line.reply(frame)

    line.script = script
    assert not requests.take_credit(9)
    request("send", 9)
    assert [requests.take_credit(9) for _ in range(4)] == [True, True, True, False]
    request("send", 9)
    line.running = 8
    assert not requests.take_credit(9)


def test_post_on_credit(line: FakeLine) -> None:
    def script(frame: Frame) -> None:
        if frame.kind is Kind.REQUEST:
            line.credit(9, 2)
            line.reply(frame)

    line.script = script
    small = dumps("x")
    assert not credit.post_on_credit("send", 9, small)
    request("send", 9)
    sent = len(line.frames)
    assert [credit.post_on_credit("send", 9, small) for _ in range(3)] == [True, True, False]
    assert [(frame.kind, frame.body["op"], frame.body["handle"]) for frame in line.frames[sent:]] == [
        (Kind.POST, "send", 9)
    ] * 2
    line.credit(9, 3)  # it has arrived, and is read when it is needed
    assert credit.post_on_credit("send", 9, dumps(bytes(300_000)))
    assert [len(frame.segments) for frame in line.frames[-2:]] == [1, 2]
    assert (credit.take_credit(9, 5), credit.take_credit(9, 5)) == (2, 0)
    line.credit(9, 1)
    line.cancel(7)
    with pytest.raises(Cancelled):
        credit.post_on_credit("send", 9, small)


def test_many_threads_share_one_reader(line: FakeLine) -> None:
    parked: list[Frame] = []

    def script(frame: Frame) -> None:
        parked.append(frame)
        if len(parked) == 8:
            # A leader reads for others first, or leaves while they wait.
            shuffle(parked)
            for waiting in parked:
                line.reply(waiting, value=waiting.body["thread"])
            parked.clear()

    shuffle = random.Random(17).shuffle
    line.script = script
    wrong: list[Any] = []

    def work() -> None:
        for _ in range(200):
            reply = request("wait", 1)
            if pickle.loads(reply.segments[0]) != threading.get_native_id():
                wrong.append(reply.request)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    joined(*threads)
    assert not wrong
    assert len(line.frames) == 1600
    assert len(line.readers) > 1


def test_timeout_of_a_follower(line: FakeLine) -> None:
    begun = threading.Event()

    def script(frame: Frame) -> None:
        if frame.kind is Kind.WITHDRAW:
            line.reply(frame, "withdrawn")
            line.reply(1)
        else:
            begun.set()

    line.script = script
    leader = threading.Thread(target=request, args=("wait", 1))
    leader.start()
    assert begun.wait(30)
    with pytest.raises(TimeoutError):
        request("wait", 1, timeout=0.01)
    joined(leader)


def test_leftover_threads_are_refused(line: FakeLine) -> None:
    line.script = line.reply
    go, outcomes = threading.Event(), []

    def work(adopts: bool) -> None:
        request("wait", 1)
        go.wait()
        for _ in range(2):
            try:
                request("wait", 1)
                outcomes.append("done")
            except JobEndedError:
                outcomes.append("refused")
            if adopts:
                job.adopt()

    threads = [threading.Thread(target=work, args=(adopts,)) for adopts in (False, True)]
    for thread in threads:
        thread.start()
    while len(line.frames) < 2:
        pass
    line.running = 8
    job = from_worker.job()
    go.set()
    joined(*threads)
    assert sorted(outcomes) == ["done", "refused", "refused", "refused"]
    line.running = 9
    with pytest.raises(JobEndedError):
        job.adopt()


def test_end_of_the_job_ends_the_waits_of_its_threads(line: FakeLine) -> None:
    errors: list[BaseException] = []
    parked = threading.Semaphore(0)
    line.script = lambda frame: parked.release()

    def work() -> None:
        try:
            request("wait", 1)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for _ in threads:
        parked.acquire()
    line.end_job()
    joined(*threads)
    assert [type(error) for error in errors] == [JobEndedError] * 5
    assert line.kinds() == ["REQUEST"] * 5


def test_nothing_may_be_said_without_a_job(line: FakeLine) -> None:
    line.running = 0
    for speak in (lambda: request("wait", 1), lambda: post("set", 1), from_worker.job):
        with pytest.raises(RuntimeError, match="init, retire and exit handlers"):
            speak()
    from_worker.check_cancelled()


def test_forked_copy_may_not_speak(line: FakeLine) -> None:
    from_worker.check_cancelled()

    def speak_in_copy() -> None:
        for speak in (lambda: request("wait", 1), lambda: post("set", 1), from_worker.check_cancelled, from_worker.job):
            with pytest.raises(RuntimeError, match="forked off a job"):
                speak()

    assert in_fork(speak_in_copy) == 0
    assert line.frames == []


class Alarm(Exception):
    pass


def raise_alarm(*args: object) -> None:
    raise Alarm


@pytest.fixture
def alarm() -> Iterator[None]:
    # What is raised in a callback of the garbage collector is lost, and Hypothesis has one.
    callbacks, gc.callbacks[:] = gc.callbacks[:], []
    before = signal.signal(signal.SIGUSR1, raise_alarm)
    yield
    signal.signal(signal.SIGUSR1, before)
    gc.callbacks[:] = callbacks


@pytest.mark.usefixtures("alarm")
def test_signal_handler_that_raises_withdraws(line: FakeLine) -> None:
    line.script = lambda frame: line.reply(frame, "withdrawn") if frame.kind is Kind.WITHDRAW else None
    line.before_read = lambda: signal.raise_signal(signal.SIGUSR1) if line.reads == 1 else None
    with pytest.raises(Alarm):
        request("receive", 1)
    assert line.kinds() == ["REQUEST", "WITHDRAW"]


@pytest.mark.usefixtures("alarm")
def test_signal_handler_that_raises_gives_an_item_back(line: FakeLine) -> None:
    line.script = lambda frame: line.reply(frame, value="item") if frame.kind is Kind.WITHDRAW else None
    # A second one comes while the reply to the withdrawal is awaited.
    line.before_read = lambda: signal.raise_signal(signal.SIGUSR1) if line.reads < 3 else None
    with pytest.raises(Alarm):
        request("receive", 1, give_back="return")
    assert line.kinds() == ["REQUEST", "WITHDRAW", "POST"]
    assert line.frames[2].body == {"op": "return", "handle": 1, "thread": os.getpid(), "count": 1}
    assert pickle.loads(line.frames[2].segments[0]) == "item"


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("moment", range(3))
def test_signal_handler_at_a_write(line: FakeLine, moment: int) -> None:
    """The handler runs as soon as a frame is out: after REQUEST, after WITHDRAW, or after both."""
    hits = {0: (1,), 1: (2,), 2: (1, 2)}[moment]
    line.script = lambda frame: line.reply(frame, "withdrawn") if frame.kind is Kind.WITHDRAW else None
    line.after_write = lambda: signal.raise_signal(signal.SIGUSR1) if len(line.frames) in hits else None
    with pytest.raises(Alarm):
        request("receive", 1, timeout=0.01)
    assert line.kinds() == ["REQUEST", "WITHDRAW"]


@pytest.mark.usefixtures("alarm")
def test_signal_storm_loses_nothing(line: FakeLine) -> None:
    """Handlers raise at any instruction; each item is received or given back."""
    items = iter(range(10**9))
    held: set[int] = set()

    def script(frame: Frame) -> None:
        if frame.kind is Kind.REQUEST:
            item = next(items)
            held.add(item)
            line.reply(frame, value=item)
        elif frame.kind is Kind.POST:
            held.remove(pickle.loads(frame.segments[0]))

    armed, done, main = threading.Event(), False, threading.get_ident()

    def storm() -> None:
        seconds = random.Random(17)
        while armed.wait() and not done:
            time.sleep(seconds.random() / 20_000)
            armed.clear()
            signal.pthread_kill(main, signal.SIGUSR1)

    # The fake's own code is not made for handlers that raise, so they are blocked in it.
    line.script = script
    write, read = line.write, line.read

    def guarded(function: Any, *args: Any) -> None:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
            function(*args)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    line.write = lambda *args: guarded(write, *args)  # type: ignore[method-assign]
    line.read = lambda *args: guarded(read, *args)  # type: ignore[method-assign]
    thread = threading.Thread(target=storm)
    thread.start()
    try:
        for _ in range(300):
            with pytest.raises(Alarm):
                armed.set()
                while True:
                    request("receive", 1, give_back="return")
    finally:
        # Also if it has failed: a later signal would end the process.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        done = True
        armed.set()
        joined(thread)
    # No request is left open, and nobody leads.
    conversation: Any = requests._conversations[os.getpid()]
    assert not conversation._open
    assert not conversation._leader
    line.reply(10**9)
    assert request("receive", 1).status == "value"
