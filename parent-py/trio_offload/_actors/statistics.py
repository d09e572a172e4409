"""The record that ``statistics()`` of an actor returns."""

from __future__ import annotations

import attrs

from trio_offload_worker import PublicType

from .._documented import documented


@documented
@attrs.frozen
class ActorStatistics(metaclass=PublicType):
    """An actor at one moment.

    ::

        async with trio_offload.open_actor(Model, "weights.bin", restart="fresh") as model:
            for x in inputs:
                with contextlib.suppress(trio_offload.BrokenWorkerError):
                    print(await model.predict(x))
            statistics = model.statistics()
            print(f"{statistics.calls} answers of {1 + statistics.restarts} models")
    """

    pid: int | None
    """Process ID of its worker. None means that it has ended."""
    running: str | None
    """Name of the running method. None means that it is idle."""
    pending: int
    """Number of calls that wait for their turn."""
    calls: int
    """Number of calls that have ended, with a result or an exception."""
    restarts: int
    """Number of times that the object was made anew."""
