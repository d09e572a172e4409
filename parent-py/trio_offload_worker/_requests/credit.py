"""Messages that need no reply, because the parent has room for them: it gives credit for them."""

from __future__ import annotations

from _thread import get_native_id

from .._protocol.frames import Kind, encode_head
from .errors import make_cancelled
from .line import CANCEL
from .requests import conversation, job_ended, post
from .shields import shield_end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from .._protocol.frames import Buffer
    from .requests import Segments, _Conversation


def take_credit(handle: int, wanted: int) -> int:
    """Use up credit for up to ``wanted`` messages. Return their number."""
    ours = conversation()
    taken = 0
    while taken < wanted and ours.take_credit(handle):
        taken += 1
    return taken


def check_call() -> _Conversation:
    """Check that this thread's call may wait for something. Return the conversation.

    Raises:
        Cancelled: the call is cancelled.
        JobEndedError: the job of this thread has ended.
        RuntimeError: this process is between two jobs, or is not a worker.
    """
    ours = conversation()
    call = ours.call_of_thread()
    if ours.line.words[CANCEL] == call and shield_end() is None:
        raise make_cancelled()
    return ours


def post_on_credit(op: str, handle: int, segments: Segments) -> bool:
    """Post a message if the parent has room for it. Return False if it may not have.

    Raises:
        Cancelled, JobEndedError, RuntimeError: as :func:`check_call`.
    """
    ours = check_call()
    call = ours.call_of_thread()
    credit = ours.credit(call, handle)
    key = op, handle
    outlets = ours.thread.outlets
    outlet: Outlet | None = outlets.get(key)
    if outlet is None or outlet.call != call:
        # A handle without credit may never have some.
        if not credit:
            return False
        if len(outlets) >= _MAX_OUTLETS:
            outlets.clear()
        outlet = outlets[key] = Outlet(ours, call, op, handle)
    # More may have come since.
    elif not credit and not ours.poll(call):
        return False
    if len(segments.lengths) == 1:
        return outlet.post(segments.lengths[0], segments.parts)
    if not ours.take_credit(handle):
        return False
    post(op, handle, segments)
    return True


def outlet_of(op: str, handle: int) -> Outlet | None:
    """Return the outlet of this thread, if it has posted such a message before.

    It may belong to another call.
    """
    outlet: Outlet | None = conversation().thread.outlets.get((op, handle))
    return outlet


class Outlet:
    """Posts the messages of one thread with one operation on one handle.

    All that they have in common is computed once.
    """

    __slots__ = ("_body", "_credit", "_heads", "_line_call", "_words", "_write", "call")

    def __init__(self, ours: _Conversation, call: int, op: str, handle: int) -> None:
        self.call = call
        self._body = {"op": op, "thread": get_native_id(), "handle": handle}
        self._credit = ours.credit(call, handle)
        self._heads: dict[int, bytes] = {}
        self._line_call = ours.line.call
        self._words = ours.line.words
        self._write = ours.line.write

    def post(self, length: int, parts: Sequence[Buffer]) -> bool:
        """Post a message of one segment. Return False if that is less simple.

        Raises:
            JobEndedError: the job of this thread has ended.
        """
        call = self.call
        if self._line_call() != call or self._words[CANCEL] == call:
            return False
        try:
            self._credit.pop()
        except IndexError:
            return False
        head = self._heads.get(length)
        if head is None:
            if len(self._heads) >= _MAX_HEADS:
                self._heads.clear()
            head = self._heads[length] = encode_head(Kind.POST, call, (length,), self._body)
        sent: list[bool] = []
        self._write((head, *parts), call, sent)
        if not sent:
            raise job_ended()
        return True


_MAX_OUTLETS: Final = 64
_MAX_HEADS: Final = 64
