"""Contract: `ci/shape` finds what it says that it looks for, and its list of known findings only shrinks."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

CI = Path(__file__).resolve().parents[2] / "ci"


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package of the checks; it is no part of what is installed."""
    monkeypatch.syspath_prepend(str(CI))
    for part in ("findings", "imports", "layers", "names", "places", "prose", "sizes"):
        importlib.import_module(f"house.{part}")
    return sys.modules["house"]


@pytest.fixture
def trees(house: Any, tmp_path: Path) -> Callable[[dict[str, str]], Any]:
    """The trees of a project that has these files."""

    def made(files: dict[str, str]) -> Any:
        for folder in house.layers.FOLDERS.values():
            (tmp_path / folder).mkdir(parents=True)
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return {name: house.layers.load(name, tmp_path) for name in house.layers.FOLDERS}

    return made


def keys(findings: Iterable[Any]) -> set[tuple[str, str]]:
    return {finding.key for finding in findings}


def test_imports_upwards(house: Any, trees: Callable[[dict[str, str]], Any]) -> None:
    """Also inside of functions and for type checking."""
    project = trees(
        {
            "parent-py/trio_offload/__init__.py": "__version__ = '1'",
            "parent-py/trio_offload/_process/process.py": "def late():\n    from .._worker.worker import Worker",
            "parent-py/trio_offload/_worker/worker.py": "from .._process.process import late",
            "parent-py/trio_offload/_transport/channel.py": "if TYPE_CHECKING:\n    from .. import __version__",
            "parent-py/trio_offload/_transport/pages.py": "from .channel import Channel\nfrom .._sizes import show",
            "parent-py/trio_offload/_sizes.py": "",
            "parent-py/trio_offload/_stranger.py": "",
            "parent-py/trio_offload_worker/_loop/session.py": "import trio_offload._sizes",
            "worker-bin/src/os/mod.rs": "use crate::{process::family, exit};\n",
            "worker-bin/src/process/family.rs": "use crate::os;\n#[cfg(test)]\nmod tests {\n    use crate::session::Session;\n}\n",
            "worker-bin/src/session/mod.rs": "use crate::{process::family, os};\n",
            "worker-bin/src/exit.rs": "",
        }
    )
    assert keys(house.imports.check(project)) == {
        ("upward", "parent/_process/process -> _worker/worker"),
        ("upward", "parent/_transport/channel -> __init__"),
        ("upward", "worker/_loop/session -> parent/_sizes"),
        ("upward", "rust/os/mod -> process/family"),
        ("circle", "parent/_process/process"),
        ("circle", "parent/_worker/worker"),
        ("layer", "parent/_stranger"),
    }


def test_modules_that_the_import_loads(house: Any, trees: Callable[[dict[str, str]], Any]) -> None:
    project = trees(
        {
            "parent-py/trio_offload/__init__.py": "from ._api import run\nif TYPE_CHECKING:\n    from ._sizes import show",
            "parent-py/trio_offload/_api.py": "import trio_offload_worker._jobs.chunks\ndef f():\n    from . import _trace",
            "parent-py/trio_offload/_sizes.py": "",
            "parent-py/trio_offload/_trace.py": "",
            "parent-py/trio_offload_worker/__init__.py": "",
            "parent-py/trio_offload_worker/_jobs/__init__.py": "",
            "parent-py/trio_offload_worker/_jobs/chunks.py": "",
        }
    )
    known = {house.imports.dotted(module): module for tree in ("parent", "worker") for module in project[tree].modules}
    loaded = house.imports.loaded_by(known["trio_offload"], known)
    assert {module.name for module in loaded} == {
        "parent/__init__",
        "parent/_api",
        "worker/__init__",
        "worker/_jobs/__init__",
        "worker/_jobs/chunks",
    }


def test_names_in_texts(house: Any) -> None:
    members = {"trio_offload": {"run_sync"}, "trio_offload._worker": {"Worker"}}
    names = {"trio_offload.run_sync", "trio_offload._worker.Worker.kill", "trio_offload.__file__", "trio_offload._map.Map"}
    assert {name for name in names if not house.names.resolves(name, members)} == {"trio_offload._map.Map"}
    assert house.names.DOTTED.findall("a/trio_offload.x, `trio_offload_worker._loop.main`, trio_offload.data/") == [
        "trio_offload_worker._loop.main"
    ]
    assert house.names.anchors("# One\n## What `x` is, and why\ntext") == {"one", "what-x-is-and-why"}


def test_folders_of_tests(house: Any, trees: Callable[[dict[str, str]], Any], tmp_path: Path) -> None:
    for name in ("transport", "map", "worker_side", "strange", "programs"):
        (tmp_path / "tests" / name).mkdir(parents=True)
        (tmp_path / "tests" / name / ("jobs.py" if name == "programs" else "test_it.py")).touch()
    (tmp_path / "ARCHITECTURE.md").write_text("`tests/transport/` `tests/worker_side/` `tests/strange/`")
    assert keys(house.names.folders_of_tests(trees({}), tmp_path)) == {
        ("test-folder", "strange"),
        ("architecture", "tests/map"),
    }


