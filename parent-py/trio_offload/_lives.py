"""Functions of the public interface for work that lives: streams, in the current context."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ._context import WorkerContext
from ._default import current_context

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable

    from ._limiter import Limiter
    from ._streams.stream import Stream
    from ._worker.watch import ShowProgress

    stream = current_context().stream
else:

    def stream(
        genfn: Callable[..., Iterable[Any] | AsyncIterable[Any]],
        *args: Any,
        window: int = 16,
        chunk: int | Literal["auto"] = "auto",
        grace: float | None = 5.0,
        limiter: Limiter | None = None,
        progress: ShowProgress | None = None,
    ) -> Stream[Any, Any]:
        return current_context().stream(
            genfn, *args, window=window, chunk=chunk, grace=grace, limiter=limiter, progress=progress
        )

    stream.__doc__ = WorkerContext.stream.__doc__
