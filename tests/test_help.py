"""The help of the public interface: it begins with what to use, and shows public members only, each with a text."""

from __future__ import annotations

import inspect
import pydoc
import re
import subprocess
import sys
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

import trio_offload
import trio_offload.connection
import trio_offload_worker
from trio_offload_worker import from_worker, handles

MODULES: list[ModuleType] = [trio_offload, trio_offload.connection, trio_offload_worker, from_worker, handles]
CLASSES = [
    pytest.param(getattr(module, name), id=f"{module.__name__}.{name}")
    for module in MODULES
    for name in module.__all__
    if inspect.isclass(getattr(module, name))
]
# Special methods that a user calls by the syntax of Python.
OF_SYNTAX = {
    f"__{name}__" for name in ("aenter", "aexit", "aiter", "anext", "enter", "exit", "iter", "next", "len", "call", "array")
}
OLDER_NAMES = {"atexit_shutdown_grace_period", "current_default_process_limiter"}
UNITS = {
    "byte": re.compile(r"^(rss|peak_rss|vms|limit|reached|nbytes|memory_limit)$|bytes"),
    "second": re.compile(r"^(cpu_time|age|time|timeout|idle_timeout|grace_period|report_interval|stall_report)$|seconds"),
}


def help_of(thing: Any) -> str:
    return pydoc.render_doc(thing, renderer=pydoc.plaintext)


def attributes_of(cls: type[Any]) -> list[str]:
    """Public names that are not called, without those of Python's own bases."""
    foreign = {name for base in cls.__mro__ if not base.__module__.startswith("trio_offload") for name in vars(base)}
    return [
        name
        for name in dir(cls)
        if name not in foreign and not callable(getattr(cls, name, None)) and not name.startswith("_")
    ]


def text_of(cls: type[Any], name: str) -> str:
    """The text of an attribute in the help: below its name, or in the docstring of the class."""
    shown = re.sub(r"^ \| {0,2}", "", help_of(cls), flags=re.MULTILINE)
    below = re.search(rf"^{name}\n((?:    .*\n| *\n)+)", shown, re.MULTILINE)
    beside = re.search(rf"^    {name}: ((?:.+\n)+)", shown, re.MULTILINE)
    found = below or beside
    return "" if found is None else " ".join(found[1].split())


@pytest.mark.parametrize("cls", CLASSES)
def test_a_class_shows_its_public_members_only(cls: type[Any]) -> None:
    members = re.findall(r"^ \|  (?:async )?(_\w+)(?:\(| =|$)", help_of(cls), re.MULTILINE)
    assert set(members) <= OF_SYNTAX
    assert {name for name in dir(cls) if name.startswith("_")} <= OF_SYNTAX


@pytest.mark.parametrize("cls", CLASSES)
def test_each_attribute_has_a_sentence(cls: type[Any]) -> None:
    for name in attributes_of(cls):
        value = getattr(cls, name)
        text = (value.__doc__ or "") if isinstance(value, trio_offload.WorkerType) else text_of(cls, name)
        assert text.endswith("."), name


@pytest.mark.parametrize("cls", CLASSES)
def test_attributes_have_their_units(cls: type[Any]) -> None:
    for name in attributes_of(cls):
        for unit, pattern in UNITS.items():
            if pattern.search(name):
                assert unit in text_of(cls, name).lower(), name


@pytest.mark.parametrize("cls", CLASSES)
def test_each_method_has_a_text(cls: type[Any]) -> None:
    for name in dir(cls):
        if not name.startswith("_") and callable(getattr(cls, name)):
            assert inspect.getdoc(getattr(cls, name)), name


@pytest.mark.parametrize(
    "cls",
    [
        trio_offload.Actor,
        trio_offload.Process,
        trio_offload.ReceiveChannel,
        trio_offload.Results,
        trio_offload.SendChannel,
        trio_offload.SharedArray,
        trio_offload.SharedObject,
        trio_offload.Stream,
        trio_offload.WorkerContext,
        trio_offload.connection.Connection,
        trio_offload.connection.Listener,
        handles.Lock,
    ],
)
def test_a_class_that_a_function_makes_shows_no_parameters(cls: type[Any]) -> None:
    assert not inspect.signature(cls).parameters
    assert f" |  {cls.__name__}(" not in help_of(cls)


