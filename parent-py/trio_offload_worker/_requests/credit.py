"""Messages that need no reply, because the parent has room for them: it gives credit for them."""

from __future__ import annotations

from _thread import get_native_id

from .._protocol.frames import Kind, encode_head
from .errors import make_cancelled
from .requests import _conversation, post
from .shields import shield_end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from .requests import Segments


def take_credit(handle: int, wanted: int) -> int:
    """Use up credit for up to ``wanted`` messages. Return their number."""
    conversation = _conversation()
    taken = 0
    while taken < wanted and conversation.take_credit(handle):
        taken += 1
    return taken


def check_call() -> int:
    """Return the number of this thread's call, if it may wait for something.

    Raises:
        Cancelled: the call is cancelled.
        JobEndedError: the job of this thread has ended.
        RuntimeError: this process is between two jobs, or is not a worker.
    """
    conversation = _conversation()
    call = conversation.call_of_thread()
    if conversation.line.is_cancelled() and shield_end() is None:
        raise make_cancelled()
    return call


def post_on_credit(op: str, handle: int, segments: Segments) -> bool:
    """Post a message if the parent has room for it. Return False if it may not have.

    Raises:
        Cancelled, JobEndedError, RuntimeError: as :func:`check_call`.
    """
    call = check_call()
    conversation = _conversation()
    # A handle that has had credit may have got more.
    has_credit = conversation.take_credit(handle) or (
        conversation.has_had_credit(handle) and conversation.poll(call) and conversation.take_credit(handle)
    )
    if not has_credit:
        return False
    lengths = segments.lengths
    if len(lengths) > 1:
        post(op, handle, segments)
        return True
    # The same head for each item of this length. It takes longer than the rest of a message.
    key = call, handle, get_native_id(), lengths[0]
    head = _heads.get(key)
    if head is None:
        if len(_heads) >= _MAX_HEADS:
            _heads.clear()
        body = {"op": op, "thread": key[2], "handle": handle}
        head = _heads[key] = encode_head(Kind.POST, call, lengths, body)
    conversation.write(call, (head, *segments.parts))
    return True


_MAX_HEADS: Final = 64
_heads: Final[dict[tuple[int, ...], bytes]] = {}
