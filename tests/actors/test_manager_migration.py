"""docs/migration.md, objects of a Manager: each row is tried in a job and in a task, beside the plain object."""

from __future__ import annotations

import copy
import types
from collections.abc import AsyncIterator
from typing import Any

import actor_jobs as jobs
import pytest
import trio
from lifeline import PATIENCE
from migration_support import Ported

import trio_offload
from trio_offload import WorkerContext, open_actor, share

PORTED = Ported("Objects of a Manager")
ports = PORTED.ports

OF_A_DICT = {
    "d[k], d[k] = v, del d[k]": ["it['a']", "it['c'] = 3", "del it['a']"],
    "k in d, len(d), iter(d), reversed(d)": ["'a' in it", "'z' in it", "len(it)", "list(iter(it))", "list(reversed(it))"],
    "get(k), setdefault(k, v), pop(k), popitem()": [
        "it.get('a')",
        "it.get('z', 5)",
        "it.setdefault('a', 5)",
        "it.setdefault('z', 5)",
        "it.pop('a')",
        "it.pop('z', 5)",
        "it.popitem()",
    ],
    "update(x), clear(), copy()": ["it.update({'a': 5}, b=6)", "it.clear()", "it.copy()"],
    "keys(), values(), items()": ["list(it.keys())", "list(it.values())", "list(it.items())"],
    "d1 \\| x, d1 \\|= x": ["it | {'c': 3}", "{'c': 3} | it", "it |= {'c': 3}"],
}
OF_A_LIST = {
    "l[i], l[i] = v, del l[i]": ["it[1]", "it[0:2]", "it[0] = 5", "it[0:2] = [7]", "del it[0]"],
    "v in l, len(l), reversed(l)": ["2 in it", "9 in it", "len(it)", "list(reversed(it))", "list(it)"],
    "l + x, l * n, l += x, l *= n": ["it + [4]", "it * 2", "2 * it", "it += [4]", "it *= 2"],
    "append(v), extend(x), insert(i, v)": ["it.append(4)", "it.extend([4, 5])", "it.insert(0, 9)"],
    "pop(i), remove(v), index(v), count(v)": ["it.pop()", "it.pop(0)", "it.remove(2)", "it.index(2)", "it.count(2)"],
    "reverse(), sort()": ["it.reverse()", "it.sort()", "it.sort(reverse=True)"],
}
ROWS = [
    *((dict, text, {"a": 1, "b": 2}) for texts in OF_A_DICT.values() for text in texts),
    *((list, text, [3, 1, 2]) for texts in OF_A_LIST.values() for text in texts),
]


def test_each_row_of_the_manager_has_a_test() -> None:
    assert sorted(PORTED.tried) == sorted(PORTED.rows())


@pytest.fixture
async def context() -> AsyncIterator[WorkerContext]:
    with trio.fail_after(PATIENCE):
        async with trio_offload.open_worker_context() as context:
            yield context


async def try_in(context: WorkerContext, hosted: Any, text: str) -> Any:
    """Return the value of an expression, or do what a statement says."""
    try:
        compile(text, "test", "eval")
    except SyntaxError:
        assert await context.run_sync(jobs.execute, hosted, text)
        return None
    return await context.run_sync(jobs.compute, hosted, text)


def expected(text: str, plain: Any) -> Any:
    try:
        compile(text, "test", "eval")
    except SyntaxError:
        jobs.execute(plain, text)
        return None
    return jobs.compute(plain, text)


@ports("Manager().dict(x)", *OF_A_DICT)
@ports("Manager().list(x)", *OF_A_LIST)
@pytest.mark.parametrize(("cls", "text", "first"), ROWS, ids=[text for _, text, _ in ROWS])
async def test_container_as_a_job_has_it(context: WorkerContext, cls: type, text: str, first: Any) -> None:
    plain = copy.copy(first)
    value = expected(text, plain)
    async with open_actor(cls, copy.copy(first)) as hosted:
        assert await try_in(context, hosted, text) == value
        assert await hosted.copy() == plain
    shared = copy.copy(first)
    async with share(shared) as handle:
        assert await try_in(context, handle, text) == value
    assert shared == plain


@pytest.mark.parametrize(
    ("cls", "name", "args"),
    [
        (dict, "__getitem__", ("a",)),
        (dict, "__setitem__", ("a", 5)),
        (dict, "__delitem__", ("a",)),
        (dict, "__contains__", ("a",)),
        (dict, "__len__", ()),
        (dict, "__or__", ({"c": 3},)),
        *(
            (dict, name, args)
            for name, args in (("get", ("a",)), ("setdefault", ("z", 1)), ("pop", ("a",)), ("popitem", ()))
        ),
        *((dict, name, args) for name, args in (("update", ({"z": 1},)), ("clear", ()), ("copy", ()), ("keys", ()))),
        *((dict, name, ()) for name in ("values", "items")),
        (list, "__getitem__", (1,)),
        (list, "__setitem__", (1, 5)),
        (list, "__delitem__", (1,)),
        (list, "__contains__", (1,)),
        (list, "__len__", ()),
        (list, "__add__", ([5],)),
        *((list, name, args) for name, args in (("append", (5,)), ("extend", ([5],)), ("insert", (0, 5)), ("pop", (0,)))),
        *((list, name, (2,)) for name in ("remove", "index", "count")),
        *((list, name, ()) for name in ("reverse", "sort")),
    ],
)
async def test_container_as_a_task_has_it(cls: type, name: str, args: tuple[Any, ...]) -> None:
    plain: Any = {"a": 1, "b": 2} if cls is dict else [3, 1, 2]
    async with open_actor(cls, copy.copy(plain)) as hosted:
        value = getattr(plain, name)(*args)
        got = await getattr(hosted, name)(*args)
        assert got == (list(value) if name in ("keys", "values", "items") else value)
        assert await hosted.copy() == plain


@ports("Manager(), shutdown()")
async def test_object_ends_with_its_block() -> None:
    async with open_actor(dict) as hosted:
        pass
    with pytest.raises(trio.ClosedResourceError):
        await hosted.get("a")
    assert hosted.statistics().pid is None


@ports("Manager().Namespace()", "n.x, n.x = v, del n.x")
async def test_namespace(context: WorkerContext) -> None:
    async with open_actor(types.SimpleNamespace) as namespace:
        await context.run_sync(jobs.execute, namespace, "it.x = 1; it.y = it.x + 1; del it.x")
        assert await namespace.get("y") == 2
        await namespace.set("x", 5)
        assert await context.run_sync(jobs.compute, namespace, "it.x") == 5
        await namespace.delete("x")
        assert await context.run_sync(jobs.compute, namespace, "hasattr(it, 'x')") is False


@ports("SyncManager.register(name, cls)")
async def test_class_of_the_user(context: WorkerContext) -> None:
    async with open_actor(jobs.Counter, 1) as counter:
        assert await context.run_sync(jobs.call, counter, "add", 2) == 3
        assert await counter.add(1) == 4


@ports("SyncManager.register(name, f, exposed=e)")
async def test_exposed_methods(context: WorkerContext) -> None:
    async with share(jobs.Table(), methods=["put"]) as table:
        await context.run_sync(jobs.call, table, "put", "a", 1)
        assert (await context.run_sync(jobs.catch, table, "fail"))[0] == "AttributeError"
