"""End to end: exceptions and results on their way between the worker and its parent.

``test_payloads.py`` has what is large.
"""

from __future__ import annotations

import gc
import http
import importlib
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import bad_jobs
import jobs
import numpy
import outcome as outcomes
import pytest
import trio

import trio_offload
from trio_offload import JobExitError, RemoteError, WorkerContext


async def raised_by(context: WorkerContext, job: Any, *args: Any) -> BaseException:
    """What a job raised; the worker that ran it must be the one that runs the next."""
    pid = await context.run_sync(os.getpid)
    try:
        value = await context.run_sync(job, *args)
    except BaseException as error:
        assert await context.run_sync(os.getpid) == pid
        return error.__cause__ if isinstance(error, JobExitError) and error.__cause__ is not None else error
    raise AssertionError(f"it returned {value!r}")


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


# --- exceptions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "args", "facts"),
    [
        ("NeedsMore", (1, "two"), {"first": 1, "second": "two", "args": ("1 two",)}),
        ("NeedsAnArgumentToBeMade", (5,), {"value": 5}),
        ("TakesNothing", (), {"args": ("always the same",)}),
        ("HasSlots", (9,), {"inner": 9, "args": (9,)}),
        ("ReducesItself", (4,), {"value": 4, "doubled": 8}),
        ("AwkwardOSError", ("/dev/x",), {"device": "/dev/x", "errno": 5, "filename": "/dev/x", "strerror": "no answer"}),
        ("Frozen", (7, "seven"), {"code": 7, "text": "seven"}),
        ("KeyError", ("key",), {"args": ("key",)}),
        ("FileNotFoundError", (2, "not there", "/a", None, "/b"), {"errno": 2, "filename": "/a", "filename2": "/b"}),
        ("UnicodeDecodeError", ("utf-8", b"\xff", 0, 1, "why"), {"object": b"\xff", "reason": "why"}),
        ("StopAsyncIteration", (3,), {"args": (3,)}),
        ("SystemExit", (5,), {"code": 5}),
        ("SyntaxError", ("bad", ("file", 3, 1, "text")), {"lineno": 3, "filename": "file"}),
    ],
)
async def test_an_exception_arrives_as_it_was(
    context: WorkerContext, name: str, args: tuple[Any, ...], facts: dict[str, Any]
) -> None:
    error = await raised_by(context, bad_jobs.raise_made, name, *args)
    assert type(error).__name__ == name
    assert {key: getattr(error, key) for key in facts} == facts


async def test_one_that_takes_keywords_only(context: WorkerContext) -> None:
    import functools

    error = await raised_by(context, functools.partial(bad_jobs.raise_made, "NeedsKeywords", code=3))
    assert isinstance(error, bad_jobs.NeedsKeywords)
    assert error.code == 3


async def test_import_errors_keep_their_name(context: WorkerContext) -> None:
    import importlib

    error = await raised_by(context, importlib.import_module, "there_is_no_such_module")
    assert isinstance(error, ModuleNotFoundError)
    assert error.name == "there_is_no_such_module"


async def test_a_class_that_only_the_worker_has(context: WorkerContext) -> None:
    error = await raised_by(context, bad_jobs.raise_local_class)
    assert type(error).__name__ == "Local"
    assert str(error) == "of a function"


async def test_one_that_nothing_can_pickle_is_stood_in_for(context: WorkerContext) -> None:
    error = await raised_by(context, bad_jobs.raise_made, "KeepsALock")
    assert type(error) is RemoteError
    assert (error.type_name, error.message) == ("bad_jobs.KeepsALock", "it has a lock")
    assert "in raise_made" in error.traceback_text
    assert "KeepsALock: it has a lock" in str(error)


async def test_one_that_cannot_be_shown_arrives_all_the_same(context: WorkerContext) -> None:
    error = await raised_by(context, bad_jobs.raise_made, "CannotBeShown")
    assert type(error) is bad_jobs.CannotBeShown


