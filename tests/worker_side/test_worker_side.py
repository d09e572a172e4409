"""Contract: the worker's half of the state table in PROTOCOL.md, row by row, with a parent that says anything.

All kinds of worker pass it, each as a process. (``worker-bin/tests/session.rs`` has more, without one.)
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from kinds import LOOP
from lifeline import PATIENCE

from trio_offload._interpreter import hello as _hello
from trio_offload._interpreter import locate as _locate
from trio_offload._launch import fork as fork_launch
from trio_offload._launch import spawn as spawn_launch
from trio_offload._process.process import WorkerProcess
from trio_offload_worker._protocol.decoder import Decoder
from trio_offload_worker._protocol.frames import BYTEARRAY, BYTES, MAGIC, MEMORY, Frame, Kind, encode_head


class Parent:
    """Speaks raw bytes in a parent's place."""

    def __init__(
        self,
        process: WorkerProcess,
        ours: socket.socket,
        way: _locate.WorkerRuntime,
        kind: str = "loop",
        record: int = -1,
    ) -> None:
        self.process = process
        self.process_kind = kind
        self.record = record
        self.socket = ours
        self.socket.settimeout(PATIENCE)
        self.way = way
        self._decoder = Decoder()

    def say(self, kind: Kind, id: int = 0, segments: tuple[bytes, ...] = (), body: Any = None) -> None:
        self.socket.sendall(encode_head(kind, id, [len(segment) for segment in segments], body) + b"".join(segments))

    def hear(self) -> Frame | None:
        """The next frame; None at the end of the stream."""
        while (frame := self._decoder.next_frame()) is None:
            count = self.socket.recv_into(self._decoder.writable())
            if count == 0:
                self._decoder.end_of_stream()
                return None
            self._decoder.wrote(count)
        return frame

    def hello(self, **changes: Any) -> dict[str, Any]:
        return _hello.hello(self.way.libpython, spawn_launch.original_environment(self.way)) | changes

    def bring_to(self, state: str, **setup: Any) -> None:
        if state != "AWAIT_HELLO":
            self.say(Kind.HELLO, body=self.hello())
            assert self.expect(Kind.WELCOME).body["pid"] == self.process.pid
        if state == "IDLE":
            self.say(Kind.SETUP, 0, (b"", b"", b""), {"eager": False} | setup)
            # The sentinel reports in SETTING_UP too, where that takes longer than its interval.
            while (frame := self.hear()) is not None and frame.kind is Kind.REPORT:
                pass
            assert frame is not None
            assert frame.kind is Kind.READY

    def expect(self, kind: Kind) -> Frame:
        frame = self.hear()
        assert frame is not None
        assert frame.kind is kind, frame.body
        return frame

    def expect_end(self, code: int) -> None:
        assert self.hear() is None
        assert self.process.wait_sync(time.monotonic() + PATIENCE)
        assert self.process.exitcode == code


@contextmanager
def parent_of(way: _locate.WorkerRuntime, *, fork: bool = False, retire: Any = None) -> Iterator[Parent]:
    """``retire`` is for a fork, which inherits it; others are told with SETUP."""
    process, ours, record = fork_launch.fork(None, retire) if fork else spawn_launch.spawn(way)
    try:
        kind = "fork" if fork else "native" if way.is_native else "loop"
        yield Parent(process, ours, way, kind, record.fileno())
    finally:
        process.kill()
        process.wait_sync(time.monotonic() + PATIENCE)
        ours.close()
        record.close()


@pytest.fixture(params=["native", "loop", "fork"])
def parent(request: pytest.FixtureRequest) -> Iterator[Parent]:
    with parent_of(_locate.runtime() if request.param == "native" else LOOP, fork=request.param == "fork") as parent:
        yield parent


CALL: Final = pickle.dumps((int, ("5",)), 5)
SETTINGS: Final = pickle.dumps({}, 5)
STATES: Final = ("AWAIT_HELLO", "AWAIT_SETUP", "IDLE")


def frame(kind: Kind, *segments: bytes, id: int = 0, body: Any = None) -> bytes:
    return encode_head(kind, id, [len(segment) for segment in segments], body) + b"".join(segments)


