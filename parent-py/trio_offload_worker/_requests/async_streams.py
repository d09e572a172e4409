"""An async generator function that runs as a job: in a run of Trio, which ends with it."""

from __future__ import annotations

from importlib import import_module

from . import async_jobs
from .errors import make_cancelled
from .line import current_line
from .requests import bind_thread, running_call
from .shields import add_shield, drop_shield, shield_end
from .trio_threads import is_cancellation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, Protocol

    class Sender(Protocol):
        """The ``ValueSender`` of ``streams.py``."""

        def begin(self) -> None: ...

        def missing_room(self) -> int | None: ...

        def wait_for_room(self, needed: int) -> None: ...

        def put(self, value: Any) -> None: ...

        def finish(self) -> None: ...


def send_values(sender: Sender, values: Any) -> None:
    """Send the values of an async iterator.

    It is closed as a generator is: see :func:`.streams.send_values`. If it waits for something else
    than its consumer at that time, Trio cancels its wait.
    """
    is_cancelled = current_line().is_cancelled
    try:
        async_jobs.run(_send_all, (sender, values), lambda: is_cancelled() and shield_end() is None)
    except BaseException as error:
        if is_cancelled() and is_cancellation(error):
            raise make_cancelled() from None
        raise


async def _send_all(sender: Sender, values: Any) -> None:
    trio: Any = import_module("trio")
    call, is_cancelled = running_call(), current_line().is_cancelled
    sender.begin()

    def wait(needed: int) -> None:
        bind_thread(call)
        sender.wait_for_room(needed)

    advance = aiter(values).__anext__
    try:
        while True:
            needed = sender.missing_room()
            if needed is not None:
                # The other tasks of the generator go on.
                await trio.to_thread.run_sync(wait, needed)
            try:
                value = await advance()
            except StopAsyncIteration:
                return
            if is_cancelled() and shield_end() is None:
                raise make_cancelled()
            sender.put(value)
    except BaseException:
        close = getattr(values, "aclose", None)
        if close is not None:
            add_shield(_FOREVER)
            try:
                with trio.CancelScope(shield=True):
                    await close()
            finally:
                drop_shield(_FOREVER)
        raise
    finally:
        # The values before an error come before it.
        sender.finish()


_FOREVER: Final = float("inf")
