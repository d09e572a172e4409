"""Sizes of files, classes and functions, and the names that a class assigns on `self`."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from .findings import Finding
from .imports import without_tests
from .layers import Module, Tree

MAX_FILE, MAX_CLASS, MAX_FUNCTION, MAX_ATTRIBUTES = 400, 300, 60, 24
# Instances of these are many, or on the way of each call.
SLOTTED = {"Peer", "Worker", "Sender", "Channel"}


def check(trees: dict[str, Tree]) -> Iterator[Finding]:
    for tree in trees.values():
        for module in tree.modules:
            text = module.path.read_text()
            if tree.name == "rust":
                text = without_tests(text)
            else:
                yield from definitions(module, ast.parse(text), "")
            lines = len(text.splitlines())
            if lines > MAX_FILE:
                yield Finding("file-lines", module.name, module.place, f"{lines} lines, at most {MAX_FILE}", lines)


def definitions(module: Module, node: ast.AST, prefix: str) -> Iterator[Finding]:
    """Yield what is wrong with the classes and functions in `node`."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from definitions(module, child, prefix)
            continue
        name, place = prefix + child.name, f"{module.place}:{child.lineno}"
        subject = f"{module.tree} {name}"
        is_class = isinstance(child, ast.ClassDef)
        limit = MAX_CLASS if is_class else MAX_FUNCTION
        lines = (child.end_lineno or child.lineno) - child.lineno + 1
        if lines > limit:
            rule = "class-lines" if is_class else "function-lines"
            yield Finding(rule, subject, place, f"{name} has {lines} lines, at most {limit}", lines)
        if isinstance(child, ast.ClassDef):
            count = len(attributes(child))
            if count > MAX_ATTRIBUTES:
                message = f"{name} has {count} attributes, at most {MAX_ATTRIBUTES}"
                yield Finding("attributes", subject, place, message, count)
            if module.tree == "parent" and child.name in SLOTTED and not has_slots(child):
                yield Finding("slots", subject, place, f"{name} has no __slots__")
        yield from definitions(module, child, f"{name}.")


def attributes(node: ast.ClassDef) -> set[str]:
    """Return the names that its methods assign on `self`."""
    return {
        inner.attr
        for inner in ast.walk(node)
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store)
        if isinstance(inner.value, ast.Name) and inner.value.id == "self"
    }


def has_slots(node: ast.ClassDef) -> bool:
    """True for a class with `__slots__`, also one that attrs gives them to."""
    written = any(
        isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__slots__" for statement in node.body
    )
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    return written or any(text.startswith("attrs.") and "slots=False" not in text for text in decorators)
