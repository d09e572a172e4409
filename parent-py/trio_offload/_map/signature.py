"""The overloads of ``starmap``, for type checkers only. ``_context.py`` has the ones of ``map``."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload

import outcome

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple, Unpack

    from .._options import MapOptions
    from .results import Results

    ArgumentTypes = TypeVarTuple("ArgumentTypes")

ResultType = TypeVar("ResultType")


class StarMap(Protocol):
    """The type of ``starmap``: an item has the types of the function's arguments."""

    @overload
    def __call__(
        self,
        fn: Callable[[Unpack[ArgumentTypes]], ResultType],
        items: Iterable[tuple[Unpack[ArgumentTypes]]] | AsyncIterable[tuple[Unpack[ArgumentTypes]]],
        *,
        return_outcomes: Literal[False] = False,
        return_items: Literal[False] = False,
        **options: Unpack[MapOptions],
    ) -> contextlib.AbstractAsyncContextManager[Results[ResultType]]: ...

    @overload
    def __call__(
        self,
        fn: Callable[[Unpack[ArgumentTypes]], ResultType],
        items: Iterable[tuple[Unpack[ArgumentTypes]]] | AsyncIterable[tuple[Unpack[ArgumentTypes]]],
        *,
        return_outcomes: Literal[True],
        return_items: Literal[False] = False,
        **options: Unpack[MapOptions],
    ) -> contextlib.AbstractAsyncContextManager[Results[outcome.Outcome[ResultType]]]: ...

    @overload
    def __call__(
        self,
        fn: Callable[[Unpack[ArgumentTypes]], ResultType],
        items: Iterable[tuple[Unpack[ArgumentTypes]]] | AsyncIterable[tuple[Unpack[ArgumentTypes]]],
        *,
        return_outcomes: Literal[False] = False,
        return_items: Literal[True],
        **options: Unpack[MapOptions],
    ) -> contextlib.AbstractAsyncContextManager[Results[tuple[tuple[Unpack[ArgumentTypes]], ResultType]]]: ...

    @overload
    def __call__(
        self,
        fn: Callable[[Unpack[ArgumentTypes]], ResultType],
        items: Iterable[tuple[Unpack[ArgumentTypes]]] | AsyncIterable[tuple[Unpack[ArgumentTypes]]],
        *,
        return_outcomes: Literal[True],
        return_items: Literal[True],
        **options: Unpack[MapOptions],
    ) -> contextlib.AbstractAsyncContextManager[
        Results[tuple[tuple[Unpack[ArgumentTypes]], outcome.Outcome[ResultType]]]
    ]: ...

    @overload
    def __call__(
        self,
        fn: Callable[[Unpack[ArgumentTypes]], ResultType],
        items: Iterable[tuple[Unpack[ArgumentTypes]]] | AsyncIterable[tuple[Unpack[ArgumentTypes]]],
        *,
        return_outcomes: bool = False,
        return_items: bool = False,
        **options: Unpack[MapOptions],
    ) -> contextlib.AbstractAsyncContextManager[Results[Any]]: ...
