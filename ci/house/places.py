"""What has one place: patterns of lines and the files where they may stand; signatures; twins."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from .findings import Finding
from .imports import without_tests
from .layers import Module, Tree


class Place(NamedTuple):
    """A pattern of code, and the homes where it may stand."""

    name: str
    pattern: str
    homes: str


PLACES = (
    Place("kind of worker", r"(==|!=|is|is not|in) \(?WorkerType\.", r"parent/(_options|_launch/select)|worker/.+"),
    Place("REPORT", r"Kind\.REPORT\b", r"parent/_worker/peer|worker/.+"),
    Place("add_note", r"def add_note\b", r"worker/_jobs/notes"),
    Place("memory limit", r"def _?memory_limit\b", r"parent/_process/oom|parent/_cgroups"),
    Place("trio in the worker", r"^\s*(import|from) trio\b", r"parent/.+"),
    Place("version of Python", r"sys\.version_info\s*[<>=!]", r"worker/_jobs/compat|parent/_interpreter/flags"),
    Place("unsafe", r"\bunsafe\b (\{|fn|impl|extern)", r"rust/os/.+|rust/python/raw/.+"),
)
# Functions that the plan wants once, wherever it is.
ONCE = ("is_interrupt", "check_count", "check_seconds")
# Parameters that stand together in one signature only, in _options.
OPTIONS = {"idle_timeout", "grace_period"}
# Files of the worker's loop that have no twin in Rust.
TWINLESS = {"__init__", "sentinel_process"}


def check(trees: dict[str, Tree]) -> Iterator[Finding]:
    for tree in trees.values():
        for module in tree.modules:
            yield from lines(module)
    yield from definitions_once(trees)
    yield from signatures(trees["parent"])
    yield from twins(trees)


def lines(module: Module) -> Iterator[Finding]:
    text = module.path.read_text()
    code = (without_tests(text) if module.tree == "rust" else text).splitlines()
    for name, pattern, homes in PLACES:
        if not re.fullmatch(homes, module.name):
            hits = [
                number
                for number, line in enumerate(code, 1)
                if re.search(pattern, line) and not line.lstrip().startswith(("#", "//"))
            ]
            if hits:
                place = f"{module.place}:{','.join(map(str, hits))}"
                yield Finding("place", f"{name}: {module.name}", place, f"{name} belongs to {homes}", len(hits))


def definitions_once(trees: dict[str, Tree]) -> Iterator[Finding]:
    found: defaultdict[str, list[Module]] = defaultdict(list)
    for tree in ("parent", "worker"):
        for module in trees[tree].modules:
            for name in re.findall(rf"def _?({'|'.join(ONCE)})\b", module.path.read_text()):
                found[name].append(module)
    for name, modules in found.items():
        if len(modules) > 1:
            for module in modules:
                yield Finding("twice", f"{name}: {module.name}", module.place, f"{name} is defined {len(modules)} times")


def signatures(tree: Tree) -> Iterator[Finding]:
    for module in tree.modules:
        if module.file == "_options":
            continue
        for node in ast.walk(ast.parse(module.path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                names = {argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]}
            elif isinstance(node, ast.ClassDef):
                names = {ast.unparse(field.target) for field in node.body if isinstance(field, ast.AnnAssign)}
            else:
                continue
            if names >= OPTIONS:
                place = f"{module.place}:{node.lineno}"
                yield Finding("options", node.name, place, f"{node.name} spells the options, which belong to _options")


def twins(trees: dict[str, Tree]) -> Iterator[Finding]:
    """A file of the loop is named like the Rust file, or folder, that does the same."""
    rust = {part for module in trees["rust"].modules for part in module.file.split("/")}
    for module in trees["worker"].modules:
        name = module.file.rpartition("/")[2]
        if module.unit == "_loop" and name.lstrip("_") not in rust and name not in TWINLESS:
            yield Finding("twin", name, module.place, f"{name} is not named like a module of the Rust worker")
