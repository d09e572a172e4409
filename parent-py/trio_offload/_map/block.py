"""The form of a map: a block. Other uses of it are refused, with the right one."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Generic, NoReturn, TypeVar

if TYPE_CHECKING:
    from .results import Results

DeliveredType = TypeVar("DeliveredType")


class _OfResults:
    """A name that only the results have.

    A ``__getattr__`` would refuse all names, but makes every attribute of the map slower to read.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, block: object, owner: type) -> NoReturn:
        raise AttributeError(
            f"a map has no {self._name!r}, because its workers run inside a block. Write "
            f"`async with map(fn, items) as results:`, and in it `results.{self._name}`"
        )


class Block(contextlib.AbstractAsyncContextManager["Results[DeliveredType]"], Generic[DeliveredType]):
    """An async context manager that says how it is entered."""

    batches = _OfResults()
    collect = _OfResults()
    progress = _OfResults()

    def __aiter__(self) -> NoReturn:
        _refuse("with `async for` alone")

    def __iter__(self) -> NoReturn:
        _refuse("without `async`")

    def __await__(self) -> NoReturn:
        _refuse("with `await`")

    def __enter__(self) -> NoReturn:
        _refuse("with `with`")

    def __exit__(self, *error: object) -> None:
        """Python looks for this before it calls ``__enter__``."""


def _refuse(how: str) -> NoReturn:
    raise TypeError(
        f"a map cannot be used {how}, because its workers run inside a block. Write `async with map(fn, items) as results:`, "
        "and in it `async for result in results:`"
    )
