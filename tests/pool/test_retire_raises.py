"""A ``retire`` that raises, and an ``init`` or ``retire`` that cannot be called, are named where they are noticed."""

from __future__ import annotations

import functools
import logging
import re
from typing import Any

import pytest
import trio
from kinds import type_of, use_loops
from lifeline import PATIENCE

from trio_offload import BrokenWorkerError, open_worker_context


def raise_in_retire() -> bool:
    raise LookupError("no such policy")


def needs_one(value: int) -> None:
    pass


def needs_keyword(*, value: int) -> None:
    pass


def takes_anything(*args: Any, value: int = 0, **options: Any) -> None:
    pass


class NeedsOne:
    def __call__(self, value: int) -> None:
        pass


async def test_the_end_of_the_context_has_the_traceback(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "loop":
        use_loops(monkeypatch)
    with pytest.raises(BrokenWorkerError) as told:
        async with open_worker_context(retire=raise_in_retire, worker_type=type_of(kind)) as context:
            await context.run_sync(bool)
    text = str(told.value)
    assert text.startswith("not all workers exited cleanly: 1 ended with exit code 5\nthe context's retire function raised")
    assert "in raise_in_retire" in text
    assert "LookupError: no such policy" in text
    assert told.value.exitcode == 5


async def test_the_same_reason_is_told_once() -> None:
    with pytest.raises(BrokenWorkerError) as told:
        async with open_worker_context(retire=raise_in_retire) as context:
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(context.run_sync, bool)
    assert str(told.value).count("LookupError: no such policy") == 1


async def test_the_log_has_the_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async with open_worker_context(retire=raise_in_retire) as context:
        await context.run_sync(bool)
        with trio.fail_after(PATIENCE):
            while context.statistics().idle_workers or context._cache._leaving:  # noqa: ASYNC110
                await trio.sleep(0.002)
    (logged,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert re.match(r"idle worker \d+ exited with status 5: the context's retire function raised", logged)
    assert "LookupError: no such policy" in logged


@pytest.mark.parametrize("option", ["init", "retire"])
@pytest.mark.parametrize("function", [needs_one, needs_keyword, NeedsOne(), lambda value: None])
async def test_a_wrong_signature_is_told_at_once(option: str, function: Any) -> None:
    with pytest.raises(
        TypeError, match=f"{option} must be callable without arguments, got .*: missing a required .*'value'"
    ):
        async with open_worker_context(**{option: function}):
            pass


@pytest.mark.parametrize("function", [bool, int, object, dict, takes_anything, functools.partial(needs_one, 1), print])
async def test_what_can_be_called_passes(function: Any) -> None:
    async with open_worker_context(init=function, retire=function) as context:
        assert context.init is function
