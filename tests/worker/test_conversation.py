"""Contract: what a job may say while it runs, and what its parent replies. The peer is the test, as in ``test_worker_table``."""

from __future__ import annotations

import contextvars
import os
import pickle
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import jobs
import outcome
import pytest
import trio
from lifeline import PATIENCE
from scripted_peer import Peer, frame, pickled, scripted_peer, welcome
from trio.testing import wait_all_tasks_blocked
from workers import begin_worker

from trio_offload import BrokenWorkerError, JobExitError
from trio_offload._pickling.calls import dump_call
from trio_offload._pickling.payload import Payload
from trio_offload._transport.sockets import Descriptors
from trio_offload._worker.requests import Death, JobOwner, Post, Request
from trio_offload._worker.states import CallNotRun, State
from trio_offload._worker.worker import Worker
from trio_offload_worker._protocol.frames import Frame, Kind


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    with scripted_peer(tmp_path, monkeypatch) as peer:
        yield peer


class RecordingGrant:
    """A handle that parks each request and remembers what it is told."""

    id = 77

    def __init__(self) -> None:
        self.parked: list[Request] = []
        self.posts: list[Post] = []
        self.withdrawn: list[int] = []
        self.ends: list[Death | None] = []

    def begin(self, conversation: Any) -> None:
        pass

    def for_call(self) -> RecordingGrant:
        return self

    def request(self, request: Request) -> None:
        if request.op == "at once":
            request.complete_value("done")
            return
        self.parked.append(request)
        request.on_withdraw = lambda: self.withdrawn.append(request.number)

    def post(self, post: Post) -> None:
        self.posts.append(post)

    def end(self, death: Death | None) -> None:
        self.ends.append(death)


class Talk:
    """A worker with one call in progress, and the peer that runs it."""

    def __init__(self, peer: Peer, worker: Worker, grant: RecordingGrant) -> None:
        self.peer = peer
        self.worker = worker
        self.grant = grant
        self.result: outcome.Outcome[Any] | None = None
        self.scope = trio.CancelScope()
        self.done = trio.Event()
        self.start: Callable[[], None]

    def submit(self, *, has_handle: bool = True) -> None:
        call = dump_call(int, ("5",))
        grants = (self.grant,) if has_handle else ()
        self.worker.submit(Payload(call.parts, call.lengths, int, call.types, False, grants))

    async def answer(self, *, cancellable: bool, grace: float | None) -> None:
        self.worker.grace = grace
        self.done, self.scope = trio.Event(), trio.CancelScope()
        with self.scope:
            self.result = await outcome.acapture(self.worker.answer, cancellable, True)
            if isinstance(self.result, outcome.Error) and isinstance(self.result.error, trio.Cancelled):
                self.result = None
        self.done.set()

    def request(self, op: str, *, number: int = 1, value: Any = None, call: int = 1, **body: Any) -> None:
        fields = {"request": number, "op": op, "thread": 9, **body}
        self.peer.say(frame(Kind.REQUEST, call, () if value is None else (pickled(value),), fields))

    def post(self, op: str, *, call: int = 1, **body: Any) -> None:
        self.peer.say(frame(Kind.POST, call, (), {"op": op, "thread": 9, **body}))

    async def reply(self, number: int = 1) -> tuple[str, Any, Frame]:
        """The status and the value of the next reply."""
        frame = await self.peer.hear(Kind.REPLY)
        assert frame.body["request"] == number
        value = pickle.loads(frame.segments[0], buffers=frame.segments[1:]) if frame.segments else None
        return frame.body["status"], value, frame

    def return_value(self, value: Any = 5, call: int = 1) -> None:
        self.peer.say(frame(Kind.RESULT, call, (pickled(value),)))


@asynccontextmanager
async def talking(
    peer: Peer, *, cancellable: bool = False, grace: float | None = None, calls: int = 1, has_handle: bool = True
) -> AsyncIterator[Talk]:
    """A call in progress. At the end of the block it must have an outcome, and the worker ends."""
    worker = begin_worker()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: worker.finish(cancellable=True))
        await peer.hear(Kind.HELLO)
        await peer.hear(Kind.SETUP)
        peer.say(welcome() + frame(Kind.READY))
    talk = Talk(peer, worker, RecordingGrant())
    try:
        for _ in range(calls):
            talk.submit(has_handle=has_handle)
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                talk.start = lambda: nursery.start_soon(lambda: talk.answer(cancellable=cancellable, grace=grace))
                talk.start()
                try:
                    await peer.hear(Kind.CALL)
                    yield talk
                except BaseException:
                    peer.end()  # the call would wait on
                    raise
    finally:
        await worker.end()


