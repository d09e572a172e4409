"""``Actor``: an object that lives in a worker, as tasks of this program have it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from trio_offload_worker import PublicType

from .._sizes import check_count
from .._streams.stream import Stream
from .._sync.handles import stand_in

if TYPE_CHECKING:
    from .host import ActorHost
    from .statistics import ActorStatistics


class Actor(metaclass=PublicType):
    """An object that lives in a worker, from :func:`open_actor`.

    ::

        async with trio_offload.open_actor(Index, "articles.db") as index:
            await index.add("trio")
            print(await index.__len__())  # in a job: `len(index)`
            async with index.stream.matches("tr*") as matches:
                async for match in matches:
                    print(match)

    Its methods are the methods of the object's class, and are awaited. A job gets a stand-in as an
    argument, whose methods block. Special methods, such as ``__getitem__``, are awaited under their
    names here; in a job they work as usual.
    """

    _is_constructible = False

    # Few names, because all others are the object's.
    __slots__ = ("__dict__", "__weakref__", "_host")

    _host: ActorHost

    def __init__(self, host: ActorHost) -> None:
        object.__setattr__(self, "_host", host)
        host.facade = self
        host.on_copy = functools.partial(become_copy, self)

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        if name == "_host":  # of an object without __init__
            raise AttributeError(name)
        method = ActorMethod(self._host, name)
        self.__dict__[name] = method
        return method

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"{self._host.interface.name}.{name} cannot be set here, because the object lives in a worker: "
            "await a method that sets it"
        )

    @property
    def stream(self) -> ActorStreams:
        """The generator methods. ``actor.stream.rows(query)`` is like :func:`stream`."""
        return ActorStreams(self._host)

    @property
    def handle(self) -> Any:
        """The actor as a job has it, with methods that block, for a job that runs in a thread."""
        return self._host.handle

    def statistics(self) -> ActorStatistics:
        """Return its process, the running method and the number of calls."""
        return self._host.statistics()

    def __repr__(self) -> str:
        return repr(self._host)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return self._host.__reduce_ex__(protocol)


class InheritedActor(Actor):
    """An actor of the program in a worker that is its fork. A job calls its methods."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(stand_in(self._host), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(stand_in(self._host), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(stand_in(self._host), name)

    @property
    def stream(self) -> Any:
        """The generator methods, as a job has them."""
        return stand_in(self._host).stream

    def __repr__(self) -> str:
        return repr(stand_in(self._host))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        from trio_offload_worker._requests.handles import pickled

        return pickled(stand_in(self._host), sys._getframe(1))


def become_copy(actor: Actor) -> None:
    """Let an actor forward to a job's stand-in, in a worker that has just been forked."""
    actor.__dict__.clear()
    object.__setattr__(actor, "__class__", InheritedActor)


class ActorMethod:
    """A method of an actor's object."""

    __slots__ = ("_function", "_host", "_name")

    def __init__(self, host: ActorHost, name: str) -> None:
        """Raises AttributeError or TypeError for any other name."""
        self._host = host
        self._name = name
        self._function = host.interface.method(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Call the method in its worker.

        Raises:
            Exception: any exception of the method.
            BrokenWorkerError: the worker died while it ran this method.
            trio.BrokenResourceError: the actor has ended. The message tells why.
            trio.ClosedResourceError: its block has ended.
            trio.WouldBlock: ``max_pending`` calls wait already.
            DeadlockError: the actor waits, perhaps through others, for this task.
        """
        return self._host.call(self._name, self._function, args, kwargs)

    def __repr__(self) -> str:
        return f"<method {self._name} of {self._host}>"


class ActorStreams:
    """The generator methods of an actor's object, whose values are streamed.

    ::

        async with actor.stream.rows(query) as rows:
            async for row in rows: ...

    Calling it gives another ``window``: ``actor.stream(window=4).rows(query)``.
    """

    __slots__ = ("_host", "_window")

    def __init__(self, host: ActorHost, window: int = 16) -> None:
        check_count("window", window)
        self._host = host
        self._window = window

    def __call__(self, *, window: int) -> ActorStreams:
        """Return the same with another window: values that a generator is ahead of its consumer."""
        return ActorStreams(self._host, window)

    def __getattr__(self, name: str) -> Callable[..., Stream[Any, Any]]:
        host = self._host
        function = host.interface.method(name, streams=True)

        def call(*args: Any, **kwargs: Any) -> Stream[Any, Any]:
            return Stream(lambda values: host.send_values(name, function, values, args, kwargs), self._window)

        return call


class NamespaceActor(Actor):
    """An actor whose object is a namespace. A job reads and sets its attributes as usual."""

    __slots__ = ()

    async def get(self, name: str) -> Any:
        """Return an attribute."""
        return await self.__getattr__("__getattribute__")(name)

    async def set(self, name: str, value: Any) -> None:
        """Set an attribute."""
        await self.__getattr__("__setattr__")(name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"{name!r} cannot be set here, because the object lives in a worker: await set({name!r}, value)"
        )

    async def delete(self, name: str) -> None:
        """Delete an attribute."""
        await self.__getattr__("__delattr__")(name)
