"""How often the privileges of this program are looked at, and by whom."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
import trio

import trio_offload
from trio_offload._process import privileges as _privileges
from trio_offload._process.privileges import Grant, Privileges, current_grant

INTERVAL = 0.1
WORKERS = 200


class Looks:
    """What a look finds, in each thread, and who has looked."""

    def __init__(self) -> None:
        self.found = _privileges.current(anew=True)
        self.of_thread: dict[int, Privileges] = {}
        self.made: list[tuple[int, bool]] = []

    def current(self, *, anew: bool = False) -> Privileges:
        thread = threading.get_ident()
        self.made.append((thread, anew))
        return self.of_thread.get(thread, self.found)

    def count(self) -> int:
        count = len(self.made)
        self.made.clear()
        return count

    def change(self) -> None:
        """By means that Python does not see."""
        self.found = attrs.evolve(self.found, more_groups=(*self.found.more_groups, 12345))


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Looks]:
    looks = Looks()
    monkeypatch.setattr(_privileges, "current", looks.current)
    monkeypatch.setattr(_privileges._of_thread, "grant", None)
    yield looks
    _privileges._grants.expire()


def in_a_thread(function: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def test_one_look_in_an_interval_serves_all_workers(looks: Looks) -> None:
    now = 1000.0
    workers = [current_grant(now, anew=True) for _ in range(WORKERS)]
    assert looks.count() == WORKERS, "what a worker inherits at its start is looked at"
    for tick in range(1, 11):
        for number, grant in enumerate(workers):
            moment = now + INTERVAL * (tick + number / WORKERS)
            if moment >= grant.check_at:
                workers[number] = current_grant(moment)
        assert looks.count() == 1
    assert len(set(map(id, workers))) == 1


@pytest.mark.parametrize("age", [0.0, 0.05, 0.0999])
def test_a_look_is_good_for_an_interval(looks: Looks, age: float) -> None:
    grant = current_grant(1000.0)
    assert current_grant(1000.0 + age) is grant
    assert looks.count() == 1
    assert current_grant(1000.0 + INTERVAL) is grant
    assert looks.count() == 1


def test_a_change_is_found_an_interval_later(looks: Looks) -> None:
    grant = current_grant(1000.0)
    looks.change()
    assert current_grant(1000.05) is grant
    found = current_grant(1000.0 + INTERVAL)
    assert found is not grant
    assert found.privileges == looks.found != grant.privileges
    assert grant.check_at == -math.inf, "those that were started with it look at each call"


def test_a_start_looks_in_any_case(looks: Looks) -> None:
    """A worker that is started between a change and the look that finds it does not count as one from before."""
    before = current_grant(1000.0)
    looks.change()
    assert current_grant(1000.01, anew=True).privileges == looks.found != before.privileges


def test_a_function_of_os_is_noticed_at_once(looks: Looks) -> None:
    grant = current_grant(1000.0)
    looks.change()
    os.seteuid(os.geteuid())
    looks.count()
    assert current_grant(1000.01).privileges == looks.found != grant.privileges
    assert all(anew for _, anew in looks.made), "with the namespaces"


def test_another_user_is_noticed_at_once(looks: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
    grant = current_grant(1000.0)
    monkeypatch.setattr(os, "geteuid", lambda: grant.user + 1)
    looks.count()
    current_grant(1000.01)
    assert looks.count() > 0


def test_each_thread_looks_for_itself(looks: Looks) -> None:
    """One may have left the program's namespaces, or given up capabilities."""
    mine = current_grant(1000.0)
    looks.count()

    def look_elsewhere() -> tuple[Grant, int]:
        looks.of_thread[threading.get_ident()] = attrs.evolve(looks.found, capabilities=b"fewer")
        return current_grant(1000.01), looks.count()

    theirs, count = in_a_thread(look_elsewhere)
    assert count == 1
    assert theirs.privileges.capabilities == b"fewer"
    assert theirs.thread != mine.thread == threading.get_ident()
    assert current_grant(1000.02) is mine
    assert looks.count() == 0


def test_a_change_during_a_look_causes_another(looks: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a signal handler, or by another thread."""

    def change_meanwhile(*, anew: bool = False) -> Privileges:
        found = looks.current(anew=anew)
        _privileges._grants.expire()
        return found

    grant = current_grant(1000.0)
    monkeypatch.setattr(_privileges, "current", change_meanwhile)
    assert current_grant(1001.0) is grant
    assert grant.check_at == -math.inf


def test_a_fork_looks_anew(looks: Looks) -> None:
    grant = current_grant(1000.0)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if grant.check_at == -math.inf else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert grant.check_at == 1000.0 + INTERVAL


async def test_workers_and_looks(looks: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four workers, and many calls: a look for each start, and one more after a change that Python sees."""
    monkeypatch.setattr(_privileges, "_CHECK_INTERVAL", math.inf)
    limiter = trio.CapacityLimiter(4)
    async with trio_offload.open_worker_context() as context:

        async def call_all() -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(lambda: context.run_sync(abs, -1, limiter=limiter))

        await context.prewarm(4)
        looks.count()
        await call_all()
        assert looks.count() == 0
        os.seteuid(os.geteuid())
        await call_all()
        assert looks.count() == 1
        assert context.statistics().idle_workers == 4
        before = {worker.pid for worker in context.statistics().workers}
        looks.change()
        _privileges._grants.expire()
        assert await context.run_sync(os.getpid) not in before


@pytest.mark.leaves_default_workers
def test_threads_with_different_privileges_share_no_worker(looks: Looks) -> None:
    """The default context's workers: each call finds one with the privileges of its own thread."""

    async def call() -> int:
        return await trio_offload.run_sync(os.getpid)

    def call_elsewhere() -> list[int]:
        looks.of_thread[threading.get_ident()] = attrs.evolve(looks.found, capabilities=b"fewer")
        return [trio.run(call), trio.run(call)]

    mine = [trio.run(call), trio.run(call)]
    theirs = in_a_thread(call_elsewhere)
    assert len(set(mine)) == len(set(theirs)) == 1
    assert mine[0] != theirs[0]
    assert trio.run(call) != theirs[0]
