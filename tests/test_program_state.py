"""docs/program-state.md says what of the program's state its jobs meet: each row of its table is tried in every worker type."""

from __future__ import annotations

import contextvars
import decimal
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from kinds import environment_of
from running import PROGRAMS, run

import trio_offload
from trio_offload import WorkerType

PAGE = Path(__file__).resolve().parent.parent / "docs" / "program-state.md"
MOMENTS = {"call": "call", "start": "worker", "template": "template", "no": "never"}
# The column of the table for each kind of worker.
COLUMNS = {"spawn": 1, "loop": 1, "fork": 2, "forkserver": 3}
CHANGES = 4


def rows() -> list[list[str]]:
    lines = re.findall(r"^\| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    table = [line.split(" | ") for line in lines]
    return [row for row in table if len(row) == 6 and row[1] in MOMENTS]


@cache
def found(kind: str) -> tuple[dict[str, str], dict[str, bool]]:
    """What the program finds: for each row when a change is seen, and whether a job's change is kept."""
    environment = environment_of(kind)
    program = PROGRAMS / "program_state.py"
    seen, kept = run([sys.executable, program, kind.replace("loop", "spawn")], environment=environment).lines()
    return json.loads(seen), json.loads(kept)


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_row(row: list[str], kind: str) -> None:
    seen, kept = found(kind)
    if row[0] not in seen:
        assert row[0] == "`sys.set_int_max_str_digits`"
        pytest.skip("this release of Python has no such limit")
    assert seen[row[0]] == MOMENTS[row[COLUMNS[kind]]]
    assert kept[row[0]] == (row[CHANGES] == "stay")


def test_that_all_rows_are_in_the_table() -> None:
    assert {row[0] for row in rows()} >= found("spawn")[0].keys()


# --- context variables ---------------------------------------------------------------------------

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


def prepare() -> None:
    VARIABLE.set("of init")
    decimal.getcontext().prec = 40


def state() -> tuple[str, int]:
    return VARIABLE.get(), decimal.getcontext().prec


def change() -> tuple[str, int]:
    decimal.getcontext().prec = 3
    VARIABLE.set("of a job")
    return state()


def retire_if_changed() -> bool:
    changed = state() != ("of init", 40)
    change()
    return changed


def fail() -> None:
    change()
    raise ValueError("a job that fails")


async def test_what_init_sets_is_for_every_job(of_any_kind: WorkerType) -> None:
    """A decimal context is changed in place, and yet each job has its own; `retire` has too."""
    async with trio_offload.open_worker_context(worker_type=of_any_kind, init=prepare, retire=retire_if_changed) as context:
        for _ in range(2):
            assert await context.run_sync(change) == ("of a job", 3)
            with pytest.raises(ValueError, match="fails"):
                await context.run_sync(fail)
            assert await context.run_sync(state) == ("of init", 40)
        async with context.map(ask_and_change, range(4), workers=1) as results:
            assert [result async for result in results] == [("of init", 40)] * 4
        assert context.statistics().workers[0].jobs == 10


def ask_and_change(_: int) -> tuple[str, int]:
    found = state()
    change()
    return found


async def test_what_an_import_sets_is_for_every_job(of_any_kind: WorkerType, tmp_path: Path, monkeypatch: Any) -> None:
    """A module that sets the precision when it is imported is imported once, and counts for all jobs."""
    (tmp_path / "precise.py").write_text(
        "import decimal\ndecimal.getcontext().prec = 50\ndef ask(): return decimal.getcontext().prec\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    async with trio_offload.open_worker_context(worker_type=of_any_kind) as context:
        function = contextvars.copy_context().run(__import__, "precise").ask
        assert [await context.run_sync(function) for _ in range(2)] == [28 if of_any_kind is WorkerType.FORK else 50] * 2
