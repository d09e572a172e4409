"""End to end: ``trio-offload map`` with a generator function prints a line for each value."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio
from cli_support import COMMAND, PATIENCE

from trio_offload._cli.output import Output, Window
from trio_offload._cli.sources import Item

FUNCTIONS = """\
import os
import time


def parts(item):
    for number in range(int(item)):
        yield number * number
    return "all"


def fails(item):
    yield 1
    raise ValueError(item)


def dies(item):
    yield 1
    if item == "dies":
        os.abort()


def returns_a_generator(item):
    open("calls", "a").write("x")
    return (letter for letter in item)


def keeps_count(item):
    open("calls", "a").write("x")
    yield item


def slow(item):
    yield item
    time.sleep(60)
"""


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    return tmp_path


def lines_of(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """Run the command; its lines without the figures."""
    ran = subprocess.run([*COMMAND, "map", *arguments], cwd=folder, capture_output=True, timeout=PATIENCE, check=False)
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    for line in lines:
        for figure in ("seconds", "peak_rss", "pid"):
            line.pop(figure, None)
    return lines


def test_each_value_has_a_line(functions: Path) -> None:
    expected: list[dict[str, Any]] = []
    for item in ("3", "0", "2"):
        expected += [{"item": item, "part": part + 1, "value": part * part, "tries": 1} for part in range(int(item))]
        expected.append({"item": item, "ok": True, "value": "all", "tries": 1})
    assert lines_of(functions, "functions:parts", "3", "0", "2") == expected


def test_many_values_of_several_items_keep_their_order(functions: Path) -> None:
    lines = lines_of(functions, "functions:parts", "300", "5", "200", "--workers", "3")
    assert [(line["item"], line.get("part")) for line in lines] == [
        (item, part) for item in ("300", "5", "200") for part in (*range(1, int(item) + 1), None)
    ]


def test_unordered_values_keep_their_order_within_an_item(functions: Path) -> None:
    lines = lines_of(functions, "functions:parts", "30", "20", "--unordered")
    for item in ("30", "20"):
        parts = [line.get("part") for line in lines if line["item"] == item]
        assert parts == [*range(1, int(item) + 1), None]


def test_an_error_comes_after_the_values(functions: Path) -> None:
    first, last = lines_of(functions, "functions:fails", "x")
    assert (first["part"], first["value"]) == (1, 1)
    assert (last["ok"], last["error"]["type"], last["error"]["message"]) == (False, "ValueError", "x")
    assert "cli_items" not in last["error"]["traceback"]


def test_a_death_comes_after_the_values(functions: Path) -> None:
    lines = lines_of(functions, "functions:dies", "dies", "lives", "--retries", "1")
    assert [(line["item"], line.get("part"), line.get("ok"), line["tries"]) for line in lines] == [
        ("dies", 1, None, 1),
        ("dies", 1, None, 2),
        ("dies", None, False, 2),
        ("lives", 1, None, 1),
        ("lives", None, True, 1),
    ]


def test_other_functions_that_return_a_generator_are_called_once(functions: Path) -> None:
    (line,) = lines_of(functions, "functions:returns_a_generator", "ab")
    assert line["repr"].startswith("<generator object")
    assert (functions / "calls").read_text() == "x"


def test_a_generator_function_runs_once(functions: Path) -> None:
    assert len(lines_of(functions, "functions:keeps_count", "a", "b", "--workers", "1")) == 4
    assert (functions / "calls").read_text() == "xx"


def test_a_timeout_counts_for_all_values(functions: Path) -> None:
    first, last = lines_of(functions, "functions:slow", "a", "--timeout", "0.3")
    assert first["value"] == "a"
    assert last["error"]["type"] == "WorkerTimeoutError"


def test_resume_runs_unfinished_items_again(functions: Path) -> None:
    lines = [
        {"item": "2", "part": 1, "value": 0, "tries": 1},
        {"item": "1", "part": 1, "value": 0, "tries": 1},
        {"item": "1", "ok": True, "value": "all"},
    ]
    (functions / "results").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rest = lines_of(functions, "functions:parts", "1", "2", "--resume", "results")
    assert [(line["item"], line.get("part")) for line in rest] == [("2", 1), ("2", 2), ("2", None)]


async def test_values_wait_for_room() -> None:
    reading, writing = os.pipe()
    output = Output(writing, Window(10, 100), contextlib.nullcontext)
    first, second = (Item(index, index + 1, "text", "x") for index in range(2))
    line = b"x" * 60
    async with trio.open_nursery() as nursery:
        # The second item's lines wait for the first item's, and then for room.
        await output.put_part(second, line)
        nursery.start_soon(output.put_part, second, line)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        # Those of the first go on.
        nursery.start_soon(output.write)
        for _ in range(5):
            await output.put_part(first, b"y" * 60)
        output.put(first, b"first")
        output.put(second, b"second")
        await trio.testing.wait_all_tasks_blocked(0.01)
        output.close()
    assert os.read(reading, 10_000) == b"y" * 300 + b"first" + line + line + b"second"
    assert output.written == 2
    os.close(reading)
    os.close(writing)
