"""Replies as values and exceptions; which picklers take a handle; callbacks."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import cloudpickle
import pytest
import trio
from fake_line import FakeLine, in_job

from trio_offload_worker import from_worker
from trio_offload_worker._jobs import chunks
from trio_offload_worker._jobs import pickling as job_pickling
from trio_offload_worker._jobs.guards import describe
from trio_offload_worker._requests import errors, handles
from trio_offload_worker._requests.callbacks import Callback
from trio_offload_worker._requests.handles import JobHandle, attach, is_exporting
from trio_offload_worker._requests.pickles import dumps, loads, result
from trio_offload_worker._requests.requests import Reply


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLine]:
    with in_job(monkeypatch, FakeLine()) as line:
        yield line


def reply(status: str, segments: Any = (), **body: str) -> Reply:
    return Reply({"request": 1, "status": status, **body}, list(segments))


def raised(error: BaseException) -> Reply:
    """As the parent describes an exception."""
    segments, type_name, message, traceback = describe(error, "call")
    return reply("raised", segments, type=type_name, message=message, traceback=traceback)


VALUES = {"None": None, "5": 5, "bytes": b"x" * 300_000, "bytearray": [bytearray(b"y" * 400_000), "z"]}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_value_and_back(value: Any) -> None:
    segments = dumps(value)
    data = b"".join(segments.parts)
    at, received = 0, []
    for length in segments.lengths:
        received.append(data[at : at + length])
        at += length
    for index, kind in enumerate(segments.types):
        if kind == 2:
            received[index] = bytearray(received[index])  # type: ignore[call-overload]
    assert at == len(data)
    assert loads(received) == value


def test_lambda_is_sent_by_value() -> None:
    assert cloudpickle.loads(b"".join(dumps(lambda: 5).parts))() == 5


def test_unpicklable_value_is_named() -> None:
    with pytest.raises(TypeError) as info:
        dumps(threading.Lock())
    assert any("message to the parent cannot be pickled" in note for note in info.value.__notes__)


def test_exception_of_a_signal_handler_is_not_lost() -> None:
    class Alarm(Exception):
        pass

    class Slow:
        calls = 0

        def __reduce__(self) -> Any:
            Slow.calls += 1
            if Slow.calls == 1:
                raise Alarm
            return str, ()

    with pytest.raises(Alarm):
        dumps(Slow())


def test_exception_of_the_parent_has_its_traceback_as_a_note() -> None:
    def callback() -> None:
        raise KeyError("no such key") from ValueError("cause")

    with pytest.raises(KeyError, match="no such key") as outer:
        callback()
    with pytest.raises(KeyError, match="no such key") as info:
        result(raised(outer.value))
    (note,) = info.value.__notes__
    assert note.startswith("The traceback in the parent program:\n")
    assert "in callback" in note
    assert isinstance(info.value.__cause__, ValueError)
    # The job's own frames are the traceback.
    assert "callback" not in {entry.name for entry in info.traceback}


def test_exception_that_cannot_be_pickled() -> None:
    with pytest.raises(errors.RemoteError, match=r"spam\.Eggs: broken") as info:
        result(reply("raised", type="spam.Eggs", message="broken", traceback="Traceback: …"))
    assert "Traceback: …" in info.value.__notes__[0]
    with pytest.raises(errors.RemoteError, match="unpickling it failed: UnpicklingError"):
        result(reply("raised", [b"nonsense"], type="spam.Eggs", message="broken"))
    with pytest.raises(errors.RemoteError, match="it is a int"):
        result(reply("raised", [pickle.dumps(5)], type="spam.Eggs", message="broken"))


STATUSES = {
    "would_block": errors.WouldBlock,
    "end_of_channel": errors.EndOfChannel,
    "broken": errors.BrokenResourceError,
    "closed": errors.ClosedResourceError,
    "abandoned": errors.AbandonedLockError,
    "deadlock": errors.DeadlockError,
    "broken_barrier": errors.BrokenBarrierError,
    "unknown_handle": RuntimeError,
    "spam": RuntimeError,
}


@pytest.mark.parametrize("status", STATUSES)
def test_status_becomes_its_twin(status: str) -> None:
    with pytest.raises(STATUSES[status], match="the reason") as info:
        result(reply(status, message="the reason"))
    assert type(info.value) is STATUSES[status]
    with pytest.raises(STATUSES[status]):
        result(reply(status))


@pytest.mark.parametrize("kind", [TypeError, ValueError, RuntimeError])
def test_refusal_names_its_class(kind: type[Exception]) -> None:
    with pytest.raises(kind, match="not like this"):
        result(reply("refused", type=kind.__name__, message="not like this"))


def test_cancelled_is_made_by_us_only() -> None:
    with pytest.raises(TypeError, match="only trio-offload"):
        errors.Cancelled()
    with pytest.raises(TypeError, match="final"):
        type("Mine", (errors.Cancelled,), {})
    made = errors.make_cancelled()
    assert not isinstance(made, Exception)
    (pickled,), name, _, _ = describe(made, "call")
    assert type(pickle.loads(pickled)) is errors.Cancelled
    assert name == "trio_offload_worker.from_worker.Cancelled"


class Holder:
    """Its pickle has its handle."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle


HANDLE = Callback("callback", 2**63 + 5, True, "f", False)
OURS = {
    "a message": lambda value: b"".join(dumps(value).parts),
    "an item of a chunk": lambda value: chunks._dump(value)[0],
    "a result by value": lambda value: b"".join(job_pickling.dumps([value, lambda: 5], ValueError())),
    "an exception": lambda value: describe(ValueError(value), "call")[0][0],
}
THEIRS = {
    "pickle": pickle.dumps,
    "pickle in Python": pickle._dumps,  # type: ignore[attr-defined]
    "cloudpickle": cloudpickle.dumps,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("holds", [False, True])
@pytest.mark.parametrize("pickler", OURS)
def test_handle_is_exported_by_us(pickler: str, holds: bool) -> None:
    loaded = cloudpickle.loads(OURS[pickler](Holder(HANDLE) if holds else HANDLE))
    while not isinstance(loaded, JobHandle):
        loaded = (
            loaded.handle if isinstance(loaded, Holder) else (loaded.args if isinstance(loaded, ValueError) else loaded)[0]
        )
    assert loaded == HANDLE
    assert type(loaded) is Callback


@pytest.mark.parametrize("pickler", THEIRS)
def test_handle_is_refused_to_others(pickler: str) -> None:
    with pytest.raises(TypeError, match="can be pickled only by trio-offload"):
        THEIRS[pickler]([HANDLE] if pickler == "deepcopy" else HANDLE)


def test_pickler_without_a_frame_is_the_executable() -> None:
    assert is_exporting(None)


def test_handle_that_belongs_to_this_process_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = object()
    monkeypatch.setattr(handles, "resolvers", [lambda id: None, lambda id: mine if id == 5 else None])
    assert attach("callback", 5, "f") is mine
    assert attach("callback", 6, "f") == Callback("callback", 6, "f")


def test_callback_is_called_like_a_function(line: FakeLine) -> None:
    line.script = lambda frame: line.reply(frame, value=sum(pickle.loads(frame.segments[0])[0]))
    callback = Callback("callback", 5, True, "add", True)
    assert callback(1, 2, key="word") == 3
    assert pickle.loads(line.frames[0].segments[0]) == ((1, 2), {"key": "word"})
    assert line.frames[0].body["op"] == "call"
    assert line.frames[0].body["handle"] == 5
    assert "shield" not in line.frames[0].body
    assert repr(callback) == "<callback add of the parent>"


def test_callback_in_a_cancelled_job(line: FakeLine) -> None:
    line.script = lambda frame: line.reply(frame, value="done")
    line.cancel(7)
    assert Callback("callback", 5, True, "synchronous", False)() == "done"
    with pytest.raises(errors.Cancelled):
        Callback("callback", 5, True, "asynchronous", True)()


def test_callback_without_an_answer_is_posted(line: FakeLine) -> None:
    assert Callback("callback", 5, False, "tell", False)("x") is None
    assert line.kinds() == ["POST"]
    assert line.reads == 0


def test_callback_may_be_an_argument_of_another(line: FakeLine) -> None:
    line.script = lambda frame: line.reply(frame, segments=frame.segments)
    (first, second), keywords = Callback("callback", 5, True, "f", True)(HANDLE, partial(print, HANDLE))
    assert first == second.args[0] == HANDLE
    assert keywords == {}


def test_exceptions_of_trio_are_not_ours() -> None:
    """A worker must not need Trio for them."""
    assert not issubclass(from_worker.WouldBlock, trio.WouldBlock)
