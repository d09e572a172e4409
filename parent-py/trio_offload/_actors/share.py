"""``share``: an object of this program whose methods jobs may call."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import trio

from trio_offload_worker._requests.hosted import sendable

from .._limiter import require_trio
from .._sizes import check_names
from .._worker.callbacks import call
from .._worker.requests import Request
from .grants import Callee
from .interface import Interface


class SharedObject(Callee):
    """An object of this program that jobs may use, from :func:`share`.

    ::

        async with trio_offload.share(cache) as shared:
            async with trio_offload.map(functools.partial(look_up, shared), keys) as values:
                print(await values.collect())  # in the job: `shared.get(key)`
    """

    _is_constructible = False

    def __init__(self, shared: Any, methods: frozenset[str] | None) -> None:
        super().__init__(Interface(type(shared), methods, may_be_async=True))
        self._shared = shared
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<trio_offload.share of {self._shared!r}>"

    def close(self) -> None:
        """Refuse calls from now on."""
        self._is_closed = True

    def call_for_job(self, request: Request, name: str) -> None:
        """As :meth:`Callee.call_for_job`."""
        called = self._method(name)
        args, kwargs = request.load()
        call(request, called, args, kwargs, awaits=None)

    async def call_for_thread(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As :meth:`Callee.call_for_thread`."""
        value = self._method(name)(*args, **kwargs)
        return await value if inspect.isawaitable(value) else value

    def _method(self, name: str) -> Callable[..., Any]:
        if self._is_closed:
            raise trio.ClosedResourceError(f"the shared {self.interface.name} is closed: its block has ended")
        self.interface.method(name)
        method = getattr(self._shared, name)

        def called(*args: Any, **kwargs: Any) -> Any:
            return sendable(self._shared, name, method(*args, **kwargs))

        called.__qualname__, called.__module__ = f"{self.interface.name}.{name}", self.interface.cls.__module__
        return called


@contextlib.asynccontextmanager
async def share(shared: Any, /, methods: Iterable[str] | None = None) -> AsyncIterator[SharedObject]:
    """Let jobs call methods of an object of this program, as long as the block lasts.

    ::

        async with trio_offload.share(table, methods=["get", "update"]) as shared:
            await trio_offload.run_sync(job, shared)  # which calls shared.get(key)

    A method runs in the event loop, in the task that waits for the job, like a :func:`callback`. So
    it must be quick, and a synchronous one is atomic for all tasks and jobs. Arguments and results
    are pickled.

    Args:
        shared: An object. Here it is used as always.
        methods: Names of the methods that jobs may call, special ones such as ``__getitem__``
            included. None means all without an underscore in front, and the special methods of
            containers.

    Returns:
        An async context manager, which returns the argument for jobs.

    Raises:
        AttributeError: The object lacks one of the methods.
    """
    require_trio()
    names: Any = methods
    if methods is not None:
        names = tuple(methods) if hasattr(methods, "__iter__") and not isinstance(methods, str) else methods
        check_names("methods", names, "method")
    handle = SharedObject(shared, None if methods is None else frozenset(names))
    for name in handle.interface.only or ():
        handle.interface.method(name)
    try:
        yield handle
    finally:
        handle.close()
