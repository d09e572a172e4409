"""Integration: records that jobs log are handled here, as the program's own, with each kind of worker."""

from __future__ import annotations

import functools
import gc
import logging
import os
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import logging_jobs as jobs
import pytest
import trio
from lifeline import PATIENCE, Gate, Lifeline, process_state
from records import Records

import trio_offload
from trio_offload import WorkerContext, WorkerType, open_worker_context


async def test_records_are_handled_before_the_result(context: WorkerContext, records: Records) -> None:
    await context.run_sync(jobs.say, "one", "two")
    assert records.take() == ["one", "two"]
    await context.run_sync(jobs.say, "three")
    assert records.take() == ["three"]


async def test_record_has_everything(context: WorkerContext, records: Records) -> None:
    pid, thread, line = await context.run_sync(jobs.say_everything)
    (record,) = records.records
    assert record.getMessage() == "text and 5"
    assert (record.name, record.levelname, record.levelno) == ("library.part", "ERROR", logging.ERROR)
    assert (record.pathname, record.filename, record.module) == (jobs.__file__, "logging_jobs.py", "logging_jobs")
    assert (record.lineno, record.funcName) == (line, "say_everything")
    assert (record.process, record.processName) == (pid, f"trio-offload-worker-{pid}")
    assert (record.thread, record.threadName) == (thread, "MainThread")
    text = logging.Formatter("%(message)s").format(record)
    assert "ValueError: bad" in text
    assert "Stack (most recent call last):" in text
    values = vars(record)
    assert (values["worker"], values["job"], values["item"]) == (pid, "logging_jobs.say_everything", None)
    assert (values["number"], values["point"], values["where"]) == (7, 1 + 2j, ("a", 1))
    assert (values["opaque"], values["dumb"]) == ("<it>", "<Unprintable, whose repr raises>")
    own = logging.makeLogRecord({})
    assert vars(own).keys() <= values.keys() | {"taskName"}
    assert 0 <= own.relativeCreated - record.relativeCreated < PATIENCE * 1000
    assert 0 <= record.msecs < 1000


async def test_record_of_the_programs_own_factory(context: WorkerContext, records: Records) -> None:
    class Own(logging.LogRecord):
        pass

    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(Own)
    try:
        await context.run_sync(jobs.say, "text")
    finally:
        logging.setLogRecordFactory(before)
    (record,) = records.records
    assert type(record) is Own
    assert record.getMessage() == "text"


async def test_order_among_other_messages(context: WorkerContext, records: Records) -> None:
    callback = trio_offload.callback(lambda text: logging.getLogger().info(text))
    await context.run_sync(jobs.say_between, callback)
    assert records.take() == [f"{what} {index}" for index in range(3) for what in ("log", "call")]


async def test_many_from_several_workers(context: WorkerContext, records: Records) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(context.run_sync, jobs.count, 5000)
    by_worker: dict[int, list[str]] = {}
    for record in records.records:
        by_worker.setdefault(vars(record)["worker"], []).append(record.getMessage())
    expected = [f"record {index}" for index in range(5000)]
    assert sum(map(len, by_worker.values())) == 10_000
    assert all(messages in (expected, expected * 2) for messages in by_worker.values())


async def test_names_of_threads(context: WorkerContext, records: Records) -> None:
    await context.run_sync(jobs.say_in_threads, 4)
    names = {record.getMessage(): record.threadName for record in records.records}
    assert names == {f"from {index}": f"thread {index}" for index in range(4)}


@pytest.mark.parametrize("chunk_size", [1, 4])
async def test_items_of_a_map(context: WorkerContext, records: Records, chunk_size: int) -> None:
    async with context.map(jobs.say_item, range(10, 20), chunk_size=chunk_size) as results:
        assert [result async for result in results] == list(range(10, 20))
    items = {record.getMessage(): vars(record)["item"] for record in records.records}
    assert items == {f"item {index + 10}": index for index in range(10)}
    assert {vars(record)["job"] for record in records.records} == {"logging_jobs.say_item"}
    # What follows is no item.
    await context.run_sync(jobs.say, "text")
    assert vars(records.records[-1])["item"] is None


