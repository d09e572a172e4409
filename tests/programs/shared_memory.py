"""Shared memory that a job opens, or creates, outlives the worker; run with «late» the tracker starts after the worker."""

import sys
from multiprocessing import shared_memory
from typing import Any

import trio

import trio_offload


def poke(name: str) -> tuple[Any, Any]:
    from multiprocessing import resource_tracker

    memory = shared_memory.SharedMemory(name=name)
    memory.buf[0] = 7
    memory.close()
    tracker: Any = resource_tracker._resource_tracker
    return tracker._fd is not None, tracker._pid


def create() -> str:
    memory = shared_memory.SharedMemory(create=True, size=10)
    memory.buf[0] = 9
    memory.close()
    return memory.name


async def main() -> None:
    async with trio_offload.open_worker_context() as context:
        if sys.argv[1:] == ["late"]:
            await context.run_sync(bool)
        ours = shared_memory.SharedMemory(create=True, size=100)
        connected, own_tracker = await context.run_sync(poke, ours.name)
        theirs = await context.run_sync(create)
    for name, value in ((ours.name, 7), (theirs, 9)):
        memory = shared_memory.SharedMemory(name=name)
        if memory.buf[0] != value:
            sys.exit(f"{name} holds {memory.buf[0]}")
        memory.close()
        memory.unlink()
    ours.close()
    print(connected, own_tracker)


if __name__ == "__main__":
    trio.run(main)