async def test_function_by_name(peer: Peer) -> None:
    async with talking(peer) as talk:
        talk.request("run_sync", value=(divmod, (7, 2)))
        assert (await talk.reply())[:2] == ("value", (3, 1))
        talk.request("run_sync", number=2, value=(int, ("x",)))
        status, error, _ = await talk.reply(2)
        assert (status, type(error)) == ("raised", ValueError)
        talk.return_value()
        await talk.done.wait()
        assert talk.worker.state is State.IDLE
    assert talk.result == outcome.Value((5, None))


async def test_async_function_runs_beside_the_job(peer: Peer) -> None:
    async with talking(peer) as talk:
        talk.request("run", number=1, value=(trio.sleep_forever, ()))
        talk.request("run", number=2, value=(trio.sleep, (0,)))
        talk.request("run_sync", number=3, value=(int, ("3",)))
        replies = sorted([(await peer.hear(Kind.REPLY)).body["request"] for _ in range(2)])
        assert replies == [2, 3]
        talk.return_value()
    # The answer has come, so the function that still ran was cancelled.
    assert talk.result == outcome.Value((5, None))


async def test_large_replies_live_until_the_thread_speaks_again(peer: Peer) -> None:
    """The socket may hold pages of their memory until the job has read them."""

    class Memory(bytearray):
        pass

    async with talking(peer) as talk:
        for number in (1, 2):
            talk.request("x", number=number, handle=77, thread=9)
            while len(talk.grant.parked) < number:
                await trio.testing.wait_all_tasks_blocked(0.001)
            memory = Memory(2**20)
            reference = weakref.ref(memory)
            talk.grant.parked[-1].complete("value", [pickled(None), memoryview(memory)])
            del memory
            await talk.reply(number)
            talk.post("other", handle=77, thread=10)
            while len(talk.grant.posts) < 2 * number - 1:
                await trio.testing.wait_all_tasks_blocked(0.001)
            assert reference() is not None
            if number == 1:
                talk.post("next", handle=77, thread=9)
                while len(talk.grant.posts) < 2:
                    await trio.testing.wait_all_tasks_blocked(0.001)
                assert reference() is None
        talk.return_value()
    assert reference() is None


@pytest.mark.parametrize(("op", "function"), [("run", int), ("run_sync", trio.sleep)])
async def test_function_of_the_other_kind(peer: Peer, op: str, function: Any) -> None:
    async with talking(peer) as talk:
        talk.request(op, value=(function, (0,)))
        status, error, _ = await talk.reply()
        assert (status, type(error)) == ("raised", TypeError)
        assert f"use from_worker.{'run_sync' if op == 'run' else 'run'}" in str(error)
        talk.return_value()


async def test_request_that_names_nothing(peer: Peer) -> None:
    async with talking(peer) as talk:
        talk.request("at once", handle=5)
        assert (await talk.reply())[0] == "unknown_handle"
        talk.request("fly", number=2)
        status, error, _ = await talk.reply(2)
        assert (status, str(error)) == ("raised", "unknown request 'fly'; this is an error in trio-offload")
        talk.return_value()


async def test_handle_is_used_until_the_end_of_its_call(peer: Peer) -> None:
    async with talking(peer) as talk:
        talk.request("at once", handle=77)
        assert (await talk.reply())[:2] == ("value", "done")
        talk.post("send", handle=77, count=3)
        talk.request("acquire", number=2, handle=77)
        await wait_all_tasks_blocked()
        assert [(post.op, post.count) for post in talk.grant.posts] == [("send", 3)]
        assert [request.number for request in talk.grant.parked] == [2]
        assert talk.grant.parked[0].owner == JobOwner(talk.grant.posts[0].owner.call, 9)
        talk.grant.parked[0].complete_value("later")
        talk.grant.parked[0].complete_value("once more")
        assert (await talk.reply(2))[:2] == ("value", "later")
        assert talk.grant.ends == []
        talk.return_value()
    assert talk.grant.ends == [None]
    assert talk.grant.withdrawn == []


