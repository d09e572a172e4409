"""A line without a process: it decodes what a job writes, and delivers what a script replies."""

from __future__ import annotations

import os
import pickle
import queue
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from trio_offload_worker._protocol.decoder import Decoder
from trio_offload_worker._protocol.frames import CANCEL_AT, FRONT_SIZE, Frame, Kind

Script = Callable[[Frame], None]


class FakeLine:
    """The module `_trio_offload_line` of a worker whose job is this test."""

    def __init__(self, script: Script | None = None) -> None:
        self.running = 7
        self.frames: list[Frame] = []
        self.script = script or (lambda frame: None)
        self.reads = 0
        self.readers: set[int] = set()
        self.before_read: Callable[[], object] = lambda: None
        self.after_write: Callable[[], object] = lambda: None
        self._pid = os.getpid()
        self._record = os.memfd_create("record")
        os.write(self._record, bytes(FRONT_SIZE))
        self._decoder = Decoder()
        self._frames: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.RLock()

    def call(self) -> int:
        return self.running

    def pid(self) -> int:
        return self._pid

    def record(self) -> int:
        return self._record

    def write(self, parts: Sequence[Any], call: int, sent: list[bool], /) -> None:
        with self._lock:
            if call != self.running:
                return
            rest = memoryview(b"".join(parts))
            while rest:
                target = self._decoder.writable()
                count = min(len(target), len(rest))
                target[:count] = rest[:count]
                self._decoder.wrote(count)
                rest = rest[count:]
                while (frame := self._decoder.next_frame()) is not None:
                    frame.segments = [bytes(segment) for segment in frame.segments]
                    self.frames.append(frame)
                    self.script(frame)
            sent.append(True)
        self.after_write()

    def read(self, timeout: float, inbox: list[Any], /) -> None:
        assert self._reading.acquire(blocking=False), "two threads read at once"
        try:
            self.reads += 1
            self.readers.add(threading.get_ident())
            self.before_read()
            try:
                frame = self._frames.get(True, min(timeout, 10.0))
            except queue.Empty:
                return
            if frame is not None:
                inbox.append(frame)
        finally:
            self._reading.release()

    _reading = threading.Lock()

    # The script's side.

    def reply(self, request: int | Frame, status: str = "value", value: Any = None, **body: Any) -> None:
        number = request if isinstance(request, int) else request.body["request"]
        segments = [pickle.dumps(value, 5)] if status == "value" else []
        segments = body.pop("segments", segments)
        self._frames.put((Kind.REPLY, self.running, {"request": number, "status": status, **body}, segments))

    def credit(self, handle: int, count: int) -> None:
        self._frames.put((Kind.CREDIT, self.running, {"handle": handle, "count": count}, []))

    def cancel(self, call: int) -> None:
        os.pwrite(self._record, struct.pack("=Q", call), CANCEL_AT)

    def front(self) -> list[int]:
        return list(struct.unpack(f"={FRONT_SIZE // 8}Q", os.pread(self._record, FRONT_SIZE, 0)))

    def end_job(self) -> None:
        with self._lock:
            self.running = 0
        self._frames.put(None)

    def kinds(self) -> list[str]:
        return [frame.kind.name for frame in self.frames]

    def close(self) -> None:
        os.close(self._record)


@contextmanager
def in_job(monkeypatch: Any, line: FakeLine) -> Iterator[FakeLine]:
    """Let this process be a worker that runs a job."""
    import sys

    from trio_offload_worker import from_worker
    from trio_offload_worker._requests import line as line_module
    from trio_offload_worker._requests import requests

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "_trio_offload_line", line)
        patch.setattr(line_module, "_lines", {})
        patch.setattr(line_module, "_missing_in", 0)
        patch.setattr(requests, "_conversations", {})
        # A worker keeps the mapping of its record as long as it lives.
        patch.setitem(vars(sys), "_trio_offload_mappings", [])
        from_worker._forget()
        try:
            yield line
        finally:
            from_worker._forget()
            line.close()
