"""End to end: the progress bar of ``trio-offload map``, on a pseudo-terminal; and that there is none elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from cli_support import COMMAND, PATIENCE, run, wait_until

pytest.importorskip("rich")

CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
SHOW_CURSOR = "\x1b[?25h"
HIDE_CURSOR = "\x1b[?25l"


class Terminal:
    """A pseudo-terminal of 120 columns, and all that was written to it."""

    def __init__(self, ours: int) -> None:
        self._ours = ours
        self._written = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
            while chunk := os.read(self._ours, 65536):
                self._written += chunk

    def close(self) -> None:
        self._reader.join(PATIENCE)
        os.close(self._ours)

    @property
    def raw(self) -> str:
        return self._written.decode()

    @property
    def text(self) -> str:
        """What was written, without colours and movements of the cursor."""
        return CONTROLS.sub("", self.raw)


@attrs.frozen
class OnTerminal:
    """A command whose standard error is a terminal."""

    process: subprocess.Popen[bytes]
    terminal: Terminal


@contextlib.contextmanager
def on_terminal(
    folder: Path, *arguments: str, stdout_too: bool = False, env: dict[str, str] | None = None
) -> Iterator[OnTerminal]:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=theirs if stdout_too else subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", **(env or {})},
        start_new_session=True,
    )
    os.close(theirs)
    terminal = Terminal(ours)
    try:
        with process:
            yield OnTerminal(process, terminal)
            process.wait(PATIENCE)
    finally:
        process.kill()
        terminal.close()


def test_done_failed_and_rate(folder: Path) -> None:
    with on_terminal(folder, "map", "jobs:trouble", "a", "raise", "b", "--workers", "2") as ran:
        assert ran.process.stdout is not None
        lines = [json.loads(line) for line in ran.process.stdout]
    assert [line["ok"] for line in lines] == [True, False, True]
    assert "3/3 done" in ran.terminal.text
    assert "1 failed" in ran.terminal.text
    assert re.search(r"\d/s", ran.terminal.text)
    assert ran.terminal.raw.rindex(SHOW_CURSOR) > ran.terminal.raw.rindex(HIDE_CURSOR)


def test_the_number_of_items_in_a_file_is_known_while_it_is_read(folder: Path) -> None:
    (folder / "items").write_text("a\nb\n\nwait\n")
    with on_terminal(folder, "map", "jobs:wait_for_file", "--lines", "items", "--workers", "1") as ran:
        wait_until(lambda: "3/4 done" in ran.terminal.text, "a bar with a total")
        assert re.search(r"left +(\d:|-:)", ran.terminal.text)
        (folder / "go").touch()
    assert "4/4 done" in ran.terminal.text


def test_items_left_out_do_not_count(folder: Path) -> None:
    (folder / "items").write_text("a\nb\nwait\nc\n")
    (folder / "results").write_text('{"item": "b", "ok": true}\n')
    arguments = ("map", "jobs:wait_for_file", "--lines", "items", "--resume", "results", "--unordered", "--workers", "2")
    with on_terminal(folder, *arguments) as ran:
        wait_until(lambda: "2/3 done" in ran.terminal.text, "a bar with a total")
        (folder / "go").touch()
    shown = ran.terminal.text.replace("\r\n", "\n")
    last = shown[shown.rindex("3/3 done") :]
    assert "trio-offload: 3 jobs, 0 failed\n" in last
    assert "trio-offload: 1 item left out, finished according to results\n" in last


def test_the_number_of_items_in_a_pipe_is_not_known(folder: Path) -> None:
    os.mkfifo(folder / "items")
    with on_terminal(folder, "map", "jobs:echo", "--lines", "items") as ran:
        with open(folder / "items", "w") as items:
            items.write("a\nb\n")
            items.flush()
            wait_until(lambda: "2 done" in ran.terminal.text, "a bar without a total")
    assert "/2" not in ran.terminal.text


def test_bar_and_lines_on_one_terminal(folder: Path) -> None:
    """The bar goes away while lines are written: each line of the output stands whole on a line of its own."""
    items = [str(number) for number in range(50)]
    with on_terminal(folder, "map", "jobs:echo", *items, stdout_too=True) as ran:
        pass
    # What a terminal shows of a line is what follows the last return to its beginning.
    shown = [line.rpartition("\r")[2] for line in ran.terminal.text.replace("\r\n", "\n").split("\n")]
    assert [json.loads(line)["item"] for line in shown if line.startswith("{")] == items
    assert "50/50 done" in ran.terminal.text


def test_a_table_of_the_workers(folder: Path) -> None:
    """Who they are, what they hold and what they work on, while they do; at the end only the bar stays."""
    with on_terminal(folder, "map", "jobs:wait_for_file", "a", "[b]old", "wait", "--workers", "1") as ran:
        wait_until(lambda: re.search(r"\d+ +running +[\d.]+ MiB +2 +'wait'", ran.terminal.text), "a table")
        assert re.search(r"pid +state +memory +jobs +item", ran.terminal.text)
        (folder / "go").touch()
    last = ran.terminal.text[ran.terminal.text.rindex("3/3 done") :]
    assert "running" not in last
    assert "idle" not in last


def test_the_item_that_a_worker_has_is_shown_as_it_is(folder: Path) -> None:
    """Not what rich would make of it, not more than fits on a line, and of JSON the JSON."""
    (folder / "items").write_text(json.dumps({"wait": "[red]" + "x" * 500}) + "\n")
    (folder / "holds.py").write_text("from jobs import wait_for_file\ndef f(item): return wait_for_file(*item)\n")
    with on_terminal(folder, "map", "holds:f", "--json-lines", "items") as ran:
        wait_until(lambda: '{"wait": "[red]xxx' in ran.terminal.text, "the item")
        (folder / "go").touch()
    assert "x" * 100 not in ran.terminal.text


def test_jobs_tell_their_progress(folder: Path) -> None:
    """In the table, with the note as it is, and in the bar."""
    (folder / "tells.py").write_text(
        "from jobs import wait_for_file\nfrom trio_offload_worker import from_worker\n"
        "def f(item):\n    from_worker.progress(1, 4, '[b]a\\rnote')\n    return wait_for_file(item)\n"
        "def g(item):\n    from_worker.progress(12345678)\n    return wait_for_file(item)\n"
    )
    with on_terminal(folder, "map", "tells:f", "wait", "--workers", "1") as ran:
        wait_until(lambda: re.search(r"\d+ +running +[\d.]+ MiB +0 +25 % \[b\]a note +'wait'", ran.terminal.text), "it")
        assert re.search(r"pid +state +memory +jobs +progress +item", ran.terminal.text)
        # A quarter of the bar's 40 columns.
        wait_until(lambda: re.search(r" ━{10}╺?━* +0/1 done", ran.terminal.text), "a bar")
        (folder / "go").touch()
    (folder / "go").unlink()
    with on_terminal(folder, "map", "tells:g", "wait", "--workers", "1") as ran:
        wait_until(lambda: re.search(r" 12345678 done +'wait'", ran.terminal.text), "a number")
        (folder / "go").touch()


def test_more_workers_than_lines(folder: Path) -> None:
    """The bar is what must be seen."""
    items = [f"wait-{number}" for number in range(6)]
    arguments = ("map", "jobs:wait_for_file", *items, "--workers", "6")
    with on_terminal(folder, *arguments, env={"LINES": "6"}) as ran:
        wait_until(lambda: "and 4 more" in ran.terminal.text, "a short table")
        assert "0/6 done" in ran.terminal.text
        (folder / "go").touch()


def test_the_summary_is_under_the_bar(folder: Path) -> None:
    with on_terminal(folder, "map", "jobs:trouble", "a", "raise") as ran:
        pass
    shown = ran.terminal.text.replace("\r\n", "\n")
    assert "trio-offload: 2 jobs, 1 failed: 1 ValueError\n" in shown[shown.rindex("2/2 done") :]


def test_ctrl_c_gives_the_terminal_back(folder: Path) -> None:
    with on_terminal(folder, "map", "jobs:wait_for_file", "a", "wait", stdout_too=True) as ran:
        wait_until(lambda: "1/2 done" in ran.terminal.text, "the bar")
        os.killpg(ran.process.pid, 2)
        ran.process.wait(PATIENCE)
    assert ran.process.returncode == 130
    assert "Traceback" not in ran.terminal.text
    assert ran.terminal.raw.rindex(SHOW_CURSOR) > ran.terminal.raw.rindex(HIDE_CURSOR)


def test_no_bar_if_none_is_wanted(folder: Path) -> None:
    with on_terminal(folder, "map", "jobs:echo", "a", "--no-progress") as ran:
        pass
    assert ran.terminal.raw == ""


def test_no_bar_on_a_terminal_that_cannot_move_its_cursor(folder: Path) -> None:
    with on_terminal(folder, "map", "jobs:echo", "a", env={"TERM": "dumb"}) as ran:
        pass
    assert ran.terminal.raw == ""


def test_no_bar_in_a_pipe(folder: Path) -> None:
    assert run(folder, "map", "jobs:echo", "a").stderr == ""


def test_without_rich_there_is_one_hint(folder: Path) -> None:
    (folder / "rich.py").write_text("raise ImportError('as if it were not installed')")
    with on_terminal(folder, "map", "jobs:echo", "a", "b", env={"PYTHONPATH": str(folder)}) as ran:
        assert ran.process.stdout is not None
        assert len(ran.process.stdout.read().splitlines()) == 2
    assert ran.process.returncode == 0
    assert ran.terminal.text == "trio-offload: hint: for a progress bar: pip install 'trio-offload[cli]'\r\n"


def test_rich_is_imported_for_a_bar_only(folder: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMAND[1:], "map", "jobs:echo", "a"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert "trio_offload._cli.run" in ran.stderr
    assert "rich" not in ran.stderr
