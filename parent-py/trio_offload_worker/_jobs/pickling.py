"""Pickle results that the standard pickler refuses, with cloudpickle if it is installed."""

from __future__ import annotations

from .._protocol.parts import OUT_OF_BAND, Parts
from .notes import add_note

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MAX_BUFFERS = 65_000  # a frame has room for 65,536 segments
_GENERATOR = type(_ for _ in ())  # as in the module `types`, which takes longer to import


def dumps(value: Any, original_error: BaseException, subject: str = "the result of the job") -> list[Any]:
    """Return the pickle of ``value`` and its out-of-band buffers, as bytes-like objects.

    Messages call the value ``subject``.

    Raises:
        BaseException: ``original_error``, with a note, if cloudpickle is missing or fails too.
    """
    hint = ". trio_offload.stream iterates over the values of a generator function" if type(value) is _GENERATOR else ""
    try:
        import cloudpickle  # noqa: F401
    except ImportError:
        add_note(
            original_error,
            f"({subject} cannot be pickled. With the package cloudpickle installed, lambdas, local functions "
            f"and local classes can be sent too. Open files, locks and generators cannot: send the data in them{hint})",
        )
        raise original_error from None
    from .cloudpickle import ResultPickler

    buffers: list[Any] = []

    def take(buffer: Any) -> bool:
        view = buffer.raw()
        if view.nbytes < OUT_OF_BAND or len(buffers) >= _MAX_BUFFERS:
            return True
        buffers.append(view)
        return False

    file = Parts()
    try:
        ResultPickler(file, protocol=5, buffer_callback=take).dump(value)
    except Exception as error:
        add_note(
            original_error,
            f"({subject} cannot be pickled, not even by cloudpickle: {type(error).__name__}: {error}{hint})",
        )
        raise original_error from None
    return [file.whole(), *buffers]
