"""Does a function of ``trio-offload map`` take one argument?

``inspect`` takes longer to import than a worker takes to start. So the code object decides for
plain functions, and ``inspect`` for other callables and for the message.
"""

from __future__ import annotations

from types import FunctionType, MethodType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final


def unfit_parameters(function: Any) -> str | None:
    """Return the parameters, as text, of a callable that cannot be called with one argument.

    None means that it can, or that its parameters are unknown, as for some built-in functions.
    """
    while type(function).__name__ == "_lru_cache_wrapper":  # passes its arguments on unchanged
        function = function.__wrapped__
    if _takes_one_argument(function):
        return None
    import inspect

    try:
        # A decorator that keeps the inner signature may well add arguments. Its own code counts.
        signature = inspect.signature(function, follow_wrapped=False)
    except Exception:  # ValueError if unknown; an attribute of the user's class may raise anything
        return None
    try:
        signature.bind(None)
    except TypeError:
        return str(signature)
    return None


def _takes_one_argument(function: Any) -> bool:
    """Return True for a plain function or method that does. False for others, or if unsure."""
    given = 1
    if type(function) is MethodType:
        function = function.__func__
        given = 2
    if type(function) is not FunctionType:
        return False
    code = function.__code__
    required = code.co_argcount - len(function.__defaults__ or ())
    if code.co_kwonlyargcount > len(function.__kwdefaults__ or ()):
        return False
    return bool(required <= given and (given <= code.co_argcount or code.co_flags & _CO_VARARGS))


_CO_VARARGS: Final = 0x04