def test_files_of_tests_with_one_name(house: Any, tmp_path: Path) -> None:
    for name in ("map/test_it.py", "sync/test_it.py", "sync/test_other.py", "map/jobs.py", "sync/jobs.py"):
        path = tmp_path / "tests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert keys(house.names.unique_files_of_tests(tmp_path)) == {("test-file", "test_it.py")}


def test_sizes_of_code_without_its_tests(house: Any, trees: Callable[[dict[str, str]], Any]) -> None:
    method = "    def long(self):\n" + "        self.a = 1\n" * 60
    slots = "class Channel:\n    __slots__ = ('a',)\n"
    many = "class Many:\n    def f(self):\n" + "".join(f"        self.a{number} = 1\n" for number in range(25))
    project = trees(
        {
            "parent-py/trio_offload/_worker/worker.py": f"class Worker:\n{method}",
            "parent-py/trio_offload/_transport/channel.py": slots,
            "parent-py/trio_offload_worker/_protocol/frames.py": many + "\n" * 400,
            "worker-bin/src/protocol/frame.rs": "use a;\n" * 400 + "#[cfg(test)]\nmod tests {\n}\n" * 2,
        }
    )
    assert keys(house.sizes.check(project)) == {
        ("function-lines", "parent Worker.long"),
        ("slots", "parent Worker"),
        ("attributes", "worker Many"),
        ("file-lines", "worker/_protocol/frames"),
    }


def test_things_that_have_one_place(house: Any, trees: Callable[[dict[str, str]], Any]) -> None:
    options = "idle_timeout=1, *, grace_period=2"
    project = trees(
        {
            "parent-py/trio_offload/_context.py": f"def scope({options}):\n    return kind is WorkerType.FORK",
            "parent-py/trio_offload/_options.py": f"def checked({options}):\n    return kind is WorkerType.FORK",
            "parent-py/trio_offload/_map/map.py": "def _is_interrupt(): ...",
            "parent-py/trio_offload/_cli/run.py": "def is_interrupt(): ...",
            "parent-py/trio_offload_worker/_loop/guard.py": "import trio",
            "parent-py/trio_offload_worker/_loop/session.py": "# import trio",
            "worker-bin/src/session/mod.rs": "fn f() { unsafe { g() } }",
            "worker-bin/src/os/fork.rs": "unsafe fn g() {}",
        }
    )
    assert keys(house.places.check(project)) == {
        ("place", "kind of worker: parent/_context"),
        ("options", "scope"),
        ("twice", "is_interrupt: parent/_map/map"),
        ("twice", "is_interrupt: parent/_cli/run"),
        ("place", "trio in the worker: worker/_loop/guard"),
        ("twin", "guard"),
        ("place", "unsafe: rust/session/mod"),
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("some.py", '"""It says\nwhat it does. Not more."""\nx = 1  # A reason.\n\n# Two\n# lines.\n'),
        ("some.rs", "//! It says\n//! what it does. Not more.\nlet x = 1; // A reason.\n\n// Two\n// lines.\n"),
        ("some.md", "It says\nwhat it does. Not more.\n\n```\ncode\n```\n| table |\nA reason.\n\n* Two\n  lines.\n"),
    ],
)
def test_sentences_of_prose(house: Any, tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    sentences = [sentence for paragraph in house.prose.read(path) for sentence in paragraph.sentences()]
    assert sentences == ["It says what it does.", "Not more.", "A reason.", "Two lines."]


def test_known_findings_only_shrink(house: Any, tmp_path: Path) -> None:
    """Findings that have moved keep their number; none may be new, none larger."""
    listed, findings = tmp_path / "shape.txt", house.findings

    def found(**amounts: float) -> Any:
        return findings.merged(findings.Finding("lines", name, "a.py:1", "long", size) for name, size in amounts.items())

    findings.write(listed, found(a=500, b=420))
    # As a merge of two branches may leave it.
    listed.write_text(listed.read_text() + "lines\tb\t430\n")
    recorded = findings.read(listed)
    assert recorded == {("lines", "a"): 500, ("lines", "b"): 430}
    for now, fails, grows in (
        (found(a=500, b=420), False, False),
        (found(a=501, b=420), True, True),
        (found(a=500), True, False),
        (found(a=500, c=425), True, False),
        (found(a=500, c=431), True, True),
        (found(a=500, b=420, c=401), True, True),
    ):
        assert (bool(list(findings.differences(now, recorded))), bool(list(findings.growth(now, recorded)))) == (
            fails,
            grows,
        )
