"""The pages of the reference and the public interface are the same names."""

from __future__ import annotations

import re
from pathlib import Path

import trio_offload
import trio_offload_worker
from trio_offload import connection
from trio_offload_worker import from_worker

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
_DIRECTIVE = re.compile(r"^\.\. (currentmodule|autofunction|autoclass|autoexception|autodata):: (\S+)$", re.MULTILINE)


def documented() -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for page in sorted(REFERENCE.glob("*.md")):
        module = ""
        for directive, name in _DIRECTIVE.findall(page.read_text()):
            if directive == "currentmodule":
                module = name
            else:
                names.setdefault(module, []).append(name)
    return names


def test_reference_has_each_public_name_once() -> None:
    names = documented()
    assert sorted(names["trio_offload"]) == sorted(trio_offload.__all__)
    assert sorted(names["trio_offload.connection"]) == sorted(connection.__all__)
    assert sorted(names["trio_offload_worker.from_worker"]) == sorted(from_worker.__all__)
    assert set(names["trio_offload_worker"]) <= set(dir(trio_offload_worker))