async def test_stop_iteration_cannot_pass_a_coroutine_but_is_its_cause(context: WorkerContext) -> None:
    """PEP 479, the same as in a thread."""
    error = await raised_by(context, next, iter(()))
    assert isinstance(error, RuntimeError)
    assert isinstance(error.__cause__, StopIteration)


async def test_a_frozen_exception_gets_a_note(context: WorkerContext) -> None:
    error = await raised_by(context, jobs.echo, bad_jobs.RaisesFrozenWhenUnpickled())
    assert isinstance(error, bad_jobs.Frozen)
    assert error.__dict__["__notes__"] == ["(while the worker unpickled the function and its arguments)"]


# --- with all that belongs to them ---------------------------------------------------------------


async def test_the_traceback_shows_the_workers_frames(context: WorkerContext) -> None:
    error = await raised_by(context, bad_jobs.raise_after, 3)
    places = [(frame.filename, frame.name, frame.line) for frame in traceback.extract_tb(error.__traceback__)]
    worker = [place for place in places if place[0] == bad_jobs.__file__]
    assert [name for _, name, _ in worker] == ["raise_after"] * 4
    assert worker[-1][2] == 'raise Boom("deep")'
    assert places[-1] == worker[-1]
    assert any(name == "raised_by" for _, name, _ in places), "and how the call came about in the parent"
    assert not any("trio_offload_worker" in filename for filename, _, _ in places), "and none of the machinery there"


async def test_a_traceback_of_endless_recursion_is_of_bearable_length(context: WorkerContext) -> None:
    error = await raised_by(context, bad_jobs.recurse)
    assert isinstance(error, RecursionError)
    assert 2 < len(traceback.extract_tb(error.__traceback__)) < 1000


async def test_causes_and_contexts_arrive_with_their_tracebacks(context: WorkerContext) -> None:
    third = await raised_by(context, bad_jobs.raise_chain)
    assert isinstance(third, bad_jobs.Frozen)
    second = third.__cause__
    assert isinstance(second, bad_jobs.NeedsMore)
    assert third.__suppress_context__
    first = second.__context__
    assert isinstance(first, KeyError)
    assert second.__cause__ is None
    text = shown(third)
    assert text.index("the first") < text.index("the second") < text.index("the third")
    assert text.count(bad_jobs.__file__) >= 3
    assert "The above exception was the direct cause" in text
    assert "During handling of the above exception" in text


async def test_a_hidden_context_stays_hidden(context: WorkerContext) -> None:
    error = await raised_by(context, bad_jobs.raise_from_none)
    assert error.__cause__ is None
    assert error.__suppress_context__
    assert "KeyError" not in shown(error)


async def test_a_cause_that_cannot_travel_does_not_keep_the_exception(context: WorkerContext) -> None:
    error = await raised_by(context, bad_jobs.raise_with_unpicklable_cause)
    assert type(error) is bad_jobs.Boom
    assert "its cause stays behind" in str(error)


async def test_a_cycle_of_causes_does_no_harm(context: WorkerContext) -> None:
    error = await raised_by(context, bad_jobs.raise_cycle)
    assert str(error) == "first"
    assert str(error.__cause__) == "second"
    assert error.__cause__ is not None
    assert error.__cause__.__cause__ is error


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes came with Python 3.11")
async def test_notes_arrive_in_order(context: WorkerContext) -> None:
    error = await raised_by(context, bad_jobs.raise_with_notes)
    assert error.__notes__ == ["one", "two"]  # type: ignore[attr-defined,unused-ignore]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="groups came with Python 3.11")
async def test_groups_arrive_with_all_their_members(context: WorkerContext) -> None:
    error: Any = await raised_by(context, bad_jobs.raise_group)
    assert error.message == "outer"
    inner, interrupt = error.exceptions
    assert isinstance(interrupt, KeyboardInterrupt)
    frozen, plain = inner.exceptions
    assert isinstance(frozen, bad_jobs.Frozen)
    assert isinstance(frozen.__cause__, bad_jobs.NeedsMore)
    assert isinstance(plain, ValueError)
    assert bad_jobs.__file__ in shown(error)


async def test_an_exception_is_not_shared_between_two_calls(context: WorkerContext) -> None:
    first = await raised_by(context, bad_jobs.fail, "Exception")
    second = await raised_by(context, bad_jobs.fail, "Exception")
    assert first is not second
    assert len(traceback.extract_tb(first.__traceback__)) == len(traceback.extract_tb(second.__traceback__))


# --- functions that are sent by their name --------------------------------------------------------

CHANGES = {
    "replaced": ("jobs.echo = jobs.raise_it", "TypeError"),
    "computed": ("del jobs.echo; jobs.__getattr__ = lambda name: bool", True),
    "removed": ("del jobs.echo", "AttributeError"),
    "imported anew": ("del jobs.echo; del sys.modules['jobs']", 5),
    "another module": ("sys.modules['jobs'] = types.SimpleNamespace(echo=bool)", True),
    "no module": ("sys.modules['jobs'] = None", "ModuleNotFoundError"),
}


@pytest.mark.parametrize(("change", "outcome"), CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("calls", [0, 1, 3])
async def test_a_name_stands_for_what_the_module_has_by_it_now(
    context: WorkerContext, calls: int, change: str, outcome: Any
) -> None:
    """The worker's module, however often the name has come before: in a call, and in a chunk."""
    limiter = trio.CapacityLimiter(1)

    async def answers() -> list[Any]:
        try:
            found = [await context.run_sync(jobs.echo, 5, limiter=limiter)]
        except Exception as error:
            found = [type(error).__name__]
        async with context.map(jobs.echo, [5, 5, 5], chunk_size=3, limiter=limiter, return_outcomes=True) as results:
            async for result in results:
                found.append(type(result.error).__name__ if isinstance(result, outcomes.Error) else result.unwrap())
        return found

    for _ in range(calls):
        assert await answers() == [5] * 4
    await context.run_sync(exec, f"import jobs, sys, types; {change}", limiter=limiter)
    for _ in range(3):
        assert await answers() == [outcome] * 4


async def test_more_names_than_are_remembered(
    context: WorkerContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 600
    (tmp_path / "many.py").write_text("".join(f"def function{number}(): return {number}\n" for number in range(count)))
    monkeypatch.syspath_prepend(tmp_path)
    many = importlib.import_module("many")
    for number in [*range(count), *range(count)]:
        assert await context.run_sync(getattr(many, f"function{number}")) == number


# --- values --------------------------------------------------------------------------------------

SELF_REFERENCE: list[Any] = []
SELF_REFERENCE.append(SELF_REFERENCE)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(2**70),
        False,
        1,
        2**31 - 1,
        2**31,
        -(2**31),
        -(2**31) - 1,
        2**63 - 1,
        2**63,
        -(2**63),
        http.HTTPStatus.OK,
        1.5,
        -0.0,
        5e-324,
        float("inf"),
        numpy.float64(1.5),
        "",
        "text ä \ud800",
        b"",
        b"x",
        (),
        [],
        {},
        set(),
        {1: {2: [3]}},
        range(5),
        ...,
    ],
    ids=repr,
)
async def test_a_value_comes_back_as_it_was(context: WorkerContext, value: Any) -> None:
    back = await context.run_sync(jobs.echo, value)
    assert back == value
    assert repr(back) == repr(value)
    assert type(back) is type(value)


async def test_a_value_that_contains_itself(context: WorkerContext) -> None:
    back = await context.run_sync(jobs.echo, SELF_REFERENCE)
    assert back[0] is back


