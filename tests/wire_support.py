"""What the parent's codec makes of a stream of bytes, for the tests that compare it with something."""

from __future__ import annotations

from typing import Any

import attrs

from trio_offload_worker._protocol.decoder import Decoder
from trio_offload_worker._protocol.frames import Frame, WireError


@attrs.frozen
class Outcome:
    """What a receiver makes of a stream: the frames (kind, id, segments, body), and the name of the error that ends it."""

    frames: list[tuple[int, int, list[bytes], dict[str, Any]]]
    error: str | None


def decode(chunks: list[bytes], end: bool) -> Outcome:
    """What the parent's codec makes of what arrives in these pieces, and of the stream's end if it ends."""
    decoder = Decoder()
    frames = []
    try:
        for chunk in chunks:
            rest = memoryview(chunk)
            while rest:
                target = decoder.writable()
                count = min(len(target), len(rest))
                assert count > 0
                target[:count] = rest[:count]
                decoder.wrote(count)
                rest = rest[count:]
                while (frame := decoder.next_frame()) is not None:
                    frames.append(observed(frame))
        if end:
            decoder.end_of_stream()
    except WireError as error:
        return Outcome(frames, error.code)
    return Outcome(frames, None)


def observed(frame: Frame) -> tuple[int, int, list[bytes], dict[str, Any]]:
    return int(frame.kind), frame.id, [bytes(segment) for segment in frame.segments], frame.body