async def test_request_is_withdrawn_by_its_job(peer: Peer) -> None:
    async with talking(peer) as talk:
        talk.request("acquire", handle=77)
        await wait_all_tasks_blocked()
        peer.say(frame(Kind.WITHDRAW, 1, (), {"request": 1}))
        assert (await talk.reply())[0] == "withdrawn"
        assert talk.grant.withdrawn == [1]
        peer.say(frame(Kind.WITHDRAW, 1, (), {"request": 1}))  # it has had its reply
        talk.return_value()


async def test_open_request_ends_with_its_call(peer: Peer) -> None:
    """A thread that the job has left still waits."""
    async with talking(peer) as talk:
        talk.request("acquire", handle=77)
        await wait_all_tasks_blocked()
        talk.return_value()
    assert talk.grant.withdrawn == [1]
    assert talk.grant.ends == [None]


@pytest.mark.parametrize("asks", [False, True])
async def test_caller_is_cancelled_and_waits_on(peer: Peer, asks: bool) -> None:
    async with talking(peer) as talk:
        if asks:
            talk.request("acquire", handle=77)
            talk.request("sleep", number=2, shield=True)
        await wait_all_tasks_blocked()
        talk.scope.cancel()
        if asks:
            assert (await talk.reply())[0] == "cancelled"
            assert talk.grant.withdrawn == [1]
            talk.request("acquire", number=3, handle=77)
            assert (await talk.reply(3))[0] == "cancelled"
            talk.request("run_sync", number=4, value=(int, ("4",)))
            assert (await talk.reply(4))[:2] == ("value", 4)
            talk.request("acquire", number=5, handle=77, shield=True)
            await wait_all_tasks_blocked()
            talk.grant.parked[-1].complete_value("shielded")
            assert (await talk.reply(5))[:2] == ("value", "shielded")
        await wait_all_tasks_blocked()
        assert os.pread(talk.worker.record.fileno(), 8, 24) == (1).to_bytes(8, sys.byteorder)
        talk.return_value()
    assert talk.result == outcome.Value((5, None))


async def test_first_request_comes_after_the_cancellation(peer: Peer) -> None:
    """The job has looked at the cancel word just before that was written."""
    async with talking(peer, has_handle=False) as talk:
        await wait_all_tasks_blocked()
        talk.scope.cancel()
        await wait_all_tasks_blocked()
        talk.request("sleep")
        assert (await talk.reply())[0] == "cancelled"
        talk.return_value()
    assert talk.result == outcome.Value((5, None))


async def test_async_callback_is_cancelled_with_the_caller(peer: Peer) -> None:
    async with talking(peer) as talk:
        talk.request("run", value=(trio.sleep_forever, ()))
        await wait_all_tasks_blocked()
        talk.scope.cancel()
        assert (await talk.reply())[0] == "cancelled"
        talk.return_value()
    assert talk.result == outcome.Value((5, None))


@pytest.mark.parametrize("cancellable", [False, True])
async def test_grace(peer: Peer, cancellable: bool) -> None:
    async with talking(peer, cancellable=cancellable, grace=0.01) as talk:
        talk.request("acquire", handle=77)
        await wait_all_tasks_blocked()
        talk.scope.cancel()
        assert (await talk.reply())[0] == "cancelled"
    assert talk.result is None
    assert talk.worker.state is State.ENDED
    (death,) = talk.grant.ends
    assert death is not None
    assert death.function == "int"


async def test_killed_at_once(peer: Peer) -> None:
    async with talking(peer, cancellable=True) as talk:
        talk.request("acquire", handle=77)
        await wait_all_tasks_blocked()
        talk.scope.cancel()
        await talk.done.wait()
    assert talk.result is None
    assert talk.worker.state is State.ENDED
    assert talk.grant.withdrawn == [1]
    assert len(talk.grant.ends) == 1


@pytest.mark.parametrize("talks", [False, True])
async def test_death_is_settled_after_the_last_words(peer: Peer, talks: bool) -> None:
    async with talking(peer) as talk:
        if talks:
            talk.request("acquire", handle=77)
            await wait_all_tasks_blocked()
        # All of it in one write, with the end behind it.
        talk.post("release", handle=77)
        talk.request("acquire", number=2, handle=77)
        peer.end()
    assert isinstance(talk.result, outcome.Error)
    assert isinstance(talk.result.error, BrokenWorkerError)
    assert [post.op for post in talk.grant.posts] == ["release"]
    assert talk.grant.withdrawn == ([1, 2] if talks else [2])
    (death,) = talk.grant.ends
    assert death is not None
    assert death.pid == talk.worker.process.pid


