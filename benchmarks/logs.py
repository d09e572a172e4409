"""The row about log records: from a job, or a process of multiprocessing's, to a handler of this process."""

from __future__ import annotations

import contextlib
import importlib
import logging
import logging.handlers
import multiprocessing
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import trio
from contenders import OURS
from measure import Samples, Settings

QUEUE_HANDLER = "QueueHandler, multiprocessing.Queue"
_logger = logging.getLogger("trio-offload-benchmark")


class _Counter(logging.Handler):
    """Counts records, and tells when there are as many as wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.wanted = 0
        self.complete = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
        if self.count == self.wanted:
            self.complete.set()


def log(number: int) -> None:
    """The job."""
    for index in range(number):
        _logger.info("record %d of many", index)


def _serve(connection: Connection, queue: Any) -> None:
    """The process: logs as often as it is told."""
    _logger.setLevel(logging.INFO)
    _logger.propagate = False
    _logger.addHandler(logging.handlers.QueueHandler(queue))
    with contextlib.suppress(EOFError):
        while True:
            log(connection.recv())


@contextlib.contextmanager
def _process(counter: _Counter) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, queue))
    process.start()
    theirs.close()
    listener = logging.handlers.QueueListener(queue, counter)
    listener.start()
    try:
        yield ours
    finally:
        ours.close()
        process.join()
        listener.stop()
        queue.close()
        queue.join_thread()


async def log_records(settings: Settings) -> Samples:
    """Records a second of a job that only logs, until the last is handled."""
    # Any: a version that does not forward is type-checked, and measured, without this row.
    trio_offload: Any = importlib.import_module("trio_offload")
    samples: Samples = defaultdict(list)
    counter = _Counter()
    _logger.setLevel(logging.INFO)
    _logger.propagate = False
    _logger.addHandler(counter)
    number = settings.items
    try:
        async with trio_offload.open_worker_context(forward_logging=True) as context:
            with _process(counter) as connection:
                await context.run_sync(log, 1)
                for rounds in range(settings.rounds + 1):
                    counter.count, counter.wanted = 0, number
                    counter.complete.clear()
                    began = time.perf_counter()
                    await context.run_sync(log, number)
                    ours = time.perf_counter() - began
                    if counter.count != number:
                        raise AssertionError(f"{counter.count} of {number} records were handled")
                    counter.count = 0
                    counter.complete.clear()
                    began = time.perf_counter()
                    connection.send(number)
                    await trio.to_thread.run_sync(counter.complete.wait)
                    theirs = time.perf_counter() - began
                    # The first round starts workers.
                    if rounds:
                        samples[OURS].append(number / ours)
                        samples[QUEUE_HANDLER].append(number / theirs)
    finally:
        _logger.removeHandler(counter)
    return samples