async def test_levels_are_mirrored(context: WorkerContext, records: Records) -> None:
    names = ["library", "library.part", "other"]
    logging.getLogger("library").setLevel(logging.ERROR)
    assert await context.run_sync(jobs.say_to, names, logging.WARNING) == [False, False, True]
    assert records.take() == ["to other"]
    # Each change goes along with the next call.
    logging.getLogger("library.part").setLevel(logging.DEBUG)
    assert await context.run_sync(jobs.say_to, names, logging.WARNING) == [False, True, True]
    assert records.take() == ["to library.part", "to other"]
    logging.getLogger("library").setLevel(logging.NOTSET)
    logging.getLogger("library.part").setLevel(logging.NOTSET)
    assert await context.run_sync(jobs.say_to, names, logging.WARNING) == [True, True, True]
    assert len(records.take()) == 3
    logging.disable(logging.WARNING)
    assert await context.run_sync(jobs.say_to, names, logging.WARNING) == [False, False, False]
    logging.disable(logging.NOTSET)
    assert await context.run_sync(jobs.say_to, names, logging.WARNING) == [True, True, True]


async def test_change_of_levels_in_a_map(context: WorkerContext, records: Records) -> None:
    async with context.map(jobs.say_item, range(40), workers=1, window=2) as results:
        async for result in results:
            if result == 10:
                records.take()
                logging.getLogger().setLevel(logging.ERROR)
    # Some calls were sent ahead of the change; their records are not wanted any more.
    assert records.take() == []
    logging.getLogger().setLevel(logging.INFO)


async def test_own_levels_of_jobs_stay(context: WorkerContext, records: Records) -> None:
    await context.run_sync(jobs.set_own_level, logging.ERROR)
    logging.getLogger("other").setLevel(logging.ERROR)
    await context.run_sync(jobs.say, "unheard")
    assert records.take() == []
    logging.getLogger("library").setLevel(logging.DEBUG)
    await context.run_sync(jobs.say, "heard")
    assert records.take() == ["heard"]


async def test_levels_of_the_program_have_the_last_word(context: WorkerContext, records: Records) -> None:
    await context.run_sync(jobs.set_own_level, logging.DEBUG)
    await context.run_sync(jobs.say_to, ["library"], logging.DEBUG)
    assert records.take() == []


async def test_threshold(of_any_kind: WorkerType, records: Records) -> None:
    async with open_worker_context(worker_type=of_any_kind, forward_logging="WARNING") as context:
        assert await context.run_sync(jobs.say_to, ["library"], logging.INFO) == [False]
        await context.run_sync(jobs.say_to, ["library"], logging.WARNING)
    assert records.take() == ["to library"]


async def test_some_loggers(of_any_kind: WorkerType, records: Records, capfd: pytest.CaptureFixture[str]) -> None:
    async with open_worker_context(worker_type=of_any_kind, forward_logging={"library": "INFO"}) as context:
        await context.run_sync(jobs.say_to, ["library", "library.part"], logging.INFO)
        assert records.take() == ["to library", "to library.part"]
        if of_any_kind is not WorkerType.FORK:  # which has this program's handlers, and they write to its memory
            await context.run_sync(jobs.say_to, ["other"], logging.WARNING)
            assert capfd.readouterr().err == "to other\n"
    assert records.take() == []


async def test_without_the_option(of_any_kind: WorkerType, records: Records, capfd: pytest.CaptureFixture[str]) -> None:
    async with open_worker_context(worker_type=of_any_kind) as context:
        await context.run_sync(jobs.say, "unheard")
        assert not await context.run_sync(jobs.has_logging)
    assert records.take() == []


async def test_handlers_of_a_worker_are_not_called(context: WorkerContext, records: Records, tmp_path: Path) -> None:
    path = tmp_path / "file.log"
    await context.run_sync(jobs.configure_and_say, str(path))
    assert records.take() == ["once"]
    assert path.read_text() == ""


async def test_wrong_arguments(context: WorkerContext, records: Records, capfd: pytest.CaptureFixture[str]) -> None:
    await context.run_sync(jobs.say_wrongly)
    assert records.take() == ["right"]
    assert "--- Logging error ---" in capfd.readouterr().err


