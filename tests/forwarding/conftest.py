"""Kept log records, and a context that forwards them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import trio
from lifeline import PATIENCE
from records import Records, kept_records

from trio_offload import WorkerContext, WorkerType, open_worker_context


@pytest.fixture
def records() -> Iterator[Records]:
    with kept_records() as records:
        yield records


@pytest.fixture
async def context(of_any_kind: WorkerType, records: Records) -> AsyncIterator[WorkerContext]:
    with trio.fail_after(PATIENCE):
        async with open_worker_context(worker_type=of_any_kind, forward_logging=True) as context:
            yield context
