"""Workers that follow the settings of a forwarder, whose jobs' log records are handled here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from trio_offload_worker._protocol.frames import Buffer

    from .._pickling.payload import Payload
    from .worker import Worker

    _Base = Worker
else:
    _Base = object


class _Follower(_Base):
    """A worker that gets the settings of its forwarder before a call, if they have changed."""

    __slots__ = ()

    def current_settings(self) -> dict[str, Any]:
        settings = super().current_settings()
        if self.forwarder is not None:
            self.followed = self.forwarder.settings()
            settings["forwarding"] = self.followed
        return settings

    def submit(self, call: Payload, prepares: bool = False) -> None:
        if self._must_follow():
            self._unsent += self._new_settings()
        super().submit(call, prepares)

    def send_ahead(self, call: Payload) -> list[Buffer]:
        settings = self._new_settings() if self._must_follow() else []
        return [*settings, *super().send_ahead(call)]

    def _must_follow(self) -> bool:
        return self.forwarder is not None and self.forwarder.settings() is not self.followed


def following(base: type[Worker]) -> type[Worker]:
    """Return a class of workers with a forwarder, for contexts that have one."""
    if base not in _made:
        _made[base] = type(base.__name__, (_Follower, base), {"__slots__": ()})
    return _made[base]


_made: Final[dict[type, type[Worker]]] = {}
