"""Show in :func:`help` what users need: public members, strings below attributes, a parameter.

Python drops a string below an attribute or enumeration member, and editors read it from the source.
So does this module, when somebody asks for the class's ``__doc__``: the text stays in one place,
and the import costs nothing. Without source (in a frozen app), the class's own docstring remains.
"""

from __future__ import annotations

import abc
import enum
import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from trio_offload_worker import PublicType

ClassType = TypeVar("ClassType", bound=type)
FunctionType = TypeVar("FunctionType", bound=Callable[..., Any])


class PublicABCType(PublicType, abc.ABCMeta):
    """As :class:`PublicType`, for classes with an abstract base."""


class PublicEnumType(PublicType, enum.EnumMeta):
    """As :class:`PublicType`, for enumerations. It shows members, without methods of ``str``."""

    def __dir__(cls) -> list[str]:
        return [*cls.__members__]

    @property
    def __signature__(cls) -> inspect.Signature:
        """Of a call that finds a member. `enum` shows the parameters for a new enumeration too."""
        return inspect.Signature([inspect.Parameter("value", inspect.Parameter.POSITIONAL_ONLY, annotation="str")])


class DocumentedType(PublicType):
    """As :class:`PublicType`, for classes whose attributes are not slots.

    `pydoc` reads the docstring of a class past its type, unless the type has a property for it.
    """

    @property
    def __doc__(cls) -> str | None:  # noqa: N805 (a metaclass)
        docstring: _Docstring | str | None = vars(cls)["__doc__"]
        return docstring.__get__(None, cls) if isinstance(docstring, _Docstring) else docstring

    @__doc__.setter
    def __doc__(cls, docstring: str | None) -> None:  # noqa: N805
        vars(type)["__doc__"].__set__(cls, docstring)


def documented(cls: ClassType) -> ClassType:
    """Let the docstring of a class include its attributes, inherited ones too.

    `pydoc` shows the strings of slots beside their names, as it does for ``__slots__`` in a
    dictionary.
    """
    # Absent under -OO.
    if cls.__doc__ is not None:
        docstring = _Docstring(cls.__doc__)
        # As it is before `__init__.py` sets `__module__` to the package.
        docstring.place = cls.__module__, cls.__qualname__
        cls.__doc__ = docstring
        slots = vars(cls).get("__slots__")
        if slots:
            cls.__slots__ = _Slots(docstring, slots)  # type: ignore[attr-defined]
    return cls


def shows_progress(function: FunctionType) -> FunctionType:
    """Show the parameter ``progress`` in the signature, in place of ``**more``.

    A call without it pays nothing for it, and a wrong keyword in ``more`` is explained.
    """
    signature = inspect.signature(function)
    kind = "Callable[[float, float | None, str | None], object] | None"
    progress = inspect.Parameter("progress", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
    shown = [progress if parameter.name == "more" else parameter for parameter in signature.parameters.values()]
    function.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    function.__annotations__["progress"] = kind
    del function.__annotations__["more"]
    return function


class _Docstring(str):
    """The ``__doc__`` of a class and, for an enumeration, of its members.

    As a string it is the class's own docstring: `pydoc` bypasses `__get__` if the class has a
    metaclass, and shows the members of an enumeration itself.
    """

    __slots__ = ("place",)

    place: tuple[str, str]
    """The module and the name of the class."""

    def __get__(self, instance: Any, owner: type[Any]) -> str:
        if isinstance(instance, enum.Enum):
            return self.attributes().get(instance.name, str(self))
        attributes: dict[str, str] = {}
        for cls in owner.__mro__:
            found = vars(cls).get("__doc__")
            if isinstance(found, _Docstring):
                attributes |= {name: text for name, text in found.attributes().items() if name not in attributes}
        return _joined(str(self), attributes)

    def attributes(self) -> dict[str, str]:
        """Return the strings below the attributes of this class, by name."""
        return _read(*self.place)


class _Slots(dict[str, str]):
    """The ``__slots__`` of a class, with the strings below its attributes, read on demand."""

    def __init__(self, docstring: _Docstring, names: Iterable[str]) -> None:
        super().__init__(dict.fromkeys(names, ""))
        self._docstring = docstring

    def __getitem__(self, name: str) -> str:
        return self._docstring.attributes().get(name) or super().__getitem__(name)


def _joined(text: str, attributes: dict[str, str]) -> str:
    import textwrap

    if not attributes:
        return text
    paragraphs = [f"{name}: {textwrap.indent(text, '    ').lstrip()}" for name, text in attributes.items()]
    return inspect.cleandoc(text) + "\n\nAttributes:\n" + textwrap.indent("\n\n".join(paragraphs), "    ")


@functools.cache
def _read(module: str, name: str) -> dict[str, str]:
    import ast
    from itertools import pairwise

    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError, SyntaxError, KeyError):
        return {}
    body = [part for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name for part in node.body]
    return {
        ast.unparse(statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]): inspect.cleandoc(
            below.value.value
        )
        for statement, below in pairwise(body)
        if isinstance(statement, (ast.AnnAssign, ast.Assign))
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }
