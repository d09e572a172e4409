"""Contract: the parts of ``trio-offload map`` one by one, without a process: items, the window, the ordered output."""

from __future__ import annotations

import collections
import contextlib
import functools
import io
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from trio_offload import WorkerContextStatistics
from trio_offload._cli.ending import Balance, interruption_lines
from trio_offload._cli.exit_status import CommandError
from trio_offload._cli.output import Output, Window
from trio_offload._cli.resume import Scan, digest_of, digest_of_line
from trio_offload._cli.sources import ArgumentSource, Item, LineSource, Source
from trio_offload._cli.summary import Summary
from trio_offload._exceptions import is_interrupt
from trio_offload_worker._jobs.cli_arity import unfit_parameters
from trio_offload_worker._jobs.cli_lines import Figures, encode_item, success_line
from trio_offload_worker._system import figures
from trio_offload_worker._system.figures import PeakMeter

if TYPE_CHECKING:
    from trio_offload_worker._jobs.cli_lines import ItemKind

TEXT = b"one\n\r\n\ntwo\r\n{}\nl\xc3\xa9st"


def item(index: int, content: str = "x") -> Item:
    return Item(index, index + 1, "text", content)


async def all_of(source: Source) -> list[Item]:
    items = []
    while batch := await source.read():
        items += batch
    return items


# --- sources -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(1, len(TEXT) + 1))
async def test_lines_are_the_same_however_they_arrive(size: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "items").write_bytes(TEXT)
    monkeypatch.setattr("trio_offload._cli.sources._CHUNK", size)
    with contextlib.closing(LineSource(str(tmp_path / "items"), "text")) as source:
        items = await all_of(source)
    assert [one.content for one in items] == ["one", "", "", "two", "{}", "lést"]
    assert [one.number for one in items] == [1, 2, 3, 4, 5, 6]
    assert [one.index for one in items] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("size", range(1, len(TEXT) + 1))
async def test_blank_lines_of_json_are_counted_and_skipped(
    size: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "items").write_bytes(TEXT)
    monkeypatch.setattr("trio_offload._cli.sources._CHUNK", size)
    with contextlib.closing(LineSource(str(tmp_path / "items"), "json")) as source:
        items = await all_of(source)
    assert [(one.index, one.number, one.content) for one in items] == [
        (0, 1, b"one"),
        (1, 4, b"two"),
        (2, 5, b"{}"),
        (3, 6, b"l\xc3\xa9st"),
    ]


async def test_the_number_of_items(tmp_path: Path) -> None:
    (tmp_path / "items").write_bytes(TEXT)
    os.mkfifo(tmp_path / "fifo")
    assert await ArgumentSource(["a", "b"]).count() == 2
    with contextlib.closing(LineSource(str(tmp_path / "items"), "text")) as source:
        assert await source.count() == 6
        await source.read()
        assert await source.count() == 6
    with contextlib.closing(LineSource(str(tmp_path / "items"), "json")) as source:
        assert await source.count() == 4
    threading.Thread(target=(tmp_path / "fifo").write_bytes, args=[b"a\n"]).start()
    with contextlib.closing(LineSource(str(tmp_path / "fifo"), "text")) as source:
        assert await source.count() is None
        assert [one.content for one in await all_of(source)] == ["a"]


async def test_a_file_that_fails_while_it_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "items").write_bytes(TEXT)

    def fail(descriptor: int, size: int) -> bytes:
        raise OSError(5, "Input/output error")

    with contextlib.closing(LineSource(str(tmp_path / "items"), "text")) as source:
        monkeypatch.setattr(os, "read", fail)
        with pytest.raises(CommandError, match=r"cannot read .*items: Input/output error"):
            await source.read()


