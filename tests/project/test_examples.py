"""End to end: the programs in ``examples/`` run by themselves and print what they promise."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_support import COMMAND, PATIENCE

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def run_example(name: str, folder: Path, *arguments: str) -> str:
    """Run a copy of the example, as a user would who has only that file, and return what it printed."""
    shutil.copy(EXAMPLES / name, folder)
    ran = subprocess.run(
        [sys.executable, name, *arguments], cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def test_each_example_has_its_test_here() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert f"test_{path.stem}" in globals()


def test_measure_source(tmp_path: Path) -> None:
    """By itself and under the command it says the same; only the command has figures and a traceback."""
    (tmp_path / "small.py").write_text("class C:\n    def f(x):\n        return [y for y in x if y and y > 1]\n")
    (tmp_path / "no_python.py").write_text("def f(:\n")
    alone = [
        json.loads(line) for line in run_example("measure_source.py", tmp_path, "small.py", "no_python.py").splitlines()
    ]
    assert alone[0]["value"] == {"lines": 3, "functions": 1, "classes": 1, "nesting": 2, "complexity": 3}
    assert alone[1]["error"]["type"] == "SyntaxError"
    ran = subprocess.run(
        [*COMMAND, "map", "measure_source:measure", "small.py", "no_python.py"],
        cwd=tmp_path,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    mapped = [json.loads(line) for line in ran.stdout.splitlines()]
    del mapped[1]["error"]["traceback"]
    for line in mapped:
        for figure in ("seconds", "peak_rss", "pid", "tries"):
            del line[figure]
    assert mapped == alone
    assert ran.returncode == 1


def test_log_pipeline(tmp_path: Path) -> None:
    said = run_example("log_pipeline.py", tmp_path).splitlines()
    assert [line.partition(" of ")[2] for line in said[:-1]] == [f"{count} succeeded" for count in (6665, 6666, 6665)]
    assert re.fullmatch(r"lines: 20000 strange: 4 errors: 204", said[-1])


def test_trainer(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "trainer.py", tmp_path)
    ran = subprocess.run(
        [sys.executable, "trainer.py"], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert ran.stdout == "finished: y = 2.0 x + 1.0\nstopped early: y = 2.0 x + 1.0\n"
    shown = ran.stderr.splitlines()
    assert all(re.fullmatch(r"step \d+ of \d+, loss \d\.\d{4}", line) for line in shown)
    first = [line for line in shown if " of 2000," in line]
    assert first[-1].startswith("step 2000 ")
    assert len(shown) > len(first)


def test_trio_service(tmp_path: Path) -> None:
    said = run_example("trio_service.py", tmp_path).splitlines()
    assert r"[\w.]+@[\w.]+: found ['somebody@example.org', 'nobody@example.net']" in said
    assert r"\d{4}-\d\d-\d\d: found ['2024-02-29', '2024-03-01']" in said
    assert "(a+)+b: given up after 2 seconds" in said
    assert "the event loop was never busy" in said[-1]


def test_rate_limit(tmp_path: Path) -> None:
    """A window of 0.2 seconds has the burst, the tokens of that time, and what four jobs had in their hands before."""
    *clients, last = run_example("rate_limit.py", tmp_path).splitlines()
    assert sorted(line.partition(":")[0] for line in clients) == [f"client {number}" for number in range(4)]
    assert all(len(line.split(", ")) == 10 for line in clients)
    found = re.fullmatch(r"40 requests of 4 jobs in [1-4] workers; at most (\d+) within 0.2 seconds", last)
    assert found is not None
    assert int(found[1]) <= 5 + 11 + 4


def test_crawler(tmp_path: Path) -> None:
    lines = run_example("crawler.py", tmp_path).splitlines()
    assert lines == ["/broken killed the parser (SIGABRT), which starts again", "6 pages, 9 links"]


def test_service(tmp_path: Path) -> None:
    """The session of docs/services.md, then a full house, then SIGTERM while a request runs."""
    shutil.copy(EXAMPLES / "service.py", tmp_path)
    page = (ROOT / "docs" / "services.md").read_text()
    session = re.findall(r"^> (.*)\n(.*)$", page, re.MULTILINE)
    assert len(session) == 4
    command = [sys.executable, "service.py"]
    with (
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as service,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(service.kill)
        assert service.stdout is not None
        port = int(service.stdout.readline().removeprefix("listening on port "))

        @contextlib.contextmanager
        def connect() -> Iterator[Any]:
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
                with connection.makefile("rw") as client:
                    yield client

        with connect() as client:
            for request, answer in session:
                assert ask(client, request) == answer
        clients = [stack.enter_context(connect()) for _ in range(4)]
        for client in clients:
            client.write("primes 1000000000\n")
            client.flush()
        said = sorted(client.readline().strip() for client in clients)
        assert said == ["busy, try again later"] + ["given up after 2 seconds"] * 3
        with connect() as client:
            client.write("primes 200000\n")
            client.flush()
            with connect() as other:
                assert "refused=1" in ask(other, "metrics"), "the request before it has been read"
            service.send_signal(signal.SIGTERM)
            assert client.readline().strip() in ("17984", "given up after 2 seconds")
        for client in clients:
            assert client.readline() == "", "the service has ended the connection"
        out, errors = service.communicate(timeout=PATIENCE)
    assert (service.returncode, errors) == (0, "")
    assert re.fullmatch(r"stopped: returned=\d timed_out=\d refused=1\n", out)


def ask(client: Any, request: str) -> str:
    client.write(request + "\n")
    client.flush()
    return str(client.readline()).strip()


def test_crash_and_carry_on(tmp_path: Path) -> None:
    said = run_example("crash_and_carry_on.py", tmp_path)
    assert "SIGSEGV" in said
    assert "endless loop: cancelled" in said
    assert "1229 primes below 10000" in said
    first, last = re.findall(r"(?:this|running,) process (?:is )?(\d+)", said)
    assert first == last


def test_keep_state(tmp_path: Path) -> None:
    said = run_example("keep_state.py", tmp_path)
    assert "11 squared is 121" in said
    assert "12 jobs, 3 workers one after another" in said


def test_leaky_parser(tmp_path: Path) -> None:
    said = run_example("leaky_parser.py", tmp_path, "run.json").splitlines()
    # The files 0 to 23 but for the bad one, and a half of each.
    assert said[0] == f"23 of 24 files parsed, the sum is {sum(range(24)) - 7 + 23 / 2}"
    assert re.fullmatch(r"07\.csv was given up: it had taken [\d,]+ bytes when it was ended", said[1])
    workers, largest = map(int, re.findall(r"\d+", said[2]))
    # 16 MB are lost with each file, so a worker is good for seven at most, and passes the ceiling by one file.
    assert workers >= 4
    assert largest < 100 + 40
    events = json.loads((tmp_path / "run.json").read_text())
    outcomes = [event["args"]["outcome"] for event in events if event.get("cat") == "job"]
    assert sorted(outcomes) == ["WorkerMemoryError"] + ["ok"] * 23
    assert len({event["tid"] for event in events if event["name"] == "thread_name"}) >= workers


def test_many_files(tmp_path: Path) -> None:
    """The second run does what the first one left, and the files that failed."""
    first = run_example("many_files.py", tmp_path, "data", "1500").splitlines()
    assert first == ["2000 files, 2000 to do", "stopped after 1500"]
    begin, *said = run_example("many_files.py", tmp_path, "data").splitlines()
    assert re.fullmatch(r"2000 files, 50[0-4] to do", begin)
    printed = (EXAMPLES / "many_files.py").read_text().partition("ended: ")[2].partition("\n\n")[0].splitlines()
    assert said == ["ended: " + printed[0], *(line[4:] for line in printed[1:])]
    lines = [json.loads(line) for line in (tmp_path / "data" / "results.jsonl").read_text().splitlines()]
    finished = [line["file"] for line in lines if line["ok"]]
    assert len(set(finished)) == len(finished) == 1996
    crashes = [json.loads(file.read_text()) for file in (tmp_path / "data" / "crashes").iterdir()]
    assert any("in parse" in crash["stack"] for crash in crashes)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_guarded(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") < 100
    assert 'if __name__ == "__main__":' in text
