"""The three trees and their layers.

A module belongs to a unit: a folder, or a file at the top of its tree. A unit imports units of lower
layers; a module also imports modules of its own unit. Units of one layer do not import each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent

# Units, the lowest layer first. Also the units to come: _cluster.
LAYERS = {
    "parent": """
        _version _at_exit _sizes _clock _documented _slips _trace
        _statistics _report _crash _transport
        _process
        _exceptions _limiter _top
        _options _wait_graph
        _interpreter
        _pickling _pyinstaller
        _worker
        _launch _sync
        _forwarding _shared _connection
        _pool
        _map _streams
        _late_methods
        _context
        _default _cluster
        _actors
        _telemetry
        _api _lives connection telemetry
        __init__
        _cli
        __main__
    """,
    "worker": """
        __init__ _protocol
        _system
        _jobs
        _requests
        _loop from_worker handles
    """,
    "rust": """
        exit protocol
        error os
        transport process
        sentinel
        session launch
        python
        main lib
    """,
}


class Module(NamedTuple):
    """One source file of a tree."""

    tree: str
    path: Path
    file: str
    """The path inside its tree, without the suffix: `_context`, `_cli/run`, `os/fork`."""

    @property
    def unit(self) -> str:
        return self.file.partition("/")[0]

    @property
    def name(self) -> str:
        return f"{self.tree}/{self.file}"

    @property
    def place(self) -> str:
        return str(self.path.relative_to(self.path.parents[len(self.file.split("/")) + 1]))


class Tree(NamedTuple):
    """One of the two Python packages, or the Rust sources."""

    name: str
    modules: tuple[Module, ...]
    rank: dict[str, int]
    """Unit -> number of its layer."""


FOLDERS = {
    "parent": "parent-py/trio_offload",
    "worker": "parent-py/trio_offload_worker",
    "rust": "worker-bin/src",
}
PACKAGES = {"trio_offload": "parent", "trio_offload_worker": "worker"}


def load(name: str, root: Path = ROOT) -> Tree:
    folder = root / FOLDERS[name]
    modules = []
    for path in sorted(folder.rglob("*.rs" if name == "rust" else "*.py")):
        file = path.relative_to(folder).with_suffix("").as_posix()
        modules.append(Module(name, path, file))
    rows = enumerate(LAYERS[name].strip().splitlines())
    return Tree(name, tuple(modules), {unit: number for number, row in rows for unit in row.split()})
