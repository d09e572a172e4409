"""One job crashes its process, one never ends. The program gets an exception for the first, cancels the second, and goes on."""

from __future__ import annotations

import ctypes
import os
import time

import trio

import trio_offload


def read_address_zero() -> bytes:
    """What a bug in a C extension does: this process dies by SIGSEGV."""
    return ctypes.string_at(0)


def never_end() -> None:
    while True:
        pass


def count_primes(below: int) -> int:
    """Honest work."""
    return sum(all(number % divisor for divisor in range(2, int(number**0.5) + 1)) for number in range(2, below))


async def main() -> None:
    print(f"this process is {os.getpid()}")

    try:
        await trio_offload.run_sync(read_address_zero)
    except trio_offload.BrokenWorkerError as error:
        print(f"segfault: {error}")

    started = time.perf_counter()
    with trio.move_on_after(0.5):
        # Only a call that says so may be killed; any other is waited for.
        await trio_offload.run_sync(never_end, kill_on_cancel=True)
    print(f"endless loop: cancelled, and its worker killed, after {time.perf_counter() - started:.2f} s")

    async with trio.open_nursery() as nursery:
        for below in (10_000, 20_000, 30_000, 40_000):
            nursery.start_soon(report_primes, below)
    print(f"still running, process {os.getpid()}")


async def report_primes(below: int) -> None:
    print(f"{await trio_offload.run_sync(count_primes, below)} primes below {below}")


if __name__ == "__main__":
    trio.run(main)
