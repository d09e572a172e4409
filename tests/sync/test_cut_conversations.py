"""A job's messages, cut after every byte: what it held is settled, and nothing is lost or done twice.

The peer is the test, as in ``tests/worker/test_worker_table.py``. It says the whole conversation at once and ends after byte
k, for every k. So each message is there whole, in part, or not at all.
"""

from __future__ import annotations

import itertools
import socket
import struct
from pathlib import Path
from typing import Any, Final

import attrs
import outcome
import pytest
import trio
from lifeline import PATIENCE
from scripted_peer import Peer, frame, pickled, scripted_peer, welcome
from workers import begin_worker

import trio_offload
from trio_offload import AbandonedLockError, BrokenWorkerError
from trio_offload._pickling.calls import dump_call
from trio_offload._worker.worker import Worker
from trio_offload_worker._protocol.frames import Kind

ENDINGS: Final = ("end of stream", "reset", "nonsense")


@attrs.define
class Scene:
    """The handles of one call, and the messages of its job."""

    lock: trio_offload.Lock
    sent: trio_offload.ReceiveChannel[int]
    received: trio_offload.ReceiveChannel[str]
    called: list[int]
    payload: Any
    messages: list[tuple[str, bytes]]

    def whole(self, length: int) -> list[str]:
        """The names of the messages that lie within the first bytes."""
        names = []
        for name, data in self.messages:
            length -= len(data)
            if length < 0:
                break
            names.append(name)
        return names


async def make_scene() -> Scene:
    lock = trio_offload.Lock()
    to_parent, sent = trio_offload.open_channel[int](10)
    to_job, received = trio_offload.open_channel[str](10)
    for item in ("first", "second"):
        await to_job.send(item)
    to_job.close()
    called: list[int] = []
    payload = dump_call(print, (lock, to_parent, received, trio_offload.callback(called.append)))
    to_parent.close()
    of_lock, of_sender, of_receiver, of_callback = (grant.id for grant in payload.grants)

    def ask(number: int, op: str, handle: int, *values: Any, **body: Any) -> bytes:
        fields = {"request": number, "op": op, "handle": handle, "thread": 9, **body}
        return frame(Kind.REQUEST, 1, tuple(map(pickled, values)), fields)

    messages = [
        ("acquire", ask(1, "acquire", of_lock)),
        *((f"send {item}", ask(2 + item, "send", of_sender, item)) for item in range(3)),
        ("receive", ask(5, "receive", of_receiver)),
        ("call", ask(6, "call", of_callback, ((7,), {}))),
        ("release", frame(Kind.POST, 1, (), {"op": "release", "handle": of_lock, "thread": 9})),
        ("result", frame(Kind.RESULT, 1, (pickled("done"),))),
    ]
    return Scene(lock, sent, received, called, payload, messages)


async def converse(peer: Peer, scene: Scene, length: int, ending: str) -> tuple[Worker, outcome.Outcome[Any]]:
    """The outcome of a call whose job says this many bytes."""
    worker = begin_worker()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: worker.finish(cancellable=True))
        await peer.hear(Kind.HELLO)
        await peer.hear(Kind.SETUP)
        peer.say(welcome() + frame(Kind.READY))
    worker.submit(scene.payload)
    result: list[outcome.Outcome[Any]] = []

    async def answer() -> None:
        result.append(await outcome.acapture(worker.answer))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        await peer.hear(Kind.CALL)
        data = b"".join(data for _, data in scene.messages)
        peer.say(
            data[:length] + (b"HTTP/1.1 400 Bad Request\r\n\r\n" if ending == "nonsense" and length < len(data) else b"")
        )
        if ending == "end of stream" or (ending == "nonsense" and length == len(data)):
            peer.end()
        elif ending == "reset":
            # Unread replies in the socket of a dead process make its end a reset.
            await trio.testing.wait_all_tasks_blocked()
            peer._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.end()
    await worker.end()
    return worker, result[0]


def drain(channel: Any) -> tuple[list[Any], type[BaseException]]:
    items: list[Any] = []
    while True:
        try:
            items.append(channel.receive_nowait())
        except (trio.EndOfChannel, trio.BrokenResourceError, trio.WouldBlock) as error:
            return items, type(error)


async def lock_is(lock: trio_offload.Lock) -> str:
    try:
        lock.acquire_nowait()
    except AbandonedLockError:
        lock.recover()
        return "abandoned"
    except trio.WouldBlock:
        return "held"
    lock.release()
    return "free"


@pytest.mark.parametrize("ending", ENDINGS)
async def test_conversation_cut_after_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    longest = sum(len(data) for _, data in (await make_scene()).messages)
    # Resets are made of a sample, because they take longer.
    for place in range(0, longest + 1, 7 if ending == "reset" else 1):
        scene = await make_scene()
        # The numbers of handles are random, so their encoding may have another length.
        size = sum(len(data) for _, data in scene.messages)
        length = size if place == longest else min(place, size)
        if ending == "nonsense" and length not in itertools.accumulate(len(data) for _, data in scene.messages):
            continue  # it would be a part of the message
        folder = tmp_path / str(place)
        folder.mkdir()
        with trio.fail_after(PATIENCE), scripted_peer(folder, monkeypatch) as peer:
            worker, result = await converse(peer, scene, length, ending)
        said = scene.whole(length)
        context = f"after byte {length} of {size}, which is behind {said[-1:]}"
        if "result" in said:
            assert result == outcome.Value(("done", None)), context
        else:
            assert isinstance(result, outcome.Error), context
            assert isinstance(result.error, BrokenWorkerError), context
        state = "free" if "release" in said or "acquire" not in said else "abandoned"
        assert await lock_is(scene.lock) == state, context
        items, end = drain(scene.sent)
        assert items == [item for item in range(3) if f"send {item}" in said], context
        assert end is (trio.EndOfChannel if "result" in said else trio.BrokenResourceError), context
        # What was not handed to the job's code is back, in front.
        assert drain(scene.received) == (["first", "second"], trio.EndOfChannel), context
        assert scene.called == ([7] if "call" in said else []), context
        conversation = worker.conversation
        assert conversation is not None
        assert not conversation._open, context
        assert not conversation._grants, context
        assert not conversation.is_live, context
        assert scene.lock.statistics().tasks_waiting == 0
