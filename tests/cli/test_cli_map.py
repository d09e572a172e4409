"""End to end: ``trio-offload map`` as a process, from its arguments and files to its output and its exit status."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import COMMAND, JOBS, PATIENCE, Ran, run, started, wait_for_files


def assert_one_line_of_complaint(ran: Ran, *parts: str) -> None:
    assert ran.status == 2
    assert ran.stdout == ""
    assert ran.stderr.startswith("trio-offload: error: ")
    assert ran.stderr.count("\n") == 1
    for part in parts:
        assert part in ran.stderr


# --- items -------------------------------------------------------------------------------------------


def test_arguments_come_back_in_order(folder: Path) -> None:
    ran = run(folder, "map", "jobs:echo", "c", "", "a b", "é", "--workers", "2")
    assert ran.lines == [{"item": item, "ok": True, "value": item} for item in ("c", "", "a b", "é")]
    assert ran.status == 0
    assert ran.stderr == ""


def test_options_may_stand_anywhere(folder: Path) -> None:
    assert run(folder, "map", "--workers", "1", "jobs:echo", "a").values == ["a"]
    assert run(folder, "map", "jobs:echo", "a", "--workers", "1", "b").values == ["a", "b"]
    assert run(folder, "map", "jobs:echo", "--workers=1", "a", "b").values == ["a", "b"]


def test_after_two_dashes_everything_is_an_item(folder: Path) -> None:
    assert run(folder, "map", "jobs:echo", "a", "--", "-x", "--", "--workers").values == ["a", "-x", "--", "--workers"]
    assert run(folder, "map", "--workers", "1", "--", "jobs:echo", "-1").values == ["-1"]


def test_lines_lose_their_line_breaks_only(folder: Path) -> None:
    (folder / "items").write_bytes(b"one\n\n  two \nthree\r\nlast")
    assert run(folder, "map", "jobs:echo", "--lines", "items").values == ["one", "", "  two ", "three", "last"]


def test_lines_of_standard_input(folder: Path) -> None:
    assert run(folder, "map", "jobs:echo", "--lines", "-", given=b"a\nb\n").values == ["a", "b"]


def test_no_lines_is_no_error(folder: Path) -> None:
    ran = run(folder, "map", "jobs:echo", "--lines", "-", given=b"")
    assert (ran.status, ran.stdout, ran.stderr) == (0, "", "")


def test_a_line_longer_than_every_buffer(folder: Path) -> None:
    long = b"x" * 3_000_000
    ran = run(folder, "map", "jobs:size", "--lines", "-", given=b"a\n" + long + b"\nbc\n")
    assert ran.values == [1, 3_000_000, 2]


def test_every_file_name_survives(folder: Path) -> None:
    """A name that is no UTF-8 reaches the function as Python's own surrogates, and the output as their escapes."""
    name = b"caf\xe9"
    Path(os.fsdecode(bytes(folder) + b"/" + name)).write_bytes(b"1234")
    ran = run(folder, "map", "os.path:getsize", "--lines", "-", given=name + b"\n")
    assert ran.lines == [{"item": "caf\udce9", "ok": True, "value": 4}]
    assert ran.stdout.isascii()


def test_json_lines(folder: Path) -> None:
    (folder / "items").write_text('\ufeff1\n\n   \n {"a": [1.5, "é"]} \nnull\n"text"\n')
    ran = run(folder, "map", "jobs:echo", "--json-lines", "items")
    assert ran.values == [1, {"a": [1.5, "é"]}, None, "text"]
    assert [line["item"] for line in ran.lines] == ran.values


def test_a_malformed_json_line_is_one_failed_item(folder: Path) -> None:
    ran = run(folder, "map", "jobs:echo", "--json-lines", "-", given=b'1\n\n{"a": \nNaN\n\xff\n' + b"[" * 100_000 + b"\n2\n")
    first, no_object, nan, no_text, deep, last = ran.lines
    assert (first["value"], last["value"]) == (1, 2)
    assert no_object["item"] == '{"a": '
    assert no_object["error"] == {
        "type": "JSONDecodeError",
        "message": "line 3 cannot be read as JSON: Expecting value at column 7",
        "traceback": None,
    }
    assert "line 4 cannot be read as JSON: NaN is not a JSON value" in nan["error"]["message"]
    assert "line 5 cannot be read as JSON" in no_text["error"]["message"]
    assert "line 6 cannot be read as JSON" in deep["error"]["message"]
    assert ran.status == 1


# --- values ------------------------------------------------------------------------------------------


def test_values_that_json_can_hold(folder: Path) -> None:
    values = {
        "large integer": 2**200,
        "lone surrogate": "\udc80",
        "tuple": [1, 2],
        "unicode": "é\u2028\n",
        "nested": {"a": [{"b": None}, True, 1.5]},
    }
    ran = run(folder, "map", "jobs:plain", *values)
    assert ran.values == list(values.values())
    assert ran.stdout.isascii()