async def test_handler_that_raises(context: WorkerContext, records: Records, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(record: logging.LogRecord) -> bool:
        raise LookupError(record.getMessage())

    await context.run_sync(jobs.say)  # a fork would have the filter too
    logger = logging.getLogger("library.part")
    logger.addFilter(refuse)
    try:
        await context.run_sync(jobs.say, "bad")
    finally:
        logger.removeFilter(refuse)
    error = capsys.readouterr().err
    assert "--- Error while a log record of worker" in error
    assert "LookupError: bad" in error
    await context.run_sync(jobs.say, "good")
    assert records.take() == ["good"]


async def test_handler_that_starts_a_call(context: WorkerContext, records: Records) -> None:
    async with trio.open_nursery() as nursery:
        handler = logging.Handler()
        handler.emit = lambda record: nursery.start_soon(context.run_sync, jobs.say_to, ["other"], logging.INFO)  # type: ignore[method-assign]
        logging.getLogger("library").addHandler(handler)
        try:
            await context.run_sync(jobs.say, "first")
        finally:
            logging.getLogger("library").removeHandler(handler)
    assert records.take() == ["first", "to other"]


async def test_copies_that_a_job_forks(context: WorkerContext, records: Records) -> None:
    assert await context.run_sync(jobs.say_in_copy) == 0
    assert records.take() == ["from the job"]


@pytest.mark.parametrize("inner", ["spawn", "fork"])
async def test_nested_workers(context: WorkerContext, records: Records, inner: str) -> None:
    pid, own = await context.run_sync(jobs.nest, inner)
    (record,) = records.records
    assert record.getMessage() == "from within"
    assert (record.process, vars(record)["worker"], vars(record)["job"]) == (pid, pid, "logging_jobs.say")
    assert own == []


async def test_signal_handlers_that_log(context: WorkerContext, records: Records) -> None:
    loops = await context.run_sync(jobs.say_in_handlers, 200)
    messages = records.take()
    assert [text for text in messages if text.startswith("loop")] == [f"loop {index}" for index in range(loops)]
    heard = [text for text in messages if text.startswith("handler")]
    # A handler may interrupt another.
    assert len(heard) >= 200
    assert len(set(heard)) == len(heard)


async def test_finalizers_that_log(context: WorkerContext, records: Records) -> None:
    assert await context.run_sync(jobs.say_in_finalizers, 2000) == 2000
    messages = records.take()
    assert [text for text in messages if text.startswith("loop")] == [f"loop {index}" for index in range(2000)]
    assert len({text for text in messages if text.startswith("finalizer")}) == 2000


async def test_full_socket_makes_the_job_wait(context: WorkerContext, records: Records, tmp_path: Path) -> None:
    path = tmp_path / "count"
    path.touch()
    seen: list[int] = []

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            while not seen:
                # The worker sleeps when its socket is full; if it were not, at the end of its job.
                if process_state(record.process or 0) == "S":
                    seen.append(int(path.read_bytes() or b"0"))
                os.sched_yield()

    logger = logging.getLogger("library")
    logger.addHandler(handler := Slow())
    try:
        await context.run_sync(jobs.count_into, 20_000, str(path))
    finally:
        logger.removeHandler(handler)
    assert seen[0] < 20_000
    assert len(records.take()) == 20_000


async def test_memory_stays_flat(context: WorkerContext, records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    # Neither here nor in pytest's own handlers they are kept.
    monkeypatch.setattr(logging.getLogger("library"), "propagate", False)
    await context.run_sync(jobs.count, 1000)
    tracemalloc.start()
    try:
        await context.run_sync(jobs.count, 3000)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        await context.run_sync(jobs.count, 10_000)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 20_000


async def test_other_tasks_have_their_turns(context: WorkerContext, records: Records) -> None:
    """A job that logs without a pause does not keep the event loop."""
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        await context.run_sync(jobs.count, 5000)
        nursery.cancel_scope.cancel()
    assert turns >= 5000 // 32


async def test_outside_of_jobs(
    of_any_kind: WorkerType, records: Records, line: Lifeline, gate: Gate, capfd: pytest.CaptureFixture[str]
) -> None:
    """Records of idle workers go where they go without the option: to standard error, usually."""
    for handler in logging.getLogger().handlers[:]:  # a forked worker has them too
        if of_any_kind is WorkerType.FORK:
            logging.getLogger().removeHandler(handler)
    async with open_worker_context(worker_type=of_any_kind, forward_logging=True) as context:
        await context.run_sync(jobs.say_after_the_job, line.path, gate.path)
        await line.pid()
        gate.open()
        assert await line.line() == "said"
    assert capfd.readouterr().err == "from an idle worker\n"
    assert records.take() == []


async def test_exception_of_a_record(context: WorkerContext, records: Records) -> None:
    await context.run_sync(jobs.say_exceptions)
    plain, chained, opaque, none = records.records
    assert plain.exc_info is not None
    kind, error, traceback = plain.exc_info
    assert kind is LookupError
    assert str(error) == "no row"
    assert traceback is not None
    assert traceback.tb_frame.f_code.co_name == "say_exceptions"
    assert plain.exc_text is not None
    assert plain.exc_text.endswith("LookupError: no row")
    assert chained.exc_info is not None
    assert isinstance(chained.exc_info[1], jobs.OwnError)
    assert repr(chained.exc_info[1].__cause__) == "LookupError('no row')"
    # One that cannot be pickled is text only.
    assert opaque.exc_info is None
    assert opaque.exc_text is not None
    assert "with a lock" in opaque.exc_text
    assert (none.exc_info, none.exc_text) == (None, "NoneType: None")  # as `logging` has it


# --- handlers of the worker ----------------------------------------------------------------------


async def test_kept_handlers_get_the_records_too(of_any_kind: WorkerType, records: Records, tmp_path: Path) -> None:
    init = functools.partial(jobs.open_files, str(tmp_path))
    options: Any = {"worker_type": of_any_kind, "forward_logging": True, "keep_handlers": ["kept", "strict"]}
    async with open_worker_context(init=init, **options) as context:
        await context.run_sync(jobs.say, "one", "two")
        logging.getLogger("library").setLevel(logging.ERROR)
        await context.run_sync(jobs.say, "below the level")
    assert records.take() == ["one", "two"]
    assert (tmp_path / "kept").read_text() == "one\ntwo\n"
    # Handlers have their levels. Another one is not called, and does not double the lines.
    assert (tmp_path / "strict").read_text() == ""
    assert (tmp_path / "other").read_text() == ""


async def test_mistakes_with_kept_handlers() -> None:
    with pytest.raises(TypeError, match="keep_handlers must be an iterable of handler names, got the single string 'file'"):
        async with open_worker_context(forward_logging=True, keep_handlers="file"):
            pass
    with pytest.raises(TypeError, match="must contain handler names, got 5"):
        async with open_worker_context(forward_logging=True, keep_handlers=[5]):  # type: ignore[list-item]
            pass
    with pytest.raises(ValueError, match="keep_handlers must be empty without forward_logging"):
        async with open_worker_context(keep_handlers=["file"]):
            pass


# --- init ----------------------------------------------------------------------------------------


async def test_records_of_init(of_any_kind: WorkerType, records: Records) -> None:
    options: Any = {"worker_type": of_any_kind, "forward_logging": True}
    async with open_worker_context(init=functools.partial(jobs.say, "from init"), **options) as context:
        await context.run_sync(jobs.say, "from the job")
        (worker,) = context.statistics().workers
    first, second = records.records
    assert (first.getMessage(), second.getMessage()) == ("from init", "from the job")
    values = vars(first)
    assert (values["worker"], values["process"], values["job"], values["item"]) == (worker.pid, worker.pid, None, None)
    assert vars(second)["job"] == "logging_jobs.say"


async def test_records_of_a_prewarmed_worker_and_many(of_any_kind: WorkerType, records: Records) -> None:
    options: Any = {"worker_type": of_any_kind, "forward_logging": "INFO"}
    async with open_worker_context(init=functools.partial(jobs.count, 3000), **options) as context:
        await context.prewarm(1)
        assert records.take() == [f"record {index}" for index in range(3000)]


async def test_warning_of_init(of_any_kind: WorkerType, records: Records) -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        init = functools.partial(jobs.warn, "old")
        async with open_worker_context(init=init, worker_type=of_any_kind, forward_logging=True) as context:
            await context.run_sync(jobs.say)
    assert [str(one.message) for one in shown] == ["old"]


@pytest.mark.parametrize("end", ["raise", "SIGKILL"])
async def test_last_words_of_init(of_any_kind: WorkerType, records: Records, end: str) -> None:
    init = functools.partial(jobs.say_and_end, "last words", end)
    with pytest.raises(trio_offload.WorkerStartError):
        async with open_worker_context(init=init, worker_type=of_any_kind, forward_logging=True) as context:
            await context.run_sync(jobs.say)
    assert records.take() == ["last words"]


async def test_threads_of_init_log_elsewhere_afterwards(
    of_any_kind: WorkerType, records: Records, capfd: pytest.CaptureFixture[str], gate: Gate, line: Lifeline
) -> None:
    for handler in logging.getLogger().handlers[:]:  # a forked worker has them too
        if of_any_kind is WorkerType.FORK:
            logging.getLogger().removeHandler(handler)
    init = functools.partial(jobs.say_after_the_job, line.path, gate.path)
    async with open_worker_context(init=init, worker_type=of_any_kind, forward_logging=True) as context:
        await context.prewarm(1)
        await line.pid()
        gate.open()
        assert await line.line() == "said"
    assert capfd.readouterr().err == "from an idle worker\n"
    assert records.take() == []


async def test_worker_that_does_not_log_imports_nothing(records: Records) -> None:
    async with open_worker_context(forward_logging=True) as context:
        code = "('logging' in __import__('sys').modules, 'trio_offload_worker._jobs.logs' in __import__('sys').modules)"
        assert await context.run_sync(eval, code) == (False, False)
        assert await context.run_sync(eval, f"[__import__('logging').warning('now'), *{code}]") == [None, True, True]
    assert records.take() == ["now"]
