"""The form of a map: a block. Other uses of it are refused, with the right one."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Generic, NoReturn, TypeVar

if TYPE_CHECKING:
    from .results import Results

DeliveredType = TypeVar("DeliveredType")


class Block(contextlib.AbstractAsyncContextManager["Results[DeliveredType]"], Generic[DeliveredType]):
    """An async context manager that says how it is entered."""

    def __aiter__(self) -> NoReturn:
        _refuse("with `async for` alone")

    def __iter__(self) -> NoReturn:
        _refuse("without `async`")

    def __await__(self) -> NoReturn:
        _refuse("with `await`")

    def __enter__(self) -> NoReturn:
        _refuse("with `with`")

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise AttributeError(
            f"a map has no {name!r}, because its workers run inside a block. Write `async with map(fn, items) as results:`, "
            f"and in it `results.{name}`"
        )

    def __exit__(self, *error: object) -> None:
        """Python looks for this before it calls ``__enter__``."""


def _refuse(how: str) -> NoReturn:
    raise TypeError(
        f"a map cannot be used {how}, because its workers run inside a block. Write `async with map(fn, items) as results:`, "
        "and in it `async for result in results:`"
    )
