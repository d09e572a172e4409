"""Contract: the pickle of a call whose function is known by its name is worth what the ordinary pickler's is."""

from __future__ import annotations

import copyreg
import decimal
import functools
import json
import math
import operator
import os
import pickle
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jobs
import numpy
import pytest

from trio_offload._pickling import calls
from trio_offload._pickling.by_reference import CallsByReference
from trio_offload._pickling.calls import dump_call
from trio_offload._pickling.payload import Payload, function_name
from trio_offload_worker._jobs import chunks

FUNCTIONS: list[Any] = [bool, len, os.getpid, json.dumps, math.sin, decimal.Decimal, operator.add, jobs.echo, Path]
OTHERS: list[Any] = [[].append, "".join, functools.partial(max, 3), Path("x").joinpath, numpy.add, str.upper, int.from_bytes]
ARGUMENTS: list[tuple[Any, ...]] = [
    (),
    (1,),
    ("short", None, 2.5),
    ("long" * 20_000, b"large" * 100_000, "end"),
    (b"large" * 100_000,),
    ([b"the same" * 100_000] * 2, numpy.arange(100_000), bytearray(300_000)),
    (os.getpid, len, bool, jobs.echo),
    (list(range(50_000)),),
    ({"a": ("b", "a")}, "a", "b"),
]


def load(payload: Payload, loads: Any = pickle.loads) -> Any:
    """What a worker finds, by way of the parts as they are written."""
    data = b"".join(payload.parts)
    segments = []
    for length in payload.lengths:
        segments.append(data[:length])
        data = data[length:]
    assert not data
    # Type 1 is `bytes`; the others are memory that can be written to, a `bytearray` for short.
    types = payload.types or bytes(len(segments))
    return loads(
        segments[0], buffers=[part if kind == 1 else bytearray(part) for part, kind in zip(segments, types, strict=True)][1:]
    )


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> CallsByReference:
    names = CallsByReference()
    monkeypatch.setattr(calls, "_by_reference", names)
    return names


@pytest.mark.parametrize("loads", [pickle.loads, pickle._loads], ids=["C", "Python"])  # type: ignore[attr-defined]
@pytest.mark.parametrize("function", FUNCTIONS + OTHERS, ids=function_name)
def test_a_call_is_what_the_pickler_makes_of_it(function: Any, loads: Any, names: CallsByReference) -> None:
    for args in ARGUMENTS:
        for _ in range(2):
            found, got = load(dump_call(function, args), loads)
            assert pickle.dumps((found, got)) == pickle.dumps(pickle.loads(pickle.dumps((function, args))))
    assert (names.start_of(function) is not None) == (function in FUNCTIONS)


@pytest.mark.parametrize("function", FUNCTIONS + OTHERS, ids=function_name)
def test_a_chunk_is_what_the_pickler_makes_of_it(function: Any) -> None:
    for args in ARGUMENTS:
        payload = calls.dump_chunk(chunks.run, function, args)
        assert payload.function is function
        assert pickle.dumps(load(payload)) == pickle.dumps(pickle.loads(pickle.dumps((chunks.run, (function, args)))))


def test_one_object_in_two_places_is_one_object() -> None:
    shared = ["a list"]
    function, (first, second, back) = load(dump_call(jobs.echo, (shared, shared, jobs.echo)))
    assert first is second
    assert back is function is jobs.echo


@pytest.fixture
def module() -> Iterator[types.ModuleType]:
    module = types.ModuleType("a_module_of_a_test")
    exec("def function(*args): return args\nclass Class: pass", module.__dict__)
    sys.modules[module.__name__] = module
    yield module
    sys.modules.pop(module.__name__, None)


