"""An app that knows nothing of processes: no guard, no `freeze_support()`."""

import sys

import trio
from frozen_package.work import double, has

import trio_offload


def in_main():
    return "never"


async def main():
    async with trio_offload.open_worker_context() as context:
        print(await context.run_sync(double, 21), await context.run_sync(abs, -3))
        print("with" if await context.run_sync(has, "opentelemetry") else "without", "OpenTelemetry")
        if "--job-in-main" in sys.argv:
            await context.run_sync(in_main)


print("the app runs")
trio.run(main)