def test_an_integer_larger_than_python_likes_to_print(folder: Path) -> None:
    ran = run(folder, "map", "jobs:plain", "larger than Python likes to print")
    assert f'"value": 1{"0" * 5000}, "seconds"' in ran.stdout


def test_any_other_value_is_shown_by_its_repr(folder: Path) -> None:
    shown = {
        "nan": "nan",
        "infinity in a list": "[-inf]",
        "keys that are no text": "{1: 2}",
        "keys that are no text, deep": "[{'a': ({None: 1},)}]",
        "set": "{1}",
        "bytes": "b'x'",
        "circular": "[[...]]",
        "deep": "<list whose repr raised RecursionError>",
        "hostile": "<Hostile whose repr raised SystemExit>",
    }
    ran = run(folder, "map", "jobs:odd", *shown)
    assert ran.lines == [{"item": name, "ok": True, "repr": text} for name, text in shown.items()]
    assert ran.status == 0


def test_what_jobs_print_goes_to_standard_error(folder: Path) -> None:
    ran = run(folder, "map", "jobs:noisy", "a")
    assert ran.values == ["a"]
    assert ran.stderr == "said by the job\nsaid by its child\n"


def test_a_job_cannot_eat_the_items(folder: Path) -> None:
    ran = run(folder, "map", "jobs:read_input", "--lines", "-", "--workers", "1", given=b"a\nb\n")
    assert ran.values == ["", ""]


# --- failures ----------------------------------------------------------------------------------------


def test_an_exception_is_its_items_failure(folder: Path) -> None:
    ran = run(folder, "map", "jobs:trouble", "a", "raise", "b")
    first, raised, last = ran.lines
    assert (first["value"], last["value"]) == ("a", "b")
    assert raised["item"] == "raise"
    assert raised["ok"] is False
    assert "value" not in raised
    assert raised["error"]["type"] == "ValueError"
    assert raised["error"]["message"] == "no\ngood"
    traceback = raised["error"]["traceback"]
    assert traceback.startswith("Traceback (most recent call last):\n")
    assert 'raise ValueError("no\\ngood")' in traceback
    assert "cli_items.py" not in traceback  # the reader is interested in their own code
    assert ran.status == 1


def test_whatever_a_job_raises(folder: Path) -> None:
    ran = run(folder, "map", "jobs:trouble", "exit", "interrupt", "hostile", "a", "--workers", "1")
    *failed, fine = ran.lines
    assert [(line["error"]["type"], line["error"]["message"]) for line in failed] == [
        ("SystemExit", "3"),
        ("KeyboardInterrupt", ""),
        ("HostileError", "<HostileError whose str raised RuntimeError>"),
    ]
    assert fine["ok"]
    assert ran.status == 1


@pytest.mark.parametrize(
    ("item", "said", "left"), [("segfault", "SIGSEGV", "in trouble"), ("_exit", "42", "Memory at last report")]
)
def test_a_dead_worker_is_its_items_failure(folder: Path, item: str, said: str, left: str) -> None:
    ran = run(folder, "map", "jobs:trouble", "a", item, "b", item, "c", "--workers", "2")
    assert [line["ok"] for line in ran.lines] == [True, False, True, False, True]
    for line in ran.lines:
        if not line["ok"]:
            assert line["error"]["type"] == "BrokenWorkerError"
            assert said in line["error"]["message"]
            assert f"jobs:trouble({item!r})" in line["error"]["message"]
            assert f"had run jobs:trouble({item!r})" in line["error"]["traceback"]
            # Of one that could still write, the line of Python.
            assert left in line["error"]["traceback"]
    assert ran.status == 1


def test_an_item_over_its_time_is_killed_and_the_rest_go_on(folder: Path) -> None:
    ran = run(folder, "map", "jobs:trouble", "a", "forever", "b", "--timeout", "1", "--workers", "1")
    first, killed, last = ran.lines
    assert (first["value"], last["value"]) == ("a", "b")
    assert killed["error"]["type"] == "WorkerTimeoutError"
    assert "jobs:trouble('forever')" in killed["error"]["message"]
    assert "1 second" in killed["error"]["message"]
    assert re.search(r'File ".*jobs\.py", line \d+ in trouble', killed["error"]["traceback"])
    assert ran.status == 1
    pid = int((folder / "started-forever").read_text())
    assert not Path(f"/proc/{pid}").exists()