@pytest.mark.parametrize("name", ["function", "Class"])
@pytest.mark.parametrize("change", ["replaced", "removed", "module replaced", "module removed", "module blocked"])
@pytest.mark.parametrize("args", [(), (1,)], ids=["", "an argument"])
def test_what_is_no_longer_found_by_its_name_is_refused_as_ever(
    name: str, change: str, args: Any, module: types.ModuleType, names: CallsByReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "cloud_pickler", lambda: None)
    function = getattr(module, name)
    assert load(dump_call(function, args)) == (function, args)
    if change == "replaced":
        monkeypatch.setattr(module, name, len)
    elif change == "removed":
        monkeypatch.delattr(module, name)
    elif change == "module replaced":
        monkeypatch.setitem(sys.modules, module.__name__, types.ModuleType(module.__name__))
    elif change == "module removed":
        monkeypatch.delitem(sys.modules, module.__name__)
    else:
        monkeypatch.setitem(sys.modules, module.__name__, None)  # type: ignore[arg-type]
    with pytest.raises((pickle.PicklingError, ModuleNotFoundError)):
        dump_call(function, args)
    monkeypatch.undo()
    sys.modules[module.__name__] = module


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("__module__", None),
        ("__module__", "not.there"),
        ("__qualname__", "other"),
        ("__qualname__", "a\nb"),
        ("__module__", "a\nb"),
    ],
)
def test_functions_with_unusual_names_are_for_the_pickler(
    attribute: str, value: Any, module: types.ModuleType, names: CallsByReference
) -> None:
    setattr(module.function, attribute, value)
    assert names.start_of(module.function) is None


def test_names_of_other_alphabets_are_for_the_pickler(module: types.ModuleType, names: CallsByReference) -> None:
    exec("def größe(): pass", module.__dict__)
    function = module.__dict__["größe"]
    assert names.start_of(function) is None
    assert load(dump_call(function, ())) == (function, ())


@pytest.mark.parametrize("args", [(), (1,), ([1],)], ids=repr)
def test_what_is_in_a_main_without_a_file_is_refused_as_ever(args: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def function() -> None: ...

    monkeypatch.setattr(calls, "cloud_pickler", lambda: None)
    function.__module__, function.__qualname__ = "__main__", "function"
    monkeypatch.setattr(sys.modules["__main__"], "function", function, raising=False)
    monkeypatch.setattr(calls, "main_module_spec", lambda: {"kind": "path", "path": "script.py"})
    assert load(dump_call(function, args)) == (function, args)
    monkeypatch.setattr(calls, "main_module_spec", lambda: {"kind": "none", "why": "was typed in"})
    with pytest.raises(pickle.PicklingError, match="is defined in a __main__ that was typed in"):
        dump_call(function, args)


def test_arguments_that_cannot_be_pickled_are_told_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "cloud_pickler", lambda: None)
    with pytest.raises(TypeError, match="cannot pickle") as caught:
        dump_call(jobs.echo, (sys._getframe(),))
    # Since Python 3.14 the pickler has notes of its own, which come first.
    assert "while pickling a call of jobs.echo" in "".join(
        getattr(caught.value, "__notes__", ["while pickling a call of jobs.echo"])
    )


@pytest.mark.parametrize("kind", [types.BuiltinFunctionType, types.FunctionType, type])
def test_user_reducer_is_called_as_by_pickler(kind: Any, monkeypatch: pytest.MonkeyPatch, names: CallsByReference) -> None:
    functions: list[Any] = [jobs.echo, bool, math.sin]
    for function in functions:
        assert names.start_of(function) is not None
    monkeypatch.setitem(copyreg.dispatch_table, kind, lambda function: (jobs.echo, ("reduced",)))
    for function in functions:
        assert load(dump_call(function, ()))[0] == pickle.loads(pickle.dumps(function))


def test_only_so_many_are_known(names: CallsByReference) -> None:
    module = types.ModuleType("many_functions")
    sys.modules[module.__name__] = module
    try:
        for number in range(1000):
            exec(f"def function_{number}(): pass", module.__dict__)
            assert names.start_of(module.__dict__[f"function_{number}"]) is not None
        assert 0 < len(names) <= 256
    finally:
        del sys.modules[module.__name__]
