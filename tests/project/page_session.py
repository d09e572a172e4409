"""Run the fragments of a page one after the other, in one namespace and in one `trio.run`.

The test passes this text to `python -c`. So functions of a fragment have no file, and workers get
them by value, as from a prompt.
"""

import ast
import contextlib
import inspect
import json
import os
import sys
import traceback
from typing import Any, TextIO

import trio

import __main__
import trio_offload  # noqa: F401  # for the fragments


def without_guard(tree: ast.Module) -> ast.Module:
    """Drop the part of a whole program that would run it: it runs in a process of its own."""
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and "__name__" in ast.unparse(node.test))
        and not ast.unparse(node).startswith("trio.run(")
    ]
    return tree


def as_at_a_prompt(tree: ast.Module) -> ast.Module:
    """Keep the value of an expression at the end, to show it."""
    if tree.body and isinstance(last := tree.body[-1], ast.Expr):
        tree.body[-1] = ast.copy_location(ast.Assign([ast.Name("_", ast.Store())], last.value), last)
        ast.fix_missing_locations(tree)
    return tree


async def run(fragment: dict[str, Any]) -> None:
    # Tracebacks then have the lines of the page.
    source = "\n" * (fragment["line"] - 1) + fragment["text"]
    tree = as_at_a_prompt(without_guard(ast.parse(source)))
    code = compile(tree, fragment["page"], "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    __main__._ = None
    returned = eval(code, __main__.__dict__)
    if inspect.iscoroutine(returned):
        limit = fragment["marks"].get("cancel after")
        # A fragment may enter a scope that later ones are in, so usually there is none around it.
        with contextlib.nullcontext() if limit is None else trio.move_on_after(float(limit)):
            await returned
    if __main__._ is not None:
        print(repr(__main__._))


async def main(fragments: list[dict[str, Any]], results: TextIO) -> None:
    # Fragments enter a context here if a later one uses it.
    async with contextlib.AsyncExitStack() as __main__.page_stack:
        for fragment in fragments:
            error = None
            # Jobs print too, so the output is a part of the file.
            begin = os.fstat(1).st_size
            try:
                await run(fragment)
            except BaseException:
                error = traceback.format_exc()
            sys.stdout.flush()
            print(json.dumps({"begin": begin, "end": os.fstat(1).st_size, "error": error}), file=results, flush=True)


# Jobs write to the same descriptor.
os.dup2(os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
with open(sys.argv[1]) as file, open(sys.argv[2], "w") as results:
    trio.run(main, json.load(file), results)
