"""Handles in a job: locks, channels, callbacks and so on, whose state is in the parent.

A handle is pickled as a call of :func:`attach` with its kind and its ID. In a worker that makes an
object with blocking methods. In the parent it finds the very object.

A handle may be pickled only by trio-offload, for the other side. So its ``__reduce_ex__`` looks at
the frame that called the pickler. That is ours, or there is none: the executable's pickler runs
without one. Nothing has to be announced, and a job without handles pays nothing.
"""

from __future__ import annotations

import sys

from .. import PublicType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final


def attach(kind: str, id: int, *details: Any) -> Any:
    """Return the object for a handle. Pickles of handles refer to this function by name.

    Args:
        kind: a key of :data:`CLASSES`.
        id: the handle's ID.
        details: arguments of its class.
    """
    for resolve in resolvers:
        found = resolve(id)
        if found is not None:
            return found
    module, name = CLASSES[kind].split(":")
    cls: Callable[..., Any] = getattr(__import__(f"{__package__}.{module}", fromlist=(name,)), name)
    return cls(kind, id, *details)


class JobHandle(metaclass=PublicType):
    """A handle as a job has it. ``details`` are pickled with it."""

    _is_constructible = False

    __slots__ = ("__weakref__", "_details", "_id", "_kind")

    def __init__(self, kind: str, id: int, *details: Any) -> None:
        self._kind = kind
        self._id = id
        self._details = details

    def __reduce_ex__(self, protocol: Any) -> Any:
        return pickled(self, sys._getframe().f_back)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JobHandle) and other._id == self._id

    def __hash__(self) -> int:
        return hash(self._id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._id:#x} of the parent>"


def pickled(handle: JobHandle, frame: Any) -> tuple[Any, ...]:
    """Return the pickle of a handle.

    Args:
        handle: the handle.
        frame: the frame that has called the pickler.

    Raises:
        TypeError: the pickler does not work for the other side.
    """
    if not is_exporting(frame):
        raise TypeError(
            f"a {type(handle).__name__} can be pickled only by trio-offload: pass it to the parent as an argument, "
            "through a channel or as a result of this job"
        )
    return attach, (handle._kind, handle._id, *handle._details)


def is_exporting(frame: Any) -> bool:
    """Return True if a pickler that this frame has called works for the other side.

    None stands for the executable's pickler.
    """
    while frame is not None:
        module = frame.f_globals.get("__name__")
        if not isinstance(module, str) or not module.startswith(_CLOUDPICKLE):
            return isinstance(module, str) and module.startswith(_OURS)
        # cloudpickle, which our code or the job's has called.
        frame = frame.f_back
    return True


resolvers: Final[list[Callable[[int], object | None]]] = []
"""Functions that return the object of an ID if this process owns it. The parent adds one."""

# The class of each kind, in a module of this folder that is imported on demand.
CLASSES: Final = {
    "actor": "actors:proxy",
    "actor_stream": "actor_streams:ActorStream",
    "callback": "callbacks:Callback",
    "connection": "connections:connection",
    "descriptor": "descriptors:DescriptorHandle",
    "send_channel": "channels:SendChannel",
    "receive_channel": "channels:ReceiveChannel",
    "work_queue": "queues:WorkQueue",
    "stream": "streams:ValueSender",
    "lock": "locks:Lock",
    "rlock": "locks:RLock",
    "semaphore": "counters:Semaphore",
    "capacity_limiter": "counters:CapacityLimiter",
    "event": "meetings:Event",
    "condition": "locks:Condition",
    "barrier": "meetings:Barrier",
    "shared_array": "shared:SharedArray",
    "shared_counter": "shared:SharedCounter",
}

_OURS: Final = "trio_offload_worker."
_CLOUDPICKLE: Final = "cloudpickle"
