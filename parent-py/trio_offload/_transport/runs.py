"""Runs of small messages: frames in a row that differ by their payload only.

A job that sends items on credit fills the receive buffer with such frames. Taken one by one, each
would cost a frame, a message and a step of every layer.
"""

from __future__ import annotations

from typing import Final

from trio_offload_worker._protocol.cbor import encode_uint
from trio_offload_worker._protocol.decoder import Decoder
from trio_offload_worker._protocol.frames import MAGIC, PREFIX, PREFIX_SIZE, Frame

# Bytes that are copied at once. A run that ends soon costs a copy of these at most.
_MAX_COPIED: Final = 16 * 1024
_MAX_HEADS: Final = 256
_MAX_HEAD_SIZE: Final = 256  # bytes


class Runs:
    """Takes runs of frames out of a decoder.

    The decoder has checked the header of the frame before the run. The others have the same header
    but for the length of the segment.
    """

    __slots__ = ("_common", "_decoder", "_heads", "_last")

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        # The header's bytes before and after the length of the segment.
        self._common = b"", b""
        # The heads of its frames, one for each length.
        self._heads: set[bytes] = set()
        self._last = b""  # the head of the last frame; empty if it cannot begin a run

    def take(self, frame: Frame) -> list[bytes]:
        """Return the segments of the complete frames that follow.

        Args:
            frame: the last frame that the decoder has returned. It has one segment.
        """
        self._last = self._learn(frame)
        return self.take_more()

    def take_more(self) -> list[bytes]:
        """Return the segments of the complete frames that continue the run."""
        decoder = self._decoder
        segments: list[bytes] = []
        head = self._last
        if not head:
            return segments
        size_of_head, size_of_payload = len(head), PREFIX.unpack_from(head)[2]
        more = decoder.end - decoder.start > PREFIX_SIZE
        while more:
            # Slices of bytes take a fraction of the time of slices of the buffer.
            data = bytes(decoder.buffer[decoder.start : min(decoder.end, decoder.start + _MAX_COPIED)])
            at, last = 0, len(data) - PREFIX_SIZE
            while at < last:
                if not data.startswith(head, at):
                    _, length, payload = PREFIX.unpack_from(data, at)
                    other = data[at : at + PREFIX_SIZE + length]
                    if other not in self._heads and not self._belongs(other, payload):
                        more = False
                        break
                    head, size_of_head, size_of_payload = other, len(other), payload
                begin = at + size_of_head
                end = begin + size_of_payload
                if end > len(data):
                    break
                segments.append(data[begin:end])
                at = end
            decoder.start += at
            more = more and at > 0 and decoder.end - decoder.start > PREFIX_SIZE
        self._last = head
        return segments

    def _learn(self, frame: Frame) -> bytes:
        """Return the head of the frame, or nothing if it cannot begin a run."""
        decoder = self._decoder
        payload = len(frame.segments[0])
        begin = decoder.start - payload
        if decoder.known_at < 0 or begin - decoder.known_at > _MAX_HEAD_SIZE:
            return b""
        head = bytes(decoder.buffer[decoder.known_at : begin])
        if head not in self._heads:
            before = b"\x84" + encode_uint(frame.kind) + encode_uint(frame.id)
            size = PREFIX_SIZE + len(before)
            length = _array_of(payload)
            if head[PREFIX_SIZE : size + len(length)] != before + length:
                return b""
            self._common = before, head[size + len(length) :]
            self._heads = {head}
        return head

    def _belongs(self, head: bytes, payload: int) -> bool:
        """Return True if a frame with this head continues the run. It is known from now on."""
        before, after = self._common
        header = before + _array_of(payload) + after
        if head != PREFIX.pack(MAGIC, len(header), payload) + header:
            return False
        if len(self._heads) >= _MAX_HEADS:
            self._heads.clear()
        self._heads.add(head)
        return True


def _array_of(length: int) -> bytes:
    return b"\x81" + encode_uint(length)
