"""End to end: ``trio-offload doctor`` where all is well, and where something is missing or broken."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_support import Ran, run

import trio_offload


def report_of(ran: Ran) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(ran.stdout)
    return report


def executable_script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_all_is_well(tmp_path: Path) -> None:
    ran = run(tmp_path, "doctor")
    assert ran.stdout.endswith("\nNo problems found.\n")
    assert (ran.status, ran.stderr) == (0, "")


def test_as_json(tmp_path: Path) -> None:
    ran = run(tmp_path, "doctor", "--json")
    report = report_of(ran)
    assert (ran.status, ran.stderr) == (0, "")
    assert report["ok"] is True
    assert report["problems"] == []
    assert report["versions"]["trio-offload"] == trio_offload.__version__
    assert {"trio", "attrs", "outcome", "cbor2", "tblib", "tricycle"} <= report["versions"].keys()
    assert report["python"]["version"] == sys.version
    assert report["python"]["executable"] == sys.executable
    assert report["system"]["processors"] == os.cpu_count()
    assert os.path.isfile(report["worker executable"]["path"])
    assert os.path.isfile(report["libpython"]["path"])
    assert report["worker --info"]["worker"] == trio_offload.__version__
    assert report["trial call"]["result"] == "ok"
    assert report["trial call"]["cold start (ms)"] > report["trial call"]["warm call, median of 50 (ms)"] > 0


def test_a_missing_worker_executable(tmp_path: Path) -> None:
    ran = run(tmp_path, "doctor", "--json", env={"TRIO_OFFLOAD_WORKER": "/nosuch/worker"})
    assert (ran.status, ran.stderr) == (1, "")
    report = report_of(ran)
    (problem,) = report["problems"]  # once, though three questions meet it
    assert "/nosuch/worker" in problem["what"] + problem["remedy"]
    assert report["libpython"]["path"] is not None


def test_a_worker_executable_that_is_something_else(tmp_path: Path) -> None:
    script = executable_script(tmp_path / "worker", "#!/bin/sh\necho broken in two >&2\nexit 7\n")
    ran = run(tmp_path, "doctor", env={"TRIO_OFFLOAD_WORKER": str(script)})
    assert ran.status == 1
    assert f"PROBLEM: {script} --info exited with status 7 and printed: broken in two" in ran.stdout
    assert "PROBLEM: a trial call failed: " in ran.stdout
    assert "No problems found" not in ran.stdout


def test_a_worker_executable_that_may_not_be_executed(tmp_path: Path) -> None:
    (tmp_path / "worker").write_text("")
    ran = run(tmp_path, "doctor", env={"TRIO_OFFLOAD_WORKER": str(tmp_path / "worker")})
    assert ran.status == 1
    assert "chmod +x" in ran.stdout


def test_a_worker_of_another_version(tmp_path: Path) -> None:
    info = json.dumps({"worker": "0.0.1", "protocol": 99, "python": {"version": "2.7"}})
    script = executable_script(tmp_path / "worker", f"#!/bin/sh\nif [ $1 = --info ]; then echo '{info}'; fi\n")
    ran = run(tmp_path, "doctor", "--json", env={"TRIO_OFFLOAD_WORKER": str(script)})
    assert ran.status == 1
    said = " ".join(problem["what"] for problem in report_of(ran)["problems"])
    assert "0.0.1" in said
    assert "99" in said
    assert "2.7" in said


def test_a_question_that_fails_does_not_take_the_others_along(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, because a machine on which everything fails is hard to come by."""
    from trio_offload._cli import doctor
    from trio_offload._cli.probes import Probe, Problem

    def fails(report: Any) -> dict[str, Any]:
        report(Problem("seen before the failure", "do this"))
        raise OSError("there is no such thing\nhere")

    def answers(report: Any) -> dict[str, Any]:
        return {"answer": 42, "text": "\udc80", "nested": {"yes": True, "none": None}}

    monkeypatch.setattr(doctor, "PROBES", (Probe("first", fails, "ask somebody"), Probe("second", answers)))
    assert doctor.run_doctor(as_json=True) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["first"] == {"failed": "OSError: there is no such thing here"}
    assert report["second"]["answer"] == 42
    assert [problem["remedy"] for problem in report["problems"]] == ["do this", "ask somebody"]
    assert doctor.run_doctor(as_json=False) == 1
    text = capsys.readouterr().out
    assert "answer: 42" in text
    assert "PROBLEM: seen before the failure\n  do this\n" in text


@pytest.mark.parametrize("environment", [{"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}, {"HOME": "/nosuch", "PATH": ""}])
def test_poor_surroundings(tmp_path: Path, environment: dict[str, str]) -> None:
    ran = run(tmp_path, "doctor", env=environment)
    assert (ran.status, ran.stderr) == (0, "")
