"""End to end: ``trio-offload map --resume`` leaves out what earlier runs have finished, and loses nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cli_support import COMMAND, PATIENCE, Ran, is_running, peak_memory, run, started, wait_for_files, wait_until

LEFT_OUT = "left out, finished according to results"


def append(folder: Path, *arguments: str, given: bytes = b"") -> Ran:
    """Run ``map … --resume results >> results``. The result has all lines of the file."""
    command = (*COMMAND, "map", *arguments, "--resume", "results")
    with (folder / "results").open("ab") as results:
        ran = subprocess.run(
            command, cwd=folder, input=given, stdout=results, stderr=subprocess.PIPE, timeout=PATIENCE, check=False
        )
    return Ran(ran.returncode, (folder / "results").read_text(errors="replace"), ran.stderr.decode())


def write_results(folder: Path, *lines: dict[str, Any] | str | bytes) -> None:
    """Write the file: objects as JSON, text and bytes as they are."""
    encoded = [json.dumps(line) + "\n" if isinstance(line, dict) else line for line in lines]
    (folder / "results").write_bytes(b"".join(line.encode() if isinstance(line, str) else line for line in encoded))


def done(item: object) -> dict[str, Any]:
    return {"item": item, "ok": True, "value": None}


def items_of(ran: Ran) -> list[Any]:
    return [line["item"] for line in ran.lines]


# --- what is left out --------------------------------------------------------------------------------


def test_one_command_for_first_and_later_runs(folder: Path) -> None:
    first = append(folder, "jobs:trouble", "a", "raise", "b")
    assert (first.status, items_of(first)) == (1, ["a", "raise", "b"])
    second = append(folder, "jobs:trouble", "a", "raise", "b", "c")
    assert (second.status, items_of(second)) == (1, ["a", "raise", "b", "raise", "c"])
    assert second.stderr == f"trio-offload: 2 items {LEFT_OUT}\n"
    third = append(folder, "jobs:echo", "a", "raise", "b", "c")
    assert (third.status, items_of(third)[5:]) == (0, ["raise"])
    last = append(folder, "jobs:echo", "a", "raise", "b", "c")
    assert (last.status, last.stdout) == (0, third.stdout)
    assert last.stderr == f"trio-offload: 4 items {LEFT_OUT}\n"


def test_resume_writes_new_lines_only(folder: Path) -> None:
    write_results(folder, done("a"), done("b"))
    before = (folder / "results").read_bytes()
    ran = run(folder, "map", "jobs:echo", "a", "b", "c", "--resume", "results")
    assert ran.values == ["c"]
    assert (folder / "results").read_bytes() == before


def test_several_files(folder: Path) -> None:
    write_results(folder, done("a"))
    (folder / "more").write_text(json.dumps(done("b")) + "\n")
    ran = run(folder, "map", "jobs:echo", "a", "b", "c", "--resume", "results", "--resume", "more")
    assert ran.values == ["c"]
    assert append(folder, "jobs:echo", "a", "b", "--resume", "results").status == 0  # named twice
    assert ran.stderr == f"trio-offload: 2 items {LEFT_OUT} and more\n"


def test_duplicates_are_counted(folder: Path) -> None:
    write_results(folder, done("a"), done("b"), done("b"), done("b"))
    ran = run(folder, "map", "jobs:echo", "a", "b", "a", "b", "a", "--resume", "results")
    assert ran.values == ["a", "a"]
    assert ran.stderr == f"trio-offload: 3 items {LEFT_OUT}; 1 result of other items ignored\n"


def test_an_item_is_its_json(folder: Path) -> None:
    write_results(folder, done("1"), done({"b": [1.5, None], "a": "é"}), done("caf\udce9"), done('{"a": '))
    given = b'1\n"1"\n{"a":"\\u00e9", "b": [1.5,null]}\n{"a": \n'
    ran = run(folder, "map", "jobs:echo", "--json-lines", "-", "--resume", "results", given=given)
    assert ran.values == [1]  # the number; the rest is done, also the line that is no JSON
    ran = run(folder, "map", "jobs:echo", "--lines", "-", "--resume", "results", given=b"caf\xe9\n1\n2\n")
    assert ran.values == ["2"]


def test_lines_of_another_program_that_kept_them(folder: Path) -> None:
    """Such as ``jq -c``: without spaces, in another order, without the figures; with blank lines."""
    write_results(folder, '{"ok":true,"value":1,"item":"a"}\n', "\n", '{"item":"b","ok":false,"error":{}}\r\n')
    assert run(folder, "map", "jobs:echo", "a", "b", "--resume", "results").values == ["b"]


def test_failed_lines_do_not_count(folder: Path) -> None:
    write_results(folder, {"item": "a", "ok": False, "error": {}}, {"item": "b", "ok": "yes"}, done("c"))
    ran = run(folder, "map", "jobs:echo", "a", "b", "c", "--resume", "results")
    assert ran.values == ["a", "b"]
    assert "warning: 1 line of results cannot be read and is ignored (see line 2)" in ran.stderr


# --- what may be wrong with the file -----------------------------------------------------------------


def test_no_file_is_a_first_run_and_told(folder: Path) -> None:
    ran = run(folder, "map", "jobs:echo", "a", "--resume", "results")
    assert ran.values == ["a"]
    assert ran.stderr == "trio-offload: results does not exist, so no item is left out\n"


@pytest.mark.parametrize("cut", [1, 9, 20, 40])
def test_the_incomplete_line_of_a_killed_run(folder: Path, cut: int) -> None:
    whole = append(folder, "jobs:echo", "a", "b", "c").stdout
    (folder / "results").write_text(whole[: whole.rindex('{"item"') + cut])
    ran = append(folder, "jobs:echo", "a", "b", "c")
    assert items_of(ran) == ["a", "b", "c"]
    assert "warning: the incomplete last line of results is removed; its item is run again" in ran.stderr


def test_an_incomplete_line_of_a_file_that_is_only_read(folder: Path) -> None:
    write_results(folder, done("a"), '{"item": "b", "ok": true')
    before = (folder / "results").read_bytes()
    ran = run(folder, "map", "jobs:echo", "a", "b", "--resume", "results")
    assert ran.values == ["b"]
    assert "warning: the incomplete last line of results is ignored" in ran.stderr
    assert (folder / "results").read_bytes() == before


def test_a_last_line_that_lacks_its_line_break_only(folder: Path) -> None:
    write_results(folder, json.dumps(done("a")))
    assert items_of(append(folder, "jobs:echo", "a", "b")) == ["a", "b"]


def test_lines_that_became_one_do_not_count(folder: Path) -> None:
    """As after ``>>`` without ``--resume`` to a file whose last line was incomplete."""
    write_results(folder, done("a"), '{"item": "b", "ok": true, "val', done("c"), b"\0\0\xff\n", done("d"))
    ran = run(folder, "map", "jobs:echo", *"abcd", "--resume", "results")
    assert ran.values == ["b", "c"]
    assert "2 lines of results cannot be read and are ignored (see line 2)" in ran.stderr


@pytest.mark.parametrize(
    "content",
    [
        b"some text\n",
        b"a,b\n1,2\n" * 1000,
        b'{"name": "a"}\n[1]\n',
        b"\x1f\x8b\x08" + bytes(range(256)) * 20_000,
        bytes(3_000_000),
        b"no line break",
    ],
)
def test_a_file_of_another_format_is_refused(folder: Path, content: bytes) -> None:
    (folder / "results").write_bytes(content)
    for ran in (run(folder, "map", "jobs:echo", "a", "--resume", "results"), append(folder, "jobs:echo", "a")):
        assert ran.status == 2
        assert ran.stderr.startswith("trio-offload: error: cannot resume from results: no line is output of")
        assert ran.stderr.count("\n") == 1
        assert (folder / "results").read_bytes() == content


def test_a_directory_is_refused(folder: Path) -> None:
    ran = run(folder, "map", "jobs:echo", "a", "--resume", ".")
    assert (ran.status, ran.stderr) == (2, "trio-offload: error: cannot read .: it is a directory\n")


def test_standard_input_is_refused(folder: Path) -> None:
    ran = run(folder, "map", "jobs:echo", "a", "--resume", "-")
    assert (ran.status, ran.stdout) == (2, "")
    assert "--resume must be a file, not standard input" in ran.stderr


def test_output_that_overwrites_the_file_is_refused(folder: Path) -> None:
    with (folder / "results").open("wb") as results:
        arguments = [*COMMAND, "map", "jobs:echo", "a", "--resume", "results"]
        ran = subprocess.run(arguments, cwd=folder, stdout=results, stderr=subprocess.PIPE, timeout=PATIENCE, check=False)
    assert ran.returncode == 2
    assert b"standard output overwrites results, the file of --resume. To append: >> results\n" in ran.stderr


def test_two_runs_do_not_append_to_one_file(folder: Path) -> None:
    with (folder / "results").open("ab") as results:
        arguments = ("map", "jobs:hold", "hold", "--resume", "results")
        with started(folder, *arguments, stdin=subprocess.DEVNULL, stdout=results):
            wait_for_files(folder, ["started-hold"])
            ran = append(folder, "jobs:echo", "a")
            assert ran.status == 2
            assert "another run appends to results" in ran.stderr
    assert append(folder, "jobs:echo", "a").status == 0


# --- runs that end early -----------------------------------------------------------------------------


def test_an_interrupted_run_says_how_to_continue(folder: Path) -> None:
    with (folder / "results").open("wb") as results:
        arguments = ("map", "jobs:hold", "a", "b", "hold", "c", "--workers", "1")
        with started(folder, *arguments, stdin=subprocess.DEVNULL, stdout=results) as process:
            wait_for_files(folder, ["started-hold"])
            process.terminate()
            _, stderr = process.communicate(timeout=PATIENCE)
    assert stderr.decode().splitlines() == [
        "trio-offload: interrupted by SIGTERM: 2 of 4 items finished, 2 left",
        "trio-offload: to continue, run the same command with --resume results >> results",
    ]
    assert append(folder, "jobs:echo", "a", "b", "hold", "c").values[2:] == ["hold", "c"]


def test_an_interrupted_run_that_resumed(folder: Path) -> None:
    write_results(folder, done("a"), done("x"))
    (folder / "items").write_text("a\nb\nhold\nc\n")
    with (folder / "results").open("ab") as results:
        arguments = ("map", "jobs:hold", "--lines", "items", "--workers", "1", "--resume", "results", "--summary")
        with started(folder, *arguments, stdin=subprocess.DEVNULL, stdout=results) as process:
            wait_for_files(folder, ["started-hold"])
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=PATIENCE)
    said = stderr.decode().splitlines()
    assert said[0] == "trio-offload: 1 job, 0 failed"
    assert said[3:] == [
        f"trio-offload: 1 item {LEFT_OUT}; 1 result of other items ignored",
        "trio-offload: interrupted by SIGINT: 1 of 3 items finished, 2 left",
        "trio-offload: to continue, run the same command again",
    ]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_disk_full_loses_nothing(folder: Path) -> None:
    """A file that may not grow further has half a line; the next run removes it and goes on."""
    (folder / "items").write_text("".join(f"{number}\n" for number in range(2000)))
    script = 'ulimit -f 100; trap "" XFSZ; exec "$@" >> results'
    command = ("sh", "-c", script, "sh", *COMMAND, "map", "jobs:echo", "--lines", "items", "--resume", "results")
    ran = subprocess.run(command, cwd=folder, stderr=subprocess.PIPE, timeout=PATIENCE, check=False)
    assert ran.returncode == 2
    assert b"cannot write to standard output: File too large" in ran.stderr
    size = (folder / "results").stat().st_size
    assert size in (50 * 1024, 100 * 1024)  # the unit of ulimit differs
    last = append(folder, "jobs:echo", "--lines", "items")
    assert last.status == 0
    assert sorted(map(int, last.values)) == list(range(2000))


@pytest.mark.slow
@pytest.mark.parametrize("order", [(), ("--unordered",)])
def test_killed_and_resumed_until_all_is_done(folder: Path, order: tuple[str, ...]) -> None:
    """SIGKILL at any moment: no item is lost, and none with ``ok`` is run again."""
    (folder / "logging_jobs.py").write_text(
        "import os, time\n"
        "def work(item):\n"
        "    with open(f'ran-{item}', 'a') as file: file.write('x')\n"
        "    time.sleep(0.002)\n"
        "    return item * 50\n"
    )
    items = [str(number) for number in range(600)]
    (folder / "items").write_text("".join(f"{item}\n" for item in items))
    arguments = ("map", "logging_jobs:work", "--lines", "items", "--resume", "results", "--workers", "2", *order)
    moments = random.Random(16)
    status = None
    for _ in range(60):
        finished = finished_in(folder)
        runs = {item: (folder / f"ran-{item}").stat().st_size for item in finished}
        with (folder / "results").open("ab") as results:
            with started(folder, *arguments, stdin=subprocess.DEVNULL, stdout=results) as process:
                enough = (folder / "results").stat().st_size + moments.randrange(200, 10_000)
                wait_for_growth(process, folder / "results", enough)
                process.kill()
                status = process.wait(PATIENCE)
        assert runs == {item: (folder / f"ran-{item}").stat().st_size for item in finished}
        if status == 0:
            break
        if moments.random() < 0.5:  # the system crashed too, and the last write is not whole
            size = (folder / "results").stat().st_size
            os.truncate(folder / "results", max(0, size - moments.randrange(0, 60)))
    assert status == 0
    assert Counter(json.loads(line)["item"] for line in (folder / "results").read_text().splitlines()) == Counter(items)


def wait_for_growth(process: subprocess.Popen[bytes], path: Path, size: int) -> None:
    """Wait until the file has the size, or the process has ended."""
    wait_until(lambda: process.poll() is not None or path.stat().st_size > size, "more results")


def finished_in(folder: Path) -> list[str]:
    """The items whose lines are whole."""
    if not (folder / "results").exists():
        return []
    lines = (folder / "results").read_text().splitlines(keepends=True)
    return [json.loads(line)["item"] for line in lines if line.endswith("}\n")]


@pytest.mark.slow
def test_resume_from_a_million_lines(folder: Path) -> None:
    with (folder / "results").open("w") as results, (folder / "items").open("w") as items:
        for number in range(1_000_000):
            item = f"folder/of/files/{number}.csv"
            results.write(f'{{"item": "{item}", "ok": true, "value": {{"rows": {number}}}, "seconds": 0.1, "tries": 1}}\n')
            items.write(f"{item}\n")
        items.write("new\nwait\n")
    arguments = ("map", "jobs:wait_for_file", "--lines", "items", "--resume", "results")
    with started(folder, *arguments, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["value"] == "new"
        used = peak_memory(process.pid)
        (folder / "go").touch()
        assert process.wait(PATIENCE) == 0
    assert used < 300 * 1024 * 1024  # 124 MB when this was written


def test_ctrl_c_while_the_file_is_read(folder: Path) -> None:
    os.mkfifo(folder / "results")
    with started(folder, "map", "jobs:echo", "a", "--resume", "results", stdin=subprocess.DEVNULL) as process:
        with (folder / "results").open("wb") as results:
            results.write(b'{"item": "b", "ok": true}\n')
            results.flush()
            wait_for_files(folder, ["imported-by"])
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(PATIENCE) == 130
    assert not is_running(process.pid)
