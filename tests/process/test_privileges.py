"""No call runs with more privileges, or with another root directory, than the program has when it makes the call."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from running import PROGRAMS, Ended, run

CHANGES = ["user", "user by ctypes", "group", "groups", "capability", "no_new_privs", "root", "namespace"]
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser has privileges to give up"),
    pytest.mark.parametrize("kind", ["spawn", "loop", "fork", "forkserver"]),
]


WITH_HIDEPID = [
    "unshare",
    "--mount",
    "--pid",
    "--fork",
    "sh",
    "-c",
    'mount -t proc -o hidepid=2 proc /proc && exec "$@"',
    "sh",
]


def run_program(*arguments: str | Path) -> Ended:
    return run([sys.executable, PROGRAMS / "privileges.py", *arguments])


@pytest.mark.parametrize("change", CHANGES)
def test_calls_after_a_change(tmp_path: Path, change: str, kind: str) -> None:
    """Neither idle workers from before nor those that a template has forked ahead run a call."""
    ended = run_program("call", change, kind, tmp_path)
    assert ended.lines() == ["kept True 1", "once True"], ended
    assert "Traceback" not in ended.stderr


def test_a_map_during_a_change(tmp_path: Path, kind: str) -> None:
    """Only the items on their way go to the worker from before; afterwards the next map has the new one too."""
    assert run_program("map", "groups", kind, tmp_path).lines() == ["mapped True", "mapped True"]


def test_actors_after_a_change(tmp_path: Path, kind: str) -> None:
    """An actor cannot go on in another worker: its next call is refused, or gets a new object."""
    assert run_program("actor", "groups", kind, tmp_path).lines() == ["refused True", "fresh True"]


def test_cancelling_without_privileges(tmp_path: Path, kind: str) -> None:
    """A program may not signal processes of a user that it was; they are ended all the same, also one that is stopped."""
    ended = run_program("cancel", "user", kind, tmp_path)
    assert ended.lines() == ["cancelled True", "children []"], ended
    assert ended.stderr == ""


def test_a_limit_for_another_user(tmp_path: Path, kind: str) -> None:
    """The kernel gives files below /proc to root after a change of the user. A fork inherits that; its sentinel needs none of them."""
    ended = run_program("limit", "user", kind, tmp_path)
    assert ended.lines() == ["limited True"], ended


def test_a_limit_for_another_user_with_hidepid(tmp_path: Path, kind: str) -> None:
    """A fork's sentinel cannot see the fork then, and would find that it takes no memory."""
    ended = run([*WITH_HIDEPID, sys.executable, PROGRAMS / "privileges.py", "limit", "user", kind, tmp_path])
    assert ended.lines() == ["refused True" if kind == "fork" else "limited True"], ended