def test_a_slow_import_is_not_charged_to_an_item(folder: Path) -> None:
    """A fresh worker imports the function before the clock starts: one item over time does not take the next along."""
    (folder / "slow_import.py").write_text("import time\ntime.sleep(1.5)\nfrom jobs import trouble\n")
    ran = run(folder, "map", "slow_import:trouble", "a", "forever", "b", "--timeout", "1", "--workers", "1")
    assert [line["ok"] for line in ran.lines] == [True, False, True]


def test_fail_fast_stops_at_the_first_failure(folder: Path) -> None:
    """The item that never ends is ahead of the failure; what was finished behind it is printed all the same."""
    ran = run(folder, "map", "jobs:trouble", "forever", "a", "raise", "b", "c", "--workers", "2", "--fail-fast")
    assert [(line["item"], line["ok"]) for line in ran.lines] == [("a", True), ("raise", False)]
    assert ran.status == 1


# --- the function ------------------------------------------------------------------------------------


def test_a_dotted_function(folder: Path) -> None:
    assert run(folder, "map", "jobs:Group.echo", "a").values == ["a"]
    (folder / "package").mkdir()
    (folder / "package" / "inner.py").write_text(JOBS)
    assert run(folder, "map", "package.inner:echo", "a").values == ["a"]


@pytest.mark.parametrize(
    ("function", "parts"),
    [
        ("nosuchmodule:f", ("No module named 'nosuchmodule'",)),
        ("jobs:nosuch", ("jobs", "no attribute 'nosuch'")),
        ("jobs:Group.nosuch", ("jobs:Group", "no attribute 'nosuch'")),
        ("jobs:not_a_function", ("not callable", "dict")),
        ("jobs:asynchronous", ("async function",)),
        ("raises:f", ("RuntimeError: not today",)),
        ("exits:f", ("SystemExit: 5",)),
        ("malformed:f", ("SyntaxError",)),
        ("crashes:f", ("cannot import crashes", "SIGSEGV")),
        ("jobs", ("MODULE:FUNCTION", "'jobs'")),
        ("jobs:", ("MODULE:FUNCTION",)),
        ("./jobs.py:echo", ("MODULE:FUNCTION", "name, not by its path")),
    ],
)
def test_a_function_that_cannot_be_called(folder: Path, function: str, parts: tuple[str, ...]) -> None:
    (folder / "raises.py").write_text("raise RuntimeError('not\\ntoday')")
    (folder / "exits.py").write_text("import sys; sys.exit(5)")
    (folder / "malformed.py").write_text("def f(:")
    (folder / "crashes.py").write_text("import ctypes; ctypes.string_at(0)")
    assert_one_line_of_complaint(run(folder, "map", function, "a"), *parts)


def test_a_bad_function_is_told_before_items_are_read(folder: Path) -> None:
    """Standard input stays open and silent: a command that read it first would wait for ever."""
    with started(folder, "map", "jobs:nosuch", "--lines", "-") as process:
        assert process.wait(PATIENCE) == 2


def test_the_function_is_imported_in_workers_only(folder: Path) -> None:
    with started(folder, "map", "jobs:pid", "a", "b", "c", "--workers", "2", stdin=subprocess.DEVNULL) as process:
        stdout, _ = process.communicate(timeout=PATIENCE)
    workers = {json.loads(line)["value"] for line in stdout.splitlines()}
    imported_by = {int(pid) for pid in (folder / "imported-by").read_text().split()}
    assert process.pid not in imported_by
    assert workers <= imported_by


def test_the_console_script_finds_the_working_directory_too(folder: Path) -> None:
    script = Path(sys.executable).with_name("trio-offload")
    assert script.exists(), "the package is not installed beside this Python"
    ran = subprocess.run([script, "map", "jobs:echo", "a"], cwd=folder, capture_output=True, timeout=PATIENCE, check=True)
    assert json.loads(ran.stdout)["value"] == "a"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="safe_path came with Python 3.11")
def test_a_safe_path_has_no_working_directory(folder: Path) -> None:
    ran = run(folder, "map", "jobs:echo", "a", env={"PYTHONSAFEPATH": "1"})
    assert_one_line_of_complaint(ran, "No module named 'jobs'")


