"""A callback as a job has it: it is called like a function, and runs in the parent."""

from __future__ import annotations

from .. import publish
from .handles import JobHandle
from .pickles import dumps, result
from .requests import post, request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Callback(JobHandle):
    """A function of the parent.

    ::

        def export(path, ask: handles.Callback):
            if not os.path.exists(path) or ask(f"Replace {path}?"):
                write_rows(path)

    Details:
        waits: True if a call waits for the function, and returns its value.
        name: the function's name, for messages.
        blocks: True if the function is asynchronous. Calls of another work in a cancelled job too.
    """

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function in the parent, and return its value.

        Raises:
            Cancelled: the job's call is cancelled, and the function is asynchronous.
            BaseException: any exception of the function.
        """
        segments = dumps((args, kwargs))
        if not self._waits:
            return post("call", self._id, segments)
        return result(request("call", self._id, segments, shield=None if self._blocks else True))

    @property
    def _waits(self) -> bool:
        return bool(self._details[0])

    @property
    def _blocks(self) -> bool:
        return bool(self._details[2])

    def __repr__(self) -> str:
        return f"<callback {self._details[1]} of the parent>"


publish("trio_offload_worker.handles", Callback)
