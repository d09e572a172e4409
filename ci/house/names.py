"""Names: modules that a text mentions exist, ARCHITECTURE.md names each file, tests have short names.

Folders of tests mirror those of the parent, and files of tests have different names.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from .findings import Finding
from .imports import dotted
from .layers import ROOT, Module, Tree
from .prose import markdown

MAX_TEST_NAME = 60
# Folders of tests without a folder of the parent.
OTHER_TESTS = {"project", "requests", "typing", "vectors", "worker_side"}
# Where modules are named: in `py.import("…")`, `sys.modules[…]`, `monkeypatch.setattr("…")` and in prose.
TEXTS = ("parent-py", "worker-bin/src", "worker-bin/tests", "tests", "benchmarks", "ci", "examples", "docs")
SUFFIXES = {".py", ".rs", ".md", ".sh", ".toml", ""}
# Names of others in ARCHITECTURE.md, most of them rejected.
FOREIGN = {
    *(".symver", "LD_BIND_NOW", "MockClock", "PyConfig", "PyInitConfig", "PyInitConfig_SetStr", "RefCell", "RunVar"),
    *("TreeVar", "altair", "criterion", "ctrlc", "divan", "frozendict", "nix", "persistent_id", "rustix"),
}
DOTTED = re.compile(r"(?<![\w./-])trio_offload(?:_worker)?(?:\.[a-zA-Z_]\w*)+(?![\w/-])")
# Files, which are named like this too.
OTHER_NAMES = {"trio_offload.data", "trio_offload.py", "trio_offload.pth", "trio_offload_worker.py"}
# Metrics, events and attributes of spans (docs/telemetry.md).
TELEMETRY = re.compile(r"trio_offload\.(call|crash|item|job|outcome|worker)\b")


def check(trees: dict[str, Tree]) -> Iterator[Finding]:
    yield from module_names(trees)
    yield from architecture(trees)
    yield from layer_tables(trees)
    yield from folders_of_tests(trees)
    yield from unique_files_of_tests()
    yield from test_names()
    yield from links()


def texts() -> Iterator[Path]:
    for folder in TEXTS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SUFFIXES and path.is_file() and "__pycache__" not in path.parts:
                yield path
    yield from (ROOT / name for name in ("README.md", "ARCHITECTURE.md", "PROTOCOL.md", "pyproject.toml"))


def module_names(trees: dict[str, Tree]) -> Iterator[Finding]:
    known = {dotted(module): module for tree in ("parent", "worker") for module in trees[tree].modules}
    members = {name: top_level(module) for name, module in known.items()}
    for path in texts():
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            for name in DOTTED.findall(line) if path.name != "test_shape.py" else ():
                if name not in OTHER_NAMES and not TELEMETRY.match(name) and not resolves(name, members):
                    place = f"{path.relative_to(ROOT)}:{number}"
                    yield Finding("module-name", name, place, f"nothing has the name {name}")


def resolves(name: str, members: dict[str, set[str]]) -> bool:
    """True if the longest part of `name` that is a module has the next part."""
    module = name
    while module not in members:
        module = module.rpartition(".")[0]
    rest = name[len(module) + 1 :].split(".")
    return rest == [""] or rest[0] == "_" or rest[0].startswith("__") or rest[0] in members[module]


def top_level(module: Module) -> set[str]:
    """Return the names that the module defines or imports, outside of functions and classes."""
    names: set[str] = set()
    stack: list[ast.AST] = [ast.parse(module.path.read_text())]
    while stack:
        for node in ast.iter_child_nodes(stack.pop()):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                names.add(node.name)
                continue
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names.update(alias.asname or alias.name for alias in node.names)
            stack.append(node)
    return names


def architecture(trees: dict[str, Tree]) -> Iterator[Finding]:
    """ARCHITECTURE.md names each source file; its own names are those of files and of the sources."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    sources = "\n".join(path.read_text(errors="replace") for path in texts() if path.suffix != ".md")
    words = {word for word in re.findall(r"\w+", sources) if not re.match(r"[A-Z]\w*[a-z]", word)}
    words.update(re.findall(r"\b(?:class|struct|enum|trait|type) (\w+)", sources))
    for name in sorted(set(re.findall(r"`([\w.:]+?)(?:\(\))?`", text)) - FOREIGN):
        if not name.endswith((".py", ".rs", ".md")) and not words.issuperset(filter(None, re.split(r"\W+", name))):
            yield Finding("architecture", name, "ARCHITECTURE.md", f"{name} is not defined in any source")
    for tree in trees.values():
        for module in tree.modules:
            if not re.search(rf"(?<![\w-]){re.escape(module.path.name)}\b", text):
                yield Finding("architecture", module.name, module.place, "ARCHITECTURE.md does not name it")
    files = {path.name for path in [*texts(), *(ROOT / "worker-bin").rglob("*.rs")]}
    for name in sorted(set(re.findall(r"`(?:[\w./-]*/)?([\w-]+\.(?:py|rs))`", text)) - files):
        yield Finding("architecture", name, "ARCHITECTURE.md", f"names {name}, which does not exist")