def test_a_class_that_users_make_shows_its_parameters() -> None:
    assert list(inspect.signature(trio_offload.Barrier).parameters) == ["parties", "on_death"]
    assert list(inspect.signature(trio_offload_worker.MemoryInfo).parameters) == ["rss", "peak_rss", "vms"]


# Bases that hold the implementation of several public classes. `pydoc` reads `__bases__`, which has to
# be true for programs, so their names stay in the first line, the order and the headings.
PRIVATE_BASES = {
    "trio_offload._actors.grants.Callee",
    "trio_offload._connection.passing.Passable",
    "trio_offload._late_methods.LateMethods",
    "trio_offload._options.ContextOptions",
    "trio_offload._sync.channels._End",
    "trio_offload._sync.descriptors.DescriptorHandle",
    "trio_offload._sync.handles.Acquirable",
    "trio_offload._sync.handles.Handle",
    "trio_offload._sync.locks._Lock",
    "trio_offload_worker._requests.channels._End",
    "trio_offload_worker._requests.channels._OfSent",
    "trio_offload_worker._requests.descriptors.DescriptorHandle",
    "trio_offload_worker._requests.handles.JobHandle",
}


@pytest.mark.parametrize("cls", CLASSES)
def test_only_shared_bases_have_private_names_in_the_help(cls: type[Any]) -> None:
    lines = help_of(cls).splitlines()
    assert "._" not in lines[0]
    private = {name for line in lines for name in re.findall(r"trio_offload(?:_worker)?(?:\.\w+)*\._[\w.]+", line)}
    bases = {f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__}
    assert private <= PRIVATE_BASES & bases
    assert not issubclass(cls, BaseException) or not private
    assert not any(re.search(r"(?<![\w.`:])_[A-Z]+[a-z]", line) for line in lines)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_shows_its_public_names_only(module: ModuleType) -> None:
    text = help_of(module)
    assert set(re.findall(r"^    (\w+)(?:\(| = )", text, re.MULTILINE)) <= {"__all__", *module.__all__}
    classes = text.partition("\nCLASSES\n")[2].partition("\n    class ")[0]
    assert set(re.findall(r"trio_offload\w*(?:\.\w+)*\._[\w.]+", classes)) <= PRIVATE_BASES
    assert "<trio_offload" not in text


def test_the_help_lists_open_channel_with_the_functions() -> None:
    _, _, functions = help_of(trio_offload).partition("\nFUNCTIONS\n")
    assert "\n    open_channel(" in functions
    assert repr(trio_offload.open_channel[int]) == "<function trio_offload.open_channel>"


def test_an_enumeration_shows_the_call_that_finds_a_member() -> None:
    assert list(inspect.signature(trio_offload.WorkerType).parameters) == ["value"]


def test_a_base_has_its_public_name_before_somebody_uses_it() -> None:
    code = "import trio_offload as t; print(t.BoundedSemaphore.__base__, __import__('pickle').dumps(t.BoundedSemaphore.__base__))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("<class 'trio_offload.Semaphore'> ")
    assert "_sync" not in ran.stdout


def test_classes_of_jobs_have_public_names_at_once() -> None:
    code = "from trio_offload_worker._requests import errors, locks; print(errors.WouldBlock, locks.RLock)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "<class 'trio_offload_worker.from_worker.WouldBlock'> <class 'trio_offload_worker.handles.RLock'>\n"