async def test_last_words_of_a_worker_that_was_killed(peer: Peer) -> None:
    """What is in the socket when the caller is cancelled counts, though nobody waits for it any more."""
    async with talking(peer, cancellable=True) as talk:
        await wait_all_tasks_blocked()
        talk.scope.cancel()
        talk.post("release", handle=77)
    assert [post.op for post in talk.grant.posts] == ["release"]
    assert len(talk.grant.ends) == 1


async def test_handles_go_with_a_call_that_was_not_run(peer: Peer) -> None:
    async with talking(peer) as talk:
        peer.say(frame(Kind.RETIRED, body={"reason": "idle"}))
    assert isinstance(talk.result, outcome.Error)
    assert isinstance(talk.result.error, CallNotRun)
    peer.end()
    await talk.worker.wait()
    assert talk.grant.ends == []


async def test_message_of_another_call(peer: Peer) -> None:
    async with talking(peer) as talk:
        talk.request("at once", handle=77, call=2)
    assert isinstance(talk.result, outcome.Error)
    assert "REQUEST (id 2)" in str(talk.result.error)


async def test_late_message_of_the_last_call(peer: Peer) -> None:
    """A thread that the job has left speaks as the job ends."""
    async with talking(peer) as talk:
        talk.return_value()
        await talk.done.wait()
        talk.post("send", handle=77)
        assert talk.worker.hear()
        assert talk.grant.posts == []


async def test_calls_that_were_sent_ahead(peer: Peer) -> None:
    async with talking(peer, calls=2) as talk:
        await peer.hear(Kind.CALL)
        talk.request("run_sync", value=(int, ("1",)))
        assert (await talk.reply())[:2] == ("value", 1)
        talk.return_value()
        await talk.done.wait()
        assert talk.result == outcome.Value((5, None))
        assert talk.grant.ends == [None]
        talk.start()
        talk.request("at once", handle=77, call=2)
        assert (await talk.reply())[:2] == ("value", "done")
        talk.return_value(6, 2)
    assert talk.result == outcome.Value((6, None))
    assert talk.grant.ends == [None, None]


async def test_large_replies_to_a_job_that_does_not_read_yet(peer: Peer) -> None:
    size = 4_000_000
    async with talking(peer) as talk:
        for number in range(1, 4):
            talk.request("run_sync", number=number, value=(bytes, (size + number,)))
        await wait_all_tasks_blocked()
        for number in range(1, 4):
            status, value, _ = await talk.reply(number)
            assert (status, len(value)) == ("value", size + number)
        talk.return_value()
    assert talk.result == outcome.Value((5, None))


@pytest.mark.parametrize("size", [900_000, 2_000_000])
async def test_replies_behind_one_that_is_half_written(peer: Peer, size: int) -> None:
    """As copies and as pages."""
    async with talking(peer) as talk:
        for number in range(1, 21):
            talk.request("run_sync", number=number, value=(bytes, (size + number,)))
            await wait_all_tasks_blocked()  # the socket is full from one of them on
        for number in range(1, 21):
            status, value, _ = await talk.reply(number)
            assert (status, len(value)) == ("value", size + number)
        talk.return_value()
    assert talk.result == outcome.Value((5, None))


setting: Final = contextvars.ContextVar("setting", default="none")


def read_setting() -> str:
    return setting.get()


async def test_callbacks_have_the_callers_context(peer: Peer) -> None:
    setting.set("the caller's")
    async with talking(peer) as talk:
        talk.request("run_sync", value=(read_setting, ()))
        assert (await talk.reply())[:2] == ("value", "the caller's")
        talk.return_value()


async def test_ctrl_c_in_a_callback_ends_the_job(peer: Peer) -> None:
    async with talking(peer) as talk:
        talk.request("run_sync", value=(jobs.raise_it, (KeyboardInterrupt(),)))
    assert isinstance(talk.result, outcome.Error)
    assert isinstance(talk.result.error, KeyboardInterrupt)
    assert talk.worker.state is State.ENDED