# What a parent may say, or do.
EVENTS: Final[dict[str, bytes]] = {
    "HELLO": b"",  # made when the worker is known
    "SETUP": frame(Kind.SETUP, b"", b"", b"", body={"eager": False}),
    "CALL": frame(Kind.CALL, CALL, id=1),
    "SETTINGS": frame(Kind.SETTINGS, SETTINGS, body={"eager": False}),
    "RETIRE": frame(Kind.RETIRE),
    "RESULT": frame(Kind.RESULT, CALL, id=1),
    "READY": frame(Kind.READY),
    "a call of a tebibyte": encode_head(Kind.CALL, 1, [2**40]),
    "a call with bytes of nearly a tebibyte": encode_head(Kind.CALL, 1, [0, 2**40 - 1], {"types": bytes([MEMORY, BYTES])}),
    "a call with a bytearray of that size": encode_head(Kind.CALL, 1, [0, 2**40 - 1], {"types": bytes([MEMORY, BYTEARRAY])}),
    "REPLY": frame(Kind.REPLY, CALL, id=1, body={"request": 1, "status": "value"}),
    "CREDIT": frame(Kind.CREDIT, id=1, body={"handle": 1, "count": 2}),
    "REQUEST": frame(Kind.REQUEST, id=1, body={"request": 1, "op": "sleep", "thread": 1}),
    "POST": frame(Kind.POST, id=1, body={"op": "set", "thread": 1}),
    "WITHDRAW": frame(Kind.WITHDRAW, id=1, body={"request": 1}),
    "an unknown kind": MAGIC + bytes.fromhex("00000004 0000000000000000 83 0a00 80"),
    "garbage": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a body that lacks something": frame(Kind.SETUP, b"", b"", b"", body={"idle_timeout_ms": 5}),
    "an end inside a frame": frame(Kind.CALL, CALL, id=1)[:7],
    "end": b"",
}
# What comes of each: the message, with the code of an ABORTED. Where a state has no entry it is `unexpected_message`.
ALWAYS: Final = {
    "an unknown kind": "unknown_kind",
    "garbage": "bad_magic",
    "a body that lacks something": "malformed_body",
    "an end inside a frame": "torn_frame",
    "end": "",
}
TABLE: Final[dict[str, dict[str, str]]] = {
    "AWAIT_HELLO": {"HELLO": "WELCOME"},
    "AWAIT_SETUP": {"SETUP": "READY", "RETIRE": "RETIRED"},
    "IDLE": {
        "CALL": "RESULT",
        "RETIRE": "RETIRED",
        "SETTINGS": "nothing",
        "a call of a tebibyte": "out_of_memory",
        "a call with bytes of nearly a tebibyte": "out_of_memory",
        "a call with a bytearray of that size": "out_of_memory",
    },
}
CELLS: Final = [
    pytest.param(
        state, event, answer := (ALWAYS | TABLE[state]).get(event, "unexpected_message"), id=f"{state}, {event}: {answer}"
    )
    for state in STATES
    for event in EVENTS
]


@pytest.mark.parametrize(("state", "event", "answer"), CELLS)
def test_every_event_in_every_state(parent: Parent, state: str, event: str, answer: str) -> None:
    parent.bring_to(state)
    data = EVENTS[event]
    parent.socket.sendall(encode_head(Kind.HELLO, 0, (), parent.hello()) if event == "HELLO" else data)
    if "end" in event.split() or event == "garbage":
        parent.socket.shutdown(socket.SHUT_WR)
    if answer == "":
        parent.expect_end(0)
    elif answer == "RETIRED":
        assert parent.expect(Kind.RETIRED).body == {"reason": "asked"}
        parent.expect_end(0)
    elif answer in ("WELCOME", "READY", "RESULT"):
        got = parent.hear()
        assert got is not None
        assert got.kind.name == answer
        if answer == "RESULT":
            assert (got.id, pickle.loads(got.segments[0])) == (1, 5)
    elif answer == "nothing":
        parent.say(Kind.RETIRE)
        parent.expect(Kind.RETIRED)
    else:
        aborted = parent.expect(Kind.ABORTED)
        assert aborted.body["code"] == answer
        assert aborted.body["message"]
        parent.expect_end(5)


def test_idle_worker_ignores_answers_of_ended_calls_only(parent: Parent) -> None:
    parent.bring_to("IDLE")
    crossed = [
        frame(Kind.REPLY, CALL, bytes(300_000), id=5, body={"request": 1, "status": "value", "types": bytes([0, 1])}),
        frame(Kind.REPLY, id=4, body={"request": 2, "status": "cancelled"}),
        frame(Kind.CREDIT, id=5, body={"handle": 1, "count": 2}),
    ]
    parent.socket.sendall(frame(Kind.CALL, CALL, id=5) + b"".join(crossed) + frame(Kind.CALL, CALL, id=6))
    assert (parent.expect(Kind.RESULT).id, parent.expect(Kind.RESULT).id) == (5, 6)
    parent.say(Kind.REPLY, 7, (), {"request": 1, "status": "value"})
    assert parent.expect(Kind.ABORTED).body["code"] == "unexpected_message"
    parent.expect_end(5)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"protocol": 99}, "protocol_version", "the same release"),
        ({"parent_pid": 1}, "wrong_parent", "has ended"),
        ({"version": "3.1.4 (another)"}, "python_version", "3.1.4"),
        ({"free_threaded": True}, "python_version", "a free-threaded build"),
        ({"environment": [[b"A=B", b"value"]]}, "environment", "environment variable"),
    ],
)
def test_a_worker_that_cannot_be_what_is_wanted_refuses(
    parent: Parent, changes: dict[str, Any], code: str, words: str
) -> None:
    parent.say(Kind.HELLO, body=parent.hello(**changes))
    refused = parent.expect(Kind.REFUSED)
    assert refused.body["code"] == code
    assert words in refused.body["message"]
    parent.expect_end(3)