async def test_a_descriptor_that_somebody_made_non_blocking(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    source = LineSource("-", "text")
    monkeypatch.setattr(source, "_descriptor", reading)
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            assert [one.content for one in await source.read()] == ["a"]

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        os.write(writing, b"a\n")
    os.close(writing)
    os.close(reading)


@pytest.mark.parametrize(
    ("kind", "content", "label"),
    [
        ("text", "a b", "'a b'"),
        ("text", "caf\udce9\n", "'caf\\udce9\\n'"),
        ("text", "x" * 100, f"'{'x' * 80}'…"),
        ("json", b'{"a": "\xc3\xa9"}', '{"a": "é"}'),
        ("json", b"\t1\xff", "'\\t1\\ufffd'"),
    ],
)
def test_an_item_as_people_see_it(kind: ItemKind, content: str | bytes, label: str) -> None:
    assert Item(0, 1, kind, content).label == label


# --- the summary ---------------------------------------------------------------------------------------


def test_a_summary_does_not_grow() -> None:
    """Neither with the number of workers nor with what users call their exceptions."""
    summary = Summary(wanted=True)
    summary.watch(lambda: WorkerContextStatistics(0, 0))
    for number in range(5000):
        summary.note_worker(number)
        summary.note_worker(number)
        summary.count(f"Error{number}")
    summary.count(None)
    jobs, workers, _ = summary.lines()
    assert jobs.startswith("5001 jobs, 5000 failed: 4950 of other kinds, 1 Error")
    assert workers.startswith("5000 workers")
    assert len(summary._known) <= 1000


def test_nothing_done_is_no_summary() -> None:
    assert Summary(wanted=True).lines() == []


# --- the window --------------------------------------------------------------------------------------


async def test_a_window_full_of_items() -> None:
    window = Window(max_items=2, max_bytes=100)
    await window.admit(1)
    await window.admit(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(window.admit, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        window.leave(1, 1)


async def test_a_window_full_of_bytes_lets_one_item_in_nevertheless() -> None:
    window = Window(max_items=10, max_bytes=100)
    await window.admit(1000)
    assert not window.has_room
    async with trio.open_nursery() as nursery:
        nursery.start_soon(window.admit, 1000)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        window.leave(1, 1000)
    assert not window.has_room


# --- the output --------------------------------------------------------------------------------------


@contextlib.contextmanager
def output_to_pipe(window: Window | None = None, *, ordered: bool = True) -> Iterator[tuple[Output, int]]:
    reading, writing = os.pipe()
    try:
        yield Output(writing, window or Window(1000, 10**9), contextlib.nullcontext, ordered=ordered), reading
    finally:
        os.close(reading)
        os.close(writing)


def read_now(descriptor: int) -> bytes:
    os.set_blocking(descriptor, False)
    try:
        return os.read(descriptor, 1_000_000)
    except BlockingIOError:
        return b""
    finally:
        os.set_blocking(descriptor, True)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
async def test_lines_come_out_in_the_order_of_their_items(order: Sequence[int]) -> None:
    with output_to_pipe() as (output, reading):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(output.write)
            for index in order:
                output.put(item(index), b"%d\n" % index)
            output.close()
        assert read_now(reading) == b"0\n1\n2\n3\n"


async def test_a_line_is_written_as_soon_as_all_before_it_are_there() -> None:
    with output_to_pipe() as (output, reading):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(output.write)
            output.put(item(1), b"1\n")
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert read_now(reading) == b""
            output.put(item(0), b"0\n")
            assert await trio.to_thread.run_sync(os.read, reading, 100) == b"0\n1\n"
            output.close()


async def test_closing_prints_what_waits_and_takes_no_more() -> None:
    with output_to_pipe() as (output, reading):
        output.put(item(5), b"5\n")
        output.put(item(0), b"0\n")
        output.put(item(3), b"3\n")
        output.close()
        output.put(item(1), b"1\n")
        output.close()
        await output.write()
        assert read_now(reading) == b"0\n3\n5\n"


async def test_what_is_written_leaves_the_window() -> None:
    window = Window(max_items=2, max_bytes=100)
    with output_to_pipe(window) as (output, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(output.write)
            for index in range(20):
                await window.admit(10)
                output.put(item(index, "x" * 10), b"y" * 90)
            output.close()
    assert window.has_room


async def test_a_descriptor_that_takes_little_at_a_time() -> None:
    """A pipe that somebody made non-blocking, and that is full most of the time."""
    line = bytes(range(256)) * 4096 + b"\n"
    with output_to_pipe() as (output, reading):
        os.set_blocking(output._descriptor, False)
        received = bytearray()

        def read() -> None:
            while len(received) < len(line):
                received.extend(os.read(reading, 1000))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(output.write)
            nursery.start_soon(trio.to_thread.run_sync, read)
            output.put(item(0), line)
            output.close()
        assert received == line


async def test_nobody_reads() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    output = Output(writing, Window(10, 100), contextlib.nullcontext)
    output.put(item(0), b"0\n")
    output.close()
    with pytest.raises(BrokenPipeError):
        await output.write()
    os.close(writing)


# --- Ctrl+C ------------------------------------------------------------------------------------------


class Group(BaseException):
    """As the groups of Python 3.11 and of Trio's backport."""

    def __init__(self, *exceptions: BaseException) -> None:
        self.exceptions = exceptions


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyboardInterrupt(), True),
        (Group(KeyboardInterrupt()), True),
        (Group(Group(KeyboardInterrupt()), KeyboardInterrupt()), True),
        (Group(KeyboardInterrupt(), ValueError()), False),
        (ValueError(), False),
    ],
)
def test_an_interrupt_may_be_in_groups_of_nothing_else(error: BaseException, expected: bool) -> None:
    assert is_interrupt(error) is expected


# --- figures and arity: the worker's side --------------------------------------------------------------


@pytest.mark.parametrize(
    ("of_a_line", "text"),
    [
        (Figures(0.25, 100, 7, 1), b'"seconds": 0.250000, "peak_rss": 100, "pid": 7, "tries": 1'),
        (Figures(0.0000001, None, None, 12), b'"seconds": 0.000000, "peak_rss": null, "pid": null, "tries": 12'),
        (Figures(None, 0, 0, 1), b'"seconds": null, "peak_rss": 0, "pid": 0, "tries": 1'),
        (Figures(1e9, None, None, 1), b'"seconds": 1000000000.000000, "peak_rss": null, "pid": null, "tries": 1'),
    ],
)
def test_figures_as_json(of_a_line: Figures, text: bytes) -> None:
    assert of_a_line.encode() == text


class Signed:
    __signature__ = "not a signature"

    def __call__(self, item: object) -> object:
        return item


class Raises:
    @property
    def __signature__(self) -> object:
        raise RuntimeError

    def __call__(self) -> None: ...


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (lambda item: item, None),
        (lambda *items: items, None),
        (lambda item=1, *, option=2, **others: item, None),
        (lambda: 1, "()"),
        (lambda first, second: first, "(first, second)"),
        (lambda item, *, option: item, "(item, *, option)"),
        (lambda *, item: item, "(*, item)"),
        (lambda **items: items, "(**items)"),
        (Signed(), None),
        (Raises(), None),
        (type, None),
        (dict.fromkeys, None),
        (functools.partial(pow, 2), None),
    ],
)
def test_parameters_that_do_not_fit(function: object, parameters: str | None) -> None:
    assert unfit_parameters(function) == parameters