@pytest.mark.parametrize("told", [False, True])
async def test_cancelled_of_a_job_is_believed_if_it_was_told(peer: Peer, told: bool) -> None:
    from trio_offload_worker._jobs.exceptions import dump
    from trio_offload_worker._requests.errors import Cancelled, make_cancelled

    segments, kind, message, traceback = dump(make_cancelled(), "call")
    body = {"stage": "call", "type": kind, "message": message, "traceback": traceback}
    async with talking(peer) as talk:
        await wait_all_tasks_blocked()
        if told:
            talk.scope.cancel()
            await wait_all_tasks_blocked()
        peer.say(frame(Kind.RAISED, 1, tuple(segments), body))
    assert talk.result is not None
    _, error = talk.result.unwrap()
    assert type(error) is (Cancelled if told else JobExitError)


def contents_of(descriptor: int) -> bytes:
    try:
        return os.pread(descriptor, 100, 0)
    finally:
        os.close(descriptor)


def file_of(contents: bytes) -> int:
    descriptor = os.memfd_create("of-the-test")
    os.write(descriptor, contents)
    return descriptor


@asynccontextmanager
async def descriptor_behind_full_socket(peer: Peer, **options: Any) -> AsyncIterator[tuple[Talk, int]]:
    """A reply with a descriptor waits behind eight large ones. Yield the number of open descriptors without it too."""
    async with talking(peer, **options) as talk:
        for number in range(1, 10):
            talk.request("x", number=number, handle=77, thread=number)
        while len(talk.grant.parked) < 9:
            await wait_all_tasks_blocked(0.001)
        for request in talk.grant.parked[:8]:
            request.complete("value", [bytes(2**20 - 1)])
        await wait_all_tasks_blocked()  # the socket is full
        original = file_of(b"contents")
        opened = len(os.listdir("/proc/self/fd"))
        talk.grant.parked[8].complete_descriptors(Descriptors([original]))
        assert len(os.listdir("/proc/self/fd")) == opened + 1  # it waits
        os.close(original)
        yield talk, opened - 1


async def test_descriptor_waits_for_room_in_the_socket(peer: Peer) -> None:
    async with descriptor_behind_full_socket(peer) as (talk, opened):
        peer.keep_descriptors()
        for _ in range(8):
            await peer.hear(Kind.REPLY)
        assert peer.descriptors == []
        frame = await peer.hear(Kind.REPLY)
        assert frame.body == {"request": 9, "status": "value", "descriptors": 1}
        assert len(os.listdir("/proc/self/fd")) == opened + 1  # the peer's
        assert [contents_of(descriptor) for descriptor in peer.descriptors] == [b"contents"]
        talk.return_value()


async def test_descriptor_that_waits_is_closed_with_its_call(peer: Peer) -> None:
    async with descriptor_behind_full_socket(peer) as (talk, opened):
        talk.return_value()
        await talk.done.wait()
        assert len(os.listdir("/proc/self/fd")) == opened
        assert talk.worker.state is State.IDLE
        # The stream goes on with whole frames.
        peer.keep_descriptors()
        talk.submit()
        talk.start()
        for _ in range(8):
            await peer.hear(Kind.REPLY)
        assert (await peer.hear(Kind.CALL)).id == 2
        assert peer.descriptors == []
        talk.return_value(call=2)


async def test_descriptor_that_waits_is_closed_with_its_worker(peer: Peer) -> None:
    async with descriptor_behind_full_socket(peer) as (talk, _):
        peer.end()
        await talk.done.wait()
    assert isinstance(talk.result, outcome.Error)


async def test_descriptor_waits_through_a_cancellation(peer: Peer) -> None:
    async with descriptor_behind_full_socket(peer, grace=60.0) as (talk, _):
        talk.scope.cancel()
        await wait_all_tasks_blocked()
        peer.keep_descriptors()
        for _ in range(9):
            await peer.hear(Kind.REPLY)
        assert [contents_of(descriptor) for descriptor in peer.descriptors] == [b"contents"]
        talk.return_value()


async def test_descriptor_for_a_request_that_has_ended(peer: Peer) -> None:
    async with talking(peer) as talk:
        talk.request("x", handle=77)
        while not talk.grant.parked:
            await wait_all_tasks_blocked(0.001)
        (request,) = talk.grant.parked
        request.withdraw("withdrawn")
        original = file_of(b"")
        descriptors = Descriptors([original])
        request.complete_descriptors(descriptors)
        assert (await talk.reply())[0] == "withdrawn"
        descriptors.close()
        os.close(original)
        talk.return_value()