def test_what_was_sent_together_is_handled_in_order(parent: Parent) -> None:
    """Also byte by byte, and with a segment that does not fit the buffer."""
    ballast = bytes(300_000)
    calls = [frame(Kind.CALL, pickle.dumps((len, (ballast[:size],)), 5), id=1 + size) for size in (0, 5, 70_000, 300_000)]
    stream = b"".join(
        [
            encode_head(Kind.HELLO, 0, (), parent.hello()),
            EVENTS["SETUP"],
            EVENTS["SETTINGS"],
            *calls,
            EVENTS["RETIRE"],
        ]
    )
    for byte in stream[:200]:
        parent.socket.sendall(bytes((byte,)))
    parent.socket.sendall(stream[200:])
    parent.expect(Kind.WELCOME)
    parent.expect(Kind.READY)
    for size in (0, 5, 70_000, 300_000):
        result = parent.expect(Kind.RESULT)
        assert (result.id, pickle.loads(result.segments[0])) == (1 + size, size)
    parent.expect(Kind.RETIRED)
    parent.expect_end(0)


@pytest.mark.parametrize("size", [5, 20_000_000], ids=["small", "larger than the socket"])
@pytest.mark.parametrize("kind", ["native", "loop", "fork"])
def test_retired_worker_skips_call_sent_ahead(kind: str, size: int, tmp_path: Path) -> None:
    """It is there when the worker has answered the one before it, and then `retire` says that it leaves."""
    way = _locate.runtime() if kind == "native" else LOOP
    with parent_of(way, fork=kind == "fork", retire=object) as parent:
        parent.bring_to("AWAIT_SETUP")
        parent.say(Kind.SETUP, 0, (b"", b"", pickle.dumps(object, 5)), {"eager": False})
        parent.expect(Kind.READY)
        ahead = frame(Kind.CALL, pickle.dumps((os.mkdir, (str(tmp_path / "made"),)), 5), bytes(size), id=2)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # The worker takes no more of it once it has said its last words.
            parent.socket.sendall(frame(Kind.CALL, CALL, id=1) + ahead)
        assert parent.expect(Kind.RESULT).id == 1
        assert parent.expect(Kind.RETIRED).body == {"reason": "retire"}
        with contextlib.suppress(ConnectionResetError):
            assert parent.hear() is None
        assert parent.process.wait_sync(time.monotonic() + PATIENCE)
        assert parent.process.exitcode == 0
        assert not (tmp_path / "made").exists()


def test_a_body_of_a_later_version_is_read(parent: Parent) -> None:
    """What a later minor version may add: keys that this one does not know, of any kind that CBOR has."""
    import cbor2

    body = cbor2.dumps(parent.hello(later=[1.5, {"nested": {1: None}}], flags={"verbose": 0, "tea": 1}))
    header = b"\x84\x01\x00\x80" + body
    parent.socket.sendall(MAGIC + len(header).to_bytes(4, "big") + bytes(8) + header)
    got = parent.hear()
    assert got is not None
    if parent.way.is_native or got.kind is Kind.WELCOME:
        assert got.kind is Kind.WELCOME
    else:
        # It has not got the parent's path yet, and so perhaps no library that reads numbers with a fraction; it says so.
        assert "cbor2" in got.body["message"]


def test_the_idle_time_is_over(parent: Parent) -> None:
    parent.bring_to("IDLE", idle_timeout_ms=20)
    parent.socket.sendall(EVENTS["CALL"])
    parent.expect(Kind.RESULT)
    assert parent.expect(Kind.RETIRED).body == {"reason": "idle"}
    parent.expect_end(0)


def test_the_environment_is_given_back(parent: Parent) -> None:
    parent.say(Kind.HELLO, body=parent.hello(environment=[[b"A_VARIABLE", b"\xff"], [b"HOME", None]]))
    parent.expect(Kind.WELCOME)
    parent.say(Kind.SETUP, 0, (b"", b"", b""), {"eager": False})
    parent.expect(Kind.READY)
    code = "(__import__('os').environb.get(b'A_VARIABLE'), __import__('os').environ.get('HOME'))"
    parent.say(Kind.CALL, 1, (pickle.dumps((eval, (code, {})), 5),))
    assert pickle.loads(parent.expect(Kind.RESULT).segments[0]) == (b"\xff", None)
    parent.say(Kind.CALL, 2, (pickle.dumps((eval, ("__import__('sys').path", {})), 5),))
    assert pickle.loads(parent.expect(Kind.RESULT).segments[0]) == [entry for entry in sys.path if isinstance(entry, str)]
