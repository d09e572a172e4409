"""Objects whose methods jobs may call, and what one call may do with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from .._sync.handles import Handle, PlainGrant
from .._worker.requests import Request

if TYPE_CHECKING:
    from .interface import Interface

CALL: Final = "call "
"""The start of the operation of a request that calls a method. The method's name follows."""


class Callee(Handle):
    """A handle whose methods jobs may call."""

    _internal = Handle._internal | {"call_for_job", "call_for_thread", "details_of_stand_in"}

    kind: ClassVar[str] = "actor"

    def __init__(self, interface: Interface) -> None:
        super().__init__()
        self.interface = interface

    def call_for_job(self, request: Request, name: str) -> None:
        """Call a method for a job, and complete its request. An exception becomes its error."""
        raise NotImplementedError

    def grant(self) -> CallGrant:
        """As :meth:`Handle.grant`."""
        return CallGrant(self)

    async def call_for_thread(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a method for a thread of Trio's, which waits for its result."""
        raise NotImplementedError

    @property
    def handle(self) -> Any:
        """The object as a job has it, with methods that block, for a job that runs in a thread."""
        from .in_threads import in_thread  # few programs need it

        return in_thread(self)

    def details_of_stand_in(self) -> tuple[str, tuple[str, ...], bool]:
        """Return the name, the special methods, and whether it is a namespace."""
        return self.interface.name, self.interface.special, self.interface.has_attributes

    def details(self, grant: Any) -> tuple[Any, ...]:
        """As :meth:`Handle.details`."""
        return self.details_of_stand_in()


class CallGrant(PlainGrant):
    """What a call may do with an actor or a shared object."""

    handle: Callee

    def request(self, request: Request) -> None:
        """As :meth:`PlainGrant.request`."""
        if not request.op.startswith(CALL):
            super().request(request)
            return
        try:
            self.handle.call_for_job(request, request.op[len(CALL) :])
        except Exception as error:
            request.fail(error)
