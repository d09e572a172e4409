"""A program that changes what it may do while it has workers: ``privileges.py call|map|actor|cancel|limit CHANGE KIND FOLDER``, started by the superuser.

Prints a line for each way of running a call after the change: its name, and what the job and the program see.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

import trio_offload
from trio_offload import WorkerType
from trio_offload._interpreter import locate as _locate
from trio_offload._process import privileges as _privileges

# A worker that loads this script has the program's own arguments.
WHAT, CHANGE, KIND, FOLDER = sys.argv[1:]
LIBC = ctypes.CDLL(None, use_errno=True)
NOBODY = 65534
CAP_DAC_READ_SEARCH, CAP_NET_RAW = 2, 13
PR_SET_KEEPCAPS, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 8, 24, 38, 47
CLONE_NEWNS, CLONE_NEWUTS = 0x20000, 0x4000000
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18


def check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), "a system call failed")


def set_capabilities(mask: int, inheritable: int = 0) -> None:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    check(LIBC.capset(header, (ctypes.c_uint32 * 6)(low, low, inheritable, high, high, 0)))


def leave_user() -> None:
    """Another user in place of the superuser. It may still read every file: the tests may be anywhere."""
    check(LIBC.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    set_capabilities(1 << CAP_DAC_READ_SEARCH, 1 << CAP_DAC_READ_SEARCH)
    check(LIBC.prctl(PR_CAP_AMBIENT, 2, CAP_DAC_READ_SEARCH, 0, 0))


def leave_user_by_ctypes() -> None:
    check(LIBC.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
    check(LIBC.setresuid(NOBODY, NOBODY, NOBODY))
    set_capabilities(1 << CAP_DAC_READ_SEARCH, 1 << CAP_DAC_READ_SEARCH)
    check(LIBC.prctl(PR_CAP_AMBIENT, 2, CAP_DAC_READ_SEARCH, 0, 0))


def leave_group() -> None:
    os.setresgid(NOBODY, NOBODY, NOBODY)


def change_groups() -> None:
    os.setgroups([12345])


def drop_capability() -> None:
    look_at_once()
    check(LIBC.prctl(PR_CAPBSET_DROP, CAP_NET_RAW, 0, 0, 0))
    set_capabilities(capabilities() & ~(1 << CAP_NET_RAW))


def forbid_privileges() -> None:
    look_at_once()
    check(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def change_root() -> None:
    os.chroot(FOLDER)
    os.chdir("/")


def change_host() -> None:
    if hasattr(os, "unshare"):
        os.unshare(os.CLONE_NEWUTS)
    else:
        look_at_once()
        check(LIBC.unshare(CLONE_NEWUTS))
    check(LIBC.sethostname(b"elsewhere", 9))


def look_at_once() -> None:
    """Python has no function for such a change: it is noticed a moment later."""
    _privileges._CHECK_INTERVAL = _privileges._NAMESPACES_INTERVAL = 0.0  # type: ignore[misc]
    _privileges._grants.expire()


def prepare_root() -> None:
    """In the folder, the root directory once more, and a file that is in it only."""
    check(LIBC.unshare(CLONE_NEWNS))
    check(LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    for name in os.listdir("/"):
        there = os.path.join(FOLDER, name)
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), there)
        elif os.path.isdir(f"/{name}"):
            os.mkdir(there)
            check(LIBC.mount(f"/{name}".encode(), there.encode(), None, MS_BIND | MS_REC, None))
    with open(os.path.join(FOLDER, "only-there"), "w"):
        pass


def capabilities() -> int:
    with open("/proc/thread-self/status") as status:
        fields = dict(line.rstrip("\n").split(":\t", 1) for line in status)
    return int(fields["CapPrm"], 16)


def no_new_privileges() -> int:
    return int(LIBC.prctl(39, 0, 0, 0, 0))


def host() -> str:
    return os.uname().nodename


def has_file() -> bool:
    return os.path.exists("/only-there")


CHANGES: dict[str, tuple[Callable[[], None], Callable[[], Any]]] = {
    "user": (leave_user, os.getresuid),
    "user by ctypes": (leave_user_by_ctypes, os.getresuid),
    "group": (leave_group, os.getresgid),
    "groups": (change_groups, os.getgroups),
    "capability": (drop_capability, capabilities),
    "no_new_privs": (forbid_privileges, no_new_privileges),
    "root": (change_root, has_file),
    "namespace": (change_host, host),
}


def of_item(item: int) -> Any:
    return CHANGES[CHANGE][1]()


def open_context(**options: Any) -> Any:
    return trio_offload.open_worker_context(worker_type=WorkerType(KIND.replace("loop", "spawn")), **options)


def open_actor(cls: type, **options: Any) -> Any:
    return trio_offload.open_actor(cls, worker_type=WorkerType(KIND.replace("loop", "spawn")), **options)


async def look_at_calls() -> None:
    change, look = CHANGES[CHANGE]
    if CHANGE == "root":
        prepare_root()
    async with open_context() as kept, open_context(retire=object) as once:
        for context in (kept, once):
            await context.run_sync(look)
        await kept.prewarm(2)
        change()
        here = look()
        print("kept", await kept.run_sync(look) == here, kept.statistics().idle_workers)
        print("once", await once.run_sync(look) == here)


async def look_at_map() -> None:
    change, look = CHANGES[CHANGE]
    async with open_context() as context:
        async with context.map(of_item, range(20), workers=1, window=4) as results:
            found = [await results.__anext__()]
            change()
            # Those on their way were sent before.
            found += [result async for result in results][8:]
            print("mapped", {str(result) for result in found[1:]} == {str(look())})
        async with context.map(of_item, range(2), workers=1) as results:
            print("mapped", {str(result) async for result in results} == {str(look())})


class Looker:
    def look(self) -> Any:
        return CHANGES[CHANGE][1]()


async def look_at_actors() -> None:
    change, look = CHANGES[CHANGE]
    async with open_actor(Looker) as kept, open_actor(Looker, restart="fresh") as fresh:
        for actor in (kept, fresh):
            await actor.look()
        change()
        try:
            await kept.look()
        except trio.BrokenResourceError as error:
            print("refused", "privileges, root directory or namespaces have changed" in str(error))
        print("fresh", await fresh.look() == look())


def sleep(started: str, stopped: bool) -> None:
    with open(started, "w") as line:
        line.write("x")
    if stopped:
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(1000)


async def cancel() -> None:
    """Cancel jobs that were started with more privileges than the program has by then."""
    async with open_context(grace_period=5) as context:
        await context.prewarm(3)

        async def call(path: str, stopped: bool) -> None:
            await context.run_sync(sleep, path, stopped, kill_on_cancel=True)

        async with trio.open_nursery() as nursery:
            # The second is stopped before this program hangs up, or just then, or just after.
            for number in range(2):
                path = os.path.join(FOLDER, f"line-{number}")
                os.mkfifo(path)
                nursery.start_soon(call, path, number == 1)
                await trio.to_thread.run_sync(Path(path).read_text)
            leave_user()
            nursery.cancel_scope.cancel()
        print("cancelled", nursery.cancel_scope.cancelled_caught)


def take_memory() -> None:
    block = b"x" * (200 << 20)
    time.sleep(1000)
    del block


async def exceed_limit() -> None:
    CHANGES[CHANGE][0]()
    async with open_context(memory_limit=100 << 20) as context:
        try:
            await context.run_sync(take_memory, timeout=60)
        except trio_offload.WorkerMemoryError as error:
            print("limited", error.limit == 100 << 20)
        except trio_offload.WorkerStartError as error:
            print("refused", "hidepid" in str(error))


if __name__ == "__main__":
    if KIND == "loop":
        _locate.runtime = lambda: _locate.WorkerRuntime("", "", "the test wants it so")
    programs = {"call": look_at_calls, "map": look_at_map, "actor": look_at_actors, "cancel": cancel, "limit": exceed_limit}
    trio.run(programs[WHAT])
    if WHAT == "cancel":
        print("children", Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
