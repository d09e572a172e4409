"""A function around another, as the function of a job. It has the name of the inner one."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class NamedCall:
    """The base of such functions. Messages and figures name the inner function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        for name in ("__module__", "__qualname__"):
            if hasattr(function, name):
                setattr(self, name, getattr(function, name))

    def __reduce__(self) -> Any:
        return type(self), (self.function,)
