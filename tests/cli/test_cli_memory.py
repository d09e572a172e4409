"""End to end: what ``trio-offload map`` holds in memory is bounded, however many items there are and whoever is slow."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path

import pytest
from cli_support import PATIENCE, peak_memory, started, wait_until

MIB = 1024 * 1024


def read_lines(process: subprocess.Popen[bytes], count: int) -> list[bytes]:
    """Read with a buffer, which ``process.stdout`` has not."""
    assert process.stdout is not None
    with open(process.stdout.fileno(), "rb", closefd=False) as stdout:
        return [stdout.readline() for _ in range(count)]


@pytest.mark.slow
def test_a_slow_first_item_and_many_behind_it(folder: Path) -> None:
    """The first item is not ready until everything that may be ahead of it has been done; then all follow, in order."""
    count = 60_000
    head = b"wait\n"
    line = b"%08d" + b"x" * 500 + b"\n"
    with started(folder, "map", "jobs:wait_for_file", "--lines", "-", "--workers", "2") as process:
        stdin = process.stdin
        assert stdin is not None
        wait_until(lambda: (folder / "imported-by").exists(), "the import of the function")
        empty = peak_memory(process.pid)
        fed = 0

        def feed() -> None:
            nonlocal fed
            stdin.write(head)
            for number in range(count):
                fed += stdin.write(line % number)

        feeder = threading.Thread(target=feed)
        feeder.start()
        try:
            # Until the command takes no more: nothing has been printed, and most of the input is not read.
            wait_until(lambda: _stands_still(process.pid), "a full window")
            assert fed < count * len(line % 0) * 0.9
            (folder / "go").touch()
            lines = read_lines(process, count + 1)
        finally:
            (folder / "go").touch()
            feeder.join(PATIENCE)
        used = peak_memory(process.pid) - empty
        stdin.close()
        assert process.wait(PATIENCE) == 0
    assert json.loads(lines[0])["value"] == "wait"
    assert [int(json.loads(line)["value"][:8]) for line in lines[1:]] == list(range(count))
    # 60,000 items and lines are 90 MB; what may be inside is 64 MiB and a little more for what Python adds to each.
    assert used < 90 * MIB


def _stands_still(pid: int) -> bool:
    """Whether the command uses no processor time: it has read all that it wants, and its workers are done with it."""
    return _ticks(pid) == _ticks(pid, after=0.5)


def _ticks(pid: int, after: float = 0.0) -> int:
    threading.Event().wait(after)
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.slow
def test_many_small_items(folder: Path) -> None:
    """100,000 items through, with not much more memory than 2,000 need."""
    with started(folder, "map", "builtins:len", "--lines", "-", stderr=subprocess.DEVNULL) as process:
        stdin = process.stdin
        assert stdin is not None

        def feed(count: int) -> None:
            stdin.write(b"item\n" * count)

        peaks = []
        for count in (2_000, 98_000):
            feeder = threading.Thread(target=feed, args=[count])
            feeder.start()
            lines = read_lines(process, count)
            feeder.join(PATIENCE)
            assert {line.partition(b', "seconds"')[0] for line in lines} == {b'{"item": "item", "ok": true, "value": 4'}
            peaks.append(peak_memory(process.pid))
        stdin.close()
        assert process.wait(PATIENCE) == 0
    assert peaks[1] - peaks[0] < 40 * MIB


@pytest.mark.slow
def test_large_values_behind_a_slow_item_stay_out(folder: Path) -> None:
    """The bound is in bytes too: forty results of 8 MB do not gather behind the first item."""
    (folder / "large.py").write_text(
        "from jobs import wait_for_file\ndef large(x): return wait_for_file(x) + 'x' * 8_000_000\n"
    )
    (folder / "items").write_text("wait\n" + "a\n" * 40)
    arguments = ("map", "large:large", "--lines", "items", "--workers", "2")
    with started(folder, *arguments, stdin=subprocess.DEVNULL) as process:
        wait_until(lambda: peak_memory(process.pid) > 64 * MIB, "results behind the first item")
        wait_until(lambda: _stands_still(process.pid), "a full window")
        assert peak_memory(process.pid) < 200 * MIB
        (folder / "go").touch()
        lines = read_lines(process, 41)
        assert all(len(line) > 8_000_000 for line in lines)
        assert process.wait(PATIENCE) == 0
