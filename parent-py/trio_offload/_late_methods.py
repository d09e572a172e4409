"""Methods of contexts that few programs use. Their code is imported with the first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._streams.signature import StreamMethod

ResultType = TypeVar("ResultType")


class LateMethod:
    """Stands for a method in its class, until it is asked for.

    Args:
        module: The module of the function, in this package.
    """

    def __init__(self, module: str) -> None:
        self._module = module

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self._owner = owner
        self._name = name

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        from importlib import import_module

        function = getattr(import_module(self._module, __package__), self._name)
        setattr(self._owner, self._name, function)
        return function.__get__(instance, owner)


class LateMethods:
    """The base of contexts."""

    if TYPE_CHECKING:
        stream: StreamMethod

        async def _run_checked(self, sync_fn: Callable[..., ResultType], *call: Any) -> ResultType: ...
    else:
        stream = LateMethod("._streams.method")
        _run_checked = LateMethod("._pool.checked_call")
