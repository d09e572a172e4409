"""Contract: the parent's half of the state table in PROTOCOL.md, row by row, with a peer that says anything.

The peer is the test itself, at the other end of a real socket pair; beside it lives a process that does nothing but end
when it is told to.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import jobs
import pytest
import trio
from fakes import run_call
from lifeline import PATIENCE
from outcome import Error, Outcome, Value
from scripted_peer import Peer, frame, pickled, scripted_peer, welcome
from trio.testing import wait_all_tasks_blocked
from workers import begin_worker, make_launcher

from trio_offload import BrokenWorkerError, RemoteError, WorkerStartError
from trio_offload._interpreter import settings as _settings
from trio_offload._pickling.calls import dump_call
from trio_offload._statistics import Figures
from trio_offload._transport.channel import Channel, EndOfStream
from trio_offload._worker import peer as peer_module
from trio_offload._worker.states import CallNotRun, State
from trio_offload._worker.worker import Worker
from trio_offload_worker._protocol.frames import MAGIC, Kind


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    with scripted_peer(tmp_path, monkeypatch) as peer:
        yield peer


CALL: Final = dump_call(int, ("5",))
THIS_CALL: Final = 1


EXPLANATION: Final = {"code": "why", "message": "the peer gave up"}
FAILURE: Final = {"stage": "setup", "type": "ValueError", "message": "no", "traceback": "Traceback …\nValueError: no\n"}

# What the peer may say, or do. `end` closes the socket and ends the process.
EVENTS: Final[dict[str, bytes]] = {
    "WELCOME": welcome(),
    "REFUSED": frame(Kind.REFUSED, body=EXPLANATION),
    "ABORTED": frame(Kind.ABORTED, body=EXPLANATION),
    "READY": frame(Kind.READY),
    "SETUP_FAILED": frame(Kind.SETUP_FAILED, 0, (pickled(ValueError("no")),), FAILURE),
    "RESULT": frame(Kind.RESULT, THIS_CALL, (pickled(5),)),
    "RESULT of another call": frame(Kind.RESULT, THIS_CALL + 1, (pickled(5),)),
    "RAISED": frame(Kind.RAISED, THIS_CALL, (pickled(ValueError("no")),), FAILURE | {"stage": "call"}),
    "RAISED of another call": frame(Kind.RAISED, 0, (), FAILURE | {"stage": "call"}),
    "RETIRED": frame(Kind.RETIRED, body={"reason": "idle"}),
    "CALL": frame(Kind.CALL, THIS_CALL, (pickled(5),)),
    "REQUEST": frame(Kind.REQUEST, THIS_CALL, (), {"request": 1, "op": "sleep", "thread": 1}),
    "POST": frame(Kind.POST, THIS_CALL, (), {"op": "set", "thread": 1}),
    "WITHDRAW": frame(Kind.WITHDRAW, THIS_CALL, (), {"request": 1}),
    "an unknown kind": b"tro\x01" + bytes.fromhex("00000004 0000000000000000 83 181c 00 80".replace(" ", "")),
    "garbage": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a length beyond all bounds": MAGIC + b"\xff" * 12,
    "end": b"",
    "an end inside a frame": frame(Kind.RESULT, THIS_CALL, (pickled(5),))[:-1],
}
ENDS: Final = ("end", "an end inside a frame")

# What comes of each event in each state. Any other is an error of the peer's: it is killed, and the message names it.
TABLE: Final[dict[State, dict[str, str]]] = {
    State.STARTING: {"WELCOME": "on", "REFUSED": "start error", "ABORTED": "start error", "end": "start error"},
    State.SETTING_UP: {
        "READY": "on",
        "REFUSED": "start error",
        "ABORTED": "start error",
        "SETUP_FAILED": "start error",
        "end": "start error",
    },
    State.IDLE: {"REFUSED": "ended", "ABORTED": "ended", "RETIRED": "ended", "end": "ended"},
    State.RUNNING: {
        "RESULT": "value",
        "RAISED": "error",
        "RETIRED": "not run",
        "REFUSED": "broken",
        "ABORTED": "broken",
        "end": "broken",
        "an end inside a frame": "broken",
        "REQUEST": "goes on",
        "POST": "goes on",
        "WITHDRAW": "goes on",
    },
}
CELLS: Final = [
    pytest.param(state, event, cells.get(event, "killed"), id=f"{state.name}, {event}: {cells.get(event, 'killed')}")
    for state, cells in TABLE.items()
    for event in EVENTS
]


async def bring_to(state: State, peer: Peer) -> Worker:
    """A worker that is idle at least."""
    worker = begin_worker()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: worker.finish(cancellable=True))
        await peer.hear(Kind.HELLO)
        await peer.hear(Kind.SETUP)
        peer.say(EVENTS["WELCOME"] + EVENTS["READY"])
    assert worker.state is state is State.IDLE
    return worker


async def capture(operation: Callable[[], Any]) -> Any:
    """What an operation returns or raises."""
    try:
        with trio.fail_after(PATIENCE):
            return await operation()
    except Exception as error:
        return error


def ends_with(event: str, expected: str) -> bool:
    """Whether the peer ends after it; one that is to be killed waits for that."""
    return event in ENDS or (event in ("REFUSED", "ABORTED", "SETUP_FAILED") and expected != "killed")


async def outcome_of(
    operation: Callable[[], Any],
    peer: Peer,
    event: str,
    expected: str,
    *heard: Kind,
    answer: bytes = EVENTS["RESULT"],
) -> Any:
    """What comes of an operation if the peer answers with this event, behind which comes an answer if it goes on."""
    outcomes: list[Any] = []

    async def operate() -> None:
        outcomes.append(await capture(operation))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(operate)
        for kind in heard:
            await peer.hear(kind)
        peer.say(EVENTS[event])
        if ends_with(event, expected):
            peer.end()
        await wait_all_tasks_blocked()
        if expected == "goes on":
            assert not outcomes
            peer.say(answer)
        if not outcomes and event in ("WELCOME", "READY"):
            nursery.cancel_scope.cancel()
    return outcomes[0] if outcomes else None


async def told(answer: Awaitable[tuple[Any, BaseException | None]]) -> Outcome[Any]:
    """What came of a call."""
    value, error = await answer
    if error is None:
        return Value(value)
    assert value is None
    return Error(error)


@pytest.mark.parametrize(("state", "event", "expected"), CELLS)
async def test_every_event_in_every_state(peer: Peer, state: State, event: str, expected: str) -> None:
    if state is State.STARTING:
        worker, outcome = await _starting(peer, event, expected)
    elif state is State.SETTING_UP:
        worker, outcome = await _setting_up(peer, event, expected)
    elif state is State.IDLE:
        worker, outcome = await _idle(peer, event, expected)
    else:
        worker = await bring_to(State.IDLE, peer)
        outcome = await outcome_of(lambda: told(run_call(worker, CALL, cancellable=True)), peer, event, expected, Kind.CALL)
    await _check(peer, worker, state, event, expected, outcome)


# With a second call in flight: what comes of the first, and of the second when it is then waited for. What ends the worker
# before the first is answered ends the second with it.
IN_FLIGHT: Final[dict[str, str]] = {event: TABLE[State.RUNNING].get(event, "killed") for event in EVENTS}


@pytest.mark.parametrize(("event", "expected"), IN_FLIGHT.items())
@pytest.mark.parametrize("which", ["the first", "the second"])
async def test_every_event_with_two_calls_in_flight(peer: Peer, which: str, event: str, expected: str) -> None:
    worker = await bring_to(State.IDLE, peer)
    worker.submit(CALL)
    worker.submit(CALL)
    worker.flush()
    assert (await peer.hear(Kind.CALL)).id == THIS_CALL
    assert (await peer.hear(Kind.CALL)).id == THIS_CALL + 1
    if which == "the second":
        peer.say(frame(Kind.RESULT, THIS_CALL, (pickled(4),)))
        assert await worker.answer() == (4, None)
        assert worker.state is State.RUNNING
        # What answers the second call is what answered another one before.
        expected = {"RESULT": "killed", "RAISED": "killed", "RESULT of another call": "value"}.get(event, expected)
    right = EVENTS["RESULT of another call" if which == "the second" else "RESULT"]
    outcome = await outcome_of(lambda: told(worker.answer()), peer, event, expected, answer=right)
    if which == "the first" and expected in ("value", "error", "goes on"):
        assert worker.state is State.RUNNING
        peer.say(frame(Kind.RESULT, THIS_CALL + 1, (pickled(6),)))
        assert await worker.answer() == (6, None)
    await _check(peer, worker, State.RUNNING, event, expected, outcome)


REPORT: Final = frame(Kind.REPORT, body={"figures": [11, 12, 13, 14_000_000]})


async def test_a_report_changes_no_state(peer: Peer) -> None:
    worker = begin_worker()
    assert worker.figures == Figures()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: worker.finish(cancellable=True))
        await peer.hear(Kind.HELLO)
        await peer.hear(Kind.SETUP)
        peer.say(EVENTS["WELCOME"] + REPORT)
        await wait_all_tasks_blocked()
        assert worker.state is State.SETTING_UP
        assert worker.figures == Figures(11, 12, 13, 14.0)
        peer.say(frame(Kind.READY, body={"figures": [1, 2, 3, 0]}))
    assert worker.figures == Figures(1, 2, 3, 0.0)
    assert worker.baseline == 1
    peer.say(REPORT)
    assert worker.hear()
    assert worker.figures.rss == 11
    outcomes = []
    async with trio.open_nursery() as nursery:

        async def call() -> None:
            outcomes.append(await run_call(worker, CALL, cancellable=True))

        nursery.start_soon(call)
        await peer.hear(Kind.CALL)
        assert worker.statistics().function == "int"
        peer.say(frame(Kind.REPORT, body={"figures": [21, 22, 23, 24]}))
        await wait_all_tasks_blocked()
        assert (worker.state, worker.statistics().state, worker.statistics().rss) == (State.RUNNING, "running", 21)
        peer.say(frame(Kind.REPORT, body={"figures": [31, 32, 33, 34]}) + EVENTS["RESULT"])
    assert outcomes == [(5, None)]
    told = worker.statistics()
    assert (told.state, told.rss, told.peak_rss, told.vms, told.cpu_time) == ("idle", 31, 32, 33, 34e-6)
    assert (told.jobs, told.function) == (1, None)
    peer.end()
    await worker.wait()


async def test_a_report_before_the_welcome_is_a_fault(peer: Peer) -> None:
    worker = begin_worker()
    async with trio.open_nursery() as nursery:

        async def start() -> None:
            with pytest.raises(WorkerStartError, match="it sent REPORT, and WELCOME was expected"):
                await worker.finish(cancellable=True)

        nursery.start_soon(start)
        await peer.hear(Kind.HELLO)
        peer.say(REPORT)
    assert worker.state is State.ENDED


async def _starting(peer: Peer, event: str, expected: str) -> tuple[Worker, Any]:
    worker = begin_worker()

    async def start() -> None:
        await worker.finish(cancellable=True)

    outcome = await outcome_of(start, peer, event, expected, Kind.HELLO, Kind.SETUP)
    return worker, outcome


async def _setting_up(peer: Peer, event: str, expected: str) -> tuple[Worker, Any]:
    worker = begin_worker()

    async def start() -> None:
        await worker.finish(cancellable=True)

    outcomes: list[Any] = []
    async with trio.open_nursery() as nursery:

        async def operate() -> None:
            outcomes.append(await capture(start))

        nursery.start_soon(operate)
        await peer.hear(Kind.HELLO)
        await peer.hear(Kind.SETUP)
        peer.say(EVENTS["WELCOME"])
        await wait_all_tasks_blocked()
        assert worker.state is State.SETTING_UP
        peer.say(EVENTS[event])
        if ends_with(event, expected):
            peer.end()
    return worker, outcomes[0]


async def _idle(peer: Peer, event: str, expected: str) -> tuple[Worker, Any]:
    worker = await bring_to(State.IDLE, peer)
    peer.say(EVENTS[event])
    if event in ENDS:
        peer.end()
    assert not worker.hear()
    if expected == "ended":
        assert worker.state is State.RETIRING
        peer.end()
    with trio.fail_after(PATIENCE):
        await worker.wait()
    return worker, None


async def _check(peer: Peer, worker: Worker, state: State, event: str, expected: str, outcome: Any) -> None:
    process = worker.process
    if expected == "on":
        assert outcome is None
        assert worker.state in (State.IDLE, State.ENDED), "idle, or cancelled by the test while it waited for more"
    elif expected in ("value", "goes on"):
        assert outcome == Value(5)
    elif expected == "error":
        assert isinstance(outcome.error, ValueError)
    elif expected == "not run":
        assert isinstance(outcome, CallNotRun)
        assert worker.state is State.RETIRING
        peer.end()
    elif expected in ("start error", "broken"):
        kind = WorkerStartError if expected == "start error" else BrokenWorkerError
        assert type(outcome) is kind
        assert outcome.process is process
        assert process.exitcode == 0
        if event in ("REFUSED", "ABORTED"):
            assert "the peer gave up" in str(outcome)
        if event == "SETUP_FAILED":
            assert isinstance(outcome.__cause__, ValueError)
        if event in ENDS:
            assert "exited with status 0" in str(outcome)
    elif expected == "killed" and worker.state is not State.ENDED:
        raise AssertionError("a peer that breaks the rules was left alive")
    elif expected == "killed" and outcome is not None:
        assert type(outcome) is (BrokenWorkerError if state is State.RUNNING else WorkerStartError)
        assert event.split()[0] in str(outcome) or "the protocol" in str(outcome)
    if expected == "killed" and event not in ENDS:
        assert process.exitcode == -signal.SIGKILL
    if worker.state is State.IDLE:
        worker.ask_to_retire()
        await peer.hear(Kind.RETIRE)
        peer.end()
    if worker.state is not State.ENDED:
        with trio.fail_after(PATIENCE):
            await worker.wait()
    assert worker.state is State.ENDED
    assert process.ended


@pytest.mark.parametrize("event", EVENTS)
async def test_a_worker_that_was_asked_to_leave_is_not_listened_to(peer: Peer, event: str) -> None:
    """Its exit status tells whether it left well."""
    worker = await bring_to(State.IDLE, peer)
    worker.ask_to_retire()
    await peer.hear(Kind.RETIRE)
    peer.say(EVENTS[event])
    assert not worker.hear()
    assert worker.state is State.RETIRING
    peer.end()
    with trio.fail_after(PATIENCE):
        await worker.wait()
    assert worker.state is State.ENDED
    assert worker.process.exitcode == 0


async def test_an_answer_may_come_in_pieces(peer: Peer) -> None:
    worker = await bring_to(State.IDLE, peer)
    outcomes: list[Any] = []

    async def run() -> None:
        outcomes.append(await run_call(worker, CALL, cancellable=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await peer.hear(Kind.CALL)
        for byte in EVENTS["RESULT"]:
            assert not outcomes
            peer.say(bytes((byte,)))
            await wait_all_tasks_blocked()
    assert outcomes == [(5, None)]
    worker.ask_to_retire()
    peer.end()
    await worker.wait()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prefix": b"/another"}, "sys.prefix is /another"),
        ({"exec_prefix": b"/another"}, "sys.exec_prefix is /another"),
        ({"free_threaded": True}, "one free-threaded and one with a GIL"),
    ],
    ids=["prefix", "exec_prefix", "free_threaded"],
)
async def test_a_worker_that_is_another_python_is_refused(peer: Peer, changes: dict[str, Any], words: str) -> None:
    worker = begin_worker()
    outcomes: list[Any] = []

    async def start() -> None:
        outcomes.append(await capture(lambda: worker.finish(cancellable=True)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        await peer.hear(Kind.HELLO)
        peer.say(welcome(**changes))
    assert type(outcomes[0]) is WorkerStartError
    assert words in str(outcomes[0])
    assert worker.process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("event", ["REFUSED", "SETUP_FAILED", "end"])
async def test_worker_that_stays_after_last_frame_is_ended(peer: Peer, monkeypatch: pytest.MonkeyPatch, event: str) -> None:
    monkeypatch.setattr(peer_module, "_EXIT_TIMEOUT", 0.01)
    worker = begin_worker()
    outcomes: list[Any] = []

    async def start() -> None:
        outcomes.append(await capture(lambda: worker.finish(cancellable=True)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        await peer.hear(Kind.HELLO)
        if event == "SETUP_FAILED":
            peer.say(EVENTS["WELCOME"])
        peer.say(EVENTS[event])
        if event == "end":
            peer.close_only()
    assert type(outcomes[0]) is WorkerStartError
    assert worker.process.exitcode == -signal.SIGKILL


# --- the first call, which need not wait for READY ------------------------------------------------


def begin_with_call() -> Worker:
    return make_launcher().begin(CALL)


async def finish_and_answer(worker: Worker, outcomes: list[Any]) -> None:
    outcomes.append(await capture(lambda: worker.finish(cancellable=True)))
    if outcomes == [None]:
        outcomes.append(await capture(lambda: run_call(worker, CALL, cancellable=True)))


async def test_first_call_follows_checked_welcome(peer: Peer) -> None:
    worker = begin_with_call()
    outcomes: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(finish_and_answer, worker, outcomes)
        await peer.hear(Kind.HELLO)
        await peer.hear(Kind.SETUP)
        peer.say(EVENTS["WELCOME"])
        call = await peer.hear(Kind.CALL)
        assert worker.state is State.SETTING_UP
        peer.say(EVENTS["READY"] + frame(Kind.RESULT, call.id, (pickled(5),)))
    assert outcomes == [None, (5, None)]
    # It was said once.
    worker.ask_to_retire()
    await peer.hear(Kind.RETIRE)
    peer.end()
    await worker.wait()


@pytest.mark.parametrize("event", ["SETUP_FAILED", "REFUSED", "end"])
async def test_a_start_that_fails_after_the_first_call_was_said(peer: Peer, event: str) -> None:
    outcomes: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(finish_and_answer, begin_with_call(), outcomes)
        await peer.hear(Kind.HELLO)
        await peer.hear(Kind.SETUP)
        peer.say(EVENTS["WELCOME"])
        await peer.hear(Kind.CALL)
        if event != "end":
            peer.say(EVENTS[event])
        peer.end()
    assert [type(outcome) for outcome in outcomes] == [WorkerStartError]


async def test_another_python_than_the_parents_gets_no_call(peer: Peer) -> None:
    outcomes: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(finish_and_answer, begin_with_call(), outcomes)
        await peer.hear(Kind.HELLO)
        await peer.hear(Kind.SETUP)
        peer.say(welcome(prefix=b"/elsewhere"))
        with pytest.raises(EndOfStream):
            await peer.hear(Kind.CALL)
    assert [type(outcome) for outcome in outcomes] == [WorkerStartError]


async def test_settings_changed_since_greeting_precede_first_call(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = begin_with_call()
    outcomes: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(finish_and_answer, worker, outcomes)
        await peer.hear(Kind.HELLO)
        await peer.hear(Kind.SETUP)
        *first, path = _settings.current_snapshot()
        changed = (*first, path)
        monkeypatch.setattr(_settings, "current_snapshot", lambda: changed)
        peer.say(EVENTS["WELCOME"])
        await wait_all_tasks_blocked()
        peer.say(EVENTS["READY"])
        await peer.hear(Kind.SETTINGS)
        call = await peer.hear(Kind.CALL)
        peer.say(frame(Kind.RESULT, call.id, (pickled(5),)))
    assert outcomes == [None, (5, None)]
    peer.end()
    await worker.end()


async def test_end_of_worker_during_large_write_is_reported(peer: Peer) -> None:
    worker = await bring_to(State.IDLE, peer)
    outcomes: list[Any] = []

    async def run() -> None:
        call = dump_call(jobs.echo, (bytes(50_000_000),))
        outcomes.append(await capture(lambda: run_call(worker, call, cancellable=True)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await wait_all_tasks_blocked()
        assert not outcomes, "it waits for room in the socket"
        peer.end()
    assert type(outcomes[0]) is BrokenWorkerError
    assert "exited with status 0 while it ran jobs.echo" in str(outcomes[0])


async def test_retirement_during_large_write_sends_call_elsewhere(peer: Peer) -> None:
    worker = await bring_to(State.IDLE, peer)
    outcomes: list[Any] = []

    async def run() -> None:
        call = dump_call(jobs.echo, (bytes(50_000_000),))
        outcomes.append(await capture(lambda: run_call(worker, call, cancellable=True)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await wait_all_tasks_blocked()
        peer.say(EVENTS["RETIRED"])
        peer.end()
    assert isinstance(outcomes[0], CallNotRun)
    await worker.wait()
    assert worker.process.exitcode == 0


@pytest.mark.parametrize(
    ("segments", "cause"),
    [((), type(None)), ((b"not a pickle",), Exception), ((pickled("not an exception"),), type(None))],
    ids=["could not be pickled", "cannot be unpickled", "is no exception"],
)
async def test_unpicklable_exception_becomes_remote_error(peer: Peer, segments: tuple[bytes, ...], cause: type) -> None:
    worker = await bring_to(State.IDLE, peer)
    outcomes: list[Any] = []

    async def run() -> None:
        outcomes.append(await run_call(worker, CALL, cancellable=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await peer.hear(Kind.CALL)
        peer.say(frame(Kind.RAISED, THIS_CALL, segments, FAILURE | {"stage": "call"}))
    value, error = outcomes[0]
    assert value is None
    assert type(error) is RemoteError
    assert (error.type_name, error.message) == ("ValueError", "no")
    assert FAILURE["traceback"] in str(error)
    assert isinstance(error.__cause__, cause)
    assert worker.state is State.IDLE
    worker.ask_to_retire()
    peer.end()
    await worker.wait()


@pytest.mark.parametrize("taken", [0, 9])
async def test_a_small_call_that_the_socket_does_not_take_at_once(
    peer: Peer, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await bring_to(State.IDLE, peer)
    send_small = Channel.send_small

    def send_some(channel: Channel, data: bytes) -> bytes:
        return send_small(channel, data[:taken]) + data[taken:] if taken else data

    monkeypatch.setattr(Channel, "send_small", send_some)
    outcomes: list[Any] = []

    async def run() -> None:
        outcomes.append(await run_call(worker, CALL, cancellable=True))

    assert CALL.small
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        heard = await peer.hear(Kind.CALL)
        assert (heard.id, bytes(heard.segments[0])) == (THIS_CALL, CALL.parts[0])
        peer.say(EVENTS["RESULT"])
    assert outcomes == [(5, None)]
    worker.ask_to_retire()
    peer.end()
    await worker.wait()


@pytest.mark.parametrize("taken", [0, 9])
async def test_the_end_of_a_worker_while_a_small_call_waits_for_room(
    peer: Peer, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent of the call decides whether it may be run by another worker."""
    worker = await bring_to(State.IDLE, peer)

    def send_some(channel: Channel, data: bytes) -> bytes:
        peer.end()
        return data[taken:]

    monkeypatch.setattr(Channel, "send_small", send_some)
    result = await capture(lambda: run_call(worker, CALL, cancellable=True))
    assert type(result) is (BrokenWorkerError if taken else CallNotRun)
    assert worker.process.exitcode == 0


async def test_a_small_call_is_sent_by_submit_if_it_is_alone(peer: Peer) -> None:
    worker = await bring_to(State.IDLE, peer)
    worker.submit(CALL)
    heard = await peer.hear(Kind.CALL)
    assert (heard.id, bytes(heard.segments[0])) == (THIS_CALL, CALL.parts[0])
    worker.submit(CALL)
    assert b"".join(worker.take_unsent()).endswith(CALL.parts[0])
    await worker.end()


async def test_an_error_of_the_socket_is_raised_by_answer(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by `submit`, because the worker must be ended for it."""
    worker = await bring_to(State.IDLE, peer)

    def refuse(channel: Channel, data: bytes) -> bytes:
        raise OSError(errno.ENOBUFS, "no")

    monkeypatch.setattr(Channel, "send_small", refuse)
    worker.submit(CALL)
    assert worker.state is State.RUNNING
    with pytest.raises(OSError, match="no"):
        await worker.answer()
    assert worker.state is State.ENDED