def test_the_help_begins_with_what_to_use() -> None:
    _, _, description = help_of(trio_offload).partition("\nDESCRIPTION\n")
    assert description.lstrip().startswith("What to use:")
    guide = (trio_offload.__doc__ or "").partition("\nA call raises")[0]
    named = set(re.findall(r"\b\w+\b", guide))
    functions = {
        name for name in trio_offload.__all__ if not inspect.isclass(getattr(trio_offload, name)) and name not in OLDER_NAMES
    }
    assert functions <= named
    for row in re.findall(r"^(\w[\w, ]+?)  ", trio_offload.__doc__ or "", re.MULTILINE):
        assert set(row.split(", ")) <= set(trio_offload.__all__)


def docstrings() -> dict[str, str]:
    """The docstrings of the modules, of their public names, and of the public members of classes."""
    found: dict[str, Any] = {}
    for module in MODULES:
        found[module.__name__] = module
        for name in module.__all__:
            found[f"{module.__name__}.{name}"] = public = getattr(module, name)
            if inspect.isclass(public):
                foreign = [base for base in public.__mro__ if not base.__module__.startswith("trio_offload")]
                for member in dir(public):
                    if not member.startswith("_") and not any(member in vars(base) for base in foreign):
                        found[f"{module.__name__}.{name}.{member}"] = inspect.getattr_static(public, member, None)
    return {name: inspect.getdoc(thing) or "" for name, thing in found.items() if not isinstance(thing, (str, int, tuple))}


def sentences(docstring: str) -> list[str]:
    """The sentences of a docstring, without tables and blocks of code."""
    prose = re.sub(r"(?m)^=+ .*\n(?:.+\n)+", "", docstring)
    prose = re.sub(r"(?m)::\n\n(?: {4,}.*\n|\n)+", ".\n\n", prose + "\n")
    paragraphs = re.split(r"\n\s*\n|\n\s*(?=\**[\w., ]+: )|\n(?=\s*\* )|:\n", prose)
    return [part for text in paragraphs for part in re.split(r"(?<=[.?!])\s+(?=[A-Z`*:\"0-9])", " ".join(text.split()))]


def test_sentences_are_short_and_begin_with_their_subject() -> None:
    """The rules of the language: at most 25 words, the noun in place of a clause."""
    problems = [
        (name, sentence)
        for name, docstring in docstrings().items()
        for sentence in sentences(docstring)
        if len(sentence.split()) > 25 or re.match(r"(What|Who|Whatever|Whoever) (?!to use)", sentence)
    ]
    assert problems == []


def test_the_help_is_not_longer_than_before() -> None:
    """It had 5,040 lines with special names and the parts of attrs; 3,014 without, in Python 3.11.

    Examples do not count. Python 3.13 breaks long signatures into lines.
    """
    example = re.compile(r"^(?P<margin>[ |]*)(?:\S.*)?::\n[ |]*\n(?:(?P=margin)    .*\n|[ |]*\n)+", re.MULTILINE)
    lines = example.sub("", help_of(trio_offload)).splitlines()
    assert len(lines) < (3300 if sys.version_info >= (3, 13) else 3000)


def test_the_help_of_a_slot_is_read_on_demand() -> None:
    slots: Any = trio_offload.WorkerStatistics.__dict__["__slots__"]
    assert set(slots) == {field.name for field in trio_offload.WorkerStatistics.__attrs_attrs__} | {"__weakref__"}
    assert slots["pid"] == "Process ID."
    assert slots["__weakref__"] == ""


def test_an_instance_shows_all_its_names() -> None:
    """Only the class hides any: debuggers and `copy` see an object as it is."""
    record = trio_offload.JobProgress(1, 2, None)
    assert {"done", "__eq__", "__class__", "__attrs_attrs__"} <= set(dir(record))


def test_mocks_have_the_public_members() -> None:
    lock = mock.MagicMock(spec=trio_offload.Lock)
    assert lock.locked()
    assert lock.__aenter__
    with pytest.raises(AttributeError):
        lock.lokced()
    assert mock.create_autospec(trio_offload.WorkerStatistics, instance=True).rss


def test_without_docstrings() -> None:
    code = "import trio_offload as t; print(t.__doc__, t.WorkerContext.__doc__, t.BrokenWorkerError.__doc__, t.Lock.__doc__)"
    ran = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "None None None None\n"