# --- usage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "a command is missing"),
        (["nosuch"], "nosuch"),
        (["map"], "the function is missing"),
        (["map", "jobs:echo"], "items are missing"),
        (["map", "jobs:echo", "a", "--lines", "items"], "must come from one source"),
        (["map", "jobs:echo", "--json-lines", "items", "--lines", "items"], "must come from one source"),
        (["map", "jobs:echo", "--lines", "nosuch"], "cannot read nosuch: No such file"),
        (["map", "jobs:echo", "--json-lines", "."], "cannot read .: it is a directory"),
        (["map", "jobs:echo", "--lines"], "--lines"),
        (["map", "jobs:echo", "a", "--workers", "0"], "--workers"),
        (["map", "jobs:echo", "a", "--workers", "many"], "--workers"),
        (["map", "jobs:echo", "a", "--timeout", "0"], "--timeout"),
        (["map", "jobs:echo", "a", "--timeout", "nan"], "--timeout"),
        (["map", "jobs:echo", "a", "--nosuch"], "--nosuch"),
        (["doctor", "extra"], "extra"),
    ],
)
def test_wrong_usage(folder: Path, arguments: list[str], part: str) -> None:
    (folder / "items").write_text("a\n")
    assert_one_line_of_complaint(run(folder, *arguments), part)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission(folder: Path) -> None:
    (folder / "items").write_text("a\n")
    (folder / "items").chmod(0)
    assert_one_line_of_complaint(run(folder, "map", "jobs:echo", "--lines", "items"), "Permission denied")


@pytest.mark.parametrize(("closed", "said"), [("<&-", "standard input"), (">&-", "standard output")])
def test_a_closed_descriptor_that_is_needed(folder: Path, closed: str, said: str) -> None:
    ran = run_in_shell(folder, f'"$@" {closed}', "map", "jobs:echo", "--lines", "-")
    assert_one_line_of_complaint(ran, said)


def test_closed_descriptors_that_are_not_needed(folder: Path) -> None:
    """A job that prints to a descriptor that was closed must not print into whatever has its number now."""
    ran = run_in_shell(folder, '"$@" <&- 2>&-', "map", "jobs:noisy", "a", "b", "--workers", "1")
    assert (ran.status, ran.values, ran.stderr) == (0, ["a", "b"], "")


def run_in_shell(folder: Path, script: str, *arguments: str) -> Ran:
    ran = subprocess.run(
        ["sh", "-c", script, "sh", *COMMAND, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return Ran(ran.returncode, ran.stdout, ran.stderr)


def test_no_worker_at_all(folder: Path) -> None:
    ran = run(folder, "map", "jobs:echo", "a", "b", env={"TRIO_OFFLOAD_WORKER": "/nosuch/worker"})
    assert_one_line_of_complaint(ran, "no worker could be started", "/nosuch/worker")


def test_a_function_that_cannot_be_imported_any_more(folder: Path) -> None:
    """A few items fail for it, and then the command stops: a million items are not a million workers that cannot start."""
    (folder / "spoilt.py").write_text(
        "import os\nfrom pathlib import Path\n"
        "if Path('spoilt').exists(): os._exit(9)\n"
        "def f(item):\n"
        "    if item == 'spoil': Path('spoilt').touch(); os._exit(8)\n"
    )
    ran = run(folder, "map", "spoilt:f", "a", "spoil", *"bcdefghijklm", "--workers", "1")
    assert ran.status == 2
    assert ran.stderr.startswith("trio-offload: error: workers cannot be started any more: cannot import spoilt: ")
    assert ran.stderr.count("\n") == 1
    assert [line["ok"] for line in ran.lines] == [True] + [False] * 6
    assert "status 8" in ran.lines[1]["error"]["message"]
    assert "status 9" in ran.lines[2]["error"]["message"]


def test_help_and_version(folder: Path) -> None:
    import trio_offload

    ran = run(folder, "--version")
    assert (ran.status, ran.stdout) == (0, f"trio-offload {trio_offload.__version__}\n")
    for arguments in (["--help"], ["map", "--help"], ["doctor", "--help"]):
        ran = run(folder, *arguments)
        assert (ran.status, ran.stderr) == (0, "")
        assert ran.stdout.startswith("usage: trio-offload")
    assert "standard error" in run(folder, "map", "--help").stdout


# --- streaming ---------------------------------------------------------------------------------------


def test_a_line_is_there_before_the_input_ends(folder: Path) -> None:
    with started(folder, "map", "jobs:echo", "--lines", "-") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for item in ("a", "b"):
            process.stdin.write(f"{item}\n".encode())
            assert json.loads(process.stdout.readline())["value"] == item
        process.stdin.close()
        assert process.wait(PATIENCE) == 0


def test_the_head_of_the_line_holds_the_others_back(folder: Path) -> None:
    arguments = ("map", "jobs:wait_for_file", "a", "wait", "b", "--workers", "2")
    with started(folder, *arguments, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["value"] == "a"
        (folder / "go").touch()
        assert [json.loads(line)["value"] for line in process.stdout] == ["wait", "b"]
        assert process.wait(PATIENCE) == 0


def test_the_items_run_at_the_same_time(folder: Path) -> None:
    items = [f"hold-{number}" for number in range(3)]
    with started(folder, "map", "jobs:hold", *items, "--workers", "3", stdin=subprocess.DEVNULL):
        wait_for_files(folder, [f"started-{item}" for item in items])
