"""A worker that says anything: the other end of a real socket pair, beside a process that ends when it is told to."""

from __future__ import annotations

import os
import pickle
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from lifeline import PATIENCE

from trio_offload._process import start as _process
from trio_offload._process.process import WorkerProcess
from trio_offload._process.record import RecordFile
from trio_offload._transport.channel import Channel
from trio_offload._transport.sockets import socket_pair
from trio_offload_worker._protocol.decoder import Decoder
from trio_offload_worker._protocol.frames import Frame, Kind, encode_head
from trio_offload_worker._system.memory import allocate

_real_start = _process.spawn


class _ReceivesDescriptors:
    """A socket with the methods that a channel uses."""

    def __init__(self, real: socket.socket, descriptors: list[int]) -> None:
        self._real = real
        self._descriptors = descriptors

    def recv_into(self, target: memoryview) -> int:
        count, messages, flags, _ = self._real.recvmsg_into([target], socket.CMSG_SPACE(64), socket.MSG_CMSG_CLOEXEC)
        assert not flags & socket.MSG_CTRUNC
        for _, _, data in messages:
            self._descriptors += struct.unpack(f"{len(data) // 4}i", data)
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class Peer:
    """Speaks raw bytes in a worker's place."""

    def __init__(self, folder: Path) -> None:
        # It ends well when it is told to, which is when its own socket is closed.
        self._program = folder / "program"
        self._program.write_text("#!/bin/sh\nexec cat <&3 >/dev/null\n")
        self._program.chmod(0o700)
        self._started = trio.Event()
        self.descriptors: list[int] = []

    def start(
        self, executable: str, environment: Mapping[bytes, bytes], argv: list[str] | None, *_: Any
    ) -> tuple[WorkerProcess, Any, RecordFile]:
        """Stands in for ``_process.spawn``."""
        self.process, self._life, record = _real_start(str(self._program), environment)
        theirs, ours = socket_pair()
        ours.setblocking(False)
        self._socket = theirs
        self._channel = Channel(theirs)
        self._channel._decoder = Decoder(allocate)  # which reads what a parent says
        self._started.set()
        return self.process, ours, record

    async def hear(self, kind: Kind) -> Frame:
        with trio.fail_after(PATIENCE):
            await self._started.wait()
            frame = await self._channel.receive(cancellable=True)
        assert frame.kind is kind
        return frame

    def keep_descriptors(self) -> None:
        """Receive descriptors from now on. The test owns them."""
        self._channel._socket = _ReceivesDescriptors(self._socket, self.descriptors)  # type: ignore[assignment]

    def say(self, data: bytes) -> None:
        assert self._socket.send(data) == len(data)

    def end(self) -> None:
        """End as a worker ends that leaves: the socket and the process go together."""
        self._socket.close()
        self._life.close()

    def close_only(self) -> None:
        """Close the socket and live on."""
        self._socket.close()

    def close(self) -> None:
        if self._started.is_set():
            self.end()


@contextmanager
def scripted_peer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    """A peer that the next worker's start will get."""
    with closing(Peer(folder)) as peer:
        monkeypatch.setattr(_process, "spawn", peer.start)
        yield peer


def frame(kind: Kind, id: int = 0, segments: tuple[bytes, ...] = (), body: dict[str, Any] | None = None) -> bytes:
    return encode_head(kind, id, [len(segment) for segment in segments], body) + b"".join(segments)


def pickled(value: Any) -> bytes:
    return pickle.dumps(value, 5)


def welcome(**changes: Any) -> bytes:
    body = {
        "protocol": 2,
        "worker": "0",
        "pid": 1,
        "version": sys.version,
        "libpython": b"/",
        "prefix": os.fsencode(sys.prefix),
        "exec_prefix": os.fsencode(sys.exec_prefix),
    }
    return frame(Kind.WELCOME, body=body | changes)
