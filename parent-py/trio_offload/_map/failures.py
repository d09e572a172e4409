"""The errors of items: each names its item, in a note and in its attributes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from trio_offload_worker._jobs.notes import add_note

from .._exceptions import BrokenWorkerError, JobExitError, RemoteError, WorkerTimeoutError
from .._pickling.payload import function_name

if TYPE_CHECKING:
    from .source import Chunk

# Key in an exception's `__dict__`: the names of the attributes that were set here. A job may run a
# map too. Its error then arrives with the attributes of that map, and the names allow to replace
# them.
_MARK: Final = "__trio_offload_item__"
# They declare both attributes, with the value None.
_ERRORS_OF_ITEMS: Final = (BrokenWorkerError, JobExitError, RemoteError, WorkerTimeoutError)


def mark(error: BaseException, function: Callable[[Any], Any], chunk: Chunk, indexes: list[int]) -> None:
    """Let an error name its items, which have these indexes in the chunk.

    Its attributes are those of the first item.
    """
    name = function_name(function)
    first, last = chunk.start + indexes[0], chunk.start + indexes[-1]
    _set_attributes(error, chunk.items[indexes[0]], first)
    if first == last:
        add_note(error, f"(item {first} of a map of {name}: {chunk.shown(indexes[0])})")
    else:
        add_note(error, f"(items {first} to {last} of a map of {name})")


def separate(failures: dict[int, BaseException]) -> dict[int, list[int]]:
    """Give each item its own error, where several share one.

    Return the indexes of the items by the first of them that has the same error. An error that
    cannot be copied stays shared.
    """
    sharing: dict[int, int] = {}
    owners: dict[int, list[int]] = {}
    for index in sorted(failures):
        error = failures[index]
        first = sharing.setdefault(id(error), index)
        twin = None if first == index else _copy(error)
        if first == index or twin is not None:
            owners[index] = [index]
            if twin is not None:
                failures[index] = twin
        else:
            owners[first].append(index)
    return owners


def _set_attributes(error: BaseException, item: Any, index: int) -> None:
    """Set ``item`` and ``item_index``, unless the exception has such an attribute of its own.

    Bypasses the exception's class, which may forbid setting attributes (a frozen dataclass does).
    """
    try:
        attributes = object.__getattribute__(error, "__dict__")
        ours = attributes.get(_MARK, ())
        names = []
        for name, value in (("item", item), ("item_index", index)):
            is_free = name not in attributes and (isinstance(error, _ERRORS_OF_ITEMS) or not hasattr(type(error), name))
            if is_free or name in ours:
                attributes[name] = value
                names.append(name)
        attributes[_MARK] = tuple(names)
    except Exception:
        # The attributes are optional: a class that refuses them must not replace the exception.
        pass


def _copy(error: BaseException) -> BaseException | None:
    try:
        twin = copy.copy(error)
        if twin is error or type(twin) is not type(error):
            return None
        notes = twin.__dict__.get("__notes__")
        if notes is not None:
            twin.__dict__["__notes__"] = [*notes]
        twin.__cause__, twin.__context__ = error.__cause__, error.__context__
        twin.__suppress_context__ = error.__suppress_context__
        return twin.with_traceback(error.__traceback__)
    except Exception:
        return None