def measured_peak(meter: PeakMeter, size: int, seconds: float) -> int:
    meter.begin()
    taken = bytearray(b"x") * size
    del taken
    peak = meter.end(seconds)
    assert peak is not None
    return peak


def test_peak_memory_of_one_job() -> None:
    meter = PeakMeter()
    before = measured_peak(meter, 0, 1.0)
    assert measured_peak(meter, 100_000_000, 1.0) > before + 90_000_000
    if os.access("/proc/self/clear_refs", os.W_OK):
        assert measured_peak(meter, 0, 1.0) < before + 50_000_000


def test_peak_memory_of_short_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """They get the memory use of the last measurement, at most a millisecond old."""
    now = 100.0
    reads: list[str] = []
    sizes = iter([(10, 90), (20, 30)])

    def read(path: str) -> bytes:
        reads.append(path)
        return b"Name: x\nVmHWM:\t %d kB\nVmRSS:\t %d kB\n" % next(sizes)[::-1]

    monkeypatch.setattr(figures.time, "monotonic", lambda: now)
    monkeypatch.setattr(figures, "read_short", read)
    monkeypatch.setattr(figures, "write_short", lambda path, data: reads.append(path))
    meter = PeakMeter()
    meter.begin()
    assert meter.end(0.5) == 90 * 1024
    for _ in range(3):
        meter.begin()
        assert meter.end(0.00005) == 10 * 1024
    now += 0.0011
    meter.begin()
    assert meter.end(0.00005) == 30 * 1024
    assert reads == ["/proc/self/clear_refs", "/proc/self/status"] * 2


