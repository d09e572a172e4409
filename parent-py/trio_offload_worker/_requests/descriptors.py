"""File descriptors of the parent's handles, duplicated into this process."""

from __future__ import annotations

import errno
import os

from .handles import JobHandle
from .line import open_carried
from .pickles import result
from .requests import request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .messages import ReceivedDescriptor


class DescriptorHandle(JobHandle):
    """A handle with one file descriptor."""

    __slots__ = ()

    def fetch(self) -> ReceivedDescriptor:
        """Return a duplicate of the parent's descriptor.

        It is close-on-exec, and shares its file offset and flags with the parent's.

        Raises:
            OSError: This process, or the parent, has no room for one more.
            BaseException: Any exception of the handle, such as of one that is closed.
        """
        open_carried()
        reply = request("descriptor", self._id, shield=True)
        if reply.status != "value":
            result(reply)
        if not reply.descriptors:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return reply.descriptors[0]
