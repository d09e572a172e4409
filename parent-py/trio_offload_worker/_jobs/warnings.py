"""Send the warnings of a job to the parent, which shows them by its own filters.

The function behind :func:`warnings.showwarning` is replaced. So ``catch_warnings(record=True)``,
and a job's own ``showwarning``, work as always. A warning takes the original way if no job runs.
"""

from __future__ import annotations

import _pickle
import sys
import warnings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, Final


def follow(post: Callable[[str, bytes], bool] | None) -> None:
    """Forward warnings by this function, or stop that. See :func:`.forwarding.post`."""
    global _post
    module: Any = warnings
    _post = post
    if post is None:
        if module._showwarnmsg_impl is _show:
            module._showwarnmsg_impl = _original
        return
    logging: Any = sys.modules.get("logging")
    if module._showwarnmsg_impl is not _show and module.showwarning is getattr(logging, "_showwarning", None):
        # A fork of a program that captures warnings. The program does so with these ones too.
        module.showwarning = module._showwarning_orig
    module._showwarnmsg_impl = _show


def _show(message: Any) -> None:
    """Show a :class:`warnings.WarningMessage`."""
    try:
        sent = message.file is None and _post is not None and not _is_recorded() and _post("warn", _encode(message))
    except Exception:
        sent = False
    if not sent:
        _original(message)


def _is_recorded() -> bool:
    """Return True in a ``catch_warnings(record=True)`` with context-aware warnings.

    They come with Python 3.14. Without them, the block replaces :func:`_show`.
    """
    get_context: Any = getattr(sys.modules.get("_py_warnings"), "_get_context", None)
    return get_context is not None and getattr(get_context(), "log", None) is not None


def _encode(message: Any) -> bytes:
    category, warning = message.category, message.message
    try:
        pickled: bytes | None = _pickle.dumps(warning, 5)
    except Exception:
        pickled = None
    classes = [f"{one.__module__}:{one.__qualname__}" for one in category.__mro__]
    module = _module_at(message.filename, message.lineno)
    return _pickle.dumps((str(warning), classes, pickled, message.filename, message.lineno, module), 5)


def _module_at(file: str, line: int) -> str | None:
    """Return the name of the module that is warned about, for the filters. None means unknown."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_lineno == line and frame.f_code.co_filename == file:
            name = frame.f_globals.get("__name__")
            return name if isinstance(name, str) else None
        frame = frame.f_back
    return None


_original: Final[Callable[[Any], None]] = warnings._showwarnmsg_impl  # type: ignore[attr-defined]
_post: Callable[[str, bytes], bool] | None = None