async def test_the_generator_of_a_job_has_a_hint(context: WorkerContext) -> None:
    with pytest.raises(TypeError, match="generator") as told:
        await context.run_sync(bad_jobs.generator_function)
    note = told.value.__dict__["__notes__"][0]
    assert note.endswith("trio_offload.stream iterates over the values of a generator function)")


async def test_what_cloudpickle_has_to_pickle(context: WorkerContext) -> None:
    pytest.importorskip("cloudpickle")
    offset = 3
    assert await context.run_sync(lambda value: value + offset, 4) == 7
    function = await context.run_sync(jobs.make_function, 5)
    assert function(6) == 11


@pytest.mark.parametrize("has_cloudpickle", [True, False])
async def test_the_error_names_what_was_pickled(monkeypatch: pytest.MonkeyPatch, has_cloudpickle: bool) -> None:
    if has_cloudpickle:
        pytest.importorskip("cloudpickle")
    else:
        monkeypatch.setitem(sys.modules, "cloudpickle", None)
    send, _ = trio_offload.open_channel[Any](1)
    lock = threading.Lock()
    for item, name in ((lock, "an object of the type _thread.lock"), ((1, lock), "an object of the type tuple")):
        with pytest.raises(TypeError, match="lock") as told:
            send.send_nowait(item)
        assert told.value.__dict__["__notes__"][-1].startswith(f"(while pickling {name}")
    with pytest.raises(TypeError, match="lock") as told:
        await trio_offload.run_sync(tuple, [lock])
    assert told.value.__dict__["__notes__"][-1].startswith("(while pickling a call of tuple")


async def test_without_cloudpickle_the_error_says_what_would_help(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(Exception, match="pickle") as told:
        await context.run_sync(lambda: None)
    assert any("cloudpickle" in note for note in told.value.__dict__["__notes__"])


@pytest.mark.parametrize(
    "base",
    [16 * 2**10, 32 * 2**10, 64 * 2**10, 128 * 2**10, 2**20, 4 * 2**20],
    ids=["16k", "32k", "64k", "128k", "1M", "4M"],
)
@pytest.mark.parametrize("kind", [bytes, bytearray, "array"], ids=["bytes", "bytearray", "array"])
async def test_sizes_around_each_boundary(context: WorkerContext, kind: Any, base: int) -> None:
    """A size is a boundary for the data, and for the data together with the headers and what the pickle adds."""
    pytest.importorskip("numpy")
    data = os.urandom(base + 4)
    dense = range(base - 130, base + 3) if base < 2**20 else (base - 1, base, base + 1)
    if kind == "array":
        import numpy

        for size in dense:
            array = numpy.frombuffer(data, "u1", size).copy()
            back = await context.run_sync(jobs.echo, array)
            assert back.tobytes() == array.tobytes()
            assert back.flags.writeable
        return
    for size in dense:
        value = kind(data[:size])
        back = await context.run_sync(jobs.echo, value)
        assert type(back) is kind
        assert back == value


async def test_a_result_is_not_changed_by_the_next_call(context: WorkerContext) -> None:
    values = [os.urandom(size) for size in (10, 1000, 20_000, 31_000, 40_000, 70_000)]
    backs = [await context.run_sync(jobs.echo, value) for value in values]
    assert backs == values


async def test_the_names_of_python_2_are_there_for_who_needs_them(context: WorkerContext) -> None:
    """The worker starts without the tables, whose import takes a while."""
    early, written, read, changed = await context.run_sync(jobs.names_of_python_2)
    assert not early
    assert b"__builtin__\nxrange" in written
    assert read == range(3)
    assert changed


async def test_an_exception_is_gone_as_soon_as_nobody_has_it(context: WorkerContext) -> None:
    """Its traceback has the frames through which it came, and they do not have it any more."""
    gc.disable()
    try:
        error: BaseException | None = await raised_by(context, int, "no number at all")
        text = str(error)
        error = None
        assert not [found for found in gc.get_objects() if type(found) is ValueError and str(found) == text]
    finally:
        gc.enable()
