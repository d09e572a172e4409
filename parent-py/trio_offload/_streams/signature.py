"""The overloads of ``stream``, for type checkers only."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload

from .._limiter import Limiter
from .._worker.watch import ShowProgress

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple, Unpack

    from .stream import Stream

    ArgumentTypes = TypeVarTuple("ArgumentTypes")

ValueType = TypeVar("ValueType")
ResultType = TypeVar("ResultType")


class StreamMethod(Protocol):
    """The type of ``stream``: values and result have the types of the generator's."""

    @overload
    def __call__(
        self,
        genfn: Callable[[Unpack[ArgumentTypes]], Generator[ValueType, Any, ResultType]],
        *args: Unpack[ArgumentTypes],
        window: int = 16,
        chunk: int | Literal["auto"] = "auto",
        grace: float | None = 5.0,
        limiter: Limiter | None = None,
        progress: ShowProgress | None = None,
    ) -> Stream[ValueType, ResultType]: ...

    @overload
    def __call__(
        self,
        genfn: Callable[[Unpack[ArgumentTypes]], Iterable[ValueType]],
        *args: Unpack[ArgumentTypes],
        window: int = 16,
        chunk: int | Literal["auto"] = "auto",
        grace: float | None = 5.0,
        limiter: Limiter | None = None,
        progress: ShowProgress | None = None,
    ) -> Stream[ValueType, Any]: ...

    @overload
    def __call__(
        self,
        genfn: Callable[[Unpack[ArgumentTypes]], AsyncIterable[ValueType]],
        *args: Unpack[ArgumentTypes],
        window: int = 16,
        chunk: int | Literal["auto"] = "auto",
        grace: float | None = 5.0,
        limiter: Limiter | None = None,
        progress: ShowProgress | None = None,
    ) -> Stream[ValueType, None]: ...