def layer_tables(trees: dict[str, Tree]) -> Iterator[Finding]:
    """The tables of layers in ARCHITECTURE.md are those of `layers.py`."""
    written = re.findall(r"^\| \d+ \|(.*)\|$", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    rows = [set(re.findall(r"`(\w+)/?`", row)) for row in written]
    for tree in trees.values():
        for number in sorted(set(tree.rank.values())):
            units = {unit for unit, layer in tree.rank.items() if layer == number}
            if units not in rows:
                message = f"has no row with these units of {tree.name}: {', '.join(sorted(units))}"
                yield Finding("architecture", f"{tree.name} layer {number + 1}", "ARCHITECTURE.md", message)


def folders_of_tests(trees: dict[str, Tree], root: Path = ROOT) -> Iterator[Finding]:
    """A folder of tests has the name of a unit of the parent, and a row in ARCHITECTURE.md."""
    text = (root / "ARCHITECTURE.md").read_text()
    for name in sorted({path.parent.name for path in (root / "tests").glob("*/test_*.py")}):
        place = f"tests/{name}"
        if f"_{name}" not in trees["parent"].rank and name not in OTHER_TESTS:
            yield Finding("test-folder", name, place, f"the parent has no _{name}")
        if f"`{place}/`" not in text:
            yield Finding("architecture", place, "ARCHITECTURE.md", f"does not name {place}/")


def unique_files_of_tests(root: Path = ROOT) -> Iterator[Finding]:
    """Test files of one name cannot be collected together: pytest imports them by that name."""
    files: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted((root / "tests").rglob("test_*.py")):
        files[path.name].append(path.parent.name)
    for name, folders in files.items():
        if len(folders) > 1:
            yield Finding("test-file", name, f"tests/{folders[0]}/{name}", f"{name} is in {', '.join(folders)}")


def test_names() -> Iterator[Finding]:
    for folder, suffix, pattern in (
        ("tests", "py", r"^ *(?:async )?def (test_\w+)"),
        ("worker-bin", "rs", r"#\[test\]\s+(?:#\[.*\]\s+)*fn (\w+)"),
    ):
        for path in sorted((ROOT / folder).rglob(f"*.{suffix}")):
            for name in re.findall(pattern, path.read_text(), re.MULTILINE):
                if len(name) > MAX_TEST_NAME:
                    place = str(path.relative_to(ROOT))
                    yield Finding("test-name", name, place, f"{name} has {len(name)} characters, at most {MAX_TEST_NAME}")


def links() -> Iterator[Finding]:
    """Each relative link leads to a file, and to one of its headings if it names one."""
    for path in sorted(markdown()):
        for target, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", path.read_text()):
            other = path.parent / target if target else path
            if not other.exists() or (heading and heading not in anchors(other.read_text())):
                place = str(path.relative_to(ROOT))
                yield Finding("link", f"{place} {target}#{heading}", place, f"leads nowhere: {target}#{heading}")


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
