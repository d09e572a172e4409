"""What a program does with workers in a container: jobs, a crash, a timeout, a ceiling. Prints one word for each that is as it should be."""

import os
import subprocess
import sys
import time

import trio

import trio_offload


def run_true():
    return subprocess.run(["true"], check=False).returncode


def take(mebibytes):
    block = bytearray(mebibytes << 20)
    time.sleep(60)
    return len(block)


async def main(kind):
    async with trio_offload.open_worker_context(memory_limit="300MiB", worker_type=kind) as context:
        if await context.run_sync(run_true) == 0:
            print("job")
        try:
            await context.run_sync(os.abort)
        except trio_offload.BrokenWorkerError as error:
            if error.crash.stack:
                print("crash")
        try:
            await context.run_sync(time.sleep, 60, timeout=0.5)
        except trio_offload.WorkerTimeoutError as error:
            if error.crash.stack:
                print("timeout")
        try:
            await context.run_sync(take, 500)
        except trio_offload.WorkerMemoryError:
            print("ceiling")


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
