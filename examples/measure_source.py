"""Measure Python source files: a function for ``trio-offload map``, and pure CPU work.

    find . -name '*.py' | trio-offload map --lines - measure_source:measure

Run by itself, it measures the files that it is given, in parallel, and shows the most complex ones:

    python measure_source.py *.py
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import trio

import trio_offload

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
    functions = classes = decisions = deepest = 0
    # A list and not a recursion: generated code nests deeper than Python's stack.
    waiting: list[tuple[ast.AST, int]] = [(ast.parse(source, path), 0)]
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


async def main(paths: list[str]) -> None:
    complexity: dict[str, int] = {}

    async def measure_one(path: str) -> None:
        # As many at once as there are processors; the others wait their turn.
        complexity[path] = (await trio_offload.run_sync(measure, path))["complexity"]

    async with trio.open_nursery() as nursery:
        for path in paths:
            nursery.start_soon(measure_one, path)

    for path in sorted(complexity, key=complexity.__getitem__, reverse=True)[:10]:
        print(f"{complexity[path]:6} {path}")


if __name__ == "__main__":
    trio.run(main, sys.argv[1:] or [__file__])
