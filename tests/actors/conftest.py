"""What tests of actors and shared objects have in common: workers of each kind, by turns."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
from lifeline import PATIENCE

import trio_offload
from trio_offload import WorkerContext, WorkerType


@pytest.fixture
def open_actor(of_any_kind: WorkerType) -> Callable[..., AbstractAsyncContextManager[Any]]:
    return functools.partial(trio_offload.open_actor, worker_type=of_any_kind)


@pytest.fixture
async def context(of_any_kind: WorkerType) -> AsyncIterator[WorkerContext]:
    with trio.fail_after(PATIENCE):
        async with trio_offload.open_worker_context(worker_type=of_any_kind) as context:
            yield context