def test_peak_memory_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> bytes:
        raise FileNotFoundError

    monkeypatch.setattr(figures, "read_short", fail)
    monkeypatch.setattr(figures, "write_short", fail)
    meter = PeakMeter()
    meter.begin()
    assert meter.end(1.0) is None


# --- the end of a run ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("balance", "text"),
    [
        (Balance(3, 7), "3 of 10 items finished, 7 left"),
        (Balance(0, 1), "0 of 1 item finished, 1 left"),
        (Balance(1, 2, "at least"), "1 item finished, at least 2 left"),
        (Balance(2, 0, "at least"), "2 items finished; the input was not read to its end"),
        (Balance(2, 5, "at most"), "2 items finished, at most 5 left"),
    ],
)
def test_a_balance_in_words(balance: Balance, text: str) -> None:
    assert str(balance) == text


def test_nothing_left_needs_no_way_to_continue() -> None:
    assert interruption_lines("interrupted", Balance(2, 0), []) == ["interrupted: 2 of 2 items finished, 0 left"]


# --- unordered output ----------------------------------------------------------------------------------


async def test_unordered_lines_come_out_as_they_come() -> None:
    with output_to_pipe(ordered=False) as (output, reading):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(output.write)
            for index in (2, 0, 1):
                output.put(item(index), b"%d\n" % index)
            output.close()
            output.put(item(3), b"3\n")
        assert read_now(reading) == b"2\n0\n1\n"
        assert output.written == 3


async def test_unordered_output_awaits_an_item_if_nothing_will_leave() -> None:
    """Otherwise a full window would stop the run: nothing could leave it but the item that waits for room."""
    with output_to_pipe(ordered=False) as (output, _):
        assert output.awaits(item(7))
        output.put(item(3), b"3\n")
        assert not output.awaits(item(7))
        output.close()
        await output.write()
        assert output.awaits(item(7))


# --- resume --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("text", "a"),
        ("text", ""),
        ("text", "caf\udce9\n\u2028é"),
        ("json", b'{"b": [1, 1.0, 1e3, "\\u00e9"], "a": null}'),
        ("json", b" true "),
        ("json", b'{"a": '),
        ("json", b"1e999"),
        ("json", b"\xff"),
        ("json", b"9" * 5000),
        ("json", b"[" * 100_000),
        ("json", b"NaN"),
    ],
)
def test_an_item_and_its_line_have_one_digest(kind: ItemKind, content: str | bytes) -> None:
    one = Item(0, 1, kind, content)
    line = success_line(encode_item(kind, content), b'"value": 1', Figures(0.1, None, None, 1))
    assert digest_of_line(line) == digest_of(one)


def test_digests_differ() -> None:
    contents: list[tuple[ItemKind, str | bytes]] = [
        ("text", "1"),
        ("json", b"1"),
        ("json", b"1.0"),
        ("json", b"[1]"),
        ("json", b"null"),
        ("text", ""),
    ]
    assert len({digest_of(Item(0, 1, kind, content)) for kind, content in contents}) == len(contents)


@pytest.mark.parametrize("piece", [1, 2, 7, 1000])
def test_lines_are_read_in_pieces(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_offload._cli.resume._PIECE", piece)
    text = b'{"item": "a", "ok": true}\nforeign\n\n{"item": "b", "ok": true, "value": "' + b"x" * 100 + b'"}\n{"it'
    done: collections.Counter[bytes] = collections.Counter()
    scan = Scan(done)
    scan.read(io.BytesIO(text))
    assert done == {digest_of(item(0, "a")): 1, digest_of(item(0, "b")): 1}
    assert (scan.readable, scan.unreadable, scan.first_unreadable) == (2, 1, 2)
    assert (scan.has_tail, scan.is_incomplete, scan.tail_at) == (True, True, text.rindex(b"{"))


def test_a_large_file_of_another_format_is_not_read_to_its_end() -> None:
    file = io.BytesIO(b"a,b\n" * 1_000_000)
    scan = Scan(collections.Counter())
    scan.read(file)
    assert scan.unreadable == 1000
    assert file.tell() == 4000
