"""The four kinds of worker, and how a test asks for each: here, and in the programs that it starts.

The executable (``spawn``), forked off a template (``forkserver``), a fork of the program (``fork``), and the ``loop`` in Python.
The fixture ``kind`` runs a test with each.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from running import PROGRAMS, plain_environment

from trio_offload import WorkerType
from trio_offload._interpreter import locate

LOOP = locate.WorkerRuntime("", "", "a test wants the loop")
BY_THE_LOOP = PROGRAMS / "by_the_loop"


def use_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start loops in Python where this process would start the executable."""
    monkeypatch.setattr(locate, "runtime", lambda: LOOP)


def type_of(kind: str) -> WorkerType:
    """The type that a context asks for. A loop is what a worker of type SPAWN is without a shared libpython."""
    return WorkerType.SPAWN if kind == "loop" else WorkerType(kind)


def environment_of(kind: str = "spawn", *folders: Path, **changes: str | None) -> dict[str, str]:
    """The environment of a program that imports the jobs here. A ``loop`` is made of each worker; the other kinds are types."""
    path = [*folders, PROGRAMS.parent]
    if kind == "loop":
        path.insert(0, BY_THE_LOOP)
    return plain_environment(PYTHONPATH=os.pathsep.join(map(str, path)), **changes)
