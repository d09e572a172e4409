"""The line of a real job in the executable, with a scripted parent: what PROTOCOL.md says of jobs that talk."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import line_jobs
import pytest
from lifeline import PATIENCE
from test_worker_side import Parent, frame, parent_of

from trio_offload import WorkerType, open_worker_context
from trio_offload._interpreter import locate
from trio_offload_worker._protocol.frames import BYTEARRAY, BYTES, MEMORY, Frame, Kind

SETTINGS: Final = frame(Kind.SETTINGS, pickle.dumps({}, 5), body={"eager": False})


@pytest.fixture
def parent() -> Iterator[Parent]:
    with parent_of(locate.runtime()) as parent:
        parent.bring_to("IDLE")
        yield parent


def call_of(function: Callable[..., Any], *args: Any, id: int = 1) -> bytes:
    return frame(Kind.CALL, pickle.dumps((function, args), 5), id=id)


def reply(request: Frame, *segments: bytes, status: str = "value", types: bytes = b"") -> bytes:
    body = {"request": request.body["request"], "status": status} | ({"types": types} if types else {})
    return frame(Kind.REPLY, *segments, id=request.id, body=body)


def result_of(parent: Parent, id: int = 1) -> Any:
    answer = parent.hear()
    assert answer is not None
    assert (answer.kind, answer.id) == (Kind.RESULT, id), answer.body
    return pickle.loads(answer.segments[0])


def request_of(parent: Parent, op: str, id: int = 1) -> Frame:
    request = parent.expect(Kind.REQUEST)
    assert (request.id, request.body["op"]) == (id, op)
    return request


def hear_all(parent: Parent) -> list[Frame]:
    """The next frame, and those that have come with it. Their segments are copies."""
    frames = []
    said = parent.hear()
    while said is not None:
        said.segments = [bytes(segment) for segment in said.segments]
        frames.append(said)
        said = parent._decoder.next_frame()
    return frames


def test_request_and_reply(parent: Parent) -> None:
    parent.socket.sendall(call_of(line_jobs.ask, "receive"))
    request = request_of(parent, "receive")
    assert request.body["thread"] == parent.process.pid
    parent.socket.sendall(reply(request, b"first", b"", b"third"))
    assert result_of(parent) == ("value", [("bytes", b"first"), ("bytearray", b""), ("bytearray", b"third")])


def test_segments_become_what_their_types_say(parent: Parent) -> None:
    parent.socket.sendall(call_of(line_jobs.ask_of_sizes, "receive"))
    sizes = (40_000, 3_000_000, 3_000_000, 3_000_000, 5)
    types = bytes([MEMORY, MEMORY, BYTES, BYTEARRAY, BYTES])
    parent.socket.sendall(reply(request_of(parent, "receive"), *map(bytes, sizes), types=types))
    kinds = ["bytearray", "memoryview", "bytes", "bytearray", "bytes"]
    writable = [True, True, False, True, False]
    assert result_of(parent) == list(zip(kinds, sizes, writable, strict=True))


@pytest.mark.parametrize("calls", [0, 1, 15])
def test_reply_behind_calls_sent_ahead(parent: Parent, calls: int) -> None:
    """Also with a large one, and in small pieces."""
    parent.socket.sendall(call_of(line_jobs.ask, "receive"))
    request = request_of(parent, "receive")
    ahead = [SETTINGS]
    ahead += [call_of(len, bytes(number * 7_000), id=2 + number) for number in range(calls)]
    late = frame(Kind.REPLY, b"late", id=0, body={"request": 1, "status": "value"})
    stream = b"".join(ahead) + late + reply(request, b"answer") + call_of(len, bytes(300_000), id=2 + calls)
    for at in range(0, 1_300, 13):
        parent.socket.sendall(stream[at : at + 13])
    parent.socket.sendall(stream[1_300:])
    parent.socket.sendall(frame(Kind.RETIRE))
    assert result_of(parent) == ("value", [("bytes", b"answer")])
    for number in range(calls):
        assert result_of(parent, 2 + number) == number * 7_000
    assert result_of(parent, 2 + calls) == 300_000
    parent.expect(Kind.RETIRED)
    parent.expect_end(0)


def test_job_that_was_set_aside_may_ask_too(parent: Parent) -> None:
    parent.socket.sendall(call_of(line_jobs.ask, "first"))
    first = request_of(parent, "first")
    parent.socket.sendall(call_of(line_jobs.ask, "second", id=2) + frame(Kind.RETIRE) + reply(first))
    assert result_of(parent) == ("value", [])
    # It answers behind the RETIRE, which is set aside in its turn.
    parent.socket.sendall(reply(request_of(parent, "second", 2), status="would_block"))
    assert result_of(parent, 2) == ("would_block", [])
    assert parent.expect(Kind.RETIRED).body == {"reason": "asked"}
    parent.expect_end(0)


def test_post_carries_large_segments(parent: Parent) -> None:
    sizes = (5, 20_000_000, 0, 300_000)
    parent.socket.sendall(call_of(line_jobs.say, *sizes))
    post = parent.expect(Kind.POST)
    assert (post.id, post.body["op"], post.body["handle"]) == (1, "set", 2**63)
    assert [bytes(segment) for segment in post.segments] == [bytes([number]) * size for number, size in enumerate(sizes)]
    assert result_of(parent) is None


def test_timeout_is_withdrawn_and_answered(parent: Parent) -> None:
    parent.socket.sendall(call_of(line_jobs.ask_until_time_is_over))
    request = request_of(parent, "sleep")
    assert parent.expect(Kind.WITHDRAW).body == {"request": request.body["request"]}
    parent.socket.sendall(reply(request, status="withdrawn"))
    assert result_of(parent) == "over"


@pytest.mark.parametrize("raises", [False, True])
def test_signal_handler_runs_while_a_request_waits(parent: Parent, raises: bool) -> None:
    parent.socket.sendall(call_of(line_jobs.ask_with_handler, raises))
    request = request_of(parent, "sleep")
    os.kill(parent.process.pid, signal.SIGUSR1)
    assert parent.expect(Kind.POST).body["op"] == "handled"
    if raises:
        parent.expect(Kind.WITHDRAW)
    parent.socket.sendall(reply(request))
    if raises:
        assert parent.expect(Kind.POST).body["op"] == "return"
    assert result_of(parent) == ("raised" if raises else "value")


def test_threads_of_a_job_share_the_line(parent: Parent) -> None:
    parent.socket.sendall(call_of(line_jobs.ask_in_threads, 8, 200))
    while True:
        said = hear_all(parent)
        if said[0].kind is Kind.RESULT:
            break
        # The latest first, if several wait.
        parent.socket.sendall(b"".join(reply(request, *request.segments) for request in reversed(said)))
    assert pickle.loads(said[0].segments[0]) == 1600


def test_thread_left_behind_reads_nothing_of_the_next_job(parent: Parent) -> None:
    parent.socket.sendall(call_of(line_jobs.leave_a_thread_behind))
    requests = {request.body["op"]: request for request in (parent.expect(Kind.REQUEST), parent.expect(Kind.REQUEST))}
    parent.socket.sendall(reply(requests["answer me"]))
    assert result_of(parent) is None
    parent.socket.sendall(call_of(line_jobs.ask, "receive", id=2))
    # The parent may have answered before it read the result of the first job.
    parent.socket.sendall(reply(requests["sleep"]) + reply(request_of(parent, "receive", 2), b"mine"))
    assert result_of(parent, 2) == ("value", [("bytes", b"mine")])
    parent.socket.sendall(call_of(line_jobs.join_it, id=3))
    assert result_of(parent, 3) == ["ended"]


@pytest.mark.parametrize("daemon", [False, True])
def test_thread_left_behind_does_not_hinder_the_end(parent: Parent, daemon: bool) -> None:
    """Python ends the threads that it does not wait for, and must not find one in the midst of a read."""
    parent.socket.sendall(call_of(line_jobs.leave_a_thread_behind, daemon) + frame(Kind.RETIRE))
    requests = {request.body["op"]: request for request in (parent.expect(Kind.REQUEST), parent.expect(Kind.REQUEST))}
    parent.socket.sendall(reply(requests["answer me"]))
    assert result_of(parent) is None
    parent.expect(Kind.RETIRED)
    parent.expect_end(0)


@pytest.mark.parametrize("how", ["closed", "shut down"])
def test_parents_end_ends_a_waiting_job(parent: Parent, how: str) -> None:
    parent.socket.sendall(call_of(line_jobs.ask, "sleep"))
    request_of(parent, "sleep")
    if how == "closed":
        parent.socket.close()
    else:
        parent.socket.shutdown(socket.SHUT_WR)
    assert parent.process.wait_sync(time.monotonic() + PATIENCE)
    assert parent.process.exitcode == 6


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "bad_magic"),
        (frame(Kind.READY), "unexpected_message"),
        (frame(Kind.REPLY, id=2, body={"request": 1, "status": "value"}), "unexpected_message"),
        (frame(Kind.REPLY, id=1, body={"request": 1}), "malformed_body"),
    ],
)
def test_error_in_the_stream_ends_a_waiting_job(parent: Parent, said: bytes, code: str) -> None:
    parent.socket.sendall(call_of(line_jobs.ask, "sleep"))
    request_of(parent, "sleep")
    parent.socket.sendall(said)
    assert parent.expect(Kind.ABORTED).body["code"] == code
    parent.expect_end(5)


def test_copy_of_a_job_has_no_line(parent: Parent) -> None:
    parent.socket.sendall(call_of(line_jobs.ask_in_a_fork))
    assert result_of(parent) == repr(["this process was forked off a j"] * 3)
    parent.socket.sendall(call_of(line_jobs.ask, "sleep", id=2))
    parent.socket.sendall(reply(request_of(parent, "sleep", 2), status="withdrawn"))
    answer = parent.expect(Kind.RAISED)
    assert answer.body["type"] == "TimeoutError"


def test_one_thread_reads_at_a_time(parent: Parent) -> None:
    parent.socket.sendall(call_of(line_jobs.read_twice))
    assert "another thread" in result_of(parent)


def test_job_that_closes_the_socket_hears_of_it(parent: Parent) -> None:
    parent.socket.sendall(call_of(line_jobs.close_the_socket))
    assert parent.process.wait_sync(time.monotonic() + PATIENCE)
    assert parent.process.exitcode == 5


@pytest.mark.parametrize("kind", [WorkerType.SPAWN, WorkerType.FORKSERVER])
async def test_line_belongs_to_the_worker_and_is_hidden(kind: WorkerType) -> None:
    async with open_worker_context(worker_type=kind) as context:
        for _ in range(2):
            assert await context.run_sync(line_jobs.facts) == (True, True, True, True)
