"""Measure Python source files: a function for ``trio-offload map``, and pure CPU work.

    find . -name '*.py' | trio-offload map --lines - measure_source:measure

It imports nothing of trio-offload: any function of one argument will do. Run by itself, it measures
its arguments one after another in this process. It prints the same lines, without figures:

    python measure_source.py *.py
"""

from __future__ import annotations

import ast
import json
import sys
import warnings
from pathlib import Path

# What opens a block of its own; the number of them around a line is how deep it is nested.
BLOCKS = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.If,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.With,
    ast.AsyncWith,
    ast.Try,
)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
# Where the path through the code forks: McCabe's number counts these.
DECISIONS = (
    ast.If,
    ast.IfExp,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.comprehension,
    ast.Assert,
)


def measure(path: str) -> dict[str, int]:
    """Parse a source file and count. A file that is not Python raises :class:`SyntaxError`."""
    source = Path(path).read_bytes()  # bytes: the parser knows about encoding declarations
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about somebody else's code
        tree = ast.parse(source, path)
    functions = classes = decisions = deepest = 0
    # A list and not a recursion: generated code nests deeper than Python's stack.
    waiting: list[tuple[ast.AST, int]] = [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        functions += isinstance(node, FUNCTIONS)
        classes += isinstance(node, ast.ClassDef)
        if isinstance(node, DECISIONS):
            decisions += 1
        elif isinstance(node, ast.BoolOp):
            decisions += len(node.values) - 1  # each "and" and "or" is a fork too
        if isinstance(node, BLOCKS):
            depth += 1
            deepest = max(deepest, depth)
        waiting.extend((child, depth) for child in ast.iter_child_nodes(node))
    return {
        "lines": source.count(b"\n"),
        "functions": functions,
        "classes": classes,
        "nesting": deepest,
        "complexity": decisions + functions,
    }


def main(paths: list[str]) -> None:
    for path in paths:
        line: dict[str, object] = {"item": path}
        try:
            line |= {"ok": True, "value": measure(path)}
        except Exception as error:
            line |= {"ok": False, "error": {"type": type(error).__name__, "message": str(error)}}
        print(json.dumps(line))


if __name__ == "__main__":
    main(sys.argv[1:] or [__file__])
