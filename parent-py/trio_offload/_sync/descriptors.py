"""Handles whose file descriptor jobs get a duplicate of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._transport.sockets import Descriptors
from .handles import Handle, PlainGrant

if TYPE_CHECKING:
    from .._worker.requests import Request


class DescriptorHandle(Handle):
    """A handle with one file descriptor. A job fetches a duplicate of it on demand."""

    _internal = Handle._internal | {"fileno"}

    kind = "descriptor"

    def fileno(self) -> int:
        """Return the number of the descriptor.

        Raises:
            Exception: The descriptor is unavailable. The job gets the exception.
        """
        raise NotImplementedError

    def grant(self) -> DescriptorGrant:
        return DescriptorGrant(self)


class DescriptorGrant(PlainGrant):
    """The right of one call to fetch the descriptor of a handle."""

    handle: Any

    def request(self, request: Request) -> None:
        if request.op != "descriptor":
            super().request(request)
            return
        try:
            descriptors = Descriptors([self.handle.fileno()])
        except Exception as error:
            request.fail(error)
        else:
            request.complete_descriptors(descriptors)
