"""Imports: no unit imports upwards, no module imports itself by a circle, the worker knows no parent."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from .findings import Finding
from .layers import PACKAGES, Module, Tree

# Modules of ours that `import trio_offload` may load. 39 took 24 ms after Trio, an empty one takes 0.2 ms, and 30 ms
# are the limit. 73 took 1.4 % fewer instructions than those 39, because parts of them wait until they are needed.
# 70 were left when the first map imported `_map/`; 6 came when starts, handshakes and sending got files of their own.
# Two more: docstrings of attributes, methods of contexts that few programs use; 0.1 ms each.
MAX_LOADED = 79


def check(trees: dict[str, Tree]) -> Iterator[Finding]:
    """Imports inside of functions and of `TYPE_CHECKING` blocks count like the rest."""
    known = {dotted(module): module for tree in ("parent", "worker") for module in trees[tree].modules}
    for tree in trees.values():
        graph: dict[Module, set[Module]] = {module: set() for module in tree.modules}
        for module in tree.modules:
            if module.unit not in tree.rank:
                yield Finding("layer", module.name, module.place, f"{module.unit} has no layer in ci/house/layers.py")
            uses = rust_uses(module, tree) if tree.name == "rust" else python_imports(module, known)
            for target, line in uses:
                place = f"{module.place}:{line}"
                if target.tree == module.tree:
                    graph[module].add(target)
                    if module.unit != target.unit and tree.rank.get(module.unit, 99) <= tree.rank.get(target.unit, -1):
                        subject = f"{module.name} -> {target.file}"
                        yield Finding("upward", subject, place, f"{module.file} must not import {target.file}")
                elif module.tree == "worker":
                    yield Finding(
                        "upward", f"{module.name} -> {target.name}", place, "the worker must not import the parent"
                    )
        for group in circles(graph) if tree.name != "rust" else ():
            for module in group:
                others = ", ".join(other.file for other in sorted(graph[module].intersection(group)))
                message = f"is one of a circle of {len(group)}: it imports {others}"
                yield Finding("circle", module.name, module.place, message)
    loaded = loaded_by(known["trio_offload"], known)
    if len(loaded) > MAX_LOADED:
        message = f"loads {len(loaded)} modules, at most {MAX_LOADED}"
        yield Finding("import-budget", "import trio_offload", known["trio_offload"].place, message, len(loaded))


def loaded_by(start: Module, known: dict[str, Module]) -> set[Module]:
    """Return the modules that an import of `start` loads, with the packages that they are in."""
    loaded: set[Module] = set()
    stack = [start]
    while stack:
        module = stack.pop()
        if module not in loaded:
            loaded.add(module)
            stack += (target for target, _ in python_imports(module, known, at_once=True))
            stack += (known[parent] for parent in [dotted(module).rpartition(".")[0]] if parent)
    return loaded


def dotted(module: Module) -> str:
    package = next(package for package, tree in PACKAGES.items() if tree == module.tree)
    return ".".join([package, *module.file.split("/")]).removesuffix(".__init__")


def python_imports(module: Module, known: dict[str, Module], *, at_once: bool = False) -> Iterator[tuple[Module, int]]:
    """Yield each import of a module in `known`, with its line. `at_once`: those that its own import carries out."""
    name = dotted(module)
    package = name.split(".") if module.path.name == "__init__.py" else name.split(".")[:-1]
    tree = ast.parse(module.path.read_text())
    for node in outside_functions(tree) if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            targets = [".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names]
        else:
            continue
        for target in targets:
            while target and target not in known:
                target = target.rpartition(".")[0]
            if target and target != name:
                yield known[target], node.lineno


def outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        is_for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not is_for_types and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child
            yield from outside_functions(child)


def rust_uses(module: Module, tree: Tree) -> Iterator[tuple[Module, int]]:
    """Yield the module of each path from the crate's root, with its line."""
    known = {other.file.removesuffix("/mod"): other for other in tree.modules}
    text = without_tests(module.path.read_text())
    for found in re.finditer(r"\b(?:crate|trio_offload_worker)::(?:([\w:]+)|\{([^;]*?)\};)", text):
        grouped = re.sub(r"\{.*?\}", "", found[2] or "", flags=re.DOTALL)
        for path in [found[1]] if found[1] else re.findall(r"(?:^|,)\s*([\w:]+)", grouped):
            name = path.replace("::", "/")
            while name and name not in known:
                name = name.rpartition("/")[0]
            if name and known[name] is not module:
                yield known[name], text.count("\n", 0, found.start()) + 1


def without_tests(text: str) -> str:
    """Rust's source up to the tests at its end."""
    return re.split(r"#\[cfg\(.*\btest\b.*\]\n(?:#.*\n)*mod ", text)[0]


def circles(graph: dict[Module, set[Module]]) -> Iterator[list[Module]]:
    """Yield the groups of modules that reach each other."""

    def reached(start: Module) -> set[Module]:
        seen: set[Module] = set()
        stack = [start]
        while stack:
            for target in graph[stack.pop()] - seen:
                seen.add(target)
                stack.append(target)
        return seen

    closure = {module: reached(module) for module in graph}
    done: set[Module] = set()
    for module in graph:
        if module in closure[module] and module not in done:
            group = sorted(other for other in closure[module] if module in closure[other])
            done.update(group)
            yield group
